"""Where the candles of a series lie: the newest are rows, which are cheap to add; those before them are chunks, which
are cheap to read and to keep. All packed candles of a series lie before its rows. The newest chunk grows: rows are
packed into it while nothing else is written (`pack`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from types import NoneType

from klinesync.core.candle import OHLCV, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candle_columns import CandleColumns, columns_of, joined
from klinesync.storage.chunk_table import ChunkTable
from klinesync.storage.chunks import Maker, T, as_candles, chunk_of, chunk_start
from klinesync.storage.damage import Damage, DoAgain, OddValue, StoreDamaged
from klinesync.storage.memory import Edges, Facts, Memory, edges_of, integer
from klinesync.storage.tables import Tables, Values

# Open times of a series whose candles stay rows when those before them are packed. At a minute's end every series adds
# a row: the fewer rows a series has, the fewer pages are written.
ROW_CANDLES = 16
# Most open times between the first and the newest row: with more, the write itself packs.
MOST_ROW_CANDLES = 128

# Types of values; only those of the order flow may be missing.
_NUMBERS = frozenset({int, float, NoneType})
_time_of = itemgetter(0)


class CandleTable:
    """The candles of all series, within one transaction. What is put is buffered until it is read, or until `save`.

    A damaged chunk raises `StoreDamaged`, and so do rows that cannot be put; reading a damaged row raises what
    `Tables.unreadable` names.
    """

    def __init__(self, tables: Tables, memory: Memory) -> None:
        self._tables = tables
        self._memory = memory
        self._unsaved: list[Values] = []
        self.chunks = ChunkTable(tables, memory)

    def newest(
        self,
        series: SeriesId,
        number: int,
        limit: int,
        window: Span,
        make: Maker[T],
        *,
        strict: bool,
        full: bool = True,
    ) -> list[T]:
        """The newest `limit` candles that open in `window`, ascending. `strict`, `full`: see `ChunkTable.read`."""
        rows = self.rows(number, window, make, limit, newest=True, full=full)
        rows.reverse()
        if len(rows) >= limit:
            return rows
        parts = [rows]
        left = limit - len(rows)
        for some in self.chunks.read(series, number, window, make, newest=True, strict=strict, most=left, full=full):
            parts.append(some[-left:])
            left -= len(parts[-1])
            if not left:
                break
        return list(chain.from_iterable(reversed(parts)))

    def oldest(
        self,
        series: SeriesId,
        number: int,
        limit: int,
        window: Span,
        make: Maker[T],
        *,
        strict: bool,
        full: bool = True,
    ) -> list[T]:
        """The oldest `limit` candles that open in `window`, ascending."""
        found: list[T] = []
        for some in self.chunks.read(series, number, window, make, strict=strict, most=limit, full=full):
            found += some
            if len(found) >= limit:
                return found[:limit]
        return found + self.rows(number, window, make, limit - len(found), full=full)

    def oldest_columns(self, series: SeriesId, number: int, limit: int, window: Span) -> CandleColumns:
        """The oldest `limit` candles that open in `window`, ascending, as columns."""
        parts: list[CandleColumns] = []
        missing = limit
        for part in self.chunks.columns(series, number, window, limit):
            parts.append(part.part(0, missing))
            missing -= len(parts[-1].time)
            if not missing:
                return joined(parts)
        return joined([*parts, columns_of(self.rows(number, window, as_candles, missing))])

    def between(self, series: SeriesId, facts: Facts, window: Span) -> list[Candle]:
        """The candles that open in `window`, ascending."""
        if facts.tail and window.start >= facts.tail[0].time:
            return [candle for candle in facts.tail if window.start <= candle.time < window.end]
        rows = self.rows(facts.number, window, as_candles)
        if facts.first_row is not None and window.start >= facts.first_row:
            return rows
        found = list(chain.from_iterable(self.chunks.read(series, facts.number, window, as_candles)))
        return found + rows if found else rows

    def count_after(self, series: SeriesId, number: int, since: int, most: int) -> int:
        """How many candles open after `since`, counted up to `most`."""
        self._save_rows()
        found = integer(self._tables.count_candles(number, since, most))
        if found < most:
            chunk = chunk_of(number, series.timeframe, max(since, 0))
            found += sum(candle.time > since for candle in self.chunks.one(series, number, chunk, strict=False))
        if found < most:
            found += self.chunks.count(number, chunk + 1, most - found)
        return min(found, most)

    def edges(self, number: int) -> Edges | None:
        """The oldest and the newest stored open time; None when nothing is stored."""
        self.save()
        row = self._tables.edges(number)
        if row is None:
            raise OddValue("the row of the series is gone")
        return edges_of(row)

    def rows(
        self, number: int, window: Span, make: Maker[T], limit: int = -1, *, newest: bool = False, full: bool = True
    ) -> list[T]:
        """The oldest (or newest, newest first) `limit` candles among the rows that open in `window`; `full`: with all
        their fields, or the first six."""
        self._save_rows()
        rows = self._tables.candles(number, *window, limit, newest=newest)
        found = set(map(type, chain.from_iterable(rows)))
        if not _NUMBERS.issuperset(found) or (NoneType in found and any(None in row[:OHLCV] for row in rows)):
            raise OddValue("a candle has a value that is no number")
        return make(rows if full else [row[:OHLCV] for row in rows])

    def append(self, series: SeriesId, facts: Facts, candle: Candle) -> bool:
        """Put the candle that opens where the head closes, unless the rows must be packed before. Returns whether it
        was put."""
        step_s = series.timeframe.seconds
        if facts.first_row is None or candle.time - facts.first_row >= MOST_ROW_CANDLES * step_s:
            return False
        self._unsaved.append((facts.number, *candle))
        if (candle.time // step_s + facts.number) % ROW_CANDLES == 0:
            self._memory.to_pack[series] = None
        return True

    def place(self, series: SeriesId, facts: Facts, candles: Sequence[Candle], head: int) -> int:
        """Put ascending candles where they belong: those from the first row on are rows, those before it are packed.
        When the new `head` is too far from the first row, the rows are packed too. The open time from which on candles
        are rows."""
        number = facts.number
        first_row = facts.first_row
        if first_row is None:
            oldest = self._oldest_row(number)
            first_row = rows_start(number, series.timeframe, head) if oldest is None else oldest
        if head - first_row >= MOST_ROW_CANDLES * series.timeframe.seconds:
            return self._pack(series, number, first_row, head, candles)
        at = bisect_left(candles, first_row, key=_time_of)
        for chunk, few in _by_chunk(number, series.timeframe, candles[:at]).items():
            self.chunks.put(series, number, chunk, _merged(self.chunks.one(series, number, chunk), few))
        self._unsaved += [(number, *candle) for candle in candles[at:]]
        if first_row < rows_start(number, series.timeframe, head):
            self._memory.to_pack[series] = None
        return first_row

    def pack(self, series: SeriesId, facts: Facts, head: int) -> int:
        """Pack the rows that are not among the newest. The open time from which on candles are rows."""
        first_row = self._oldest_row(facts.number)
        return head if first_row is None else self._pack(series, facts.number, first_row, head, ())

    def _pack(self, series: SeriesId, number: int, first_row: int, head: int, arriving: Sequence[Candle]) -> int:
        """Put arriving candles, and pack all but the newest rows. The open time from which on candles are rows. Rows
        stay where the packed candles beside them are damaged. Raises `DoAgain` where these lie on a page that cannot be
        read: no transaction that has met it can be committed."""
        frame, packed = series.timeframe, dict[int, Sequence[Candle]]()
        before = rows_start(number, frame, head)
        if before > first_row and not self._damaged_between(series, number, first_row, before):
            rows = self.rows(number, Span(0, before), as_candles)
            try:
                whole = {
                    chunk: _merged(self.chunks.one(series, number, chunk, strict=False), few)
                    for chunk, few in _by_chunk(number, frame, rows).items()
                }
            except StoreDamaged as error:
                raise DoAgain(error.damage) from error
            if not self._damaged_between(series, number, first_row, before):
                packed, first_row = whole, before
        at = bisect_left(arriving, first_row, key=_time_of)
        for chunk, few in _by_chunk(number, frame, arriving[:at]).items():
            stored = packed[chunk] if chunk in packed else self.chunks.one(series, number, chunk)
            packed[chunk] = _merged(stored, few)
        for chunk, candles in packed.items():
            self.chunks.put(series, number, chunk, candles)
        self._tables.delete_candles(number, first_row)
        self._unsaved += [(number, *candle) for candle in arriving[at:]]
        return first_row

    def _damaged_between(self, series: SeriesId, number: int, start: int, end: int) -> bool:
        """Whether a chunk in which candles of that span lie is known to be damaged."""
        first, last = (chunk_of(number, series.timeframe, time) for time in (start, end - 1))
        around = Span(self.chunks.span(series, number, first).start, self.chunks.span(series, number, last).end)
        return any(span.overlaps(around) for span in self.chunks.damaged(series))

    def trim(self, series: SeriesId, number: int, before: int) -> None:
        """Delete the candles that open before `before`."""
        self._save_rows()
        chunk = chunk_of(number, series.timeframe, max(before, 0))
        self.chunks.delete_before(number, chunk)
        # A damaged chunk stays as it is: which candles are in it is unknown.
        candles = self.chunks.one(series, number, chunk, strict=False)
        if candles and candles[0].time < before:
            self.chunks.put(series, number, chunk, [candle for candle in candles if candle.time >= before])
        self._tables.delete_candles(number, before)

    def save(self) -> None:
        """Write what is buffered."""
        self._save_rows()
        self.chunks.save()

    def drop(self) -> None:
        """What is buffered is rolled back."""
        self._unsaved.clear()
        self.chunks.drop()

    def _save_rows(self) -> None:
        rows = self._unsaved
        if not rows:
            return
        self._unsaved = []
        try:
            self._tables.put_candles(rows)
        except self._tables.unreadable as error:
            numbers = {row[0] for row in rows}
            series = self._memory.named(integer(rows[0][0])) if len(numbers) == 1 else None
            if series is not None:
                raise self._memory.unreadable(series, error) from error
            # Which of several series is unknown: the caller tries each by itself.
            raise StoreDamaged(Damage(None, None, str(error))) from error

    def _oldest_row(self, number: int) -> int | None:
        self._save_rows()
        found = self._tables.oldest_candle(number)
        return None if found is None else integer(found)


def rows_start(number: int, timeframe: Timeframe, head: int) -> int:
    """The open time from which on candles stay rows when a series with that head is packed. Series with other numbers
    are packed at other times."""
    step_s = timeframe.seconds
    return max((head // step_s + number) // ROW_CANDLES * ROW_CANDLES - number, 0) * step_s


def _by_chunk(number: int, timeframe: Timeframe, ascending: Sequence[Candle]) -> dict[int, Sequence[Candle]]:
    found: dict[int, Sequence[Candle]] = {}
    first = 0
    while first < len(ascending):
        chunk = chunk_of(number, timeframe, ascending[first].time)
        end = chunk_start(number, timeframe, chunk + 1)
        last = bisect_left(ascending, end, first, key=_time_of)
        found[chunk] = ascending[first:last]
        first = last
    return found


def _merged(stored: Sequence[Candle], arriving: Sequence[Candle]) -> Sequence[Candle]:
    """Both, ascending; of two of one time the arriving one."""
    if not stored or not arriving or stored[-1].time < arriving[0].time:
        return [*stored, *arriving]
    return [one for _, one in sorted(({one.time: one for one in stored} | {one.time: one for one in arriving}).items())]

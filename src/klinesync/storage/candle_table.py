"""Where the candles of a series lie: the newest are rows, which are cheap to add; those before them are chunks, which
are cheap to read and to keep. All chunks of a series lie before its rows."""

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
from klinesync.storage.damage import Damage, OddValue, StoreDamaged
from klinesync.storage.memory import Edges, Facts, Memory, edges_of, integer
from klinesync.storage.tables import Tables, Values

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
        return [row for part in reversed(parts) for row in part]

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
        if facts.row_chunk is not None and chunk_of(facts.number, series.timeframe, window.start) >= facts.row_chunk:
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

    def put_row(self, number: int, candle: Candle) -> None:
        """Put a candle that is a row: it opens in the chunk of the head."""
        self._unsaved.append((number, *candle))

    def place(self, series: SeriesId, facts: Facts, candles: Sequence[Candle], head: int) -> int:
        """Put ascending candles where they belong: those in the chunk of the new `head` are rows, all others are
        packed, and so are the rows that the head has left behind. The chunk in which the rows begin."""
        frame, number = series.timeframe, facts.number
        newest = chunk_of(number, frame, head)
        row_chunk = facts.row_chunk
        if row_chunk is None:
            oldest = self._oldest_row(number)
            row_chunk = newest if oldest is None else chunk_of(number, frame, oldest)
        if row_chunk == newest == chunk_of(number, frame, candles[0].time):
            self._unsaved += [(number, *candle) for candle in candles]
            return newest
        by_chunk = _by_chunk(number, frame, candles)
        if row_chunk < newest:
            self._pack_rows(series, number, newest, by_chunk)
        for chunk, few in by_chunk.items():
            if chunk == newest:
                self._unsaved += [(number, *candle) for candle in few]
            else:
                self.chunks.put(series, number, chunk, _merged(self.chunks.one(series, number, chunk), few))
        return newest

    def trim(self, series: SeriesId, number: int, before: int) -> None:
        """Delete the candles that open before `before`."""
        self._save_rows()
        chunk = chunk_of(number, series.timeframe, max(before, 0))
        self.chunks.delete_before(number, chunk)
        # A damaged chunk stays as it is: nobody knows which candles are in it.
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
            # Of several series nobody knows which: the caller tries each by itself.
            raise StoreDamaged(Damage(None, None, str(error))) from error

    def _pack_rows(self, series: SeriesId, number: int, before: int, arriving: dict[int, Sequence[Candle]]) -> None:
        """Pack the rows of all chunks before `before`, a chunk at a time, with what arrives of these."""
        while (oldest := self._oldest_row(number)) is not None:
            chunk = chunk_of(number, series.timeframe, oldest)
            if chunk >= before:
                return
            end = chunk_start(number, series.timeframe, chunk + 1)
            rows = self.rows(number, Span(oldest, end), as_candles)
            self._tables.delete_candles(number, end)
            arriving[chunk] = _merged(rows, arriving.get(chunk, ()))

    def _oldest_row(self, number: int) -> int | None:
        self._save_rows()
        found = self._tables.oldest_candle(number)
        return None if found is None else integer(found)


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

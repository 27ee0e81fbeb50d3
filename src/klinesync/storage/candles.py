"""Candles, gaps and revisions of all series: `CandleStore` over the tables of any engine.

The newest candles of a series are rows, which are cheap to add; those before them are chunks, which are cheap to read
and to keep. A series' chunks all lie before its rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from operator import itemgetter
from typing import Concatenate, ParamSpec

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import Rejected
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, runs
from klinesync.core.timeframe import Timeframe
from klinesync.storage.chunk_table import ChunkTable
from klinesync.storage.chunks import Maker, T, as_candles, chunk_of, chunk_start
from klinesync.storage.damage import Damage, Kept, OddValue, StoreDamaged
from klinesync.storage.database import Corrected, Derivation, DerivationOrigin, Origin, Revision, SeriesChange
from klinesync.storage.event_table import StoredEvents
from klinesync.storage.ledger import StoredLedger
from klinesync.storage.memory import Edges, Facts, Memory, Unknown, edges_of, integer, series_of
from klinesync.storage.tables import Row, Tables, Values

# The newest candles of a series that its writer remembers: as many as the next derived candle is made of (seven days).
TAIL_CANDLES = 8
_GAP_STATES = {state.value: state for state in GapState}
_ORIGINS = frozenset(DerivationOrigin)
_NUMBERS = frozenset({int, float})
_time_of = itemgetter(0)

P = ParamSpec("P")


def _names_series(
    method: Callable[Concatenate[StoredCandles, SeriesId, P], T],
) -> Callable[Concatenate[StoredCandles, SeriesId, P], T]:
    """Of a method that asks for one series: what the engine cannot read is damage of that series, and raises
    `StoreDamaged`."""

    @wraps(method)
    def named(store: StoredCandles, series: SeriesId, /, *args: P.args, **more: P.kwargs) -> T:
        try:
            return method(store, series, *args, **more)
        except store.tables.unreadable as error:
            raise store.unreadable(series, error) from error

    return named


class StoredCandles:
    """`CandleStore` in one transaction of `tables`; `commit` is its number where that is known.

    What is written is buffered until it is read or `save` is called, and goes to the engine together.
    """

    def __init__(self, tables: Tables, memory: Memory, commit: int | None = None) -> None:
        self.tables = tables
        self._memory = memory
        self._commit = commit
        self._chunks = ChunkTable(tables, memory)
        self._unsaved: list[Values] = []
        self._unsaved_revisions: list[Values] = []
        self.changes: list[SeriesChange] = []
        self.ledger = StoredLedger(tables, memory)
        self.events = StoredEvents(tables)

    # --- reads

    @_names_series
    def head(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges.newest

    @_names_series
    def first(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges.oldest

    @_names_series
    def span(self, series: SeriesId) -> Span | None:
        edges = self._edges(series)
        return None if edges is None else Span(edges.oldest, series.timeframe.next(edges.newest))

    @_names_series
    def newest(
        self, series: SeriesId, limit: int, *, before: int | None = None, after: int | None = None
    ) -> list[Candle]:
        return self._newest_rows(series, limit, as_candles, before, after, strict=True)

    @_names_series
    def newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], *, before: int | None = None, after: int | None = None
    ) -> list[T]:
        return self._newest_rows(series, limit, make, before, after, strict=False)

    def _newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], before: int | None, after: int | None, *, strict: bool
    ) -> list[T]:
        number = self._number(series)
        if number is None:
            return []
        window = Span(0 if after is None else after + 1, MAX_TIME + 1 if before is None else before)
        rows = self._rows(number, window, make, limit, newest=True)
        rows.reverse()
        if len(rows) >= limit:
            return rows
        parts = [rows]
        left = limit - len(rows)
        for some in self._chunks.read(series, number, window, make, newest=True, strict=strict, most=left):
            parts.append(some[-left:])
            left -= len(parts[-1])
            if not left:
                break
        return [row for part in reversed(parts) for row in part]

    @_names_series
    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        return self._oldest_rows(series, limit, as_candles, since, strict=True)

    @_names_series
    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int) -> list[T]:
        return self._oldest_rows(series, limit, make, since, strict=False)

    def _oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], since: int, *, strict: bool) -> list[T]:
        number = self._number(series)
        if number is None:
            return []
        window = Span(since + 1, MAX_TIME + 1)
        found: list[T] = []
        for some in self._chunks.read(series, number, window, make, strict=strict, most=limit):
            found += some
            if len(found) >= limit:
                return found[:limit]
        return found + self._rows(number, window, make, limit - len(found))

    @_names_series
    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        number = self._number(series)
        if number is None:
            return 0
        self._save_rows()
        found = integer(self.tables.count_candles(number, since, most))
        if found < most:
            chunk = chunk_of(number, series.timeframe, max(since, 0))
            found += sum(candle.time > since for candle in self._chunks.one(series, number, chunk, strict=False))
        if found < most:
            found += self._chunks.count(number, chunk + 1, most - found)
        return min(found, most)

    @_names_series
    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        facts = self._facts(series)
        return [] if facts is None else self._between(series, facts, start, end)

    def commit(self) -> int:
        if self._commit is None:
            self._commit = integer(self.tables.commits())
        return self._commit

    def series(self) -> list[SeriesId]:
        return [series_of(name) for (name,) in self.tables.series()]

    @_names_series
    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        return [series_of(name) for (name,) in self.tables.derived_of(self._number(series))]

    @_names_series
    def derivation(self, series: SeriesId) -> Derivation:
        found = self.tables.derivation(str(series))
        if found is None:
            return Derivation(None)
        base, origin = found
        if origin not in _ORIGINS:
            raise OddValue(f"{str(origin)[:40]!r} is no origin of a series")
        return Derivation(None if base is None else series_of(base), DerivationOrigin(integer(origin)))

    def derived_settings(self) -> tuple[Timeframe, tuple[Timeframe, ...]] | None:
        found = self.tables.derived_settings()
        if found is None:
            return None
        base, targets = found
        try:
            return Timeframe.parse(str(base)), tuple(Timeframe.parse(code) for code in str(targets).split(",") if code)
        except Rejected as error:
            raise OddValue(str(error)) from error

    @_names_series
    def gaps(self, series: SeriesId, window: Span | None = None) -> list[Gap]:
        facts = self._facts(series)
        if facts is None or not facts.has_gaps:
            return []
        gaps = [_as_gap(row) for row in self.tables.gaps(facts.number, *(window or (-1, MAX_TIME + 1)))]
        if not gaps and self._memory.writes and not self.tables.has_gap(facts.number):
            self._memory.put(series, facts._replace(has_gaps=False))
        return gaps

    @_names_series
    def revisions(self, series: SeriesId) -> list[Revision]:
        self._save_revisions()
        return [_as_revision(row) for row in self.tables.revisions(self._number(series))]

    def listing(self, exchange: str, market: str) -> bytes | None:
        found = self.tables.listing(exchange, market)
        if not isinstance(found, bytes | None):
            raise OddValue("a list of symbols is no bytes")
        return found

    def backfills(self) -> list[tuple[SeriesId, Span]]:
        return [(series_of(name), Span(integer(start), integer(end))) for name, start, end in self.tables.backfills()]

    # --- damage

    def damaged(self, series: SeriesId) -> list[Span]:
        return self._chunks.damaged(series)

    def unreadable(self, series: SeriesId, error: Exception) -> StoreDamaged:
        """What a read of the series raises that met a damaged part of the store."""
        damage = Damage(series, None, f"the store's file cannot be read there: {error}", Kept.ANY)
        self._memory.damage.note(damage)
        return StoreDamaged(damage)

    def recheck(self, damage: Damage) -> None:
        if damage.series is None:
            return
        if damage.kept in (Kept.CANDLES, Kept.ANY):
            self._recheck(damage.series, damage.kept, damage.span)
        else:
            self.ledger.recheck(damage)

    @_names_series
    def _recheck(self, series: SeriesId, kept: Kept, span: Span | None) -> None:
        number = self._number(series)
        if number is not None:
            window = span or Span(0, MAX_TIME + 1)
            for _ in self._chunks.read(series, number, window, as_candles):
                pass
            self._rows(number, window, as_candles)
            self._edges(series)
            self.gaps(series)
            self.revisions(series)
        self._memory.damage.clear(series, kept, span)

    # --- writes

    @_names_series
    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        if len(candles) == 1:
            ascending = list(candles)
        else:
            ascending = [by_time for _, by_time in sorted({candle.time: candle for candle in candles}.items())]
        if not ascending:
            return Applied(series, (), frozenset(), commit=self.commit())
        facts = self._facts(series) or self._add_series(series, origin)
        edges = facts.edges
        if edges is Unknown.UNKNOWN:
            edges = self._edges(series)
        head = None if edges is None else edges.newest
        revised: frozenset[int] = frozenset()
        rounded: frozenset[int] = frozenset()
        if head is not None and ascending[0].time <= head:
            # By runs: a batch may hold candles that lie years apart.
            times = [candle.time for candle in ascending]
            spans = runs(series.timeframe, times)
            stored = {row.time: row for span in spans for row in self._between(series, facts, *span)}
            ascending = [candle for candle in ascending if stored.get(candle.time) != candle]
            revising = [one for one in ascending if origin.revises(stored.get(one.time), one)]
            late = (one.time for one in ascending if one.time <= head and one.time not in stored)
            revised = frozenset(one.time for one in revising).union(late)
            rounded = frozenset(one.time for one in ascending if one.time <= head) - revised
            self._unsaved_revisions += [(facts.number, *stored[one.time], origin.at, origin.source) for one in revising]
            if revising:
                corrected = Corrected(revising[0].time, revising[-1].time, len(revising), origin.source)
                self.changes.append((series, corrected))
        if ascending:
            first, last = ascending[0].time, ascending[-1].time
            if edges is not None:
                first, last = min(edges.oldest, first), max(edges.newest, last)
            row_chunk = self._place(series, facts, ascending, last)
            tail: tuple[Candle, ...] = ()
            if head is None or head < ascending[0].time:
                tail = (*facts.tail, *ascending[-TAIL_CANDLES:])[-TAIL_CANDLES:]
            self._memory.put(
                series, Facts(facts.number, Edges(first, last), row_chunk, tail, facts.has_gaps, facts.ledger)
            )
        return Applied(series, tuple(ascending), revised, commit=self.commit(), rounded=rounded)

    def _place(self, series: SeriesId, facts: Facts, candles: Sequence[Candle], head: int) -> int:
        """Put candles where they belong: those in the chunk of the new head are rows, all others are packed, and so
        are the rows that the head has left behind. The chunk in which the rows begin."""
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
                self._chunks.put(number, chunk, _merged(self._chunks.one(series, number, chunk), few))
        return newest

    def _pack_rows(self, series: SeriesId, number: int, before: int, arriving: dict[int, Sequence[Candle]]) -> None:
        """Pack the rows of all chunks before `before`, a chunk at a time, with what arrives of these."""
        while (oldest := self._oldest_row(number)) is not None:
            chunk = chunk_of(number, series.timeframe, oldest)
            if chunk >= before:
                return
            end = chunk_start(number, series.timeframe, chunk + 1)
            rows = self._rows(number, Span(oldest, end), as_candles)
            self.tables.delete_candles(number, end)
            arriving[chunk] = _merged(rows, arriving.get(chunk, ()))

    @_names_series
    def trim(self, series: SeriesId, before: int) -> None:
        facts = self._facts(series)
        if facts is None:
            return
        self._save_rows()
        self._save_revisions()
        number = facts.number
        self._memory.put(series, Facts(number, has_gaps=facts.has_gaps, ledger=facts.ledger))
        chunk = chunk_of(number, series.timeframe, max(before, 0))
        self._chunks.delete_before(number, chunk)
        # A damaged chunk stays as it is: nobody knows which candles are in it.
        candles = self._chunks.one(series, number, chunk, strict=False)
        if candles and candles[0].time < before:
            self._chunks.put(number, chunk, [candle for candle in candles if candle.time >= before])
        self.tables.delete_candles(number, before)
        self.tables.delete_revisions(number, before)

    @_names_series
    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        facts = self._facts(series)
        if not change or facts is None:
            return
        self.changes.append((series, change))
        self._memory.put(series, facts._replace(has_gaps=True))
        number = facts.number
        self.tables.delete_gaps([(number, gap.start) for gap in change.delete])
        self.tables.add_gaps(
            [(number, gap.start, gap.end, str(gap.state), gap.proof, gap.time) for gap in change.insert]
        )

    @_names_series
    def set_derivation(self, series: SeriesId, derivation: Derivation) -> None:
        base = None if derivation.base is None else self._number(derivation.base)
        self.tables.set_derivation(str(series), base, int(derivation.origin))

    def set_derived_settings(self, base: Timeframe, targets: Sequence[Timeframe]) -> None:
        self.tables.set_derived_settings(base.code, ",".join(target.code for target in targets))

    def keep_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        self.tables.put_listing(exchange, market, symbols)

    def add_backfill(self, series: SeriesId, span: Span) -> None:
        self.tables.add_backfill(str(series), *span)

    def end_backfill(self, series: SeriesId, span: Span) -> None:
        self.tables.delete_backfill(str(series), *span)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self.save()
        mark, changes = self._memory.mark(), len(self.changes)
        try:
            with self.tables.savepoint():
                yield
                self.save()
        except BaseException:
            self._unsaved.clear()
            self._unsaved_revisions.clear()
            self._chunks.drop()
            self.ledger.drop()
            self._memory.undo(mark)
            del self.changes[changes:]
            raise

    def save(self) -> None:
        self._save_rows()
        self._save_revisions()
        self._chunks.save()
        self.ledger.save()

    def _save_rows(self) -> None:
        rows = self._unsaved
        if not rows:
            return
        self._unsaved = []
        try:
            self.tables.put_candles(rows)
        except self.tables.unreadable as error:
            numbers = {row[0] for row in rows}
            series = self._memory.named(integer(rows[0][0])) if len(numbers) == 1 else None
            if series is not None:
                raise self.unreadable(series, error) from error
            # Of several series nobody knows which: the caller tries each by itself.
            raise StoreDamaged(Damage(None, None, str(error))) from error

    def _save_revisions(self) -> None:
        rows = self._unsaved_revisions
        if rows:
            self._unsaved_revisions = []
            self.tables.add_revisions(rows)

    # --- what lies in the tables

    def _facts(self, series: SeriesId) -> Facts | None:
        return self._memory.of(series, self.tables)

    def _number(self, series: SeriesId) -> int | None:
        facts = self._memory.of(series, self.tables)
        return None if facts is None else facts.number

    def _add_series(self, series: SeriesId, origin: Origin) -> Facts:
        base = None if origin.base is None else self._number(origin.base)
        facts = Facts(self.tables.add_series(str(series), base), edges=None, has_gaps=False, ledger=None)
        self._memory.put(series, facts)
        return facts

    def _edges(self, series: SeriesId) -> Edges | None:
        facts = self._facts(series)
        if facts is None:
            return None
        if facts.edges is not Unknown.UNKNOWN:
            return facts.edges
        self._save_rows()
        self._chunks.save()
        row = self.tables.edges(facts.number)
        if row is None:
            raise OddValue("the row of the series is gone")
        edges = edges_of(row)
        if self._memory.writes:
            self._memory.put(series, facts._replace(edges=edges))
        return edges

    def _between(self, series: SeriesId, facts: Facts, start: int, end: int) -> list[Candle]:
        if facts.tail and start >= facts.tail[0].time:
            return [candle for candle in facts.tail if start <= candle.time < end]
        window = Span(start, end)
        rows = self._rows(facts.number, window, as_candles)
        if facts.row_chunk is not None and chunk_of(facts.number, series.timeframe, start) >= facts.row_chunk:
            return rows
        found = list(chain.from_iterable(self._chunks.read(series, facts.number, window, as_candles)))
        return found + rows if found else rows

    def _rows(self, number: int, window: Span, make: Maker[T], limit: int = -1, *, newest: bool = False) -> list[T]:
        """The oldest (or newest, newest first) `limit` candles among the rows that open in `window`."""
        self._save_rows()
        rows = self.tables.candles(number, *window, limit, newest=newest)
        if not _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
            raise OddValue("a candle has a value that is no number")
        return make(rows)

    def _oldest_row(self, number: int) -> int | None:
        self._save_rows()
        found = self.tables.oldest_candle(number)
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


def _as_gap(row: Row) -> Gap:
    start, end, state, proof, time = row
    known = _GAP_STATES.get(str(state))
    if known is None:
        raise OddValue(f"{str(state)[:40]!r} is no state of a gap")
    proof = None if proof is None else str(proof)
    return Gap(integer(start), integer(end), known, proof, None if time is None else integer(time))


def _as_revision(row: Row) -> Revision:
    return Revision(Candle(*row[:6]), *row[6:])  # type: ignore[arg-type]  # the table is STRICT

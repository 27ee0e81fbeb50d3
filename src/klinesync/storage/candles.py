"""Candles, gaps and revisions of all series: `CandleStore` over the tables of any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import Rejected
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, runs
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candle_table import CandleTable
from klinesync.storage.chunks import Maker, T, as_candles
from klinesync.storage.damage import Damage, Kept, OddValue
from klinesync.storage.database import Corrected, Derivation, DerivationOrigin, Origin, Revision, SeriesChange
from klinesync.storage.event_table import StoredEvents
from klinesync.storage.ledger import StoredLedger
from klinesync.storage.memory import Edges, Facts, Memory, Unknown, integer, series_of
from klinesync.storage.tables import Row, Tables, Values

# Newest candles of a series in the writer's memory: at most so many make the next derived candle (seven days).
TAIL_CANDLES = 8
_GAP_STATES = {state.value: state for state in GapState}
_ORIGINS = frozenset(DerivationOrigin)

P = ParamSpec("P")


def _names_series(
    method: Callable[Concatenate[StoredCandles, SeriesId, P], T],
) -> Callable[Concatenate[StoredCandles, SeriesId, P], T]:
    """Decorates a method about one series: data that the engine cannot read is damage of that series, and raises
    `StoreDamaged`."""

    @wraps(method)
    def named(store: StoredCandles, series: SeriesId, /, *args: P.args, **more: P.kwargs) -> T:
        try:
            return method(store, series, *args, **more)
        except store.tables.unreadable as error:
            raise store._memory.unreadable(series, error) from error  # noqa: SLF001  # a decorator of its methods

    return named


class StoredCandles:
    """`CandleStore` in one transaction of `tables`; `commit` is its number; None: not known.

    Writes are buffered until the data is read or `save` is called, and go to the engine together.
    """

    def __init__(self, tables: Tables, memory: Memory, commit: int | None = None) -> None:
        self.tables = tables
        self._memory = memory
        self._commit = commit
        self._candles = CandleTable(tables, memory)
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
        number = self._number(series)
        window = _between(after, before)
        return [] if number is None else self._candles.newest(series, number, limit, window, as_candles, strict=True)

    @_names_series
    def newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], *, before: int | None = None, after: int | None = None
    ) -> list[T]:
        number = self._number(series)
        window = _between(after, before)
        return [] if number is None else self._candles.newest(series, number, limit, window, make, strict=False)

    @_names_series
    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        number = self._number(series)
        window = _between(since, None)
        return [] if number is None else self._candles.oldest(series, number, limit, window, as_candles, strict=True)

    @_names_series
    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int) -> list[T]:
        number = self._number(series)
        window = _between(since, None)
        return [] if number is None else self._candles.oldest(series, number, limit, window, make, strict=False)

    @_names_series
    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        number = self._number(series)
        return 0 if number is None else self._candles.count_after(series, number, since, most)

    @_names_series
    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        facts = self._facts(series)
        return [] if facts is None else self._candles.between(series, facts, Span(start, end))

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
        return self._candles.chunks.damaged(series)

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
            for _ in self._candles.chunks.read(series, number, window, as_candles):
                pass
            self._candles.rows(number, window, as_candles)
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
            stored = {row.time: row for span in spans for row in self._candles.between(series, facts, span)}
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
            row_chunk = self._candles.place(series, facts, ascending, last)
            tail: tuple[Candle, ...] = ()
            if head is None or head < ascending[0].time:
                tail = (*facts.tail, *ascending[-TAIL_CANDLES:])[-TAIL_CANDLES:]
            self._memory.put(
                series, Facts(facts.number, Edges(first, last), row_chunk, tail, facts.has_gaps, facts.ledger)
            )
        return Applied(series, tuple(ascending), revised, commit=self.commit(), rounded=rounded)

    @_names_series
    def trim(self, series: SeriesId, before: int) -> None:
        facts = self._facts(series)
        if facts is None:
            return
        self._save_revisions()
        self._memory.put(series, Facts(facts.number, has_gaps=facts.has_gaps, ledger=facts.ledger))
        self._candles.trim(series, facts.number, before)
        self.tables.delete_revisions(facts.number, before)

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
            self._candles.drop()
            self._unsaved_revisions.clear()
            self.ledger.drop()
            self._memory.undo(mark)
            del self.changes[changes:]
            raise

    def save(self) -> None:
        self._candles.save()
        self._save_revisions()
        self.ledger.save()

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
        edges = self._candles.edges(facts.number)
        if self._memory.writes:
            self._memory.put(series, facts._replace(edges=edges))
        return edges


def _between(after: int | None, before: int | None) -> Span:
    """The open times between both (exclusive)."""
    return Span(0 if after is None else after + 1, MAX_TIME + 1 if before is None else before)


def _as_gap(row: Row) -> Gap:
    start, end, state, proof, time = row
    known = _GAP_STATES.get(str(state))
    if known is None:
        raise OddValue(f"{str(state)[:40]!r} is no state of a gap")
    proof = None if proof is None else str(proof)
    return Gap(integer(start), integer(end), known, proof, None if time is None else integer(time))


def _as_revision(row: Row) -> Revision:
    return Revision(Candle(*row[:6]), *row[6:])  # type: ignore[arg-type]  # the table is STRICT

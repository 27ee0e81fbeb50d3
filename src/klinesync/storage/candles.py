"""Candles, gaps and revisions of all series, over the tables of any engine.

The file is longer than others: all writes of a series share the memory of the one writer, and its savepoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import Rejected
from klinesync.core.gaps import Gap, GapChange, GapState, note
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull, missing_spans, runs
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candle_columns import CandleColumns, columns_of
from klinesync.storage.candle_table import CandleTable
from klinesync.storage.chunks import Maker, T, as_candles
from klinesync.storage.damage import Damage, Kept, OddValue, StoreDamaged
from klinesync.storage.event_table import EventStore
from klinesync.storage.ledger import LedgerStore
from klinesync.storage.memory import Edges, Facts, Memory, Unknown, integer, series_of
from klinesync.storage.quarantine import QuarantineStore, Taken
from klinesync.storage.records import Corrected, Derivation, DerivationOrigin, Origin, Revision, SeriesChange, TakenOut
from klinesync.storage.tables import Row, Tables, Values

# Newest candles of a series in the writer's memory: at most so many make the next derived candle (seven days).
TAIL_CANDLES = 8
_GAP_STATES = {state.value: state for state in GapState}
_ORIGINS = frozenset(DerivationOrigin)

P = ParamSpec("P")


def _names_series(
    method: Callable[Concatenate[CandleStore, SeriesId, P], T],
) -> Callable[Concatenate[CandleStore, SeriesId, P], T]:
    """Decorates a method about one series: data that the engine cannot read is damage of that series, and raises
    `StoreDamaged`."""

    @wraps(method)
    def named(store: CandleStore, series: SeriesId, /, *args: P.args, **more: P.kwargs) -> T:
        try:
            return method(store, series, *args, **more)
        except store.tables.unreadable as error:
            raise store._memory.unreadable(series, error) from error  # noqa: SLF001  # a decorator of its methods

    return named


class CandleStore:
    """Closed candles of all series, within one `read` or `write` of a `Database`; must not be kept beyond it.

    tables: the statements of the engine, in this transaction.
    memory: what the one writer remembers of the series; for a reader, of this transaction.
    commit: the number of the transaction; None: not known.

    Methods about one series raise `StoreDamaged` where its data is unreadable. Writes are buffered until the data is
    read or `save` is called, and go to the engine together.
    """

    def __init__(self, tables: Tables, memory: Memory, commit: int | None = None) -> None:
        self.tables = tables
        self._memory = memory
        self._commit = commit
        self._candles = CandleTable(tables, memory)
        self._unsaved_revisions: list[Values] = []
        self._unsaved_firsts: dict[int, int] = {}
        # Of a reader, which sees one state of the store.
        self._read_edges: dict[SeriesId, Edges | None] = {}
        # The changes of this transaction so far beside new candles, in order.
        self.changes: list[SeriesChange] = []
        self.ledger = LedgerStore(tables, memory)
        self.events = EventStore(tables)
        self.quarantine = QuarantineStore(tables)

    # --- reads

    @_names_series
    def head(self, series: SeriesId) -> int | None:
        """The newest stored open time; None when nothing is stored."""
        edges = self._edges(series)
        return None if edges is None else edges.newest

    @_names_series
    def first(self, series: SeriesId) -> int | None:
        """The oldest stored open time; None when nothing is stored."""
        edges = self._edges(series)
        return None if edges is None else edges.oldest

    @_names_series
    def span(self, series: SeriesId) -> Span | None:
        """From the first stored open time to the close of the head; None when nothing is stored."""
        edges = self._edges(series)
        return None if edges is None else Span(edges.oldest, series.timeframe.next(edges.newest))

    @_names_series
    def remembered(self, series: SeriesId, start: int, end: int) -> Sequence[Candle] | None:
        """The candles that open in `[start, end)`, on the grid, where memory has all of them; otherwise None, also
        while there is known damage."""
        facts = self._facts(series)
        if facts is None or self._memory.damage:
            return None
        tail, count = facts.tail, series.timeframe.count(start, end)
        if len(tail) < count or tail[-1].time != series.timeframe.shift(end, -1) or tail[-count].time != start:
            return None
        return tail[-count:]

    @_names_series
    def newest(
        self,
        series: SeriesId,
        limit: int,
        *,
        before: int | None = None,
        after: int | None = None,
        strict: bool = True,
    ) -> list[Candle]:
        """The newest `limit` candles between `after` and `before` (both exclusive), ascending. Damaged candles raise
        `StoreDamaged`; when not `strict`, they are left out, and noted as damage."""
        number = self._number(series)
        window = _between(after, before)
        return [] if number is None else self._candles.newest(series, number, limit, window, as_candles, strict=strict)

    @_names_series
    def newest_rows(
        self,
        series: SeriesId,
        limit: int,
        make: Maker[T],
        *,
        before: int | None = None,
        after: int | None = None,
        full: bool = False,
    ) -> list[T]:
        """The results of `make` for the rows of these candles: for pages, which need no `Candle` objects. A row has the
        first six fields of a candle; when `full`, all of them. Damaged candles are left out, and noted as damage."""
        number = self._number(series)
        window = _between(after, before)
        if number is None:
            return []
        return self._candles.newest(series, number, limit, window, make, strict=False, full=full)

    @_names_series
    def oldest(self, series: SeriesId, limit: int, *, since: int, strict: bool = True) -> list[Candle]:
        """The oldest `limit` candles after `since` (exclusive), ascending."""
        number = self._number(series)
        window = _between(since, None)
        return [] if number is None else self._candles.oldest(series, number, limit, window, as_candles, strict=strict)

    @_names_series
    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int, full: bool = False) -> list[T]:
        """The results of `make` for the rows of these candles; otherwise as `newest_rows`."""
        number = self._number(series)
        window = _between(since, None)
        if number is None:
            return []
        return self._candles.oldest(series, number, limit, window, make, strict=False, full=full)

    @_names_series
    def oldest_columns(self, series: SeriesId, limit: int, window: Span) -> CandleColumns:
        """The oldest `limit` candles that open in `window`, ascending, as columns. Damaged candles raise
        `StoreDamaged`."""
        number = self._number(series)
        return columns_of(()) if number is None else self._candles.oldest_columns(series, number, limit, window)

    @_names_series
    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        """The number of candles after `since`, counted up to `most`."""
        number = self._number(series)
        return 0 if number is None else self._candles.count_after(series, number, since, most)

    @_names_series
    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        """The candles that open in `[start, end)`, ascending."""
        facts = self._facts(series)
        return [] if facts is None else self._candles.between(series, facts, Span(start, end))

    def commit(self) -> int:
        """The number of the transaction: in a `write` the current one, in a `read` the newest visible one."""
        if self._commit is None:
            self._commit = integer(self.tables.commits())
        return self._commit

    def series(self) -> list[SeriesId]:
        """Every series that was ever written."""
        return [series_of(name) for (name,) in self.tables.series()]

    def heads(self) -> dict[SeriesId, int]:
        """The newest stored open time of every series with candles, in one statement."""
        self._candles.save()
        rows = self.tables.facts()
        return {series_of(name): integer(newest) for _, name, _, _, newest, *_ in rows if newest is not None}

    @_names_series
    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        """The stored series that are derived from `series`."""
        return [series_of(name) for (name,) in self.tables.derived_of(self._number(series))]

    @_names_series
    def derivation(self, series: SeriesId) -> Derivation:
        """The derivation of the series."""
        found = self.tables.derivation(str(series))
        if found is None:
            return Derivation(None)
        base, origin = found
        if origin not in _ORIGINS:
            raise OddValue(f"{str(origin)[:40]!r} is no origin of a series")
        return Derivation(None if base is None else series_of(base), DerivationOrigin(integer(origin)))

    def derived_settings(self) -> tuple[Timeframe, tuple[Timeframe, ...]] | None:
        """The base and the derived timeframes with which the store was brought up to date last; None before that."""
        found = self.tables.derived_settings()
        if found is None:
            return None
        base, targets = found
        try:
            return Timeframe.parse(str(base)), tuple(Timeframe.parse(code) for code in str(targets).split(",") if code)
        except Rejected as error:
            raise OddValue(str(error)) from error

    @_names_series
    def has_gaps(self, series: SeriesId) -> bool:
        """Whether the gap ledger of the series may have rows. False: it has none."""
        facts = self._facts(series)
        return facts is not None and facts.has_gaps

    @_names_series
    def gaps(self, series: SeriesId, window: Span | None = None) -> list[Gap]:
        """The rows of the gap ledger that touch `window` (None: all), whole, ascending."""
        facts = self._facts(series)
        if facts is None or not facts.has_gaps:
            return []
        gaps = [as_gap(row) for row in self.tables.gaps(facts.number, *(window or (-1, MAX_TIME + 1)))]
        if not gaps and self._memory.writes and not self.tables.has_gap(facts.number):
            self._memory.put(series, facts._replace(has_gaps=False))
        return gaps

    @_names_series
    def revisions(self, series: SeriesId) -> list[Revision]:
        """The revisions of the series' candles, in the order in which they happened."""
        self._save_revisions()
        return [_as_revision(row) for row in self.tables.revisions(self._number(series))]

    def listing(self, exchange: str, market: str) -> bytes | None:
        """The stored list of symbols of a market; None when none is stored."""
        found = self.tables.listing(exchange, market)
        if not isinstance(found, bytes | None):
            raise OddValue("a list of symbols is no bytes")
        return found

    def backfills(self) -> list[tuple[SeriesId, Span]]:
        """The explicit backfills that are not over yet, by series, ascending."""
        return [(series_of(name), Span(integer(start), integer(end))) for name, start, end in self.tables.backfills()]

    # --- damage

    def damaged(self, series: SeriesId) -> list[Span]:
        """The spans of the series whose candles were found to be unreadable, here or by others, ascending."""
        return self._candles.chunks.damaged(series)

    def recheck(self, damage: Damage) -> None:
        """Read a damaged part again; readable parts leave the board. Raises `StoreDamaged` for unreadable ones."""
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
    def append(self, series: SeriesId, candle: Candle) -> Applied | None:
        """Store the candle that opens where the head closes, which is the usual live one: as `write`, without the steps
        that such a candle does not need. None, and nothing is written, where it is another candle, or more than memory
        is needed. Only within `Database.write`."""
        facts = self._facts(series)
        if facts is None or not isinstance(edges := facts.edges, Edges):
            return None
        number, time = facts.number, candle.time
        if time != series.timeframe.next(edges.newest) or not self._candles.append(series, facts, candle):
            return None
        tail = (*facts.tail[1 - TAIL_CANDLES :], candle)
        self._memory.put(
            series, Facts(number, Edges(edges.oldest, time), facts.first_row, tail, facts.has_gaps, facts.ledger)
        )
        return Applied(series, (candle,), frozenset(), commit=self.commit())

    @_names_series
    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        """Store closed candles. Only within `Database.write`.

        series: of the candles.
        candles: in any order; of two with one open time the later one replaces the earlier one, as if each were written
            by itself.
        origin: source and time.

        Candles that are stored with the same values change nothing and are not reported; a candle that had other values
        leaves a revision.
        """
        if len(candles) == 1:
            ascending = list(candles)
        else:
            by_time = {candle.time: candle for candle in candles}
            if len(by_time) < len(candles):
                by_time = _one_after_the_other(candles, origin)
            ascending = [candle for _, candle in sorted(by_time.items())]
        if not ascending:
            return Applied(series, (), frozenset(), commit=self.commit())
        facts = self._facts(series) or self._add_series(series, origin)
        edges = facts.edges
        if edges is Unknown.UNKNOWN:
            edges = self._edges(series)
        head = None if edges is None else edges.newest
        revised: frozenset[int] = frozenset()
        rounded: frozenset[int] = frozenset()
        enriched: frozenset[int] = frozenset()
        flow_revised: frozenset[int] = frozenset()
        if head is not None and ascending[0].time <= head:
            # By runs: a batch may hold candles that lie years apart.
            times = [candle.time for candle in ascending]
            spans = runs(series.timeframe, times)
            stored = {row.time: row for span in spans for row in self._candles.between(series, facts, span)}
            ascending = [
                candle if was is None else origin.replacing(was, candle)
                for candle in ascending
                if (was := stored.get(candle.time)) != candle
            ]
            ascending = [candle for candle in ascending if stored.get(candle.time) != candle]
            revising = [one for one in ascending if origin.revises(stored.get(one.time), one)]
            late = (one.time for one in ascending if one.time <= head and one.time not in stored)
            revised = frozenset(one.time for one in revising).union(late)
            unrevised = [one for one in ascending if one.time <= head and one.time not in revised]
            rounded = frozenset(one.time for one in unrevised)
            enriched = frozenset(one.time for one in unrevised if one.ohlcv == stored[one.time].ohlcv)
            flow_revised = frozenset(one.time for one in revising if not origin.revises_ohlcv(stored[one.time], one))
            self._unsaved_revisions += [(facts.number, *stored[one.time], origin.at, origin.source) for one in revising]
            if revising:
                corrected = Corrected(revising[0].time, revising[-1].time, len(revising), origin.source)
                self.changes.append((series, corrected))
        if ascending:
            first, last = ascending[0].time, ascending[-1].time
            if edges is None or first < edges.oldest:
                self._unsaved_firsts[facts.number] = first
            if edges is not None:
                first, last = min(edges.oldest, first), max(edges.newest, last)
            first_row = self._candles.place(series, facts, ascending, last)
            tail: tuple[Candle, ...] = ()
            if head is None or head < ascending[0].time:
                tail = (*facts.tail, *ascending[-TAIL_CANDLES:])[-TAIL_CANDLES:]
            self._memory.put(
                series, Facts(facts.number, Edges(first, last), first_row, tail, facts.has_gaps, facts.ledger)
            )
        return Applied(
            series,
            tuple(ascending),
            revised,
            commit=self.commit(),
            rounded=rounded,
            enriched=enriched,
            flow_revised=flow_revised,
        )

    @property
    def to_pack(self) -> bool:
        """Whether there are series with rows that `pack_rows` would pack."""
        return bool(self._memory.to_pack)

    def pack_rows(self, most: int) -> None:
        """Pack the older rows of up to `most` series; the candles stay as they are. Raises `StoreDamaged` for a series
        whose rows cannot be packed: that one is left out until it has further rows, and the call can be repeated for
        the others. Only within `Database.write`."""
        for series in self._memory.take_to_pack(most):
            try:
                self._pack_rows(series)
            except StoreDamaged:
                self._memory.leave_out(series)
                raise

    @_names_series
    def _pack_rows(self, series: SeriesId) -> None:
        edges, facts = self._edges(series), self._facts(series)
        if facts is not None and edges is not None:
            first_row = self._candles.pack(series, facts, edges.newest)
            self._memory.put(series, facts._replace(first_row=first_row))
            self.save()  # what cannot be saved is damage of this series

    def repacking(self) -> list[SeriesId]:
        """The series with chunks of an earlier format that `repack` has not come to yet."""
        return [series_of(name) for (name,) in self.tables.repacking()]

    @_names_series
    def repack(self, series: SeriesId, first: int, most: int) -> int | None:
        """Pack chunks of an earlier format anew; the candles stay as they are. Only within `Database.write`.

        series: one of `repacking`.
        first: the number of the chunk to begin with; 0 at first.
        most: most chunks to look at.

        Returns the chunk to go on from; None: the series is done.
        """
        number = self._number(series)
        if number is None:
            return None
        going_on = self._candles.chunks.repack(series, number, first, most)
        if going_on is None:
            self.tables.end_repacking(number)
        return going_on

    @_names_series
    def trim(self, series: SeriesId, before: int) -> None:
        """Delete the candles that open before `before`, and their revisions; the gap ledger is the caller's. Only
        within `Database.write`."""
        facts = self._facts(series)
        if facts is None:
            return
        self.save()
        edges = self._edges(series)
        self._memory.put(series, Facts(facts.number, has_gaps=facts.has_gaps, ledger=facts.ledger))
        self._candles.trim(series, facts.number, before)
        self.tables.delete_revisions(facts.number, before)
        if edges is not None and edges.oldest < before:
            self._record_first(facts.number, before)

    def begin_at(self, series: SeriesId, first: int) -> None:
        """The stored series begins at the open time `first`, whose candle is missing. Only within `Database.write`."""
        facts, edges = self._facts(series), self._edges(series)
        if facts is not None and edges is not None and first < edges.oldest:
            self._unsaved_firsts[facts.number] = first
            self._memory.put(series, facts._replace(edges=Edges(first, edges.newest)))

    def _record_first(self, number: int, least: int) -> None:
        """Record the first stored open time of a series that has no candle before `least`. The first chunk may be
        damaged, and tell any time."""
        self.tables.put_firsts([(None, number)])
        edges = self._candles.edges(number)
        if edges is not None:
            self.tables.put_firsts([(max(edges.oldest, least), number)])

    @_names_series
    def take_out_damaged(self, series: SeriesId, span: Span, at: int) -> list[Taken]:
        """Take damaged candles out of the series: they are kept in quarantine, and their times are gaps. Only within
        `Database.write`.

        series: whose candles.
        span: open times; the damaged chunks that it touches are taken out.
        at: UTC seconds.

        Returns what was taken out; nothing where the candles can be read. Raises `StoreDamaged` where a part of the
        store itself cannot be read.
        """
        stored, facts = self.span(series), self._facts(series)
        if stored is None or facts is None:
            return []
        self.save()
        taken = self._candles.chunks.take_damaged(series, facts.number, span)
        if not taken:
            return []
        # The series begins where it began: the candles from there on are missing.
        self._memory.put(series, facts._replace(tail=()))
        for part in taken:
            self.quarantine.keep(series, part, at)
            self.changes.append((series, TakenOut(part.span, part.why)))
        missing = [
            hole
            for span in clipped([part.span for part in taken], stored)
            for hole in missing_spans(series.timeframe, *span, self._candles.rows(facts.number, span, _times))
        ]
        if missing:
            self.change_gaps(series, note(self.gaps(series, hull(missing)), missing))
        return taken

    @_names_series
    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        """Write a change of the gap ledger. Only within `Database.write`."""
        facts = self._facts(series)
        if not change or facts is None:
            return
        self.changes.append((series, change))
        # Candles that the writer remembers may be gone from the store.
        self._memory.put(series, facts._replace(has_gaps=True, tail=() if change.insert else facts.tail))
        number = facts.number
        self.tables.delete_gaps([(number, gap.start) for gap in change.delete])
        self.tables.add_gaps(
            [(number, gap.start, gap.end, str(gap.state), gap.proof, gap.time) for gap in change.insert]
        )

    @_names_series
    def set_derivation(self, series: SeriesId, derivation: Derivation) -> None:
        """Store the derivation of a stored series. Only within `Database.write`."""
        base = None if derivation.base is None else self._number(derivation.base)
        self.tables.set_derivation(str(series), base, int(derivation.origin))

    def set_derived_settings(self, base: Timeframe, targets: Sequence[Timeframe]) -> None:
        """Store the base and the derived timeframes. Only within `Database.write`."""
        self.tables.set_derived_settings(base.code, ",".join(target.code for target in targets))

    def keep_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        """Store a list of symbols in place of the previous one. Only within `Database.write`."""
        self.tables.put_listing(exchange, market, symbols)

    def add_backfill(self, series: SeriesId, span: Span) -> None:
        """Store an explicit backfill of `span`; storing it again changes nothing. Only within `Database.write`."""
        self.tables.add_backfill(str(series), *span)

    def end_backfill(self, series: SeriesId, span: Span) -> None:
        """Remove an explicit backfill that is over. Only within `Database.write`."""
        self.tables.delete_backfill(str(series), *span)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo the writes of the block when the block raises. The transaction goes on, except after a `StoreError` that
        is no damage. Only within `Database.write`."""
        self.save()
        mark, changes = self._memory.mark(), len(self.changes)
        try:
            with self.tables.savepoint():
                yield
                self.save()
        except BaseException:
            self._candles.drop()
            self._unsaved_revisions.clear()
            self._unsaved_firsts.clear()
            self.ledger.drop()
            self._memory.undo(mark)
            del self.changes[changes:]
            raise

    def save(self) -> None:
        """Write the buffered changes, so that a later error is not theirs. Only within `Database.write`."""
        self._candles.save()
        self._save_revisions()
        self._save_firsts()
        self.ledger.save()

    def _save_revisions(self) -> None:
        rows = self._unsaved_revisions
        if rows:
            self._unsaved_revisions = []
            self.tables.add_revisions(rows)

    def _save_firsts(self) -> None:
        firsts = self._unsaved_firsts
        if firsts:
            self._unsaved_firsts = {}
            self.tables.put_firsts([(first, number) for number, first in firsts.items()])

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
        if self._memory.writes:
            edges = self._candles.edges(facts.number)
            self._memory.put(series, facts._replace(edges=edges))
        elif series in self._read_edges:
            edges = self._read_edges[series]
        else:
            edges = self._read_edges[series] = self._candles.edges(facts.number)
        return edges


def _between(after: int | None, before: int | None) -> Span:
    """The open times between both (exclusive)."""
    return Span(0 if after is None else after + 1, MAX_TIME + 1 if before is None else before)


def _one_after_the_other(candles: Sequence[Candle], origin: Origin) -> dict[int, Candle]:
    """The candle that remains of each open time when all are written in this order."""
    by_time: dict[int, Candle] = {}
    for candle in candles:
        was = by_time.get(candle.time)
        by_time[candle.time] = candle if was is None else origin.replacing(was, candle)
    return by_time


def _times(rows: Iterable[Sequence[object]]) -> list[int]:
    return [integer(time) for time, *_ in rows]


def as_gap(row: Row) -> Gap:
    """A row of the gap ledger. Raises `OddValue`."""
    start, end, state, proof, time = row
    known = _GAP_STATES.get(str(state))
    if known is None:
        raise OddValue(f"{str(state)[:40]!r} is no state of a gap")
    proof = None if proof is None else str(proof)
    return Gap(integer(start), integer(end), known, proof, None if time is None else integer(time))


def _as_revision(row: Row) -> Revision:
    fields = len(Candle._fields)
    return Revision(Candle(*row[:fields]), *row[fields:])  # type: ignore[arg-type]  # the table is STRICT

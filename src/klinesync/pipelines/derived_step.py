"""DerivedStep: computes the derived candles of a batch, inside its transaction, from stored base candles.

A bucket with missing base candles may have the exchange's own candle, a native one, so that a chart of days begins
before the first stored minute. No column marks native candles: a stored derived candle whose bucket is incomplete in
the base cannot be anything else. Base history that arrives later replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from klinesync.core import gaps
from klinesync.core.candle import Applied, Candle
from klinesync.core.derived import complete, divides, fold, parent_of
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import MAX_REMEMBERED, SeriesId
from klinesync.core.spans import Span, clipped, common, hull, joined, missing_spans, narrowed, runs, widened, without
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import DoAgain, StoreDamaged
from klinesync.storage.records import Derivation, DerivationOrigin, Origin

SOURCE = "derived"
# By series, the candles that this transaction wrote, when they are one run without a hole.
Fresh = MutableMapping[SeriesId, Sequence[Candle]]
NATIVE = "native"


class DerivedStep:
    """Computes derived series.

    base: the timeframe that derived candles are computed from.
    targets: the derived timeframes to compute.

    A derived candle is a function of the stored base candles and the confirmed gaps of its bucket, whatever their
    source. Stored derived series that are no target any more are still corrected, so that no reader gets stale candles.
    """

    def __init__(self, base: Timeframe, targets: Sequence[Timeframe]) -> None:
        """Raises `Rejected` when a target cannot be computed from `base`."""
        for target in targets:
            parent_of(target, base)
        self.base = base
        self.targets = tuple(sorted(targets, key=lambda target: target.seconds))
        self._closing: tuple[int, tuple[Timeframe, ...]] = (0, ())  # the end of the newest minute, and its result
        # Stored series that were derived before and are no targets now, with their bases: posted candles are refused.
        self._dormant: dict[SeriesId, SeriesId] = {}
        self._dormant_timeframes: tuple[Timeframe, ...] = ()
        # Targets that have yet to be recomputed: longer timeframes are not computed from their stored candles.
        self.redoing: set[SeriesId] = set()
        # Cached, because each forming candle needs the result.
        self.derived_from = lru_cache(MAX_REMEMBERED)(self._derived_from)

    @property
    def dormant(self) -> dict[SeriesId, SeriesId]:
        """The stored series that were derived before and are no targets now, with their bases."""
        return self._dormant

    @dormant.setter
    def dormant(self, dormant: dict[SeriesId, SeriesId]) -> None:
        self._dormant = dormant
        self._dormant_timeframes = tuple({derived.timeframe for derived in dormant})

    def derives(self, series: SeriesId) -> bool:
        """Whether the series is a derived one."""
        return series.timeframe in self.targets

    def base_of(self, series: SeriesId) -> SeriesId:
        """The series to ingest for `series`: its base when it is derived, itself otherwise."""
        return series.with_timeframe(self.base) if self.derives(series) else series

    def hint(self, series: SeriesId) -> str:
        """The end of a sentence about a series that its exchange lacks: how to have it computed. Empty where it is a
        derived series, or cannot be one."""
        if self.derives(series) or not divides(self.base, series.timeframe):
            return ""
        return f"; add {series.timeframe} to the flag derived_timeframes to have it computed from {self.base}"

    def _derived_from(self, series: SeriesId) -> tuple[SeriesId, ...]:
        """The series that are computed from `series`; none when it is no base."""
        return tuple(map(series.with_timeframe, self.targets)) if series.timeframe == self.base else ()

    def advance(
        self, store: CandleStore, series: SeriesId, applied: Applied, emptied: Sequence[Span], at: int
    ) -> list[Applied]:
        """Write the derived candles that follow from changed base candles; returns the changes, shorter targets first.

        store: the store, within its transaction.
        series: the base series.
        applied: the changes of the base series.
        emptied: spans of the base series that were confirmed empty.
        at: time of the batch, in UTC seconds.
        """
        if series.timeframe != self.base or not (applied.candles or emptied):
            return []
        stored = store.span(series)
        if stored is None:
            return []
        if applied.candles and stored == Span(applied.candles[0].time, self.base.next(applied.candles[-1].time)):
            self._adopt(store, series)
        waiting = self.waiting(store, series, applied.candles[0].time) if applied.candles else []
        if len(applied.candles) == 1 and not (applied.revised or applied.rounded or emptied or waiting):
            return self._close_buckets(store, series, stored, applied.candles[0].time, at)
        revised = applied.revised | applied.rounded
        revised_times = [candle.time for candle in applied.candles if candle.time in revised]
        targets = self.targets
        if revised_times or emptied:
            timeframes = {derived.timeframe for derived in store.derived_of(series)}
            targets = tuple(sorted(timeframes.union(targets), key=lambda target: target.seconds))
        base = series.timeframe
        new_spans = runs(base, [candle.time for candle in applied.candles])
        revised_spans = runs(base, revised_times)
        spans_of = {derived.timeframe: clipped(new_spans, span) for derived, span in waiting}
        targets = tuple(sorted({*targets, *spans_of}, key=lambda target: target.seconds))
        fresh: Fresh = {}
        _remember(fresh, applied)
        changes: list[Applied] = []
        for target in targets:
            spans = [*(new_spans if target in self.targets else revised_spans), *spans_of.get(target, ()), *emptied]
            for window in _whole_buckets(target, spans, stored):
                for change in self._write(store, series, target, window, at, fresh):
                    _remember(fresh, change)
                    changes.append(change)
        return changes

    def waiting(self, store: CandleStore, series: SeriesId, time: int) -> list[tuple[SeriesId, Span]]:
        """The stored series that were derived from base `series` before, and have candles in the bucket of `time` or
        later, with their stored spans: base candles may complete these buckets, which other candles were kept in until
        then."""
        found = []
        for timeframe in self._dormant_timeframes:
            derived = series.with_timeframe(timeframe)
            span = store.span(derived) if self._dormant.get(derived) == series else None
            if span is None or span.end <= derived.timeframe.floor(time):
                continue
            if store.derivation(derived).origin is not DerivationOrigin.MIXED:
                found.append((derived, span))
        return found

    def close(self, store: CandleStore, applied: Applied, at: int) -> list[Applied]:
        """As `advance`, after `CandleStore.append`."""
        series = applied.series
        if series.timeframe != self.base:
            return []
        time = applied.candles[0].time
        targets = self._closing_at(self.base.next(time))
        if not targets:
            return []
        stored = store.span(series)
        assert stored is not None, "a candle was appended"
        return self._close_buckets(store, series, stored, time, at)

    def _adopt(self, store: CandleStore, series: SeriesId) -> None:
        """Called with the first candles of the base `series`. Stored candles of its targets came from other sources,
        and stay in buckets that are incomplete in the base."""
        for target in self.targets:
            derived = series.with_timeframe(target)
            if store.span(derived) is not None and store.derivation(derived).base != series:
                store.set_derivation(derived, Derivation(series, DerivationOrigin.RECOMPUTED))

    def _close_buckets(self, store: CandleStore, series: SeriesId, stored: Span, time: int, at: int) -> list[Applied]:
        """The usual case of one new candle at the head, which can only complete the buckets that end with it."""
        changes: list[Applied] = []
        for target in self._closing_at(stored.end):
            open_ = target.floor(time)
            if open_ >= stored.start:
                window = Span(open_, stored.end)
                appended = self._append(store, series, target, window)
                changes += self._write(store, series, target, window, at) if appended is None else [appended]
        return changes

    def _append(self, store: CandleStore, series: SeriesId, target: Timeframe, bucket: Span) -> Applied | None:
        """As `_write` of one bucket that the newest base candle completes. None, and nothing is written, where more
        than the store's memory is needed."""
        parent = parent_of(target, self.base)
        link = series if parent == self.base else series.with_timeframe(parent)
        if store.has_gaps(series) or (link is not series and (parent not in self.targets or link in self.redoing)):
            return None
        parts = store.remembered(link, *bucket)
        return None if parts is None else store.append(series.with_timeframe(target), fold(target, parts)[0])

    def _closing_at(self, end: int) -> tuple[Timeframe, ...]:
        """The targets with a bucket that ends at `end`. Cached, because many series ask for the same minute."""
        if self._closing[0] != end:
            self._closing = end, tuple(target for target in self.targets if target.floor(end) == end)
        return self._closing[1]

    def refresh(self, store: CandleStore, series: SeriesId, target: Timeframe, window: Span, at: int) -> list[Applied]:
        """Recompute the buckets of `target` in `window` (on its grid) from base `series`; returns the changes."""
        stored = store.span(series)
        if stored is None:
            return []
        window = window.clipped(Span(target.ceil(stored.start), target.floor(stored.end)))
        return self._write(store, series, target, window, at) if window.start < window.end else []

    def missing(self, store: CandleStore, series: SeriesId, target: Timeframe) -> list[Span]:
        """Spans of complete buckets of `target` without a stored candle: the timeframe was switched off for a while, or
        was never on."""
        stored = store.span(series)
        if stored is None:
            return []
        buckets = narrowed(target, [stored])
        if not buckets:
            return []
        derived = series.with_timeframe(target)
        span = store.span(derived)
        outside_stored = without(buckets, [] if span is None else [span])
        between_stored = [gap.span for gap in store.gaps(derived) if gap.state is not GapState.CONFIRMED_EMPTY]
        return sorted(outside_stored + between_stored)

    def expected(self, store: CandleStore, series: SeriesId, target: Timeframe, window: Span) -> list[Candle]:
        """The complete candles of `target` in `window`, from base candles alone; for `verify`."""
        candles, ledger = store.between(series, *window), store.gaps(series, window)
        missing = missing_spans(self.base, *window, [candle.time for candle in candles])
        unproven = gaps.unproven(ledger, store.span(series), window)
        return complete(target, self._fold(candles, target), joined([*unproven, *_undeclared(missing, ledger)]))

    def native(self, store: CandleStore, series: SeriesId, window: Span) -> list[Span]:
        """The buckets in `window`, on the grid of the derived `series`, that may have a native candle: incomplete or
        wholly empty in the stored base, and ending no later than the base.

        The exchange may have a candle of an hour without any minute, and that candle may have been stored and shown
        before the minutes were confirmed empty. The native candle stays, and a later one is accepted too; longer
        timeframes are computed from the minutes alone.
        """
        target, base = series.timeframe, series.with_timeframe(self.base)
        stored = store.span(base)
        if stored is None:
            return []
        ledger = store.gaps(base, window)
        unproven = gaps.unproven(ledger, stored, window)
        buckets = joined([*widened(target, unproven), *_wholly_empty(ledger, target)])
        return clipped(buckets, Span(window.start, min(window.end, target.floor(stored.end))))

    def write_native(
        self,
        store: CandleStore,
        series: SeriesId,
        candles: Sequence[Candle],
        empty: Sequence[Span],
        proof: str,
        at: int,
    ) -> Applied:
        """Write native candles, in the buckets that are incomplete in the base; returns the changes.

        store: the store, within its transaction.
        series: the derived series.
        candles: the exchange's own candles, ascending.
        empty: spans in which the exchange has no candles.
        proof: how the exchange has shown that `empty` is empty, as a text.
        at: time of the batch, in UTC seconds.
        """
        base = series.with_timeframe(self.base)
        accepted: list[Candle] = []
        if candles:
            window = Span(candles[0].time, series.timeframe.next(candles[-1].time))
            incomplete = self.native(store, series, window)
            accepted = [candle for candle in candles if any(span.holds(candle.time) for span in incomplete)]
        applied = write_closed(store, series, accepted, Origin(NATIVE, at, base))
        stored = store.span(series)
        if empty and stored is not None:
            window = hull(empty)
            spans = common(self.native(store, series, window), empty)
            store.change_gaps(series, gaps.confirm_empty(store.gaps(series, window), spans, proof, at))
        return applied

    def _write(
        self,
        store: CandleStore,
        series: SeriesId,
        target: Timeframe,
        window: Span,
        at: int,
        fresh: Mapping[SeriesId, Sequence[Candle]] = MappingProxyType({}),
    ) -> list[Applied]:
        ledger = store.gaps(series, window)
        unproven = gaps.unproven(ledger, store.span(series), window)
        parent = parent_of(target, self.base)
        # A derived candle that cannot be computed stays a hole of the derived series; the base candles are written.
        # Where candles of the parent are damaged, the base gives them.
        damaged = store.damaged(series)
        readable = without([window], widened(target, damaged)) if damaged else [window]
        missing: list[Span] = []
        try:
            parts = [
                part for span in readable for part in self._parts(store, series, parent, span, ledger, fresh, missing)
            ]
        except StoreDamaged as error:
            raise DoAgain(error.damage) from error
        candles = complete(target, fold(target, parts), joined([*unproven, *_undeclared(missing, ledger)]))
        derived = series.with_timeframe(target)
        stored = store.span(derived)
        applied = write_closed(store, derived, candles, Origin(SOURCE, at, series, computed=True))
        start = window.start if stored is None else min(window.start, stored.end)
        self._settle_gaps(store, series, target, Span(start, window.end), at)
        return [applied] if applied.candles else []

    def closed(self, store: CandleStore, series: SeriesId, timeframe: Timeframe, window: Span) -> list[Candle]:
        """The candles of the base, or of a link of the chain, in `window`; folded where some are missing.

        The stored candles of a link are used. Those that are missing, all of a link that is no target, are folded from
        its parent, and so on down to the base, with the same bits.
        """
        return self._parts(store, series, timeframe, window, store.gaps(series, window))

    def _parts(
        self,
        store: CandleStore,
        series: SeriesId,
        timeframe: Timeframe,
        window: Span,
        ledger: Sequence[Gap],
        fresh: Mapping[SeriesId, Sequence[Candle]] = MappingProxyType({}),
        missing_of_base: list[Span] | None = None,
    ) -> list[Candle]:
        if timeframe == self.base:
            found = _between(store, series, window, fresh)
            if missing_of_base is not None and len(found) < timeframe.count(*window):
                missing_of_base += missing_spans(timeframe, *window, [candle.time for candle in found])
            return found
        link, parent = series.with_timeframe(timeframe), parent_of(timeframe, self.base)
        if timeframe not in self.targets or link in self.redoing or clipped(store.damaged(link), window):
            return fold(timeframe, self._parts(store, series, parent, window, ledger, fresh, missing_of_base))
        stored = _between(store, link, window, fresh)
        # A native candle of a bucket that is wholly empty in the base is no part of longer buckets.
        empty = _wholly_empty(ledger, timeframe)
        if empty:
            stored = [part for part in stored if not any(span.holds(part.time) for span in empty)]
        if len(stored) == timeframe.count(*window):
            return stored
        missing = without(missing_spans(timeframe, *window, [part.time for part in stored]), empty)
        for span in missing:
            parts = self._parts(store, series, parent, span, ledger, fresh, missing_of_base)
            stored = [*stored, *fold(timeframe, parts)]
        return sorted(stored)

    def _fold(self, base: Sequence[Candle], target: Timeframe) -> list[Candle]:
        parent = parent_of(target, self.base)
        return fold(target, base if parent == self.base else self._fold(base, parent))

    def _settle_gaps(self, store: CandleStore, series: SeriesId, target: Timeframe, window: Span, at: int) -> None:
        """Copy settled gaps of the base: a bucket within confirmed gaps becomes a confirmed gap of the derived series,
        and a bucket with a lost base candle a lost gap."""
        base, derived = store.gaps(series, window), series.with_timeframe(target)
        empty = _wholly_empty(base, target)
        if empty:
            ledger = store.gaps(derived, hull(empty))
            store.change_gaps(derived, gaps.confirm_empty(ledger, empty, "its base is confirmed empty", at))
        lost = _with_lost_candles(base, target)
        if lost:
            ledger = store.gaps(derived, hull(lost))
            store.change_gaps(derived, gaps.lose(ledger, lost, "its base is lost in part", at))


def _remember(fresh: Fresh, applied: Applied) -> None:
    """Remember the candles that this transaction wrote, when they are one run, so that they are not read back."""
    candles = applied.candles
    if candles and applied.series.timeframe.count(candles[0].time, candles[-1].time) == len(candles) - 1:
        fresh[applied.series] = candles


def _between(
    store: CandleStore, series: SeriesId, window: Span, fresh: Mapping[SeriesId, Sequence[Candle]]
) -> list[Candle]:
    """The stored candles of a series in `window`; candles that this transaction wrote come from memory."""
    fresh_candles = fresh.get(series)
    if not fresh_candles:
        return store.between(series, *window)
    frame = series.timeframe
    first, end = fresh_candles[0].time, frame.next(fresh_candles[-1].time)
    if window.end <= first or end <= window.start:
        return store.between(series, *window)
    from_memory = fresh_candles[frame.count(first, window.start) : frame.count(first, window.end)]
    before = store.between(series, window.start, first) if window.start < first else ()
    after = store.between(series, end, window.end) if end < window.end else ()
    return [*before, *from_memory, *after]


def _with_lost_candles(ledger: Sequence[Gap], target: Timeframe) -> list[Span]:
    """The buckets of `target` with a lost base candle, ascending and joined."""
    return widened(target, (gap.span for gap in ledger if gap.state is GapState.LOST))


def _undeclared(missing: Sequence[Span], ledger: Sequence[Gap]) -> list[Span]:
    """The missing spans of the base that are not confirmed empty. The ledger need not have them: stored candles may be
    gone without a trace."""
    if not missing:
        return []
    return without(missing, joined(gap.span for gap in ledger if gap.state is GapState.CONFIRMED_EMPTY))


def _wholly_empty(ledger: Sequence[Gap], target: Timeframe) -> list[Span]:
    """The buckets of `target` whose base candles are all confirmed empty, ascending and joined."""
    if not ledger:
        return []
    return narrowed(target, (gap.span for gap in ledger if gap.state is GapState.CONFIRMED_EMPTY))


def _whole_buckets(target: Timeframe, spans: Iterable[Span], stored: Span) -> list[Span]:
    """The buckets of `target` that `spans` touch, within the stored candles; other buckets are incomplete."""
    return common(widened(target, spans), narrowed(target, [stored]))


def write_closed(store: CandleStore, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
    """Write closed candles, and update the gap ledger."""
    stored = store.span(series)
    applied = store.write(series, candles, origin)
    times = [candle.time for candle in applied.candles]
    if not times or (stored is not None and times[0] == stored.end and _contiguous(series.timeframe, times)):
        return applied
    window = gaps.reach(series.timeframe, stored, times)
    store.change_gaps(series, gaps.arrived(store.gaps(series, window), series.timeframe, stored, times))
    return applied


def _contiguous(timeframe: Timeframe, times: Sequence[int]) -> bool:
    return len(times) == 1 or timeframe.count(times[0], times[-1]) == len(times) - 1

"""verify: audits a store. Nothing is written, and a service may go on writing meanwhile.

Each series is read once, in windows of candles, each window in one snapshot: candles must be valid, and the gap ledger
must have exactly the missing candles. Each derived series is recomputed from its base, in windows of whole buckets, and
compared bit for bit. A stored derived candle whose bucket is incomplete in the base is native: it is counted, and must
agree with the base candles that are stored. Then the ledgers of factors and overlays are recomputed (`verify_ledger`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose

from klinesync.core.candle import MAX_TIME, ROUNDING, Candle, check_candle
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle, StoreError, UnknownSeries
from klinesync.core.gaps import SETTLED, Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, missing_spans, without
from klinesync.core.timeframe import Timeframe
from klinesync.market_data.findings import Difference, SeriesAudit
from klinesync.market_data.verify_ledger import LedgerVerifier
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Reading
from klinesync.storage.records import DerivationOrigin

# Candles of a window; a longer bucket (a month of minutes) is read whole.
WINDOW_CANDLES = 20_000


def verify(
    store: Reading,
    base: Timeframe,
    targets: Sequence[Timeframe],
    only: Collection[SeriesId] = (),
    progress: Callable[[SeriesAudit], None] = lambda _: None,
    ledger: LedgerVerifier | None = None,
) -> Iterator[SeriesAudit]:
    """Audit the stored series, one after the other.

    store: to read from.
    base: timeframe of the ingested series.
    targets: timeframes that are derived from it; their missing candles are reported too. Other derived series are only
        compared as far as they are stored.
    only: series to audit; empty (the default): all.
    progress: called with the audit in progress after each window.
    ledger: recomputes ledgers; None (the default): ledgers are not compared.

    Yields the audit of each series. Raises `UnknownSeries` for a series of `only` that is neither stored nor a target,
    `StoreError`.
    """
    base_of = store.read(lambda look: _base_of(look, base, targets))
    unknown = [series for series in only if series not in base_of]
    if unknown:
        raise UnknownSeries(str(unknown[0]), "the store has no candles of it")
    for series, derived_from in base_of.items():
        if only and series not in only:
            continue
        audit = SeriesAudit(series, derived_from)
        try:
            if all(_readable(store, audit, member) for member in (series, derived_from or series)):
                _audit_ledger(store, audit)
                _audit_candles(store, audit, progress)
                if derived_from is not None:
                    kept = derived_from.timeframe == base and series.timeframe in targets
                    _audit_derived(store, audit, derived_from, kept, progress)
                if ledger is not None:
                    ledger.audit(store, audit, progress)
        except StoreError as error:  # other series can still be audited
            audit.note(Difference("damaged", _where(error), str(error)))
        yield audit


def _where(error: StoreError) -> int:
    span = error.damage.span if isinstance(error, StoreDamaged) else None
    return 0 if span is None else span.start


def _base_of(store: CandleStore, base: Timeframe, targets: Sequence[Timeframe]) -> dict[SeriesId, SeriesId | None]:
    """The series to audit, by name and timeframe, each with its base (None: an ingested series)."""
    base_of: dict[SeriesId, SeriesId | None] = dict.fromkeys(store.series())
    for series in tuple(base_of):
        base_of.update(dict.fromkeys(store.derived_of(series), series))
    for series in [series for series in base_of if series.timeframe == base]:
        for target in targets:
            derived = series.with_timeframe(target)
            base_of[derived] = base_of.get(derived) or series
    order = sorted(base_of, key=lambda item: (item.exchange, item.market, item.symbol, item.timeframe.seconds))
    return {series: base_of[series] for series in order}


# --- a series by itself


def _readable(store: Reading, audit: SeriesAudit, series: SeriesId) -> bool:
    """Whether the times of `series` (the audited series, or its base) are valid, and its gap ledger can be read."""
    for edge in store.read(lambda look: (look.first(series), look.head(series))):
        if edge is not None and not 0 <= edge <= MAX_TIME:
            audit.note(Difference("bad_candle", edge, f"{series}: its time lies outside 0 … {MAX_TIME}"))
            return False
    try:
        store.read(lambda look: look.gaps(series))
    except StoreDamaged as error:  # an unknown state
        audit.note(Difference("bad_gap", 0, f"{series}: the gap ledger cannot be read: {error}"))
        return False
    return True


def _audit_ledger(store: Reading, audit: SeriesAudit) -> None:
    """Check each row of the gap ledger."""
    series, timeframe = audit.series, audit.series.timeframe
    rows, stored = store.read(lambda look: (look.gaps(series), look.span(series)))
    for row in rows:
        spans, candles = audit.gaps[row.state]
        audit.gaps[row.state] = spans + 1, candles + timeframe.count(row.start, row.end)
        if not (timeframe.is_open(row.start) and timeframe.is_open(row.end) and row.start < row.end):
            audit.note(
                Difference("bad_gap", row.start, f"the gap to {date_text(row.end)} is no span of the {timeframe} grid")
            )
        elif (row.proof is not None and row.time is not None) != (row.state in SETTLED):
            audit.note(Difference("bad_gap", row.start, f"the {row.state} gap has a proof that does not fit its state"))
        elif stored is None or row.end <= stored.start or row.start >= stored.end:
            audit.note(Difference("gap_not_a_hole", row.start, "the gap does not lie between stored candles"))
    for before, row in pairwise(rows):
        if row.start < before.end:
            audit.note(
                Difference("bad_gap", row.start, f"the gap overlaps the one that begins at {date_text(before.start)}")
            )


@dataclass(frozen=True, slots=True)
class _Window:
    """A page of candles, the gaps of the span that they cover, the first stored open time, and damaged spans."""

    candles: list[Candle]
    gaps: list[Gap]
    first: int | None
    damaged: list[Span]


def _audit_candles(store: Reading, audit: SeriesAudit, progress: Callable[[SeriesAudit], None]) -> None:
    """Check every candle, and whether the gap ledger has exactly the missing candles."""
    series, timeframe = audit.series, audit.series.timeframe
    since, expected = -1, None
    while window := store.read(lambda look, since=since: _page(look, series, since)):  # type: ignore[misc]
        times: list[int] = []
        for candle in window.candles:
            try:
                check_candle(candle, timeframe)
            except BadCandle as error:
                audit.note(Difference("bad_candle", candle.time, error.reason, stored=candle))
            if timeframe.is_open(candle.time):
                times.append(candle.time)
        if times:
            # Candles after `expected` may have been trimmed since the last window, and the first ones may be gone.
            start = times[0] if window.first is None else max(expected or 0, window.first)
            _compare_ledger(audit, Span(min(start, times[0]), timeframe.next(times[-1])), times, window)
            audit.first = times[0] if audit.first is None else audit.first
            audit.head, expected = times[-1], timeframe.next(times[-1])
        audit.count += len(window.candles)
        since = window.candles[-1].time
        audit.now = f"{counted(audit.count, 'candle')} read"
        progress(audit)
    for start, end in store.read(lambda look: look.damaged(series)):
        audit.note(Difference("damaged", start, f"the stored candles up to {end} cannot be read"))


def _page(store: CandleStore, series: SeriesId, since: int) -> _Window | None:
    candles = store.oldest(series, WINDOW_CANDLES, since=since, strict=False)
    if not candles:
        return None
    ledger = store.gaps(series, Span(since, candles[-1].time))
    return _Window(candles, ledger, store.first(series), store.damaged(series))


def _compare_ledger(audit: SeriesAudit, span: Span, times: Sequence[int], window: _Window) -> None:
    timeframe = audit.series.timeframe
    holes = missing_spans(timeframe, *span, times)
    declared = clipped((gap.span for gap in window.gaps), span)
    for start, end in without(without(holes, declared), window.damaged):
        missing = timeframe.count(start, end)
        audit.note(Difference("hole_not_in_ledger", start, f"{counted(missing, 'candle')} missing and in no gap"))
    for start, end in without(declared, holes):
        stored = timeframe.count(start, end)
        audit.note(Difference("gap_not_a_hole", start, f"{counted(stored, 'candle')} stored and in a gap"))


# --- a derived series against its base


def _audit_derived(
    store: Reading, audit: SeriesAudit, base: SeriesId, kept: bool, progress: Callable[[SeriesAudit], None]
) -> None:
    """Recompute a derived series. `kept`: the series is kept up to date, so that missing candles are differences."""
    target = audit.series.timeframe
    origin = store.read(lambda look: look.derivation(audit.series).origin)
    if origin is DerivationOrigin.MIXED:
        return  # marked to be recomputed, and need not agree with its base yet
    step = DerivedStep(base.timeframe, [target])
    spans = store.read(lambda look: [span for span in (look.span(base), look.span(audit.series)) if span is not None])
    if not spans:
        return
    start, end = target.floor(min(span.start for span in spans)), max(span.end for span in spans)
    while start < end:
        window = Span(start, max(target.next(start), target.floor(base.timeframe.shift(start, WINDOW_CANDLES))))
        start = window.end
        try:
            both = store.read(lambda look, window=window: _both(look, step, base, target, window))  # type: ignore[misc]
        except StoreDamaged as error:
            audit.note(Difference("damaged", window.start, f"it cannot be compared up to {window.end}: {error}"))
            continue
        for time in sorted(both.stored.keys() | both.expected.keys()):
            stored, expected, parts = both.stored.get(time), both.expected.get(time), both.native.get(time)
            if stored is not None and expected is None and origin is DerivationOrigin.RECOMPUTED:
                audit.native += 1  # written while the series was not derived
            elif stored is not None and expected is None and parts is not None:
                _audit_native(audit, stored, parts)
            else:
                _compare_derived(audit, time, stored, expected, kept)
        audit.now = f"compared with {base} up to {date_text(start)}"
        progress(audit)


@dataclass(frozen=True, slots=True)
class _Derived:
    """Candles of a derived series by time.

    stored: as stored.
    expected: as computed from the base.
    native: the stored base candles of buckets that may have a native candle.
    """

    stored: dict[int, Candle]
    expected: dict[int, Candle]
    native: dict[int, list[Candle]]


def _both(store: CandleStore, step: DerivedStep, base: SeriesId, target: Timeframe, window: Span) -> _Derived:
    derived = base.with_timeframe(target)
    stored = {candle.time: candle for candle in store.between(derived, *window)}
    expected = {candle.time: candle for candle in step.expected(store, base, target, window)}
    places = step.native(store, derived, window)
    native = {
        time: store.between(base, time, target.next(time))
        for time in stored.keys() - expected.keys()
        if any(place.holds(time) for place in places)
    }
    return _Derived(stored, expected, native)


def _audit_native(audit: SeriesAudit, native: Candle, parts: Sequence[Candle]) -> None:
    audit.native += 1
    for part in parts:
        bounds = ((part.high, native.high), (native.low, part.low), (part.volume, native.volume))
        if any(value > bound and not isclose(value, bound, rel_tol=ROUNDING) for value, bound in bounds):
            what = f"it is the exchange's own, and does not hold the base candle of {date_text(part.time)}"
            audit.note(Difference("derived_unexpected", native.time, what, stored=native))
            return


def _compare_derived(audit: SeriesAudit, time: int, stored: Candle | None, expected: Candle | None, kept: bool) -> None:
    if stored == expected:
        return
    if expected is None:
        what = "it is stored, and its base candles do not give it"
        audit.note(Difference("derived_unexpected", time, what, stored=stored))
    elif stored is not None:
        audit.note(Difference("derived_wrong", time, "its base candles give another one", stored, expected))
    elif kept:
        audit.note(Difference("derived_missing", time, "its base candles give it", expected=expected))

"""Missing candles of a series, and why. Pure: the stored, the wanted and the exchange's time in, spans out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from klinesync.core.gaps import SETTLED, Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull, without
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Urgency

# Fewest candles of a request for older history (a page), so that further reads which scroll back find them stored.
LEAST_OLDER_CANDLES = 1000
# Most native candles that a read requests.
MAX_NATIVE = 5000
# Values of `Need.asked_by`, as health and `explain` show them.
READ = "read"
DERIVED = "derived"
DECLARED = "declared gap"
BACKFILL = "backfill"


class Reason(StrEnum):
    """Why a span is missing: behind the stored head, before the first stored candle, between stored candles; the
    exchange's own candles of a derived series; or an explicit backfill."""

    TAIL = "tail"
    OLDER = "older"
    GAP = "gap"
    NATIVE = "native"
    REQUESTED = "requested"


@dataclass(frozen=True, slots=True)
class Need:
    """Candles that are missing and wanted.

    series: whose candles.
    span: their open times.
    reason: why they are missing.
    asked_by: who wants them, as health and `explain` name it.
    urgency: how soon, where the exchange rations requests.
    """

    series: SeriesId
    span: Span
    reason: Reason
    asked_by: str
    urgency: Urgency = Urgency.DEEP


def declared_gaps(series: SeriesId, ledger: Iterable[Gap]) -> list[Need]:
    """The needs that follow from the gap ledger, the newest first. What is being healed belongs to an explicit backfill
    that a restart interrupted."""
    return [
        Need(series, gap.span, Reason.REQUESTED, BACKFILL)
        if gap.state is GapState.HEALING
        else Need(series, gap.span, Reason.GAP, DECLARED)
        for gap in sorted(ledger, reverse=True)
        if gap.state not in SETTLED
    ]


def missing_tail(frame: Timeframe, stored: Span | None, now_s: float, most: int, kept_from: int = 0) -> Span | None:
    """The missing part behind the stored head; None when nothing is missing.

    frame: the timeframe of the series.
    stored: the stored span; None when nothing is stored.
    now_s: the exchange's time, UTC seconds.
    most: most candles, the newest.
    kept_from: no candle that opens before, UTC seconds; 0: retention is off.
    """
    end = frame.floor(int(now_s))
    start = max(back(frame, end, most), frame.ceil(kept_from), 0 if stored is None else stored.end)
    return Span(start, end) if start < end else None


def full_page_start(
    frame: Timeframe, count: int, first: int | None, before: int | None, limit: int, stored: Span
) -> int | None:
    """Where a page of candles would begin, were it full; None when it is full.

    frame: the timeframe of the page.
    count: candles that the page has.
    first: open time of the first of them; None: it is empty.
    before: the page ends before this open time; None: it ends with the head.
    limit: candles of a full page.
    stored: the stored span of the ingested series.
    """
    if count >= limit:
        return None
    end = frame.floor(stored.end)
    if first is not None:
        end = first
    elif before is not None:
        end = min(end, frame.ceil(before))
    return back(frame, end, limit - count)


def missing_older(
    frame: Timeframe,
    base: Timeframe,
    stored: Span,
    page_start: int,
    most: int,
    kept_from: int = 0,
    nothing: Span | None = None,
) -> Span | None:
    """The part before the first stored candle that a full page needs; None when there is nothing to fetch. It ends with
    the first stored candle, so that no hole comes to be, has at least a page, and begins with a whole bucket if it can.

    frame: the timeframe of the page.
    base: the timeframe of the ingested series.
    stored: the stored span of the ingested series.
    page_start: where the page would begin, were it full.
    most: most candles.
    kept_from: no candle that opens before, UTC seconds; 0: retention is off.
    nothing: the span right before the first stored candle in which the exchange has nothing.
    """
    start = min(page_start, back(base, stored.start, LEAST_OLDER_CANDLES))
    start = max(start, back(base, stored.start, most), base.ceil(kept_from))
    whole = frame.ceil(start)
    if whole < stored.start:
        start = whole
    if start >= stored.start or (nothing is not None and nothing.end == stored.start and nothing.start <= start):
        return None
    return Span(start, stored.start)


@dataclass(frozen=True, slots=True)
class MissingOfDerived:
    """What a derived series needs. None where it needs nothing.

    base: base candles.
    native: the exchange's own candles of the derived series.
    again_at: the close of the base, in UTC seconds, at which more can be fetched.
    """

    base: Span | None = None
    native: Span | None = None
    again_at: int | None = None


def missing_of_derived(
    series: SeriesId,
    base: Timeframe,
    base_stored: Span,
    stored: Span | None,
    holes: Sequence[Span],
    page_start: int | None,
    now_s: float,
    *,
    base_candles: int = 0,
    native_candles: int = 0,
    kept_from: int = 0,
    begins: int = 0,
) -> MissingOfDerived:
    """What is to be fetched for a derived series.

    Native candles: `native_candles` before the first bucket that the base gives, unless the newest so many candles are
    stored; the missing ones behind the first stored one; and all of a page from `page_start` on.

    series: the derived series.
    base: the timeframe of its base.
    base_stored: the stored span of its base.
    stored: its own stored span; None when nothing is stored.
    holes: its own holes that are not confirmed empty.
    page_start: where a page that is read would begin, were it full; None: it is full, or none is read.
    now_s: the exchange's time, UTC seconds.
    base_candles: base candles that are wanted up to now.
    native_candles: native candles that are wanted; 0: none are fetched.
    kept_from: no candle that opens before, UTC seconds; 0: retention is off.
    begins: no native candle that opens before, where the exchange's own begin.
    """
    frame = series.timeframe
    upto = max(base_stored.end, base.floor(int(now_s)))  # its tail may still be on its way
    start = max(back(base, upto, base_candles), base.ceil(kept_from))
    wanted = Span(start, base_stored.start) if start < base_stored.start else None
    end = frame.ceil(base_stored.start)
    newest = frame.floor(base_stored.end)
    if not native_candles:
        return MissingOfDerived(wanted)
    start = end if stored is None else max(min(stored.start, end), back(frame, end, MAX_NATIVE))
    if stored is None or stored.start > back(frame, newest, native_candles):
        start = back(frame, end, native_candles)
    if page_start is not None and page_start < end and (stored is None or page_start < stored.start):
        edge = end if stored is None else min(stored.start, end)
        page_start = min(frame.floor(page_start), back(frame, edge, native_candles))
        start = min(start, max(page_start, back(frame, edge, MAX_NATIVE)))
    start = max(start, frame.ceil(max(kept_from, begins)))
    again_at = end if end > newest else None  # the bucket that the base begins in is still open
    window = Span(start, min(end, newest))
    if window.start >= window.end:
        return MissingOfDerived(wanted, None, again_at)
    missing = without([window], [] if stored is None else [stored]) + clipped(holes, window)
    if not missing:
        return MissingOfDerived(wanted, None, again_at)
    return MissingOfDerived(wanted, hull(missing), again_at)


def back(frame: Timeframe, open_time: int, count: int) -> int:
    """The open time `count` candles earlier, or the first one since 1970."""
    first = frame.ceil(0)
    return first if count * frame.seconds >= open_time - first else max(first, frame.shift(open_time, -count))

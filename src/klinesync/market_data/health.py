"""The health of a series. Pure: facts in, a status with a reason out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from klinesync.core.gaps import SETTLED, Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, widened, without
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import ExchangeTrouble, StreamStatus
from klinesync.history.board import BackfillReport

Status = Literal["green", "yellow", "red"]
Reason = Literal[
    "store_damaged",
    "up_to_date",
    "backfill_running",
    "backfill_recent",
    "head_ahead_of_closed_window",
    "gap_healing",
    "gap_lost",
    "interior_gap",
    "missing_head",
    "lagging_no_recent_backfill",
    "exchange_refuses",
    "exchange_unreachable",
]
STATUS: dict[Reason, Status] = {
    "store_damaged": "red",
    "up_to_date": "green",
    "backfill_running": "yellow",
    "backfill_recent": "yellow",
    "head_ahead_of_closed_window": "yellow",
    "gap_healing": "yellow",
    "gap_lost": "yellow",
    "interior_gap": "red",
    "missing_head": "red",
    "lagging_no_recent_backfill": "red",
    "exchange_refuses": "red",
    "exchange_unreachable": "red",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a series.

    series: the series.
    now_time: UTC seconds of the exchange.
    stored: the stored span; None when nothing is stored.
    gaps: the gap ledger.
    working_on: the spans that are being read or wait, ascending and disjoint.
    sweeping: whether the start-up sweep has not brought the series up to date yet.
    backfill: progress of reading its history.
    stream: status of its stream.
    damaged: whether stored candles cannot be read; False by default.
    trouble: why its exchange gives no candles; None, as by default: it does.
    """

    series: SeriesId
    now_time: int
    stored: Span | None
    gaps: Sequence[Gap]
    working_on: Sequence[Span]
    sweeping: bool
    backfill: BackfillReport
    stream: StreamStatus
    damaged: bool = False
    trouble: ExchangeTrouble | None = None


@dataclass(frozen=True, slots=True)
class MissingCandles:
    """The number of missing candles behind the head, by state: nothing is known of them, they are being read, the
    exchange has shown that it does not have them, no source gives them any more."""

    unknown: int
    healing: int
    confirmed_empty: int
    lost: int


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a series. `lag_seconds`: seconds since the close of the head. `missing_*`: expected after the head,
    and missing. All are None when nothing is stored. `detail`: a sentence about the reason; None when the reason says
    everything."""

    series_id: str
    timeframe_seconds: int
    now_time: int
    expected_latest_closed_time: int
    head_time: int | None
    lag_seconds: int | None
    missing_seconds: int | None
    missing_candles: int | None
    status: Status
    status_reason: Reason
    backfill: BackfillReport
    stream: StreamStatus
    gaps: MissingCandles
    detail: str | None = None


def assess(facts: Facts, grace_s: float) -> Health:
    """The health of a series. `grace_s`: seconds of the exchange from the close of a candle until it is expected."""
    timeframe, now = facts.series.timeframe, facts.now_time
    expected = timeframe.latest_closed(int(now - grace_s))
    head = None if facts.stored is None else timeframe.shift(facts.stored.end, -1)
    if head is not None and facts.stream.state is StreamState.DELISTED and facts.backfill.state != "running":
        expected = min(expected, head)  # a delisted symbol has no further candles
    tail = [] if facts.stored is None else _tail(timeframe, facts.stored.end, expected, facts.gaps)
    if facts.stream.quiet is not None:
        tail = without(tail, widened(timeframe, [facts.stream.quiet]))  # proven empty
    missing = [gap.span for gap in facts.gaps if gap.state not in SETTLED]
    lost = [gap.span for gap in facts.gaps if gap.state is GapState.LOST]
    unknown = without(missing, facts.working_on)
    reason = _reason(facts, tail, missing, unknown, lost)
    return Health(
        series_id=str(facts.series),
        timeframe_seconds=timeframe.seconds,
        now_time=now,
        expected_latest_closed_time=expected,
        head_time=head,
        lag_seconds=None if facts.stored is None else max(0, now - facts.stored.end),
        missing_seconds=None if head is None else sum(span.end - span.start for span in tail),
        missing_candles=None if head is None else candle_count(timeframe, tail),
        status=STATUS[reason],
        status_reason=reason,
        backfill=facts.backfill,
        stream=facts.stream,
        gaps=MissingCandles(
            unknown=candle_count(timeframe, unknown),
            healing=candle_count(timeframe, missing) - candle_count(timeframe, unknown),
            confirmed_empty=candle_count(
                timeframe, [gap.span for gap in facts.gaps if gap.state is GapState.CONFIRMED_EMPTY]
            ),
            lost=candle_count(timeframe, lost),
        ),
        detail=facts.trouble.detail if facts.trouble is not None and reason == facts.trouble.reason else None,
    )


def _reason(
    facts: Facts, tail: Sequence[Span], missing: Sequence[Span], unknown: Sequence[Span], lost: Sequence[Span]
) -> Reason:
    """The worst reason that applies."""
    if facts.damaged:
        return "store_damaged"
    if facts.trouble is not None and (facts.stored is None or tail or missing):
        return facts.trouble.reason  # no reading can succeed
    running = facts.sweeping or facts.backfill.state == "running"
    if facts.stored is None:
        if running or facts.working_on:
            return "backfill_running"
        return "backfill_recent" if facts.backfill.recent else "missing_head"
    running = running or not without(tail, facts.working_on)
    if tail and not running and not facts.backfill.recent:
        return "lagging_no_recent_backfill"
    if unknown:
        return "interior_gap"
    if tail:
        return "backfill_running" if running else "backfill_recent"
    if facts.stored.end > facts.now_time:
        return "head_ahead_of_closed_window"
    if missing:
        return "gap_healing"
    return "gap_lost" if lost else "up_to_date"


def _tail(timeframe: Timeframe, head_close: int, expected: int, gaps: Sequence[Gap]) -> list[Span]:
    """The expected candles after the head, without gaps of the ledger."""
    expected_close = timeframe.next(expected)
    if expected_close <= head_close:
        return []
    return without([Span(head_close, expected_close)], [gap.span for gap in gaps])

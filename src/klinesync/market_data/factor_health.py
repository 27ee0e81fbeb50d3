"""The delay of factors and overlays behind the candles of a series, as a status with a reason and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klinesync.core.series_id import SeriesId
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore

# Largest delay that is counted, in candles.
MAX_DELAY_CANDLES = 100_000


FactorStatus = Literal["green", "yellow", "red", "gray"]
FactorReason = Literal[
    "up_to_date",
    "lagging_one_candle",
    "lagging_many_candles",
    "missing_factor_head",
    "missing_overlay_head",
    "no_store_head",
    "no_factors",
]


@dataclass(frozen=True, slots=True)
class FactorHealth:
    """Heads of candles, factors and overlays (open times), and delays behind the store's head: in seconds (None without
    a head) and in candles (up to `MAX_DELAY_CANDLES`).

    `detail`: a sentence about the status. `progress_pct`: of a ledger that is recomputed. `suspended`: why plugins do
    not run any more. `head_time`: the same as `store_head_time`.
    """

    series_id: str
    timeframe_seconds: int
    store_head_time: int | None
    head_time: int | None
    factor_head_time: int | None
    overlay_head_time: int | None
    factor_delay_seconds: int | None
    overlay_delay_seconds: int | None
    max_delay_seconds: int | None
    factor_delay_candles: int
    overlay_delay_candles: int
    status: FactorStatus
    status_reason: FactorReason
    detail: str
    progress_pct: float | None
    suspended: dict[str, str]


def factor_health(store: CandleStore, step: LedgerStep, series: SeriesId) -> FactorHealth:
    """The delay of a series' ledger.

    store: has candles and ledger.
    step: the present factors and overlays.
    series: the series.
    """
    head, ledger = store.head(series), store.ledger.get(series)
    if ledger is not None and not step.computed(ledger):
        ledger = None  # computed by other factors, and useless
    factor_head, overlay_head = (None, None) if ledger is None else (ledger.factor_head, ledger.overlay_head)
    heads = (factor_head, overlay_head)
    factor_delay, overlay_delay = (
        0 if head is None else store.count_after(series, -1 if done is None else done, MAX_DELAY_CANDLES)
        for done in heads
    )
    most = max(factor_delay, overlay_delay)
    status, reason, detail = _status(step, series, head, factor_head, overlay_head, most)
    delays = [None if head is None or done is None else max(0, head - done) for done in heads]
    progress = None
    first = store.first(series)
    if head is not None and first is not None and most > 1:
        done = (first if factor_head is None else factor_head) - first
        progress = round(100 * done / max(head - first, 1), 1)
    return FactorHealth(
        series_id=str(series),
        timeframe_seconds=series.timeframe.seconds,
        store_head_time=head,
        head_time=head,
        factor_head_time=factor_head,
        overlay_head_time=overlay_head,
        factor_delay_seconds=delays[0],
        overlay_delay_seconds=delays[1],
        max_delay_seconds=max((delay for delay in delays if delay is not None), default=None),
        factor_delay_candles=factor_delay,
        overlay_delay_candles=overlay_delay,
        status=status,
        status_reason=reason,
        detail=detail,
        progress_pct=progress,
        suspended=dict(step.suspended),
    )


def _status(
    step: LedgerStep, series: SeriesId, head: int | None, factor_head: int | None, overlay_head: int | None, delay: int
) -> tuple[FactorStatus, FactorReason, str]:
    """The status, the reason, and a sentence about it. `delay` in candles."""
    if head is None:
        return "gray", "no_store_head", "no candles are stored"
    if step.idle:
        return "gray", "no_factors", "no factors are configured"
    if not delay:
        return "green", "up_to_date", "up to date"
    lag = step.lag(series)
    why = "one candle behind" if delay == 1 else f"{delay} candles behind"
    detail = why if lag is None else f"{why}: {lag.reason}"
    if factor_head is None:
        return "red", "missing_factor_head", detail
    if overlay_head is None:
        return "red", "missing_overlay_head", detail
    return ("yellow", "lagging_one_candle", detail) if delay == 1 else ("red", "lagging_many_candles", detail)

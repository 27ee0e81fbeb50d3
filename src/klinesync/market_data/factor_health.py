"""How far factors and overlays are behind the candles of a series, as a status with a reason and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klinesync.core.series_id import SeriesId
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore

# Delays are counted up to so many candles.
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
    """How far candles, factors and overlays are: open times, and delays behind the store's head, in seconds (None
    where there is no head to compare) and in candles (counted up to `MAX_DELAY_CANDLES`).

    `detail` is a sentence about the status. `progress_pct` is that of a ledger that is computed anew; `suspended` says
    why plugins do not run any more. `head_time` is `store_head_time`.
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
    """How far the ledger of the series is in this state of the store."""
    head, ledger = store.head(series), store.ledger.get(series)
    if ledger is not None and not step.computed(ledger):
        ledger = None  # nothing of it is of any use
    factor_head, overlay_head = (None, None) if ledger is None else (ledger.factor_head, ledger.overlay_head)
    behind, drawn_behind = (
        0 if head is None else store.count_after(series, -1 if one is None else one, MAX_DELAY_CANDLES)
        for one in (factor_head, overlay_head)
    )
    most = max(behind, drawn_behind)
    status, reason, detail = _status(step, series, head, factor_head, overlay_head, most)
    delays = [None if head is None or one is None else max(0, head - one) for one in (factor_head, overlay_head)]
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
        max_delay_seconds=max((one for one in delays if one is not None), default=None),
        factor_delay_candles=behind,
        overlay_delay_candles=drawn_behind,
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

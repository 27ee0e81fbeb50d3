"""The built-in factors of order flow and volume: `CVD`, `VWAP` and `TAKER_RATIO`.

They are listed by the flag `indicators`, come in through the entry points of factors, and have outputs only. `CVD` and
`VWAP` are sums since 00:00 UTC. So a value depends on the candles of its day alone: a store that begins at another time
gives the same values from the next day on, and a sum does not grow with the history. Of a timeframe of a day or more,
each candle is a day of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.timeframe import DAY_S
from klinesync.factor.plugin import AnyFactor, Event, Factor, FactorSettings, Pane, Upstream


class FlowOfDay(msgspec.Struct, frozen=True, gc=False):
    """The sum of a day. `day`: days since 1970; `total`: None when a candle of the day lacks its part."""

    day: int = -1
    total: float | None = 0.0


class CvdFactor(Factor[FlowOfDay]):
    """Cumulative volume delta: the base volume that takers bought minus what they sold, summed since 00:00 UTC.

    cvd = Σ (taker_buy - taker_sell) = Σ (2 * taker_buy_volume - volume)

    Takers sell what they do not buy: `volume` is the base volume of all trades, and each trade has one taker (Binance's
    kline fields `V` and `v`). From the first candle whose `taker_buy_volume` is unknown there is no value until the
    next day, because a sum with an unknown part is unknown.
    """

    name = "cvd"
    label = "CVD"
    reads_flow = True
    has_events = False
    outputs = ("cvd",)
    state_type = FlowOfDay

    def seed(self) -> FlowOfDay:
        return FlowOfDay()

    def advance(self, state: FlowOfDay, candle: Candle, upstream: Upstream) -> tuple[FlowOfDay, Sequence[Event]]:
        day, bought = candle.time // DAY_S, candle.taker_buy_volume
        before = state.total if state.day == day else 0.0
        if before is None or bought is None:
            return FlowOfDay(day, None), ()
        return FlowOfDay(day, before + (2.0 * bought - candle.volume)), ()

    def numbers(self, state: FlowOfDay) -> tuple[float | None]:
        return (state.total if state.day >= 0 else None,)


class TradedOfDay(msgspec.Struct, frozen=True, gc=False):
    """The sums of a day. `day`: days since 1970; `value`: Σ typical price * volume; `volume`: Σ volume."""

    day: int = -1
    value: float = 0.0
    volume: float = 0.0


class VwapFactor(Factor[TradedOfDay]):
    """Volume-weighted average price since 00:00 UTC, of typical prices.

    vwap = Σ (typical * volume) / Σ volume, with typical = (high + low + close) / 3

    The usual form of charts, whose bars do not have the prices of single trades (J. Berkowitz, D. Logue and E. Noser,
    "The Total Cost of Transactions on the NYSE", Journal of Finance 43, 1988, for the average itself). There is no
    value until something was traded on the day.
    """

    name = "vwap"
    label = "VWAP"
    has_events = False
    outputs = ("vwap",)
    pane: Pane = "price"
    state_type = TradedOfDay

    def seed(self) -> TradedOfDay:
        return TradedOfDay()

    def advance(self, state: TradedOfDay, candle: Candle, upstream: Upstream) -> tuple[TradedOfDay, Sequence[Event]]:
        time, _, high, low, close, volume = candle.ohlcv
        day = time // DAY_S
        before = state if state.day == day else TradedOfDay(day)
        return TradedOfDay(day, before.value + (high + low + close) / 3.0 * volume, before.volume + volume), ()

    def numbers(self, state: TradedOfDay) -> tuple[float | None]:
        return (state.value / state.volume if state.volume > 0.0 else None,)


class Ratio(msgspec.Struct, frozen=True, gc=False):
    """The ratio of the last candle; None when it has none."""

    ratio: float | None = None


class TakerRatioFactor(Factor[Ratio]):
    """The part of a candle's base volume that takers bought: taker_buy_volume / volume, from 0 to 1.

    There is no value for a candle without volume, and for one whose `taker_buy_volume` is unknown. Both are rounded
    sums of the exchange, so the ratio may exceed 1 by a rounding (`TAKER_TOLERANCE`).
    """

    name = "taker_ratio"
    label = "TAKER_RATIO"
    reads_flow = True
    has_events = False
    outputs = ("taker_ratio",)
    state_type = Ratio

    def seed(self) -> Ratio:
        return Ratio()

    def advance(self, state: Ratio, candle: Candle, upstream: Upstream) -> tuple[Ratio, Sequence[Event]]:
        bought, volume = candle.taker_buy_volume, candle.volume
        return Ratio(None if bought is None or volume <= 0.0 else bought / volume), ()

    def numbers(self, state: Ratio) -> tuple[float | None]:
        return (state.ratio,)


_FACTORS: Final = (CvdFactor, VwapFactor, TakerRatioFactor)
# The names that the flag `indicators` takes beside TA-Lib's functions, and those of their factors.
FLOW_NAMES: Final = {factor.label: factor.name for factor in _FACTORS}


def flow(settings: FactorSettings) -> Sequence[AnyFactor]:
    """The entry point: the factors that the flag `indicators` lists."""
    return [factor() for factor in _FACTORS if factor.name in settings.indicators]

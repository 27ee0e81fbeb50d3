"""Candle and its checks. A candle in progress is a `Forming`: a type of its own, which no writer accepts."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from msgspec import Struct

from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle
from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe

# The last second of the year 9999: the calendar ends there.
MAX_TIME = 253_402_300_799
# Largest price and volume. No market has larger values, and sums of larger values would not stay finite.
MAX_VALUE = 1e100


class Candle(NamedTuple):
    """One K-line; closed, unless the text says otherwise.

    `time` is the open time in UTC seconds; prices are in the quote asset, volume in the base asset.
    """

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Forming(Struct, frozen=True):
    """A candle in progress: shown, never stored. The type checker refuses it wherever a `Candle` is written."""

    series: SeriesId
    candle: Candle


class Applied(Struct, frozen=True):
    """What a write changed: candles that are new, and candles that had other values before (`revised`), ascending.

    A new candle behind the previous head is a late fill. Late fills count as revised, because followers have passed
    their open times.

    rounded: candles that differ from the stored ones by a rounding only; followers already have these.
    gaps: the rows of the gap ledger before and between the candles.
    commit: number of the transaction.
    questioned: candles of frames that were not written, because other values are stored.
    """

    series: SeriesId
    candles: tuple[Candle, ...]
    revised: frozenset[int]
    gaps: tuple[Gap, ...] = ()
    commit: int = 0
    rounded: frozenset[int] = frozenset()
    questioned: tuple[Candle, ...] = ()

    @property
    def told(self) -> tuple[Candle, ...]:
        """The candles that are published to followers."""
        if not self.rounded:
            return self.candles
        return tuple(candle for candle in self.candles if candle.time not in self.rounded)


def check_candle(candle: Candle, timeframe: Timeframe) -> Candle:
    """The candle itself when it is valid. Raises `BadCandle`, which names the wrong value and the reason.

    A candle of the future passes: that check needs a clock (`check_not_future`).
    """
    time = candle.time
    if _values_are_sound(candle) and 0 <= time <= MAX_TIME and timeframe.is_open(time):
        return candle
    raise BadCandle(time, _bad_value(candle) or _bad_time(time, timeframe))


def check_values(candle: Candle) -> Candle:
    """The candle itself when its prices and volume are valid, for callers that need no check of the open time: prices
    greater than 0, high and low around open and close, volume not negative, all finite. Raises `BadCandle`."""
    if _values_are_sound(candle):
        return candle
    why = _bad_value(candle)
    assert why is not None, f"{candle} is sound, and was taken for bad"
    raise BadCandle(candle.time, why)


def _values_are_sound(candle: Candle) -> bool:
    # A valid candle passes these few comparisons. NaN fails each of them, and infinity the outer ones.
    _, open_, high, low, close, volume = candle
    return 0.0 < low <= open_ <= high <= MAX_VALUE and low <= close <= high and 0.0 <= volume <= MAX_VALUE


def check_not_future(candle: Candle, timeframe: Timeframe, now: int) -> Candle:
    """The candle itself when it has ended at `now` (UTC seconds of the exchange). Raises `BadCandle`."""
    close_time = timeframe.next(candle.time)
    if close_time > now:
        raise BadCandle(
            candle.time, f"it closes at {date_text(close_time)}, which lies after the exchange's now ({date_text(now)})"
        )
    return candle


def _bad_value(candle: Candle) -> str | None:
    """The first value that is invalid, and why; None when all values are valid."""
    for name in ("open", "high", "low", "close", "volume"):
        value: float = getattr(candle, name)
        if not isfinite(value):
            return f"{name} is {value}, not a finite number"
    for name in ("open", "high", "low", "close"):
        value = getattr(candle, name)
        if value <= 0:
            return f"{name} is {value}; a price is greater than 0"
    if candle.volume < 0:
        return f"volume {candle.volume} is negative"
    if candle.high < candle.low:
        return f"high {candle.high} is below low {candle.low}"
    for name in ("open", "close"):
        value = getattr(candle, name)
        if value > candle.high:
            return f"high {candle.high} is below {name} {value}"
        if value < candle.low:
            return f"low {candle.low} is above {name} {value}"
    for name in ("high", "volume"):
        value = getattr(candle, name)
        if value > MAX_VALUE:
            return f"{name} {value} is larger than {MAX_VALUE:g}"
    return None


def _bad_time(time: int, timeframe: Timeframe) -> str:
    if not 0 <= time <= MAX_TIME:
        return f"time lies outside 0 … {MAX_TIME}"
    opens = timeframe.floor(time)
    return f"time is not on the {timeframe} grid; the candle it falls into opens at {date_text(opens)} ({opens})"

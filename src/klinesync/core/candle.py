"""Candle and its checks. A candle in progress is a `Forming`: a type of its own, which no writer accepts."""

from __future__ import annotations

from math import isclose, isfinite
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
# Largest relative difference that counts as a rounding: the exchange adds volumes in another order than we do.
# Followers that have such a candle are not sent it again.
ROUNDING = 1e-9
# Largest number of trades. No market has more, and the sum of the minutes of 366 days, the longest derived candle,
# stays below 2**53, up to which every JSON reader keeps integers.
MAX_TRADES = 10**10
# Number of leading fields of a candle that every source gives: open time, prices and volume.
OHLCV = 6
# Largest relative amount by which a taker-buy part may exceed its whole: both are rounded sums.
TAKER_TOLERANCE = 1e-9
_TAKER_MOST = 1 + TAKER_TOLERANCE


class Candle(NamedTuple):
    """One K-line; closed, unless the text says otherwise.

    `time` is the open time in UTC seconds; prices are in the quote asset, volume in the base asset. The last four
    fields are the order flow, None where the source does not tell: the volume in the quote asset, the number of trades,
    and the parts of both volumes that takers bought.
    """

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None = None
    trades: int | None = None
    taker_buy_volume: float | None = None
    taker_buy_quote_volume: float | None = None

    def __repr__(self) -> str:
        told = (f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True) if value is not None)
        return f"Candle({', '.join(told)})"

    @property
    def ohlcv(self) -> tuple[int, float, float, float, float, float]:
        """Open time, prices and volume: the fields that every source gives."""
        return self[:OHLCV]  # type: ignore[return-value]  # mypy does not count with a constant

    @property
    def flow(self) -> tuple[float | None, int | None, float | None, float | None]:
        """The order flow: the last four fields."""
        return self[OHLCV:]  # type: ignore[return-value]


NO_FLOW = (None, None, None, None)
_FLOW_FIELDS = Candle._fields[OHLCV:]


class Forming(Struct, frozen=True):
    """A candle in progress: shown, never stored. The type checker refuses it wherever a `Candle` is written."""

    series: SeriesId
    candle: Candle


class Applied(Struct, frozen=True):
    """What a write changed: candles that are new, and candles that had other values before (`revised`), ascending.

    A new candle behind the previous head is a late fill. Late fills count as revised, because followers have passed
    their open times.

    rounded: candles that differ from the stored ones by a rounding only, or in their order flow only because a value
        was filled in (or, of a derived candle, left open): followers already have these.
    enriched: those of them that differ in their order flow only.
    flow_revised: the revised candles that differ in their order flow only: followers without order flow already have
        these.
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
    enriched: frozenset[int] = frozenset()
    flow_revised: frozenset[int] = frozenset()
    questioned: tuple[Candle, ...] = ()

    @property
    def told(self) -> tuple[Candle, ...]:
        """The candles that are published to followers with order flow; the others get no `flow_revised` ones."""
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
    """The candle itself when its values are valid, for callers that need no check of the open time: prices greater
    than 0, high and low around open and close, volumes and trades not negative, taker-buy parts at most their wholes,
    all finite. Raises `BadCandle`."""
    if _values_are_sound(candle):
        return candle
    why = _bad_value(candle)
    assert why is not None, f"{candle} is sound, and was taken for bad"
    raise BadCandle(candle.time, why)


def _values_are_sound(candle: Candle) -> bool:
    # A valid candle passes these few comparisons. NaN fails each of them, and infinity the outer ones.
    _, open_, high, low, close, volume, quote, trades, taker, taker_quote = candle
    return (
        0.0 < low <= open_ <= high <= MAX_VALUE
        and low <= close <= high
        and 0.0 <= volume <= MAX_VALUE
        and (quote is None or 0.0 <= quote <= MAX_VALUE)
        and (trades is None or 0 <= trades <= MAX_TRADES)
        and (taker is None or 0.0 <= taker <= volume * _TAKER_MOST)
        and (taker_quote is None or 0.0 <= taker_quote <= (MAX_VALUE if quote is None else quote * _TAKER_MOST))
    )


def with_sound_flow(candle: Candle) -> Candle:
    """The candle itself when its order flow is valid; otherwise without order flow. For sources whose prices are
    wanted even where their statistics are wrong."""
    if candle.flow == NO_FLOW or _values_are_sound(candle):
        return candle
    return candle._replace(quote_volume=None, trades=None, taker_buy_volume=None, taker_buy_quote_volume=None)


def replacing(stored: Candle, arriving: Candle) -> Candle:
    """The candle to store when `arriving` comes for the open time of `stored`: order flow that it lacks is kept where
    prices and volume are the same, because a source without order flow does not contradict it. Nothing is kept where
    both together would be no valid candle (a taker-buy part larger than the arriving whole)."""
    if None not in arriving or arriving.ohlcv != stored.ohlcv:
        return arriving
    whole = _completed(stored, arriving)
    return whole if _values_are_sound(whole) else arriving


def _completed(stored: Candle, arriving: Candle) -> Candle:
    """`arriving` with the order flow of `stored` where it lacks its own."""
    quote, trades, taker, taker_quote = arriving.flow
    return arriving._replace(
        quote_volume=stored.quote_volume if quote is None else quote,
        trades=stored.trades if trades is None else trades,
        taker_buy_volume=stored.taker_buy_volume if taker is None else taker,
        taker_buy_quote_volume=stored.taker_buy_quote_volume if taker_quote is None else taker_quote,
    )


def agree(one: Candle, other: Candle, tolerance: float = 0.0) -> bool:
    """Whether no value of one candle contradicts the other's, beyond a relative `tolerance`. Order flow that is missing
    contradicts nothing; a taker-buy part contradicts a smaller whole."""
    return one == other or (
        all(
            mine == theirs
            or mine is None
            or theirs is None
            or (tolerance > 0 and isclose(mine, theirs, rel_tol=tolerance))
            for mine, theirs in zip(one, other, strict=True)
        )
        and (None not in one or None not in other or _values_are_sound(_completed(one, other)))
    )


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
    for name, value in zip(candle._fields[1:], candle[1:], strict=True):
        if isinstance(value, float) and not isfinite(value):
            return f"{name} is {value}, not a finite number"
    for name in ("open", "high", "low", "close"):
        value = getattr(candle, name)
        if value <= 0:
            return f"{name} is {value}; a price is greater than 0"
    for name in ("volume", *_FLOW_FIELDS):
        value = getattr(candle, name)
        if value is not None and value < 0:
            return f"{name} {value} is negative"
    if candle.high < candle.low:
        return f"high {candle.high} is below low {candle.low}"
    for name in ("open", "close"):
        value = getattr(candle, name)
        if value > candle.high:
            return f"high {candle.high} is below {name} {value}"
        if value < candle.low:
            return f"low {candle.low} is above {name} {value}"
    if candle.trades is not None and candle.trades > MAX_TRADES:
        return f"trades is larger than {MAX_TRADES}"  # without its digits, which may be hundreds
    for name in ("high", "volume", *_FLOW_FIELDS):
        value = getattr(candle, name)
        if value is not None and value > MAX_VALUE:
            return f"{name} {value} is larger than {MAX_VALUE:g}"
    for name, of in (("taker_buy_volume", "volume"), ("taker_buy_quote_volume", "quote_volume")):
        part, whole = getattr(candle, name), getattr(candle, of)
        if part is not None and whole is not None and part > whole * _TAKER_MOST:
            return f"{name} {part} is larger than {of} {whole}"
    return None


def _bad_time(time: int, timeframe: Timeframe) -> str:
    if not 0 <= time <= MAX_TIME:
        return f"time lies outside 0 … {MAX_TIME}"
    opens = timeframe.floor(time)
    return f"time is not on the {timeframe} grid; the candle it falls into opens at {date_text(opens)} ({opens})"

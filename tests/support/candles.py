"""Candles of tests."""

from collections.abc import Iterable

from klinesync.core.candle import Candle


def ohlcv(time: int, values: Iterable[float]) -> Candle:
    """The candle with these prices and this volume, without order flow."""
    open_, high, low, close, volume = values
    return Candle(time, open_, high, low, close, volume)

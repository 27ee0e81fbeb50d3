"""Candles for tests."""

from collections.abc import Iterable, Sequence

from klinesync.core.candle import Candle
from klinesync.sim.tape import Row

Flow = tuple[float | None, int | None, float | None, float | None]
# Order flow of a source that has all values, some of them, or none.
FLOWS: tuple[Flow, ...] = ((None,) * 4, (None,) * 4, (8.0, 3, 1.0, 4.0), (8.0, None, 1.0, None), (9.0, 3, None, 5.0))


def ohlcv(time: int, values: Iterable[float]) -> Candle:
    """The candle with these prices and this volume, without order flow."""
    open_, high, low, close, volume = values
    return Candle(time, open_, high, low, close, volume)


def stored_over(was: Candle | None, now: Candle) -> Candle:
    """The stored candle after `now` is written over `was`: missing order flow contradicts no value."""
    if was is None or was[:6] != now[:6]:
        return now
    return now._replace(**{name: getattr(was, name) for name in now._fields if getattr(now, name) is None})


def of_row(cells: Sequence[str | int]) -> Candle:
    """The candle of a row of Binance, with all nine values."""
    values = [float(cell) for cell in cells]
    return ohlcv(int(cells[0]) // 1000, values[1:6])._replace(
        quote_volume=values[7], trades=int(cells[8]), taker_buy_volume=values[9], taker_buy_quote_volume=values[10]
    )


def of_minute(row: Row) -> Candle:
    """The candle of the simulated exchange's minute, with all nine values."""
    values = (row.open, row.high, row.low, row.close, row.volume, row.quote)
    return Candle(row.time, *values, row.trades, row.taker_volume, row.taker_quote)


def bare(candles: Iterable[Candle]) -> list[Candle]:
    """The candles without order flow."""
    return [Candle(*candle.ohlcv) for candle in candles]

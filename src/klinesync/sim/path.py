"""How one candle is traded through its minute."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from klinesync.sim.dice import dice_key, unit, units
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import MINUTE_S, Floats, Ints, Row

MAX_STEPS = 240  # as often as the fastest stream pushes in a minute; further trades fall into the same steps
_MINUTE_MS = MINUTE_S * 1000
_WOBBLE = 0.3  # how far the price strays from the way between two turning points, as a share of the candle's range


class PathKey:
    """The keys of one symbol's dice."""

    __slots__ = ("first", "order", "step")

    def __init__(self, seed: int, symbol: Symbol) -> None:
        self.first = dice_key(seed, symbol.market, symbol.name, "first trade")
        self.order = dice_key(seed, symbol.market, symbol.name, "order")
        self.step = dice_key(seed, symbol.market, symbol.name, "step")


def first_trade_ms(key: PathKey, row: Row) -> int | None:
    """When the first trade of the minute `row` happens, in milliseconds after its open; None when it has none.

    The smallest of `count` uniform instants."""
    if row.trades <= 0:
        return None
    chance = unit(key.first, row.time // MINUTE_S)
    return min(_MINUTE_MS - 1, int(_MINUTE_MS * (1.0 - (1.0 - chance) ** (1.0 / row.trades))))


class MinutePath:
    """The running candle of one minute after each of its steps: a function of the candle, the symbol and the seed.

    A step is one trade, or several at once in a minute with more than `MAX_STEPS`. Prices never leave the candle's
    range; high, low, volume and count only ever grow towards the candle; the last step is the candle itself.
    """

    __slots__ = ("_at_ms", "_columns", "row")

    def __init__(self, row: Row, key: PathKey, price_digits: int, volume_digits: int) -> None:
        self.row = row
        if row.trades <= 0:
            self._at_ms: list[int] = []
            return
        steps = min(row.trades, MAX_STEPS)
        minute = row.time // MINUTE_S
        dice = units(key.step, minute * (4 * MAX_STEPS) + np.arange(3 * steps)).reshape(3, steps)
        first_ms = first_trade_ms(key, row)
        assert first_ms is not None
        at_ms = np.sort(dice[0])
        at_ms[0] = 0.0
        self._at_ms = (first_ms + at_ms * (_MINUTE_MS - first_ms)).astype(np.int64).tolist()
        prices = _prices(row, dice[1], unit(key.order, minute), price_digits)
        highs, lows = np.maximum.accumulate(prices), np.minimum.accumulate(prices)
        highs[-1], lows[-1] = row.high, row.low
        share = np.cumsum(dice[2] + 0.05)
        share /= share[-1]
        quote_digits = min(8, price_digits + volume_digits)
        self._columns = (
            highs,
            lows,
            prices,
            _grown(row.volume, share, volume_digits),
            _grown(row.quote, share, quote_digits),
            _counts(row.trades, steps),
            _grown(row.taker_volume, share, volume_digits),
            _grown(row.taker_quote, share, quote_digits),
        )

    def at(self, offset_ms: int) -> Row | None:
        """The running candle `offset_ms` into the minute; None before its first trade."""
        steps = bisect_right(self._at_ms, offset_ms)
        return self._state(steps - 1) if steps else None

    def next_ms(self, offset_ms: int) -> int | None:
        """When the first step after `offset_ms` happens; None when there is no further."""
        steps = bisect_right(self._at_ms, offset_ms)
        return self._at_ms[steps] if steps < len(self._at_ms) else None

    def states(self) -> list[Row]:
        """Every running candle, in order."""
        return [self._state(step) for step in range(len(self._at_ms))]

    def _state(self, step: int) -> Row:
        if step == len(self._at_ms) - 1:
            return self.row
        row = self.row
        high, low, close, volume, quote, trades, taker_volume, taker_quote = self._columns
        return Row(
            row.time, row.open, float(high[step]), float(low[step]), float(close[step]), float(volume[step]),
            float(quote[step]), int(trades[step]), float(taker_volume[step]), float(taker_quote[step]), row.first_id,
        )  # fmt: skip


def _prices(row: Row, dice: Floats, order: float, digits: int) -> Floats:
    """A walk from open over high and low, in the order that `order` chooses, to close."""
    steps = len(dice)
    if steps == 1:
        return np.array([row.close])
    turns = {0: row.open, steps - 1: row.close}
    if steps >= 4:
        # The turning points lie in the inner two thirds, the second at least one step behind the first.
        first = 1 + int(dice[0] * (steps - 3))
        second = first + 1 + int(dice[1] * (steps - 2 - first))
        high_first = order < 0.5
        turns[first] = row.high if high_first else row.low
        turns[second] = row.low if high_first else row.high
    elif steps == 3:
        turns[1] = row.high if row.high > max(row.open, row.close) else row.low
    at = sorted(turns)
    prices = np.interp(np.arange(steps), at, [turns[index] for index in at])
    prices += (dice - 0.5) * (_WOBBLE * (row.high - row.low))
    prices = np.clip(np.round(prices, digits), row.low, row.high)
    prices[at] = [turns[index] for index in at]
    return prices


def _counts(count: int, steps: int) -> Ints:
    """Trades after each step: at least one more a step, `count` at the end."""
    return (np.arange(1, steps + 1) * count) // steps


def _grown(total: float, share: Floats, digits: int) -> Floats:
    return np.minimum(np.round(total * share, digits), total)

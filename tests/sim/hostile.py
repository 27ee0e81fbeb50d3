"""Invalid frames: each is a frame that the exchange has just sent, with other values and something impossible."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

DAY_MS = 86_400_000

Kline = dict[str, Any]


def hostile_frame(text: str, rng: Random) -> str:
    """A false version of the frame `text`. Its candle is never one of the exchange's."""
    frame = msgspec.json.decode(text)
    data = frame["data"]
    kline = data["k"]
    # Four decimals: the exchange's own volumes have three.
    kline["v"] = f"{float(kline['v']) + 0.0001:.4f}"
    rng.choice(LIES)(data, kline, rng)
    return msgspec.json.encode(frame).decode()


def of_the_future(data: Kline, kline: Kline, rng: Random) -> None:
    """The candle opens days in the future, with a stamp of then; it may be called final."""
    ahead_ms = rng.randint(1, 1000) * DAY_MS
    for name in ("t", "T"):
        kline[name] += ahead_ms
    data["E"] += ahead_ms + rng.choice((0, 60_000))
    kline["x"] = rng.random() < 0.5


def stamped_in_the_future(data: Kline, kline: Kline, rng: Random) -> None:
    """The frame is stamped days in the future, when its candle would be final."""
    data["E"] += rng.randint(1, 1000) * DAY_MS
    kline["x"] = rng.random() < 0.7


def of_the_future_stamped_now(data: Kline, kline: Kline, rng: Random) -> None:
    for name in ("t", "T"):
        kline[name] += rng.randint(1, 1000) * DAY_MS


def stamped_before_it_opens(data: Kline, kline: Kline, rng: Random) -> None:
    data["E"] = kline["t"] - rng.choice((1, 1000, DAY_MS))


def final_before_its_end(data: Kline, kline: Kline, rng: Random) -> None:
    data["E"] = kline["t"] + rng.randint(0, 58_000)
    kline["x"] = True


def of_another_symbol(data: Kline, kline: Kline, rng: Random) -> None:
    kline["s"] = data["s"] = rng.choice(("ETHBTC", "btcusdt", "", "X" * 10_000))


def of_another_interval(data: Kline, kline: Kline, rng: Random) -> None:
    kline["i"] = rng.choice(("3m", "1M", "1h", ""))


def no_price(data: Kline, kline: Kline, rng: Random) -> None:
    kline[rng.choice("ohlcv")] = rng.choice(("NaN", "Infinity", "-Infinity", "", "1e999", None, [1]))


def high_below_low(data: Kline, kline: Kline, rng: Random) -> None:
    kline["h"], kline["l"] = kline["l"], str(float(kline["h"]) + 1)


def neither_closed_nor_open(data: Kline, kline: Kline, rng: Random) -> None:
    kline["x"] = rng.choice(("false", "true", 0, 1, None, []))


def off_the_grid(data: Kline, kline: Kline, rng: Random) -> None:
    kline["t"] += rng.choice((1, 500, 1000, 59_000))


LIES: tuple[Callable[[Kline, Kline, Random], None], ...] = (
    of_the_future,
    of_the_future,
    stamped_in_the_future,
    stamped_in_the_future,
    of_the_future_stamped_now,
    stamped_before_it_opens,
    final_before_its_end,
    of_another_symbol,
    of_another_interval,
    no_price,
    high_below_low,
    neither_closed_nor_open,
    off_the_grid,
)

"""The cost of the six usual indicators: a live candle, in bulk, to open, to keep, and to import.

    python benchmarks/indicators.py

CPU time, no store, on Linux. The yardstick is TA-Lib's own handles and functions, called directly over the whole
history: the difference is the cost of the anchors, the names and the checks for missing values.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import talib
from talib import stream

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe
from klinesync.factor.columns import Columns
from klinesync.factor.indicator_names import parse_indicators

MINUTE = Timeframe.parse("1m")
FIRST = 1_748_736_000  # 2025-06-01
USUAL = parse_indicators("SMA(20),EMA(21),BBANDS(20),MACD(12,26,9),RSI(14),ATR(14)")
WARM_UP = max(indicator.warm_up for indicator in USUAL)
ROUNDS = 5
LIVE = 20_000
SERIES = 1_000


def walk(count: int) -> list[Candle]:
    dice = random.Random(1)
    candles: list[Candle] = []
    price = 100_000.0
    for time in range(FIRST, FIRST + 60 * count, 60):
        open_, price = price, price + dice.gauss(0, 20)
        high, low = max(open_, price) + dice.random(), min(open_, price) - dice.random()
        candles.append(Candle(time, open_, high, low, price, dice.random() * 10))
    return candles


def best_of(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of a few rounds."""
    took: list[float] = []
    for _ in range(ROUNDS):
        begin = process_time()
        work()
        took.append(process_time() - begin)
    return min(took)


def report(name: str, count: int, took_s: float) -> None:
    print(f"{name:<64} {count / took_s / 1000:>9,.0f} k/s {took_s / count * 1e6:>8.2f} µs")


def live(history: int, coming: list[Candle]) -> float:
    """CPU seconds of `coming` candles after a history of that length, once through a whole number of chunks."""
    before = walk(history)
    shift = before[-1].time + 60 - coming[0].time
    candles = [candle._replace(time=candle.time + shift) for candle in coming]

    def once() -> None:
        handles = [indicator.open(MINUTE, Columns.of(before[-indicator.warm_up :])) for indicator in USUAL]
        begin = process_time()
        for candle in candles:
            for handle in handles:
                handle.update(candle)
        took.append(process_time() - begin)

    took: list[float] = []
    for _ in range(ROUNDS):
        once()
    return min(took)


def bare_live(columns: Columns, coming: list[Candle]) -> None:
    close = columns.close
    singles = [
        stream.SMA(close, 20), stream.EMA(close, 21), stream.BBANDS(close, 20), stream.MACD(close, 12, 26, 9),
        stream.RSI(close, 14),
    ]  # fmt: skip
    atr = stream.ATR(columns.high, columns.low, close, 14)
    for _, _, high, low, price, *_ in coming:
        for single in singles:
            single.update(price)
        atr.update(high, low, price)


def bare_bulk(columns: Columns) -> None:
    close = columns.close
    talib.SMA(close, 20)
    talib.EMA(close, 21)
    talib.BBANDS(close, 20)
    talib.MACD(close, 12, 26, 9)
    talib.RSI(close, 14)
    talib.ATR(columns.high, columns.low, close, 14)


def in_a_process_of_its_own(code: str) -> str:
    """What the code prints; `cost()` tells it CPU seconds and MB since it began."""
    frame = (
        "import resource, time, numpy, klinesync.core.candle, klinesync.core.timeframe\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20\n"
        "began, before = time.process_time(), held()\n"
        "def cost(): return f'{time.process_time() - began:.3f} s, {held() - before:.1f} MB'\n"
    )
    return subprocess.run(
        [sys.executable, "-c", frame + code], capture_output=True, text=True, check=True
    ).stdout.strip()


IMPORT = "import klinesync.factor.indicator_names; print(cost())"
HANDLES = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from indicators import *
warm_up = Columns.of(walk(WARM_UP))
began, before = time.process_time(), held()
kept = [[one.open(MINUTE, warm_up) for one in USUAL] for _ in range({SERIES})]
print(cost())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candles", type=int, default=100_000, help="candles of the bulk computation")
    candles = walk(parser.parse_args().candles)
    columns = Columns.of(candles)
    coming = walk(LIVE)

    print("six indicators, one live candle")
    report("  TA-Lib's handles, bare", LIVE, best_of(lambda: bare_live(columns.part(0, 2_000), coming)))
    for history in (1_000, 100_000):
        report(f"  ours, behind {history:,} candles", LIVE, live(history, coming))
    handles = [indicator.open(MINUTE, columns.part(len(columns) - WARM_UP)) for indicator in USUAL]
    forming = Candle(handles[0].time + 60 if handles[0].time else 0, 100.0, 101.0, 99.0, 100.0, 1.0)
    report(
        "  ours, a look at a forming one",
        LIVE,
        best_of(lambda: [h.peek(forming) for _ in range(LIVE) for h in handles]),
    )

    print("six indicators, in bulk")
    report("  TA-Lib's functions, bare", len(columns), best_of(lambda: bare_bulk(columns)))
    report("  ours", len(columns), best_of(lambda: [one.compute(MINUTE, columns) for one in USUAL]))
    report("  candles to columns", len(columns), best_of(lambda: Columns.of(candles)))

    window = columns.part(len(columns) - 2_000 - WARM_UP)
    took = best_of(lambda: [one.compute(MINUTE, window, WARM_UP) for one in USUAL])
    print(f"  a window of 2,000 candles: {took * 1000:.2f} ms")

    warm_up = columns.part(len(columns) - WARM_UP)
    took = best_of(lambda: [one.open(MINUTE, warm_up) for one in USUAL])
    print(f"six handles: {took * 1000:.2f} ms to open")
    print(f"six handles of {SERIES:,} series: {in_a_process_of_its_own(HANDLES)}")
    print(f"import: {in_a_process_of_its_own(IMPORT)}")


if __name__ == "__main__":
    main()

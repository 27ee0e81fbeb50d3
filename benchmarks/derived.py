"""The cost of derived candles: a long run of minutes rolled up, and one forming tick or closed minute.

    python benchmarks/derived.py --days 90

Synthetic minutes without holes, and with one in a hundred missing. No store: folding alone, in CPU time. The roll-up is
measured with the other work of an import on these candles: finding the missing minutes, and leaving out the incomplete
buckets.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from time import process_time

from klinesync.core.candle import Candle
from klinesync.core.derived import FormingBuckets, complete, fold, links_to, parent_of, touched
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import missing_spans
from klinesync.core.timeframe import DAY_S, Timeframe

MINUTE = Timeframe.parse("1m")
FIRST = 1_748_736_000  # 2025-06-01
USUAL = tuple(Timeframe.parse(code) for code in ("5m", "15m", "1h", "4h", "1d"))
EVERY = tuple(Timeframe.known.values())[1:]
ROUNDS = 5
TICKS = 20_000


def minutes(days: int, missing: float) -> list[Candle]:
    dice = random.Random(1)
    candles: list[Candle] = []
    price = 100_000.0
    for time in range(FIRST, FIRST + days * DAY_S, 60):
        open_, price = price, price + dice.gauss(0, 20)
        high, low = max(open_, price) + dice.random(), min(open_, price) - dice.random()
        if dice.random() >= missing:
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


def bulk(candles: list[Candle], targets: tuple[Timeframe, ...]) -> None:
    unproven = missing_spans(MINUTE, candles[0].time, candles[-1].time + 60, [candle.time for candle in candles])
    folded = {MINUTE: candles}
    for link in links_to(targets, MINUTE):
        folded[link] = fold(link, folded[parent_of(link, MINUTE)])
    for target in targets:
        complete(target, folded[target], unproven)


def report(name: str, count: int, took_s: float) -> None:
    print(f"{name:<64} {count / took_s / 1000:>9,.0f} k/s {took_s / count * 1e6:>8.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=90)
    days: int = parser.parse_args().days
    whole, holed = minutes(days, 0.0), minutes(days, 0.01)

    report("one link: 1m -> 5m", len(whole), best_of(lambda: fold(USUAL[0], whole)))
    report("bulk, 5m 15m 1h 4h 1d, no holes", len(whole), best_of(lambda: bulk(whole, USUAL)))
    report("bulk, 5m 15m 1h 4h 1d, 1 % missing", len(holed), best_of(lambda: bulk(holed, USUAL)))
    report("bulk, all 14 timeframes, no holes", len(whole), best_of(lambda: bulk(whole, EVERY)))
    times = [candle.time for candle in whole]
    report("touched, 5 targets", len(whole), best_of(lambda: [touched(target, times) for target in USUAL]))

    series = SeriesId.parse("binance:spot:BTC/USDT:1m")
    for name, targets in (("5m 15m 1h 4h 1d", USUAL), ("all 14 timeframes", EVERY)):
        buckets = FormingBuckets(series, targets)
        begin = process_time()
        for candle in whole[:-2]:
            buckets.close(candle)
        report(f"live, a closed minute, {name}", len(whole) - 2, process_time() - begin)
        ticks(f"live, a forming tick, {name}", buckets, whole[-2])
        buckets.close(whole[-2])
        buckets.close(whole[-1])
        ticks("... in the first minute of a day", buckets, whole[-1]._replace(time=whole[-1].time + 60))


def ticks(name: str, buckets: FormingBuckets, forming: Candle) -> None:
    def show() -> None:
        for _ in range(TICKS):
            buckets.show(forming)

    report(name, TICKS, best_of(show))


if __name__ == "__main__":
    main()

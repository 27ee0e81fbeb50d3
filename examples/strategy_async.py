"""The same strategy for several series at once, in an event loop; before it begins, a look at the past in arrays.

python examples/strategy_async.py [URL] [SERIES_ID …]
"""

import asyncio
import sys

import numpy as np

from klinesync.client import AsyncKlinesync, ClosedCandle

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
SERIES = sys.argv[2:] or ["binance:spot:BTC/USDT:1m", "binance:spot:ETH/USDT:1m"]


async def trade(service, series):
    slices = await service.slices(series, window=500)
    known = slices.columns()
    candles = await service.history(series, *known["time"][[0, -1]] + (0, 1))
    close = candles["close"][np.searchsorted(candles["candle_time"], known["time"])]
    print(series, f"closed above EMA(21) in {np.mean(close > known['ema_21']):.0%} of {len(close)} candles", flush=True)
    async for update in service.follow(series, slices.at_time, factors=True):
        if isinstance(update, ClosedCandle) and not update.revised:
            candle, slices = update.candle, update.slices
            pen = slices.head("pen")["extending"] or {"direction": 0}
            above = candle.close > slices.value("ema_21")
            position = {(1, True): "long", (-1, False): "short"}.get((pen["direction"], above), "flat")
            print(series, candle.time, position, candle.close, flush=True)


async def main():
    async with AsyncKlinesync(URL) as service, asyncio.TaskGroup() as group:
        for series in SERIES:
            group.create_task(trade(service, series))


asyncio.run(main())

"""The same strategy for several series at once, in an event loop; before it begins, a look at the past in arrays.

python examples/strategy_async.py [URL] [SERIES_ID …]
"""

import asyncio
import contextlib
import sys

import numpy as np

from klinesync.client import AsyncKlinesync, ClosedCandle

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
SERIES = sys.argv[2:] or ["binance:spot:BTC/USDT:1m", "binance:spot:ETH/USDT:1m"]


async def look_back(service, series):
    slices = await service.slices(series, window=500)
    known = slices.columns()
    if not len(known["time"]):
        return slices.at_time
    candles = await service.history(series, known["time"][0], known["time"][-1] + 1)
    close = candles["close"][np.searchsorted(candles["candle_time"], known["time"])]
    print(series, f"closed above EMA(21) in {np.mean(close > known['ema_21']):.0%} of {len(close)} candles", flush=True)
    return slices.at_time


async def main():
    async with AsyncKlinesync(URL) as service:
        heads = [await look_back(service, series) for series in SERIES]
        since = min((head for head in heads if head is not None), default=None)
        # One loop over all of them: history in the order of time, then live as it arrives.
        async for update in service.follow(SERIES, since, factors=True):
            if isinstance(update, ClosedCandle) and not update.revised:
                candle, slices = update.candle, update.slices
                pen = slices.head("pen")["extending"] or {"direction": 0}
                above = candle.close > slices.value("ema_21")
                position = {(1, True): "long", (-1, False): "short"}.get((pen["direction"], above), "flat")
                print(update.series, candle.time, position, candle.close, flush=True)


with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends it
    asyncio.run(main())

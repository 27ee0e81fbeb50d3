"""A strategy: long while a pen points up and the close is above EMA(21), short in the mirror image, else flat.

    python examples/strategy.py [URL] [SERIES_ID]

It goes over the last day first, candle by candle, and on live: no candle is missed or seen twice, and each is judged by
what was known when it closed. Needs a running service: `klinesync demo --speed 60`, say.
"""

import contextlib
import sys
import time

from klinesync.client import ClosedCandle, Disconnected, Gap, Klinesync, System

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
SERIES = sys.argv[2] if len(sys.argv) > 2 else "binance:spot:BTC/USDT:1m"


def wanted(candle, slices):
    average = slices.value("ema_21")  # NaN at first, which is neither above nor below
    pen = slices.head("pen")["extending"]
    direction = pen["direction"] if pen else 0
    if direction > 0 and candle.close > average:
        return "long"
    if direction < 0 and candle.close < average:
        return "short"
    return "flat"


def main():
    position = "flat"
    with Klinesync(URL) as service:
        head = service.candles(SERIES, limit=1)["candle_time"]
        since = int(head[0]) - 86_400 if len(head) else None
        for update in service.follow(SERIES, since, factors=True):
            match update:
                case ClosedCandle(candle, revised=False, slices=slices):
                    if wanted(candle, slices) != position:
                        position = wanted(candle, slices)
                        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(candle.time))
                        print(moment, position, candle.close, flush=True)
                case Gap(expected, actual):
                    print(f"nothing is known between {expected} and {actual}: {position} is kept", flush=True)
                case Disconnected(reason):
                    print(f"not connected: {reason}", flush=True)  # it is made again by itself
                case System(event, message):
                    print(f"{event}: {message}", flush=True)


with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends it
    main()

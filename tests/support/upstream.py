"""A service that follows the simulated exchange over real sockets, compared with the exchange's true candles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.server import SimServer
from support.running_service import Service
from support.waiting import PATIENCE_S, until


def plain(series: SeriesId) -> str:
    """The simulated exchange's pair names: `BTC/USDT` is `BTCUSDT`."""
    return series.symbol.replace("/", "")


async def plain_id(series: SeriesId) -> str | None:
    """The same, as an object that answers for any list of symbols."""
    return plain(series)


async def stored(service: Service, series: SeriesId, since: int = 0) -> list[Candle]:
    """All closed candles after `since`, through HTTP."""
    candles: list[Candle] = []
    while True:
        status, page = await service.get("/api/market/candles", series_id=str(series), since=since, limit=5000)
        assert status == 200, page
        rows = page["candles"]
        assert isinstance(rows, list)
        if not rows:
            return candles
        candles += [Candle(*row.values()) for row in rows]
        since = candles[-1].time


def truth(exchange: SimServer, series: SeriesId, times: Iterable[int]) -> list[Candle]:
    """The traded candles of the exchange in those minutes."""
    name = series.symbol.replace("/", "")
    listings = exchange.exchange.spot if series.market == "spot" else exchange.exchange.futures
    rows = (listings[name].minute(time) for time in times)
    return [Candle(row.time, row.open, row.high, row.low, row.close, row.volume) for row in rows if row is not None]


async def passed(exchange: SimServer, seconds: float) -> None:
    """Wait for that many seconds of the exchange."""
    end_ms = exchange.now_ms() + seconds * 1000
    await until(lambda: exchange.now_ms() >= end_ms, f"{seconds:g} s of the exchange")


async def complete(service: Service, exchange: SimServer, *followed: SeriesId) -> dict[SeriesId, list[Candle]]:
    """Wait until every closed candle is stored as the exchange has it, without a hole; returns the stored candles, from
    the first one to the newest closed by now."""
    newest = exchange.now_ms() // 60_000 * 60 - 60
    whole: dict[SeriesId, list[Candle]] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            for series in followed:
                while True:
                    candles = [candle for candle in await stored(service, series) if candle.time <= newest]
                    if candles and candles == truth(exchange, series, range(candles[0].time, newest + 60, 60)):
                        whole[series] = candles
                        break
                    await asyncio.sleep(0.1)
    except TimeoutError:
        candles = await stored(service, series)
        right = truth(exchange, series, range(candles[0].time, newest + 60, 60)) if candles else []
        wrong = sorted(set(right) ^ {candle for candle in candles if candle.time <= newest})
        state = service.runtime.supervisors.status(series)
        raise AssertionError(f"{series}: {len(wrong)} candles differ up to {newest}: {wrong[:6]}; {state}") from None
    return whole

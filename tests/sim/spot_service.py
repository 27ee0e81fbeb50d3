"""A whole service under virtual time beside a double of Binance's spot market that answers at the level of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import MarketRoutes
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.flags import RuntimeFlags
from klinesync.runtime.http_client import Http
from klinesync.storage.sqlite import InThreadSqliteDatabase
from sim.scenario import EPOCH_S
from sim.virtual_loop import VirtualClock, VirtualLoop


def run_beside(
    exchange: Http,
    loop: VirtualLoop,
    store: Path,
    live: Callable[[MarketRuntime], Awaitable[None]],
    *,
    streams_most: int = 200,
    tuning: Tuning = USUAL_TUNING,
    **flags: object,
) -> None:
    """Let `live` run beside a service.

    exchange: answers at the level of HTTP.
    loop: virtual; buried at the end.
    store: path of the service's store.
    streams_most: streams of one connection.
    tuning: limits and timings of the service.
    flags: the service's.
    """

    async def serve() -> None:
        routes = {"spot": MarketRoutes("http://exchange", "/api/v3", 1000)}
        entry = BinanceEntry(
            routes,
            {"spot": "ws://exchange"},
            streams_most=streams_most,
            http=lambda: exchange,
            streams=tuning.binance_streams,
            rest=tuning.binance_rest,
        )
        service = build_market_runtime(
            RuntimeFlags.model_validate({"database_url": f"sqlite:///{store}"} | flags),
            Surroundings(VirtualClock(loop, EPOCH_S), Random(1), Bulkheads(loop.time), tuning),
            database=InThreadSqliteDatabase(store, pause=lambda: asyncio.sleep(0)),
            entries=[entry],
        )
        async with service:
            await live(service)

    try:
        loop.run_until_complete(serve())
    finally:
        loop.bury()

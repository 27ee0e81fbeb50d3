"""A whole service under virtual time beside a double of Binance's spot market that answers at the level of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from klinesync.exchanges.binance.rest import BinanceRest, MarketRoutes
from klinesync.exchanges.binance.source import BinanceSource
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.exchange_clock import ExchangeClock
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
    **flags: object,
) -> None:
    """Let `live` run beside a service.

    exchange: answers at the level of HTTP.
    loop: virtual; buried at the end.
    store: path of the service's store.
    streams_most: streams of one connection.
    flags: the service's.
    """

    async def serve() -> None:
        clocks: dict[str, ExchangeClock] = {}
        routes = {"spot": MarketRoutes("http://exchange", "/api/v3", 1000)}
        rest = BinanceRest(
            exchange,
            routes,
            clocks,
            final_margin_s=2.0,
            monotonic=loop.time,
        )
        source = BinanceSource(
            exchange,
            rest,
            {"spot": "ws://exchange"},
            Random(1),
            clocks=clocks,
            streams_most=streams_most,
        )
        service = build_market_runtime(
            RuntimeFlags.model_validate({"database_url": f"sqlite:///{store}"} | flags),
            Surroundings(VirtualClock(loop, EPOCH_S), Random(1)),
            database=InThreadSqliteDatabase(store, pause=lambda: asyncio.sleep(0)),
            source=source,
        )
        clocks.update((market, clock) for (_, market), clock in service.exchanges.clocks.items())
        async with service:
            await live(service)

    try:
        loop.run_until_complete(serve())
    finally:
        loop.bury()

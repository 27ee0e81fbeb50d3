"""The REST client against the simulated exchange, over real sockets: bans, the weight of a minute, relisted symbols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.core.gaps import NOT_LISTED_BEFORE
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.binance.weight import MAX_IN_FLIGHT
from klinesync.exchanges.exchange import Errand, HistoryPage, Urgency
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import HttpClient
from klinesync.sim.faults import Delist, RateLimit, RestError
from klinesync.sim.server import SimConfig, SimServer
from support.candles import bare
from support.upstream import truth
from support.waiting import until

T = TypeVar("T")

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")


class Edge:
    """The exchange, a client of it, and the stamps that streams would bring."""

    def __init__(self, exchange: SimServer, session: HttpClient, share: float) -> None:
        self.exchange = exchange
        self.clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
        self.rest = BinanceRest(
            session,
            market_routes(exchange.http_url, exchange.http_url),
            self.clocks,
            final_margin_s=2.0,
            monotonic=asyncio.get_running_loop().time,
            share=share,
        )

    @property
    def minute(self) -> int:
        """The minute that is open now."""
        return self.exchange.now_ms() // 60_000 * 60

    async def with_stamps(self, work: Awaitable[T]) -> T:
        """Wait for `work`, while stamps of the exchange keep arriving."""
        task = asyncio.ensure_future(work)
        async with asyncio.timeout(60):
            while not task.done():
                for clock in self.clocks.values():
                    clock.learn(self.exchange.now_ms(), asyncio.get_running_loop().time())
                await asyncio.wait([task], timeout=0.01)
        return task.result()

    async def pages(self, series: SeriesId, start: int, urgency: Urgency, end: int | None = None) -> list[HistoryPage]:
        return [page async for page in self.rest.history(series, start, Errand(urgency), end)]


@asynccontextmanager
async def connected(speed: float = 60.0, share: float = 0.8) -> AsyncIterator[Edge]:
    async with SimServer(SimConfig(symbols=4, speed=speed)) as exchange, HttpClient() as session:
        yield Edge(exchange, session, share)


async def test_a_ban_is_waited_out_in_the_exchanges_seconds_and_history_is_whole_after_it() -> None:
    async with connected() as edge:
        start = edge.minute - 2500 * 60
        edge.exchange.faults.add(RateLimit(market="spot", after=2, count=1, retry_after_s=30, ban_s=90))
        pages = await edge.with_stamps(edge.pages(SPOT, start, Urgency.DEEP, edge.minute - 120))
        candles = {candle.time: candle for page in pages for candle in page.candles}
        assert bare(candles.values()) == truth(edge.exchange, SPOT, range(start, max(candles) + 60, 60))
        assert edge.exchange.faults.seen() == {"rate_limit": 2}
        assert edge.rest.status()["spot"].errors == {429: 1, 418: 1}


async def test_a_user_is_told_of_a_ban_at_once() -> None:
    async with connected() as edge:
        edge.exchange.faults.add(RateLimit(market="spot", retry_after_s=3000))
        with pytest.raises(UpstreamError) as caught:
            await edge.rest.tickers("spot")
        assert caught.value.status == 429
        with pytest.raises(UpstreamError, match="in cooldown"):
            await edge.rest.tickers("spot")
        assert edge.exchange.faults.seen() == {"rate_limit": 1}, "nothing was sent"
        assert await edge.rest.tickers("futures"), "another host"


async def test_errors_of_the_server_are_passing() -> None:
    async with connected() as edge:
        edge.exchange.faults.add(RestError(status=503, count=2, paths=("klines",)))
        (page,) = await edge.with_stamps(edge.pages(FUTURES, edge.minute - 600, Urgency.REPAIR, edge.minute - 300))
        assert len(page.candles) == 5
        assert edge.rest.status()["futures"].errors == {503: 2}


async def test_the_weight_of_a_minute_stays_below_our_share_and_a_repair_goes_first() -> None:
    async with connected(share=0.02) as edge:
        limit, start = 0.02 * 6000, edge.minute - 600
        most = 0

        async def watch() -> None:
            nonlocal most
            async with HttpClient() as session:
                while True:
                    async with session.get(edge.exchange.http_url + "/sim/state") as response:
                        most = max(most, (await response.json())["rest_weight_used"])

        watching = asyncio.create_task(watch())
        deep = [asyncio.create_task(edge.pages(SPOT, start, Urgency.DEEP, start + 60)) for _ in range(90)]
        await until(lambda: edge.rest.status() != {}, "requests are sent")
        repair = asyncio.create_task(edge.pages(SPOT, start, Urgency.REPAIR, start + 60))
        await edge.with_stamps(repair)
        assert not all(task.done() for task in deep)
        await edge.with_stamps(asyncio.gather(*deep))
        watching.cancel()
        await asyncio.wait([watching])
        assert edge.rest.status()["spot"].errors == {}
        assert 0 < most <= limit + 2 * MAX_IN_FLIGHT


async def test_a_futures_symbol_that_was_listed_again_has_nothing_before_by_the_exchanges_own_word() -> None:
    async with connected(speed=300.0) as edge:
        fault = edge.exchange.faults.add(Delist(symbols=("BTCUSDT",), market="futures"))
        last = edge.minute
        await until(lambda: edge.minute >= last + 5 * 60, "it is not traded")
        edge.exchange.faults.remove(fault)
        again = edge.minute + 60
        await until(lambda: edge.minute >= again + 2 * 60, "it is traded again")
        unlisted, page = await edge.with_stamps(edge.pages(FUTURES, last, Urgency.REPAIR))
        (span,) = unlisted.empty
        assert unlisted.proof == NOT_LISTED_BEFORE
        assert span.start == last + 60
        assert span == Span(last + 60, page.candles[0].time)
        assert truth(edge.exchange, FUTURES, range(*span, 60)) == []
        assert page.candles[: len(unlisted.candles)] == unlisted.candles

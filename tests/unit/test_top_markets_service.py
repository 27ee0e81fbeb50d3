"""TopMarkets: ranking, cache, shared requests, refusals and streams."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from klinesync.core.errors import Rejected, UpstreamError
from klinesync.exchanges.exchange import Listing, Ticker
from klinesync.market_data import top_markets
from klinesync.market_data.event_streams import RateLimited
from klinesync.market_data.top_markets import (
    FORCED_MOST,
    FORCED_PER_S,
    STALE_MOST_S,
    USUAL_TOP,
    TopAnswer,
    TopLimits,
    TopMarkets,
    TopQuery,
    ranked,
)
from klinesync.runtime.clock import SYSTEM_CLOCK
from support.clocks import ManualClock
from support.fake_exchange import FakeExchange, registry_of

QUERY = TopQuery("binance", "spot", "USDT", 2)


def listing(base: str, quote: str = "USDT", status: str = "TRADING") -> Listing:
    return Listing(f"{base}/{quote}", base + quote, base, quote, status)


def ticker(symbol_id: str, volume: float, price: float = 2.0) -> Ticker:
    return Ticker(symbol_id, price, volume, -1.5)


class Exchange(FakeExchange):
    """The exchange's answers, on clocks that the test moves."""

    def __init__(self, limits: TopLimits = USUAL_TOP) -> None:
        super().__init__()
        self.listed = {one.symbol: one for one in (listing("A"), listing("B"), listing("C"), listing("A", "BTC"))}
        self.day = [ticker("AUSDT", 1.0), ticker("BUSDT", 3.0), ticker("CUSDT", 2.0), ticker("ABTC", 9.0)]
        self.asked = 0
        self.error: UpstreamError | None = None
        self.silent = asyncio.Event()
        self.silent.set()
        self.clock = ManualClock(100.0)
        self.top = TopMarkets(registry_of(self, clock=self.clock), clock=self.clock, limits=limits)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        return self.listed

    async def tickers(self, market: str) -> Sequence[Ticker]:
        self.asked += 1
        await self.silent.wait()
        if self.error is not None:
            raise self.error
        return self.day


def symbols(answer: TopAnswer) -> list[str]:
    return [item.symbol for item in answer.items]


def test_symbols_are_ranked_by_quote_volume_for_each_quote_asset() -> None:
    listed = {
        one.symbol: one
        for one in (
            listing("A"),
            listing("B"),
            listing("C"),
            listing("GONE", status="BREAK"),
            listing("QUIET"),
            listing("A", "BTC"),
        )
    }
    day = [ticker("CUSDT", 5.0), ticker("AUSDT", 5.0), ticker("BUSDT", 7.0), ticker("GONEUSDT", 9.0), ticker("X", 1.0)]
    found = ranked("binance", "spot", listed, [*day, ticker("ABTC", 0.0)])
    assert [item.symbol for item in found["USDT"]] == ["B/USDT", "A/USDT", "C/USDT"]
    assert [item.symbol for item in found["BTC"]] == ["A/BTC"]
    assert found["USDT"][0] == top_markets.TopMarket(
        "binance", "spot", "B/USDT", "BUSDT", "B", "USDT", last_price=2.0, quote_volume=7.0, price_change_percent=-1.5
    )


@pytest.mark.parametrize("name", ["A B/USDT", "A:B/USDT", "/USDT", "A/USDT:USDT", "A", "A\n/USDT", "x" * 200 + "/USDT"])
def test_only_what_a_series_id_can_name_is_ranked(name: str) -> None:
    odd = replace(listing("A"), symbol=name, symbol_id="ODD")
    found = ranked("binance", "spot", {name: odd, "B/USDT": listing("B")}, [ticker("ODD", 9.0), ticker("BUSDT", 1.0)])
    assert [item.symbol for items in found.values() for item in items] == ["B/USDT"]


async def test_an_answer_is_cached_until_it_expires() -> None:
    exchange = Exchange()
    exchange.silent.clear()
    tasks = [asyncio.create_task(exchange.top.top(QUERY)) for _ in range(5)]
    while not exchange.asked:
        await asyncio.sleep(0)
    exchange.silent.set()
    first, *others = await asyncio.gather(*tasks)
    assert (symbols(first), first.cached, first.stale, first.generated_at_ms) == (
        ["B/USDT", "C/USDT"],
        False,
        False,
        100_000,
    )
    assert others == [first] * 4
    exchange.clock.now_s += USUAL_TOP.tickers_ttl_s
    again = await exchange.top.top(TopQuery("binance", "spot", "BTC", 20))
    assert (symbols(again), again.cached, again.generated_at_ms, exchange.asked) == (["A/BTC"], True, 100_000, 1)
    exchange.clock.now_s += 0.1
    assert not (await exchange.top.top(QUERY)).cached
    assert (await exchange.top.top(TopQuery("binance", "futures", "NONE", 20))).items == ()
    assert exchange.asked == 3


async def test_force_requests_a_new_answer_and_is_rate_limited() -> None:
    exchange = Exchange()
    for count in range(FORCED_MOST):
        answer = await exchange.top.top(QUERY, force=True)
        assert not answer.cached
        assert exchange.asked == count + 1
    exchange.clock.now_s += 1.0
    with pytest.raises(RateLimited, match="force is for") as caught:
        await exchange.top.top(QUERY, force=True)
    assert caught.value.retry_after_s == FORCED_PER_S - 1.0
    assert (await exchange.top.top(QUERY)).cached
    exchange.clock.now_s += FORCED_PER_S - 1.0
    assert not (await exchange.top.top(QUERY, force=True)).cached


async def test_a_stale_answer_is_served_while_the_exchange_cannot_be_asked() -> None:
    exchange = Exchange()
    exchange.error = UpstreamError("it is down", 503)
    with pytest.raises(UpstreamError, match="it is down"):
        await exchange.top.top(QUERY)
    with pytest.raises(UpstreamError, match="it is down"):
        await exchange.top.top(QUERY)
    assert exchange.asked == 1, "after a failure it is left alone"
    exchange.error = None
    exchange.clock.now_s += USUAL_TOP.failed_pause_s
    fresh = await exchange.top.top(QUERY)
    exchange.error = UpstreamError("it is down again", 503)
    exchange.clock.now_s += USUAL_TOP.tickers_ttl_s + 1.0
    stale = await exchange.top.top(QUERY)
    assert (stale.items, stale.cached, stale.stale) == (fresh.items, True, True)
    assert stale.generated_at_ms == fresh.generated_at_ms
    exchange.clock.now_s += STALE_MOST_S
    with pytest.raises(UpstreamError, match="it is down again"):
        await exchange.top.top(QUERY)


async def test_requests_to_an_exchange_that_does_not_answer_time_out() -> None:
    exchange = Exchange(TopLimits(ask_timeout_s=0.01))
    exchange.silent.clear()
    answers = await asyncio.gather(*(exchange.top.top(QUERY) for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == [
        "binance spot cannot be asked for its tickers: no answer within 0.01 s"
    ] * 3
    assert exchange.asked == 1


@pytest.mark.parametrize("query", [TopQuery("okx", "spot", "USDT", 1), TopQuery("binance", "options", "USDT", 1)])
async def test_an_unknown_exchange_or_market_is_refused(query: TopQuery) -> None:
    exchange = Exchange()
    with pytest.raises(Rejected, match="is not known"):
        await exchange.top.top(query)
    assert exchange.asked == 0


async def test_a_stream_sends_changes_and_the_beginning_of_trouble() -> None:
    exchange = Exchange()
    limits = TopLimits(keep_alive_s=0.02, tickers_ttl_s=0.0, failed_pause_s=0.0)
    real = TopMarkets(registry_of(exchange), clock=SYSTEM_CLOCK, limits=limits)
    following = real.follow(QUERY, 0.05)

    async def said() -> TopAnswer | UpstreamError:
        async with asyncio.timeout(60):
            while (event := await anext(following)) is None:
                pass
            return event

    first = await said()
    assert isinstance(first, TopAnswer)
    assert symbols(first) == ["B/USDT", "C/USDT"]
    assert await anext(following) is None, "nothing has changed"
    exchange.error = UpstreamError("it is down")
    trouble = await said()
    assert isinstance(trouble, UpstreamError)
    asked = exchange.asked
    async with asyncio.timeout(60):
        while exchange.asked < asked + 3:
            assert await anext(following) is None, "trouble is told once"
    exchange.error = None
    exchange.day = [ticker("AUSDT", 10.0)]
    second = await said()
    assert isinstance(second, TopAnswer)
    assert symbols(second) == ["A/USDT"]
    exchange.error = UpstreamError("it is down again")
    assert isinstance(await said(), UpstreamError), "the next trouble is told again"
    real.end()
    async with asyncio.timeout(60):
        assert [event async for event in following if event is not None] == []


async def test_a_stream_ends_after_the_requested_number_of_answers() -> None:
    exchange = Exchange()
    (only,) = [event async for event in exchange.top.follow(QUERY, 1.0, max_events=1)]
    assert only == replace(await exchange.top.top(QUERY), cached=False)


async def test_streams_end_at_once_also_while_they_wait() -> None:
    exchange = Exchange()
    resting = exchange.top.follow(QUERY, 3600.0)
    await anext(resting)
    exchange.silent.clear()
    exchange.clock.now_s += 60.0
    asking = asyncio.create_task(exchange.top.top(QUERY, force=True))
    looking = asyncio.create_task(anext(resting, None))
    first = asyncio.create_task(anext(exchange.top.follow(TopQuery("binance", "futures", "USDT", 1), 1.0), None))
    while exchange.asked < 3:
        await asyncio.sleep(0)
    exchange.top.end()
    async with asyncio.timeout(60):
        assert (await asking).stale
        assert await looking is None
        assert await first is None
    with pytest.raises(UpstreamError, match="the service stops"):
        await exchange.top.top(TopQuery("binance", "futures", "USDT", 1), force=True)


async def test_open_streams_are_limited_and_release_their_place() -> None:
    top = Exchange(TopLimits(streams=2)).top
    with top.streams.place():
        with top.streams.place(), pytest.raises(RateLimited, match="2 streams"), top.streams.place():
            pytest.fail("a third place")
        with top.streams.place():
            pass

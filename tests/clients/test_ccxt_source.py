"""CcxtExchange over unmodified ccxt: its binance class against the simulated exchange, under another name."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import random
import time
import urllib.request
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import ccxt.pro
import pytest
from simulated_exchange import SPOT, USDM, Market, SimulatedExchange, closed_by, simulated_exchange

from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.ccxt.client import CcxtClient
from klinesync.exchanges.ccxt.exchange import CcxtExchange
from klinesync.exchanges.ccxt.installed import Ccxt
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.ccxt.timings import CcxtTimings
from klinesync.exchanges.ccxt.turn_queue import Kind
from klinesync.exchanges.exchange import Errand, KlineEvent, StreamCallbacks, Urgency
from klinesync.runtime.exchange_clock import ExchangeClock

EACH_MARKET = pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)
OURS = {SPOT: "spot", USDM: "futures"}
WAIT_S = 60
# A minute of the simulated exchange lasts half a second of ours, so the waits for its end are shortened likewise.
MARGIN_S = 0.5
POLL_S = 0.1


def series_of(market: Market, symbol: str = "BTC/USDT", timeframe: str = "1m") -> SeriesId:
    return SeriesId.parse(f"simex:{OURS[market]}:{symbol}:{timeframe}")


def candles_of(rows: Iterable[list[object]]) -> list[Candle]:
    """REST rows, as the exchange sent them, as candles."""
    return [Candle(int(row[0]) // 1000, *(float(value) for value in row[1:6])) for row in rows]


@dataclass
class Told:
    """What a connection reports, in order."""

    clocks: dict[str, ExchangeClock]
    events: list[KlineEvent] = field(default_factory=list)
    attached: list[SeriesId] = field(default_factory=list)
    lost: list[SeriesId] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def callbacks(self) -> StreamCallbacks:
        return StreamCallbacks(self._attached, self._event, self._lost)

    def _attached(self, series: SeriesId) -> None:
        self.attached.append(series)
        self.changed.set()

    def _event(self, event: KlineEvent) -> None:
        # As the supervisor does: a stamp of a frame tells the exchange's time.
        self.clocks[event.series.market].learn(event.event_ms, time.monotonic())
        self.events.append(event)
        self.changed.set()

    def _lost(self, series: Iterable[SeriesId]) -> None:
        self.lost += series
        self.changed.set()

    def closed(self, series: SeriesId) -> list[Candle]:
        return [event.candle for event in self.events if event.closed and event.series == series]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


def pointed(exchange: SimulatedExchange, **abilities: bool | None) -> Callable[[str], Ccxt]:
    """ccxt's binance class against the simulated exchange; `abilities` take some of its methods away."""

    def make(name: str) -> Ccxt:
        http, ws = exchange.http_url, exchange.ws_url
        made = ccxt.pro.binance(
            {
                "enableRateLimit": True,
                "timeout": 5000,
                "urls": {
                    "api": {
                        "public": f"{http}/api/v3",
                        "fapiPublic": f"{http}/fapi/v1",
                        "ws": {"spot": f"{ws}/stream/ws", "linear": f"{ws}/ws"},
                    }
                },
                "options": {"fetchMarkets": {"types": ["spot", "linear"]}},
            }
        )
        made.has.update(abilities)
        return made

    return make


@dataclass
class Rig:
    source: CcxtExchange
    told: Told


@asynccontextmanager
async def rig(exchange: SimulatedExchange, **abilities: bool | None) -> AsyncIterator[Rig]:
    """Run a source in a thread of its own until the end of the block."""
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    thread = CcxtThread()
    source = CcxtExchange(
        CcxtClient("simex", thread, monotonic=time.monotonic, make=pointed(exchange, **abilities)),
        clocks=clocks,
        final_margin_s=MARGIN_S,
        monotonic=time.monotonic,
        rng=random.Random(1),
        timings=CcxtTimings(poll_least_s=POLL_S),
    )
    try:
        yield Rig(source, Told(clocks))
    finally:
        await source.close()
        await thread.stop()


@asynccontextmanager
async def following(setup: Rig, *wanted: SeriesId, tell_time: bool = True) -> AsyncIterator[None]:
    connection = setup.source.connection(wanted[0].market, setup.told.callbacks())
    for series in wanted:
        connection.want(series)

    async def ask_time() -> None:  # as the supervisor does where no stream tells the time
        while tell_time:
            await asyncio.sleep(1.0)
            with suppress(UpstreamError):
                await setup.source.now_ms(wanted[0].market)

    tasks = [asyncio.create_task(connection.run()), asyncio.create_task(ask_time())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def fault(exchange: SimulatedExchange, **rule: object) -> AsyncIterator[None]:
    """Put a fault of the exchange in force for the block."""
    number = await asyncio.to_thread(control, exchange, "POST", "/sim/faults", rule)
    try:
        yield
    finally:
        await asyncio.to_thread(control, exchange, "DELETE", f"/sim/faults/{number['id']}")


def control(exchange: SimulatedExchange, method: str, path: str, body: object = None) -> dict[str, int]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{exchange.http_url}{path}", data, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.loads(answer.read() or b"{}")


@pytest.fixture(scope="module")
def faulty() -> Iterator[SimulatedExchange]:
    """An exchange for this module alone, so that tests may change its market permanently."""
    with simulated_exchange("--speed", "120", "--symbols", "8") as running:
        yield running


async def read(
    source: CcxtExchange, series: SeriesId, start: int, end: int | None = None, errand: Errand | None = None
) -> tuple[list[Candle], list[Span]]:
    candles: list[Candle] = []
    empty: list[Span] = []
    async for page in source.history(series, start, errand or Errand(Urgency.SWEEP), end):
        if candles and page.candles and page.candles[0].time == candles[-1].time:
            assert page.candles[0] == candles.pop()  # pages overlap by a row
        candles += page.candles
        empty += page.empty
    return candles, empty


@EACH_MARKET
async def test_history_equals_the_exchanges_rows_page_by_page(exchange: SimulatedExchange, market: Market) -> None:
    series = series_of(market)
    async with rig(exchange) as setup:
        now_ms = await setup.source.now_ms(series.market)
        start = now_ms // 60_000 * 60 - 3000 * 60
        candles, empty = await read(setup.source, series, start)
    truth = exchange.rows(market, "BTCUSDT", "1m", start * 1000, candles[-1].time * 1000)
    assert candles == candles_of(truth)
    assert len(candles) >= 3000
    assert empty == []


@EACH_MARKET
async def test_history_up_to_a_time_ends_with_it(exchange: SimulatedExchange, market: Market) -> None:
    series = series_of(market, "ETH/USDT", "1h")
    async with rig(exchange) as setup:
        now_ms = await setup.source.now_ms(series.market)
        end = now_ms // 3_600_000 * 3600 - 100 * 3600
        start = end - 10 * 3600
        candles, _ = await read(setup.source, series, start, end)
    assert candles == candles_of(exchange.rows(market, "ETHUSDT", "1h", start * 1000, end * 1000 - 1))
    assert len(candles) == 10


async def test_a_candle_that_is_open_is_no_history(exchange: SimulatedExchange) -> None:
    series = series_of(SPOT)
    async with rig(exchange) as setup:
        start = await setup.source.now_ms("spot") // 60_000 * 60 - 60
        before_ms = exchange.now_ms(SPOT)
        candles, _ = await read(setup.source, series, start)
        after_ms = exchange.now_ms(SPOT)
    assert all((candle.time + 60) * 1000 <= after_ms for candle in candles)
    truth = candles_of(closed_by(exchange.rows(SPOT, "BTCUSDT", "1m", start * 1000, before_ms), before_ms))
    assert candles[: len(truth)] == truth


@EACH_MARKET
@pytest.mark.parametrize("watch", [True, None], ids=["watched", "polled"])
async def test_live_candles_are_closed_in_order_with_the_exchanges_values(
    exchange: SimulatedExchange, market: Market, watch: bool | None
) -> None:
    both = [series_of(market), series_of(market, "ETH/USDT")]
    async with rig(exchange, watchOHLCV=watch) as setup:
        async with following(setup, *both):
            await setup.told.until(lambda: all(len(setup.told.closed(series)) >= 6 for series in both))
        assert sorted(setup.told.attached, key=str) == both
        for series in both:
            closed = setup.told.closed(series)
            assert [candle.time for candle in closed] == [closed[0].time + 60 * n for n in range(len(closed))]
            symbol = series.symbol.replace("/", "")
            rows = exchange.rows(market, symbol, "1m", closed[0].time * 1000, closed[-1].time * 1000)
            assert closed == candles_of(rows)
            forming = [event.candle for event in setup.told.events if not event.closed and event.series == series]
            assert forming
            last = -1
            for event in setup.told.events:
                if event.series == series:
                    assert event.candle.time > last, "nothing is told of a candle that was closed"
                    last = event.candle.time if event.closed else last


async def test_the_exchanges_time_can_be_that_of_its_servers_answers(calm_exchange: SimulatedExchange) -> None:
    async with rig(calm_exchange, fetchTime=None) as setup:
        now_ms = await setup.source.now_ms("spot")
        # A `Date` counts only as far as the newest row confirms it, and that row may have opened a minute ago.
        assert -1000 <= calm_exchange.now_ms(SPOT) - now_ms < 65_000
        start = now_ms // 60_000 * 60 - 10 * 60
        candles, _ = await read(setup.source, series_of(SPOT), start)
    assert candles == candles_of(calm_exchange.rows(SPOT, "BTCUSDT", "1m", start * 1000, candles[-1].time * 1000))
    assert len(candles) >= 9


async def test_an_unknown_symbol_or_timeframe_is_refused_with_a_sentence(exchange: SimulatedExchange) -> None:
    async with rig(exchange) as setup:
        assert await setup.source.refusal(series_of(SPOT)) is None
        assert await setup.source.refusal(series_of(USDM)) is None
        nope = series_of(USDM, "NOPE/USDT")
        assert await setup.source.refusal(nope) == "simex lists no NOPE/USDT:USDT on its futures market"
        with pytest.raises(UpstreamError, match="lists no") as caught:
            await read(setup.source, nope, 0)
        assert caught.value.status == 400


@EACH_MARKET
async def test_what_the_exchange_lists_and_its_tickers_have_our_names(
    exchange: SimulatedExchange, market: Market
) -> None:
    async with rig(exchange) as setup:
        listings = await setup.source.listings(OURS[market], 60.0)
        tickers = await setup.source.tickers(OURS[market])
    assert {listing.symbol_id for listing in listings.values()} == set(exchange.symbols(market))
    assert listings["BTC/USDT"].trading
    assert {ticker.symbol_id for ticker in tickers} == set(exchange.symbols(market))


@pytest.mark.parametrize("watch", [True, None], ids=["watched", "polled"])
async def test_minutes_that_the_exchange_does_not_have_are_not_invented_and_are_shown_to_be_empty(
    faulty: SimulatedExchange, watch: bool | None
) -> None:
    series = series_of(SPOT)
    async with rig(faulty, watchOHLCV=watch) as setup:
        async with following(setup, series):
            await setup.told.until(lambda: len(setup.told.closed(series)) >= 2)
            async with fault(faulty, kind="outage", minutes=4, symbols=["BTCUSDT"], market="spot"):
                before = len(setup.told.closed(series))

                def passed() -> bool:
                    closed = setup.told.closed(series)[before - 1 :]
                    return any(b.time - a.time > 60 for a, b in itertools.pairwise(closed)) and len(closed) > 6

                await setup.told.until(passed)
        closed = setup.told.closed(series)
        start, last = closed[0].time, closed[-1].time
        candles, empty = await read(setup.source, series, start, last + 60)
    truth = candles_of(faulty.rows(SPOT, "BTCUSDT", "1m", start * 1000, last * 1000))
    assert closed == truth
    assert candles == truth
    holes = [Span(a.time + 60, b.time) for a, b in itertools.pairwise(truth) if b.time - a.time > 60]
    assert empty == holes
    assert sum(hole.end - hole.start for hole in holes) == 240


async def test_an_exchange_that_wants_to_be_left_alone_is_left_alone(faulty: SimulatedExchange) -> None:
    series = series_of(SPOT, "ETH/USDT")
    # No other series sends requests, so that this series' own request is refused.
    async with rig(faulty, watchOHLCV=None) as setup, following(setup, series, tell_time=False):
        await setup.told.until(lambda: len(setup.told.closed(series)) >= 2)
        async with fault(faulty, kind="rate_limit", market="spot", count=1, retry_after_s=3):
            await setup.told.until(lambda: setup.told.lost == [series])
            asked = setup.source.client.requests
            assert 0 < setup.source.client.turns.refused_s <= 5
            for question in (setup.source.now_ms("spot"), read(setup.source, series, 0, errand=Errand(Urgency.READ))):
                with pytest.raises(UpstreamError, match="in cooldown") as caught:
                    await question
                assert caught.value.status == 429
                assert caught.value.retry_after_s is not None
            before = len(setup.told.closed(series))
            assert setup.source.client.requests == asked, "nothing was sent meanwhile"
            await setup.told.until(lambda: len(setup.told.closed(series)) > before)
            assert setup.told.attached == [series, series]


async def test_a_stream_that_is_cut_costs_no_closed_candle(faulty: SimulatedExchange) -> None:
    series = series_of(USDM, "ETH/USDT")
    async with rig(faulty) as setup, following(setup, series):
        await setup.told.until(lambda: len(setup.told.closed(series)) >= 2)
        for _ in range(2):
            control(faulty, "POST", "/sim/faults", {"kind": "disconnect", "market": "futures"})
            before = len(setup.told.events)

            def shown(before: int = before) -> bool:
                news = setup.told.events[before:]
                return sum(event.closed for event in news) >= 3 and not all(event.closed for event in news)

            await setup.told.until(shown)
        closed = setup.told.closed(series)
        assert setup.source.polled == 0
    rows = faulty.rows(USDM, "ETHUSDT", "1m", closed[0].time * 1000, closed[-1].time * 1000)
    # A repeated close is harmless: a new subscription begins with the newest closed candle.
    assert list(dict.fromkeys(closed)) == candles_of(rows)


async def test_a_stream_that_stays_silent_is_made_up_for_by_polls(faulty: SimulatedExchange) -> None:
    series = series_of(SPOT)
    async with rig(faulty) as setup, fault(faulty, kind="silent", market="spot"), following(setup, series):
        await setup.told.until(lambda: setup.source.polled == 1)
        before = len(setup.told.closed(series))
        await setup.told.until(lambda: len(setup.told.closed(series)) >= before + 3)
        closed = setup.told.closed(series)
        assert closed == candles_of(faulty.rows(SPOT, "BTCUSDT", "1m", closed[0].time * 1000, closed[-1].time * 1000))
        assert [event for event in setup.told.events if not event.closed]


@pytest.mark.parametrize("status", [500, 503])
async def test_an_exchange_in_trouble_is_an_upstream_error_and_is_asked_again(
    faulty: SimulatedExchange, status: int
) -> None:
    series = series_of(SPOT)
    async with rig(faulty) as setup:
        assert await setup.source.refusal(series) is None
        async with fault(faulty, kind="rest_error", status=status, market="spot"):
            with pytest.raises(UpstreamError, match="simex"):
                await setup.source.now_ms("spot")
            with pytest.raises(UpstreamError, match="simex"):
                await read(setup.source, series, 0)
        # A failing venue is asked again after a pause; a user's request does not wait for the end of the pause.
        async with asyncio.timeout(60):
            while setup.source.client.turns.held_s(Kind.TIME):
                await asyncio.sleep(0.05)
        assert await setup.source.now_ms("spot")


async def test_two_thousand_of_the_same_list_are_one_request(faulty: SimulatedExchange) -> None:
    async with rig(faulty) as setup:
        await setup.source.abilities()
        await asyncio.gather(*(setup.source.refusal(series_of(SPOT)) for _ in range(2000)))
        assert setup.source.client.requests == 1


async def test_what_is_closed_early_ends_with_an_upstream_error(faulty: SimulatedExchange) -> None:
    async with rig(faulty) as setup:
        assert await setup.source.refusal(series_of(SPOT)) is None
        async with fault(faulty, kind="rest_slow", delay_s=600, market="spot"):
            asked = asyncio.create_task(setup.source.now_ms("spot"))
            await asyncio.sleep(0)
            await setup.source.close()
            with pytest.raises(UpstreamError):
                await asked


def test_no_session_is_left_open(exchange: SimulatedExchange, caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        async with rig(exchange) as setup, following(setup, series_of(SPOT)):
            await setup.told.until(lambda: len(setup.told.closed(series_of(SPOT))) >= 1)

    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(use())
        gc.collect()
    assert [str(setup.message) for setup in caught if issubclass(setup.category, ResourceWarning)] == []
    assert [record.getMessage() for record in caplog.records] == []

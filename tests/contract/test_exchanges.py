"""The contract of `Exchange`, which every entry of the registry fulfils."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from klinesync.core.candle import Candle, check_candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.timings import CcxtTimings
from klinesync.exchanges.exchange import Connection, Errand, Exchange, KlineEvent, StreamCallbacks, Urgency
from klinesync.exchanges.registry import ExchangeEntry, ExchangeRegistry
from klinesync.sim.server import SimConfig, SimServer
from support.fake_exchange import context
from support.simex import Pointed
from support.waiting import until

EXAMPLES = str(Path(__file__).parents[2] / "examples")
SPEED = 60.0
PATIENCE_S = 60.0
MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of the registry under test.

    symbol: one that the exchange lists on its spot market.
    entry: makes the entry, given where the simulated exchange is.
    exchange_time: whether the exchange runs at the simulated exchange's time; else at ours.
    tickers: whether it has a list of tickers.
    """

    name: str
    symbol: str
    entry: Callable[[SimServer], ExchangeEntry]
    exchange_time: bool = True
    tickers: bool = False


def binance(exchange: SimServer) -> ExchangeEntry:
    urls = dict.fromkeys(("spot", "futures"), exchange.ws_url)
    return BinanceEntry(market_routes(exchange.http_url, exchange.http_url), urls)


def ccxt(exchange: SimServer) -> ExchangeEntry:
    return CcxtEntry(makers={"simex": lambda _: Pointed(exchange.http_url)}, timings=CcxtTimings(poll_least_s=0.1))


def wave(_exchange: SimServer) -> ExchangeEntry:
    sys.path.insert(0, EXAMPLES)
    try:
        entry: object = importlib.import_module("wave_exchange").WaveEntry()
    finally:
        sys.path.remove(EXAMPLES)
    assert isinstance(entry, ExchangeEntry)
    return entry


KINDS = (
    Kind("binance", "BTC/USDT", binance, tickers=True),
    Kind("simex", "BTC/USDT", ccxt),
    Kind("wave", "WAVE/USDT", wave, exchange_time=False),
)

# A minute of the other exchanges is a minute of ours, too long for a test.
QUICK = tuple(kind for kind in KINDS if kind.exchange_time)


@dataclass(slots=True)
class World:
    """An exchange of that kind, made by a registry. `sim`: the simulated exchange behind it."""

    kind: Kind
    sim: SimServer
    registry: ExchangeRegistry

    @property
    def exchange(self) -> Exchange:
        return self.registry.exchange(self.kind.name)

    @property
    def series(self) -> SeriesId:
        return SeriesId.parse(f"{self.kind.name}:spot:{self.kind.symbol}:1m")

    async def history(self, start: int, end: int | None = None) -> tuple[list[Candle], list[Span]]:
        """The candles of all pages, each once, and the spans that are proven empty."""
        candles: dict[int, Candle] = {}
        empty: list[Span] = []
        async for page in self.exchange.history(self.series, start, Errand(Urgency.DEEP), end):
            assert page.candles or page.empty
            assert [candle.time for candle in page.candles] == sorted({candle.time for candle in page.candles})
            for candle in page.candles:
                assert candles.setdefault(candle.time, candle) == candle, "pages overlap, and agree"
            empty += page.empty
        return [candles[time] for time in sorted(candles)], empty

    async def minute(self) -> int:
        """The minute that is open on the exchange."""
        return await self.exchange.now_ms("spot") // 1000 // MINUTE_S * MINUTE_S


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    kind: Kind = request.param
    async with SimServer(SimConfig(speed=SPEED, symbols=3)) as sim:
        registry = ExchangeRegistry([kind.entry(sim)], context())
        yield World(kind, sim, registry)
        await registry.close()


def test_an_exchange_is_what_its_name_says_and_has_the_markets_of_its_clocks(world: World) -> None:
    exchange = world.exchange
    assert exchange.name == world.kind.name
    assert "spot" in exchange.clocks
    assert set(exchange.clocks) <= {"spot", "futures"}
    assert exchange.contact("spot").answered_s is None, "nobody is asked before somebody wants to know"
    assert exchange.contact("spot").failure is None


async def test_it_tells_its_time_and_its_clock_learns_it(world: World) -> None:
    clock = context().clock
    before_ms = world.sim.now_ms() if world.kind.exchange_time else int(clock.wall_s() * 1000)
    told_ms = await world.exchange.now_ms("spot")
    after_ms = world.sim.now_ms() if world.kind.exchange_time else int(clock.wall_s() * 1000)
    assert before_ms - 5000 <= told_ms <= after_ms + 5000 * SPEED
    known_ms = world.exchange.clocks["spot"].estimate_ms(clock.monotonic_s())
    assert known_ms is not None
    assert world.exchange.contact("spot").answered_s is not None
    assert world.exchange.contact("spot").failure is None


async def test_it_lists_its_symbols_and_refuses_any_other_series_with_a_sentence(world: World) -> None:
    exchange, series = world.exchange, world.series
    listings = await exchange.listings("spot", 3600.0)
    assert listings[world.kind.symbol].symbol == world.kind.symbol
    assert listings[world.kind.symbol].trading
    assert await exchange.symbol_id(series) == listings[world.kind.symbol].symbol_id
    assert await exchange.refusal(series) is None
    assert await world.registry.known(series)
    other = SeriesId.parse(f"{series.exchange}:spot:NOPE/USDT:1m")
    why = await exchange.refusal(other)
    assert why is not None
    assert " " in why
    assert await exchange.symbol_id(other) is None


async def test_history_is_closed_candles_of_the_span_alone_ascending_without_a_hole_it_does_not_declare(
    world: World,
) -> None:
    now = await world.minute()
    start, end = now - 1200 * MINUTE_S, now - 100 * MINUTE_S
    candles, empty = await world.history(start, end)
    assert all(start <= candle.time < end for candle in candles)
    assert (candles[0].time, candles[-1].time) == (start, end - MINUTE_S)
    for candle in candles:
        check_candle(candle, world.series.timeframe)
    holes = [Span(one.time + MINUTE_S, two.time) for one, two in pairwise(candles) if two.time - one.time > MINUTE_S]
    assert holes == empty


async def test_history_without_an_end_reaches_the_newest_closed_candle_and_no_further(world: World) -> None:
    now = await world.minute()
    candles, _ = await world.history(now - 30 * MINUTE_S)
    assert now - 3 * MINUTE_S <= candles[-1].time
    assert candles[-1].time + MINUTE_S <= await world.exchange.now_ms("spot") / 1000
    again, _ = await world.history(now - 30 * MINUTE_S, candles[-1].time + MINUTE_S)
    assert again == candles, "what was told as closed stays as it is"


@dataclass(slots=True)
class Told:
    """The reports of a connection."""

    attached: list[SeriesId] = field(default_factory=list)
    events: list[KlineEvent] = field(default_factory=list)
    lost: list[SeriesId] = field(default_factory=list)

    @asynccontextmanager
    async def by(self, exchange: Exchange) -> AsyncIterator[Connection]:
        """A connection that runs during the block and records its reports here."""

        callbacks = StreamCallbacks(self.attached.append, self.events.append, self.lost.extend)
        connection = exchange.connection("spot", callbacks)
        running = asyncio.create_task(connection.run())
        try:
            yield connection
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def test_a_connection_carries_what_is_wanted_and_says_so(world: World) -> None:
    told = Told()
    async with told.by(world.exchange) as connection:
        assert connection.idle
        assert connection.room > 0
        connection.want(world.series)
        connection.want(world.series)
        await until(lambda: bool(told.events and told.attached))  # pushes may overtake the acknowledgement
        assert told.attached == [world.series], "each subscription is acknowledged once"
        assert not connection.idle
        status = connection.status
        assert (status.exchange, status.market, status.streams, status.connected) == (world.kind.name, "spot", 1, True)
        connection.unwant(world.series)
        assert connection.idle
    assert all(event.series == world.series for event in told.events)
    times = [event.candle.time for event in told.events if event.closed]
    assert times == sorted(set(times)), "each closed candle once, in order"


@pytest.mark.parametrize("world", QUICK, indirect=True, ids=lambda kind: kind.name)
async def test_what_a_stream_calls_closed_is_what_history_has(world: World) -> None:
    told = Told()
    async with told.by(world.exchange) as connection:
        connection.want(world.series)
        await until(lambda: sum(event.closed for event in told.events) >= 2)
    closed = [event.candle for event in told.events if event.closed]
    await asyncio.sleep(3 * MINUTE_S / SPEED)  # two later rows follow
    candles, _ = await world.history(closed[0].time, closed[-1].time + MINUTE_S)
    assert candles == closed


async def test_a_stream_that_is_renewed_is_acknowledged_again(world: World) -> None:
    told = Told()
    async with told.by(world.exchange) as connection:
        connection.want(world.series)
        await until(lambda: len(told.attached) == 1)
        connection.renew(world.series)
        await until(lambda: len(told.attached) == 2)
        connection.reconnect()
        await until(lambda: len(told.attached) == 3)


async def test_tickers_are_told_or_refused_with_a_sentence(world: World) -> None:
    if not world.kind.tickers:
        with pytest.raises(UpstreamError, match=f"{world.kind.name} has no list of tickers") as told:
            await world.exchange.tickers("spot")
        assert told.value.status == 400
    else:
        tickers = await world.exchange.tickers("spot")
        assert {ticker.symbol_id for ticker in tickers} >= {
            listing.symbol_id for listing in (await world.exchange.listings("spot", 3600.0)).values() if listing.trading
        }


async def test_the_budget_counts_what_was_asked_and_a_series_takes_a_part_of_it(world: World) -> None:
    exchange = world.exchange
    assert exchange.rest() == {}, "nothing was asked"
    await exchange.now_ms("spot")
    await world.history(await world.minute() - 10 * MINUTE_S)
    for status in exchange.rest().values():
        assert status.requests > 0
        assert status.errors == {}
        assert (status.under_way, sum(status.waiting.values()), status.blocked_s) == (0, 0, 0.0)
    assert 0.0 <= exchange.load(world.series) <= 1.0
    assert world.kind.name in exchange.too_many(world.series, 1000)


async def test_an_exchange_that_nobody_used_is_closed_without_a_sound(world: World) -> None:
    assert world.exchange.streams().keys() <= world.exchange.clocks.keys()
    await world.exchange.close()

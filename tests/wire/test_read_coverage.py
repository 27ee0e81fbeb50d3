"""Reads request the candles that they lack: the service and the simulated exchange, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.derived import fold
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.timings import LONGEST_BLOCK_S, RestTimings
from klinesync.exchanges.exchange import Urgency
from klinesync.history.pending import RetryPolicy
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.runtime.clock import SystemClock
from klinesync.sim.faults import Fault, RateLimit
from klinesync.sim.generator import LISTED_DAYS
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from support.running_service import Service, retrying, running_service
from support.upstream import complete, truth
from support.waiting import until

SPOT = SeriesId.parse("binance:spot:ETH/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:ETH/USDT:1m")
SPOT_5M = SeriesId.parse("binance:spot:ETH/USDT:5m")
SPOT_1H = SeriesId.parse("binance:spot:ETH/USDT:1h")
START = 1_700_000_130
NEWEST = START // 60 * 60 - 60  # the last candle closed at the start, for long enough to be final
PATIENCE_S = 30.0


class Exchange(SimServer):
    """The simulated exchange, which records the start of requests for klines by market; answers wait until `open`."""

    def __init__(self, config: SimConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[str, int]] = []
        self.open = asyncio.Event()
        self.open.set()

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        answer = super()._rest_of(market)

        async def rest(request: web.Request) -> web.Response:
            if request.match_info["path"] == "klines":
                self.asked.append((market, int(request.query["startTime"]) // 1000))
                await self.open.wait()
            return await answer(request)

        return rest

    async def advance(self, seconds: int) -> None:
        """Let that many seconds pass at once."""
        async with aiohttp.ClientSession() as http:
            body = {"advance_s": seconds}
            async with http.post(self.http_url + "/sim/clock", json=body) as response:
                assert response.status == 200


@dataclass(frozen=True, slots=True)
class Reading:
    """A service with coverage of reads, and its exchange."""

    service: Service
    exchange: Exchange

    async def page(self, series: SeriesId, **params: int) -> list[Candle]:
        status, answer = await self.service.get("/api/market/candles", series_id=str(series), **params)
        assert status == 200, answer
        rows = answer["candles"]
        assert isinstance(rows, list)
        return [Candle(*row.values()) for row in rows]

    async def until_page(self, holds: Callable[[list[Candle]], bool], series: SeriesId, **params: int) -> list[Candle]:
        """The page, once it satisfies the condition; polled."""
        candles: list[Candle] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not holds(candles := await self.page(series, **params)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            edges = (candles[0].time, candles[-1].time) if candles else ()
            raise AssertionError(f"{len(candles)} candles {edges}; asked: {self.exchange.asked[-5:]}") from None
        return candles

    async def settled(self, series: SeriesId) -> None:
        """Wait until nothing of the series is in flight or waits."""
        backfill = self.service.runtime.backfill
        assert backfill is not None
        await until(lambda: not backfill.working_on(series), "nobody is at work")

    async def health(self, series: SeriesId) -> dict[str, object]:
        status, answer = await self.service.get("/api/market/health", series_id=str(series))
        assert status == 200, answer
        return answer

    def truth(self, series: SeriesId, first: int, end: int) -> list[Candle]:
        return truth(self.exchange, series, range(first, end, 60))


@asynccontextmanager
async def covered(
    store: Path,
    exchange: SimServer | None,
    *,
    max_candles: int = 2000,
    around: Surroundings | None = None,
    **flags: str,
) -> AsyncIterator[Service]:
    """A service with coverage of reads, which follows subscribed series alone."""
    given = {"enable_whitelist_ingest": "off", "audit_interval_s": "0"} | flags
    given["market_auto_tail_backfill_max_candles"] = str(max_candles)
    around = around or Surroundings()
    # The exchange does not report a jump of its clock: its time is requested again soon.
    around = replace(around, tuning=replace(around.tuning, clock_age_s=0.2))
    async with running_service(store, exchange, None, around, **given) as service:
        yield service


@asynccontextmanager
async def reading(
    tmp_path: Path,
    *,
    max_candles: int = 2000,
    speed: float = 1.0,
    start: int = START,
    listed_days: int = LISTED_DAYS,
    around: Surroundings | None = None,
    **flags: str,
) -> AsyncIterator[Reading]:
    async with (
        Exchange(SimConfig(symbols=3, start=start, speed=speed, listed_days=listed_days)) as exchange,
        covered(tmp_path / "store.sqlite", exchange, max_candles=max_candles, around=around, **flags) as service,
    ):
        yield Reading(service, exchange)


@pytest.mark.parametrize("series", [SPOT, FUTURES], ids=str)
async def test_the_tail_of_a_series_that_is_not_followed_is_stored_for_the_next_read(
    series: SeriesId, tmp_path: Path
) -> None:
    async with reading(tmp_path, around=retrying(0.2)) as world:
        assert await world.page(series) == [], "it does not wait"
        first = NEWEST + 60 - 2000 * 60
        candles = await world.until_page(lambda page: page[-1:] == world.truth(series, NEWEST, NEWEST + 60), series)
        assert candles == world.truth(series, NEWEST + 60 - 500 * 60, NEWEST + 60)
        health = await world.health(series)
        assert health["status"] == "green", health
        backfill = health["backfill"]
        assert isinstance(backfill, dict)
        assert (backfill["reason"], backfill["start_missing_candles"]) == ("read", 2000)
        # A later read requests new candles from the stored head on.
        world.exchange.asked.clear()
        await world.exchange.advance(7200)
        await world.until_page(lambda page: page[-1].time == NEWEST + 7200, series)
        whole = await world.page(series, since=0, limit=5000)
        assert whole == world.truth(series, first, NEWEST + 7260)
        assert world.exchange.asked == [(series.market, NEWEST)]
        assert world.service.runtime.supervisors.jobs_state() == [], "nothing is followed for it"


async def test_nothing_is_requested_for_a_current_series(tmp_path: Path) -> None:
    async with reading(tmp_path, around=retrying(0.0), max_candles=50) as world:
        await world.until_page(lambda page: len(page) == 50, SPOT, limit=50)
        asked = len(world.exchange.asked)
        for _ in range(20):
            await world.page(SPOT, limit=50)
            await world.page(SPOT, since=0, limit=50)
        assert len(world.exchange.asked) == asked


async def test_two_thousand_reads_of_one_tail_make_one_request(tmp_path: Path) -> None:
    async with reading(tmp_path, max_candles=500) as world:
        exchange, service = world.exchange, world.service
        exchange.open.clear()
        connector = aiohttp.TCPConnector(limit=500)
        async with aiohttp.ClientSession(connector=connector) as users:
            url = service.url + "/api/market/candles"

            async def read(series: SeriesId) -> int:
                async with users.get(url, params={"series_id": str(series), "limit": 5}) as response:
                    return len((await response.json())["candles"])

            # All reads are answered while the request is in flight.
            pages = await asyncio.gather(*(read((SPOT, SPOT_5M)[number % 2]) for number in range(2000)))
            assert set(pages) == {0}
            await until(lambda: bool(exchange.asked), "the exchange is asked")
            exchange.open.set()
            await world.until_page(lambda page: len(page) == 500, SPOT)
            pages = await asyncio.gather(*(read(SPOT) for _ in range(200)))
            assert set(pages) == {5}
        assert exchange.asked == [("spot", NEWEST + 60 - 500 * 60)]


async def test_a_tail_beyond_the_limit_of_a_read_leaves_a_gap_that_is_healed(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with Exchange(SimConfig(symbols=3, start=START)) as exchange:
        old = truth(exchange, SPOT, range(NEWEST - 6000 * 60, NEWEST - 5000 * 60, 60))
        async with covered(store, exchange, max_candles=300) as service:
            await service.runtime.market_data.ingest_candles_closed(SPOT, old)
            world = Reading(service, exchange)
            assert await world.page(SPOT, limit=5) == old[-5:]
            await world.until_page(lambda page: page[-1].time == NEWEST, SPOT, limit=300)
            assert exchange.asked[0] == ("spot", NEWEST + 60 - 300 * 60)
            await world.settled(SPOT)
            whole = await world.page(SPOT, since=old[0].time - 60, limit=5000)
            whole += await world.page(SPOT, since=whole[-1].time, limit=5000)
            assert whole == world.truth(SPOT, old[0].time, NEWEST + 60)
            assert (await world.health(SPOT))["status"] == "green"


@pytest.mark.parametrize("series", [SPOT, FUTURES], ids=str)
async def test_scrolling_back_ends_at_the_listing_and_requests_nothing_then(series: SeriesId, tmp_path: Path) -> None:
    listing = (START // 86_400 - 3) * 86_400
    async with reading(tmp_path, around=retrying(0.2), max_candles=1500, listed_days=3) as world:
        page = await world.until_page(lambda page: page[-1:] == world.truth(series, NEWEST, NEWEST + 60), series)
        candles = page
        while page:
            before = page[0].time
            due = min(500, (before - listing) // 60)
            page = await world.until_page(lambda page, due=due: len(page) == due, series, before=before)  # type: ignore[misc]
            candles = page + candles
        assert candles == world.truth(series, listing, NEWEST + 60)
        assert len(candles) > 5000
        # A read from right before the write of a page may request a few candles more, as may the first to the listing.
        assert await world.page(series, before=listing) == []
        await world.settled(series)
        asked = len(world.exchange.asked)
        assert asked <= 26, "a page or two for each request"
        for _ in range(10):
            assert await world.page(series, before=listing) == []
            assert await world.page(series, before=listing + 600, limit=100) == candles[:10]
            assert len(await world.page(series, before=NEWEST - 3600, limit=5000)) == 5000
            await asyncio.sleep(0.05)  # longer than the cooldown, in total
        await world.settled(series)
        assert len(world.exchange.asked) == asked, (listing, world.exchange.asked[-4:])


async def test_a_read_of_a_derived_series_requests_its_base(tmp_path: Path) -> None:
    async with reading(tmp_path, max_candles=700, derived_native_candles="0") as world:
        assert await world.page(SPOT_1H, limit=30) == []

        def right(page: list[Candle]) -> bool:
            return len(page) == 30

        candles = await world.until_page(right, SPOT_1H, limit=30)
        end = NEWEST // 3600 * 3600
        first = end - 30 * 3600
        hour, five = Timeframe.parse("1h"), Timeframe.parse("5m")
        base = world.truth(SPOT, first, end)
        quarters = fold(Timeframe.parse("15m"), fold(five, base))
        assert candles == fold(hour, quarters)
        assert await world.page(SPOT, since=first - 60, limit=2000) == world.truth(SPOT, first, NEWEST + 60)
        older = await world.until_page(lambda page: len(page) == 24, SPOT_1H, before=first, limit=24)
        assert [candle.time for candle in older] == list(range(first - 24 * 3600, first, 3600))


class Later(SystemClock):
    """The monotonic clock after the first retry delay."""

    def monotonic_s(self) -> float:
        return super().monotonic_s() + 15.0


async def test_an_attempt_is_followed_by_a_cooldown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reading(tmp_path, max_candles=100) as world:
        await world.until_page(lambda page: len(page) == 100, SPOT, limit=100)
        await world.exchange.advance(600)
        asked = len(world.exchange.asked)
        for _ in range(50):
            assert (await world.page(SPOT, limit=100))[-1].time == NEWEST
        assert len(world.exchange.asked) == asked
        history = world.service.runtime.backfill
        monkeypatch.setattr(history, "_ports", replace(history._ports, monotonic=Later().monotonic_s))
        # A clock that jumped is believed after several answers; each attempt takes one.
        monkeypatch.setattr(history._queue, "_retries", RetryPolicy(Backoff(0.2, 300.0)))
        await world.until_page(lambda page: page[-1].time == NEWEST + 600, SPOT, limit=100)
        assert len(world.exchange.asked) == asked + 1


async def test_a_ban_during_a_read_keeps_the_candles_before_and_delays_the_rest(tmp_path: Path) -> None:
    blocks = RestTimings(longest_block_s={**LONGEST_BLOCK_S, Urgency.READ: 0.1})
    around = retrying(0.05, tuning=Tuning(binance_rest=blocks))
    async with reading(tmp_path, around=around, max_candles=2500) as world:
        # The first page is answered; then 429, and a further request is banned. Requests without a symbol do not count:
        # on a busy machine the time may be requested again.
        fault: Fault = RateLimit(symbols=("ETHUSDT",), after=1, count=1, retry_after_s=4, ban_s=9.0)
        world.exchange.faults.add(fault)
        first = NEWEST + 60 - 2500 * 60
        second = first + 999 * 60  # the last of the first page
        right = world.truth(SPOT, first, NEWEST + 60)
        seen = []

        def over(page: list[Candle]) -> bool:
            if page not in seen:
                seen.append(page)
            return page == right

        await world.until_page(over, SPOT, since=0, limit=5000)
        assert len(seen[0]) == 0
        assert 999 < len(seen[1]) < len(right), "what came before is served meanwhile"
        assert all(page == right[: len(page)] for page in seen), "and no page has a hole"
        # Continuous reads with a short cooldown cause no request before the ban ends.
        starts = [time for _, time in world.exchange.asked]
        assert sorted(set(starts)) == [first, second, second + 999 * 60]
        assert len(starts) <= 5


async def test_stored_candles_are_served_at_once_while_the_exchange_is_unreachable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store.sqlite"
    async with Exchange(SimConfig(symbols=3, start=START)) as exchange:
        candles = truth(exchange, SPOT, range(NEWEST - 6000, NEWEST, 60))
    async with covered(store, None) as service:
        world = Reading(service, exchange)
        await service.runtime.market_data.ingest_candles_closed(SPOT, candles)
        for _ in range(20):
            assert await world.page(SPOT, limit=1000) == candles
            assert await world.page(SPOT, before=candles[0].time) == []
            assert await world.page(FUTURES) == []
        await until(lambda: "its tail cannot be read" in caplog.text, "it is said why nothing comes")
        assert await world.page(SPOT, limit=1000) == candles


async def test_unlisted_symbols_and_unknown_exchanges_cost_no_request(tmp_path: Path) -> None:
    async with reading(tmp_path, around=retrying(0.0)) as world:
        gone = SeriesId.parse("binance:spot:GONE/USDT:1m")
        other = SeriesId.parse("kraken:spot:BTC/USD:1m")
        minute = [Candle(NEWEST - 600, 1.0, 2.0, 0.5, 1.5, 1.0)]
        for series in (gone, other):
            await world.service.runtime.market_data.ingest_candles_closed(series, minute)
            for _ in range(10):
                assert await world.page(series) == minute
        status, _ = await world.service.get("/api/market/candles", series_id="binance:spot:NO/SUCH:1m")
        assert status == 404
        # Later requests are answered, and there were no others.
        await world.until_page(lambda page: page != [], SPOT)
        assert {time for _, time in world.exchange.asked} >= {NEWEST + 60 - 2000 * 60}
        assert not any(time > NEWEST - 700 and time <= NEWEST - 600 for _, time in world.exchange.asked)


@dataclass(slots=True)
class Follower:
    """The messages of a series to a WebSocket client."""

    closed: list[Candle] = field(default_factory=list)
    gaps: int = 0

    async def follow(self, service: Service, series: SeriesId) -> None:
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(series), "since": 0})
            async for message in socket:
                said = message.json()
                if said["type"] == "candle_closed" and not said.get("revised"):
                    self.closed.append(Candle(*said["candle"].values()))
                self.gaps += said["type"] == "gap"


@pytest.mark.parametrize("head_start", [0, 1, 3], ids=["with the follow", "soon after it", "later"])
async def test_a_read_and_a_follow_at_the_same_time_leave_no_duplicate_and_no_gap(
    head_start: int, tmp_path: Path
) -> None:
    async with reading(tmp_path, speed=60, max_candles=2000, startup_kline_sync_target_candles="2000") as world:
        world.exchange.open.clear()
        follower = Follower()
        following = asyncio.create_task(follower.follow(world.service, SPOT))
        try:
            for _ in range(head_start):
                await world.service.get("/api/market/whitelist")
            await asyncio.gather(*(world.page(SPOT) for _ in range(20)))
            await until(lambda: SPOT in world.service.runtime.supervisors.followed(), "it is followed")
            world.exchange.open.set()
            await until(lambda: len(follower.closed) > 2002, "live candles come")
            whole = (await complete(world.service, world.exchange, SPOT))[SPOT]
        finally:
            following.cancel()
            await asyncio.wait([following])
        times = [candle.time for candle in follower.closed]
        assert times == sorted(set(times)), "each once, ascending"
        assert times == list(range(times[0], times[-1] + 60, 60)), "no hole"
        assert follower.gaps == 0
        assert len(whole) >= 2000
        health = await world.health(SPOT)
        assert health["gaps"] == {"unknown": 0, "healing": 0, "confirmed_empty": 0, "lost": 0}

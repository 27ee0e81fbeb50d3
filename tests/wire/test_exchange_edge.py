"""The exchange has every known fault, over real sockets: the store finally equals the traded candles."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle, Gap, System, Update
from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance import requests as binance_requests
from klinesync.exchanges.binance import streams as binance_ws
from klinesync.ingest import audit, followed, listing_watch, liveness, market_watch, supervisor
from klinesync.market_data import known_series
from klinesync.sim.faults import (
    ClockSkew,
    Delist,
    Disconnect,
    DropClosed,
    Duplicate,
    LateClosed,
    Malformed,
    Outage,
    RateLimit,
    RefuseConnect,
    Reorder,
    RestError,
    RestStale,
    Revise,
    ServerShutdown,
    Silent,
    Unlisted,
)
from klinesync.sim.rest import RestAnswer
from klinesync.sim.rest_request import RestRequest
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from support.running_service import Service, running_service
from support.upstream import complete, passed, stored, truth, until

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
SPOT_ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
FUTURES_ETH = SeriesId.parse("binance:futures:ETH/USDT:1m")
ALL = (SPOT, SPOT_ETH, FUTURES, FUTURES_ETH)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange runs fast in these tests, so delays by the monotonic clock are shorter."""
    monkeypatch.setattr(market_watch, "CLOCK_AGE_S", 0.5)
    monkeypatch.setattr(followed, "ATTACH_WAIT_S", 1.0)
    monkeypatch.setattr(liveness, "IN_FLIGHT_S", 0.5)
    monkeypatch.setattr(followed, "SUSPECT_LISTINGS_AGE_S", 1.0)
    monkeypatch.setattr(listing_watch, "LISTINGS_PAUSE_S", 0.2)
    monkeypatch.setattr(followed, "FRUITLESS", Backoff(0.2, 300.0))
    monkeypatch.setattr(binance_ws, "ROTATE_CHECK_S", 0.2)
    monkeypatch.setattr(binance_ws, "OVERLAP_LEAST_S", 0.5)


@asynccontextmanager
async def following(
    tmp_path: Path, *followed: SeriesId, speed: float = 60.0, symbols: int = 2, **flags: str
) -> AsyncIterator[tuple[SimServer, Service]]:
    """A service that follows these series: caught up, with live streams."""
    given = {"startup_kline_sync_target_candles": "20", "audit_interval_s": "0"} | flags
    async with (
        SimServer(SimConfig(speed=speed, symbols=symbols)) as exchange,
        running_service(
            tmp_path / "store.sqlite", exchange, whitelist=",".join(map(str, followed)), **given
        ) as service,
    ):
        await until(lambda: all(state(service, one) == "live" for one in followed), "all streams live")
        yield exchange, service


def state(service: Service, series: SeriesId) -> str:
    return service.runtime.supervisors.status(series).state


class Listener:
    """A client that records all messages of a series."""

    def __init__(self, service: Service, series: SeriesId) -> None:
        self.updates: list[Update] = []
        self._task = asyncio.create_task(self._listen(service, series))

    async def _listen(self, service: Service, series: SeriesId) -> None:
        async with aclosing(follow(service.url, series, 0)) as updates:
            async for update in updates:
                self.updates.append(update)

    @property
    def closed(self) -> list[int]:
        return [
            update.candle.time for update in self.updates if isinstance(update, ClosedCandle) and not update.revised
        ]

    def events(self) -> list[str]:
        """The messages about its stream; reads may have caused backfills."""
        told = [update.event for update in self.updates if isinstance(update, System)]
        return [event for event in told if event.startswith("stream.")]

    def gaps(self) -> list[Gap]:
        return [update for update in self.updates if isinstance(update, Gap)]

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def listening(service: Service, series: SeriesId) -> AsyncIterator[Listener]:
    listener = Listener(service, series)
    try:
        await until(lambda: bool(listener.closed), "a first candle")
        yield listener
    finally:
        await listener.end()


def every_minute(closed: list[int]) -> bool:
    return closed == list(range(closed[0], closed[-1] + 60, 60))


async def test_acknowledged_streams_without_frames_are_stale_and_replaced_by_rest(
    tmp_path: Path,
) -> None:
    async with following(tmp_path, *ALL) as (exchange, service), listening(service, SPOT) as client:
        fault = exchange.faults.add(Silent())
        await until(lambda: all(state(service, one) == "rest_fallback" for one in (SPOT, FUTURES)), "REST stands in")
        await until(lambda: client.events() == ["stream.stale", "stream.rest_fallback"], "the client is told")
        detail = service.runtime.supervisors.status(SPOT).detail
        assert detail is not None
        assert "REST shows" in detail
        await passed(exchange, 240)
        await complete(service, exchange, *ALL)
        exchange.faults.remove(fault)
        await until(lambda: all(state(service, one) == "live" for one in (SPOT, FUTURES)), "live again")
        await until(lambda: client.events()[2:] == ["stream.live"], "the client is told, once")
        await complete(service, exchange, *ALL)
        assert every_minute(client.closed)
        assert not client.gaps()


async def test_one_silent_stream_of_three_hundred_is_subscribed_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "RESUBSCRIBE", Backoff(1.0, 900.0))
    async with SimServer(SimConfig(speed=30, symbols=300)) as exchange:
        names = [f"binance:spot:{one.symbol.base}/{one.symbol.quote}:1m" for one in exchange.exchange.spot.values()]
        exchange.faults.add(Silent(symbols=("ETHUSDT",), market="spot"))
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=",".join(names), startup_kline_sync_target_candles="5"
        ) as service:
            await until(lambda: state(service, SPOT_ETH) == "rest_fallback", "the silent one is found")
            others = {state(service, SeriesId.parse(name)) for name in names if name != str(SPOT_ETH)}
            assert others <= {"live", "subscribed"}
            await passed(exchange, 60)
            await complete(service, exchange, SPOT, SPOT_ETH)
            before = len(service.runtime.supervisors.followed())
            await passed(exchange, 60)
            others = {state(service, SeriesId.parse(name)) for name in names if name != str(SPOT_ETH)}
            assert before == 300
            assert others == {"live"}, "subscribing one anew costs the others nothing"


async def test_a_connection_whose_streams_are_all_silent_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "RESUBSCRIBE", Backoff(0.5, 900.0))
    async with following(tmp_path, SPOT, SPOT_ETH) as (exchange, service), listening(service, SPOT) as client:
        exchange.faults.add(Silent(connections="present"))
        await until(lambda: "stream.stale" in client.events(), "stale")
        await until(lambda: state(service, SPOT) == "live", "live on a new connection")
        await complete(service, exchange, SPOT, SPOT_ETH)
        assert every_minute(client.closed)


async def test_a_cut_over_the_minutes_end_loses_nothing(tmp_path: Path) -> None:
    """From :59.8 to :01.2 of the exchange's minute no frame comes: the final frame of that minute is lost."""
    async with following(tmp_path, *ALL, speed=10) as (exchange, service), listening(service, SPOT) as client:
        for _ in range(2):
            await until(lambda: exchange.now_ms() % 60_000 >= 59_800, "the end of a minute")
            minute = exchange.now_ms() // 60_000 * 60
            fault = exchange.faults.add(RefuseConnect())
            exchange.faults.add(Disconnect())
            await until(lambda minute=minute: exchange.now_ms() >= (minute + 61) * 1000 + 200, "the cut ends")  # type: ignore[misc]
            exchange.faults.remove(fault)
            await passed(exchange, 45)
        await complete(service, exchange, *ALL)
        await until(lambda: client.closed[-1] >= minute, "the client has it too")
        assert every_minute(client.closed)
        assert not client.gaps()


@pytest.mark.parametrize("watched", [True, False], ids=["with a subscriber", "without"])
async def test_candles_of_three_minutes_without_the_exchange_are_read_later(tmp_path: Path, watched: bool) -> None:
    async with following(tmp_path, *ALL, speed=60) as (exchange, service):
        client = Listener(service, SPOT) if watched else None
        if client is not None:
            await until(lambda: bool(client.closed), "a first candle")
        faults = [exchange.faults.add(fault) for fault in (RefuseConnect(reset=True), RestError(status=503))]
        exchange.faults.add(Disconnect())
        await passed(exchange, 180)
        assert state(service, SPOT) == "reconnecting"
        for fault in faults:
            exchange.faults.remove(fault)
        await until(lambda: all(state(service, one) == "live" for one in ALL), "live again")
        await complete(service, exchange, *ALL)
        if client is not None:
            assert every_minute(client.closed)
            await client.end()


async def test_without_any_stream_closed_candles_come_from_rest(tmp_path: Path) -> None:
    async with SimServer(SimConfig(speed=60, symbols=2, faults=(RefuseConnect(),))) as exchange:
        names = ",".join(map(str, ALL))
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=names, startup_kline_sync_target_candles="5"
        ) as service:
            await until(lambda: set(service.runtime.supervisors.followed()) == set(ALL), "followed")
            await passed(exchange, 300)
            await complete(service, exchange, *ALL)


@pytest.mark.parametrize("market", ["spot", "futures"])
async def test_after_a_server_shutdown_another_connection_has_taken_over_before_the_first_ends(
    market: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: list[SeriesId] = []
    original = supervisor.IngestSupervisor._attached

    def noted(self: supervisor.IngestSupervisor, series: SeriesId) -> None:
        attached.append(series)
        original(self, series)

    monkeypatch.setattr(supervisor.IngestSupervisor, "_attached", noted)
    series = SPOT if market == "spot" else FUTURES
    async with following(tmp_path, series, speed=20) as (exchange, service), listening(service, series) as client:
        (before,) = connections(exchange)
        exchange.faults.add(ServerShutdown(delay_s=60.0))
        await until(lambda: before not in connections(exchange), "the first has ended")
        (after,) = connections(exchange)
        assert after != before
        await passed(exchange, 70)
        await complete(service, exchange, series)
        assert every_minute(client.closed)
        assert attached == [series], "it was never without its stream"
        assert state(service, series) == "live"


def connections(exchange: SimServer) -> list[int]:
    return [connection.number for connection in exchange._connections.values() if not connection.closing]


async def test_a_connection_is_replaced_before_its_day_is_over(tmp_path: Path) -> None:
    async with following(tmp_path, SPOT, FUTURES, speed=20) as (exchange, service), listening(service, SPOT) as client:
        before = set(connections(exchange))
        exchange._clock.advance(23.2 * 3600, time.monotonic())
        exchange._wake.set()
        await until(lambda: not before & set(connections(exchange)), "both are replaced")
        assert len(connections(exchange)) == 2
        await complete(service, exchange, SPOT, FUTURES)
        after = set(connections(exchange))
        exchange._clock.advance(1.5 * 3600, time.monotonic())
        exchange._wake.set()
        await passed(exchange, 30)
        await complete(service, exchange, SPOT, FUTURES)
        assert set(connections(exchange)) == after, "the day of the new ones has just begun"
        assert every_minute(client.closed)


async def test_a_final_frame_two_seconds_late_is_waited_for_though_rest_has_the_row(tmp_path: Path) -> None:
    async with following(tmp_path, FUTURES, speed=20) as (exchange, service), listening(service, FUTURES) as client:
        exchange.faults.add(LateClosed(delay_s=2.0, market="futures"))
        await passed(exchange, 150)
        await complete(service, exchange, FUTURES)
        assert every_minute(client.closed)
        assert client.events() == []
        assert not [update for update in client.updates if isinstance(update, ClosedCandle) and update.revised]


async def test_candles_of_lost_final_frames_come_from_rest(tmp_path: Path) -> None:
    async with following(tmp_path, SPOT, FUTURES, speed=60) as (exchange, service), listening(service, SPOT) as client:
        exchange.faults.add(DropClosed(every=2))
        await passed(exchange, 300)
        await complete(service, exchange, SPOT, FUTURES)
        assert every_minute(client.closed)
        assert not client.gaps()


async def test_rows_that_rest_shows_too_early_are_corrected_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REST lags by more than the margin, and final frames are lost: stored candles are not final then."""
    monkeypatch.setattr(audit, "AUDIT_AGAIN_S", 0.2)
    async with following(tmp_path, SPOT, speed=30, audit_interval_s="0.1") as (exchange, service):
        faults = [exchange.faults.add(RestStale(delay_s=45.0)), exchange.faults.add(DropClosed())]
        await passed(exchange, 240)
        async with asyncio.timeout(60):  # otherwise this test proves nothing
            while (wrong := await stored(service, SPOT)) == truth(exchange, SPOT, [candle.time for candle in wrong]):
                await asyncio.sleep(0.02)
        for fault in faults:
            exchange.faults.remove(fault)
        await passed(exchange, 180)
        await complete(service, exchange, SPOT)


async def test_a_ban_during_the_start_of_five_hundred_series_delays_history_and_no_stream(
    tmp_path: Path,
) -> None:
    async with SimServer(SimConfig(speed=20, symbols=500)) as exchange:
        names = [f"binance:spot:{one.symbol.base}/{one.symbol.quote}:1m" for one in exchange.exchange.spot.values()]
        exchange.faults.add(RateLimit(after=150, count=1, retry_after_s=10, ban_s=60.0))
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=",".join(names), startup_kline_sync_target_candles="30"
        ) as service:
            followed = [SeriesId.parse(name) for name in names]
            await until(lambda: len(service.runtime.supervisors.followed()) == 500, "followed")
            await until(lambda: exchange.faults.seen().get("rate_limit", 0) >= 1, "the limit is met")
            await passed(exchange, 30)
            met = exchange.faults.seen()["rate_limit"]
            assert met <= 8, "nothing is asked before Retry-After has passed, save what was under way"
            assert sum(state(service, one) == "live" for one in followed) > 400, "streams do not mind"
            await complete(service, exchange, *followed[::50])
            await until(lambda: service.runtime.startup.progress().done == 500, "all are up to date")


async def test_duplicate_swapped_and_invalid_frames_change_nothing(tmp_path: Path) -> None:
    async with following(tmp_path, *ALL, speed=40) as (exchange, service), listening(service, SPOT) as client:
        for fault in (Duplicate(every=3), Reorder(every=5), Malformed(every=2)):
            exchange.faults.add(fault)
        await passed(exchange, 300)
        seen = exchange.faults.seen()
        assert min(seen[kind] for kind in ("duplicate", "reorder", "malformed")) > 10
        await complete(service, exchange, *ALL)
        assert every_minute(client.closed)
        assert all(state(service, one) == "live" for one in ALL)
        links = service.runtime.supervisors.connections_state()
        assert sum(link.quarantined for link in links) > 10
        assert all(link.reconnects == 0 for link in links), "the connections live on"


async def test_a_stall_in_mid_candle_promotes_nothing_when_our_clock_passes_the_boundary(tmp_path: Path) -> None:
    async with following(tmp_path, SPOT, speed=30) as (exchange, service), listening(service, SPOT) as client:
        await until(lambda: 20_000 < exchange.now_ms() % 60_000 < 40_000, "the middle of a minute")
        exchange._clock.pause(True, time.monotonic())
        await complete(service, exchange, SPOT)
        open_ = exchange.now_ms() // 60_000 * 60
        # By this machine's clock several minutes of the exchange would have passed.
        clock = service.runtime.registry.clocks["binance", "spot"]
        loop = asyncio.get_running_loop()
        asked = exchange._api.weight_used(exchange.now_ms())
        until_s = loop.time() + 6.0
        await until(lambda: loop.time() > until_s, "six seconds")
        assert exchange._api.weight_used(exchange.now_ms()) - asked < 40, "REST is asked ever less often"
        assert clock.rest_ms is not None
        assert clock.rest_ms <= exchange.now_ms()
        assert client.closed[-1] < open_
        assert (await stored(service, SPOT))[-1].time < open_
        exchange._clock.pause(False, time.monotonic())
        exchange._wake.set()
        await passed(exchange, 120)
        await complete(service, exchange, SPOT)
        assert every_minute(client.closed)


async def test_the_hosts_time_zone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        async with following(tmp_path, SPOT, FUTURES) as (exchange, service):
            await passed(exchange, 180)
            await complete(service, exchange, SPOT, FUTURES)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("skew_s", [90.0, -90.0])
async def test_an_exchange_is_followed_by_its_own_clock(skew_s: float, tmp_path: Path) -> None:
    async with SimServer(SimConfig(speed=60, symbols=2, faults=(ClockSkew(skew_s=skew_s),))) as exchange:
        names = ",".join(map(str, ALL))
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=names, startup_kline_sync_target_candles="5"
        ) as service:
            await until(lambda: all(state(service, one) == "live" for one in ALL), "all streams live")
            await passed(exchange, 180)
            await complete(service, exchange, *ALL)
            status, health = await service.get("/api/market/health", series_id=str(SPOT))
            assert status == 200
            assert abs(int(str(health["now_time"])) - exchange.now_ms() // 1000) <= 60


async def test_an_outage_of_the_exchange_is_confirmed_empty(tmp_path: Path) -> None:
    async with following(tmp_path, *ALL) as (exchange, service), listening(service, FUTURES) as client:
        exchange.faults.add(Outage(minutes=5))
        await passed(exchange, 540)
        await complete(service, exchange, *ALL)
        await until(lambda: len(client.gaps()) == 1, "the client is told of the hole")
        (gap,) = client.gaps()
        assert gap.actual - gap.expected == 300
        assert gap.state == "confirmed_empty"


async def test_a_silent_revision_is_found_by_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "AUDIT_AGAIN_S", 0.2)
    async with (
        following(tmp_path, SPOT, FUTURES, audit_interval_s="0.1") as (exchange, service),
        listening(service, FUTURES) as client,
    ):
        before = await complete(service, exchange, FUTURES)

        def revised() -> list[Candle]:
            return [update.candle for update in client.updates if isinstance(update, ClosedCandle) and update.revised]

        for attempt in range(10):
            # The newest candle is revised. A service that did not have the candle yet never saw other values.
            exchange.faults.add(Revise(market="futures"))
            with suppress(AssertionError):
                await until(lambda: revised() != [], f"told, attempt {attempt}", patience_s=6.0)
                break
        await complete(service, exchange, SPOT, FUTURES)
        assert revised(), "ten revisions, and none was found"
        assert revised() == truth(exchange, FUTURES, [candle.time for candle in revised()])
        assert not set(revised()) & set(before[FUTURES])


def klines_asked(exchange: SimServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The symbols of requests for klines from now on."""
    asked: list[str] = []
    answer = exchange._api.answer

    def counted(request: RestRequest, now_ms: int) -> RestAnswer:
        if request.path == "klines":
            asked.append(request.params["symbol"])
        return answer(request, now_ms)

    monkeypatch.setattr(exchange._api, "answer", counted)
    return asked


@pytest.mark.parametrize("gone", [False, True], ids=["halted", "not listed any more"])
@pytest.mark.parametrize("series", [SPOT_ETH, FUTURES_ETH], ids=["spot", "futures"])
async def test_a_delisted_symbol_is_reported_paused_and_followed_again_when_listed(
    series: SeriesId, gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, *ALL) as (exchange, service), listening(service, series) as client:
        asked = klines_asked(exchange, monkeypatch)
        market: Market = "spot" if series is SPOT_ETH else "futures"
        fault = exchange.faults.add(Delist(symbols=("ETHUSDT",), market=market, gone=gone))
        await until(lambda: state(service, series) == "delisted", "its end is noticed")
        detail = service.runtime.supervisors.status(series).detail or ""
        assert ("not list" in detail) if gone else ("BREAK" in detail or "SETTLING" in detail)
        asked.clear()
        await passed(exchange, 300)
        other = sum(name == "ETHUSDT" for name in asked)
        assert other <= 5 + 3, "five minutes of the other market's symbol, and hardly anything in vain"
        await complete(service, exchange, *(one for one in ALL if one != series))
        before = await stored(service, series)
        assert before == truth(exchange, series, [candle.time for candle in before])
        exchange.faults.remove(fault)
        await until(lambda: state(service, series) == "live", "it is followed again")
        assert "last candle before" in (service.runtime.supervisors.status(series).detail or "")
        await passed(exchange, 120)
        await until(lambda: len(client.gaps()) == 1, "the client is told of the span between")
        assert client.gaps()[0].state == "confirmed_empty"
        # A relisted future has no earlier history at the exchange; the store keeps it.
        after = [candle for candle in await stored(service, series) if candle not in before]
        assert after == truth(exchange, series, range(after[0].time, after[-1].time + 60, 60))
        assert after[-1].time >= exchange.now_ms() // 1000 - 180
        assert [candle for candle in await stored(service, series) if candle.time <= before[-1].time] == before
        assert client.events() == ["stream.delisted", "stream.subscribed", "stream.live"]


async def test_gaps_of_a_delisted_symbol_are_filled_once_it_is_traded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(tmp_path, SPOT_ETH) as (exchange, service):
        await complete(service, exchange, SPOT_ETH)
        fault = exchange.faults.add(Delist(symbols=("ETHUSDT",), market="spot", gone=True))
        await until(lambda: state(service, SPOT_ETH) == "delisted", "its end is noticed")
        first = (await stored(service, SPOT_ETH))[0].time
        old = range(first - 30 * 60, first - 20 * 60, 60)
        await service.runtime.market_data.ingest_candles_closed(SPOT_ETH, truth(exchange, SPOT_ETH, old))
        service.runtime.backfill.request_declared(SPOT_ETH)
        await until(lambda: "its gaps are left as they are" in caplog.text, "nobody has anything of it")
        exchange.faults.remove(fault)

        async def filled() -> bool:
            times = [candle.time for candle in await stored(service, SPOT_ETH) if candle.time <= first]
            return times == list(range(old.start, first + 60, 60))

        async with asyncio.timeout(60):
            while not await filled():
                await asyncio.sleep(0.1)


async def test_a_symbol_that_is_not_listed_yet_is_followed_from_its_first_candle_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SimServer(SimConfig(speed=60, symbols=2)) as exchange:
        fault = exchange.faults.add(Unlisted(symbols=("ETHUSDT",)))
        asked = klines_asked(exchange, monkeypatch)
        names = ",".join(map(str, ALL))
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=names, startup_kline_sync_target_candles="5"
        ) as service:
            unlisted = (SPOT_ETH, FUTURES_ETH)
            await until(lambda: all(state(service, one) == "delisted" for one in unlisted), "they are named")
            await passed(exchange, 240)
            assert asked.count("ETHUSDT") <= 6
            exchange.faults.remove(fault)
            await until(lambda: all(state(service, one) == "live" for one in unlisted), "they are followed")
            await passed(exchange, 180)
            whole = await complete(service, exchange, *ALL)
            for series in unlisted:
                listings = exchange.exchange.spot if series.market == "spot" else exchange.exchange.futures
                assert whole[series][0].time == listings["ETHUSDT"].tape.first_s


async def test_an_exchange_that_accepts_connections_and_never_answers_delays_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_series, "TIMEOUT_S", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))  # the system accepts connections, and no process answers
    port = silent.getsockname()[1]
    flags = {"binance_spot_rest_url": f"http://127.0.0.1:{port}", "binance_spot_ws_url": f"ws://127.0.0.1:{port}"}
    with silent:
        async with (
            running_service(tmp_path / "s", None, **flags) as service,
            asyncio.timeout(binance_requests.TIMEOUT_S - 1),  # a request takes longer to fail
        ):
            _, page = await service.get("/api/market/candles", series_id=str(SPOT))
            assert page["candles"] == []
            client = await service.http.ws_connect(service.url.replace("http", "ws") + "/ws/market")
            for name in ("ETH", "BNB", "XRP"):
                await client.send_json({"type": "subscribe", "series_id": f"binance:spot:{name}/USDT:1m", "ack": True})
            await client.send_json({"type": "ping"})
            kinds = [(await client.receive_json())["type"] for _ in range(7)]
            await client.close()
        assert kinds == [*["subscribed", "caught_up"] * 3, "pong"]

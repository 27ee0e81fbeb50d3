"""On-demand series over real sockets: a job starts with the first subscriber, and stops after its idle time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from klinesync.core.series_id import SeriesId
from klinesync.ingest.timings import FollowTimings
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service
from support.upstream import complete
from support.waiting import until

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
ETH_5M = SeriesId.parse("binance:spot:ETH/USDT:5m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")


QUICK = Surroundings(tuning=Tuning(follow=FollowTimings(tick_s=0.05)))


@asynccontextmanager
async def serving(tmp_path: Path, symbols: int = 3, **flags: str) -> AsyncIterator[tuple[SimServer, Service]]:
    given = {
        "whitelist": str(BTC),
        "startup_kline_sync_target_candles": "5",
        "ondemand_idle_ttl_s": "0.3",
        "audit_interval_s": "0",
    } | flags
    async with (
        SimServer(SimConfig(speed=60, symbols=symbols)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, None, QUICK, **given) as service,
    ):
        await until(lambda: BTC in service.runtime.supervisors.followed(), "the whitelist is followed")
        yield exchange, service


def jobs(service: Service) -> dict[str, int]:
    """References by series."""
    return {job.series_id: job.refcount for job in service.runtime.supervisors.jobs_state()}


async def ask(socket: aiohttp.ClientWebSocketResponse, series: SeriesId, kind: str = "subscribe") -> None:
    await socket.send_json({"type": kind, "series_id": str(series), "ack": True, "since": 0})


async def heard(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, object]:
    """The next message of that type."""
    while True:
        message: dict[str, object] = await socket.receive_json(timeout=30)
        if message["type"] == kind:
            return message


async def test_a_job_starts_with_the_first_subscriber_and_stops_after_its_idle_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as (exchange, service):
        async with (
            service.http.ws_connect(service.url + "/ws/market") as one,
            service.http.ws_connect(service.url + "/ws/market") as two,
        ):
            await ask(one, ETH)
            await heard(one, "candle_closed")
            await heard(one, "candle_forming")
            await ask(two, ETH)
            await heard(two, "subscribed")
            assert jobs(service) == {str(BTC): 0, str(ETH): 2}
            await complete(service, exchange, ETH)
            await ask(one, ETH, "unsubscribe")
            await until(lambda: jobs(service)[str(ETH)] == 1, "one reference is left")
            # The other client disconnects.
        await until(lambda: jobs(service).get(str(ETH)) == 0, "nobody watches")
        assert ETH in service.runtime.supervisors.followed(), "in case somebody comes back"
        await until(lambda: jobs(service) == {str(BTC): 0}, "it has stopped, and the whitelist goes on")
        await until(lambda: streams(exchange) == 1, "its stream is dropped")


def streams(exchange: SimServer) -> int:
    return sum(
        len(connection.listener.session.names)
        for connection in exchange._connections.values()
        if not connection.closing
    )


async def test_a_subscription_of_a_derived_series_starts_its_base(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, startup_kline_sync_target_candles="30") as (_, service),
        service.http.ws_connect(service.url + "/ws/market") as socket,
    ):
        await ask(socket, ETH_5M)
        await ask(socket, ETH)
        closed = await heard(socket, "candle_closed")
        while closed["series_id"] != str(ETH_5M):
            closed = await heard(socket, "candle_closed")
        assert jobs(service)[str(ETH)] == 2


async def test_a_subscriber_within_the_idle_time_keeps_the_job_running(tmp_path: Path) -> None:
    async with serving(tmp_path, ondemand_idle_ttl_s="30") as (_, service):
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await ask(socket, ETH)
            await heard(socket, "candle_forming")
        await until(lambda: jobs(service).get(str(ETH)) == 0, "nobody watches")
        (idle,) = [job for job in service.runtime.supervisors.jobs_state() if job.series_id == str(ETH)]
        assert idle.idle_since is not None
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await ask(socket, ETH)
            assert (await heard(socket, "subscribed"))["stream"] == "live"


async def test_at_capacity_the_longest_idle_job_is_stopped_or_the_subscription_refused(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, ondemand_max_jobs="1", ondemand_idle_ttl_s="300") as (_, service),
        service.http.ws_connect(service.url + "/ws/market") as socket,
    ):
        await ask(socket, ETH)
        await heard(socket, "subscribed")
        await ask(socket, FUTURES)
        refused = await heard(socket, "error")
        assert (refused["code"], refused["message"]) == ("capacity", "ondemand_ingest_capacity")
        assert refused["series_id"] == str(FUTURES)
        await ask(socket, BTC)
        await heard(socket, "subscribed")  # the whitelist does not count as capacity
        await ask(socket, ETH, "unsubscribe")
        await ask(socket, FUTURES)
        assert (await heard(socket, "subscribed"))["series_id"] == str(FUTURES)
        assert jobs(service) == {str(BTC): 1, str(FUTURES): 1}


@pytest.mark.parametrize("name", ["binance:spot:NO/SUCH:1m", "binance:margin:BTC/USDT:1m", "kraken:spot:BTC/USD:1m"])
async def test_an_unlisted_series_is_refused_and_starts_nothing(name: str, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, ondemand_max_jobs="1") as (_, service),
        service.http.ws_connect(service.url + "/ws/market") as socket,
    ):
        await socket.send_json({"type": "subscribe", "series_id": name})
        refused = await heard(socket, "error")
        assert refused["code"] in ("unknown_series", "bad_request")
        assert jobs(service) == {str(BTC): 0}


async def test_a_thousand_flaps_at_capacity_leave_no_reference_and_no_job(tmp_path: Path) -> None:
    """Clients that subscribe, unsubscribe, subscribe twice and disconnect in any state."""
    rng = random.Random(5)
    async with serving(tmp_path, symbols=8, ondemand_max_jobs="3", ondemand_idle_ttl_s="0.1") as (exchange, service):
        names = [
            SeriesId.parse(f"binance:spot:{one.symbol.base}/{one.symbol.quote}:{code}")
            for one in exchange.exchange.spot.values()
            for code in ("1m", "5m")
        ]

        async def flap(count: int) -> None:
            while count > 0:
                async with service.http.ws_connect(service.url + "/ws/market") as socket:
                    for _ in range(min(count, rng.randint(1, 20))):
                        count -= 1
                        await ask(socket, rng.choice(names), rng.choice(("subscribe", "subscribe", "unsubscribe")))
                        if rng.random() < 0.1:
                            await asyncio.sleep(0)
                    if rng.random() < 0.5:
                        transport = socket._response.connection
                        if transport is not None and transport.transport is not None:
                            transport.transport.abort()

        await asyncio.gather(*(flap(125) for _ in range(8)))
        await until(lambda: jobs(service) == {str(BTC): 0}, "no job is left but the whitelist's")
        assert service.runtime.supervisors.followed() == [BTC]
        await until(lambda: streams(exchange) == 1, "no stream is left either")
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await ask(socket, names[3])
            await heard(socket, "subscribed")


async def test_switched_off_subscriptions_start_nothing(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, enable_ondemand_ingest="off") as (_, service),
        service.http.ws_connect(service.url + "/ws/market") as socket,
    ):
        await ask(socket, ETH)
        assert (await heard(socket, "subscribed"))["stream"] == "off"
        assert jobs(service) == {str(BTC): 0}


async def test_a_timeframe_that_is_neither_base_nor_derived_has_a_stream_of_its_own(tmp_path: Path) -> None:
    three = SeriesId.parse("binance:spot:ETH/USDT:3m")
    async with serving(tmp_path) as (_, service), service.http.ws_connect(service.url + "/ws/market") as socket:
        await ask(socket, three)
        await heard(socket, "candle_forming")
        assert jobs(service)[str(three)] == 1

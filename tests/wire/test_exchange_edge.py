"""Faults of connections, over real sockets: the store finally equals the traded candles. Other faults of the exchange
are simulated under virtual time (`sim/test_exchange_faults.py`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle, Gap, System, Update
from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance import requests as binance_requests
from klinesync.exchanges.binance.timings import StreamTimings
from klinesync.ingest import supervisor
from klinesync.ingest.timings import FollowTimings
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data.known_series import KnownLimits
from klinesync.sim.faults import (
    Disconnect,
    Duplicate,
    Malformed,
    RefuseConnect,
    Reorder,
    RestError,
    ServerShutdown,
)
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service
from support.upstream import complete, passed
from support.waiting import until

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
SPOT_ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
FUTURES_ETH = SeriesId.parse("binance:futures:ETH/USDT:1m")
ALL = (SPOT, SPOT_ETH, FUTURES, FUTURES_ETH)


# The exchange runs fast in these tests: delays by the monotonic clock are shorter.
QUICK = Tuning(
    follow=FollowTimings(
        clock_age_s=0.5,
        attach_wait_s=1.0,
        in_flight_s=0.5,
        fruitless=Backoff(0.2, 300.0),
    ),
    binance_streams=StreamTimings(rotate_check_s=0.2, overlap_least_s=0.5),
)


@asynccontextmanager
async def following(
    tmp_path: Path,
    *followed: SeriesId,
    speed: float = 60.0,
    **flags: str,
) -> AsyncIterator[tuple[SimServer, Service]]:
    """A service that follows these series: caught up, with live streams."""
    given = {"startup_kline_sync_target_candles": "20", "audit_interval_s": "0"} | flags
    async with (
        SimServer(SimConfig(speed=speed, symbols=2)) as exchange,
        running_service(
            tmp_path / "store.sqlite",
            exchange,
            None,
            Surroundings(tuning=QUICK),
            whitelist=",".join(map(str, followed)),
            **given,
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


async def test_an_exchange_that_accepts_connections_and_never_answers_delays_no_client(tmp_path: Path) -> None:
    around = Surroundings(tuning=Tuning(known=KnownLimits(timeout_s=0.2)))
    silent = socket.create_server(("127.0.0.1", 0))  # the system accepts connections, and no process answers
    port = silent.getsockname()[1]
    flags = {"binance_spot_rest_url": f"http://127.0.0.1:{port}", "binance_spot_ws_url": f"ws://127.0.0.1:{port}"}
    with silent:
        async with (
            running_service(tmp_path / "s", None, None, around, **flags) as service,
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

"""Catch-ups of many series on one connection: paced by the client's reading, without delaying other messages."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data import ws_services
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.ws import outbox
from klinesync.ws.outbox import USUAL_CLIENTS, ClientLimits
from klinesync.ws.session import CATCH_UP_MAX_CANDLES
from support.running_service import Service, running_service
from support.waiting import until

NAMES = [f"binance:spot:COIN{number}/USDT:1m" for number in range(12)]
LIVE = "binance:spot:LIVE/USDT:1m"
START = 1_700_000_040
CANDLE = {"open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}


@asynccontextmanager
async def stocked(tmp_path: Path, clients: ClientLimits = USUAL_CLIENTS) -> AsyncIterator[Service]:
    """A service that has a whole catch-up of each series."""
    around = Surroundings(tuning=Tuning(clients=clients))
    async with running_service(tmp_path / "store.sqlite", None, None, around, enable_ondemand_ingest="off") as running:
        for name in NAMES:
            await store(running, name, 0, CATCH_UP_MAX_CANDLES)
        await store(running, LIVE, 0, 1)
        yield running


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with stocked(tmp_path) as running:
        yield running


async def store(service: Service, name: str, first: int, count: int) -> None:
    candles = [{"candle_time": START + 60 * minute} | CANDLE for minute in range(first, first + count)]
    status, answer = await service.post("/api/market/ingest/candles_closed", {"series_id": name, "candles": candles})
    assert status == 200, answer


async def connect(service: Service) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse, socket.socket]:
    """A client with a small receive buffer."""
    opened: list[socket.socket] = []

    def small(address: tuple[object, ...]) -> socket.socket:
        plain = socket.socket(address[0], address[1], address[2])  # type: ignore[arg-type]
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.append(plain)
        return plain

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=small))
    return session, await session.ws_connect(service.url + "/ws/market", max_msg_size=0), opened[0]


def pause(client: aiohttp.ClientWebSocketResponse) -> asyncio.Transport:
    """Stop reading from the socket."""
    connection = client._response.connection  # there is no public method
    assert connection is not None
    transport = connection.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    return transport


async def test_other_messages_of_a_client_do_not_wait_for_its_catch_ups(service: Service) -> None:
    session, client, _ = await connect(service)
    async with session:
        transport = pause(client)
        for name in NAMES:
            await client.send_json({"type": "subscribe", "series_id": name, "since": 0, "ack": True})
        await client.send_json({"type": "unsubscribe", "series_id": NAMES[-1]})
        await client.send_json({"type": "subscribe", "series_id": LIVE})
        await client.send_json({"type": "ping"})
        # The client reads nothing, and yet messages after the catch-ups are handled.
        await until(lambda: service.runtime.hub.watched(SeriesId.parse(LIVE)), "the live series is subscribed")
        [outbox] = [client.outbox for client in service.runtime.hub._clients]
        assert not service.runtime.hub.watched(SeriesId.parse(NAMES[-2])), "its catch-up is not read yet"
        transport.resume_reading()
        got = Counter[str]()
        order = []
        while got["caught_up"] < len(NAMES) - 1:
            message = await client.receive_json(timeout=30)
            got[message["type"]] += 1
            if message["type"] != "candle_closed":
                order.append((message["type"], message.get("series_id")))
        await store(service, LIVE, 1, 1)
        assert (await client.receive_json(timeout=30))["series_id"] == LIVE
        await client.close()
    assert got["candle_closed"] == (len(NAMES) - 1) * CATCH_UP_MAX_CANDLES
    assert order.index(("pong", None)) < order.index(("caught_up", NAMES[-2]))
    assert ("caught_up", NAMES[-1]) not in order
    assert outbox.ended is not None


async def test_catch_ups_alone_never_close_a_client_and_one_page_waits_at_a_time(tmp_path: Path) -> None:
    most_messages = outbox.ROOM_MESSAGES + CATCH_UP_MAX_CANDLES + 2 * len(NAMES) + 1
    async with stocked(tmp_path, ClientLimits(max_messages=most_messages)) as service:
        session, client, _ = await connect(service)
        async with session:
            for name in NAMES:
                await client.send_json({"type": "subscribe", "series_id": name, "since": 0, "ack": True})
            got = Counter[str]()
            most = 0
            while got["caught_up"] < len(NAMES):
                message = await client.receive_json(timeout=30)
                got[message["type"]] += 1
                most = max(most, service.runtime.hub.status.waiting_messages)
            await client.close()
    assert got == {
        "subscribed": len(NAMES),
        "caught_up": len(NAMES),
        "candle_closed": len(NAMES) * CATCH_UP_MAX_CANDLES,
    }
    assert most <= most_messages


MANY = [SeriesId.parse(f"binance:spot:MANY{number}/USDT:1m") for number in range(1000)]


async def test_a_thousand_catch_ups_of_one_connection_hold_one_page_and_do_not_close_it(tmp_path: Path) -> None:
    each = 40
    rows = [Candle(START + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0) for minute in range(each)]
    most_messages = outbox.ROOM_MESSAGES + each + 2 * len(MANY)  # acknowledgements come at once
    around = Surroundings(tuning=Tuning(clients=ClientLimits(max_messages=most_messages)))

    def fill(store: CandleStore) -> None:
        for series in MANY:
            store.write(series, rows, Origin("test", 1))

    async with running_service(tmp_path / "store.sqlite", None, None, around, enable_ondemand_ingest="off") as service:
        await service.runtime._database.write(fill)
        session, client, _ = await connect(service)
        async with session:
            transport = pause(client)
            for series in MANY:
                await client.send_json({"type": "subscribe", "series_id": str(series), "since": 0, "ack": True})
            await client.send_json({"type": "subscribe", "series_id": LIVE})
            await until(lambda: service.runtime.hub.watched(SeriesId.parse(LIVE)), "all is said")
            assert service.runtime.hub.status.waiting_messages <= most_messages
            transport.resume_reading()
            got = Counter[str]()
            while got["caught_up"] < len(MANY):
                message = await client.receive_json(timeout=30)
                got[message["type"]] += 1
            await client.close()
    assert got == {"subscribed": len(MANY), "caught_up": len(MANY), "candle_closed": len(MANY) * each}


async def test_a_waiting_catch_up_that_is_subscribed_again_is_sent_once_from_its_newest_since(
    service: Service,
) -> None:
    session, client, _ = await connect(service)
    last = START + 60 * (CATCH_UP_MAX_CANDLES - 1)
    async with session:
        transport = pause(client)
        for name in NAMES:
            await client.send_json({"type": "subscribe", "series_id": name, "since": 0})
        await client.send_json({"type": "subscribe", "series_id": NAMES[-1], "since": last - 60, "ack": True})
        await client.send_json({"type": "subscribe", "series_id": LIVE})
        await until(lambda: service.runtime.hub.watched(SeriesId.parse(LIVE)), "all is said")
        transport.resume_reading()
        messages = []
        while True:
            message = await client.receive_json(timeout=30)
            if message.get("series_id") == NAMES[-1]:
                messages.append(message)
                if message["type"] == "caught_up":
                    break
        await client.close()
    assert [message["type"] for message in messages] == ["subscribed", "candle_closed", "caught_up"]
    assert messages[1]["candle"]["candle_time"] == last


async def test_a_client_that_leaves_with_waiting_catch_ups_releases_its_references(service: Service) -> None:
    session, client, _ = await connect(service)
    async with session:
        transport = pause(client)
        for name in NAMES:
            await client.send_json({"type": "subscribe", "series_id": name, "since": 0})
        coordinator = service.runtime.market_data.subscriptions
        await until(lambda: any(map(len, coordinator._turns.values())), "catch-ups wait")
        transport.abort()
    await until(lambda: not service.runtime.hub.clients, "the client is gone")
    assert (coordinator._turns, coordinator._catching_up, coordinator._held) == ({}, {}, {})


async def test_a_defect_in_a_catch_up_closes_its_connection_and_is_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ws_services, "Subscription", broken)
    async with service.http.ws_connect(service.url + "/ws/market") as client:
        await client.send_json({"type": "subscribe", "series_id": NAMES[0], "since": 0})
        message = await client.receive(timeout=30)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, outbox.CLOSE_DEFECT)
    assert sum(service.runtime.bulkheads.counts.values()) == 1
    assert (await service.get("/readyz"))[0] == 200

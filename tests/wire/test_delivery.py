"""Delivery over real sockets: a slow client delays nobody else, a hostile client is cut off, all other clients get
everything."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import uvloop
import websockets.asyncio.client as websockets_client

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.series_id import SeriesId
from klinesync.market import ws_transport
from klinesync.market.limits import ConnectionLimits
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.ws.hub import Client
from klinesync.ws.outbox import ClientLimits
from klinesync.ws.rate import USUAL_RATE, RateLimits
from support.running_service import Service, running_service
from support.waiting import until

NAME = "binance:spot:BTC/USDT:1m"
BTC = SeriesId.parse(NAME)
START = 1_700_000_040
HANDSHAKE = (
    b"GET /ws/market HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, CONTINUATION, BINARY, CLOSE, PING = 1, 0, 2, 8, 9


@asynccontextmanager
async def serving(tmp_path: Path, tuning: Tuning = USUAL_TUNING) -> AsyncIterator[Service]:
    around = Surroundings(tuning=tuning)
    async with running_service(tmp_path / "store.sqlite", None, None, around, enable_ondemand_ingest="off") as running:
        yield running
        # After any test no state of its connections remains.
        await until(lambda: held(running) == 0, "every client is given back")


@pytest.fixture
async def service(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with serving(tmp_path, getattr(request, "param", USUAL_TUNING)) as running:
        yield running


def tuned(tuning: Tuning) -> pytest.MarkDecorator:
    """The service of the test has these limits."""
    return pytest.mark.parametrize("service", [tuning], indirect=True, ids=["tuned"])


# A closing handshake that need not be waited for.
QUICK_CLOSE = ConnectionLimits(close_timeout_s=0.2)


def held(service: Service) -> int:
    """The clients that the service knows, in any part."""
    runtime = service.runtime
    return runtime.hub.clients + len(runtime.market_data.subscriptions._held) + len(runtime.hub._watchers)


def candle(minute: int) -> Candle:
    return Candle(START + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0)


async def store(service: Service, first: int, count: int) -> None:
    """Closed candles of consecutive minutes, in one batch."""
    names = ("candle_time", "open", "high", "low", "close", "volume")
    candles = [dict(zip(names, candle(minute).ohlcv, strict=True)) for minute in range(first, first + count)]
    status, _ = await service.post("/api/market/ingest/candles_closed", {"series_id": NAME, "candles": candles})
    assert status == 200


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame; its mask is zero."""
    length = len(payload)
    size = bytes((0x80 | length,)) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return bytes((0x80 * final | opcode,)) + size + b"\0\0\0\0" + payload


class RawClient:
    """A client at the level of bytes: it may send anything, and need not read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, **message: object) -> None:
        self.writer.write(frame(TEXT, json.dumps(message).encode()))

    async def next(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        async with asyncio.timeout(60):
            first, length = await self.reader.readexactly(2)
            assert length < 128, "a server does not mask"
            assert first & 0xF0 == 0x80, "whole, and without extensions"
            if length > 125:
                length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def closed_with(self) -> int:
        """The code of the close frame, after any other frames."""
        while True:
            opcode, payload = await self.next()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")

    async def ended(self) -> None:
        """Wait until the service has ended the connection."""
        async with asyncio.timeout(60):
            try:
                while await self.reader.read(1 << 20):
                    pass
            except ConnectionError:
                pass  # cut off


@asynccontextmanager
async def raw_client(service: Service, *, window: int | None = None, limit: int = 1 << 16) -> AsyncIterator[RawClient]:
    """A client after its handshake. `window`: size of its receive buffer."""
    port = int(service.url.rsplit(":", 1)[1])
    plain = socket.socket()
    if window is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=limit)
    try:
        writer.write(HANDSHAKE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


class Follower:
    """A healthy client: reads everything, and keeps the closed candles."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.closed: list[int] = []
        self.forming: list[int] = []

    async def subscribe(self, since: int | None, *, batches: bool = False) -> None:
        message = {"type": "subscribe", "series_id": NAME, "since": since, "ack": True, "supports_batch": batches}
        await self.socket.send_json(message)
        assert (await self.socket.receive_json(timeout=30))["type"] == "subscribed"

    async def settle(self) -> None:
        """Read all messages up to now: sends a ping and reads up to its pong."""
        await self.socket.send_json({"type": "ping"})
        while (message := await self.socket.receive_json(timeout=30)) != {"type": "pong"}:
            match message["type"]:
                case "candle_closed":
                    self.closed.append(message["candle"]["candle_time"])
                case "candles_batch":
                    self.closed += [one["candle_time"] for one in message["candles"]]
                case "candle_forming":
                    self.forming.append(message["candle"]["candle_time"])


@asynccontextmanager
async def follower(service: Service) -> AsyncIterator[Follower]:
    async with service.http.ws_connect(service.url + "/ws/market") as opened:
        yield Follower(opened)


SMALL_OUTBOX = Tuning(clients=ClientLimits(max_messages=500), connections=QUICK_CLOSE)


@tuned(SMALL_OUTBOX)
async def test_a_client_that_never_reads_is_bounded_cut_off_and_delays_no_other(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await store(service, 0, 1)
    async with raw_client(service, window=4096, limit=1024) as slow, follower(service) as healthy:
        slow.say(type="subscribe", series_id=NAME, since=START, ack=True)
        assert b'"subscribed"' in (await slow.next())[1]
        [stuck] = [client.outbox for client in service.runtime.hub._clients if client.subscriptions]
        await healthy.subscribe(START)
        minute, most = 1, 0
        while stuck.ended is None:
            assert minute < 200_000, "it is never full"
            # The healthy client gets every batch before the next batch is made, as if no other client existed.
            for _ in range(100):
                service.runtime.hub.publish(Applied(BTC, (candle(minute),), frozenset()))
                minute += 1
            await healthy.settle()
            assert healthy.closed[-1] == START + 60 * (minute - 1)
            most = max(most, len(stuck._messages))
        assert 0 < most <= 500
        assert stuck.ended == 1013
        assert not stuck._messages
        # The close frame cannot be delivered: the client is cut off.
        await until(lambda: service.runtime.hub.clients == 1, "the slow client is given back")
        assert "closed with 1013" in caplog.text
        assert healthy.closed == [START + 60 * number for number in range(1, minute)]


@tuned(Tuning(clients=ClientLimits(max_messages=3000)))
async def test_a_slow_client_gets_its_close_and_resumes_with_since(service: Service) -> None:
    async with raw_client(service, window=4096, limit=1024) as slow, follower(service) as healthy:
        slow.say(type="subscribe", series_id=NAME, ack=True)
        assert b'"subscribed"' in (await slow.next())[1]
        [stuck] = [client.outbox for client in service.runtime.hub._clients if client.subscriptions]
        await healthy.subscribe(None)
        count = 0
        while stuck.ended is None:
            await store(service, count, 2000)
            count += 2000
            await healthy.settle()
        seen: list[int] = []
        while (got := await slow.next())[0] != CLOSE:
            message = json.loads(got[1])
            if message["type"] == "candle_closed":  # neither `caught_up` nor the warning that 1013 is near
                seen.append(message["candle"]["candle_time"])
        assert int.from_bytes(got[1][:2], "big") == 1013
        assert seen == healthy.closed[: len(seen)]
        assert len(seen) < count
    async with follower(service) as again:
        since = seen[-1]
        while since != healthy.closed[-1]:  # more than one catch-up takes: page the rest
            status, page = await service.get("/api/market/candles", series_id=NAME, since=since, limit=5000)
            assert status == 200
            candles = page["candles"]
            assert isinstance(candles, list)
            seen += [one["candle_time"] for one in candles]
            since = seen[-1]
        await again.subscribe(since)
        await store(service, count, 3)
        await again.settle()
        assert seen + again.closed == healthy.closed + [START + 60 * (count + number) for number in range(3)]


async def test_in_the_backlog_forming_is_conflated_and_closed_is_complete(service: Service) -> None:
    async with raw_client(service, window=4096, limit=1024) as slow:
        slow.say(type="subscribe", series_id=NAME, ack=True)
        assert b'"subscribed"' in (await slow.next())[1]
        [client] = service.runtime.hub._clients
        shown = 0
        while not client.outbox._paused:
            service.runtime.hub.show(Forming(BTC, candle(1)._replace(volume=float(shown))))
            shown += 1
            assert shown < 500_000
            await asyncio.sleep(0)
        for number in range(shown, shown + 1000):
            service.runtime.hub.show(Forming(BTC, candle(1)._replace(volume=float(number))))
        assert len(client.outbox._forming) == 1
        assert not client.outbox._messages
        for minute in range(3):
            service.runtime.hub.publish(Applied(BTC, (candle(minute),), frozenset()))
        assert not client.outbox._forming, "overtaken"
        assert len(client.outbox._messages) == 3
        service.runtime.hub.show(Forming(BTC, candle(3)))
        slow.say(type="ping")
        got = []
        while (message := json.loads((await slow.next())[1])) != {"type": "pong"}:
            if message["type"] != "caught_up":
                got.append((message["type"], message["candle"]["candle_time"], message["candle"]["volume"]))
        assert got[:shown] == [("candle_forming", START + 60, float(number)) for number in range(shown)]
        assert got[shown : shown + 3] == [("candle_closed", START + 60 * minute, 10.0) for minute in range(3)]
        # The pong arrives after the messages that must be delivered; the forming candle may arrive after the pong.
        assert got[shown + 3 :] in ([], [("candle_forming", START + 180, 10.0)])


async def test_many_clients_connect_and_vanish_in_every_state_and_nothing_is_left(service: Service) -> None:
    await store(service, 0, 2000)
    port = int(service.url.rsplit(":", 1)[1])
    subscribe = frame(TEXT, json.dumps({"type": "subscribe", "series_id": NAME, "since": 0}).encode())
    disconnected: list[Client] = []
    given_back = service.runtime.market_data.subscriptions.disconnected

    def counted(client: Client) -> None:
        disconnected.append(client)
        given_back(client)

    service.runtime.market_data.subscriptions.disconnected = counted  # type: ignore[method-assign]
    for number in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        match number % 5:
            case 0:  # during the handshake
                writer.write(HANDSHAKE[: number % len(HANDSHAKE)])
            case 1:
                writer.write(HANDSHAKE)
            case 2:  # during the catch-up
                writer.write(HANDSHAKE)
                await reader.readuntil(b"\r\n\r\n")
                writer.write(subscribe * 3)
            case 3:  # after the first candles, with its close frame
                writer.write(HANDSHAKE)
                await reader.readuntil(b"\r\n\r\n")
                writer.write(subscribe)
                await reader.readexactly(100)
                writer.write(frame(CLOSE, b"\x03\xe8"))
            case _:  # it shuts down its side, and reads nothing more
                writer.write(HANDSHAKE)
                await reader.readuntil(b"\r\n\r\n")
                writer.write(subscribe)
                writer.write_eof()
        if number % 2:
            writer.transport.abort()
        else:
            writer.close()
        if number % 10 == 0:
            await store(service, 2000 + number, 1)
    await until(lambda: held(service) == 0, "every client is given back")
    assert len(disconnected) == len(set(disconnected)), "each once"
    assert len(disconnected) >= 120


async def test_a_reset_connection_is_released(service: Service) -> None:
    async with raw_client(service) as client:
        client.say(type="subscribe", series_id=NAME, ack=True)
        await client.next()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: held(service) == 0, "it is given back")


@tuned(Tuning(connections=QUICK_CLOSE))
async def test_a_client_that_ends_its_side_and_does_not_read_is_released_and_cut_off(service: Service) -> None:
    async with raw_client(service, window=4096, limit=1024) as slow:
        slow.say(type="subscribe", series_id=NAME, ack=True)
        await slow.next()
        [client] = service.runtime.hub._clients
        wire = client.outbox._wire
        assert isinstance(wire, ws_transport.MarketSocket)
        minute = 0
        while not client.outbox._messages:
            service.runtime.hub.publish(Applied(BTC, (candle(minute),), frozenset()))
            minute += 1
            assert minute < 200_000
            await asyncio.sleep(0)
        slow.writer.write_eof()
        # The unread data will never be flushed: no part waits for the flush.
        await until(lambda: held(service) == 0, "it is given back")
        await until(lambda: wire.disconnected, "it is cut off")


@tuned(Tuning(connections=replace(QUICK_CLOSE, ping_interval_s=0.05, ping_timeout_s=0.5)))
async def test_a_connection_that_does_not_answer_is_half_open_and_ends(service: Service) -> None:
    async with raw_client(service) as silent, follower(service) as there:
        answering = asyncio.create_task(there.socket.receive())  # aiohttp answers pings while it receives
        assert (await silent.next())[0] == PING
        assert await silent.closed_with() == 1011
        # Nor does it answer that ping.
        await until(lambda: service.runtime.hub.clients == 1, "the half-open client is given back")
        await silent.ended()
        assert not answering.done()
        answering.cancel()


@tuned(Tuning(clients=ClientLimits(rate=RateLimits(burst=5, per_s=20.0))))
async def test_a_client_beyond_the_message_rate_gets_rate_limited_and_stays(service: Service) -> None:
    async with raw_client(service) as eager:
        for _ in range(8):
            eager.say(type="ping")
        answers = [json.loads((await eager.next())[1]) for _ in range(8)]
        assert answers[:5] == [{"type": "pong"}] * 5
        assert (answers[-1]["type"], answers[-1]["code"]) == ("error", "rate_limited")
        answer = b""
        async with asyncio.timeout(60):
            while json.loads(answer or b"null") != {"type": "pong"}:
                eager.say(type="ping")
                _, answer = await eager.next()


@tuned(Tuning(clients=ClientLimits(rate=RateLimits(burst=5, per_s=0.001))))
async def test_a_client_that_keeps_exceeding_the_rate_is_closed_with_1008(service: Service) -> None:
    async with raw_client(service) as eager:
        for _ in range(USUAL_RATE.refused_max + 10):
            eager.say(type="ping")
        assert await eager.closed_with() == 1008


@tuned(Tuning(clients=ClientLimits(clients=2)))
async def test_clients_beyond_the_limit_are_refused_in_the_handshake(service: Service) -> None:
    async with follower(service), follower(service) as second:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await service.http.ws_connect(service.url + "/ws/market")
        assert refused.value.status == 503
        await second.socket.close()
        await until(lambda: service.runtime.hub.clients == 1, "there is room again")
        async with follower(service) as third:
            await third.settle()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"\xff" * 64, 1002, id="garbage"),
        pytest.param(b"\x81\x05hello", 1002, id="not masked"),
        pytest.param(frame(3, b"x"), 1002, id="an opcode that is none"),
        pytest.param(frame(CONTINUATION, b"x"), 1002, id="a continuation of nothing"),
        pytest.param(frame(TEXT, b"x" * 125, final=False) + frame(TEXT, b"x"), 1002, id="a message in a message"),
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, id="not UTF-8"),
        pytest.param(frame(TEXT, b"x" * 65_000, final=False) + frame(CONTINUATION, b"x" * 2000), 1009, id="too long"),
        pytest.param(
            frame(TEXT, b"", final=False) + frame(CONTINUATION, b"", final=False) * 2000, 1009, id="too many fragments"
        ),
    ],
)
async def test_a_protocol_error_ends_that_connection_and_no_other(service: Service, sent: bytes, code: int) -> None:
    async with follower(service) as other, raw_client(service) as bad:
        bad.writer.write(sent)
        assert await bad.closed_with() == code
        await until(lambda: service.runtime.hub.clients == 1, "it is given back")
        await other.settle()


async def test_fragments_binary_and_pings_are_understood(service: Service) -> None:
    async with raw_client(service) as client:
        client.writer.write(frame(TEXT, b'{"type":', final=False) + frame(PING, b"?") + frame(CONTINUATION, b'"ping"}'))
        assert await client.next() == (10, b"?")
        assert await client.next() == (TEXT, b'{"type":"pong"}')
        client.writer.write(frame(BINARY, b'{"type":"ping"}'))
        assert await client.next() == (TEXT, b'{"type":"pong"}')


async def test_pings_of_a_client_that_does_not_read_do_not_accumulate_pongs(service: Service) -> None:
    async with raw_client(service, window=4096, limit=1024) as flood:
        [transport] = [client.outbox._wire for client in service.runtime.hub._clients]
        assert isinstance(transport, ws_transport.MarketSocket)
        pings = frame(PING, b"x" * 125) * 500
        for _ in range(300):
            flood.writer.write(pings)
            async with asyncio.timeout(60):
                await flood.writer.drain()
        assert transport._write_paused
        assert transport.transport.get_write_buffer_size() < 256 << 10


async def test_the_bytes_are_read_by_another_library(service: Service) -> None:
    await store(service, 0, 1500)
    url = service.url.replace("http", "ws") + "/ws/market"
    async with websockets_client.connect(url, max_size=None) as client:  # it offers compression
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        ask = {"type": "subscribe", "series_id": NAME, "since": 0, "supports_batch": True}
        await client.send(json.dumps(ask))
        batch = json.loads(await client.recv())  # a frame with a long length
        assert len(batch["candles"]) == 1500
        service.runtime.hub.publish(Applied(BTC, (candle(1500),), frozenset()))
        assert json.loads(await client.recv())["candle"]["candle_time"] == START + 60 * 1500
        pong = await client.ping()
        await pong


async def test_an_idle_client_has_no_task(service: Service) -> None:
    clients = []
    for _ in range(20):
        client = raw_client(service)
        clients.append(client)
        idle = await client.__aenter__()
        idle.say(type="subscribe", series_id=NAME, ack=True)
        await idle.next()
    # The service's own tasks start and end.
    await until(
        lambda: not [task for task in asyncio.all_tasks() if "socket" in task.get_name()],
        "what handled the messages has ended",
    )
    assert sum("Task" in task.get_name() for task in asyncio.all_tasks()) < 20, "nor has a client one without a name"
    watched = [weakref.ref(client.outbox._wire) for client in service.runtime.hub._clients]
    for client in clients:
        await client.__aexit__(None, None, None)
    await until(lambda: held(service) == 0, "all are given back")

    def freed() -> bool:
        gc.collect()
        return all(one() is None for one in watched)

    await until(freed, "nothing keeps a connection that is gone")


@pytest.mark.parametrize(
    "scenario",
    [
        test_in_the_backlog_forming_is_conflated_and_closed_is_complete,
        test_many_clients_connect_and_vanish_in_every_state_and_nothing_is_left,
        test_pings_of_a_client_that_does_not_read_do_not_accumulate_pongs,
        test_an_idle_client_has_no_task,
        test_a_reset_connection_is_released,
    ],
)
def test_the_same_on_the_loop_of_the_service(scenario: Callable[[Service], Awaitable[None]], tmp_path: Path) -> None:
    async def on_uvloop() -> None:
        async with serving(tmp_path) as service:
            await scenario(service)

    uvloop.run(on_uvloop())


def test_a_client_that_never_reads_on_the_loop_of_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def on_uvloop() -> None:
        async with serving(tmp_path, SMALL_OUTBOX) as service:
            await test_a_client_that_never_reads_is_bounded_cut_off_and_delays_no_other(service, caplog)

    uvloop.run(on_uvloop())

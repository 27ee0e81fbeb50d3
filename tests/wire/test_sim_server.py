"""The simulated exchange over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypedDict

import aiohttp
import pytest
from aiohttp import WSMsgType

import klinesync.sim.server as server_module
from klinesync.core.errors import Rejected
from klinesync.sim.server import ReaderLimits, SimConfig, SimServer
from klinesync.sim.streams import Listener, Streams

START_S = 1_780_315_200 + 17
PATIENCE_S = 20.0


class Kline(TypedDict):
    t: int
    T: int
    i: str
    o: str
    h: str
    l: str  # noqa: E741 — the exchange's name
    c: str
    v: str
    n: int
    x: bool


class Event(TypedDict):
    e: str
    E: int
    k: Kline


@pytest.fixture
async def server() -> AsyncIterator[SimServer]:
    """A generated exchange whose clock stands still until a test moves it."""
    async with SimServer(SimConfig(symbols=8, start=START_S)) as running, aiohttp.ClientSession() as http:
        await clock(http, running, pause=True)
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def clock(http: aiohttp.ClientSession, server: SimServer, **change: object) -> int:
    async with http.post(f"{server.http_url}/sim/clock", json=change) as answer:
        assert answer.status == 200
        now_ms: int = (await answer.json())["now_ms"]
        return now_ms


async def hear(socket: aiohttp.ClientWebSocketResponse) -> object:
    """The next text message, read as JSON."""
    async with asyncio.timeout(PATIENCE_S):
        message = await socket.receive()
    assert message.type is WSMsgType.TEXT, message
    heard: object = json.loads(message.data)
    return heard


async def event(socket: aiohttp.ClientWebSocketResponse) -> tuple[str, Event]:
    """The next event of a combined connection."""
    async with asyncio.timeout(PATIENCE_S):
        message = await socket.receive()
    assert message.type is WSMsgType.TEXT, message
    heard = json.loads(message.data)
    return heard["stream"], heard["data"]


async def end(socket: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str | None]:
    """Read until the server closes; its code and reason."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.CLOSE:
                return message.data, message.extra
            if message.type in (WSMsgType.CLOSED, WSMsgType.ERROR):
                return None, None


async def ask(socket: aiohttp.ClientWebSocketResponse, method: str, *params: object, request_id: object = 1) -> object:
    await socket.send_json({"method": method, "params": list(params), "id": request_id})
    return await hear(socket)


async def state(http: aiohttp.ClientSession, server: SimServer) -> dict[str, object]:
    async with http.get(f"{server.http_url}/sim/state") as answer:
        found: dict[str, object] = await answer.json()
        return found


async def rows(http: aiohttp.ClientSession, server: SimServer, path: str) -> list[list[object]]:
    async with http.get(server.http_url + path) as answer:
        assert answer.status == 200
        found: list[list[object]] = await answer.json()
        return found


async def test_an_advance_delivers_every_close_in_between_and_they_equal_rest(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(f"{server.ws_url}/stream", max_msg_size=0) as socket:
        names = [f"{name.lower()}@kline_1m" for name in server.exchange.spot]
        assert await ask(socket, "SUBSCRIBE", *names, request_id="a-1") == {"result": None, "id": "a-1"}
        await clock(http, server, advance_s=3 * 3600)
        closed: dict[str, list[Kline]] = {name: [] for name in names}
        while min(len(of_one) for of_one in closed.values()) < 179:
            stream, data = await event(socket)
            if data["k"]["x"]:
                closed[stream].append(data["k"])
    for stream, candles in closed.items():
        symbol = stream.split("@")[0].upper()
        first = candles[0]["t"]
        truth = await rows(
            http, server, f"/api/v3/klines?symbol={symbol}&interval=1m&startTime={first}&limit={len(candles)}"
        )
        assert [[k["t"], k["o"], k["h"], k["l"], k["c"], k["v"], k["T"], k["n"]] for k in candles] == [
            [*row[:7], row[8]] for row in truth
        ]


async def test_updates_and_the_close_come_as_the_clock_runs(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{server.ws_url}/market/stream?streams=btcusdt@kline_1m") as socket:
        await clock(http, server, pause=False, speed=120)
        seen: list[Event] = []
        while len([one for one in seen if one["k"]["x"]]) < 3:
            seen.append((await event(socket))[1])
    assert any(not one["k"]["x"] for one in seen)
    closes = [one["k"]["t"] for one in seen if one["k"]["x"]]
    assert closes == [closes[0], closes[0] + 60_000, closes[0] + 120_000]
    times = [one["E"] for one in seen]
    assert times == sorted(times)
    assert all(one["E"] - one["k"]["T"] >= 200 for one in seen if one["k"]["x"])


async def test_raw_connections_get_the_bare_event_and_combining_can_be_switched_on(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(f"{server.ws_url}/ws/btcusdt@kline_1m") as socket:
        assert await ask(socket, "GET_PROPERTY", "combined") == {"result": False, "id": 1}
        await clock(http, server, advance_s=3)
        bare = await hear(socket)
        assert isinstance(bare, dict)
        assert bare["e"] == "kline"
        assert await ask(socket, "SET_PROPERTY", "combined", True) == {"result": None, "id": 1}
        await clock(http, server, advance_s=3)
        assert (await event(socket))[0] == "btcusdt@kline_1m"


async def test_each_form_of_a_stream_reaches_its_own_listeners(server: SimServer, http: aiohttp.ClientSession) -> None:
    addresses = (
        "/ws/btcusdt@kline_1m",
        "/stream?streams=btcusdt@kline_1m",
        "/ws/btcusdt@kline_1m?timeUnit=MICROSECOND",
    )
    opened = [await http.ws_connect(server.ws_url + address) for address in addresses]
    for socket in opened:
        assert await ask(socket, "LIST_SUBSCRIPTIONS") == {"result": ["btcusdt@kline_1m"], "id": 1}
    await clock(http, server, advance_s=3)
    raw, wrapped, micro = [await hear(socket) for socket in opened]
    assert isinstance(raw, dict)
    assert isinstance(micro, dict)
    assert wrapped == {"stream": "btcusdt@kline_1m", "data": raw}
    assert micro["E"] == raw["E"] * 1000
    for socket in opened:
        await socket.close()


async def test_the_retired_futures_routes_acknowledge_and_stay_silent(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    for path in ("/futures-legacy/stream", "/public/stream", "/private/stream"):
        async with (
            http.ws_connect(server.ws_url + path) as dead,
            http.ws_connect(f"{server.ws_url}/market/stream") as live,
        ):
            for socket in (dead, live):
                assert await ask(socket, "SUBSCRIBE", "btcusdt@kline_1m") == {"result": None, "id": 1}
            await clock(http, server, advance_s=120)
            assert (await event(live))[0] == "btcusdt@kline_1m"
            # Messages for the dead connection would arrive before this answer.
            assert await ask(dead, "LIST_SUBSCRIPTIONS") == {"result": ["btcusdt@kline_1m"], "id": 1}


async def test_dead_names_are_acknowledged_and_listed(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{server.ws_url}/stream/ws/0") as socket:
        assert await ask(socket, "SUBSCRIBE", "BTCUSDT@kline_1m", "nope@kline_1m") == {"result": None, "id": 1}
        await clock(http, server, advance_s=120)
        listed = await ask(socket, "LIST_SUBSCRIPTIONS")
        assert listed == {"result": ["0", "BTCUSDT@kline_1m", "nope@kline_1m"], "id": 1}


async def test_unsubscribed_means_quiet(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{server.ws_url}/ws/btcusdt@kline_1m") as socket:
        assert await ask(socket, "UNSUBSCRIBE", "btcusdt@kline_1m") == {"result": None, "id": 1}
        await clock(http, server, advance_s=600)
        assert await ask(socket, "LIST_SUBSCRIPTIONS") == {"result": [], "id": 1}


@pytest.mark.parametrize(("path", "allowed"), [("/stream", 5), ("/market/stream", 10)])
async def test_too_many_messages_close_the_connection(
    server: SimServer, http: aiohttp.ClientSession, path: str, allowed: int
) -> None:
    async with http.ws_connect(server.ws_url + path) as socket:
        for _ in range(allowed + 1):
            await socket.ping()
        assert await end(socket) == (1008, "Too many requests")


async def test_the_1025th_stream_closes_the_connection(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{server.ws_url}/market/stream") as socket:
        answer = await ask(socket, "SUBSCRIBE", *(f"s{at}@kline_1m" for at in range(1025)))
        assert answer == {"error": {"code": 4, "msg": "Too many subscriptions"}}
        assert await end(socket) == (1008, "Invalid request")


async def test_client_pings_are_answered_and_counted(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(f"{server.ws_url}/ws", autoping=False) as socket:
        await socket.ping(b"are you there")
        async with asyncio.timeout(PATIENCE_S):
            message = await socket.receive()
        assert (message.type, bytes(message.data)) == (WSMsgType.PONG, b"are you there")
        connections = (await state(http, server))["connections"]
        assert isinstance(connections, list)
        assert [connection["pings_received"] for connection in connections] == [1]


async def test_a_connection_ends_after_its_day_on_the_exchanges_clock(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(f"{server.ws_url}/stream?streams=btcusdt@kline_1h") as socket:
        await clock(http, server, advance_s=24 * 3600)
        closes = 0
        async with asyncio.timeout(PATIENCE_S):
            async for message in socket:
                closes += json.loads(message.data)["data"]["k"]["x"]
        assert closes == 24, "what was due before the end is delivered"
        assert socket.closed


async def test_a_reader_that_stops_is_cut_off_and_nobody_waits_for_it(http: aiohttp.ClientSession) -> None:
    readers = ReaderLimits(stalled_s=0.05, max_buffer_bytes=600_000)
    async with SimServer(SimConfig(symbols=40, start=START_S, readers=readers)) as server:
        await clock(http, server, pause=True)
        await _leave_one_stuck(http, server)


async def _leave_one_stuck(http: aiohttp.ClientSession, server: SimServer) -> None:
    stuck = sockets.socket()
    stuck.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    stuck.setblocking(False)
    host, port = server.http_url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stuck, (host, int(port)))
    names = [f"{name.lower()}@kline_1m" for name in server.exchange.spot]
    await loop.sock_sendall(
        stuck,
        (
            f"GET /stream?streams={'/'.join(names)} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode(),
    )
    assert b"101" in await loop.sock_recv(stuck, 64)
    async with http.ws_connect(f"{server.ws_url}/stream?streams={names[0]}", max_msg_size=0) as reader:
        assert isinstance(await ask(reader, "LIST_SUBSCRIPTIONS"), dict)
        # Some 11 MB of closes, which is more than the two kernels' buffers take.
        await clock(http, server, advance_s=15 * 3600)
        closes = 0
        while closes < 15 * 60:
            closes += (await event(reader))[1]["k"]["x"]
        connections = (await state(http, server))["connections"]
        assert isinstance(connections, list)
        assert [connection["streams"] for connection in connections] == [1], "the stuck one is gone"
    stuck.close()


async def test_an_honest_reader_that_pauses_loses_nothing_of_a_long_advance(http: aiohttp.ClientSession) -> None:
    readers = ReaderLimits(stalled_s=600.0, max_buffer_bytes=600_000)
    async with SimServer(SimConfig(symbols=40, start=START_S, readers=readers)) as server:
        await clock(http, server, pause=True)
        names = "/".join(f"{name.lower()}@kline_1m" for name in server.exchange.spot)
        async with http.ws_connect(f"{server.ws_url}/stream?streams={names}", max_msg_size=0) as reader:
            assert isinstance(await ask(reader, "LIST_SUBSCRIPTIONS"), dict)
            await clock(http, server, advance_s=15 * 3600)
            buffered = 0
            async with asyncio.timeout(PATIENCE_S):
                while buffered <= server_module.PATIENT_BYTES:
                    connections = (await state(http, server))["connections"]
                    assert isinstance(connections, list)
                    buffered = connections[0]["buffered_bytes"]
            closes = 0
            while closes < 15 * 60 * 40:
                closes += (await event(reader))[1]["k"]["x"]


async def test_a_defect_of_the_exchange_ends_it_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, http: aiohttp.ClientSession
) -> None:
    def broken(_self: Streams, _now_ms: int, _limit: int) -> set[Listener]:
        raise KeyError("defect")

    server = SimServer(SimConfig(symbols=2))
    opened: list[aiohttp.ClientWebSocketResponse] = []

    async def run_for_ever() -> None:
        async with server:
            opened.append(await http.ws_connect(f"{server.ws_url}/ws"))
            monkeypatch.setattr(Streams, "pump", broken)
            await opened[0].send_json({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 1})
            await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="the simulated exchange has failed") as caught:
        await run_for_ever()
    assert isinstance(caught.value.__cause__, KeyError)
    assert (await end(opened[0]))[0] in (None, 1006)
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{server.http_url}/api/v3/ping")


async def test_leaving_the_server_closes_connections_with_1001(http: aiohttp.ClientSession) -> None:
    async with SimServer(SimConfig(symbols=2)) as server:
        socket = await http.ws_connect(f"{server.ws_url}/stream?streams=btcusdt@kline_1m")
        closing = asyncio.create_task(end(socket))
        await ask_state(http, server)
        url = server.http_url
    assert (await closing)[0] == 1001
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{url}/api/v3/ping")


async def ask_state(http: aiohttp.ClientSession, server: SimServer) -> None:
    found = await state(http, server)
    assert len(str(found["connections"])) > 2


async def test_the_clock_is_told_read_and_refused_in_sentences(server: SimServer, http: aiohttp.ClientSession) -> None:
    before = await clock(http, server)
    assert before == server.now_ms()
    assert await clock(http, server, advance_s=90.5) == before + 90_500
    found = await state(http, server)
    assert (found["speed"], found["paused"], found["shift_s"], found["source"]) == (1.0, True, 0, "generator")
    assert found["rest_weight_used"] == 0
    async with http.get(f"{server.http_url}/api/v3/exchangeInfo") as answer:
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "20"
    assert (await state(http, server))["rest_weight_used"] == 20
    for bad in ({"speed": 0}, {"advance_s": -1}, {"speed": "fast"}, {"nope": 1}):
        async with http.post(f"{server.http_url}/sim/clock", json=bad) as answer:
            assert answer.status == 422
            assert set(await answer.json()) == {"detail", "code"}
    assert server.now_ms() == before + 90_500


async def test_unknown_addresses_are_404(server: SimServer, http: aiohttp.ClientSession) -> None:
    for path in ("/", "/api/v3/nope", "/fapi/v1/nope", "/api/v1/klines", "/stream/nonsense"):
        async with http.get(server.http_url + path) as answer:
            assert answer.status == 404, path
    with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
        await http.ws_connect(f"{server.ws_url}/stream/nonsense")


async def test_all_tickers_of_many_symbols_do_not_hold_up_the_streams(http: aiohttp.ClientSession) -> None:
    async with SimServer(SimConfig(symbols=600, start=START_S)) as server:
        await clock(http, server, pause=True)
        async with http.ws_connect(f"{server.ws_url}/ws") as socket:
            tickers = asyncio.create_task(rows(http, server, "/fapi/v1/ticker/24hr"))
            assert await ask(socket, "LIST_SUBSCRIPTIONS") == {"result": [], "id": 1}
            assert not tickers.done()
            assert len(await tickers) == 600


async def test_recorded_candles_are_replayed_as_they_were(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    first_s = 1_748_736_000
    recorded = [[(first_s + 60 * at) * 1000, 1.0 + at, 2.0 + at, 0.5 + at, 1.5 + at, 3.25] for at in range(120)]
    (tmp_path / "XYZ_USDT-1m.json").write_text(json.dumps(recorded))
    async with SimServer(SimConfig(data=tmp_path, start=first_s + 3630)) as server:
        await clock(http, server, pause=True)
        found = await state(http, server)
        shift_s = found["shift_s"]
        assert isinstance(shift_s, int)
        assert found["symbols"] == ["XYZUSDT"]
        assert 0 <= server.now_ms() / 1000 - (first_s + 3630 + shift_s) < 25
        async with http.ws_connect(f"{server.ws_url}/stream?streams=xyzusdt@kline_1m") as socket:
            assert isinstance(await ask(socket, "LIST_SUBSCRIPTIONS"), dict)
            await clock(http, server, advance_s=3600 * 5)
            closed: list[list[float]] = []
            while len(closed) < 60:
                kline = (await event(socket))[1]["k"]
                if kline["x"]:
                    closed.append(
                        [kline["t"] - shift_s * 1000, *(float(kline[key]) for key in ("o", "h", "l", "c", "v"))]
                    )
            assert closed == recorded[60:]
            assert isinstance(await ask(socket, "LIST_SUBSCRIPTIONS"), dict), "behind the last candle it is quiet"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SimConfig(speed=0), "speed is 0"),
        (SimConfig(symbols=0), "symbols is 0"),
        (SimConfig(start=5), "start is 5"),
        (SimConfig(data=Path("nowhere")), "nowhere does not exist"),
    ],
)
def test_a_configuration_that_cannot_be_simulated_is_refused_with_a_sentence(config: SimConfig, sentence: str) -> None:
    with pytest.raises(Rejected, match=sentence):
        SimServer(config)

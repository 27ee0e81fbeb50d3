"""Each kind of fault over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import TypedDict

import aiohttp
import pytest
from aiohttp import WSMsgType

from klinesync.core.errors import Rejected
from klinesync.sim.faults import (
    VARIANTS,
    BadFault,
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
    RestSlow,
    RestStale,
    Revise,
    ServerShutdown,
    Silent,
    UnknownFault,
    Unlisted,
)
from klinesync.sim.server import SimConfig, SimServer
from support.waiting import until

START_S = 1_780_315_200 + 17
PATIENCE_S = 20.0


class Kline(TypedDict):
    t: int
    s: str
    c: str
    n: int
    x: bool


class Event(TypedDict):
    e: str
    E: int
    k: Kline


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def server(http: aiohttp.ClientSession) -> AsyncIterator[SimServer]:
    """A generated exchange whose clock stands still until a test moves it."""
    async with SimServer(SimConfig(symbols=4, start=START_S)) as running:
        await clock(http, running, pause=True)
        yield running


async def clock(http: aiohttp.ClientSession, server: SimServer, **change: object) -> int:
    async with http.post(f"{server.http_url}/sim/clock", json=change) as answer:
        assert answer.status == 200
        now_ms: int = (await answer.json())["now_ms"]
        return now_ms


async def state(http: aiohttp.ClientSession, server: SimServer) -> dict[str, object]:
    async with http.get(f"{server.http_url}/sim/state") as answer:
        found: dict[str, object] = await answer.json()
        return found


async def hear(socket: aiohttp.ClientWebSocketResponse) -> object:
    async with asyncio.timeout(PATIENCE_S):
        message = await socket.receive()
    assert message.type is WSMsgType.TEXT, message
    heard: object = json.loads(message.data)
    return heard


async def events_until_answer(socket: aiohttp.ClientWebSocketResponse) -> list[tuple[str, Event]]:
    """The events before the answer to a request: everything that was due when the request was sent."""
    await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 99})
    events: list[tuple[str, Event]] = []
    while True:
        heard = await hear(socket)
        assert isinstance(heard, dict)
        if heard.get("id") == 99:
            return events
        events.append((heard["stream"], heard["data"]))


async def closes(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[Kline]:
    """The next final candles."""
    found: list[Kline] = []
    while len(found) < count:
        heard = await hear(socket)
        assert isinstance(heard, dict)
        if heard["data"]["k"]["x"]:
            found.append(heard["data"]["k"])
    return found


async def end(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read until the connection ends; the code of the close frame, None without one."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.CLOSE:
                code: int = message.data
                return code
            if message.type in (WSMsgType.CLOSED, WSMsgType.ERROR):
                return None


async def klines(http: aiohttp.ClientSession, server: SimServer, symbol: str, **more: object) -> list[list[object]]:
    params = {"symbol": symbol, "interval": "1m", **{name: str(value) for name, value in more.items()}}
    async with http.get(f"{server.http_url}/api/v3/klines", params=params) as answer:
        assert answer.status == 200, await answer.text()
        rows: list[list[object]] = await answer.json()
        return rows


async def status(http: aiohttp.ClientSession, server: SimServer, path: str) -> tuple[int, str | None]:
    """The status of a GET, and its Retry-After."""
    async with http.get(server.http_url + path) as answer:
        body = await answer.json()
        assert answer.status == 200 or {"code", "msg"} == set(body)
        return answer.status, answer.headers.get("Retry-After")


def stream(server: SimServer, *names: str, market: str = "") -> str:
    return f"{server.ws_url}{market}/stream?streams=" + "/".join(f"{name}@kline_1m" for name in names)


async def test_faults_are_added_counted_and_lifted_over_http(server: SimServer, http: aiohttp.ClientSession) -> None:
    url = f"{server.http_url}/sim/faults"
    async with http.post(url, json={"kind": "rest_error", "status": 502, "market": "spot"}) as answer:
        assert answer.status == 200
        fault_id = (await answer.json())["id"]
    assert await status(http, server, "/api/v3/time") == (502, None)
    assert await status(http, server, "/fapi/v1/time") == (200, None)
    found = await state(http, server)
    assert found["faults_seen"] == {"rest_error": 1}
    assert isinstance(found["faults"], list)
    (in_force,) = found["faults"]
    assert (in_force["id"], in_force["kind"], in_force["seen"]) == (fault_id, "rest_error", 1)
    async with http.delete(f"{url}/{fault_id}") as answer:
        assert (answer.status, await answer.json()) == (200, {"id": fault_id})
    assert await status(http, server, "/api/v3/time") == (200, None)
    found = await state(http, server)
    assert (found["faults"], found["faults_seen"]) == ([], {"rest_error": 1})
    for unknown in (fault_id, 77, "x", "1" * 50):
        async with http.delete(f"{url}/{unknown}") as answer:
            assert answer.status == 404
            assert (await answer.json())["code"] == "unknown_fault"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("[]", "Expected `object`"),
        ("{", "truncated"),
        ("{}", "missing required field `kind`"),
        ('{"kind": "nope"}', "'nope'"),
        ('{"kind": "silent", "symbol": "BTCUSDT"}', "unknown field `symbol`"),
        ('{"kind": "silent", "symbols": ["NOPE"]}', "symbol 'NOPE' exists on neither market"),
        ('{"kind": "silent", "symbols": []}', "length >= 1"),
        ('{"kind": "silent", "market": "options"}', "'options'"),
        ('{"kind": "late_closed", "delay_s": -1}', "> 0"),
        ('{"kind": "rest_error", "status": 200}', ">= 400"),
        ('{"kind": "disconnect", "code": 1006}', "code 1006 is never sent"),
        ('{"kind": "clock_skew", "skew_s": 5}', "from the start only"),
        ('{"kind": "clock_skew", "skew_s": 5, "market": "spot"}', "the exchange as a whole"),
        ('{"kind": "outage", "minutes": 0}', ">= 1"),
    ],
)
async def test_a_fault_that_cannot_be_is_refused_with_a_sentence(
    server: SimServer, http: aiohttp.ClientSession, body: str, sentence: str
) -> None:
    async with http.post(f"{server.http_url}/sim/faults", data=body) as answer:
        assert answer.status == 422
        refused = await answer.json()
    assert refused["code"] == "bad_fault"
    assert sentence in refused["detail"]
    assert (await state(http, server))["faults"] == []


def test_values_from_python_are_checked_like_written_ones() -> None:
    server = SimServer(SimConfig(symbols=2, start=START_S))
    for bad in (RestError(status=7), LateClosed(delay_s=float("nan")), Silent(symbols=("NOPE",))):
        with pytest.raises(BadFault):
            server.faults.add(bad)
    with pytest.raises(UnknownFault, match="no fault 1"):
        server.faults.remove(1)


async def test_one_silent_stream_of_several_stays_silent_over_a_reconnect_until_it_is_lifted(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    fault = server.faults.add(Silent(symbols=("BTCUSDT",), market="spot"))
    for _ in range(2):
        async with http.ws_connect(stream(server, "btcusdt", "ethusdt")) as socket:
            await clock(http, server, advance_s=60)
            assert (await closes(socket, 1))[0]["s"] == "ETHUSDT"
            assert {name for name, _ in await events_until_answer(socket)} <= {"ethusdt@kline_1m"}
    async with http.ws_connect(stream(server, "btcusdt", market="/market")) as socket:
        await clock(http, server, advance_s=60)
        assert (await closes(socket, 1))[0]["s"] == "BTCUSDT", "the other market is not silent"
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        server.faults.remove(fault)
        await clock(http, server, advance_s=60)
        await closes(socket, 1)
    assert server.faults.seen()["silent"] >= 2


async def test_only_present_connections_are_silent_so_that_a_new_one_helps(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(stream(server, "btcusdt")) as before:
        assert await events_until_answer(before) == []
        server.faults.add(Silent(connections="present"))
        async with http.ws_connect(stream(server, "btcusdt")) as after:
            assert await events_until_answer(after) == []
            await clock(http, server, advance_s=60)
            await closes(after, 1)
        assert await events_until_answer(before) == []


async def test_dropped_closes_are_lost_to_the_stream_and_not_to_rest(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(DropClosed(every=2, symbols=("BTCUSDT",)))
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=600)
        opens = [kline["t"] for kline in await closes(socket, 5)]
        assert [later - earlier for earlier, later in itertools.pairwise(opens)] == [120_000] * 4
    rows = await klines(http, server, "BTCUSDT", startTime=opens[0], limit=9)
    assert [row[0] for row in rows] == list(range(opens[0], opens[0] + 540_000, 60_000))
    assert server.faults.seen() == {"drop_closed": 5}


async def test_late_closes_come_after_the_next_candle_has_begun_and_rest_has_them_meanwhile(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(LateClosed(delay_s=30, count=1))
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        now_ms = await clock(http, server, advance_s=60)
        minute_ms = now_ms // 60_000 * 60_000 - 60_000
        async with asyncio.timeout(PATIENCE_S):
            while not any(event["k"]["t"] > minute_ms for _, event in await events_until_answer(socket)):
                await clock(http, server, advance_s=2)
        assert (await klines(http, server, "BTCUSDT", startTime=minute_ms, limit=1))[0][0] == minute_ms
        now_ms = await clock(http, server, advance_s=30)
        async with asyncio.timeout(PATIENCE_S):
            late: list[Event] = []
            while not late:
                late = [event for _, event in await events_until_answer(socket) if event["k"]["x"]]
    assert [event["k"]["t"] for event in late] == [minute_ms]
    assert late[0]["E"] >= minute_ms + 60_000 + 30_000


async def test_lifting_late_closes_loses_none(server: SimServer, http: aiohttp.ClientSession) -> None:
    fault = server.faults.add(LateClosed(delay_s=3600))
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=300)
        await until(lambda: server.faults.seen()["late_closed"] == 5)
        server.faults.remove(fault)
        await clock(http, server, advance_s=3600)
        opens = [kline["t"] for kline in await closes(socket, 65)]
    assert len(set(opens)) == 65
    assert sorted(opens)[-1] - sorted(opens)[0] == 64 * 60_000


async def test_duplicates_come_twice_and_reordered_closes_change_places(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    first = server.faults.add(Duplicate(events="closed", symbols=("BTCUSDT",)))
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=120)
        one, again, two, again_two = await closes(socket, 4)
        assert (one, two) == (again, again_two)
        assert two["t"] == one["t"] + 60_000
        server.faults.remove(first)
        server.faults.add(Reorder(events="closed"))
        await clock(http, server, advance_s=240)
        opens = [kline["t"] for kline in await closes(socket, 4)]
        begin = two["t"] + 60_000
        assert opens == [begin + 60_000, begin, begin + 180_000, begin + 120_000]


async def test_malformed_frames_of_every_variant_come_in_turn_each_before_the_good_one(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(Malformed(events="closed", symbols=("BTCUSDT",), market="spot"))
    async with http.ws_connect(stream(server, "btcusdt"), max_msg_size=0) as socket:
        await clock(http, server, advance_s=60 * len(VARIANTS))
        spoilt: list[aiohttp.WSMessage] = []
        good: list[Event] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(good) < len(VARIANTS):
                spoilt.append(await socket.receive())
                message = await socket.receive()
                good.append(json.loads(message.data)["data"])
    assert [later["k"]["t"] - earlier["k"]["t"] for earlier, later in itertools.pairwise(good)] == [60_000] * 8
    assert all(one["k"]["x"] is True and one["k"]["s"] == "BTCUSDT" for one in good)
    types = [WSMsgType.BINARY if variant == "binary" else WSMsgType.TEXT for variant in VARIANTS]
    assert [message.type for message in spoilt] == types
    by_variant = dict(zip(VARIANTS, spoilt, strict=True))
    assert len(by_variant["huge"].data) > 1 << 20
    with pytest.raises(json.JSONDecodeError):
        json.loads(by_variant["broken_json"].data)
    assert json.loads(by_variant["closed_text"].data)["data"]["k"]["x"] == "false"
    assert server.faults.seen() == {"malformed": len(VARIANTS)}


async def test_a_malformed_frame_can_stand_in_place_of_the_good_one(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(Malformed(variant="wrong_symbol", mode="instead", events="closed", count=1))
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=120)
        wrong, right = await closes(socket, 2)
    assert wrong["s"] in {"ETHUSDT", "BNBUSDT", "SOLUSDT"}
    assert (right["s"], right["t"]) == ("BTCUSDT", wrong["t"] + 60_000)


async def test_a_disconnect_cuts_the_connections_that_it_names(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with (
        http.ws_connect(stream(server, "btcusdt")) as bitcoin,
        http.ws_connect(stream(server, "ethusdt")) as ether,
        http.ws_connect(stream(server, "btcusdt", market="/market")) as futures,
    ):
        server.faults.add(Disconnect(symbols=("BTCUSDT",), market="spot"))
        assert await end(bitcoin) is None
        server.faults.add(Disconnect(market="futures", code=1012))
        assert await end(futures) == 1012
        assert await events_until_answer(ether) == []
    assert server.faults.seen() == {"disconnect": 2}


async def test_a_disconnect_can_cut_some_of_many(server: SimServer, http: aiohttp.ClientSession) -> None:
    sockets = [await http.ws_connect(stream(server, "btcusdt")) for _ in range(3)]
    server.faults.add(Disconnect(count=2))
    assert [await end(socket) for socket in sockets[:2]] == [None, None]
    assert await events_until_answer(sockets[2]) == []
    await sockets[2].close()


async def test_connections_are_refused_or_reset_while_that_lasts(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    fault = server.faults.add(RefuseConnect(market="spot"))
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await http.ws_connect(stream(server, "btcusdt"))
    async with http.ws_connect(stream(server, "btcusdt", market="/market")) as other:
        assert await events_until_answer(other) == []
    server.faults.remove(fault)
    fault = server.faults.add(RefuseConnect(reset=True))
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await http.ws_connect(stream(server, "btcusdt"))
    server.faults.remove(fault)
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        assert await events_until_answer(socket) == []
    assert server.faults.seen()["refuse_connect"] >= 2, "aiohttp tries once more when a kept connection is reset"


async def test_a_shutdown_is_announced_on_every_connection_and_then_carried_out(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with (
        http.ws_connect(stream(server, "btcusdt")) as combined,
        http.ws_connect(f"{server.ws_url}/ws/btcusdt@kline_1m") as raw,
        http.ws_connect(f"{server.ws_url}/ws?timeUnit=MICROSECOND") as micro,
        http.ws_connect(stream(server, "btcusdt", market="/market")) as futures,
    ):
        server.faults.add(ServerShutdown(market="spot"))
        now_ms = await clock(http, server)
        event = {"e": "serverShutdown", "E": now_ms}
        assert await hear(combined) == {"stream": "!serverShutdown", "data": event}
        assert await hear(raw) == event
        assert await hear(micro) == {"e": "serverShutdown", "E": now_ms * 1000}
        await clock(http, server, advance_s=9.9)
        async with http.ws_connect(stream(server, "btcusdt")) as late:
            assert isinstance(await events_until_answer(combined), list)
            await clock(http, server, advance_s=0.1)
            assert [await end(socket) for socket in (combined, raw, micro)] == [1001] * 3
            assert isinstance(await events_until_answer(late), list), "it was opened after the announcement"
        assert isinstance(await events_until_answer(futures), list)


async def test_a_connection_that_leaves_before_its_shutdown_disturbs_nobody(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(stream(server, "btcusdt")) as stays:
        async with http.ws_connect(stream(server, "btcusdt")) as leaves:
            server.faults.add(ServerShutdown())
            assert isinstance(await hear(leaves), dict)
        async with asyncio.timeout(PATIENCE_S):
            while len(str((await state(http, server))["connections"]).split("opened_ms")) != 2:
                await asyncio.sleep(0.005)
        await clock(http, server, advance_s=10)
        assert await end(stays) == 1001
    assert await status(http, server, "/api/v3/ping") == (200, None)


async def test_rest_errors_are_for_the_symbols_paths_and_times_that_were_asked_for(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(RestError(symbols=("ETHUSDT",), market="spot", count=2))
    server.faults.add(RestError(status=404, paths=("exchangeInfo",)))
    ether, bitcoin = (f"/api/v3/klines?symbol={name}&interval=1m" for name in ("ETHUSDT", "BTCUSDT"))
    assert [(await status(http, server, path))[0] for path in (bitcoin, ether, ether, ether, bitcoin)] == [
        200, 500, 500, 200, 200,
    ]  # fmt: skip
    assert await status(http, server, "/api/v3/time") == (200, None)
    assert await status(http, server, "/fapi/v1/exchangeInfo") == (404, None)
    assert server.faults.seen() == {"rest_error": 3}


async def test_slow_answers_take_their_time_on_the_exchanges_clock(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    fault = server.faults.add(RestSlow(delay_s=60, paths=("time",)))
    asked_ms = server.now_ms()
    slow = asyncio.create_task(http.get(f"{server.http_url}/api/v3/time"))
    await until(lambda: server.faults.seen()["rest_slow"] == 1)
    assert await status(http, server, "/api/v3/ping") == (200, None)
    await clock(http, server, advance_s=59)
    assert not slow.done()
    await clock(http, server, advance_s=1)
    async with asyncio.timeout(PATIENCE_S):
        answer = await slow
    assert (await answer.json())["serverTime"] == asked_ms, "it was made when the request came"
    held = asyncio.create_task(http.get(f"{server.http_url}/fapi/v1/time"))
    await until(lambda: server.faults.seen()["rest_slow"] == 2)
    server.faults.remove(fault)
    async with asyncio.timeout(PATIENCE_S):
        assert (await held).status == 200


async def test_an_answer_that_is_held_back_does_not_hold_up_the_end(http: aiohttp.ClientSession) -> None:
    async with SimServer(SimConfig(symbols=2, start=START_S, faults=(RestSlow(delay_s=86_400),))) as server:
        held = asyncio.create_task(http.get(f"{server.http_url}/api/v3/time"))
        await until(lambda: server.faults.seen()["rest_slow"] == 1)
    async with asyncio.timeout(PATIENCE_S):
        assert (await held).status == 200


async def test_a_rate_limit_says_429_then_418_until_the_ban_has_passed(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    server.faults.add(RateLimit(market="spot", after=1, count=2, retry_after_s=7, ban_s=120))
    answers = [await status(http, server, "/api/v3/ping") for _ in range(4)]
    assert answers == [(200, None), (429, "7"), (429, "7"), (418, "120")]
    await clock(http, server, advance_s=100)
    assert await status(http, server, "/api/v3/exchangeInfo") == (418, "20")
    assert await status(http, server, "/fapi/v1/ping") == (200, None)
    await clock(http, server, advance_s=20)
    assert await status(http, server, "/api/v3/ping") == (200, None)
    assert server.faults.seen() == {"rate_limit": 4}


async def test_stale_rest_shows_candles_as_they_were_and_the_true_time(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    before = await klines(http, server, "BTCUSDT", limit=5)
    await clock(http, server, advance_s=90)
    server.faults.add(RestStale(delay_s=90, symbols=("BTCUSDT",)))
    assert await klines(http, server, "BTCUSDT", limit=5) == before
    async with http.get(f"{server.http_url}/api/v3/time") as answer:
        assert (await answer.json())["serverTime"] == server.now_ms()
    assert len(await klines(http, server, "ETHUSDT", startTime=before[-1][0])) == 2 + (START_S % 60 + 90 >= 120)


async def test_stale_rest_can_leave_out_the_candle_that_was_in_progress(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    before = await klines(http, server, "BTCUSDT", limit=5)
    await clock(http, server, advance_s=90)
    server.faults.add(RestStale(delay_s=90, open_row=False))
    assert await klines(http, server, "BTCUSDT", limit=4) == before[:-1]
    assert await klines(http, server, "BTCUSDT", startTime=before[-1][0]) == []


async def test_faults_can_be_in_force_from_the_start(http: aiohttp.ClientSession) -> None:
    config = SimConfig(symbols=2, start=START_S, faults=(RestError(status=503), RefuseConnect()))
    async with SimServer(config) as server:
        assert await status(http, server, "/api/v3/ping") == (503, None)
        assert sorted(server.faults.seen()) == ["refuse_connect", "rest_error"]
    with pytest.raises(Rejected, match="NOPE"):
        SimServer(SimConfig(symbols=2, faults=(Silent(symbols=("NOPE",)),)))


def opens(rows: list[list[object]]) -> list[int]:
    return [int(str(row[0])) for row in rows]


async def listed(http: aiohttp.ClientSession, server: SimServer, path: str) -> dict[str, dict[str, object]]:
    """The symbols of exchangeInfo by name."""
    async with http.get(f"{server.http_url}{path}/exchangeInfo") as answer:
        return {symbol["symbol"]: symbol for symbol in (await answer.json())["symbols"]}


async def test_minutes_of_an_outage_exist_nowhere_and_stay_missing_when_it_is_lifted(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    minute_ms = START_S // 60 * 60_000
    async with (
        http.ws_connect(stream(server, "btcusdt")) as socket,
        http.ws_connect(f"{server.ws_url}/stream?streams=btcusdt@kline_5m") as longer,
    ):
        assert await events_until_answer(socket) == await events_until_answer(longer) == []
        fault = server.faults.add(Outage(minutes=7, market="spot"))
        await clock(http, server, advance_s=120)
        server.faults.remove(fault)
        await clock(http, server, advance_s=15 * 60)
        streamed = [kline["t"] for kline in await closes(socket, 9)]
        there = [0, 8, 9, 10, 11, 12, 13, 14, 15]
        assert streamed == [minute_ms + 60_000 * at for at in there]
        rows = await klines(http, server, "BTCUSDT", startTime=minute_ms, limit=9)
        assert opens(rows) == streamed
        truth = server.exchange.spot["BTCUSDT"].tape.minutes(minute_ms // 1000, minute_ms // 1000 + 16 * 60)
        assert [time * 1000 for time in truth.time.tolist()] == streamed
        # START_S lies in the first minute of five: 0, 5 … are longer candles. The one of 0 has a minute, that of 5 two.
        folded = await klines(http, server, "BTCUSDT", startTime=minute_ms, limit=2, interval="5m")
        assert [row[8] for row in folded] == [rows[0][8], int(str(rows[1][8])) + int(str(rows[2][8]))]
        pushed = await closes(longer, 2)
        assert [kline["n"] for kline in pushed] == [row[8] for row in folded]
    assert opens(await klines(http, server, "ETHUSDT", startTime=minute_ms, limit=9)) == streamed
    async with http.get(
        f"{server.http_url}/fapi/v1/klines?symbol=BTCUSDT&interval=1m&startTime={minute_ms}&limit=9"
    ) as answer:
        assert opens(await answer.json()) == [minute_ms + 60_000 * at for at in range(9)]


async def test_a_revised_candle_differs_in_rest_and_in_longer_intervals_and_nobody_is_told(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=60)
        (sent,) = await closes(socket, 1)
        before = await klines(http, server, "BTCUSDT", startTime=sent["t"], limit=1)
        hour = await klines(http, server, "BTCUSDT", limit=1, interval="1h")
        server.faults.add(Revise(symbols=("BTCUSDT",), market="spot"))
        after = await klines(http, server, "BTCUSDT", startTime=sent["t"], limit=1)
        assert after[0][:2] == before[0][:2]
        assert after[0][4:6] != before[0][4:6]
        later = await klines(http, server, "BTCUSDT", limit=1, interval="1h")
        grown = float(str(after[0][5])) - float(str(before[0][5]))
        assert float(str(later[0][5])) - float(str(hour[0][5])) == pytest.approx(grown)
        truth = server.exchange.spot["BTCUSDT"].minute(sent["t"] // 1000)
        assert truth is not None
        assert truth.close == float(str(after[0][4]))
        assert not any(event["k"]["x"] for _, event in await events_until_answer(socket))
    assert server.faults.seen() == {"revise": 1}


async def test_a_revision_can_be_pushed_as_a_second_final_event(server: SimServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=60)
        (sent,) = await closes(socket, 1)
        for _ in range(2):
            server.faults.add(Revise(push=True, market="spot"))
            (again,) = await closes(socket, 1)
            assert again["t"] == sent["t"]
            assert again["c"] != sent["c"]
            sent = again
        assert (await klines(http, server, "BTCUSDT", startTime=sent["t"], limit=1))[0][4] == sent["c"]


@pytest.mark.parametrize(
    ("path", "market", "status_text"), [("/api/v3", "spot", "BREAK"), ("/fapi/v1", "futures", "SETTLING")]
)
async def test_a_delisted_symbol_is_quiet_until_it_trades_again_and_the_hole_stays(
    server: SimServer, http: aiohttp.ClientSession, path: str, market: str, status_text: str
) -> None:
    minute_ms = START_S // 60 * 60_000
    async with http.ws_connect(stream(server, "btcusdt", market="/market" if market == "futures" else "")) as socket:
        assert await events_until_answer(socket) == []
        fault = server.faults.add(Delist(symbols=("BTCUSDT",), market="futures" if market == "futures" else "spot"))
        assert (await listed(http, server, path))["BTCUSDT"]["status"] == "TRADING", "this minute it still trades"
        await clock(http, server, advance_s=300)
        found = await listed(http, server, path)
        assert (found["BTCUSDT"]["status"], found["ETHUSDT"]["status"]) == (status_text, "TRADING")
        assert [kline["t"] for kline in await closes(socket, 1)] == [minute_ms]
        assert await events_until_answer(socket) == []
        server.faults.remove(fault)
        await clock(http, server, advance_s=180)
        assert [kline["t"] for kline in await closes(socket, 2)] == [minute_ms + 360_000, minute_ms + 420_000]
        again = (await listed(http, server, path))["BTCUSDT"]
        assert again["status"] == "TRADING"
    async with http.get(
        f"{server.http_url}{path}/klines?symbol=BTCUSDT&interval=1m&startTime={minute_ms}&limit=3"
    ) as answer:
        rows = opens(await answer.json())
    if market == "spot":
        assert rows == [minute_ms, minute_ms + 360_000, minute_ms + 420_000]
    else:
        assert again["onboardDate"] == minute_ms + 360_000
        assert rows[:2] == [minute_ms + 360_000, minute_ms + 420_000], "what was before is not served any more"


async def test_a_symbol_that_is_gone_is_unknown(server: SimServer, http: aiohttp.ClientSession) -> None:
    server.faults.add(Delist(symbols=("ETHUSDT",), market="spot", gone=True))
    await clock(http, server, advance_s=60)
    assert "ETHUSDT" not in await listed(http, server, "/api/v3")
    assert "ETHUSDT" in await listed(http, server, "/fapi/v1")
    for path in ("klines?symbol=ETHUSDT&interval=1m", "exchangeInfo?symbol=ETHUSDT", "ticker/24hr?symbol=ETHUSDT"):
        async with http.get(f"{server.http_url}/api/v3/{path}") as answer:
            assert (await answer.json())["code"] == -1121
    async with http.get(f"{server.http_url}/api/v3/ticker/price") as answer:
        assert [one["symbol"] for one in await answer.json()] == ["BTCUSDT", "BNBUSDT", "SOLUSDT"]


async def test_an_unlisted_symbol_exists_from_the_minute_after_it_is_lifted(http: aiohttp.ClientSession) -> None:
    unlisted = Unlisted(symbols=("BNBUSDT",))
    async with SimServer(SimConfig(symbols=4, start=START_S, faults=(unlisted,))) as server:
        await clock(http, server, pause=True)
        found = await state(http, server)
        assert found["symbols"] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
        assert "BNBUSDT" not in await listed(http, server, "/fapi/v1")
        assert await status(http, server, "/api/v3/klines?symbol=BNBUSDT&interval=1m") == (400, None)
        async with http.ws_connect(stream(server, "bnbusdt")) as socket:
            await clock(http, server, advance_s=120)
            assert await events_until_answer(socket) == []
            server.faults.remove(1)
            now_ms = await clock(http, server, advance_s=180)
            first_ms = now_ms // 60_000 * 60_000 - 120_000
            assert [kline["t"] for kline in await closes(socket, 2)] == [first_ms, first_ms + 60_000]
        assert opens(await klines(http, server, "BNBUSDT", startTime=0)) == [
            first_ms, first_ms + 60_000, first_ms + 120_000,
        ]  # fmt: skip
        assert (await listed(http, server, "/fapi/v1"))["BNBUSDT"]["onboardDate"] == first_ms


async def test_a_skewed_clock_is_off_the_hosts_from_the_start_and_stays_so(http: aiohttp.ClientSession) -> None:
    async with SimServer(SimConfig(symbols=2, start=START_S, faults=(ClockSkew(skew_s=-7200.5),))) as server:
        await clock(http, server, pause=True)
        assert 0 <= server.now_ms() - (START_S * 1000 - 7_200_500) < 60_000
        async with http.get(f"{server.http_url}/api/v3/time") as answer:
            assert (await answer.json())["serverTime"] == server.now_ms()
        async with http.delete(f"{server.http_url}/sim/faults/1") as answer:
            assert answer.status == 422
    host_ms = int(time.time()) * 1000
    skewed = SimServer(SimConfig(symbols=2, faults=(ClockSkew(skew_s=86_400),)))
    assert skewed.now_ms() - host_ms >= 86_400_000


async def test_a_connection_outlives_a_jump_of_less_than_its_day_and_not_one_of_more(
    server: SimServer, http: aiohttp.ClientSession
) -> None:
    async with http.ws_connect(stream(server, "btcusdt")) as socket:
        await clock(http, server, advance_s=23.5 * 3600)
        await closes(socket, 23 * 60 + 30)
        assert await events_until_answer(socket) == []
        await clock(http, server, advance_s=1.5 * 3600)
        await closes(socket, 90)
        assert await end(socket) == 1000

"""`follow` against a service that says what the test wants: what the protocol has, and what it has not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from klinesync.client import follow as follow_module
from klinesync.client.follow import (
    ClosedCandle,
    Connected,
    Disconnected,
    FormingCandle,
    Gap,
    ServiceError,
    System,
    Update,
    follow,
)
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
START = 1_700_000_040
OUT = {"candle_time": START, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
CANDLE = Candle(START, 1.0, 2.0, 0.5, 1.5, 10.0)
ACK = {"type": "subscribed", "series_id": str(BTC), "head_time": START, "stream": "live"}
CLOSED = {"type": "candle_closed", "series_id": str(BTC), "candle": OUT}


@dataclass(frozen=True, slots=True)
class Say:
    """What one connection gets: these messages, and then its end. Or an HTTP status in place of a connection."""

    messages: Sequence[object] = ()
    close: int = 1001
    status: int = 101


@dataclass(slots=True)
class Scripted:
    url: str
    subscriptions: list[dict[str, object]] = field(default_factory=list)


@asynccontextmanager
async def saying(*script: Say) -> AsyncIterator[Scripted]:
    """A service that says to each connection its part of the script, and to those after the last one nothing."""
    parts = iter(script)

    async def connection(request: web.Request) -> web.StreamResponse:
        part = next(parts, None)
        if part is not None and part.status != 101:
            return web.Response(status=part.status)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        service.subscriptions.append(await socket.receive_json())
        if part is None:
            await socket.receive()
            return socket
        for message in part.messages:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_json(message))
        await socket.close(code=part.close)
        return socket

    app = web.Application()
    app.router.add_get("/ws/market", connection)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service = Scripted(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield service
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "BACKOFF_FIRST_S", 0.001)


async def heard(url: str, count: int, since: int | None = 0, *, wait_out_refusals: bool = False) -> list[Update]:
    """The first `count` updates."""
    seen: list[Update] = []
    async with asyncio.timeout(30), aclosing(follow(url, BTC, since, wait_out_refusals=wait_out_refusals)) as updates:
        async for update in updates:
            seen.append(update)
            if len(seen) == count:
                break
    return seen


async def test_every_message_of_the_protocol_has_its_update() -> None:
    messages = [
        ACK,
        {"type": "gap", "series_id": str(BTC), "expected_next_time": 60, "actual_time": START, "reason": "missing",
         "state": "healing"},
        {"type": "candles_batch", "series_id": str(BTC), "candles": [OUT]},
        {"type": "candle_forming", "series_id": str(BTC), "candle": OUT | {"candle_time": START + 60}},
        CLOSED | {"revised": True},
        {"type": "system", "series_id": str(BTC), "event": "resync", "message": "", "data": {"why": [1]}},
        {"type": "pong"},
    ]  # fmt: skip
    async with saying(Say(messages)) as service:
        assert await heard(service.url, 7) == [
            Connected(START, "live"),
            Gap(60, START, "healing"),
            ClosedCandle(CANDLE),
            FormingCandle(CANDLE._replace(time=START + 60)),
            ClosedCandle(CANDLE, revised=True),
            System("resync", "", {"why": [1]}),
            Disconnected("the service shuts down"),
        ]


async def test_what_a_later_protocol_adds_is_passed_over() -> None:
    later = [
        {"type": "candle_preview", "candle": 7, "candles": "none", "data": [], "code": None, "state": {"deep": []}},
        ACK | {"data": [1, 2], "candle": 3},
        {"type": "depth", "event": 5, "message": {"a": 1}},
        {"type": "system", "event": "new.kind"},
        CLOSED | {"candle": OUT | {"trades": 12}, "state": 9},
    ]
    async with saying(Say(later)) as service:
        assert await heard(service.url, 3) == [
            Connected(START, "live"),
            System("new.kind", "", {}),
            ClosedCandle(CANDLE),
        ]


@pytest.mark.parametrize(
    "message",
    [
        json.dumps(CLOSED | {"candle": OUT | {"low": 0.0}}),
        json.dumps({"type": "candles_batch", "series_id": str(BTC), "candles": [OUT, OUT | {"low": -1.0}]}),
        json.dumps({"type": "candle_forming", "series_id": str(BTC), "candle": OUT | {"low": 0.0}}),
        "{", "[]", "7", '{"no":"type"}', '{"type":5}', '{"type":"candle_closed"}', '{"type":"candles_batch"}',
    ],
)  # fmt: skip
async def test_what_is_none_of_the_protocol_is_an_error_with_a_sentence(message: str) -> None:
    async with saying(Say([ACK, message])) as service:
        with pytest.raises(ServiceError, match="none of the protocol's messages") as raised:
            await heard(service.url, 2)
    assert raised.value.code == "bad_message"


@pytest.mark.parametrize(
    ("code", "message", "sentence"),
    [
        ("capacity", "ondemand_ingest_capacity", "as many series on demand as it may"),
        ("rate_limited", "", "too many requests"),
        ("rate_limited", "at most 100 messages a second", "^at most 100 messages a second$"),
        ("store_error", "the store cannot be read at present", "^the store cannot be read at present$"),
        ("unknown_series", "series X is unknown: no such symbol", "^series X is unknown: no such symbol$"),
        ("new_code", "no_sentence", "^the service refuses: no_sentence$"),
    ],
)
async def test_a_refusal_is_raised_with_its_code_and_a_sentence(code: str, message: str, sentence: str) -> None:
    async with saying(Say([{"type": "error", "code": code, "message": message}])) as service:
        with pytest.raises(ServiceError, match=sentence) as raised:
            await heard(service.url, 1)
    assert raised.value.code == code


async def test_a_refusal_that_may_pass_is_waited_out_by_who_asks_for_it() -> None:
    full = Say([{"type": "error", "code": "capacity", "message": "ondemand_ingest_capacity"}])
    async with saying(full, Say(status=429), full, Say([ACK, CLOSED])) as service:
        seen = await heard(service.url, 5, wait_out_refusals=True)
    assert [type(update) for update in seen] == [Disconnected, Disconnected, Disconnected, Connected, ClosedCandle]
    assert "on demand" in str(seen[0])
    assert "too many requests" in str(seen[1])


async def test_a_refusal_for_good_is_not_waited_out() -> None:
    async with saying(Say([{"type": "error", "code": "unknown_series", "message": "there is none"}])) as service:
        with pytest.raises(ServiceError, match="there is none"):
            await heard(service.url, 1, wait_out_refusals=True)


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (401, "401", "token"),
        (403, "403", "let this client in"),
        (404, "404", "no klinesync"),
        (429, "rate_limited", "too many"),
    ],
)
async def test_a_connection_that_is_refused_is_an_error(status: int, code: str, word: str) -> None:
    async with saying(Say(status=status)) as service:
        with pytest.raises(ServiceError, match=word) as raised:
            await heard(service.url, 1)
    assert raised.value.code == code


async def test_a_service_that_takes_no_connections_at_present_is_tried_again() -> None:
    async with saying(Say(status=503), Say([ACK])) as service:
        refused, connected = await heard(service.url, 2)
    assert isinstance(refused, Disconnected)
    assert "503" in refused.reason
    assert connected == Connected(START, "live")


@pytest.mark.parametrize(
    ("close", "reason"),
    [(1001, "the service shuts down"), (1013, "read too slowly"), (1011, "the service ended the connection")],
)
async def test_the_end_of_a_connection_has_its_reason(close: int, reason: str) -> None:
    async with saying(Say([ACK], close=close)) as service:
        (_, ended) = await heard(service.url, 2)
    assert reason in str(ended)


async def test_it_resumes_behind_the_newest_closed_candle_and_not_behind_a_correction() -> None:
    earlier = CLOSED | {"candle": OUT | {"candle_time": START - 600}, "revised": True}
    async with saying(Say([ACK, CLOSED, earlier]), Say([ACK]), Say([ACK])) as service:
        await heard(service.url, 8, since=60)
    assert [one["since"] for one in service.subscriptions] == [60, START, START]


async def test_who_follows_live_only_resumes_behind_the_head_at_which_live_began() -> None:
    async with saying(Say([ACK]), Say([ACK, CLOSED])) as service:
        await heard(service.url, 4, since=None)
    assert [one["since"] for one in service.subscriptions] == [None, START]

"""`follow` against a service that a test scripts: messages that the protocol has, and others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
from aiohttp import web

from klinesync.client import BadUrl
from klinesync.client import follow as follow_module
from klinesync.client.asking import ServiceError
from klinesync.client.follow import follow
from klinesync.client.progress import EVERYTHING, What
from klinesync.client.updates import CaughtUp, ClosedCandle, Connected, Disconnected, FormingCandle, Gap, System, Update
from klinesync.core import busy
from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
closed = partial(ClosedCandle, series=BTC)
forming = partial(FormingCandle, series=BTC)
connected = partial(Connected, series=BTC)
disconnected = partial(Disconnected, series=BTC)
system = partial(System, series=BTC)
caught_up = partial(CaughtUp, series=BTC)
gap_ = partial(Gap, series=BTC)
START = 1_700_000_040
OUT = {"candle_time": START, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
CANDLE = Candle(START, 1.0, 2.0, 0.5, 1.5, 10.0)
ACK = {"type": "subscribed", "series_id": str(BTC), "head_time": START, "stream": "live"}
CLOSED = {"type": "candle_closed", "series_id": str(BTC), "candle": OUT}


@dataclass(frozen=True, slots=True)
class Say:
    """The script of one connection: its messages, and then its end. Or an HTTP status in place of a connection."""

    messages: Sequence[object] = ()
    close: int = 1001
    status: int = 101
    headers: Mapping[str, str] = field(default_factory=dict)
    # One more subscription on the same connection, and its messages.
    then: Sequence[object] = ()


@dataclass(slots=True)
class Scripted:
    url: str
    subscriptions: list[dict[str, object]] = field(default_factory=list)
    # Answers to `GET candles`, in order: status, body, headers.
    pages: list[tuple[int, object, dict[str, str]]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def saying(*script: Say) -> AsyncIterator[Scripted]:
    """A service that sends each connection its part of the script; connections beyond the script get nothing."""
    parts = iter(script)

    async def connection(request: web.Request) -> web.StreamResponse:
        part = next(parts, None)
        if part is not None and part.status != 101:
            return web.Response(status=part.status, headers=part.headers)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        service.subscriptions.append(await socket.receive_json())
        if part is None:
            await socket.receive()
            return socket
        for message in part.messages:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_json(message))
        if part.then:
            service.subscriptions.append(await socket.receive_json())
            for message in part.then:
                await socket.send_json(message)
        await socket.close(code=part.close)
        return socket

    async def candles(request: web.Request) -> web.StreamResponse:
        service.asked.append(dict(request.query))
        status, body, headers = service.pages.pop(0)
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_get("/ws/market", connection)
    app.router.add_get("/api/market/candles", candles)
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
    monkeypatch.setattr(follow_module, "RECONNECT", Backoff(0.001, 15.0, jitter=0.5))
    monkeypatch.setattr(busy, "REPEAT", Backoff(0.001, 30.0))


async def heard(
    url: str,
    count: int,
    since: int | None = 0,
    *,
    wait_out_refusals: bool = False,
    what: Collection[What] = EVERYTHING,
) -> list[Update]:
    """The first `count` updates."""
    seen: list[Update] = []
    async with (
        asyncio.timeout(60),
        aclosing(follow(url, BTC, since, what=what, wait_out_refusals=wait_out_refusals)) as updates,
    ):
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
        assert await heard(service.url, 8) == [
            connected(START, "live"),
            gap_(60, START, "healing"),
            closed(CANDLE),
            caught_up(START),
            forming(CANDLE._replace(time=START + 60)),
            closed(CANDLE, revised=True),
            system("resync", "", {"why": [1]}),
            disconnected("the service shuts down"),
        ]


async def test_unknown_types_and_fields_are_ignored() -> None:
    later = [
        {"type": "candle_preview", "candle": 7, "candles": "none", "data": [], "code": None, "state": {"deep": []}},
        ACK | {"data": [1, 2], "candle": 3},
        {"type": "depth", "event": 5, "message": {"a": 1}},
        {"type": "system", "event": "new.kind"},
        CLOSED | {"candle": OUT | {"spread": 12}, "state": 9},
    ]
    async with saying(Say(later)) as service:
        assert await heard(service.url, 3) == [
            connected(START, "live"),
            system("new.kind", "", {}),
            closed(CANDLE),
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
async def test_a_message_that_breaks_the_protocol_is_an_error_with_a_sentence(message: str) -> None:
    async with saying(Say([ACK, message])) as service:
        with pytest.raises(ServiceError, match="breaks the protocol") as raised:
            await heard(service.url, 2)
    assert raised.value.code == "bad_message"


@pytest.mark.parametrize(
    ("code", "message", "sentence"),
    [
        ("capacity", "ondemand_ingest_capacity", "cannot follow another series on demand"),
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


async def test_a_temporary_refusal_is_retried_on_request() -> None:
    full = Say([{"type": "error", "code": "capacity", "message": "ondemand_ingest_capacity"}])
    async with saying(full, Say(status=429), full, Say([ACK, CLOSED])) as service:
        seen = await heard(service.url, 5, wait_out_refusals=True)
    assert [type(update) for update in seen] == [Disconnected, Disconnected, Disconnected, Connected, ClosedCandle]
    assert "on demand" in str(seen[0])
    assert "too many requests" in str(seen[1])


async def test_a_permanent_refusal_is_not_retried() -> None:
    async with saying(Say([{"type": "error", "code": "unknown_series", "message": "there is none"}])) as service:
        with pytest.raises(ServiceError, match="there is none"):
            await heard(service.url, 1, wait_out_refusals=True)


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (401, "401", "token"),
        (403, "403", "does not allow this client"),
        (404, "404", "it is not klinesync"),
        (429, "rate_limited", "too many"),
    ],
)
async def test_a_connection_that_is_refused_is_an_error(status: int, code: str, word: str) -> None:
    async with saying(Say(status=status)) as service:
        with pytest.raises(ServiceError, match=word) as raised:
            await heard(service.url, 1)
    assert raised.value.code == code


async def test_a_service_that_accepts_no_connections_is_retried() -> None:
    async with saying(Say(status=503), Say([ACK])) as service:
        refused, answer = await heard(service.url, 2)
    assert isinstance(refused, Disconnected)
    assert "503" in refused.reason
    assert answer == connected(START, "live")


@pytest.mark.parametrize(
    ("close", "reason"),
    [(1001, "the service shuts down"), (1013, "read too slowly"), (1011, "the service ended the connection")],
)
async def test_the_end_of_a_connection_has_its_reason(close: int, reason: str) -> None:
    async with saying(Say([ACK], close=close)) as service:
        (_, ended) = await heard(service.url, 2)
    assert reason in str(ended)


async def test_a_follower_resumes_after_the_newest_closed_candle_and_not_after_a_correction() -> None:
    earlier = CLOSED | {"candle": OUT | {"candle_time": START - 600}, "revised": True}
    async with saying(Say([ACK, CLOSED, earlier]), Say([ACK]), Say([ACK])) as service:
        await heard(service.url, 11, since=60)
    assert [subscription["since"] for subscription in service.subscriptions] == [60, START, START]


async def test_a_live_only_follower_resumes_after_the_head_at_which_live_began() -> None:
    async with saying(Say([ACK]), Say([ACK, CLOSED])) as service:
        await heard(service.url, 5, since=None)
    assert [subscription["since"] for subscription in service.subscriptions] == [None, START]


def at(minutes: int, **fields: object) -> dict[str, object]:
    """A candle as a message has it, some minutes after `START`."""
    return OUT | {"candle_time": START + 60 * minutes} | fields


def times(seen: Sequence[Update]) -> list[tuple[int, bool]]:
    return [((update.candle.time - START) // 60, update.revised) for update in seen if isinstance(update, ClosedCandle)]


async def test_candles_before_since_are_never_delivered() -> None:
    # An older service pushed older history as single revised candles.
    older = [{"type": "candle_closed", "candle": at(-minutes), "revised": True} for minutes in range(1, 100)]
    messages = [ACK, *older, CLOSED, CLOSED | {"revised": True}, {"type": "candle_closed", "candle": at(-1)}, CLOSED]
    async with saying(Say(messages)) as service:
        seen = await heard(service.url, 5, since=START - 60)
    assert times(seen) == [(0, False), (0, True)]
    assert isinstance(seen[-1], Disconnected)


async def test_live_only_gets_no_correction_from_before_live_began() -> None:
    older = {"type": "candles_batch", "candles": [at(-2), at(-1)], "revised": True}
    empty = ACK | {"head_time": None}
    async with saying(Say([empty, older, CLOSED, older])) as service:
        seen = await heard(service.url, 4, since=None)
    assert seen == [connected(None, "live"), caught_up(None), closed(CANDLE), disconnected("the service shuts down")]


async def test_several_corrections_at_once_are_each_a_revised_candle() -> None:
    revised = {"type": "candles_batch", "candles": [at(0, close=1.75), at(1, close=1.75)], "revised": True}
    async with saying(Say([ACK, CLOSED, {"type": "candle_closed", "candle": at(1)}, revised])) as service:
        seen = await heard(service.url, 7)
    assert times(seen) == [(0, False), (1, False), (0, True), (1, True)]


async def test_the_selected_kinds_are_requested_and_others_of_an_older_service_are_ignored() -> None:
    forming_ = {"type": "candle_forming", "candle": at(1)}
    async with saying(Say([ACK, forming_, CLOSED, forming_, CLOSED | {"revised": True}]), Say([ACK])) as service:
        seen = await heard(service.url, 5, what=["closed"])
    assert [subscription.get("what") for subscription in service.subscriptions] == [["closed"], ["closed"]]
    assert seen[1:4] == [closed(CANDLE), caught_up(START), disconnected("the service shuts down")]
    async with saying(Say([ACK])) as service:
        await heard(service.url, 1)
    assert "what" not in service.subscriptions[0]


async def test_a_forming_candle_that_is_not_newer_than_the_newest_closed_one_is_ignored() -> None:
    stale = {"type": "candle_forming", "candle": OUT}
    async with saying(Say([ACK, CLOSED, stale])) as service:
        assert isinstance((await heard(service.url, 4))[3], Disconnected)


@pytest.mark.parametrize("announced", [True, False], ids=["the service says so", "an older service does not"])
async def test_caught_up_comes_once_a_connection(announced: bool) -> None:
    seam = [{"type": "caught_up", "series_id": str(BTC), "head_time": START}] if announced else []
    live = {"type": "candle_closed", "candle": at(1)}
    async with saying(Say([ACK, CLOSED, *seam, live]), Say([ACK | {"head_time": START + 60}, *seam])) as service:
        seen = await heard(service.url, 7)
    assert seen == [
        connected(START, "live"),
        closed(CANDLE),
        caught_up(START),
        closed(CANDLE._replace(time=START + 60)),
        disconnected("the service shuts down"),
        connected(START + 60, "live"),
        caught_up(START + 60),
    ]


async def test_a_since_in_the_future_counts_as_the_head() -> None:
    live = {"type": "candle_closed", "candle": at(1)}
    first = Say([ACK, {"type": "caught_up", "head_time": START}], then=[ACK, live])
    async with saying(first, Say([ACK])) as service:
        seen = await heard(service.url, 5, since=START + 86_400)
    assert seen[:3] == [connected(START, "live"), caught_up(START), closed(CANDLE._replace(time=START + 60))]
    assert [subscription["since"] for subscription in service.subscriptions] == [START + 86_400, START, START + 60]


async def test_a_restored_store_delivers_no_candle_twice() -> None:
    old = ACK | {"head_time": START}
    again = [{"type": "candle_closed", "candle": at(minutes)} for minutes in range(4)]
    hole = {"type": "gap", "expected_next_time": START - 120, "actual_time": START}
    async with saying(Say([ACK, *again[:3]]), Say([old, hole, *again])) as service:
        seen = await heard(service.url, 9)
    assert times(seen) == [(0, False), (1, False), (2, False), (3, False)]
    assert not [update for update in seen if isinstance(update, Gap)]


async def test_events_of_a_series_are_passed_on() -> None:
    events = [
        {"type": "system", "event": "history.extended", "message": "older", "data": {"first_time": 60}},
        {"type": "system", "event": "slow", "message": "half full"},
    ]
    async with saying(Say([ACK, *events])) as service:
        seen = await heard(service.url, 3, since=START)
    assert seen[2:] == [system("history.extended", "older", {"first_time": 60})]


TRUNCATED = {"type": "gap", "expected_next_time": START - 180, "actual_time": START, "reason": "truncated"}
PAGE = {
    "series_id": str(BTC),
    "server_head_time": START,
    "candles": [at(-3), at(-1)],
    "gaps": [{"start_time": START - 120, "end_time": START - 60, "state": "lost"}],
}


@pytest.mark.parametrize("code", ["busy", "shutting_down"])
async def test_a_page_that_a_busy_service_refuses_is_requested_again(code: str) -> None:
    async with saying(Say([ACK, TRUNCATED, CLOSED])) as service:
        refusal = (503, {"detail": "not now", "code": code}, {"Retry-After": "0"})
        service.pages += [refusal, refusal, (200, PAGE, {})]
        seen = await heard(service.url, 6)
    assert times(seen) == [(-3, False), (-1, False), (0, False)]
    assert seen[2] == gap_(START - 120, START - 60, "lost")
    assert len(service.asked) == 3


async def test_a_long_refusal_of_pages_ends_the_connection_and_a_permanent_one_is_an_error() -> None:
    refusal = (503, {"detail": "not now", "code": "busy"}, {"Retry-After": "0"})
    async with saying(Say([ACK, TRUNCATED, CLOSED]), Say([ACK])) as service:
        service.pages += [refusal] * (busy.MAX_REPEATS + 1)
        seen = await heard(service.url, 2)
    assert seen[1] == disconnected("the service cannot send older candles at present: not now")
    async with saying(Say([ACK, TRUNCATED, CLOSED])) as service:
        service.pages += [(404, {"detail": "there is none", "code": "unknown_series"}, {})]
        with pytest.raises(ServiceError, match="there is none") as raised:
            await heard(service.url, 2)
    assert raised.value.code == "unknown_series"


async def test_a_refused_handshake_is_tried_again_after_the_time_that_the_service_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(follow_module, "_pause", sleep)
    script = [Say(status=503, headers={"Retry-After": value}) for value in ("7", "86400", "soon")]
    async with saying(*script, Say([ACK])) as service:
        await heard(service.url, 4)
    assert slept[:2] == [7.0, follow_module.RETRY_AFTER_MOST_S]
    assert slept[2] < 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "", "ftp://host", "http://", "http://host:port"])
async def test_a_malformed_address_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(BadUrl, match="no address of a service"):
        await heard(url, 1)


async def test_an_unreachable_service_has_a_reason_in_words() -> None:
    assert [str(one) for one in await heard("http://127.0.0.1:9", 1)] == [
        str(disconnected("the service at http://127.0.0.1:9 cannot be reached: connection refused; is it running?"))
    ]

"""Follow one series of a running service: catch-up, then live, over reconnects, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp
import msgspec

from klinesync.client.session import open_session
from klinesync.client.tables import Slices, WireCandle
from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 15.0
HEARTBEAT_S = 20.0
# How long the service may take to answer a request or a handshake, and to accept the end of a connection.
ANSWER_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0
MAX_MESSAGE_BYTES = 4 << 20
PAGE_CANDLES = 5000

# Refusals that may pass: no room for one more series, too many requests, a store that cannot be read at present.
TEMPORARY_REFUSALS = frozenset({"capacity", "rate_limited", "store_error"})
# Of codes that come without a sentence.
SENTENCES = {
    "capacity": "the service follows as many series on demand as it may (its flag ondemand_max_jobs); try again later",
    "rate_limited": "the service has had too many requests of late; try again later",
}
# Why a connection ended, by its code.
ENDS = {
    1001: "the service shuts down",
    1013: "the service ended the connection: it was read too slowly",
}


class _Subscribed(msgspec.Struct, tag_field="type", tag="subscribed"):
    head_time: int | None = None
    stream: str = ""


class _Closed(msgspec.Struct, tag_field="type", tag="candle_closed"):
    candle: WireCandle
    revised: bool = False


class _Batch(msgspec.Struct, tag_field="type", tag="candles_batch"):
    candles: list[WireCandle]


class _Forming(msgspec.Struct, tag_field="type", tag="candle_forming"):
    candle: WireCandle


class _Gap(msgspec.Struct, tag_field="type", tag="gap"):
    expected_next_time: int
    actual_time: int
    reason: str = "missing"
    state: str = "unknown"


class _System(msgspec.Struct, tag_field="type", tag="system"):
    event: str
    message: str = ""
    data: dict[str, object] = {}


class _Error(msgspec.Struct, tag_field="type", tag="error"):
    code: str
    message: str = ""


_Message = _Subscribed | _Closed | _Batch | _Forming | _Gap | _System | _Error
_KNOWN = frozenset({"subscribed", "candle_closed", "candles_batch", "candle_forming", "gap", "system", "error"})


class _Any(msgspec.Struct):
    type: str


class _Page(msgspec.Struct):
    candles: list[WireCandle]


_decode_message: Callable[[str], _Message] = msgspec.json.Decoder(_Message).decode
_decode_any = msgspec.json.Decoder(_Any).decode
_decode_page = msgspec.json.Decoder(_Page).decode


class ServiceError(KlinesyncError):
    """The service answered with an error. `code` is the service's; the message is a sentence."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class _Ended(Exception):
    """The connection ended. The message says why."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The subscription stands; what was missed comes next. `head`: the newest closed open time that the service has;
    `stream`: where its upstream stands (`live`, `reconnecting` …)."""

    head: int | None
    stream: str


@dataclass(frozen=True, slots=True)
class ClosedCandle:
    """A closed candle; `revised`: in place of, or behind, an earlier one. `slices`: what factors knew when it closed,
    for those who follow them too."""

    candle: Candle
    revised: bool = False
    slices: Slices | None = None


@dataclass(frozen=True, slots=True)
class FormingCandle:
    """The candle in progress."""

    candle: Candle


@dataclass(frozen=True, slots=True)
class Gap:
    """Candles from `expected` on are missing before `actual`. `state`: unknown, healing or confirmed_empty."""

    expected: int
    actual: int
    state: str = "unknown"


@dataclass(frozen=True, slots=True)
class System:
    """Something that happened to the series (`event`: `stream.stale`, `backfill.progress` …). `message` is a sentence,
    which may be empty; `data` are the facts."""

    event: str
    message: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; it is made again by itself. `reason` is a sentence."""

    reason: str


Update = Connected | ClosedCandle | FormingCandle | Gap | System | Disconnected


async def follow(
    url: str, series: SeriesId, since: int | None = None, *, wait_out_refusals: bool = False
) -> AsyncGenerator[Update]:
    """Updates of `series` from the service at `url` (http://host:port), after `since`, without end.

    After a disconnect it connects again and resumes behind the newest closed candle. Raises `ServiceError` when the
    service refuses the subscription, or does not speak the protocol. With `wait_out_refusals` those of
    `TEMPORARY_REFUSALS` are a `Disconnected` like any other, and it tries again.
    """
    failures = 0
    async with open_session(ANSWER_TIMEOUT_S) as session:
        while True:
            try:
                async with aclosing(_connection(session, url, series, since)) as updates:
                    async for update in updates:
                        match update:
                            case Connected(head, _):
                                # Live only: after a disconnect it goes on from where live began.
                                since = head if since is None else since
                            case ClosedCandle(candle, revised=False):
                                failures, since = 0, candle.time
                            case _:
                                failures = 0
                        yield update
                reason = ""  # a connection has no other end than those below
            except _Ended as ended:
                reason = str(ended)
            except ServiceError as error:
                if not (wait_out_refusals and error.code in TEMPORARY_REFUSALS):
                    raise
                reason = str(error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reason = f"the service at {url} cannot be reached: {str(error) or type(error).__name__}"
            yield Disconnected(reason)
            await asyncio.sleep(min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MOST_S) * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            failures = min(failures + 1, 10)


async def _pages(
    session: aiohttp.ClientSession, url: str, series: SeriesId, first: int, end: int
) -> AsyncGenerator[ClosedCandle | Gap, None]:
    """What is stored in `[first, end)`, ascending, with the holes told."""
    frame, since, expected = series.timeframe, first - 1, first
    while True:
        params = {"series_id": str(series), "since": str(since), "limit": str(PAGE_CANDLES)}
        async with session.get(f"{url.rstrip('/')}/api/market/candles", params=params) as response:
            response.raise_for_status()
            page = _page(await response.read())
        for item in page:
            if item.candle_time >= end:
                break
            if item.candle_time > expected:
                yield Gap(expected, item.candle_time)
            yield ClosedCandle(item.candle())
            expected = frame.next(item.candle_time)
        if len(page) < PAGE_CANDLES or page[-1].candle_time >= end:
            break
        since = page[-1].candle_time
    if expected < end:
        yield Gap(expected, end)


async def _connection(
    session: aiohttp.ClientSession, url: str, series: SeriesId, since: int | None
) -> AsyncGenerator[Update]:
    """Updates over one connection. Ends with `_Ended`, `ServiceError`, or what aiohttp raises."""
    connecting = session.ws_connect(
        f"{url.rstrip('/')}/ws/market",
        heartbeat=HEARTBEAT_S,
        max_msg_size=MAX_MESSAGE_BYTES,
        timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
    )
    try:
        socket = await connecting
    except aiohttp.WSServerHandshakeError as error:
        raise _refused(url, error.status) from None
    async with socket:
        await socket.send_json(
            {"type": "subscribe", "series_id": str(series), "since": since, "supports_batch": True, "ack": True}
        )
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            match _message(frame.data):
                case _Subscribed(head_time=head, stream=stream):
                    yield Connected(head, stream)
                case _Closed(candle=item, revised=revised):
                    yield ClosedCandle(item.candle(), revised)
                case _Batch(candles=items):
                    for item in items:
                        yield ClosedCandle(item.candle())
                case _Forming(candle=item):
                    yield FormingCandle(item.candle())
                case _Gap(expected_next_time=expected, actual_time=actual, reason="truncated"):
                    # More was stored than one catch-up sends: it is there, and is read page by page.
                    async with aclosing(_pages(session, url, series, expected, actual)) as updates:
                        async for update in updates:
                            yield update
                case _Gap(expected_next_time=expected, actual_time=actual, state=state):
                    yield Gap(expected, actual, state)
                case _System(event=event, message=text, data=data):
                    yield System(event, text, data)
                case _Error(code=code, message=text):
                    raise ServiceError(code, _sentence(code, text))
                case None:
                    pass  # none of a follower's business
        raise _Ended(ENDS.get(socket.close_code or 0, "the service ended the connection"))


def _message(text: str) -> _Message | None:
    """What a message says; None for one of a type that is not known here. Raises `ServiceError`."""
    try:
        return _decode_message(text)
    except msgspec.MsgspecError as error:
        problem = error
    try:
        if _decode_any(text).type not in _KNOWN:
            return None
    except msgspec.MsgspecError as error:
        problem = error
    raise ServiceError("bad_message", f"the service sent what is none of the protocol's messages: {problem}")


def _page(body: bytes) -> list[WireCandle]:
    try:
        return _decode_page(body).candles
    except msgspec.MsgspecError as error:
        raise ServiceError("bad_message", f"the service sent what is no page of candles: {error}") from None


def _sentence(code: str, message: str) -> str:
    """The service's message, where it is a sentence."""
    return message if " " in message else SENTENCES.get(code, f"the service refuses: {message or code}")


def _refused(url: str, status: int) -> ServiceError | _Ended:
    """What an HTTP status in place of a connection means."""
    if status == 429:
        return ServiceError("rate_limited", SENTENCES["rate_limited"])
    if status >= 500:
        return _Ended(f"the service at {url} takes no connections at present: it answered {status}")
    what = {401: "it wants a token", 403: "it does not let this client in", 404: "it is no klinesync"}
    return ServiceError(
        str(status), f"{url} refuses the connection with {status}: {what.get(status, 'no reason given')}"
    )

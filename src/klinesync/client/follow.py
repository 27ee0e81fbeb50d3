"""Follow one series of a running service: catch-up, then live, over reconnects, without a hole or a duplicate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

import aiohttp

from klinesync.client.asking import ANSWER_TIMEOUT_S, ServiceError, get, refusal_in, service_url, unreachable
from klinesync.client.messages import ErrorMessage, GapMessage, Page, SubscribedMessage, message_in, page_in
from klinesync.client.progress import EVERYTHING, Progress, What
from klinesync.client.session import open_session
from klinesync.client.updates import Connected, Disconnected, Update
from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId

# Backoff before a reconnect.
RECONNECT = Backoff(initial_s=0.5, most_s=15.0, jitter=0.5)
# Interval of pings to the service, in seconds; a ping without a pong ends the connection.
HEARTBEAT_S = 20.0
# Longest wait for the service's close frame, in seconds.
CLOSE_TIMEOUT_S = 2.0
# Longest Retry-After of a refused handshake that is followed, in seconds.
RETRY_AFTER_MOST_S = 60.0
MAX_MESSAGE_BYTES = 4 << 20
# Candles of one page over HTTP, the most that the service sends.
PAGE_CANDLES = 5000

# Codes of temporary refusals: no room for another series, too many requests, a store that cannot be read.
TEMPORARY_REFUSALS = frozenset({"capacity", "rate_limited", "store_error", "busy", "shutting_down"})
# Sentences for codes that come without one.
SENTENCES = {
    "capacity": "the service cannot follow another series on demand (flag ondemand_max_jobs); try again later",
    "rate_limited": "the service received too many requests; try again later",
}
# Why a connection ended, by close code.
ENDS = {
    1001: "the service shuts down",
    1013: "the service ended the connection, because this client read too slowly",
}


class _ConnectionEnded(Exception):
    """The connection ended, for the reason in the message. `retry_after_s`: the service's Retry-After."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


async def follow(
    url: str,
    series: SeriesId,
    since: int | None = None,
    *,
    what: Collection[What] = EVERYTHING,
    full: bool = False,
    wait_out_refusals: bool = False,
) -> AsyncGenerator[Update]:
    """Updates of one series, without end. After a disconnect the follower reconnects, and resumes after the newest
    closed candle.

    url: address of the service, http://host:port
    series: the series
    since: open time in UTC seconds, exclusive; neither older candles nor their corrections are delivered. A time in the
        future counts as the service's newest candle. None: live only
    what: the kinds of candles to deliver: `closed`, `forming`, `corrections`; all of them by default
    full: whether candles have their order flow; False by default
    wait_out_refusals: whether temporary refusals (`TEMPORARY_REFUSALS`) are a `Disconnected` and are retried; False by
        default

    Raises `ServiceError` when the service refuses the subscription, or breaks the protocol; `BadUrl`.
    """
    url = service_url(url)
    progress = Progress(series, since, what, full=full)
    failures, rng = 0, random.Random()  # noqa: S311  # jitter
    async with open_session(ANSWER_TIMEOUT_S) as session:
        while True:
            retry_after_s = 0.0
            try:
                async with aclosing(_connection(session, url, progress)) as updates:
                    async for update in updates:
                        if not isinstance(update, Connected):
                            failures = 0
                        yield update
                reason = ""  # never: a connection ends by one of the exceptions below
            except _ConnectionEnded as ended:
                reason, retry_after_s = str(ended), ended.retry_after_s
            except ServiceError as error:
                if not (wait_out_refusals and error.code in TEMPORARY_REFUSALS):
                    raise
                reason = str(error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reason = unreachable(url, error)
            yield Disconnected(reason, series=series)
            await _pause(max(RECONNECT.delay_s(failures, rng), retry_after_s))
            failures += 1


# Waits before a reconnect.
_pause = asyncio.sleep


async def _connection(session: aiohttp.ClientSession, url: str, progress: Progress) -> AsyncGenerator[Update]:
    """Updates over one connection. Ends with `_Ended`, `ServiceError`, or what aiohttp raises."""
    connecting = session.ws_connect(
        f"{url}/ws/market",
        heartbeat=HEARTBEAT_S,
        max_msg_size=MAX_MESSAGE_BYTES,
        timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
    )
    try:
        socket = await connecting
    except aiohttp.WSServerHandshakeError as error:
        raise _refused(url, error) from None
    async with socket:
        await socket.send_json(progress.subscription())
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            match message_in(frame.data):
                case None:
                    pass  # a type that this client does not know
                case ErrorMessage(code=code, message=text, detail=detail):
                    raise ServiceError(code, detail or _sentence(code, text))
                case GapMessage(reason="truncated") as gap:
                    # More is stored than one catch-up sends: the older candles are read over HTTP.
                    if "closed" not in progress.what:
                        continue
                    first, end = gap.expected_next_time, gap.actual_time
                    async with aclosing(_pages(session, url, progress, first, end)) as updates:
                        async for update in updates:
                            yield update
                case SubscribedMessage() as message if progress.ahead(message):
                    await socket.send_json(progress.subscription())
                case message:
                    for update in progress.take(message):
                        yield update
        raise _ConnectionEnded(ENDS.get(socket.close_code or 0, "the service ended the connection"))


async def _pages(
    session: aiohttp.ClientSession, url: str, progress: Progress, first: int, end: int
) -> AsyncGenerator[Update]:
    """Updates of the stored candles and the holes in `[first, end)`, ascending."""
    series = progress.series
    frame, since, expected = series.timeframe, first - 1, first
    while True:
        params = {"series_id": str(series), "since": str(since), "limit": str(PAGE_CANDLES)}
        if progress.full:
            params["fields"] = "full"
        status, body = await get(session, f"{url}/api/market/candles", params)
        if status != 200:
            raise _page_refused(status, body)
        page = page_in(body)
        candles = [item.candle() for item in page.candles]
        for candle in candles:
            if candle.time >= end:
                break
            if candle.time > expected:
                for update in progress.gap(expected, candle.time, _state(page, expected, candle.time)):
                    yield update
            for update in progress.closed([candle]):
                yield update
            expected = frame.next(candle.time)
        if len(candles) < PAGE_CANDLES or candles[-1].time >= end:
            break
        since = candles[-1].time
    if expected < end:
        for update in progress.gap(expected, end, _state(page, expected, end)):
            yield update


def _state(page: Page, start: int, end: int) -> str:
    """The state of a hole by the page; `unknown` when no gap of the page covers the whole hole."""
    states = [gap.state for gap in page.gaps if gap.start_time <= start and end <= gap.end_time]
    return states[0] if states else "unknown"


def _page_refused(status: int, body: bytes) -> ServiceError | _ConnectionEnded:
    """The error of an answer without a page: faults of the service are retried, other answers are refusals."""
    refusal = refusal_in(body)
    why = f"it answered {status}" if refusal is None else refusal.detail
    if status >= 500:
        return _ConnectionEnded(f"the service cannot send older candles at present: {why}")
    return ServiceError(str(status) if refusal is None else refusal.code, f"the service refuses older candles: {why}")


def _sentence(code: str, message: str) -> str:
    """The service's message when it is a sentence; otherwise a sentence of ours for the code."""
    return message if " " in message else SENTENCES.get(code, f"the service refuses: {message or code}")


def _refused(url: str, error: aiohttp.WSServerHandshakeError) -> ServiceError | _ConnectionEnded:
    """The error of a refused handshake, by its HTTP status."""
    status = error.status
    if status == 429:
        return ServiceError("rate_limited", SENTENCES["rate_limited"])
    if status >= 500:
        text = f"the service at {url} accepts no connections at present: it answered {status}"
        return _ConnectionEnded(text, _retry_after_s(error.headers.getall("Retry-After", []) if error.headers else []))
    reasons = {401: "it requires a token", 403: "it does not allow this client", 404: "it is not klinesync"}
    return ServiceError(
        str(status), f"{url} refuses the connection with {status}: {reasons.get(status, 'no reason given')}"
    )


def _retry_after_s(values: Sequence[str]) -> float:
    """Seconds of a Retry-After header; 0 when it is missing or no number."""
    if len(values) != 1 or not values[0].isascii() or not values[0].isdecimal():
        return 0.0
    return min(float(values[0]), RETRY_AFTER_MOST_S)

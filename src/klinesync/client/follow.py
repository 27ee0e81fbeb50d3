"""Follow one series of a running service: catch-up, then live, over reconnects, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp
import msgspec

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 15.0
HEARTBEAT_S = 20.0
MAX_MESSAGE_BYTES = 4 << 20
PAGE_CANDLES = 5000


class _Candle(msgspec.Struct):
    candle_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float

    def candle(self) -> Candle:
        return Candle(self.candle_time, self.open, self.high, self.low, self.close, self.volume)


class _Message(msgspec.Struct):
    type: str
    candle: _Candle | None = None
    candles: list[_Candle] = []
    revised: bool = False
    expected_next_time: int = 0
    actual_time: int = 0
    reason: str = ""
    state: str = ""
    code: str = ""
    message: str = ""
    event: str = ""
    data: dict[str, object] = {}


class _Page(msgspec.Struct):
    candles: list[_Candle]


_decode = msgspec.json.Decoder(_Message).decode


class ServiceError(KlinesyncError):
    """The service answered with an error. `code` is the service's."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ClosedCandle:
    """A closed candle; `revised`: in place of, or behind, an earlier one."""

    candle: Candle
    revised: bool = False


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


Update = ClosedCandle | FormingCandle | Gap | System | Disconnected


async def follow(url: str, series: SeriesId, since: int | None = None) -> AsyncGenerator[Update]:
    """Updates of `series` from the service at `url` (http://host:port), after `since`, without end.

    After a disconnect it connects again and resumes behind the newest closed candle. Raises `ServiceError` when the
    service refuses the subscription.
    """
    failures = 0
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with aclosing(_connection(session, url, series, since)) as updates:
                    async for update in updates:
                        failures = 0
                        if isinstance(update, ClosedCandle) and not update.revised:
                            since = update.candle.time
                        yield update
                reason = "the service ended the connection"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reason = f"the service at {url} cannot be reached: {error}"
            yield Disconnected(reason)
            await asyncio.sleep(min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MOST_S) * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            failures = min(failures + 1, 10)


async def _pages(
    session: aiohttp.ClientSession, url: str, series: SeriesId, since: int, until: int
) -> AsyncGenerator[Candle, None]:
    """Stored candles between `since` and `until`, both exclusive, ascending."""
    while True:
        params = {"series_id": str(series), "since": str(since), "limit": str(PAGE_CANDLES)}
        async with session.get(f"{url.rstrip('/')}/api/market/candles", params=params) as response:
            response.raise_for_status()
            page = msgspec.json.decode(await response.read(), type=_Page).candles
        for item in page:
            if item.candle_time >= until:
                return
            yield item.candle()
        if len(page) < PAGE_CANDLES:
            return
        since = page[-1].candle_time


async def _connection(
    session: aiohttp.ClientSession, url: str, series: SeriesId, since: int | None
) -> AsyncGenerator[Update]:
    async with session.ws_connect(
        f"{url.rstrip('/')}/ws/market", heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE_BYTES
    ) as socket:
        await socket.send_json(
            {"type": "subscribe", "series_id": str(series), "since": since, "supports_batch": True, "ack": True}
        )
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            message = _decode(frame.data)
            match message.type:
                case "candle_closed" if message.candle is not None:
                    yield ClosedCandle(message.candle.candle(), message.revised)
                case "candles_batch":
                    for item in message.candles:
                        yield ClosedCandle(item.candle())
                case "candle_forming" if message.candle is not None:
                    yield FormingCandle(message.candle.candle())
                case "gap" if message.reason == "truncated":
                    # More was stored than one catch-up sends: it is there, and is read page by page.
                    before = message.expected_next_time - 1
                    async for candle in _pages(session, url, series, before, message.actual_time):
                        yield ClosedCandle(candle)
                case "gap":
                    yield Gap(message.expected_next_time, message.actual_time, message.state)
                case "system":
                    yield System(message.event, message.message, message.data)
                case "error":
                    raise ServiceError(message.code, message.message)
                case _:
                    pass  # other messages are none of a follower's business

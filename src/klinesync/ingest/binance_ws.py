"""Binance's kline streams: many on one connection, subscribed and dropped while it runs, with a simple reconnect.

A connection has a set of *wanted* streams; after every connect, and whenever the set changes, it sends what is
missing. An acknowledgement makes a stream *attached*: from then on the exchange has been told, and what was missed
before it is read from REST.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import msgspec

from klinesync.core.candle import Candle, check_candle
from klinesync.core.errors import BadCandle, KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.ingest.binance_rest import symbol_name
from klinesync.runtime.sources import KlineEvent, StreamCallbacks

log = logging.getLogger(__name__)

# The exchange allows 1,024. Fewer make a lost connection cheaper.
STREAMS_PER_CONNECTION = 200
# Names in one SUBSCRIBE, and the pace of messages: spot closes a connection that sends more than 5 a second.
NAMES_PER_MESSAGE = 100
MESSAGE_PACE_S = 0.35
MAX_FRAME_BYTES = 1 << 20
HEARTBEAT_S = 20.0
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 30.0
# A connection that lived this long was healthy: the next failure begins the backoff anew.
HEALTHY_S = 30.0

PATHS = {"spot": "/stream", "futures": "/market/stream"}


class _Kline(msgspec.Struct, gc=False):
    t: int
    i: str
    o: float
    h: float
    l: float  # noqa: E741  # the exchange's name
    c: float
    v: float
    x: msgspec.Raw


class _Event(msgspec.Struct, gc=False):
    E: int
    k: _Kline


class _Error(msgspec.Struct, gc=False):
    code: int = 0
    msg: str = ""


class _Frame(msgspec.Struct, gc=False):
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()
    id: int | None = None
    error: _Error | None = None


# Numbers arrive as text: strict=False reads them. It would read "false" as a flag too, so `x` is left raw.
_FLAG = {b"true": True, b"false": False}
_frame = msgspec.json.Decoder(_Frame)
_event = msgspec.json.Decoder(_Event, strict=False)


class BadFrame(ValueError):
    """A frame that is not what the protocol says. The connection lives on."""


class Refused(KlinesyncError):
    """The exchange answered a request with an error."""

    code = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `id`: what went wrong, or None."""

    id: int | None
    error: str | None


def parse_frame(text: str | bytes, streams: Mapping[str, SeriesId]) -> KlineEvent | Answer | None:
    """What a frame says; None for a stream that is not followed (any more). Raises `BadFrame`, `BadCandle`."""
    try:
        frame = _frame.decode(text)
        if not frame.stream:
            if frame.id is not None or frame.error is not None:
                error = None if frame.error is None else f"{frame.error.code} {frame.error.msg}"
                return Answer(frame.id, error)
            raise BadFrame("it is neither a stream's nor an answer")
        series = streams.get(frame.stream)
        if series is None:
            return None
        event = _event.decode(frame.data)
    except msgspec.DecodeError as problem:
        raise BadFrame(str(problem)) from None
    kline = event.k
    if kline.i != series.timeframe.code:
        raise BadFrame(f"interval {kline.i!r} on stream {frame.stream!r}")
    open_s, rest_ms = divmod(kline.t, 1000)
    if rest_ms:
        raise BadCandle(kline.t / 1000, "its time is no whole second")
    candle = check_candle(Candle(open_s, kline.o, kline.h, kline.l, kline.c, kline.v), series.timeframe)
    closed = _FLAG.get(bytes(kline.x))
    if closed is None:
        raise BadFrame(f"x is {bytes(kline.x)!r}, neither true nor false")
    return KlineEvent(series, candle, closed, event.E)


def stream_name(series: SeriesId) -> str:
    """`btcusdt@kline_1m`."""
    return f"{symbol_name(series).lower()}@kline_{series.timeframe.code}"


class BinanceConnection:
    """One WebSocket connection that carries the wanted streams of one market."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, callbacks: StreamCallbacks, *, rng: random.Random
    ) -> None:
        self._session = session
        self._url = url
        self._callbacks = callbacks
        self._rng = rng
        self._wanted: dict[str, SeriesId] = {}
        self._sent: dict[str, SeriesId] = {}
        self._changed = asyncio.Event()
        self._request = 0
        self._answer: asyncio.Future[str | None] | None = None
        self.reconnects = 0
        self.quarantined = 0

    @property
    def room(self) -> int:
        """How many more streams this connection takes."""
        return STREAMS_PER_CONNECTION - len(self._wanted)

    def want(self, series: SeriesId) -> None:
        """Carry the series' stream from now on."""
        self._wanted[stream_name(series)] = series
        self._changed.set()

    def unwant(self, series: SeriesId) -> None:
        """Drop the series' stream."""
        self._wanted.pop(stream_name(series), None)
        self._changed.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began_s = loop.time()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    socket = await self._session.ws_connect(
                        self._url, heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES
                    )
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.warning("%s cannot be connected: %r", self._url, error)
            else:
                await self._carry(socket)
                log.warning("%s ended with code %s", self._url, socket.close_code)
            self.reconnects += 1
            failures = 0 if loop.time() - began_s > HEALTHY_S else failures + 1
            most_s = min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MOST_S)
            await asyncio.sleep(most_s * self._rng.uniform(0.5, 1.0))

    async def _carry(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Receive, and keep subscribed, until the connection ends."""
        self._changed.set()
        subscriber = asyncio.create_task(self._keep_subscribed(socket), name=f"subscribe {self._url}")
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._take(message.data)
        finally:
            subscriber.cancel()
            await asyncio.gather(subscriber, return_exceptions=True)
            await socket.close()
            lost, self._sent = self._sent, {}
            self._callbacks.lost(lost.values())

    async def _keep_subscribed(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Send the difference between what is wanted and what was sent, whenever it changes, at a pace."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                dropped = [name for name in self._sent if name not in self._wanted]
                for names in _portions(dropped):
                    for name in names:
                        del self._sent[name]
                    await self._ask(socket, "UNSUBSCRIBE", names)
                missing = {name: series for name, series in self._wanted.items() if name not in self._sent}
                for names in _portions(list(missing)):
                    asked = {name: missing[name] for name in names}
                    # Known before the answer: the first push may overtake it.
                    self._sent.update(asked)
                    await self._ask(socket, "SUBSCRIBE", names)
                    for series in asked.values():
                        self._callbacks.attached(series)
        except (ConnectionError, TimeoutError, Refused) as error:
            log.warning("%s: streams cannot be subscribed: %r", self._url, error)
            await socket.close()

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse, method: str, names: Sequence[str]) -> None:
        """Send one request and wait for its answer. Raises `Refused`, TimeoutError, ConnectionError."""
        self._request += 1
        self._answer = asyncio.get_running_loop().create_future()
        request = msgspec.json.encode({"method": method, "params": names, "id": self._request})
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await socket.send_str(request.decode())
            error = await self._answer
        if error is not None:
            raise Refused(f"{method} was answered with {error}")
        await asyncio.sleep(MESSAGE_PACE_S)

    def _take(self, text: str) -> None:
        try:
            message = parse_frame(text, self._sent)
        except (BadFrame, BadCandle) as error:
            self.quarantined += 1
            log.warning("%s: a frame is quarantined: %s", self._url, error)
            return
        if isinstance(message, KlineEvent):
            self._callbacks.event(message)
        elif isinstance(message, Answer):
            waiting = self._answer
            # Errors of requests that cannot be read carry no id: there is one request at a time, so it is that one's.
            if waiting is not None and not waiting.done() and message.id in (self._request, None):
                waiting.set_result(message.error)


def _portions(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + NAMES_PER_MESSAGE] for start in range(0, len(names), NAMES_PER_MESSAGE))

"""Venue: a server on loopback that answers like one venue. A subclass gives answers their format."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import islice
from types import TracebackType
from typing import ClassVar, Self

from aiohttp import WSMessage, WSMsgType, web

from venues.faults import Ask, Body, Cut, DateHeader, Drip, Fault, Hang, Status, StreamFault
from venues.market import Candles, Pair, Quiet, Row

FRAMES_S = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "4h": 14_400, "1d": 86_400}
# How far a faster venue starts behind this machine's clock: ccxt bounds requests by that clock.
QUICK_BEHIND_S = 7200.0
DEFAULT_PAIRS = (
    *(Pair(base) for base in ("BTC", "ETH", "SOL", "XRP", "ADA", "DOT")),
    *(Pair(base, settle="USDT") for base in ("BTC", "ETH", "SOL")),
)


@dataclass(frozen=True, slots=True)
class Query:
    """A request. `body` is the parsed JSON of a POST."""

    path: str
    params: Mapping[str, str]
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """A received request: when (monotonic seconds), of which kind, and its weight at the venue."""

    at_s: float
    ask: Ask
    path: str
    weight: float


class Refused(Exception):
    """The venue refuses the request as invalid."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Venue(ABC):
    """One venue. Use it as an async context manager.

    pairs: the listed pairs.
    speed: how much faster its time passes than ours. It starts at our time, or earlier when it is faster.
    late_ms, always_late: how late rows change, see `Candles`.
    final: makes the final rows.
    """

    name: ClassVar[str]
    quiet: ClassVar[Quiet] = Quiet.FLAT
    # The shortest time between two requests by ccxt, in ms.
    rate_limit_ms: ClassVar[float]
    # How many of the newest candles REST has; None: all.
    depth: ClassVar[int | None] = None
    # The venue's limit per minute, in the unit of `weight`.
    weight_per_minute: float
    stream_path: ClassVar[str | None] = None
    # The venue's names of timeframes.
    bars: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        *,
        pairs: Sequence[Pair] = DEFAULT_PAIRS,
        speed: float = 1.0,
        late_ms: int = 0,
        always_late: bool = False,
    ) -> None:
        self.pairs = list(pairs)
        self.speed = speed
        self.candles = Candles(self.quiet, late_ms, always_late)
        self.faults: dict[Ask, Fault] = {}
        self.stream_fault: StreamFault | None = None if self.stream_path else StreamFault.REFUSED
        self.date = DateHeader.ON
        self.date_ahead_s = 0.0  # of `Date` headers
        self.clock_ahead_s = 0.0  # of the time in REST answers, and of `Date` headers
        self.answers_date_only = False  # its REST does not tell the time
        self.is_polled = False  # ccxt knows no stream of it
        self.listed_share = 1.0  # the part of its list of markets that is sent
        self.enforces_budget = False
        self.seen: list[Seen] = []
        self.handshakes: list[float] = []
        self._start_s = time.monotonic()
        self._start_ms = (time.time() - (QUICK_BEHIND_S if speed > 1.0 else 0.0)) * 1000
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._sockets: set[web.WebSocketResponse] = set()

    # For the assertions of tests.

    @property
    def http_url(self) -> str:
        """The address of REST."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def ws_url(self) -> str:
        """The address of the stream."""
        return f"ws://127.0.0.1:{self._port}"

    def now_ms(self) -> int:
        """The venue's true time."""
        return int(self._start_ms + (time.monotonic() - self._start_s) * 1000 * self.speed)

    def told_ms(self) -> int:
        """The time that the venue reports."""
        return self.now_ms() + int(self.clock_ahead_s * 1000)

    def pair(self, symbol: str, *, swap: bool = False) -> Pair:
        """The pair of that name. Raises `StopIteration`."""
        return next(pair for pair in self.pairs if pair.symbol == symbol and (pair.settle is not None) is swap)

    def final(self, symbol: str, open_s: int, *, swap: bool = False) -> Row | None:
        """The final values of a minute."""
        return self.candles.final(self.pair(symbol, swap=swap), 60, open_s)

    def asked(self, *asks: Ask, since_s: float = float("-inf")) -> int:
        """The number of requests: of those kinds (all where none is named), since that moment."""
        return sum(seen.at_s >= since_s and (not asks or seen.ask in asks) for seen in self.seen)

    # For tests to set.

    def fail(self, fault: Fault, *asks: Ask) -> None:
        """Answer requests of those kinds (all where none is named) with a fault, until `mend`."""
        self.faults.update(dict.fromkeys(asks or Ask, fault))

    def mend(self) -> None:
        """Answer normally again."""
        self.faults.clear()
        self.stream_fault = None if self.stream_path else StreamFault.REFUSED

    async def refuse_connections(self) -> None:
        """Stop listening, and cut all connections."""
        for socket in list(self._sockets):
            await socket.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def listen(self) -> None:
        """Listen (again), at the same address."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_response_prepare.append(self._stamp)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def cut_streams(self) -> None:
        """Cut the connections of streams; clients may reconnect."""
        for socket in list(self._sockets):
            await socket.close()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse_connections()

    # For subclasses to implement.

    @abstractmethod
    def ask(self, query: Query) -> Ask:
        """The kind of the request."""

    @abstractmethod
    def answer(self, query: Query) -> object:
        """The answer as a JSON value. Raises `Refused`."""

    def weight(self, query: Query) -> float:
        """The weight of the request."""
        return 1.0

    def acknowledged(self, path: str, message: Mapping[str, object], subscribed: set[str]) -> list[object]:
        """Handle a message of a client; returns the answers. `subscribed` are the topics of the connection at
        `path`."""
        raise NotImplementedError

    def push(self, topic: str, row: Row, *, closed: bool) -> object:
        """A candle in the format of the stream."""
        raise NotImplementedError

    def topic_pair(self, topic: str) -> tuple[Pair, int] | None:
        """The pair and the timeframe of a topic, in seconds."""
        raise NotImplementedError

    # For subclasses to use.

    def listed(self) -> list[Pair]:
        """The pairs of the list of markets, limited to the part that is sent."""
        return self.pairs[: round(len(self.pairs) * self.listed_share)]

    def frame_s(self, bar: str) -> int:
        """The length of a timeframe by the venue's name. Raises `Refused`."""
        frame = next((frame for frame, word in self.bars.items() if word == bar), None)
        if frame is None:
            raise Refused(400, {"label": "INVALID_PARAM_VALUE", "msg": f"no bar {bar}", "code": "51000"})
        return FRAMES_S[frame]

    def window(self, pair: Pair, frame_s: int, start_s: int, end_s: int) -> list[Row]:
        """The rows that open in [start_s, end_s), ascending, at the present time; at most the venue's depth."""
        return self.candles.rows(pair, frame_s, max(start_s, self.oldest_s(frame_s)), end_s, self.now_ms())

    def newest(self, pair: Pair, frame_s: int, most: int, end_s: int | None = None) -> list[Row]:
        """The newest rows before `end_s`, ascending, at the present time."""
        now_ms = self.now_ms()
        rows = self.candles.newest_first(pair, frame_s, now_ms // 1000 + 1 if end_s is None else end_s, now_ms)
        return list(islice(rows, most))[::-1]

    def oldest_s(self, frame_s: int) -> int:
        """The open time of the oldest row that REST has."""
        if self.depth is None:
            return 0
        return self.now_ms() // 1000 // frame_s * frame_s - (self.depth - 1) * frame_s

    # The server.

    async def _stamp(self, _: web.Request, response: web.StreamResponse) -> None:
        if self.date is DateHeader.OFF:
            response.headers.popall("Date", None)
        else:
            response.headers["Date"] = formatdate(self.told_ms() // 1000 + self.date_ahead_s, usegmt=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._stream(request)
        body = await request.json() if request.can_read_body else {}
        query = Query(request.path, dict(request.query), body)
        ask, weight = self.ask(query), self.weight(query)
        now_s = time.monotonic()
        self.seen.append(Seen(now_s, ask, request.path, weight))
        fault = self.faults.get(ask)
        if fault is None and self.enforces_budget and self.used(now_s) > self.weight_per_minute:
            fault = Status(429, '{"msg":"rate limited"}')
        match fault:
            case Status(status, text, content_type, retry_after):
                headers = {} if retry_after is None else {"Retry-After": retry_after}
                return web.Response(status=status, text=text, content_type=content_type, headers=headers)
            case Body(text, content_type):
                return web.Response(text=text, content_type=content_type)
            case Hang():
                await asyncio.get_running_loop().create_future()
        try:
            told = json.dumps(self.answer(query))
        except Refused as refused:
            return web.json_response(refused.body, status=refused.status)
        if isinstance(fault, Cut):
            told = told[: len(told) // 2]
        if not isinstance(fault, Drip):
            return web.Response(text=told, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Length": str(len(told)), "Content-Type": "application/json"})
        await response.prepare(request)
        for char in told:
            await response.write(char.encode())
            await asyncio.sleep(fault.every_s)
        return response

    def used(self, now_s: float) -> float:
        """The weight used in the venue's last minute, in the unit of `weight`."""
        since_s = now_s - 60.0 / self.speed
        return sum(seen.weight for seen in self.seen if seen.at_s >= since_s)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.handshakes.append(time.monotonic())
        known = self.stream_path is not None and request.path.startswith(self.stream_path)
        if self.stream_fault is StreamFault.REFUSED or not known:
            return web.Response(status=503, text="no stream here")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        subscribed: set[str] = set()
        pushing = asyncio.create_task(self._push_on(socket, subscribed))
        try:
            async for message in socket:
                await self._take(socket, request.path, message, subscribed)
        finally:
            self._sockets.discard(socket)
            pushing.cancel()
            await asyncio.wait([pushing])
        return socket

    async def _take(self, socket: web.WebSocketResponse, path: str, message: WSMessage, subscribed: set[str]) -> None:
        if message.type is not WSMsgType.TEXT:
            return
        if message.data == "ping":
            await socket.send_str("pong")
            return
        for answer in self.acknowledged(path, json.loads(message.data), subscribed):
            await socket.send_json(answer)

    async def _push_on(self, socket: web.WebSocketResponse, subscribed: set[str]) -> None:
        """Push each candle once a second (of the venue, at most twenty times a second of ours), and at its end."""
        open_s: dict[str, int] = {}
        frozen: dict[str, object] = {}
        while not socket.closed:
            now_ms = self.now_ms()
            for topic in sorted(subscribed):
                found = self.topic_pair(topic)
                if found is None or self.stream_fault is StreamFault.SILENT:
                    continue
                pair, frame_s = found
                if self.stream_fault is StreamFault.FROZEN and topic in frozen:
                    await socket.send_json(frozen[topic])
                    continue
                newest_s = now_ms // 1000 // frame_s * frame_s
                last_s = open_s.get(topic, newest_s)
                if last_s < newest_s and now_ms < self.candles.final_ms(pair, frame_s, last_s):
                    newest_s = last_s  # the end of the last candle is still to be pushed
                for at_s in (last_s, newest_s) if last_s < newest_s else (newest_s,):
                    row = self.candles.row(pair, frame_s, at_s, now_ms)
                    if row is not None:
                        if self.stream_fault is StreamFault.WRONG:
                            row = row._replace(high=row.high * 2, close=row.close * 1.5)
                        frozen[topic] = self.push(topic, row, closed=at_s < newest_s)
                        await socket.send_json(frozen[topic])
                open_s[topic] = newest_s
            await asyncio.sleep(max(0.05, 1.0 / self.speed))


def strings(values: Iterable[float]) -> list[str]:
    """Numbers in the venues' notation."""
    return [repr(value) for value in values]

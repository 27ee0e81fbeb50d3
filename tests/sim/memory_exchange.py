"""The simulated exchange without sockets: the same prices, REST, streams and faults as `SimServer`'s, in memory, under
virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from klinesync.sim.clock import ExchangeClock
from klinesync.sim.fault_board import FaultBoard
from klinesync.sim.feed import KlineFeed
from klinesync.sim.limits import LIFETIME_MS
from klinesync.sim.rest import RestApi
from klinesync.sim.rest_request import RestRequest
from klinesync.sim.server import Faults, SimConfig, build_exchange
from klinesync.sim.session import Answer as SessionAnswer
from klinesync.sim.session import Session, parse_route
from klinesync.sim.streams import Listener, Streams
from klinesync.sim.tape import Market
from klinesync.ws.frames import payload_of
from sim.http import Answer
from sim.scenario import EPOCH_S
from sim.virtual_loop import VirtualLoop

# How long an answer or a handshake takes, in seconds.
LATENCY_S = 0.01
# Events handed out before others get their turn.
PUMP_EVENTS = 500
# The shortest pause of the pusher, in seconds: the exchange's clock has whole milliseconds.
LEAST_PAUSE_S = 0.0005
PREFIXES: Mapping[str, Market] = {"/api/v3/": "spot", "/fapi/v1/": "futures"}
CLOSED_BY_US = 1000
CUT = 1006


@dataclass(frozen=True, slots=True)
class Text:
    """A text message of the exchange."""

    data: str
    type: aiohttp.WSMsgType = aiohttp.WSMsgType.TEXT


class MemorySocket:
    """The client's side of one WebSocket."""

    def __init__(self, exchange: MemoryExchange, listener: Listener, opened_ms: int) -> None:
        self.listener = listener
        self.opened_ms = opened_ms
        self.close_code: int | None = None
        self._exchange = exchange
        self._messages: deque[Text] = deque()
        self._news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Text:
        while not self._messages:
            if self.close_code is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._messages.popleft()

    async def send_str(self, data: str) -> None:
        await asyncio.sleep(LATENCY_S)
        if self.close_code is not None:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        self._exchange.received(self, data)

    async def close(self) -> None:
        self._exchange.end(self, CLOSED_BY_US)

    def deliver(self, text: str) -> None:
        """A message arrives."""
        self._messages.append(Text(text))
        self._news.set()

    def ended(self, code: int) -> None:
        """The connection has ended."""
        if self.close_code is None:
            self.close_code = code
            self._news.set()


class MemoryExchange:
    """Both markets, at the level of HTTP (`Http`). `run` is its task.

    config: what is simulated; its start is that of the virtual clock by default.
    loop: gives the time.

    `is_down`: nobody listens at its addresses. `asked`: every request, with its market and name.
    """

    def __init__(self, config: SimConfig, loop: VirtualLoop) -> None:
        self._loop = loop
        exchange, now_ms = build_exchange(config, EPOCH_S + loop.time())
        self.exchange = exchange
        self._clock = ExchangeClock(now_ms, loop.time(), config.speed)
        self._speed = config.speed
        self._api = RestApi(exchange, odd_symbols=config.odd_symbols)
        self._streams = Streams(KlineFeed(exchange))
        self._board = FaultBoard(exchange, self._streams, self._api.faults)
        for fault in config.faults:
            self._board.add(fault, now_ms, at_start=True)
        self._wake = asyncio.Event()
        self.faults = Faults(self._board, self.now_ms, self._faults_changed)
        self.sockets: dict[Listener, MemorySocket] = {}
        self.is_down = False
        self.asked: list[RestRequest] = []

    def now_ms(self) -> int:
        """The exchange's time."""
        return self._clock.now_ms(self._loop.time())

    def advance(self, seconds: float) -> None:
        """Let the exchange's clock jump ahead."""
        self._clock.advance(seconds, self._loop.time())
        self._wake.set()

    def pause(self, paused: bool) -> None:
        """Let the exchange's clock stand still, or go on."""
        self._clock.pause(paused, self._loop.time())
        self._wake.set()

    def lift_all(self) -> None:
        """Lift every fault."""
        for rule in self._board.in_force():
            self.faults.remove(int(str(rule["id"])))

    def die(self) -> None:
        """End every connection; nobody listens any more."""
        self.is_down = True
        for socket in list(self.sockets.values()):
            self.end(socket, CUT)

    # As clients use it.

    def get(self, url: str, params: Mapping[str, str] | None = None) -> Answer:
        if self.is_down:
            return Answer(0, b"", refused())
        path = urlsplit(url).path
        prefix = next(one for one in PREFIXES if path.startswith(one))
        market, name = PREFIXES[prefix], path.removeprefix(prefix)
        request = RestRequest(market, name, dict(params or {}), "127.0.0.1")
        self.asked.append(request)
        answer = self._api.answer(request, self.now_ms())
        wait_s = LATENCY_S
        if self._api.faults.active and (slow := self._api.faults.delay(market, name, request.params)) is not None:
            wait_s += slow.fault.delay_s / self._speed
        return Answer(answer.status, answer.body, wait_s=wait_s, headers=answer.headers)

    async def ws_connect(self, url: str, **_: object) -> MemorySocket:
        await asyncio.sleep(LATENCY_S)
        if self.is_down:
            raise refused()
        parts = urlsplit(url)
        route = parse_route(parts.path, parts.query)
        assert route is not None, url
        refusal = self._board.refuse_connect(route)
        if refusal is not None:
            raise aiohttp.ServerDisconnectedError if refusal.reset else handshake_error(refusal.status)
        listener = Listener(Session(route, route.combined))
        socket = self.sockets[listener] = MemorySocket(self, listener, self.now_ms())
        self._streams.enter(listener)
        self._carry_out(socket, listener.session.open())
        return socket

    async def close(self) -> None:
        for socket in list(self.sockets.values()):
            self.end(socket, CLOSED_BY_US)

    # The exchange's side of sockets.

    def received(self, socket: MemorySocket, text: str) -> None:
        """A message of a client has arrived."""
        self._carry_out(socket, socket.listener.session.receive(text))

    def end(self, socket: MemorySocket, code: int) -> None:
        """End a connection, after what was sent."""
        if self.sockets.pop(socket.listener, None) is not None:
            self._streams.drop(socket.listener)
        socket.ended(code)

    def _carry_out(self, socket: MemorySocket, answer: SessionAnswer) -> None:
        self._streams.carry_out(socket.listener, answer, self.now_ms())
        self._flush(socket.listener)
        self._wake.set()
        if answer.close is not None:
            self.end(socket, answer.close[0])

    def _flush(self, listener: Listener) -> None:
        socket = self.sockets.get(listener)
        if socket is not None:
            for frame in listener.out:
                socket.deliver(payload_of(frame).decode())
        listener.out.clear()

    def _faults_changed(self) -> None:
        for listener in list(self.sockets):
            self._flush(listener)
        self._wake.set()

    async def run(self) -> None:
        """Push what is due until cancelled."""
        streams = self._streams
        while True:
            now_ms = self.now_ms()
            for listener in streams.pump(now_ms, PUMP_EVENTS):
                self._flush(listener)
            due_ms = streams.next_due_ms()
            if due_ms is not None and due_ms <= now_ms:
                await asyncio.sleep(0)
                continue
            for cut in streams.take_cuts(now_ms):
                if (socket := self.sockets.get(cut.listener)) is not None:
                    self._flush(cut.listener)
                    self.end(socket, CUT if cut.code is None else cut.code)
            for socket in list(self.sockets.values()):
                if now_ms - socket.opened_ms >= LIFETIME_MS:
                    self.end(socket, CLOSED_BY_US)
            await self._pause(due_ms, streams.next_cut_ms())

    async def _pause(self, *due_ms: int | None) -> None:
        """Until the first of these times of the exchange, or news."""
        self._wake.clear()
        times = [at_s for at_ms in due_ms if at_ms is not None and (at_s := self._clock.mono_s_at(at_ms)) is not None]
        pause_s = max(LEAST_PAUSE_S, min(times, default=float("inf")) - self._loop.time())
        try:
            async with asyncio.timeout(min(pause_s, 60.0)):
                await self._wake.wait()
        except TimeoutError:
            return


def handshake_error(status: int) -> aiohttp.WSServerHandshakeError:
    """A handshake that is answered with that status."""
    url, headers = URL("ws://exchange"), CIMultiDictProxy(CIMultiDict[str]())
    return aiohttp.WSServerHandshakeError(aiohttp.RequestInfo(url, "GET", headers, url), (), status=status)


def refused() -> aiohttp.ClientConnectionError:
    """Nobody listens at the address."""
    return aiohttp.ClientConnectionError("Cannot connect to host exchange")

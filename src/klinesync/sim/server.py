"""The simulated exchange as a server: REST and WebSocket on one port, a thin shell around what the rest decides.

The file is long because all of it shares one clock, one list of connections and one loop that pushes: what could stand
apart (requests, sessions, streams, faults) does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from klinesync.core.errors import Rejected
from klinesync.sim import archive
from klinesync.sim.clock import ExchangeClock
from klinesync.sim.exchange import SimExchange, make_exchange
from klinesync.sim.fault_board import FaultBoard
from klinesync.sim.faults import ClockSkew, Fault, UnknownFault, decode_fault
from klinesync.sim.feed import SPOT_CADENCE_MS, KlineFeed
from klinesync.sim.generator import LISTED_DAYS, dated_tapes, generated_tapes
from klinesync.sim.heartbeat import Heartbeat
from klinesync.sim.limits import LIFETIME_MS, MESSAGE_LIMIT, MessageLimit
from klinesync.sim.recorded import RecordedTape, choose_start, load_recordings
from klinesync.sim.rest import RestAnswer, RestApi
from klinesync.sim.rest_request import RestRequest
from klinesync.sim.session import Answer, Session, parse_route
from klinesync.sim.streams import Cut, Listener, Streams
from klinesync.sim.tape import Market

log = logging.getLogger(__name__)

MAX_SYMBOLS = 10_000
PUMP_EVENTS = 500  # most events handed out before others get their turn
TICK_S = 0.005  # least time between two rounds of the pusher: what falls due meanwhile is written together
IDLE_S = 0.5
SLOW_LOOK_S = 0.05  # how often an answer that is held back looks whether it still has to be
PATIENT_BYTES = 256 * 1024  # a socket with more than this waiting is slow; catching up waits for it a while
MAX_MESSAGE_BYTES = 64 * 1024
CLOSE_S = 2.0


class BadSimConfig(Rejected):
    """A configuration that no exchange can be made of."""

    code = "bad_sim_config"


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """What is done about sockets that read slowly.

    stalled_s: seconds after which a slow socket that takes nothing is not waited for.
    max_buffer_bytes: bytes that may wait for a socket; with more it is cut off.
    """

    stalled_s: float = 1.0
    max_buffer_bytes: int = 16 << 20


USUAL_READERS = ReaderLimits()


@dataclass(frozen=True, slots=True)
class SimConfig:
    """What to simulate.

    host, port: where it listens; port 0: any.
    speed: of the exchange's clock.
    data: recorded candles; None: they are generated.
    symbols: of each market.
    start: the exchange's now at the start, in unix seconds, in recorded time with `data`; None: the host's now.
    seed: of the generator.
    faults: in force from the start.
    contracts: the generator lists dated and other futures, too.
    odd_symbols: exchangeInfo has items that no client expects.
    listed_days: days before the start since which generated symbols are listed.
    readers: what is done about sockets that read slowly.
    spot_cadence_ms: least time between two updates of a spot stream's candle, in exchange milliseconds.
    """

    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    data: Path | None = None
    symbols: int = 20
    start: int | None = None
    seed: int = 1
    faults: tuple[Fault, ...] = ()
    contracts: bool = False
    odd_symbols: bool = False
    listed_days: int = LISTED_DAYS
    readers: ReaderLimits = USUAL_READERS
    spot_cadence_ms: int = SPOT_CADENCE_MS


def build_exchange(config: SimConfig, host_now_s: float) -> tuple[SimExchange, int]:
    """The exchange that the configuration describes, and its now at the start in milliseconds. Raises `Rejected`."""
    skew_s = sum(fault.skew_s for fault in config.faults if isinstance(fault, ClockSkew))
    host_now_s += skew_s
    if config.data is not None:
        recordings = load_recordings(config.data, config.seed)
        shift_s, now_s = choose_start(recordings, host_now_s, config.start)
        now_s += 0.0 if config.start is None else skew_s
        tapes = [(recording.symbol, RecordedTape(recording.rows, shift_s)) for recording in recordings]
        return make_exchange(tapes, config.seed, shift_s, "recorded"), int(now_s * 1000)
    if not 1 <= config.symbols <= MAX_SYMBOLS:
        raise BadSimConfig(f"symbols is {config.symbols}; the generator makes 1 to {MAX_SYMBOLS} on each market")
    now_s = host_now_s if config.start is None else config.start + skew_s
    if not config.listed_days * 86_400 + 86_400 <= now_s <= 32_503_680_000:
        raise BadSimConfig(f"start is {now_s:.0f}; use a time in unix seconds between 1970-04-02 and the year 3000")
    first_s = (int(now_s) // 86_400 - config.listed_days) * 86_400
    generated = [
        *generated_tapes("spot", config.symbols, config.seed, first_s),
        *generated_tapes("futures", config.symbols, config.seed, first_s),
        *(dated_tapes(config.seed, first_s, int(now_s)) if config.contracts else ()),
    ]
    return make_exchange(generated, config.seed, 0, "generator"), int(now_s * 1000)


@dataclass(eq=False, slots=True)
class _Connection:
    """One WebSocket. Times named `_mono_s` are the host's."""

    number: int
    socket: web.WebSocketResponse
    transport: asyncio.Transport
    path: str
    listener: Listener
    limit: MessageLimit
    opened_ms: int
    heartbeat: Heartbeat
    pings_received: int = 0
    buffered: int = 0
    drained_mono_s: float = 0.0
    stalled: bool = False
    closing: bool = False


class Faults:
    """The faults of a running exchange, for tests in its own process."""

    def __init__(self, board: FaultBoard, now_ms: Callable[[], int], changed: Callable[[], None]) -> None:
        self._board = board
        self._now_ms = now_ms
        self._changed = changed

    def add(self, fault: Fault) -> int:
        """Put the fault in force; its id. Raises `BadFault`."""
        fault_id = self._board.add(fault, self._now_ms())
        self._changed()
        return fault_id

    def remove(self, fault_id: int) -> None:
        """Lift the fault. Raises `UnknownFault`, and `BadFault` for one that cannot be lifted."""
        self._board.remove(fault_id, self._now_ms())
        self._changed()

    def seen(self) -> dict[str, int]:
        """How often the faults of each kind have acted."""
        return self._board.seen()


class SimServer:
    """The running exchange; `async with` starts and stops it. `faults` makes it fail on purpose.

    `http_url` and `ws_url` are valid inside. Raises `Rejected` for a configuration that cannot be simulated, OSError
    when it cannot listen, and RuntimeError on the way out when a defect of its own has ended it.
    """

    def __init__(self, config: SimConfig) -> None:
        self._config = config
        exchange, now_ms = build_exchange(config, time.time())
        self.exchange = exchange
        self._clock = ExchangeClock(now_ms, time.monotonic(), config.speed)
        self._api = RestApi(exchange, odd_symbols=config.odd_symbols)
        self._streams = Streams(KlineFeed(exchange, spot_cadence_ms=config.spot_cadence_ms))
        self._connections: dict[Listener, _Connection] = {}
        self._numbers = count(1)
        self._wake = asyncio.Event()
        self._board = FaultBoard(exchange, self._streams, self._api.faults)
        for fault in config.faults:
            self._board.add(fault, now_ms, at_start=True)
        self.faults = Faults(self._board, self.now_ms, self._faults_changed)
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[object] | None = None
        self._failure: BaseException | None = None
        self.http_url = ""
        self.ws_url = ""

    def now_ms(self) -> int:
        """The exchange's time."""
        return self._clock.now_ms(time.monotonic())

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024)
        app.router.add_route("GET", "/sim/state", self._get_state)
        app.router.add_route("POST", "/sim/clock", self._post_clock)
        app.router.add_route("POST", "/sim/faults", self._post_fault)
        app.router.add_route("DELETE", "/sim/faults/{id}", self._delete_fault)
        app.router.add_route("*", "/api/v3/{path:.*}", self._rest_of("spot"))
        app.router.add_route("*", "/fapi/v1/{path:.*}", self._rest_of("futures"))
        app.router.add_route("GET", "/{path:data/.*}", self._get_archive)
        app.router.add_route("*", "/{path:.*}", self._get_other)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S)
        await runner.setup()
        self._runner = runner
        self._site = web.TCPSite(runner, self._config.host, self._config.port, backlog=1024)
        try:
            await self._site.start()
        except OSError:
            await runner.cleanup()
            raise
        port = runner.addresses[0][1]
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self.http_url = f"http://{host}:{port}"
        self.ws_url = f"ws://{host}:{port}"
        self._owner = asyncio.current_task()
        self._tasks = [
            asyncio.create_task(self._push(), name="sim-push"),
            asyncio.create_task(self._keep_alive(), name="sim-keep-alive"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._broken)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.let_go()
        for task in self._tasks:
            task.remove_done_callback(self._broken)
            task.cancel()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        await asyncio.gather(
            *(self._close(connection, WSCloseCode.GOING_AWAY, "") for connection in list(self._connections.values()))
        )
        if self._runner is not None:
            await self._runner.cleanup()
        if self._failure is not None:
            current = asyncio.current_task()
            if current is not None and current is self._owner:
                current.uncancel()
            raise RuntimeError("the simulated exchange has failed") from self._failure

    def _broken(self, task: asyncio.Task[None]) -> None:
        """A defect of ours ended a task that never ends. Nobody must wait for streams that are dead: connections are
        cut, no new ones are taken, and the task that holds the server is cancelled, to learn why on its way out."""
        if task.cancelled() or self._failure is not None:
            return
        self._failure = task.exception()
        log.critical("%s has failed: the exchange stops", task.get_name(), exc_info=self._failure)
        for connection in self._connections.values():
            connection.transport.abort()
        self._in_background(self._site.stop(), "sim-stop")
        if self._owner is not None and not self._owner.done():
            self._owner.cancel()

    # REST

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def rest(request: web.Request) -> web.Response:
            asked = RestRequest(
                market,
                request.match_info["path"] if request.method == "GET" else f"{request.match_info['path']}?",
                dict(request.query),
                request.remote or "",
                micro=request.headers.get("X-MBX-TIME-UNIT", "").upper() == "MICROSECOND",
                wants_html="text/html" in request.headers.get("Accept", ""),
            )
            for turn, _ in enumerate(self._api.warm_tickers(asked, self.now_ms())):
                if turn % 10 == 9:
                    await asyncio.sleep(0)
            now_ms = self.now_ms()
            answer = self._api.answer(asked, now_ms)
            if self._api.faults.active:
                await self._slow_down(asked, now_ms)
            return self._answer(answer)

        return rest

    async def _slow_down(self, asked: RestRequest, now_ms: int) -> None:
        """Hold an answer back as long as a fault says, at most until it is lifted; the clock may change meanwhile."""
        faults = self._api.faults
        slow = faults.delay(asked.market, asked.path, asked.params)
        if slow is None:
            return
        due_ms = now_ms + slow.fault.delay_s * 1000
        while faults.is_slow(slow) and self.now_ms() < due_ms:
            due_mono_s = self._clock.mono_s_at(due_ms)
            left_s = SLOW_LOOK_S if due_mono_s is None else due_mono_s - time.monotonic()
            await asyncio.sleep(min(SLOW_LOOK_S, max(left_s, 0.001)))

    def _answer(self, answer: RestAnswer) -> web.Response:
        return web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers
        )

    # control

    async def _get_archive(self, request: web.Request) -> web.Response:
        now_ms = self.now_ms()
        file = archive.wanted(self.exchange, request.match_info["path"], now_ms)
        if file is None:
            return web.Response(status=404, text="404: Not Found")
        lines = []
        for day in archive.days(file, now_ms):
            lines.append(day)
            await asyncio.sleep(0)
        body = archive.packed(file, b"".join(lines))
        if body is None:
            return web.Response(status=404, text="404: Not Found")
        return web.Response(body=body, content_type="text/plain" if file.checksum else "application/zip")

    async def _get_state(self, _request: web.Request) -> web.Response:
        mono_s = time.monotonic()
        now_ms = self._clock.now_ms(mono_s)
        exchange = self.exchange
        spot, futures = (
            [name for name, one in listings.items() if one.is_listed(now_ms // 1000)]
            for listings in (exchange.spot, exchange.futures)
        )
        return _json(
            {
                "now_ms": now_ms,
                "speed": self._clock.speed,
                "paused": self._clock.paused,
                "shift_s": exchange.shift_s,
                "seed": exchange.seed,
                "source": exchange.source,
                "symbols": sorted({*spot, *futures}),
                "markets": {"spot": spot, "futures": futures},
                "connections": [
                    {
                        "id": connection.number,
                        "path": connection.path,
                        "market": connection.listener.session.route.market,
                        "live": connection.listener.session.route.live,
                        "streams": len(connection.listener.session.names),
                        "sent": connection.listener.sent,
                        "pings_received": connection.pings_received,
                        "opened_ms": connection.opened_ms,
                        "buffered_bytes": connection.transport.get_write_buffer_size(),
                    }
                    for connection in self._connections.values()
                ],
                "rest_weight_used": self._api.weight_used(now_ms),
                "faults": self._board.in_force(),
                "faults_seen": self._board.seen(),
            }
        )

    async def _post_clock(self, request: web.Request) -> web.Response:
        try:
            change = msgspec.json.decode(await request.read(), type=_ClockChange)
        except msgspec.MsgspecError as error:
            return _json({"detail": f"clock: {error}", "code": "bad_request"}, 422)
        mono_s = time.monotonic()
        try:
            if change.speed is not None:
                self._clock.set_speed(change.speed, mono_s)
            if change.advance_s is not None:
                self._clock.advance(change.advance_s, mono_s)
        except Rejected as error:
            return _json({"detail": str(error), "code": error.code}, 422)
        if change.pause is not None:
            self._clock.pause(change.pause, mono_s)
        self._wake.set()
        return _json({"now_ms": self._clock.now_ms(mono_s), "speed": self._clock.speed, "paused": self._clock.paused})

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            fault_id = self.faults.add(decode_fault(await request.read()))
        except Rejected as error:
            return _json({"detail": str(error), "code": error.code}, 422)
        return _json({"id": fault_id})

    async def _delete_fault(self, request: web.Request) -> web.Response:
        text = request.match_info["id"]
        try:
            if not (text.isascii() and text.isdecimal() and len(text) < 16):
                raise UnknownFault(text[:50])
            self.faults.remove(int(text))
        except Rejected as error:
            status = 404 if isinstance(error, UnknownFault) else 422
            return _json({"detail": str(error), "code": error.code}, status)
        return _json({"id": int(text)})

    def _faults_changed(self) -> None:
        for connection in self._connections.values():
            self._flush(connection)
        self._wake.set()

    # WebSocket

    async def _get_other(self, request: web.Request) -> web.StreamResponse:
        route = parse_route(request.rel_url.raw_path, request.rel_url.raw_query_string)
        if route is None:
            return web.Response(status=404, text="404: Not Found")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.Response(status=400, text="400: this is a WebSocket address")
        refusal = self._board.refuse_connect(route)
        if refusal is not None:
            if refusal.reset and request.transport is not None:
                request.transport.abort()
            return web.Response(status=refusal.status, text=f"{refusal.status}: no connections are taken")
        socket = web.WebSocketResponse(
            autoping=False, compress=False, timeout=CLOSE_S, max_msg_size=MAX_MESSAGE_BYTES, writer_limit=1 << 30
        )
        try:
            await socket.prepare(request)
        except ConnectionResetError:
            # The client has left before its handshake was answered. The server would close a socket; an answer that
            # nobody takes is dropped.
            return web.Response()
        transport = request.transport
        if transport is None:
            return socket
        session = Session(route, route.combined)
        connection = _Connection(
            number=next(self._numbers),
            socket=socket,
            transport=transport,
            path=request.rel_url.raw_path,
            listener=Listener(session),
            limit=MessageLimit(MESSAGE_LIMIT[route.market]),
            opened_ms=self.now_ms(),
            heartbeat=Heartbeat(route.market, time.monotonic()),
        )
        self._connections[connection.listener] = connection
        self._streams.enter(connection.listener)
        try:
            await self._converse(connection)
        finally:
            self._connections.pop(connection.listener, None)
            self._streams.drop(connection.listener)
        return socket

    async def _converse(self, connection: _Connection) -> None:
        session = connection.listener.session
        if await self._carry_out(connection, session.open()):
            return
        async for message in connection.socket:
            if not connection.limit.count(time.monotonic()):
                await self._close(connection, WSCloseCode.POLICY_VIOLATION, "Too many requests")
                return
            if message.type is WSMsgType.PING:
                connection.pings_received += 1
                await connection.socket.pong(message.data)
            elif message.type is WSMsgType.PONG:
                connection.heartbeat.pong(bytes(message.data))
            elif message.type is WSMsgType.TEXT:
                if await self._carry_out(connection, session.receive(message.data)):
                    return
            elif message.type is WSMsgType.BINARY:
                await self._close(connection, WSCloseCode.UNSUPPORTED_DATA, "")
                return

    async def _carry_out(self, connection: _Connection, answer: Answer) -> bool:
        """Do what the answer says; True when the connection is closed by it."""
        self._streams.carry_out(connection.listener, answer, self.now_ms())
        self._flush(connection)
        self._wake.set()
        if answer.close is not None:
            await self._close(connection, answer.close[0], answer.close[1])
            return True
        return False

    async def _close(self, connection: _Connection, code: int, reason: str) -> None:
        if connection.closing:
            return
        connection.closing = True
        self._streams.drop(connection.listener)
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            # A peer that takes nothing any more cannot be told; it is cut off.
            async with asyncio.timeout(CLOSE_S):
                await connection.socket.close(code=code, message=reason.encode())
                return
        connection.transport.abort()

    def _close_soon(self, connection: _Connection, code: int, reason: str) -> None:
        """Close without waiting for the other side: one that does not answer must not hold up the others."""
        self._in_background(self._close(connection, code, reason), f"sim-close-{connection.number}")

    def _cut(self, cut: Cut) -> None:
        connection = self._connections[cut.listener]
        self._flush(connection)
        if cut.code is not None:
            self._close_soon(connection, cut.code, "")
        elif not connection.closing:
            connection.closing = True
            connection.transport.abort()

    def _in_background(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _flush(self, connection: _Connection) -> None:
        """Write what waits for this connection, all in one go; cut it off when it does not read."""
        out = connection.listener.out
        if not out:
            return
        if not (connection.closing or connection.transport.is_closing()):
            connection.transport.write(b"".join(out))
            if connection.transport.get_write_buffer_size() > self._config.readers.max_buffer_bytes:
                log.warning("connection %d reads too slowly: cut off", connection.number)
                connection.closing = True
                connection.transport.abort()
        out.clear()

    async def _push(self) -> None:
        loop = asyncio.get_running_loop()
        streams = self._streams
        while True:
            now_ms = self.now_ms()
            for listener in streams.pump(now_ms, PUMP_EVENTS):
                self._flush(self._connections[listener])
            due_ms = streams.next_due_ms()
            if due_ms is not None and due_ms <= now_ms:
                await self._wait_for_readers()
                continue
            for cut in streams.take_cuts(now_ms):
                self._cut(cut)
            cut_ms = streams.next_cut_ms()
            if cut_ms is not None:
                due_ms = cut_ms if due_ms is None else min(due_ms, cut_ms)
            due_mono_s = None if due_ms is None else self._clock.mono_s_at(due_ms)
            delay_s = IDLE_S if due_mono_s is None else min(IDLE_S, due_mono_s - time.monotonic())
            self._wake.clear()
            timer = loop.call_later(max(delay_s, TICK_S), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    async def _wait_for_readers(self) -> None:
        """While behind: let every socket take what it was given before there is more; one that takes nothing is
        not waited for."""
        await asyncio.sleep(0)
        while True:
            mono_s = time.monotonic()
            waiting = False
            for connection in self._connections.values():
                buffered = connection.transport.get_write_buffer_size()
                if buffered <= PATIENT_BYTES:
                    connection.stalled = False
                    connection.drained_mono_s = mono_s
                elif not connection.stalled:
                    if buffered < connection.buffered:
                        connection.drained_mono_s = mono_s
                    connection.stalled = mono_s - connection.drained_mono_s > self._config.readers.stalled_s
                    waiting = waiting or not connection.stalled
                connection.buffered = buffered
            if not waiting:
                return
            await asyncio.sleep(TICK_S)

    async def _keep_alive(self) -> None:
        """Pings, patience and the end of a connection's day. Pings are about real liveness: they run on the host's
        clock."""
        while True:
            await asyncio.sleep(IDLE_S)
            mono_s = time.monotonic()
            now_ms = self._clock.now_ms(mono_s)
            due_ms = self._streams.next_due_ms()
            behind = due_ms is not None and due_ms <= now_ms
            for connection in list(self._connections.values()):
                if connection.closing:
                    continue
                ping = connection.heartbeat.ping(mono_s, str(now_ms).encode())
                if now_ms - connection.opened_ms >= LIFETIME_MS and not behind:
                    self._close_soon(connection, WSCloseCode.OK, "")
                elif connection.heartbeat.is_dead(mono_s):
                    self._close_soon(connection, WSCloseCode.POLICY_VIOLATION, "Pong timeout")
                elif ping is not None:
                    with contextlib.suppress(ConnectionError):  # it is going: its own task sees to that
                        await connection.socket.ping(ping)


class _ClockChange(msgspec.Struct, forbid_unknown_fields=True):
    speed: float | None = None
    pause: bool | None = None
    advance_s: float | None = None


def _json(body: dict[str, object], status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")

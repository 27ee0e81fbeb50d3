"""The sockets of `/ws/market`: incoming messages are handled in order, the client's outbox writes outgoing ones.

`MarketSocket` is uvicorn's WebSocket protocol. The handshake goes through the application like any request. Then the
route hands the connection over, and ASGI is not used any more: an idle client has no task, queue or scope, and frames
go from the outbox straight to the transport. `AsgiSocket` does the same over ASGI's `receive` and `send`, for other
servers and for the simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn._types import ASGIReceiveEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from klinesync.core.printable import printable
from klinesync.market.error_codes import FrontDoorCode
from klinesync.market.limits import USUAL_CONNECTIONS
from klinesync.market.server_config import limits_of
from klinesync.market_data.orchestrator import MarketDataOrchestrator
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.runtime.bulkheads import Part
from klinesync.ws import protocol
from klinesync.ws.frames import payload_of
from klinesync.ws.hub import Client
from klinesync.ws.outbox import CLOSE_DEFECT, CLOSE_POLICY_VIOLATION, ClientLimits
from klinesync.ws.rate import MessageRate, Verdict

# Longest message of a client, in bytes.
MAX_MESSAGE_BYTES = 64 << 10
# Most fragments of a message, because each fragment costs memory, however short.
MAX_FRAGMENTS = 1000
# Unhandled messages of a client at which its socket is paused.
INBOX_MAX_MESSAGES = 16

# Longest reason of a refused handshake, in characters, because it may contain a header's value.
MAX_REFUSAL_CHARS = 200

CLOSE_NOT_UTF8 = 1007
CLOSE_TOO_BIG = 1009

EXTENSION = "klinesync.socket"


async def serve_socket(websocket: WebSocket, market_data: MarketDataOrchestrator) -> None:
    """Accept a connection and serve it; refused with 503 when too many clients are connected."""
    extensions = websocket.scope.get("extensions", {})
    if market_data.is_full:
        detail = "there are too many connections; try again later"
        answer = {"detail": detail, "code": "too_many_connections"}
        await websocket.send_denial_response(JSONResponse(answer, HTTPStatus.SERVICE_UNAVAILABLE))
        return
    await websocket.accept()
    if EXTENSION in extensions:
        extensions[EXTENSION]["socket"].serve(market_data.subscriptions)
    else:
        coordinator = market_data.subscriptions
        await AsgiSocket(websocket, coordinator.limits).serve(coordinator)


async def handle(coordinator: WsSubscriptionCoordinator, client: Client, rate: MessageRate, text: str | bytes) -> None:
    """Handle one message, unless the client has sent too many."""
    match rate.judge(coordinator.monotonic()):
        case Verdict.TAKEN:
            await coordinator.handle(client, text)
        case Verdict.REFUSED:
            sentence = f"too many messages, this one was not read; send at most {rate.limits.per_s:g} a second"
            client.outbox.put([protocol.error_message("rate_limited", sentence)])
        case Verdict.ABUSE:
            client.outbox.end(CLOSE_POLICY_VIOLATION)


class _DroppedEvents(asyncio.Queue[ASGIReceiveEvent]):
    """The queue of a connection without an application: it drops every event."""

    def put_nowait(self, item: ASGIReceiveEvent) -> None:
        """Drop the event."""


DROPPED = _DroppedEvents()


class SocketProtocol(ServerProtocol):
    """The WebSocket protocol of one connection. A refused handshake is answered in our shape of errors."""

    def reject(self, status: HTTPStatus | int, text: str) -> Response:
        """The answer to a handshake: `status`, and the reason as JSON."""
        response = super().reject(status, text)
        code = _REFUSAL_CODES.get(response.status_code, "bad_request")
        detail = printable(" ".join(text[:MAX_REFUSAL_CHARS].split())) or "the handshake is refused"
        response.body = msgspec.json.encode({"detail": detail, "code": code})
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(response.body)))):
            del response.headers[name]
            response.headers[name] = value
        return response


_REFUSAL_CODES: dict[int, FrontDoorCode] = {
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_URI_TOO_LONG: "too_large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal",
}


class MarketSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol; once `serve` was called, a client's wire.

    The client is disconnected from the coordinator exactly once, as soon as the connection is unusable: at the client's
    close frame, at a protocol error, at the end of its side of the connection, or when the connection is lost.
    """

    write: Callable[[Sequence[bytes]], None]
    _client: Client | None = None
    _coordinator: WsSubscriptionCoordinator
    _rate: MessageRate
    _inbox: deque[str | bytes] | None = None
    _handling: asyncio.Task[None] | None = None
    _write_paused = False

    # --- from the handshake to the client

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = SocketProtocol(max_size=config.ws_max_size, logger=logging.getLogger("uvicorn.error"))
        self._limits = limits_of(config)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Joins the frames. Bound once, because it is called for every message to every client.
        self.write = self.transport.writelines

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake(self.conn.handshake_exc)

    def _refuse_handshake(self, reason: Exception) -> None:
        """Answer a malformed handshake (with a body, or with a line that is too long), and close; uvicorn does
        neither."""
        self.handshake_complete = self.close_sent = True
        answer = b"".join(self.conn.data_to_send())
        if not answer:
            text = f"this is no WebSocket handshake: {reason.__cause__ or reason}"
            answer = self.conn.reject(HTTPStatus.BAD_REQUEST, text).serialize()
        self.transport.write(answer)
        self.transport.close()

    async def run_asgi(self) -> None:
        self.scope["extensions"] = {**(self.scope["extensions"] or {}), EXTENSION: {"socket": self}}
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:  # noqa: BLE001  # counted and logged where it was raised
            self.send_500_response()
        if self._client is None and self.close_timer is None:
            self.transport.close()

    def serve(self, coordinator: WsSubscriptionCoordinator) -> None:
        """Serve a client on the connection, after the handshake."""
        client = Client(self, coordinator.limits)
        self._coordinator = coordinator
        self._rate = MessageRate(coordinator.monotonic(), coordinator.limits.rate)
        coordinator.connected(client)
        self._client = client
        if self.disconnected or self.transport.is_closing():
            self._disconnect()
        early, self.queue = self.queue, DROPPED
        while not early.empty():
            event = early.get_nowait()
            if event["type"] == "websocket.receive":
                self._receive(event.get("text") or event.get("bytes") or b"")
        self._resume_reading()
        # Not used any more.
        del self.scope, self.request, self.response

    def _disconnect(self) -> None:
        """Disconnect the client from the coordinator."""
        client, self._client = self._client, None
        if client is not None:
            self._inbox = None
            self._coordinator.disconnected(client)
            if self._handling is not None:
                self._handling.cancel()

    # --- the client's wire

    def ending(self) -> None:
        """See `Wire`."""
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(self._limits.close_timeout_s, self.transport.abort)

    def close(self, code: int) -> None:
        """See `Wire`."""
        if self.conn.state is State.OPEN and not self.transport.is_closing():
            self.stop_keepalive()
            self.conn.send_close(code)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.ending()
            self._resume_reading()  # for the client's close frame

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused = True
        if self._client is not None:
            self._client.outbox.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused = False
        if self._client is not None:
            self._client.outbox.resume()

    # --- incoming messages

    def send_receive_event_to_app(self) -> None:
        if self._client is None:
            super().send_receive_event_to_app()
            return
        data = b"".join(self.frames)
        self.frames = []
        if self._client.outbox.ended is not None:
            return  # the connection is being closed
        if self.curr_msg_data_type == "bytes":
            self._receive(data)
            return
        try:
            self._receive(data.decode())
        except UnicodeDecodeError:
            self._fail(CLOSE_NOT_UTF8)

    def _receive(self, message: str | bytes) -> None:
        if self._client is None:
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        if self._handling is None:
            self._handling = self._coordinator.bulkheads.begin(
                self.loop, partial(self._handle, self._client), part=Part.CLIENT, name="socket messages"
            )
        if len(self._inbox) >= INBOX_MAX_MESSAGES and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def _handle(self, client: Client) -> None:
        """Handle the messages in the inbox, in order."""
        try:
            while self._inbox:
                await handle(self._coordinator, client, self._rate, self._inbox.popleft())
        except BaseException as reason:
            if isinstance(reason, Exception) and self._client is not None:
                self._fail(CLOSE_DEFECT)
            raise
        finally:
            self._handling = self._inbox = None
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CLOSE_TOO_BIG)
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        if self._write_paused:
            self.conn.data_to_send()  # no pong for a client that does not read
        else:
            super().handle_ping()

    def keepalive_timeout(self) -> None:
        if self.read_paused:
            # The pong may have arrived: we have paused reading.
            self.pong_timer = self.loop.call_later(self._limits.ping_timeout_s, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._disconnect()
        self.ending()

    # --- the end

    def _fail(self, code: int) -> None:
        """Close the connection at once, without the backlog."""
        self.conn.fail(code)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        self._disconnect()
        super().handle_parser_exception()
        self.ending()

    def handle_close(self, event: Frame) -> None:
        self._disconnect()
        super().handle_close(event)
        self.ending()

    def eof_received(self) -> None:
        self._disconnect()
        self.ending()

    def shutdown(self) -> None:
        self._disconnect()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disconnect()


class AsgiSocket:
    """A client's wire over ASGI: one task reads, one writes.

    websocket: the accepted connection.
    clients: limits of the client.
    """

    def __init__(self, websocket: WebSocket, clients: ClientLimits) -> None:
        self._websocket = websocket
        self._frames: list[bytes] = []
        self._code: int | None = None
        self._due = asyncio.Event()
        self._ending = asyncio.Event()
        self._client = Client(self, clients)

    async def serve(self, coordinator: WsSubscriptionCoordinator) -> None:
        """Serve the client until the connection ends."""
        coordinator.connected(self._client)
        loop, begin = asyncio.get_running_loop(), coordinator.bulkheads.begin
        tasks = [
            begin(loop, work, part=Part.CLIENT, name=name)
            for work, name in (
                (self._write, "socket writer"),
                (partial(self._read, coordinator), "socket reader"),
                (self._wait_ending, "socket end"),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.is_set():
                # The writer closes after the backlog; a client that does not read is cut off.
                await asyncio.wait(tasks[:1], timeout=USUAL_CONNECTIONS.close_timeout_s)
        finally:
            coordinator.disconnected(self._client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def write(self, frames: Sequence[bytes]) -> None:
        """See `Wire`."""
        self._frames += frames
        self._client.outbox.pause()
        self._due.set()

    def ending(self) -> None:
        """See `Wire`."""
        self._ending.set()

    def close(self, code: int) -> None:
        """See `Wire`."""
        self._code = code
        self._due.set()

    async def _wait_ending(self) -> None:
        await self._ending.wait()

    async def _read(self, coordinator: WsSubscriptionCoordinator) -> None:
        rate = MessageRate(coordinator.monotonic(), coordinator.limits.rate)
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            await handle(coordinator, self._client, rate, message["bytes"] if text is None else text)

    async def _write(self) -> None:
        # The client may disconnect at any time; the reader, or the next write, then ends the connection.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._due.wait()
                self._due.clear()
                frames, self._frames = self._frames, []
                for frame in frames:
                    await self._websocket.send_text(payload_of(frame).decode())
                if self._code is not None and not self._frames:
                    await self._websocket.close(self._code)
                    return
                self._client.outbox.resume()

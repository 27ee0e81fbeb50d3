"""Limits of HTTP: size of a request's head, time to send the head, number of connections.

uvicorn's parser accepts heads of any length, and waits for them without a limit. A WebSocket's handshake has the same
limits, because it begins as an HTTP request.
"""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus

import msgspec
from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from klinesync.core.printable import printable
from klinesync.market.error_codes import FrontDoorCode
from klinesync.market.limits import USUAL_CONNECTIONS
from klinesync.market.server_config import limits_of
from klinesync.runtime.log_events import Log

log = Log(__name__)

# Longest URL, in bytes, and most headers. Our longest URL has some 300 bytes; browsers send all cookies of `localhost`.
MAX_URL_BYTES = 8 << 10
MAX_HEADERS = 100
# Most bytes of the request line and all headers.
MAX_HEAD_BYTES = 32 << 10
# Reserved file descriptors: for the store and its readers, and connections to exchanges.
OTHER_FILES = 500


def allow_connections(wanted: int = USUAL_CONNECTIONS.connections) -> None:
    """Raise the limit of open files for `wanted` connections, or as far as the system allows. Processes start with a
    limit of about 1,000."""
    needed = wanted + OTHER_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return
    needed = needed if most == resource.RLIM_INFINITY else min(needed, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    if most_connections(wanted) < wanted:
        log.info(
            "connections.limited",
            "%d connections at most: the system lets this process open %d files",
            most_connections(wanted),
            most,
        )


def most_connections(wanted: int = USUAL_CONNECTIONS.connections) -> int:
    """The most connections: `wanted`, or the limit of open files less `OTHER_FILES`, at least half of the
    limit. Refusing a client is better than a store that cannot open a file."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(allowed - OTHER_FILES, allowed // 2))


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP with limits. A request beyond a limit is answered, where an answer is possible, and cut off."""

    _limits = USUAL_CONNECTIONS  # those of the server's configuration, once connected
    _refusal: tuple[HTTPStatus, FrontDoorCode, str] | None = None
    _head_done = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None  # the request in flight, or the last one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._limits = limits_of(self.config)
        if len(self.connections) > most_connections(self._limits.connections):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "come back later")
            self.send_400_response("")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_await()
        if self._running is not None:
            # uvicorn notifies the request that was read last; an earlier one may be in flight.
            _disconnect(self._running)
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle

        async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def sent(message: ASGISendEvent) -> None:
                # We closed the connection because of a later request; uvicorn would still write.
                if self.transport.is_closing():
                    _disconnect(cycle)
                await send(message)

            await app(scope, receive, sent)

        super()._start_asgi_task(cycle, answer)

    def handle_websocket_upgrade(self) -> None:
        if not _is_over(self.cycle):
            # The pending answer would be written between frames, and would not notice a disconnect.
            self._refuse(HTTPStatus.BAD_REQUEST, "bad_request", "an earlier request is not answered yet")
            self.send_400_response("")
            return
        # Cookies are not used, and may be longer than the handshake's parser accepts in one line.
        self.scope["headers"] = [header for header in self.scope["headers"] if header[0] != b"cookie"]
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if _is_over(self.cycle):
            self._await_head()  # these bytes begin the next request
        super().data_received(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._end_await()  # refused, or a WebSocket now
        elif not self._head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(*HEAD_TOO_LONG)
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head_done = False
        self._head_bytes = 0
        self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > MAX_URL_BYTES:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "too_large", f"the URL is longer than {MAX_URL_BYTES} bytes")
            raise ValueError("the URL is too long")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", f"more than {MAX_HEADERS} headers")
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._end_await()
        # Bytes as sent: name, colon, space, value and line end.
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse(*HEAD_TOO_LONG)
            raise ValueError("the head is too long")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with our JSON error, and close the connection."""
        self._end_await()
        if not self._take_answer():
            self.transport.close()  # another answer is in flight
            return
        status, code, detail = self._refusal or (HTTPStatus.BAD_REQUEST, "bad_request", "this is no HTTP request")
        body = msgspec.json.encode({"detail": printable(detail), "code": code})
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _take_answer(self) -> bool:
        """Whether an answer that is written now would belong to the last request. A request with a broken body (an
        unknown encoding, a malformed chunk size) is already with the application, which then gets a disconnect."""
        cycle = self.cycle
        if _is_over(cycle):
            return True
        if self.pipeline or cycle.response_started or not cycle.more_body:
            return False
        _disconnect(cycle)
        return True

    def _refuse(self, status: HTTPStatus, code: FrontDoorCode, detail: str) -> None:
        self._refusal = (status, code, detail)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = asyncio.get_running_loop().call_later(self._limits.head_timeout_s, self._too_slow)

    def _end_await(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        sentence = f"no complete request within {self._limits.head_timeout_s:g} s"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "too_slow", sentence)
        self.send_400_response("")


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Signal a disconnect to a request; its answer is dropped."""
    cycle.disconnected = True
    cycle.message_event.set()


def _is_over(cycle: RequestResponseCycle | None) -> bool:
    """Whether the last request is answered; true without any request."""
    return cycle is None or cycle.response_complete


HEAD_TOO_LONG: tuple[HTTPStatus, FrontDoorCode, str] = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "too_large",
    f"the request's head is longer than {MAX_HEAD_BYTES} bytes",
)

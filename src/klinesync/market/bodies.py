"""Bodies in flight: one budget of bytes for all of them, and a least speed for each.

A body is read whole before the application sees the request, so that a body which is cut off, stalls or exceeds the
budget raises no exception. The traceback of an exception would keep the frames with the pieces of the body alive, until
the garbage collector runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.market.error_codes import FrontDoorCode
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic

MAX_BODY_BYTES = 8 << 20
# Bytes of all bodies in flight, from their first byte to the answer.
MAX_BYTES_IN_FLIGHT = 64 << 20
# Longest time without a byte, in seconds.
STALL_TIMEOUT_S = 20.0
# Least speed, in bytes a second over `SPEED_WINDOW_S`. A phone on a slow line sends ten times as much.
MIN_BYTES_PER_S = 500
SPEED_WINDOW_S = 30.0
# Age, in seconds, from which an arriving body is refused to make room when the budget is full, the slowest body first.
PATIENCE_S = 5.0
# `Retry-After` of a request that was refused because the budget is full, in seconds.
RETRY_AFTER_S = 2
# Methods whose bodies nobody reads.
BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class BodyRefusal:
    """The answer to a request whose body is not read any further."""

    status: int
    code: FrontDoorCode
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


TOO_LARGE = BodyRefusal(413, "too_large", f"the body is longer than {MAX_BODY_BYTES} bytes")
BUSY = BodyRefusal(
    503,
    "busy",
    "too many bytes of bodies are in flight; send the request again after Retry-After",
    ((b"retry-after", b"%d" % RETRY_AFTER_S),),
)
TOO_SLOW = BodyRefusal(
    408,
    "too_slow",
    f"the body brought nothing for {STALL_TIMEOUT_S:g} s, or less than {MIN_BYTES_PER_S} bytes a second "
    f"over {SPEED_WINDOW_S:g} s",
    ((b"connection", b"close"),),
)
SHUTTING_DOWN = BodyRefusal(503, "shutting_down", "the service stops", ((b"connection", b"close"),))


@dataclass(slots=True, eq=False)
class Body:
    """A body in flight.

    began_s, last_s: arrival of the body and of its last byte.
    window_s, window_bytes: start of the window for its speed, and the bytes since.
    arriving: until the body is whole.
    ended: why it is refused; None while it is read.
    wait: the timeout of its reader; None while the reader does not wait.
    """

    began_s: float
    last_s: float
    window_s: float
    size: int = 0
    window_bytes: int = 0
    arriving: bool = True
    ended: BodyRefusal | None = None
    wait: asyncio.Timeout | None = field(default=None, repr=False)

    @classmethod
    def begun(cls, now_s: float) -> Body:
        """A body without any bytes yet."""
        return cls(now_s, now_s, now_s)

    @property
    def deadline_s(self) -> float:
        """When to check again whether the body is too slow."""
        return min(self.last_s + STALL_TIMEOUT_S, self.window_s + SPEED_WINDOW_S)

    def take(self, size: int, now_s: float) -> None:
        """Count bytes that came."""
        self.size += size
        self.window_bytes += size
        if size:
            self.last_s = now_s

    def too_slow(self, now_s: float) -> bool:
        """Whether the body is too slow. Begins the next window when the present one is over."""
        if now_s - self.last_s >= STALL_TIMEOUT_S:
            return True
        if now_s - self.window_s < SPEED_WINDOW_S:
            return False
        slow = self.window_bytes < MIN_BYTES_PER_S * (now_s - self.window_s)
        self.window_s, self.window_bytes = now_s, 0
        return slow

    def speed(self, now_s: float) -> float:
        """Bytes a second since the beginning."""
        return self.size / max(now_s - self.began_s, 1e-3)


class BodyBudget:
    """The bodies in flight, and the bytes that they hold. Pure but for waking up who waits for a body that ends:
    that is due at once by `monotonic`, the clock of its deadlines."""

    def __init__(self, max_bytes: int = MAX_BYTES_IN_FLIGHT, monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s) -> None:
        self.monotonic = monotonic
        self._max_bytes = max_bytes
        self._bodies: set[Body] = set()
        self._closed = False
        self.size = 0

    def begin(self, declared: int, now_s: float) -> Body | BodyRefusal:
        """Admit a new body, or refuse it when the budget has no room. The slowest body that is older than `PATIENCE_S`
        is refused then, too.

        declared: length by the request's head, in bytes; 0 without a length.
        now_s: monotonic seconds.
        """
        if self._closed:
            return SHUTTING_DOWN
        if declared > MAX_BODY_BYTES:
            return TOO_LARGE
        if self.size + max(declared, 1) > self._max_bytes:
            slowest = self._slowest(now_s, min_age_s=PATIENCE_S)
            if slowest is not None:
                self._end(slowest, BUSY)
            return BUSY
        body = Body.begun(now_s)
        self._bodies.add(body)
        return body

    def take(self, body: Body, size: int, now_s: float) -> BodyRefusal | None:
        """Count arrived bytes. Returns why the body is refused, if it is. The slowest arriving bodies make room."""
        if body.ended is not None:
            return body.ended
        body.take(size, now_s)
        self.size += size
        if body.size > MAX_BODY_BYTES:
            self._end(body, TOO_LARGE)
        elif body.too_slow(now_s):
            self._end(body, TOO_SLOW)
        while self.size > self._max_bytes and (slowest := self._slowest(now_s)) is not None:
            self._end(slowest, BUSY)
        return body.ended

    def release(self, body: Body) -> None:
        """Give back the bytes of a body whose request is answered."""
        if body in self._bodies:
            self._bodies.remove(body)
            self.size -= body.size

    def close(self) -> None:
        """The service stops: refuse arriving bodies, and new ones."""
        self._closed = True
        for body in [body for body in self._bodies if body.arriving]:
            self._end(body, SHUTTING_DOWN)

    def _slowest(self, now_s: float, min_age_s: float = 0.0) -> Body | None:
        candidates = [
            body for body in self._bodies if body.arriving and body.size and now_s - body.began_s >= min_age_s
        ]
        return min(candidates, key=lambda body: body.speed(now_s), default=None)

    def _end(self, body: Body, reason: BodyRefusal) -> None:
        """Refuse a body. Its reader drops the pieces as soon as it runs, before anything more is read."""
        body.ended = reason
        self.release(body)
        if body.wait is not None and not body.wait.expired():
            body.wait.reschedule(self.monotonic())


class BodyLimit:
    """ASGI: reads bodies whole, within the budget, and hands each to the application in one piece. Bodies that are too
    long, too slow or beyond the budget are refused; a client that leaves within its body causes no request."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS_METHODS:
            await self._app(scope, receive, send)
            return
        body = self._budget.begin(_declared(scope), self._budget.monotonic())
        if isinstance(body, BodyRefusal):
            await _refuse(body, send)
            return
        try:
            whole = await self._read(body, receive)
            if isinstance(whole, BodyRefusal):
                await _refuse(whole, send)
            elif whole is not None:
                await self._app(scope, _given(whole, receive), send)
        finally:
            self._budget.release(body)

    async def _read(self, body: Body, receive: Receive) -> Message | BodyRefusal | None:
        """The whole body as one message; a refusal; or None when the client has left."""
        pieces: list[bytes] = []
        monotonic = self._budget.monotonic
        while True:
            try:
                async with asyncio.timeout_at(body.deadline_s) as body.wait:
                    message = await receive()
            except TimeoutError:
                if (reason := self._budget.take(body, 0, monotonic())) is not None:
                    return reason
                continue
            finally:
                body.wait = None
            if message["type"] != "http.request":
                return None
            piece = message.get("body", b"")
            if (reason := self._budget.take(body, len(piece), monotonic())) is not None:
                return reason
            pieces.append(piece)
            if not message.get("more_body", False):
                body.arriving = False
                return {"type": "http.request", "body": b"".join(pieces), "more_body": False}


def _given(whole: Message, receive: Receive) -> Receive:
    """Returns the whole body once, then the messages after it: that the client has left."""
    given: list[Message] = [whole]

    async def receive_whole() -> Message:
        return given.pop() if given else await receive()

    return receive_whole


def _declared(scope: Scope) -> int:
    """The length of the body by the request's head; 0 without one. The server has checked that it is a number."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


async def _refuse(refusal: BodyRefusal, send: Send) -> None:
    answer = msgspec.json.encode({"detail": refusal.detail, "code": refusal.code})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)), *refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})

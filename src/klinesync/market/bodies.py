"""Request bodies in flight: a common budget of bytes, and a minimum speed for each.

A body is read completely before the application gets the request, so that a body which is cut off, stalls or exceeds
the budget raises no exception in it. A traceback would keep the frames with the pieces of the body alive until the
garbage collector runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.market.error_codes import SHUTTING_DOWN, Refusal
from klinesync.market.limits import USUAL_BODIES, BodyLimits
from klinesync.market.refusals import send_refusal
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic

MAX_BODY_BYTES = 8 << 20
# `Retry-After` of requests that are refused because the budget is full, in seconds.
RETRY_AFTER_S = 2
# Methods whose bodies are not read.
BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

TOO_LARGE = Refusal(413, "too_large", f"the body is longer than {MAX_BODY_BYTES} bytes")
BUSY = Refusal(
    503,
    "busy",
    "too many bytes of bodies are in flight; send the request again after Retry-After",
    ((b"retry-after", b"%d" % RETRY_AFTER_S),),
)


def too_slow(limits: BodyLimits) -> Refusal:
    """The refusal of a body that is too slow."""
    return Refusal(
        408,
        "too_slow",
        f"the body stalled for {limits.stall_timeout_s:g} s, or brought less than {limits.bytes_per_s} bytes a second "
        f"over {limits.speed_window_s:g} s",
        ((b"connection", b"close"),),
    )


@dataclass(slots=True, eq=False)
class Body:
    """A body in flight.

    limits: of bodies.
    began_s, last_s: arrival of the body and of its last byte.
    window_s, window_bytes: start of the window in which the speed is measured, and the bytes since.
    size: bytes so far.
    arriving: whether more bytes are expected.
    ended: why the body is refused; None while it is not.
    wait: the timeout of its reader; None while the reader does not wait.
    """

    limits: BodyLimits
    began_s: float
    last_s: float
    window_s: float
    size: int = 0
    window_bytes: int = 0
    arriving: bool = True
    ended: Refusal | None = None
    wait: asyncio.Timeout | None = field(default=None, repr=False)

    @classmethod
    def begun(cls, limits: BodyLimits, now_s: float) -> Body:
        """A body without any bytes yet."""
        return cls(limits, now_s, now_s, now_s)

    @property
    def deadline_s(self) -> float:
        """When to check again whether the body is too slow."""
        return min(self.last_s + self.limits.stall_timeout_s, self.window_s + self.limits.speed_window_s)

    def take(self, size: int, now_s: float) -> None:
        """Count arrived bytes."""
        self.size += size
        self.window_bytes += size
        if size:
            self.last_s = now_s

    def too_slow(self, now_s: float) -> bool:
        """Whether the body is too slow. Begins a new window when the current one is over."""
        if now_s - self.last_s >= self.limits.stall_timeout_s:
            return True
        if now_s - self.window_s < self.limits.speed_window_s:
            return False
        slow = self.window_bytes < self.limits.bytes_per_s * (now_s - self.window_s)
        self.window_s, self.window_bytes = now_s, 0
        return slow

    def speed(self, now_s: float) -> float:
        """Bytes a second since the beginning."""
        return self.size / max(now_s - self.began_s, 1e-3)


class BodyBudget:
    """The bodies in flight, and their bytes. Pure, except that the reader of a refused body is woken.

    limits: of bodies.
    monotonic: our clock, by which deadlines are set.
    """

    def __init__(self, limits: BodyLimits = USUAL_BODIES, monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s) -> None:
        self.monotonic = monotonic
        self._limits = limits
        self._too_slow = too_slow(limits)
        self._bodies: set[Body] = set()
        self._closed = False
        self.size = 0

    def begin(self, declared: int, now_s: float) -> Body | Refusal:
        """Admit a new body. Without room in the budget it is refused, and the slowest body that is older than
        `patience_s` too, to make room for later ones.

        declared: length by the request's head, in bytes; 0 without a length.
        now_s: monotonic seconds.

        Returns the body, or the refusal.
        """
        if self._closed:
            return SHUTTING_DOWN
        if declared > MAX_BODY_BYTES:
            return TOO_LARGE
        if self.size + max(declared, 1) > self._limits.bytes_in_flight:
            slowest = self._slowest(now_s, min_age_s=self._limits.patience_s)
            if slowest is not None:
                self._end(slowest, BUSY)
            return BUSY
        body = Body.begun(self._limits, now_s)
        self._bodies.add(body)
        return body

    def take(self, body: Body, size: int, now_s: float) -> Refusal | None:
        """Count arrived bytes; when the budget is exceeded, refuse the slowest arriving bodies. Returns the refusal of
        this body, or None."""
        if body.ended is not None:
            return body.ended
        body.take(size, now_s)
        self.size += size
        if body.size > MAX_BODY_BYTES:
            self._end(body, TOO_LARGE)
        elif body.too_slow(now_s):
            self._end(body, self._too_slow)
        while self.size > self._limits.bytes_in_flight and (slowest := self._slowest(now_s)) is not None:
            self._end(slowest, BUSY)
        return body.ended

    def release(self, body: Body) -> None:
        """Give back the bytes of a body whose request is answered."""
        if body in self._bodies:
            self._bodies.remove(body)
            self.size -= body.size

    def close(self) -> None:
        """Refuse arriving and new bodies, because the service stops."""
        self._closed = True
        for body in [body for body in self._bodies if body.arriving]:
            self._end(body, SHUTTING_DOWN)

    def _slowest(self, now_s: float, min_age_s: float = 0.0) -> Body | None:
        candidates = [
            body for body in self._bodies if body.arriving and body.size and now_s - body.began_s >= min_age_s
        ]
        return min(candidates, key=lambda body: body.speed(now_s), default=None)

    def _end(self, body: Body, reason: Refusal) -> None:
        """Refuse a body, and wake its reader, which drops the pieces."""
        body.ended = reason
        self.release(body)
        if body.wait is not None and not body.wait.expired():
            body.wait.reschedule(self.monotonic())


class BodyLimit:
    """ASGI: reads bodies completely, within the budget, and hands each to the application in one piece. Bodies that are
    too long, too slow or beyond the budget are refused; a client that disconnects within its body causes no request."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS_METHODS:
            await self._app(scope, receive, send)
            return
        body = self._budget.begin(_declared(scope), self._budget.monotonic())
        if isinstance(body, Refusal):
            await send_refusal(scope, send, body)
            return
        try:
            result = await self._read(body, receive)
            if isinstance(result, Refusal):
                await send_refusal(scope, send, result)
            elif result is not None:
                await self._app(scope, _replayed(result, receive), send)
        finally:
            self._budget.release(body)

    async def _read(self, body: Body, receive: Receive) -> Message | Refusal | None:
        """The complete body as one message; a refusal; or None when the client has disconnected."""
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


def _replayed(message: Message, receive: Receive) -> Receive:
    """A `receive` that returns the complete body first, then later messages (the client's disconnect)."""
    pending: list[Message] = [message]

    async def receive_whole() -> Message:
        return pending.pop() if pending else await receive()

    return receive_whole


def _declared(scope: Scope) -> int:
    """The length of the body by the request's head; 0 without one. The server has checked that it is a number."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0

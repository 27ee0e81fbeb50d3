"""The end of requests when the service stops: pending ones are answered with 503 `shutting_down`, new ones refused."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic

# The stop takes at most 5 s, whatever clients do. These are its parts before the store is closed, in seconds:
# for sockets to accept their end (1001), and for requests that are being answered;
CLIENTS_END_S = 1.5
# then for the refusals of requests that still wait, until all connections are cut off.
REFUSALS_SENT_S = 0.5


class Requests:
    """The requests that are being answered."""

    def __init__(self, monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s) -> None:
        self._monotonic = monotonic
        self.stopping = False
        self._ends: set[asyncio.Timeout] = set()

    def stop(self) -> None:
        """From now on new requests are refused."""
        self.stopping = True

    def end(self) -> None:
        """Refuse every request that is not answered yet."""
        self.stopping = True
        now_s = self._monotonic()
        for end in self._ends:
            if not end.expired():
                end.reschedule(now_s)

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let `app` answer a request until `end`; then the request is refused, unless its answer has begun."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            await send(message)  # may wait behind an answer that the client does not read
            begun = True

        end = asyncio.timeout(None)
        try:
            async with end:
                self._ends.add(end)
                await app(scope, receive, sent)
        except TimeoutError:
            if not end.expired():
                raise
            if not begun:
                await refuse(scope, send)
            else:  # half an answer cannot be taken back: the connection is cut off in a moment
                while not (await receive())["type"].endswith(".disconnect"):
                    pass
        finally:
            self._ends.discard(end)


class RequestGate:
    """ASGI: passes requests and handshakes through `Requests`."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self._requests.stopping:
            await refuse(scope, send)
        else:
            await self._requests.run(self._app, scope, receive, send)


async def refuse(scope: Scope, send: Send) -> None:
    """Answer a request or handshake with 503 `shutting_down`."""
    body = msgspec.json.encode({"detail": "the service stops", "code": "shutting_down"})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})

"""The end of requests when the service stops: pending ones are answered with 503 `shutting_down`, new ones refused."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klinesync.market.error_codes import SHUTTING_DOWN
from klinesync.market.refusals import send_refusal
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic

# The stop takes at most 5 s, whatever clients do. Before the store is closed, in seconds: the wait for sockets to
# accept their end (1001) and for requests in flight;
CLIENTS_END_S = 1.5
# then the wait for the refusals of pending requests, after which all connections are cut off.
REFUSALS_SENT_S = 0.5


class Requests:
    """The requests in flight."""

    def __init__(self, monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s) -> None:
        self._monotonic = monotonic
        self.stopping = False
        self._ends: set[asyncio.Timeout] = set()

    def stop(self) -> None:
        """Refuse new requests from now on."""
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
            await send(message)  # may wait for the client to read an earlier answer
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
                await send_refusal(scope, send, SHUTTING_DOWN)
            else:  # a begun answer cannot be replaced: wait until the connection is cut off
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
            await send_refusal(scope, send, SHUTTING_DOWN)
        else:
            await self._requests.run(self._app, scope, receive, send)

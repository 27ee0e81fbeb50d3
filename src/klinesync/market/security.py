"""The guard as ASGI middleware: it decides before any other part sees a request."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import Security
from fastapi.params import Depends
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from klinesync.core.printable import printable
from klinesync.market.guard import Guard, Refusal, RequestHead
from klinesync.runtime.log_events import Log

log = Log(__name__)

# Most foreign origins that are logged, each once; a browser can be made to send any number of origins.
MAX_ORIGINS_LOGGED = 100
# For the OpenAPI document alone: that a route takes the token. `Security` below checks it, before a body is read.
TOKEN: Sequence[Depends] = (
    Security(HTTPBearer(auto_error=False, description="`api_token`; needed when the flag is set")),
)


class GuardedApp:
    """ASGI: asks the guard about each request and handshake, and answers the refused ones."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard
        self._told: set[str] = set()  # foreign origins that were logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        head = head_of(scope)
        refusal = self._guard.refuses(head)
        # A read is answered, but the browser keeps the answer from the page: its user sees a refusal too.
        origin = self._guard.foreign_origin(head) if head.origins else None
        if origin is not None:
            self._tell(origin)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _answer(refusal, scope, send)

    def _tell(self, origin: str) -> None:
        """Log a refused origin, once, with what admits it. Origins beyond `MAX_ORIGINS_LOGGED` are not logged."""
        if origin in self._told or len(self._told) >= MAX_ORIGINS_LOGGED:
            return
        self._told.add(origin)
        log.warning(
            "origin.refused",
            "a page from there may not connect; if it is yours, admit it: "
            "--allowed-origins %s (KLINESYNC_ALLOWED_ORIGINS)",
            origin,
            origin=origin,
        )


def head_of(scope: Scope) -> RequestHead:
    """The parts of a request that the guard looks at."""
    hosts: list[bytes] = []
    origins: list[bytes] = []
    authorizations: list[bytes] = []
    fetch_sites: list[bytes] = []
    wanted = {b"host": hosts, b"origin": origins, b"authorization": authorizations, b"sec-fetch-site": fetch_sites}
    for name, value in scope["headers"]:
        if (values := wanted.get(name.lower())) is not None:
            values.append(value)
    server = scope.get("server")
    return RequestHead(
        kind=scope["type"],
        method=scope.get("method", "GET"),
        path=scope["path"],
        address=None if server is None else server[0],
        hosts=hosts,
        origins=origins,
        authorizations=authorizations,
        fetch_sites=fetch_sites,
    )


async def _answer(refusal: Refusal, scope: Scope, send: Send) -> None:
    body = msgspec.json.encode({"detail": printable(refusal.detail), "code": refusal.code})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})

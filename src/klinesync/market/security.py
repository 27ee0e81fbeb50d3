"""The guard as ASGI middleware: it decides before any other part sees a request."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from klinesync.market.guard import Guard, RequestHead
from klinesync.market.refusals import send_refusal
from klinesync.runtime.log_events import Log

log = Log(__name__)

# Most foreign origins that are logged, each once; a browser can be made to send any number of origins.
MAX_ORIGINS_LOGGED = 100
# For the OpenAPI document: the route requires the token, which `GuardedApp` checks before the body is read.
TOKEN: Sequence[Depends] = (
    Security(HTTPBearer(auto_error=False, description="`api_token`; required when the flag is set")),
)


class GuardedApp:
    """ASGI: checks each request and handshake with the guard, and answers refused ones."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard
        self._logged: set[str] = set()  # logged foreign origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        head = head_of(scope)
        refusal = self._guard.refuses(head)
        # A read is answered, but the browser withholds the answer from the page; for its user that is a refusal too.
        origin = self._guard.foreign_origin(head) if head.origins else None
        if origin is not None:
            self._log_origin(origin)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await send_refusal(scope, send, refusal)

    def _log_origin(self, origin: str) -> None:
        """Log a refused origin once, with the flag that admits it. At most `MAX_ORIGINS_LOGGED` are logged."""
        if origin in self._logged or len(self._logged) >= MAX_ORIGINS_LOGGED:
            return
        self._logged.add(origin)
        log.warning(
            "origin.refused",
            "a page of this origin may not connect; if the page is yours, admit the origin: "
            "--allowed-origins %s (KLINESYNC_ALLOWED_ORIGINS)",
            origin,
            origin=origin,
        )


def head_of(scope: Scope) -> RequestHead:
    """The parts of a request that the guard checks."""
    hosts: list[bytes] = []
    origins: list[bytes] = []
    authorizations: list[bytes] = []
    fetch_sites: list[bytes] = []
    values_by_name = {
        b"host": hosts,
        b"origin": origins,
        b"authorization": authorizations,
        b"sec-fetch-site": fetch_sites,
    }
    for name, value in scope["headers"]:
        if (values := values_by_name.get(name.lower())) is not None:
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

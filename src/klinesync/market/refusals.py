"""The answer to a refused request or handshake, for ASGI middleware."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.types import Scope, Send

from klinesync.core.printable import printable
from klinesync.market.error_codes import FrontDoorCode


async def send_refusal(
    scope: Scope,
    send: Send,
    status: int,
    code: FrontDoorCode,
    detail: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer a request or a handshake with an error.

    scope, send: of the ASGI request.
    status: HTTP status.
    code: for programs.
    detail: a sentence for people; control characters are escaped.
    headers: in addition to type and length of the body; none by default.
    """
    body = msgspec.json.encode({"detail": printable(detail), "code": code})
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": f"{kind}.start", "status": status, "headers": head})
    await send({"type": f"{kind}.body", "body": body})

"""The answer to a refused request or handshake, for ASGI middleware."""

from __future__ import annotations

import msgspec
from starlette.types import Scope, Send

from klinesync.core.printable import printable
from klinesync.market.error_codes import Refusal


async def send_refusal(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answer a request or a handshake with an error. Control characters of the sentence are escaped.

    scope, send: of the ASGI request.
    refusal: the answer.
    """
    body = msgspec.json.encode({"detail": printable(refusal.detail), "code": refusal.code})
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refusal.headers]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})

"""HTTP: the whole service in one look, once, or followed as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from klinesync.market.http_routes import runtime_of
from klinesync.market.schemas import ErrorAnswer, ServiceStatusAnswer
from klinesync.market_data.status_service import StatusService

router = APIRouter(prefix="/api/market/status", tags=["health"])
_encode = msgspec.json.Encoder().encode

# One event of the stream; `data` is JSON, as `GET /api/market/status` answers it.
EVENT_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "event": {"enum": ["status"]},
        "id": {"type": "string", "description": "`now_time`"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


class StatusStream(StreamingResponse):
    """Server-sent events: the status whenever it has changed."""

    media_type = "text/event-stream"

    def __init__(self, service: StatusService) -> None:
        self._service = service
        self._events = service.follow()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._texts(), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry the events until they end or the client is gone. Raises `RateLimited` before the first byte."""
        with self._service.streaming():
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)

    async def _texts(self) -> AsyncGenerator[bytes, None]:
        async for status in self._events:
            yield b"event: status\nid: %d\ndata: %b\n\n" % (status.now_time, _encode(status))


@router.get("", responses={200: {"model": ServiceStatusAnswer}}, response_class=Response)
async def get_status(request: Request) -> Response:
    """One status with one reason, and the exchanges, series and store that the status follows from."""
    status = await runtime_of(request).status.status()
    return Response(_encode(status), media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get(
    "/stream",
    status_code=200,
    responses={
        200: {"content": {"text/event-stream": {"schema": EVENT_SCHEMA}}, "description": "server-sent events"},
        429: {"model": ErrorAnswer},
    },
    response_class=Response,
)
async def stream_status(request: Request) -> StatusStream:
    """The same as server-sent events: at once, then on change, at most one a second, at least one in 15 seconds."""
    return StatusStream(runtime_of(request).status)

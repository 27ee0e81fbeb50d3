"""HTTP: the status of the whole service, once or as server-sent events."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from klinesync.market.event_stream import EventStream, described
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import error_answers
from klinesync.market_data.status import ServiceStatus

router = APIRouter(prefix="/api/market/status", tags=["health"])
_encode = msgspec.json.Encoder().encode


def event_text(status: ServiceStatus) -> bytes:
    """A status as one event."""
    return b"event: status\nid: %d\ndata: %b\n\n" % (status.now_time, _encode(status))


@router.get("", responses={200: {"model": ServiceStatus}}, response_class=Response)
async def get_status(request: Request) -> Response:
    """One status with one reason, and the facts about exchanges, series and store."""
    status = await market_data_of(request).status.status()
    return Response(_encode(status), media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get(
    "/stream",
    status_code=200,
    responses={
        200: described("status", id_is="now_time"),
        **error_answers({429: ["rate_limited"]}),
    },
    response_class=Response,
)
async def stream_status(request: Request) -> Response:
    """The same as server-sent events: at once, then on change, at most one a second, at least one in 15 seconds."""
    service = market_data_of(request).status
    return EventStream(service.follow(), event_text, service.streams.place)

"""HTTP: metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from klinesync.market.front import front_of
from klinesync.market.schemas import UNREADABLE_CODES, error_answers

router = APIRouter(tags=["service"])


@router.get(
    "/metrics",
    responses={
        200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}},
        **error_answers({503: UNREADABLE_CODES}),
    },
    response_class=Response,
)
async def get_metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format. Values from the store are up to 10 s old."""
    return Response(await front_of(request).inspection.metrics(), media_type=CONTENT_TYPE_LATEST)

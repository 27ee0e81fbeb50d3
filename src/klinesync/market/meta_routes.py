"""HTTP: what is ingested, and whether the service lives."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from klinesync.market.http_routes import runtime_of
from klinesync.market.schemas import StatusAnswer, WhitelistAnswer

router = APIRouter(tags=["service"])


@router.get("/api/market/whitelist")
async def get_whitelist(request: Request) -> WhitelistAnswer:
    """The series that are ingested for as long as the service runs."""
    runtime = runtime_of(request)
    return WhitelistAnswer(
        series_ids=[str(series) for series in runtime.whitelist],
        derived_base_timeframe=runtime.derived.base.code,
        derived_timeframes=[target.code for target in runtime.derived.targets],
    )


@router.get("/healthz")
async def get_healthz() -> StatusAnswer:
    """The process answers."""
    return StatusAnswer(status="ok")


@router.get("/readyz", responses={503: {"model": StatusAnswer}})
async def get_readyz(request: Request, response: Response) -> StatusAnswer:
    """The service has started, and its store can be read and written."""
    trouble = await runtime_of(request).unready()
    if trouble is None:
        return StatusAnswer(status="ready")
    response.status_code = 503
    return StatusAnswer(status=trouble)

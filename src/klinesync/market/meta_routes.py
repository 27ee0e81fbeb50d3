"""HTTP: what is ingested, and whether the service lives."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from klinesync.market.http_routes import runtime_of
from klinesync.market.schemas import ReadyAnswer, StatusAnswer, WhitelistAnswer

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


@router.get("/readyz", responses={503: {"model": ReadyAnswer}}, response_model_exclude_none=True)
async def get_readyz(request: Request, response: Response) -> ReadyAnswer:
    """The service has started, and its store can be read and written. What is stored is served though an exchange
    refuses the service, or gives no answer: `detail` says so then."""
    runtime = runtime_of(request)
    trouble = await runtime.unready()
    if trouble is None:
        told = await runtime.status.status()
        silent = told.status_reason in ("exchange_refuses", "exchange_unreachable")
        return ReadyAnswer(status="ready", detail=told.detail if silent else None)
    response.status_code = 503
    return ReadyAnswer(status=trouble)

"""HTTP: the whitelist, liveness and readiness."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from klinesync.market.http_routes import market_data_of
from klinesync.market.runtime import MarketRuntime
from klinesync.market.schemas import ReadyAnswer, StatusAnswer, WhitelistAnswer

router = APIRouter(tags=["service"])


def readiness_of(request: Request) -> MarketRuntime:
    """The runtime of the application, which knows whether it has started."""
    runtime = request.app.state.runtime
    assert isinstance(runtime, MarketRuntime)
    return runtime


@router.get("/api/market/whitelist")
async def get_whitelist(request: Request) -> WhitelistAnswer:
    """The series that are always ingested."""
    market_data = market_data_of(request)
    return WhitelistAnswer(
        series_ids=[str(series) for series in market_data.whitelist],
        derived_base_timeframe=market_data.derived.base.code,
        derived_timeframes=[target.code for target in market_data.derived.targets],
    )


@router.get("/healthz")
async def get_healthz() -> StatusAnswer:
    """The process answers."""
    return StatusAnswer(status="ok")


@router.get("/readyz", responses={503: {"model": ReadyAnswer}}, response_model_exclude_none=True)
async def get_readyz(request: Request, response: Response) -> ReadyAnswer:
    """The service has started, and its store can be read and written. `detail` reports an exchange that refuses the
    service or gives no answer; stored candles are served all the same."""
    trouble = await readiness_of(request).unready()
    if trouble is None:
        status = await market_data_of(request).status.status()
        silent = status.status_reason in ("exchange_refuses", "exchange_unreachable")
        return ReadyAnswer(status="ready", detail=status.detail if silent else None)
    response.status_code = 503
    return ReadyAnswer(status=trouble)

"""HTTP: why is this candle not here?"""

from __future__ import annotations

from fastapi import APIRouter, Request

from klinesync.core.series_id import SeriesId
from klinesync.market.explain_schemas import ExplainAnswer
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import SERIES_UNREADABLE, SeriesIdQuery

router = APIRouter(prefix="/api/market", tags=["health"])


@router.get("/explain", responses=SERIES_UNREADABLE)
async def get_explain(request: Request, series_id: SeriesIdQuery) -> ExplainAnswer:
    """The missing candles of a series, their requests, and the recent events. The exchange is not asked."""
    return ExplainAnswer.of(await market_data_of(request).explain.explain(SeriesId.parse(series_id)))

"""HTTP: the health of a series."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request

from klinesync.core.series_id import SeriesId
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import SERIES_UNREADABLE, HealthAnswer, SeriesIdQuery, error_answers

HEALTH_UNKNOWN = SERIES_UNREADABLE | error_answers({404: ["unknown_series", "not_found"]})

router = APIRouter(prefix="/api/market", tags=["health"])


@router.get("/health", responses=HEALTH_UNKNOWN)
async def get_health(request: Request, series_id: SeriesIdQuery) -> HealthAnswer:
    """Status, reason and facts of an ingested or derived series."""
    service = market_data_of(request).health
    if service is None:
        raise HTTPException(404)  # health is switched off
    return HealthAnswer.model_validate(await service.health(SeriesId.parse(series_id)), from_attributes=True)

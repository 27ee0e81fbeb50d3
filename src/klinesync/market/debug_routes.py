"""HTTP: the debug API. These routes exist when `enable_debug_api` is on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from klinesync.core.series_id import SeriesId
from klinesync.market.front import DebugApi, front_of
from klinesync.market.schemas import (
    CANDLE_REFUSED,
    SERIES_UNREADABLE,
    CandleFormingAnswer,
    CandleFormingBody,
    IngestStateAnswer,
    QueuesAnswer,
    RestAnswer,
    SeriesIdQuery,
)
from klinesync.market.strict_json import StrictJsonRoute
from klinesync.market_data.series_health import SeriesHealth

MAX_RECENT_GAPS = 1000
DEFAULT_RECENT_GAPS = 20
MAX_BASE_BUCKETS = 1000
DEFAULT_BASE_BUCKETS = 10

router = APIRouter(
    prefix="/api/market",
    tags=["debug"],
    route_class=StrictJsonRoute,
)


def debug_of(request: Request) -> DebugApi:
    """The parts of the debug API; these routes exist only with them."""
    debug = front_of(request).debug
    assert debug is not None
    return debug


@router.get("/debug/ingest_state")
async def get_ingest_state(request: Request) -> IngestStateAnswer:
    """The ingest jobs, the connections to the exchange, the backlogs, and the state of REST."""
    inspection, supervisors = front_of(request).inspection, debug_of(request).supervisors
    return IngestStateAnswer(
        jobs=supervisors.jobs_state(),
        connections=supervisors.connections_state(),
        queues=QueuesAnswer(**inspection.queues()),
        rest={
            f"{exchange}:{market}": RestAnswer.model_validate(
                asdict(status)
                | {
                    "waiting": {urgency.name.lower(): count for urgency, count in status.waiting.items()},
                    "errors": {str(http_status): count for http_status, count in status.errors.items()},
                }
            )
            for (exchange, market), status in inspection.rest().items()
        },
    )


@router.get("/debug/series_health", responses=SERIES_UNREADABLE)
async def get_series_health(
    request: Request,
    series_id: SeriesIdQuery,
    max_recent_gaps: Annotated[int, Query(ge=0, le=MAX_RECENT_GAPS)] = DEFAULT_RECENT_GAPS,
    recent_base_buckets: Annotated[int, Query(ge=0, le=MAX_BASE_BUCKETS)] = DEFAULT_BASE_BUCKETS,
) -> SeriesHealth:
    """The stored data of a series: its span, its newest holes, and for a derived series the completeness of its newest
    closed buckets in the base."""
    series = SeriesId.parse(series_id)
    return await debug_of(request).series_health.look(series, max_recent_gaps, recent_base_buckets)


@router.post("/ingest/candle_forming", responses=CANDLE_REFUSED)
async def post_candle_forming(request: Request, body: CandleFormingBody) -> CandleFormingAnswer:
    """Send a candle in progress to the subscribers of the series. The candle is not stored."""
    series, candle = SeriesId.parse(body.series_id), body.candle.candle()
    debug_of(request).forming.ingest_candle_forming(series, candle)
    return CandleFormingAnswer(ok=True, series_id=str(series), candle_time=candle.time)

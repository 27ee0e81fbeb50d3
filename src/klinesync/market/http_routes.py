"""HTTP: candles out, closed candles in."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import HTTPConnection

from klinesync.core.candle import MAX_TIME
from klinesync.core.series_id import SeriesId
from klinesync.market.schemas import (
    CANDLE_REFUSED,
    NOTHING_STORED,
    SERIES_UNREADABLE,
    CandleClosedAnswer,
    CandleClosedBody,
    CandlesAnswer,
    CandlesClosedAnswer,
    CandlesClosedBody,
    SeriesIdQuery,
)
from klinesync.market.strict_json import StrictJsonRoute
from klinesync.market_data.ingest_service import Checked
from klinesync.market_data.orchestrator import MarketDataOrchestrator

MAX_PAGE_CANDLES = 5000
DEFAULT_PAGE_CANDLES = 500

router = APIRouter(prefix="/api/market", tags=["candles"])
ingest_router = APIRouter(prefix="/api/market/ingest", tags=["candles"], route_class=StrictJsonRoute)

INGEST_ANSWERS = CANDLE_REFUSED | NOTHING_STORED

Time = Annotated[int | None, Query(ge=0, le=MAX_TIME)]


def market_data_of(request: HTTPConnection) -> MarketDataOrchestrator:
    """The market data services of the application."""
    market_data = request.app.state.runtime.market_data
    assert isinstance(market_data, MarketDataOrchestrator)
    return market_data


@router.get(
    "/candles",
    responses={200: {"model": CandlesAnswer}, **SERIES_UNREADABLE},
    response_class=Response,
)
async def get_candles(
    request: Request,
    series_id: SeriesIdQuery,
    since: Time = None,
    before: Time = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_CANDLES)] = DEFAULT_PAGE_CANDLES,
    fields: Literal["full"] | None = None,
) -> Response:
    """Closed candles, ascending: the oldest `limit` after `since`, or the newest `limit` (before `before`).

    `since` and `before` are open times in UTC seconds, exclusive, and exclude each other. With `fields=full` each
    candle also has its order flow, null where the source does not tell.
    """
    reader, series = market_data_of(request).reader, SeriesId.parse(series_id)
    body = await reader.page(series, since, before, limit, full=fields == "full")
    return Response(body, media_type="application/json")


@ingest_router.post("/candle_closed", responses=INGEST_ANSWERS, response_model_exclude_none=True)
async def post_candle_closed(request: Request, body: CandleClosedBody) -> CandleClosedAnswer:
    """Store one closed candle; answers after the commit."""
    series = SeriesId.parse(body.series_id)
    candle = body.candle.candle()
    lagging = await market_data_of(request).ingest_candles_closed(series, [candle])
    return CandleClosedAnswer(ok=True, series_id=str(series), candle_time=candle.time, ledger=_ledger(lagging))


@ingest_router.post("/candles_closed", responses=INGEST_ANSWERS, response_model_exclude_none=True)
async def post_candles_closed(request: Request, body: CandlesClosedBody) -> CandlesClosedAnswer:
    """Store closed candles of one series, in any order, all or none; answers after the commit."""
    series = SeriesId.parse(body.series_id)
    market_data = market_data_of(request)
    now = market_data.ingest.now(series)

    def check() -> Checked:
        return market_data.ingest.check(series, [item.candle() for item in body.candles], now)

    # In a thread: 20,000 candles would hold up the event loop for some 50 ms.
    checked = await asyncio.to_thread(check)
    lagging = await market_data.ingest_checked(checked)
    times = [item.candle_time for item in body.candles]
    return CandlesClosedAnswer(
        ok=True,
        series_id=str(series),
        count=len(times),
        first_candle_time=min(times),
        last_candle_time=max(times),
        ledger=_ledger(lagging),
    )


def _ledger(lagging: bool) -> Literal["lagging"] | None:
    return "lagging" if lagging else None

"""HTTP: factors, drawings and frames. Only reads."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from klinesync.core.candle import MAX_TIME
from klinesync.core.series_id import SeriesId
from klinesync.market.factor_schemas import (
    DrawDeltaAnswer,
    FactorCatalogAnswer,
    FactorSlicesAnswer,
    FrameAnswer,
    PollAnswer,
    SlicesAfterAnswer,
)
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import SERIES_UNREADABLE, SeriesIdQuery, error_answers
from klinesync.market_data.factor_health import FactorHealth
from klinesync.overlay.delta import Cursor

DEFAULT_WINDOW_CANDLES = 2000
MAX_WINDOW_CANDLES = 5000
MAX_NUMBER = 1 << 53
# Slices of one request; a slice takes some kilobytes and some tens of microseconds.
DEFAULT_SLICES = 100
MAX_SLICES = 500
# Accepted for compatibility: a poll returns at most one record.
DEFAULT_POLL_RECORDS = 2000
MAX_POLL_RECORDS = 5000

router = APIRouter(prefix="/api", tags=["factors"])
_encode = msgspec.json.Encoder().encode

FACTORS_LAG = SERIES_UNREADABLE | error_answers({409: ["ledger_out_of_sync:factor"]})
DRAWINGS_LAG = SERIES_UNREADABLE | error_answers({409: ["ledger_out_of_sync:factor", "ledger_out_of_sync:overlay"]})
FRAME_LAGS = SERIES_UNREADABLE | error_answers({409: ["ledger_out_of_sync"]})

AtTime = Annotated[int, Query(ge=0, le=MAX_TIME, description="floors to a closed candle")]
OptionalAtTime = Annotated[int | None, Query(ge=0, le=MAX_TIME, description="floors to a closed candle")]
Window = Annotated[int, Query(ge=1, le=MAX_WINDOW_CANDLES)]
Number = Annotated[int, Query(ge=0, le=MAX_NUMBER)]


def _json(body: object) -> Response:
    # Encoded here: a response model would take several times as long as the computation.
    return Response(_encode(body), media_type="application/json")


@router.get("/factor/catalog", responses={200: {"model": FactorCatalogAnswer}}, response_class=Response)
async def get_factor_catalog(request: Request) -> Response:
    """The factors and indicators, with the features that can be shown."""
    return _json(market_data_of(request).factors.catalog())


@router.get("/factor/slices", responses={200: {"model": FactorSlicesAnswer}, **FACTORS_LAG}, response_class=Response)
async def get_factor_slices(
    request: Request,
    series_id: SeriesIdQuery,
    at_time: OptionalAtTime = None,
    window_candles: Window = DEFAULT_WINDOW_CANDLES,
) -> Response:
    """The values of each factor at `at_time` (default: at the head): its events within the window, and its head."""
    reader = market_data_of(request).factors
    return _json(await reader.slices(SeriesId.parse(series_id), at_time, window_candles))


@router.get(
    "/factor/slices_after", responses={200: {"model": SlicesAfterAnswer}, **FACTORS_LAG}, response_class=Response
)
async def get_factor_slices_after(
    request: Request,
    series_id: SeriesIdQuery,
    since: Annotated[int, Query(ge=0, le=MAX_TIME)],
    limit: Annotated[int, Query(ge=1, le=MAX_SLICES)] = DEFAULT_SLICES,
) -> Response:
    """The slices of the oldest `limit` candles after `since`, each with a window of one candle, for catch-up."""
    return _json(await market_data_of(request).factors.slices_after(SeriesId.parse(series_id), since, limit))


@router.get("/factor/health", responses=SERIES_UNREADABLE)
async def get_factor_health(request: Request, series_id: SeriesIdQuery) -> FactorHealth:
    """How far factors and overlays lag behind the candles."""
    return await market_data_of(request).factors.health(SeriesId.parse(series_id))


@router.get("/draw/delta", responses={200: {"model": DrawDeltaAnswer}, **DRAWINGS_LAG}, response_class=Response)
async def get_draw_delta(
    request: Request,
    series_id: SeriesIdQuery,
    cursor_version_id: Number = 0,
    cursor_point_time: Annotated[int, Query(ge=-1, le=MAX_TIME)] = -1,
    epoch: Annotated[int | None, Query(ge=0, le=MAX_NUMBER)] = None,
    window_candles: Window = DEFAULT_WINDOW_CANDLES,
    at_time: OptionalAtTime = None,
) -> Response:
    """The drawings of a window, as changes since the reader's cursor; all of them without a cursor."""
    cursor = Cursor(cursor_version_id, cursor_point_time)
    reader = market_data_of(request).factors
    return _json(await reader.draw(SeriesId.parse(series_id), at_time, window_candles, cursor, epoch))


@router.get("/frame/live", responses={200: {"model": FrameAnswer}, **FRAME_LAGS}, response_class=Response)
async def get_frame_live(
    request: Request, series_id: SeriesIdQuery, window_candles: Window = DEFAULT_WINDOW_CANDLES
) -> Response:
    """Slices and drawings of the newest closed candle."""
    return _json(await market_data_of(request).factors.frame(SeriesId.parse(series_id), None, window_candles))


@router.get("/frame/at_time", responses={200: {"model": FrameAnswer}, **FRAME_LAGS}, response_class=Response)
async def get_frame_at_time(
    request: Request, series_id: SeriesIdQuery, at_time: AtTime, window_candles: Window = DEFAULT_WINDOW_CANDLES
) -> Response:
    """Slices and drawings of the closed candle at `at_time`."""
    return _json(await market_data_of(request).factors.frame(SeriesId.parse(series_id), at_time, window_candles))


@router.get(
    "/delta/poll",
    responses={200: {"model": PollAnswer}, **SERIES_UNREADABLE},
    response_class=Response,
)
async def get_delta_poll(
    request: Request,
    series_id: SeriesIdQuery,
    after_id: Number = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_POLL_RECORDS)] = DEFAULT_POLL_RECORDS,
    window_candles: Window = DEFAULT_WINDOW_CANDLES,
) -> Response:
    """The newest state when it is newer than the record `after_id`: at most one record, whatever the `limit`."""
    return _json(await market_data_of(request).factors.poll(SeriesId.parse(series_id), after_id, window_candles))

"""HTTP: explicit backfills."""

from __future__ import annotations

from fastapi import APIRouter, Request

from klinesync.core.candle import MAX_TIME
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import NOTHING_STORED, BackfillBegun, BackfillBody, error_answers
from klinesync.market.strict_json import StrictJsonRoute

BACKFILL_ANSWERS = error_answers({404: ["unknown_series"], 413: ["too_large"]}) | NOTHING_STORED

router = APIRouter(prefix="/api/market/ingest", tags=["candles"], route_class=StrictJsonRoute)


@router.post("/backfill", responses=BACKFILL_ANSWERS)
async def post_backfill(request: Request, body: BackfillBody) -> BackfillBegun:
    """Begin a backfill of missing history, oldest part first. The backfill survives a restart.

    Of a derived series the base is read. Stored candles and confirmed empty spans are not requested.
    """
    series = SeriesId.parse(body.series_id)
    to = MAX_TIME if body.to is None else body.to
    if body.from_ >= to:
        raise Rejected(f"from ({body.from_}) must be before to ({to})")
    begun = await market_data_of(request).start_backfill(series, Span(body.from_, to))
    return BackfillBegun(
        ok=True,
        series_id=str(begun.series),
        from_=begun.span.start,
        to=begun.span.end,
        missing_candles=begun.missing,
        lost_candles=begun.lost,
        lost_why=begun.lost_why,
        nothing_before=begun.begins,
    )

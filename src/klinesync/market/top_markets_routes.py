"""HTTP: the symbols with the highest quote volume, once or as server-sent events."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from klinesync.core.errors import UpstreamError
from klinesync.market.event_stream import EventStream, described
from klinesync.market.http_routes import market_data_of
from klinesync.market.schemas import error_answers
from klinesync.market_data.top_markets import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    TopAnswer,
    TopQuery,
)

LONGEST_INTERVAL_S = 30.0
SHORTEST_INTERVAL_S = 0.2
DEFAULT_INTERVAL_S = 2.0
MOST_EVENTS = 1_000_000

router = APIRouter(prefix="/api/market/top_markets", tags=["markets"])
_encode = msgspec.json.Encoder().encode

Exchange = Annotated[str, Query(description="as series ids have it: `binance`, `okx` …")]
Market = Annotated[str, Query(description="`spot` or `futures`")]
QuoteAsset = Annotated[str, Query(min_length=1, max_length=20, description="in any case")]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


def event_text(event: TopAnswer | UpstreamError | None) -> bytes:
    """An answer, an error of the exchange, or a comment (None), as one event."""
    match event:
        case TopAnswer():
            return b"event: top_markets\nid: %d\ndata: %b\n\n" % (event.generated_at_ms, _encode(event))
        case UpstreamError():
            return b"event: error\ndata: %b\n\n" % _encode({"detail": str(event), "code": event.code})
        case None:
            return b": nothing new\n\n"


@router.get(
    "",
    responses={
        200: {"model": TopAnswer},
        **error_answers({429: ["rate_limited"], 502: ["upstream_error"]}),
    },
    response_class=Response,
)
async def get_top_markets(
    request: Request,
    exchange: Exchange = "binance",
    market: Market = "spot",
    quote_asset: QuoteAsset = "USDT",
    limit: Limit = DEFAULT_LIMIT,
    force: bool = False,
) -> Response:
    """The traded symbols with the highest quote volume of the last 24 hours.

    An answer is cached for some seconds; `force` asks the exchange again, a few times a minute. When the exchange
    cannot be reached, the last answer is served with `"stale": true`.
    """
    query = TopQuery(exchange, market, quote_asset.upper(), limit)
    answer = await market_data_of(request).top_markets.top(query, force=force)
    return Response(_encode(answer), media_type="application/json")


@router.get(
    "/stream",
    status_code=200,
    responses={
        200: described("top_markets", "error", id_is="generated_at_ms"),
        **error_answers({429: ["rate_limited"]}),
    },
    response_class=Response,
)
async def stream_top_markets(
    request: Request,
    exchange: Exchange = "binance",
    market: Market = "spot",
    quote_asset: QuoteAsset = "USDT",
    limit: Limit = DEFAULT_LIMIT,
    interval_s: Annotated[
        float, Query(ge=SHORTEST_INTERVAL_S, le=LONGEST_INTERVAL_S, allow_inf_nan=False)
    ] = DEFAULT_INTERVAL_S,
    max_events: Annotated[int, Query(ge=0, le=MOST_EVENTS, description="0: endless")] = 0,
) -> Response:
    """The same as server-sent events: at once, then when the items have changed, checked every `interval_s` seconds
    (the exchange is asked less often). Ends after `max_events` events; 0: never."""
    top_markets = market_data_of(request).top_markets
    query = TopQuery(exchange, market, quote_asset.upper(), limit)
    top_markets.check(query)
    return EventStream(top_markets.follow(query, interval_s, max_events or None), event_text, top_markets.streams.place)

"""Bodies of HTTP requests and answers, as models that check the requests and document the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from klinesync.core.candle import MAX_TIME, MAX_TRADES, Candle
from klinesync.core.gaps import GapState
from klinesync.core.series_id import MAX_SERIES_ID_CHARS
from klinesync.exchanges.exchange import ConnectionStatus
from klinesync.ingest.supervisor import JobState
from klinesync.market_data.health import MissingCandles, Reason, Status

MAX_INGEST_CANDLES = 20_000

# For the OpenAPI document: roughly what `SeriesId.parse` accepts. Its errors are clearer than a pattern's.
SERIES_ID_SCHEMA: dict[str, JsonValue] = {
    "maxLength": MAX_SERIES_ID_CHARS,
    "pattern": "^[a-z][a-z0-9_]*:(spot|futures):[^:/]+/[^:/]+(:[^:/]+)?:[0-9]+[smhdwM]$",
    "examples": ["binance:spot:BTC/USDT:1m"],
}
SeriesIdText = Annotated[str, Field(json_schema_extra=SERIES_ID_SCHEMA)]
SeriesIdQuery = Annotated[str, Query(json_schema_extra=SERIES_ID_SCHEMA)]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# `check_candle` refuses a price of 0 or less, with a sentence; the OpenAPI document says so too.
Price = Annotated[float, Field(strict=True, allow_inf_nan=False, json_schema_extra={"exclusiveMinimum": 0})]


# `check_candle` refuses negative order flow, with a sentence; the OpenAPI document says so too.
Volume = Annotated[float, Field(strict=True, allow_inf_nan=False, json_schema_extra={"minimum": 0})]
Count = Annotated[int, Field(strict=True, json_schema_extra={"minimum": 0, "maximum": MAX_TRADES})]


class CandleBody(BaseModel):
    """One candle; other fields are ignored. The last four are its order flow, null where the source does not tell."""

    candle_time: Annotated[int, Field(strict=True, description="open time, UTC seconds")]
    open: Price
    high: Price
    low: Price
    close: Price
    volume: Number
    quote_volume: Volume | None = None
    trades: Count | None = None
    taker_buy_volume: Volume | None = None
    taker_buy_quote_volume: Volume | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "candle_time": 1700000040,
                "open": 1.0,
                "high": 2.0,
                "low": 0.5,
                "close": 1.5,
                "volume": 10.0,
            }
        }
    )

    def candle(self) -> Candle:
        """As a `Candle`, not yet checked."""
        return Candle(
            self.candle_time,
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.quote_volume,
            self.trades,
            self.taker_buy_volume,
            self.taker_buy_quote_volume,
        )


class CandleClosedBody(BaseModel):
    """A closed candle of a series."""

    series_id: SeriesIdText
    candle: CandleBody


class CandlesClosedBody(BaseModel):
    """Closed candles of one series, stored all or not at all."""

    series_id: SeriesIdText
    candles: Annotated[list[CandleBody], Field(min_length=1, max_length=MAX_INGEST_CANDLES)]


class CandleFormingBody(BaseModel):
    """A candle of a series in progress."""

    series_id: SeriesIdText
    candle: CandleBody


class PageGapAnswer(BaseModel):
    """A hole of a page: the missing open times in `[start_time, end_time)`, and their state."""

    start_time: int
    end_time: int
    state: GapState


class CandlesAnswer(BaseModel):
    """Closed candles, ascending, and the holes of the page."""

    series_id: str
    server_head_time: int | None
    candles: list[CandleBody]
    gaps: list[PageGapAnswer]


class CandleFormingAnswer(BaseModel):
    """The candle was sent to the subscribers of the series."""

    ok: bool
    series_id: str
    candle_time: int


# `lagging`: factors or overlays of the series lag behind its candles.
Ledgers = Literal["lagging"] | None


class CandleClosedAnswer(BaseModel):
    """The candle was stored."""

    ok: bool
    series_id: str
    candle_time: int
    ledger: Ledgers = None


class CandlesClosedAnswer(BaseModel):
    """The candles were stored."""

    ok: bool
    series_id: str
    count: int
    first_candle_time: int
    last_candle_time: int
    ledger: Ledgers = None


class BackfillBody(BaseModel):
    """The history to read: from `from` (inclusive) to `to` (exclusive; default: up to the newest closed candle). UTC
    seconds."""

    model_config = ConfigDict(populate_by_name=True)

    series_id: SeriesIdText
    from_: int = Field(alias="from", ge=0, le=MAX_TIME, strict=True)
    to: int | None = Field(None, ge=0, le=MAX_TIME, strict=True)


class BackfillBegun(BaseModel):
    """A backfill that has begun, of the requested series or of its base. `missing_candles` are requested; the progress
    is in `GET /api/market/health` of `series_id`. `lost_candles`: candles of the span that no source has any more, for
    the reason `lost_why`. `nothing_before`: the exchange has shown that its candles begin here."""

    ok: bool
    series_id: str
    from_: int = Field(serialization_alias="from")
    to: int
    missing_candles: int
    lost_candles: int
    lost_why: str | None
    nothing_before: int | None


class WhitelistAnswer(BaseModel):
    """The series that are ingested while the service runs, and the timeframes that are derived from the base
    timeframe."""

    series_ids: list[str]
    derived_base_timeframe: str
    derived_timeframes: list[str]


class BackfillAnswer(BaseModel):
    """The state of a backfill of a series. Times are UTC seconds of the service's clock."""

    state: Literal["idle", "running", "succeeded", "failed"]
    progress_pct: float | None
    started_at: int | None
    updated_at: int | None
    reason: str | None
    note: str | None
    error: str | None
    recent: bool
    start_missing_seconds: int | None
    start_missing_candles: int | None
    current_missing_seconds: int | None
    current_missing_candles: int | None
    candles: int | None
    candles_per_s: float | None
    left_s: int | None


class StreamAnswer(BaseModel):
    """The state of the stream of a series. Times are UTC seconds of the exchange."""

    state: str
    since: int | None
    last_frame_at: int | None
    detail: str | None


class HealthAnswer(BaseModel):
    """The health of a series: one status with one reason, and the facts."""

    series_id: str
    timeframe_seconds: int
    now_time: int
    expected_latest_closed_time: int
    head_time: int | None
    lag_seconds: int | None
    missing_seconds: int | None
    missing_candles: int | None
    status: Status
    status_reason: Reason
    detail: str | None
    backfill: BackfillAnswer
    stream: StreamAnswer
    gaps: MissingCandles


class QueuesAnswer(BaseModel):
    """The backlogs: candles for the writer (or being written), gaps to heal, messages for clients."""

    live_candles: int
    bulk_candles: int
    healing_gaps: int
    outbox_messages: int
    outbox_bytes: int


class RestAnswer(BaseModel):
    """The state of REST of one market. `used` and `limit` are weight of the exchange's minute, of which the service
    uses at most the `share`; null for an exchange that does not count by the minute. `waiting`: queued requests by
    urgency; `blocked_until_ms` (UTC) during a backoff or ban; `errors` by HTTP status: 0 without an answer, 200 for an
    answer that could not be understood."""

    used: int | None
    limit: int | None
    share: float | None
    under_way: int
    waiting: dict[str, int]
    blocked_s: float
    blocked_until_ms: int | None
    requests: int
    errors: dict[str, int]


class IngestStateAnswer(BaseModel):
    """The ingest jobs, connections and backlogs; `rest` by exchange and market (`binance:spot`)."""

    jobs: list[JobState]
    connections: list[ConnectionStatus]
    queues: QueuesAnswer
    rest: dict[str, RestAnswer]


class StatusAnswer(BaseModel):
    """The answer of /healthz."""

    status: str


class ReadyAnswer(BaseModel):
    """The answer of /readyz. `detail`: a sentence, only while the service is ready and an exchange gives no data."""

    status: str
    detail: str | None = None


class ErrorAnswer(BaseModel):
    """An error: a sentence for people, a code for programs."""

    detail: str
    code: str


def error_answers(codes: Mapping[int, Sequence[str]]) -> dict[int | str, dict[str, object]]:
    """The error answers of a route for FastAPI, from the codes of the body by HTTP status. The OpenAPI document and the
    reference page of HTTP list these codes."""
    return {
        status: {"model": ErrorAnswer, "description": ", ".join(f"`{code}`" for code in of_status)}
        for status, of_status in codes.items()
    }


# Answers that several routes share.
REFUSED = error_answers({403: ["forbidden"], 422: ["bad_request"]})
REFUSED_WITHOUT_TOKEN = error_answers({401: ["unauthorized"]})
# Errors of a read of stored candles, factors or drawings of one series.
UNREADABLE_CODES = ("store_error", "store_damaged", "store_replaced")
SERIES_UNREADABLE = error_answers({404: ["unknown_series"], 503: UNREADABLE_CODES})
CANDLE_REFUSED = error_answers({413: ["too_large"], 422: ["bad_request", "bad_candle", "derived_series"]})
NOTHING_STORED = error_answers({500: ["ingest_failed:candles"]})

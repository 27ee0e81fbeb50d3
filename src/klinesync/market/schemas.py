"""What HTTP bodies look like: checked where they come in, documented where they go out."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from klinesync.core.candle import Candle

MAX_INGEST_CANDLES = 20_000

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class CandleBody(BaseModel):
    """One candle; these fields and no others are kept."""

    candle_time: Annotated[int, Field(strict=True, description="open time, UTC seconds")]
    open: Number
    high: Number
    low: Number
    close: Number
    volume: Number

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
        """The same, not yet checked."""
        return Candle(self.candle_time, self.open, self.high, self.low, self.close, self.volume)


class CandleClosedBody(BaseModel):
    """A closed candle of a series."""

    series_id: str
    candle: CandleBody


class CandlesClosedBody(BaseModel):
    """Closed candles of one series, stored all or not at all."""

    series_id: str
    candles: Annotated[list[CandleBody], Field(min_length=1, max_length=MAX_INGEST_CANDLES)]


class CandlesAnswer(BaseModel):
    """Closed candles, ascending."""

    series_id: str
    server_head_time: int | None
    candles: list[CandleBody]


class CandleClosedAnswer(BaseModel):
    """The candle is stored."""

    ok: bool
    series_id: str
    candle_time: int


class CandlesClosedAnswer(BaseModel):
    """The candles are stored."""

    ok: bool
    series_id: str
    count: int
    first_candle_time: int
    last_candle_time: int


class WhitelistAnswer(BaseModel):
    """The series that are ingested while the service runs, and what is computed of those in the base timeframe."""

    series_ids: list[str]
    derived_base_timeframe: str
    derived_timeframes: list[str]


class StatusAnswer(BaseModel):
    """Of /healthz and /readyz."""

    status: str


class ErrorAnswer(BaseModel):
    """What went wrong: a sentence for people, a code for programs."""

    detail: str
    code: str

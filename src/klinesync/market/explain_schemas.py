"""The body of the answer of `GET /api/market/explain`."""

from __future__ import annotations

from pydantic import BaseModel

from klinesync.market.schemas import StreamAnswer
from klinesync.market_data.explain import Explanation, GapFacts, NeedFacts
from klinesync.market_data.health import Reason, Status


class EventAnswer(BaseModel):
    """An event that happened `count` times, from `since_ms` to `at_ms`, UTC milliseconds."""

    at_ms: int
    event: str
    detail: str
    since_ms: int
    count: int


class ExplainAnswer(BaseModel):
    """Why candles of a series are stored or missing: its needs, gaps and newest events. Times are UTC seconds."""

    series_id: str
    base_series_id: str
    timeframe_seconds: int
    now_time: int
    first_time: int | None
    head_time: int | None
    expected_latest_closed_time: int
    status: Status
    status_reason: Reason
    detail: str | None
    stream: StreamAnswer
    needs: list[NeedFacts]
    need_count: int
    gaps: list[GapFacts]
    gap_count: int
    events: list[EventAnswer]

    @classmethod
    def of(cls, explanation: Explanation) -> ExplainAnswer:
        """The body for this explanation."""
        health = explanation.health
        return cls(
            series_id=str(explanation.series),
            base_series_id=str(explanation.base),
            timeframe_seconds=health.timeframe_seconds,
            now_time=health.now_time,
            first_time=explanation.first_time,
            head_time=health.head_time,
            expected_latest_closed_time=health.expected_latest_closed_time,
            status=health.status,
            status_reason=health.status_reason,
            detail=health.detail,
            stream=StreamAnswer.model_validate(health.stream, from_attributes=True),
            needs=list(explanation.needs),
            need_count=explanation.need_count,
            gaps=list(explanation.gaps),
            gap_count=explanation.gap_count,
            events=[
                EventAnswer(
                    at_ms=event.at_ms,
                    event=event.event,
                    detail=event.detail,
                    since_ms=event.since_ms,
                    count=event.times,
                )
                for event in explanation.events
            ],
        )

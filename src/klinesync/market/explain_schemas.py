"""What the answer of `explain` looks like."""

from __future__ import annotations

from pydantic import BaseModel

from klinesync.core.gaps import GapState
from klinesync.market.schemas import StreamAnswer
from klinesync.market_data.explain import Explanation, NeedFacts
from klinesync.market_data.health import Reason, Status


class NeedAnswer(BaseModel):
    """Candles that are missing and asked for: open times in UTC seconds, the end exclusive."""

    series_id: str
    start_time: int
    end_time: int
    reason: str
    asked_by: str
    urgency: str
    attempts: int
    next_try_at_ms: int | None
    last_answer: str | None

    @classmethod
    def of(cls, need: NeedFacts) -> NeedAnswer:
        """The answer that tells this need."""
        return cls(
            series_id=str(need.series),
            start_time=need.start_time,
            end_time=need.end_time,
            reason=need.reason,
            asked_by=need.asked_by,
            urgency=need.urgency,
            attempts=need.attempts,
            next_try_at_ms=need.next_try_at_ms,
            last_answer=need.last_answer,
        )


class GapAnswer(BaseModel):
    """A hole between stored candles: open times in UTC seconds, the end exclusive."""

    start_time: int
    end_time: int
    state: GapState
    missing_candles: int
    proof: str | None
    since: int | None


class EventAnswer(BaseModel):
    """Something that happened: `count` times, from `since_ms` to `at_ms`, UTC milliseconds."""

    at_ms: int
    event: str
    detail: str
    since_ms: int
    count: int


class ExplainAnswer(BaseModel):
    """Why candles of a series are (not) there."""

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
    needs: list[NeedAnswer]
    need_count: int
    gaps: list[GapAnswer]
    gap_count: int
    events: list[EventAnswer]

    @classmethod
    def of(cls, explanation: Explanation) -> ExplainAnswer:
        """The answer that tells this explanation."""
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
            needs=[NeedAnswer.of(need) for need in explanation.needs],
            need_count=explanation.need_count,
            gaps=[GapAnswer.model_validate(gap, from_attributes=True) for gap in explanation.gaps],
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

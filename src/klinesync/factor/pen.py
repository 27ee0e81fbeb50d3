"""Pens (笔): the lines between major pivots of alternating direction."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.pivot import Extreme, Pivot, PivotState
from klinesync.factor.plugin import Event, Factor, Feature, Json, Upstream, state_of


class Pen(msgspec.Struct, frozen=True, gc=False):
    """A pen, as events and heads have it. `direction` is that of its end: 1 to a resistance, -1 to a support."""

    start_time: int
    end_time: int
    start_price: float
    end_price: float
    direction: int
    visible_time: int

    @property
    def high(self) -> float:
        """The price of its higher end."""
        return max(self.start_price, self.end_price)

    @property
    def low(self) -> float:
        """The price of its lower end."""
        return min(self.start_price, self.end_price)

    @property
    def length(self) -> float:
        """The difference of its prices."""
        return self.high - self.low

    def said(self) -> dict[str, Json]:
        """The event."""
        return {
            "start_time": self.start_time,
            "end_time": self.end_time,
            "start_price": self.start_price,
            "end_price": self.end_price,
            "direction": self.direction,
            "visible_time": self.visible_time,
        }


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A high or a low, and the time of its candle."""

    time: int
    price: float


class Leg(msgspec.Struct, frozen=True, gc=False):
    """The extremes of prices after a pivot: `end` in one direction (`up`: the highest high), and `back` in the other
    direction after `end`. Of equal extremes the earlier one counts. None without a candle yet.
    """

    up: bool
    end: Mark | None = None
    back: Mark | None = None

    def extended(self, time: int, high: float, low: float) -> Leg:
        """The leg with one more candle."""
        end = self.end
        back = self.back
        if self.up:
            if end is None or high > end.price:
                return Leg(True, Mark(time, high))
            if back is None or low < back.price:
                return Leg(True, end, Mark(time, low))
        else:
            if end is None or low < end.price:
                return Leg(False, Mark(time, low))
            if back is None or high > back.price:
                return Leg(False, end, Mark(time, high))
        return self


class PenState(msgspec.Struct, frozen=True, gc=False):
    """The last two effective pivots, and the extremes of prices after each of them.

    `leg` runs from `start` (the last pivot but one) in the direction of `turn` (the last pivot), `next_leg` from `turn`
    in the other direction. `next_leg` becomes the leg when the next pivot is effective, so that no candle is needed
    twice.
    """

    start: Pivot | None = None
    turn: Pivot | None = None
    leg: Leg | None = None
    next_leg: Leg | None = None

    def extending(self, time: int) -> Pen | None:
        """From the last but one effective pivot to the extreme since then, as known at the candle at `time`."""
        if self.start is None or self.leg is None:
            return None
        return _pen(Mark(self.start.pivot_time, self.start.pivot_price), self.leg.end, self.leg.up, time)

    def candidate(self, time: int) -> Pen | None:
        """From the end of `extending` to the opposite extreme after it, as known at the candle at `time`."""
        return None if self.leg is None else _pen(self.leg.end, self.leg.back, not self.leg.up, time)


def _pen(start: Mark | None, end: Mark | None, up: bool, time: int) -> Pen | None:
    """The pen between two marks; None when it has no length in time or in price."""
    if start is None or end is None or end.time == start.time or end.price == start.price:
        return None
    return Pen(start.time, end.time, start.price, end.price, 1 if up else -1, time)


class PenFactor(Factor[PenState]):
    """Confirmed pens as events; the head has the extending pen and the candidate after it."""

    name = "pen"
    label = "Pens"
    depends_on = ("pivot",)
    features: Sequence[Feature] = (
        Feature("pen.confirmed", "Confirmed pens"),
        Feature("pen.extending", "Extending pen"),
        Feature("pen.candidate", "Candidate pen"),
    )
    state_type = PenState

    def seed(self) -> PenState:
        return PenState()

    def advance(self, state: PenState, candle: Candle, upstream: Upstream) -> tuple[PenState, Sequence[Event]]:
        leg = state.leg
        next_leg = state.next_leg
        if next_leg is not None:
            time, _, high, low, *_ = candle
            next_leg = next_leg.extended(time, high, low)
            if leg is not None:
                leg = leg.extended(time, high, low)
        pivots = upstream["pivot"].events
        if not pivots:
            if leg is state.leg and next_leg is state.next_leg:
                return state, ()
            return PenState(state.start, state.turn, leg, next_leg), ()

        seen = state_of(upstream, "pivot", PivotState)
        start, turn = state.start, state.turn
        confirmed = []
        for event in pivots:
            pivot = msgspec.convert(event, Pivot)
            if turn is not None and pivot.direction == turn.direction:
                if not _more_extreme(pivot, turn):
                    continue
            else:
                if start is not None and turn is not None:
                    confirmed.append(_between(start, turn, candle.time).said())
                start, leg = turn, next_leg
            turn = pivot
            next_leg = _leg_after(pivot, seen)
        return PenState(start, turn, leg, next_leg), confirmed

    def head(self, state: PenState, candle: Candle) -> dict[str, Json]:
        extending = state.extending(candle.time)
        candidate = state.candidate(candle.time)
        return {
            "extending": None if extending is None else extending.said(),
            "candidate": None if candidate is None else candidate.said(),
        }

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        return {"confirmed": list(events)}


def _more_extreme(pivot: Pivot, other: Pivot) -> bool:
    if pivot.direction == "resistance":
        return pivot.pivot_price > other.pivot_price
    return pivot.pivot_price < other.pivot_price


def _between(start: Pivot, end: Pivot, time: int) -> Pen:
    direction = 1 if end.direction == "resistance" else -1
    return Pen(start.pivot_time, end.pivot_time, start.pivot_price, end.pivot_price, direction, time)


def _leg_after(pivot: Pivot, seen: PivotState) -> Leg:
    """The leg after a new pivot, in the direction of the next pivot. The window of pivots has the candles after it."""
    if pivot.direction == "support":
        end = seen.top_after(pivot.pivot_time)
        back = None if end is None else seen.bottom_after(end.time)
    else:
        end = seen.bottom_after(pivot.pivot_time)
        back = None if end is None else seen.top_after(end.time)
    return Leg(pivot.direction == "support", _mark(end), _mark(back))


def _mark(extreme: Extreme | None) -> Mark | None:
    return None if extreme is None else Mark(extreme.time, extreme.price)

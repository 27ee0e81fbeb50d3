"""Anchor (锚): the pen that the present price is judged from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.pen import Leg, Pen, PenState
from klinesync.factor.plugin import Event, Factor, Feature, Json, Upstream, state_of
from klinesync.factor.zhongshu import ZhongshuState


class Anchor(msgspec.Struct, frozen=True, gc=False):
    """The pen that the anchor points to, as of the last candle. `start_time` identifies the pen; `length` is in
    price."""

    kind: Literal["confirmed", "candidate"]
    start_time: int
    end_time: int
    direction: int
    length: float

    def ref(self) -> dict[str, Json]:
        """The anchor as events and heads have it."""
        return {
            "kind": self.kind,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "direction": self.direction,
        }


class AnchorState(msgspec.Struct, frozen=True, gc=False):
    """The anchor, and the leg of the last candidate: an unchanged candidate is no new evidence."""

    current: Anchor | None = None
    leg: Leg | None = None


class AnchorFactor(Factor[AnchorState]):
    """Switches of the anchor as events; the head has the present one."""

    name = "anchor"
    label = "Anchor"
    depends_on = ("pen", "zhongshu")
    features: Sequence[Feature] = (
        Feature("anchor.current", "Present anchor"),
        Feature("anchor.history", "Past anchors"),
        Feature("anchor.switch", "Switches of the anchor"),
    )
    state_type = AnchorState

    def seed(self) -> AnchorState:
        return AnchorState()

    def advance(self, state: AnchorState, candle: Candle, upstream: Upstream) -> tuple[AnchorState, Sequence[Event]]:
        pens = state_of(upstream, "pen", PenState)
        confirmed = upstream["pen"].events
        leg = pens.leg
        if leg == state.leg and not confirmed:
            return state, ()

        # A confirmed pen begins another leg, so the candidate here is always a new one.
        evidence = [_pointer("confirmed", msgspec.convert(event, Pen)) for event in confirmed]
        candidate = pens.candidate(candle.time)
        if candidate is not None:
            evidence.append(_pointer("candidate", candidate))
        entering = state_of(upstream, "zhongshu", ZhongshuState).entered_at(candle.time)
        entered = None if entering is None else _pointer("confirmed", entering)

        # First the anchor is updated: strength is compared with its present length.
        before = state.current
        for pointer in (entered, *evidence):
            if before is not None and pointer is not None and pointer.start_time == before.start_time:
                before = pointer
        after, reason = before, ""
        if entered is not None and not _same(entered, before):
            after, reason = entered, "zhongshu_entry"
        stronger = [
            pointer
            for pointer in evidence
            if before is None or (pointer.start_time != before.start_time and pointer.length > before.length)
        ]
        if stronger:
            after, reason = max(stronger, key=_length), "strong_pen"

        changed = AnchorState(after, leg)
        if after is None or not reason:
            return changed, ()
        switch: Event = {
            "switch_time": candle.time,
            "reason": reason,
            "old_anchor": None if before is None else before.ref(),
            "new_anchor": after.ref(),
            "visible_time": candle.time,
        }
        return changed, (switch,)

    def head(self, state: AnchorState, candle: Candle) -> dict[str, Json]:
        return {"current_anchor_ref": None if state.current is None else state.current.ref()}

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        return {"switches": list(events), "anchors": [event["new_anchor"] for event in events]}


def _pointer(kind: Literal["confirmed", "candidate"], pen: Pen) -> Anchor:
    return Anchor(kind, pen.start_time, pen.end_time, pen.direction, pen.length)


def _same(one: Anchor, other: Anchor | None) -> bool:
    return other is not None and one.start_time == other.start_time


def _length(pointer: Anchor) -> float:
    return pointer.length

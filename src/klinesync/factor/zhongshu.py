"""Zhongshu (中枢): price zones that several pens in a row have in common."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.pen import Pen
from klinesync.factor.plugin import Event, Factor, Feature, Json, Upstream

# One pen enters, three build.
_PENS = 4


class Zone(msgspec.Struct, frozen=True, gc=False):
    """A living zhongshu: `zd` to `zg` in price, from the start of its first building pen to the end of its last pen."""

    start_time: int
    end_time: int
    zg: float
    zd: float
    formed_time: int
    entry_direction: int  # of the pen that enters: 1 up, -1 down

    def said(self, death_time: int | None, visible_time: int) -> dict[str, Json]:
        """The event of its death; without a death time, what the head says of it."""
        return {
            "start_time": self.start_time,
            "end_time": self.end_time,
            "zg": self.zg,
            "zd": self.zd,
            "formed_time": self.formed_time,
            "formed_reason": "pen_confirmed",
            "death_time": death_time,
            "visible_time": visible_time,
            "_entry_direction": self.entry_direction,
        }


class ZhongshuState(msgspec.Struct, frozen=True, gc=False):
    """The living zone, if there is one, and the pens that the next one may still begin with.

    `entering` is the first pen of the newest zone and `formed_time` when that one formed, living or dead.
    """

    pens: tuple[Pen, ...] = ()
    alive: Zone | None = None
    entering: Pen | None = None
    formed_time: int = -1

    def entered_at(self, time: int) -> Pen | None:
        """The entering pen of a zone that formed at the candle at `time`; None when none did."""
        return self.entering if self.formed_time == time else None

    def extended(self, pen: Pen) -> tuple[ZhongshuState, Event | None]:
        """The state with one more confirmed pen, and the event when it killed the living zone."""
        zone = self.alive
        if zone is None:
            pens = (*self.pens, pen)[-_PENS:]
            formed = _formed(pens)
            if formed is None:
                return ZhongshuState(pens, None, self.entering, self.formed_time), None
            return ZhongshuState((pen,), formed, pens[0], formed.formed_time), None
        if pen.low > zone.zg or pen.high < zone.zd:
            # The next zone's first pen is this one or the one before it.
            state = ZhongshuState((*self.pens, pen), None, self.entering, self.formed_time)
            return state, zone.said(pen.visible_time, pen.visible_time)
        living = Zone(zone.start_time, pen.end_time, zone.zg, zone.zd, zone.formed_time, zone.entry_direction)
        return ZhongshuState((pen,), living, self.entering, self.formed_time), None


def _formed(pens: Sequence[Pen]) -> Zone | None:
    """The zone of four consecutive pens; None when they are fewer or share no price."""
    if len(pens) < _PENS:
        return None
    entering, *building = pens
    zg = min(pen.high for pen in building)
    zd = max(pen.low for pen in building)
    if max(zd, entering.low) > min(zg, entering.high):
        return None
    start, end = building[0].start_time, building[-1].end_time
    return Zone(start, end, zg, zd, building[-1].visible_time, entering.direction)


class ZhongshuFactor(Factor[ZhongshuState]):
    """Dead zones as events; the head has the living one."""

    name = "zhongshu"
    version = 2  # events say from where the zone was entered
    label = "Zhongshu"
    depends_on = ("pen",)
    features: Sequence[Feature] = (
        Feature("zhongshu.dead", "Past zones"),
        Feature("zhongshu.alive", "Living zone"),
    )
    state_type = ZhongshuState

    def seed(self) -> ZhongshuState:
        return ZhongshuState()

    def advance(
        self, state: ZhongshuState, candle: Candle, upstream: Upstream
    ) -> tuple[ZhongshuState, Sequence[Event]]:
        confirmed = upstream["pen"].events
        if not confirmed:
            return state, ()
        died = []
        for event in confirmed:
            state, death = state.extended(msgspec.convert(event, Pen))
            if death is not None:
                died.append(death)
        return state, died

    def head(self, state: ZhongshuState, candle: Candle) -> dict[str, Json]:
        zone = state.alive
        return {"alive": [] if zone is None else [zone.said(None, zone.formed_time)]}

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        return {"dead": list(events)}

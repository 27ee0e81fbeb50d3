"""Pivots (分型/枢轴): candles whose high or low stands out from those around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.plugin import Event, Factor, Feature, Json, Upstream

Direction = Literal["resistance", "support"]

# A slice's head shows the newest so many minor pivots since the last major one. On prices that do not move every candle
# is one, in both directions, and without an end to them a state would grow with the flat time.
MINOR_KEPT = 256
# A larger window needs a larger state: 2 W + 1 candles, stored with every checkpoint of every series.
WINDOW_MAX = 1000


class Pivot(msgspec.Struct, frozen=True, gc=False):
    """A pivot as events and heads say it. `window`: the candles on either side that it was compared with."""

    pivot_time: int
    pivot_price: float
    direction: Direction
    visible_time: int
    window: int

    def said(self) -> dict[str, Json]:
        """The event."""
        return {
            "pivot_time": self.pivot_time,
            "pivot_price": self.pivot_price,
            "direction": self.direction,
            "visible_time": self.visible_time,
            "window": self.window,
        }


class Minor(NamedTuple):
    """A minor pivot. `since` is the time of its window's first candle."""

    since: int
    time: int
    price: float
    direction: Direction
    visible_time: int


class PivotState(msgspec.Struct, frozen=True, gc=False):
    """The newest 2 W + 1 candles, what stands out among them, and the minor pivots since the last major one.

    `top` is the earliest of the highest highs among them and `bottom` the earliest of the lowest lows, each with its
    age: 0 is the newest candle. In a full window the top is a major pivot when it is in the middle of it.
    """

    times: tuple[int, ...] = ()
    highs: tuple[float, ...] = ()
    lows: tuple[float, ...] = ()
    top: float = -inf
    top_age: int = 0
    bottom: float = inf
    bottom_age: int = 0
    # Of the last major pivot; before the first one, a time before all.
    major_time: int = -1
    minors: tuple[Minor, ...] = ()

    def after(self, time: int) -> Iterator[tuple[int, float, float]]:
        """Time, high and low of the kept candles after the one at `time`, which must be among them."""
        first = self.times.index(time) + 1
        return zip(self.times[first:], self.highs[first:], self.lows[first:], strict=True)


class PivotFactor(Factor[PivotState]):
    """Major pivots as events, minor ones in the head. Windows in candles, `minor <= major`."""

    name = "pivot"
    label = "Pivots"
    features: Sequence[Feature] = (
        Feature("pivot.major", "Major pivots"),
        Feature("pivot.minor", "Minor pivots", default_visible=False),
    )
    state_type = PivotState

    def __init__(self, major: int = 50, minor: int = 5) -> None:
        if not 1 <= minor <= major <= WINDOW_MAX:
            raise ValueError(f"windows {major} and {minor} are not 1 <= minor <= major <= {WINDOW_MAX}")
        self._major = major
        self._minor = minor
        self.parameters: Mapping[str, int | float | str] = {"window_major": major, "window_minor": minor}

    def seed(self) -> PivotState:
        return PivotState()

    def advance(self, state: PivotState, candle: Candle, upstream: Upstream) -> tuple[PivotState, Sequence[Event]]:
        major = self._major
        kept = 2 * major + 1
        time = candle.time
        high = candle.high
        low = candle.low
        times, highs, lows = state.times, state.highs, state.lows
        if len(times) == kept:
            times, highs, lows = times[1:], highs[1:], lows[1:]
        # `+` and not `*`: Python unpacks into a list first.
        times, highs, lows = times + (time,), highs + (high,), lows + (low,)  # noqa: RUF005
        count = len(times)

        # The extreme of a sliding window is looked for anew only when the last one has slid out of it.
        top, top_age = state.top, state.top_age + 1
        if high > top:
            top, top_age = high, 0
        elif top_age == kept:
            top = max(highs)
            top_age = kept - 1 - highs.index(top)
        bottom, bottom_age = state.bottom, state.bottom_age + 1
        if low < bottom:
            bottom, bottom_age = low, 0
        elif bottom_age == kept:
            bottom = min(lows)
            bottom_age = kept - 1 - lows.index(bottom)

        major_time = state.major_time
        minors = state.minors
        events: Sequence[Event] = ()
        if count == kept and (top_age == major or bottom_age == major):
            major_time = times[major]
            found = []
            if top_age == major:
                found.append(Pivot(major_time, top, "resistance", time, major).said())
            if bottom_age == major:
                found.append(Pivot(major_time, bottom, "support", time, major).said())
            events = found
            minors = tuple(minor for minor in minors if minor.since >= major_time)

        minor = self._minor
        span = 2 * minor + 1
        if count >= span and times[-span] >= major_time:
            middle = -1 - minor
            peak = highs[middle]
            # Its neighbours rule out most candles before the whole window is looked at.
            if peak >= highs[middle - 1] and peak >= highs[middle + 1] and peak == max(highs[-span:]):
                minors = (*minors, Minor(times[-span], times[middle], peak, "resistance", time))
            trough = lows[middle]
            if trough <= lows[middle - 1] and trough <= lows[middle + 1] and trough == min(lows[-span:]):
                minors = (*minors, Minor(times[-span], times[middle], trough, "support", time))
            if len(minors) > MINOR_KEPT:
                minors = minors[-MINOR_KEPT:]

        return PivotState(times, highs, lows, top, top_age, bottom, bottom_age, major_time, minors), events

    def head(self, state: PivotState, candle: Candle) -> dict[str, Json]:
        return {
            "minor": [
                Pivot(minor.time, minor.price, minor.direction, minor.visible_time, self._minor).said()
                for minor in state.minors
            ]
        }

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        return {"major": list(events)}

"""Pivots (分型/枢轴): candles whose high or low stands out from those around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from klinesync.core.candle import Candle
from klinesync.factor.plugin import Event, Factor, Feature, Json, Upstream

Direction = Literal["resistance", "support"]

# Most minor pivots since the last major one in a head, the newest. While prices do not move, every candle is a minor
# pivot in both directions, and without a limit the state would grow.
MINOR_KEPT = 256
# Largest window, in candles. The state has up to 2 W + 1 highs and as many lows, and is stored with each checkpoint.
WINDOW_MAX = 1000


class Pivot(msgspec.Struct, frozen=True, gc=False):
    """A pivot, as events and heads have it. `window`: the number of candles on either side that it is compared with."""

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
    """A minor pivot. `first` is the number of its window's first candle."""

    first: int
    time: int
    price: float
    direction: Direction
    visible_time: int


class Extreme(msgspec.Struct, frozen=True, gc=False):
    """A high or a low that no later one exceeds. `at`: the number of its candle, counted from the seed."""

    at: int
    time: int
    price: float


class PivotState(msgspec.Struct, frozen=True, gc=False):
    """The visible extremes of the newest 2 W + 1 candles, and the minor pivots since the last major one.

    `tops` are the highs that no later high exceeds, so they descend (or stay level) from the highest on; `bottoms`
    mirror them. No other high of the window can become an extreme, so no candle is kept: the earliest highest high
    after any candle of the window is the first of the tops after that candle.
    """

    # Candles so far.
    count: int = 0
    tops: tuple[Extreme, ...] = ()
    bottoms: tuple[Extreme, ...] = ()
    # The number of the last major pivot's candle; -1 before the first one.
    major_at: int = -1
    minors: tuple[Minor, ...] = ()

    def top_after(self, time: int) -> Extreme | None:
        """The earliest highest high after a candle of the window; None when that one is the newest."""
        return next((top for top in self.tops if top.time > time), None)

    def bottom_after(self, time: int) -> Extreme | None:
        """The earliest lowest low after a candle of the window; None when that one is the newest."""
        return next((bottom for bottom in self.bottoms if bottom.time > time), None)


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
        time, _, high, low, *_ = candle
        major, minor, at = self._major, self._minor, state.count
        gone = at - 2 * major - 1  # the number of the candle that leaves the window

        tops = state.tops
        keep = len(tops)
        while keep and tops[keep - 1].price < high:
            keep -= 1
        leaves = 1 if keep and tops[0].at == gone else 0
        tops = (*tops[leaves:keep], Extreme(at, time, high))

        bottoms = state.bottoms
        keep = len(bottoms)
        while keep and bottoms[keep - 1].price > low:
            keep -= 1
        leaves = 1 if keep and bottoms[0].at == gone else 0
        bottoms = (*bottoms[leaves:keep], Extreme(at, time, low))

        major_at = state.major_at
        minors = state.minors
        events: Sequence[Event] = ()
        middle = at - major
        if middle >= major and (tops[0].at == middle or bottoms[0].at == middle):
            major_at = middle
            found = []
            if tops[0].at == middle:
                found.append(Pivot(tops[0].time, tops[0].price, "resistance", time, major).said())
            if bottoms[0].at == middle:
                found.append(Pivot(bottoms[0].time, bottoms[0].price, "support", time, major).said())
            events = found
            minors = tuple(pivot for pivot in minors if pivot.first >= major_at)

        first = at - 2 * minor
        if first >= 0 and first >= major_at:
            peak = _extreme_at(tops, at - minor, first)
            if peak is not None:
                minors = (*minors, Minor(first, peak.time, peak.price, "resistance", time))
            trough = _extreme_at(bottoms, at - minor, first)
            if trough is not None:
                minors = (*minors, Minor(first, trough.time, trough.price, "support", time))
            if len(minors) > MINOR_KEPT:
                minors = minors[-MINOR_KEPT:]

        return PivotState(at + 1, tops, bottoms, major_at, minors), events

    def head(self, state: PivotState, candle: Candle) -> dict[str, Json]:
        return {
            "minor": [
                Pivot(minor.time, minor.price, minor.direction, minor.visible_time, self._minor).said()
                for minor in state.minors
            ],
            "_window_minor": self._minor,
        }

    def history(self, events: Sequence[Event]) -> dict[str, list[Json]]:
        return {"major": list(events)}


def _extreme_at(extremes: Sequence[Extreme], at: int, first: int) -> Extreme | None:
    """The extreme of candle `at` when no candle from `first` on exceeds it; None when one does."""
    position = len(extremes) - 1
    while position >= 0 and extremes[position].at > at:
        position -= 1
    if position < 0:
        return None
    found = extremes[position]
    if found.at != at:
        return None
    # Those before it are as extreme or more so: a tie is allowed.
    before = position - 1
    while before >= 0 and extremes[before].at >= first:
        if extremes[before].price != found.price:
            return None
        before -= 1
    return found

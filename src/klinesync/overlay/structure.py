"""The drawings of the structure chain: pivot -> pen -> zhongshu -> anchor. Pure.

The ends of a line are pivots: an upward pen goes from the low of its first candle to the high of its last. Each colour
has enough contrast with the page's dark and light backgrounds (a test computes the contrast).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.lib.stride_tricks import sliding_window_view

from klinesync.core.candle import Candle
from klinesync.factor.plugin import Event
from klinesync.overlay.instruction import Drawing, Marker, Point, Polyline
from klinesync.overlay.plugin import View

RESISTANCE_COLOR = "#d9622b"
SUPPORT_COLOR = "#2b8fa8"
PEN_COLOR = "#3f83f0"
CANDIDATE_COLOR = "#7686a0"
ZONE_COLOR = "#8d74e8"
LIVING_ZONE_COLOR = "#b45fe0"
ANCHOR_COLOR = "#b5830f"


T = TypeVar("T")


class _Pivot(msgspec.Struct, frozen=True):
    pivot_time: int
    direction: Literal["resistance", "support"]
    visible_time: int
    window: int


class _Pen(msgspec.Struct, frozen=True):
    start_time: int
    end_time: int
    start_price: float
    end_price: float


class _Zone(msgspec.Struct, frozen=True):
    start_time: int
    end_time: int
    zg: float
    zd: float
    entry_direction: Literal[1, -1] = msgspec.field(name="_entry_direction")


class _Anchor(msgspec.Struct, frozen=True):
    start_time: int
    end_time: int
    direction: Literal[1, -1]


class _Switch(msgspec.Struct, frozen=True):
    switch_time: int
    reason: str
    new_anchor: _Anchor


class PivotOverlay:
    """Circles: major pivots when they are confirmed, and all minor pivots of the window."""

    name = "pivot"
    version = 1
    depends_on = ("pivot",)
    features = ("pivot.major", "pivot.minor")

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """A major pivot, stored."""
        return [_pivot("pivot.major", _read(event, _Pivot), size=1.0)]

    def render(self, view: View) -> Sequence[Drawing]:
        """The minor pivots of the window, also those beside major ones: each candle that no other of the `window_minor`
        candles on either side exceeds."""
        window = view.head("pivot").get("_window_minor")
        if not isinstance(window, int):
            return []
        return [_pivot("pivot.minor", pivot, size=0.5) for pivot in minor_pivots(view.candles, window)]


def minor_pivots(candles: Sequence[Candle], window: int) -> list[_Pivot]:
    """The candles that no other of the `window` candles on either side exceeds: in highs (resistance), in lows
    (support). Candles with fewer neighbours on a side are left out."""
    if len(candles) < 2 * window + 1:
        return []
    highs = np.array([candle.high for candle in candles])
    lows = np.array([candle.low for candle in candles])
    middle = slice(window, len(candles) - window)
    peaks = highs[middle] == sliding_window_view(highs, 2 * window + 1).max(axis=1)
    troughs = lows[middle] == sliding_window_view(lows, 2 * window + 1).min(axis=1)
    pivots = []
    for position in np.flatnonzero(peaks | troughs).tolist():
        time, visible_time = candles[position + window].time, candles[position + 2 * window].time
        if peaks[position]:
            pivots.append(_Pivot(time, "resistance", visible_time, window))
        if troughs[position]:
            pivots.append(_Pivot(time, "support", visible_time, window))
    return pivots


class PenOverlay:
    """One line through the confirmed pens of the window, the extending pen and the candidate."""

    name = "pen"
    version = 1
    depends_on = ("pen",)
    features = ("pen.confirmed", "pen.extending", "pen.candidate")

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """Nothing: a pen is a piece of the line that `render` draws."""
        return ()

    def render(self, view: View) -> Sequence[Drawing]:
        """The confirmed line; the extending pen and the candidate, dashed."""
        drawings: list[Drawing] = []
        pens = [pen for pen in _all(view.events_of("pen"), _Pen) if pen.end_time >= view.start_time]
        if pens:
            corners = [Point(pens[0].start_time, pens[0].start_price)]
            corners += [Point(pen.end_time, pen.end_price) for pen in pens]
            drawings.append(_line("pen.confirmed", view, corners, PEN_COLOR, width=2))
        for key, color in (("extending", PEN_COLOR), ("candidate", CANDIDATE_COLOR)):
            for pen in _all(view.head("pen").get(key), _Pen):
                corners = [Point(pen.start_time, pen.start_price), Point(pen.end_time, pen.end_price)]
                drawings.append(_line(f"pen.{key}", view, corners, color, width=2, style="dashed"))
        return drawings


class ZhongshuOverlay:
    """Zones as two edges, upper and lower: dead zones are stored, the living zone is rendered."""

    name = "zhongshu"
    version = 2  # two edges instead of a closed rectangle
    depends_on = ("zhongshu",)
    features = ("zhongshu.dead", "zhongshu.alive")

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """A zone that has died, stored."""
        zone = _read(event, _Zone)
        visible_time = _read(event["visible_time"], int)
        return _edges("zhongshu.dead", f"zhongshu.dead:{zone.start_time}", visible_time, zone, ZONE_COLOR, width=1)

    def render(self, view: View) -> Sequence[Drawing]:
        """The living zone, none or one."""
        alive = _all(view.head("zhongshu").get("alive"), _Zone)
        return [
            edge
            for zone in alive[-1:]
            for edge in _edges("zhongshu.alive", "zhongshu.alive", view.at_time, zone, LIVING_ZONE_COLOR, width=2)
        ]


class AnchorOverlay:
    """The pen of the anchor, those of earlier anchors, and an arrow at each switch."""

    name = "anchor"
    version = 1
    depends_on = ("anchor", "pen")
    features = ("anchor.current", "anchor.history", "anchor.switch")

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        """A switch, stored. The line of its anchor needs prices, which are not in the event: `render` draws the
        line."""
        if factor != "anchor":
            return ()
        switch = _read(event, _Switch)
        up = switch.new_anchor.direction == 1
        arrow = Marker(
            "anchor.switch",
            switch.switch_time,
            "belowBar" if up else "aboveBar",
            ANCHOR_COLOR,
            "arrowUp" if up else "arrowDown",
            switch.reason.replace("_", " "),
        )
        name = f"anchor.switch:{switch.switch_time}:{switch.new_anchor.direction}:{switch.reason}"
        return [Drawing(name, switch.switch_time, arrow)]

    def render(self, view: View) -> Sequence[Drawing]:
        """The anchors of the switches of the window, and the current anchor."""
        prices = _Prices(view)
        drawings: list[Drawing] = []
        for switch in _all(view.events_of("anchor"), _Switch):
            corners = prices.line(switch.new_anchor)
            if corners:
                shape = Polyline("anchor.history", corners, ANCHOR_COLOR, line_width=1, line_style="dotted")
                drawings.append(Drawing(f"anchor.history:{switch.switch_time}", switch.switch_time, shape))
        for anchor in _all(view.head("anchor").get("current_anchor_ref"), _Anchor):
            corners = prices.line(anchor)
            if corners:
                drawings.append(_line("anchor.current", view, corners, ANCHOR_COLOR, width=3))
        return drawings


class _Prices:
    """The prices at the ends of a pen, from the candles of the window or from pens that reach into the window."""

    def __init__(self, view: View) -> None:
        self._candles = view.candles
        self._starts = {pen.start_time: pen.start_price for pen in _all(view.events_of("pen"), _Pen)}

    def line(self, anchor: _Anchor) -> tuple[Point, ...]:
        """The line from the anchor's start to its end; empty when the price at an end is unknown."""
        up = anchor.direction == 1
        start = self._extreme(anchor.start_time, high=not up)
        if start is None:
            start = self._starts.get(anchor.start_time)
        end = self._extreme(anchor.end_time, high=up)
        if start is None or end is None:
            return ()
        return Point(anchor.start_time, start), Point(anchor.end_time, end)

    def _extreme(self, time: int, *, high: bool) -> float | None:
        index = bisect_left(self._candles, time, key=lambda candle: candle.time)
        if index == len(self._candles) or self._candles[index].time != time:
            return None
        return self._candles[index].high if high else self._candles[index].low


def _pivot(feature: str, pivot: _Pivot, size: float) -> Drawing:
    above = pivot.direction == "resistance"
    sign = Marker(
        feature,
        pivot.pivot_time,
        "aboveBar" if above else "belowBar",
        RESISTANCE_COLOR if above else SUPPORT_COLOR,
        "circle",
        size=size,
    )
    return Drawing(f"{feature}:{pivot.pivot_time}:{pivot.direction}:{pivot.window}", pivot.visible_time, sign)


def _line(
    feature: str,
    view: View,
    points: Iterable[Point],
    color: str,
    width: int,
    style: Literal["solid", "dashed", "dotted"] | UnsetType = UNSET,
) -> Drawing:
    """The one drawing of a feature that is rendered at read, for the end of the window."""
    return Drawing(feature, view.at_time, Polyline(feature, tuple(points), color, line_width=width, line_style=style))


def _edges(feature: str, name: str, visible_time: int, zone: _Zone, color: str, width: int) -> list[Drawing]:
    """The upper and the lower edge of a zone, each from its start to its end."""
    return [
        Drawing(
            f"{name}:{edge}",
            visible_time,
            Polyline(
                feature,
                (Point(zone.start_time, price), Point(zone.end_time, price)),
                color,
                line_width=width,
                entry_direction=zone.entry_direction,
            ),
        )
        for edge, price in (("top", zone.zg), ("bottom", zone.zd))
    ]


def _read(value: object, kind: type[T]) -> T:
    """The value as that type. Raises `msgspec.ValidationError`, which names the missing or wrong field."""
    return msgspec.convert(value, kind)


def _all(value: object, kind: type[T]) -> list[T]:
    """The items of a value that is one item, a list of items, or None."""
    if value is None:
        return []
    if isinstance(value, Sequence):
        return [_read(item, kind) for item in value]
    return [_read(value, kind)]

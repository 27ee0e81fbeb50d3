"""The drawings of the structure chain, from candles to answers: equal for every reader at any time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph, Said
from klinesync.factor.plugin import Event, FactorSettings
from klinesync.factor.structure import structure
from klinesync.overlay.delta import DrawDelta, compose
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Definition, Instruction, Marker, Polyline, extent
from klinesync.overlay.plugin import View
from klinesync.overlay.structure import AnchorOverlay, PenOverlay, PivotOverlay, ZhongshuOverlay

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
# Windows so short that a few candles have structure.
FACTORS = FactorGraph(structure(FactorSettings(pivot_window_major=2, pivot_window_minor=1)))
OVERLAYS = OverlayGraph([PivotOverlay(), PenOverlay(), ZhongshuOverlay(), AnchorOverlay()], FACTORS.names)

# Whole numbers, so that plateaus and ties occur; now and then a hole.
bars = st.tuples(st.integers(1, 12), st.integers(0, 4), st.sampled_from([1, 1, 1, 1, 1, 1, 1, 1, 3]))
walks = st.lists(bars, min_size=1, max_size=80)


def candles_of(walk: Sequence[tuple[int, int, int]]) -> list[Candle]:
    candles = []
    time = 0
    for low, height, steps in walk:
        time += 60 * steps
        candles.append(Candle(time, low, low + height, low, low + height, 1.0))
    return candles


def told(candles: Sequence[Candle], window: int, at: int | None = None) -> DrawDelta:
    """The answer for a reader without a cursor at candle number `at`, with all candles stored."""
    shown = list(candles if at is None else candles[: at + 1])
    states, said = FACTORS.advance_many(FACTORS.seed(), candles)
    stored = [Instruction.numbered(number, one) for number, one in enumerate(OVERLAYS.draw(said), 1)]
    if at is not None:
        states, _ = FACTORS.advance_many(FACTORS.seed(), shown)
    start_time, at_time = shown[-window:][0].time, shown[-1].time
    known = [one for one in stored if one.visible_time <= at_time]
    return compose(
        SERIES,
        0,
        start_time=start_time,
        at_time=at_time,
        version_id=known[-1].version_id if known else 0,
        stored=[one for one in known if one.visible_time >= start_time],
        rendered=OVERLAYS.render(
            View(
                SERIES,
                start_time,
                at_time,
                FACTORS.heads(states, shown[-1]),
                _in_window(said, start_time, at_time),
                shown[-window:],
            )
        ),
        points={},
    )


def _in_window(said: Sequence[Said], start_time: int, at_time: int) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {}
    for factor, event in said:
        visible_time = event["visible_time"]
        assert isinstance(visible_time, int)
        if start_time <= visible_time <= at_time:
            events.setdefault(factor, []).append(event)
    return events


def definitions(delta: DrawDelta) -> dict[str, Definition]:
    return {one.instruction_id: one.definition for one in delta.instruction_catalog_patch}


@given(walks, st.data())
def test_a_read_of_the_past_shows_the_drawings_of_that_time(
    walk: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    candles = candles_of(walk)
    at = data.draw(st.integers(0, len(candles) - 1))
    window = data.draw(st.integers(1, len(candles)))
    assert told(candles, window, at) == told(candles[: at + 1], window)


@given(walks, st.integers(1, 80))
def test_every_drawing_touches_the_window_and_nothing_later(walk: list[tuple[int, int, int]], window: int) -> None:
    candles = candles_of(walk)
    delta = told(candles, window)
    drawn = definitions(delta)
    assert list(drawn) == delta.active_ids
    for definition in drawn.values():
        first, last = extent(definition)
        assert last >= candles[-window:][0].time
        assert first <= last <= candles[-1].time


@given(walks)
def test_corners_and_signs_stand_at_candles_and_pens_at_their_extremes(walk: list[tuple[int, int, int]]) -> None:
    candles = {candle.time: candle for candle in candles_of(walk)}
    for definition in definitions(told(list(candles.values()), len(candles))).values():
        if isinstance(definition, Marker):
            assert definition.time in candles
            continue
        for point in definition.points:
            assert point.time in candles
            if not definition.feature.startswith("zhongshu"):
                assert point.value in (candles[point.time].high, candles[point.time].low)


@given(walks)
def test_the_confirmed_line_goes_through_every_pen_of_the_window(walk: list[tuple[int, int, int]]) -> None:
    candles = candles_of(walk)
    _, said = FACTORS.advance_many(FACTORS.seed(), candles)
    pens = [event for factor, event in said if factor == "pen"]
    line = definitions(told(candles, len(candles))).get("pen.confirmed")
    if not pens:
        assert line is None
        return
    assert isinstance(line, Polyline)
    corners = [(point.time, point.value) for point in line.points]
    assert list(pairwise(corners)) == [
        ((pen["start_time"], pen["start_price"]), (pen["end_time"], pen["end_price"])) for pen in pens
    ]


def test_a_long_walk_has_every_feature() -> None:
    """Up and down in swings that grow and shrink: pens, zones that live and die, anchors that switch."""
    turn, walk = 0, []
    for leg in range(60):
        size = 4 + leg * 7 % 5 + (20 if leg % 11 == 10 else 0)
        for _ in range(size):
            turn += 1 if leg % 2 else -1
            walk.append((turn + 100, 1, 1))
    candles = candles_of(walk)
    seen = {
        definition.feature
        for at in range(0, len(candles), 3)
        for definition in definitions(told(candles[: at + 1], len(candles))).values()
    }
    assert seen == set(OVERLAYS.features)

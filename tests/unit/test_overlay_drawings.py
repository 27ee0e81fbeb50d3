"""The drawings of the built-in overlays, in the form of the wire."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.plugin import Event, Json
from klinesync.overlay import structure
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Instruction
from klinesync.overlay.plugin import OverlayFault, View
from klinesync.overlay.structure import AnchorOverlay, PenOverlay, PivotOverlay, ZhongshuOverlay

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
GRAPH = OverlayGraph(
    [PivotOverlay(), PenOverlay(), ZhongshuOverlay(), AnchorOverlay()], ["pivot", "pen", "zhongshu", "anchor"]
)


def minute(count: int) -> int:
    return count * 60


def pivot(at: int, direction: str, visible: int, window: int = 2) -> Event:
    return {
        "pivot_time": minute(at),
        "pivot_price": 1.0,
        "direction": direction,
        "visible_time": minute(visible),
        "window": window,
    }


def pen(start: int, end: int, start_price: float, end_price: float, visible: int | None = None) -> dict[str, Json]:
    found: dict[str, Json] = {
        "start_time": minute(start),
        "end_time": minute(end),
        "start_price": start_price,
        "end_price": end_price,
        "direction": 1 if end_price > start_price else -1,
    }
    return found if visible is None else {**found, "visible_time": minute(visible)}


def zone(start: int, end: int, zg: float, zd: float) -> dict[str, Json]:
    return {
        "start_time": minute(start),
        "end_time": minute(end),
        "zg": zg,
        "zd": zd,
        "formed_time": minute(end),
        "formed_reason": "pen_confirmed",
        "death_time": None,
        "visible_time": None,
        "_entry_direction": 1,
    }


def anchor(start: int, end: int, direction: int) -> dict[str, Json]:
    return {"kind": "confirmed", "start_time": minute(start), "end_time": minute(end), "direction": direction}


def switch(at: int, to: dict[str, Json], reason: str = "strong_pen") -> Event:
    return {
        "switch_time": minute(at),
        "visible_time": minute(at),
        "reason": reason,
        "old_anchor": None,
        "new_anchor": to,
    }


def on_the_wire(factor: str, event: Event) -> list[dict[str, object]]:
    drawings = [Instruction.numbered(7, one) for one in GRAPH.draw([(factor, event)])]
    return msgspec.json.decode(msgspec.json.encode(drawings), type=list[dict[str, object]])


def rendered(view: View) -> dict[str, dict[str, object]]:
    """Definitions by id."""
    text = msgspec.json.encode({one.instruction_id: one.definition for one in GRAPH.render(view)})
    return msgspec.json.decode(text, type=dict[str, dict[str, object]])


def points(definition: dict[str, object]) -> list[tuple[int, float]]:
    found = msgspec.convert(definition["points"], list[dict[str, float]])
    return [(int(point["time"] // 60), point["value"]) for point in found]


def test_a_major_pivot_is_a_stored_circle_above_a_resistance() -> None:
    assert on_the_wire("pivot", pivot(3, "resistance", 5)) == [
        {
            "version_id": 7,
            "instruction_id": "pivot.major:180:resistance:2",
            "kind": "marker",
            "visible_time": 300,
            "definition": {
                "type": "marker",
                "feature": "pivot.major",
                "time": 180,
                "position": "aboveBar",
                "color": "#d9622b",
                "shape": "circle",
                "text": "",
                "size": 1.0,
            },
        }
    ]


def test_a_support_lies_below_its_candle() -> None:
    (sign,) = on_the_wire("pivot", pivot(3, "support", 5))
    definition = msgspec.convert(sign["definition"], dict[str, object])
    assert (sign["instruction_id"], definition["position"]) == ("pivot.major:180:support:2", "belowBar")


def test_minor_pivots_are_smaller_and_drawn_for_all_of_the_window_wherever_the_major_ones_are() -> None:
    prices = [5.0, 3.0, 4.0, 7.0, 6.0, 6.0, 8.0, 2.0, 2.0, 9.0]
    candles = [Candle(minute(at), price, price, price, price, 1.0) for at, price in enumerate(prices)]
    view = View(SERIES, 0, minute(9), heads={"pivot": {"minor": [], "_window_minor": 1}}, candles=candles)
    drawn = rendered(view)
    assert list(drawn) == [
        "pivot.minor:60:support:1",
        "pivot.minor:180:resistance:1",
        "pivot.minor:240:support:1",
        "pivot.minor:300:support:1",
        "pivot.minor:360:resistance:1",
        "pivot.minor:420:support:1",
        "pivot.minor:480:support:1",
    ]
    assert {definition["size"] for definition in drawn.values()} == {0.5}


def test_confirmed_pens_are_one_line_over_the_window_and_nothing_is_stored() -> None:
    event = pen(1, 3, 1.0, 5.0, 6)
    assert on_the_wire("pen", event) == []
    drawn = rendered(View(SERIES, 0, minute(9), events={"pen": [event, pen(3, 5, 5.0, 2.0, 8)]}))
    assert list(drawn) == ["pen.confirmed"]
    assert points(drawn["pen.confirmed"]) == [(1, 1.0), (3, 5.0), (5, 2.0)]
    assert (drawn["pen.confirmed"]["type"], drawn["pen.confirmed"]["lineWidth"]) == ("polyline", 2)


def test_a_pen_that_ends_before_the_window_is_left_out_and_one_that_reaches_into_it_is_whole() -> None:
    pens = [pen(1, 3, 1.0, 5.0, 6), pen(3, 5, 5.0, 2.0, 8)]
    drawn = rendered(View(SERIES, minute(4), minute(9), events={"pen": pens}))
    assert points(drawn["pen.confirmed"]) == [(3, 5.0), (5, 2.0)]
    assert rendered(View(SERIES, minute(6), minute(9), events={"pen": pens})) == {}


def test_the_extending_pen_and_the_candidate_are_dashed() -> None:
    head: dict[str, Json] = {"extending": pen(3, 6, 5.0, 2.0), "candidate": pen(6, 8, 2.0, 3.0)}
    drawn = rendered(View(SERIES, 0, minute(9), heads={"pen": head}))
    assert {name: points(definition) for name, definition in drawn.items()} == {
        "pen.extending": [(3, 5.0), (6, 2.0)],
        "pen.candidate": [(6, 2.0), (8, 3.0)],
    }
    assert {definition["lineStyle"] for definition in drawn.values()} == {"dashed"}


@pytest.mark.parametrize("direction", [1, -1])
def test_a_dead_zone_is_two_stored_ascending_edges_that_say_from_where_it_was_entered(direction: int) -> None:
    event = {**zone(2, 8, 4.0, 3.0), "death_time": 600, "visible_time": 600, "_entry_direction": direction}
    edges = on_the_wire("zhongshu", event)
    assert [(edge["instruction_id"], edge["visible_time"]) for edge in edges] == [
        ("zhongshu.dead:120:top", 600),
        ("zhongshu.dead:120:bottom", 600),
    ]
    top, bottom = (msgspec.convert(edge["definition"], dict[str, object]) for edge in edges)
    assert points(top) == [(2, 4.0), (8, 4.0)]
    assert points(bottom) == [(2, 3.0), (8, 3.0)]
    assert top["entryDirection"] == bottom["entryDirection"] == direction


@pytest.mark.parametrize("one_or_many", [True, False])
def test_the_living_zone_is_made_at_read(one_or_many: bool) -> None:
    alive = zone(2, 8, 4.0, 3.0)
    drawn = rendered(View(SERIES, 0, minute(9), heads={"zhongshu": {"alive": alive if one_or_many else [alive]}}))
    assert points(drawn["zhongshu.alive:top"]) == [(2, 4.0), (8, 4.0)]
    assert points(drawn["zhongshu.alive:bottom"]) == [(2, 3.0), (8, 3.0)]
    assert drawn["zhongshu.alive:top"]["entryDirection"] == 1


def test_a_switch_of_the_anchor_is_a_stored_arrow() -> None:
    (up,) = on_the_wire("anchor", switch(9, anchor(3, 6, 1)))
    (down,) = on_the_wire("anchor", switch(9, anchor(3, 6, -1), "zhongshu_entry"))
    assert up["instruction_id"] == "anchor.switch:540:1:strong_pen"
    assert down["instruction_id"] == "anchor.switch:540:-1:zhongshu_entry"
    shape = msgspec.convert(down["definition"], dict[str, object])
    assert [shape[key] for key in ("time", "position", "shape", "text")] == [
        540,
        "aboveBar",
        "arrowDown",
        "zhongshu entry",
    ]


def candles(*extremes: tuple[float, float], first: int = 0) -> list[Candle]:
    return [Candle(minute(first + at), low, high, low, high, 1.0) for at, (low, high) in enumerate(extremes)]


def test_anchors_are_lines_between_the_extremes_of_their_candles() -> None:
    view = View(
        SERIES,
        0,
        minute(3),
        heads={"anchor": {"current_anchor_ref": anchor(1, 3, -1)}},
        events={"anchor": [switch(1, anchor(0, 1, 1)), switch(3, anchor(1, 2, -1))]},
        candles=candles((1.0, 2.0), (3.0, 4.0), (2.0, 3.0), (1.5, 2.5)),
    )
    drawn = rendered(view)
    assert {name: points(definition) for name, definition in drawn.items()} == {
        "anchor.history:60": [(0, 1.0), (1, 4.0)],
        "anchor.history:180": [(1, 4.0), (2, 2.0)],
        "anchor.current": [(1, 4.0), (3, 1.5)],
    }
    assert [drawing.visible_time for drawing in GRAPH.render(view)] == [60, 180, 180], (
        "the switches', then the window's"
    )


def test_an_anchor_from_before_the_window_is_drawn_when_its_pen_reaches_into_it() -> None:
    ref = anchor(1, 5, 1)
    held = candles((4.0, 6.0), (3.0, 9.0), (2.0, 3.0), (1.5, 2.5), first=4)
    blind = View(SERIES, minute(4), minute(7), heads={"anchor": {"current_anchor_ref": ref}}, candles=held)
    assert rendered(blind) == {}
    seeing = View(
        SERIES, minute(4), minute(7), heads=blind.heads, events={"pen": [pen(1, 5, 1.0, 9.0, 7)]}, candles=held
    )
    assert points(rendered(seeing)["anchor.current"]) == [(1, 1.0), (5, 9.0)]


def test_heads_with_nothing_in_them_draw_nothing() -> None:
    heads: dict[str, dict[str, Json]] = {
        "pivot": {"minor": []},
        "pen": {"extending": None, "candidate": None},
        "zhongshu": {"alive": None},
        "anchor": {},
    }
    assert rendered(View(SERIES, 0, minute(9), heads=heads)) == {}


def test_a_malformed_event_is_a_fault_with_the_missing_field() -> None:
    with pytest.raises(
        OverlayFault,
        match=r"overlay pivot failed at the candle at 1970-01-01 00:01 UTC: ValidationError: .*`pivot_time`",
    ):
        GRAPH.draw([("pivot", {"visible_time": 60})])


def test_each_colour_stands_out_from_the_dark_and_the_light_ground() -> None:
    page = (Path(__file__).parents[2] / "frontend" / "src" / "page.css").read_text()
    grounds = re.search(r"--stage: light-dark\((#\w{6}), (#\w{6})\)", page)
    assert grounds is not None
    colors = [value for name, value in vars(structure).items() if name.endswith("_COLOR")]
    assert len(colors) == 7
    for color in colors:
        for ground in grounds.groups():
            # WCAG 2.2, 1.4.11: contrast of meaningful graphics.
            assert contrast(color, ground) >= 3, (color, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05), the lighter one first."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

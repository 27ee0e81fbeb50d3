"""Registration of overlays, and the checks of their drawings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType, ModuleType

import msgspec
import pytest

from klinesync.core.series_id import SeriesId
from klinesync.factor.plugin import Event
from klinesync.overlay.graph import MAX_DRAWINGS_OF_AN_EVENT, OverlayGraph
from klinesync.overlay.instruction import (
    Drawing,
    Marker,
    Point,
    Polyline,
    within,
)
from klinesync.overlay.plugin import BadOverlay, OverlayFault, View
from klinesync.overlay.registry import load_overlays

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
EVENT: Event = {"visible_time": 600}
VIEW = View(SERIES, 0, 600)
SOUND = Marker("toy.mark", 600, "aboveBar", "#123456", "circle")


class Toy:
    """An overlay with given drawings."""

    def __init__(
        self,
        name: str = "toy",
        draws: Callable[[Event], Sequence[Drawing]] = lambda _: (),
        renders: Callable[[View], Sequence[Drawing]] = lambda _: (),
        *,
        version: int = 1,
        depends_on: Sequence[str] = ("pen",),
        features: Sequence[str] = ("toy.mark", "toy.line"),
    ) -> None:
        self.name = name
        self.version = version
        self.depends_on = depends_on
        self.features = features
        self._draws = draws
        self._renders = renders

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        return self._draws(event)

    def render(self, view: View) -> Sequence[Drawing]:
        return self._renders(view)


def make_toy() -> Toy:
    return Toy()


def make_nothing() -> object:
    return object()


def drawing(definition: Marker | Polyline = SOUND, name: str = "toy.mark:600", time: int = 600) -> Drawing:
    return Drawing(name, time, definition)


def test_two_overlays_of_one_name_are_refused() -> None:
    with pytest.raises(BadOverlay, match="overlay toy: is registered twice"):
        OverlayGraph([Toy(), Toy(features=())], ["pen"])


def test_two_overlays_that_draw_one_feature_are_refused() -> None:
    with pytest.raises(BadOverlay, match=r"overlay toy: draws toy\.mark, which overlay other draws"):
        OverlayGraph([Toy(), Toy("other")], ["pen"])


def test_an_overlay_of_a_factor_that_does_not_run_is_refused() -> None:
    with pytest.raises(BadOverlay, match=r"reads factor pen, which does not run \(running: anchor, pivot\)"):
        OverlayGraph([Toy()], ["pivot", "anchor"])


@pytest.mark.parametrize("name", ["", "Toy", "a b", "toy:1", "1toy"])
def test_a_name_that_ids_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(BadOverlay, match="is named in lower-case letters"):
        OverlayGraph([Toy(name)], ["pen"])


def test_a_feature_that_ids_cannot_hold_is_refused() -> None:
    with pytest.raises(BadOverlay, match="has the feature 'toy:mark'"):
        OverlayGraph([Toy(features=["toy:mark"])], ["pen"])


def test_the_order_of_registration_does_not_matter() -> None:
    def one(name: str) -> Toy:
        mark = Marker(f"{name}.mark", 600, "aboveBar", "red", "circle")
        answer = [Drawing(f"{name}.mark", 600, mark)]
        return Toy(name, lambda _: answer, lambda _: answer, features=[f"{name}.mark"])

    there = OverlayGraph([one("a"), one("b")], ["pen"])
    back = OverlayGraph([one("b"), one("a")], ["pen"])
    assert there.names == back.names == ("a", "b")
    assert there.fingerprint == back.fingerprint
    assert there.draw([("pen", EVENT)]) == back.draw([("pen", EVENT)])
    assert there.render(VIEW) == back.render(VIEW)


def test_the_fingerprint_tells_versions_apart() -> None:
    assert OverlayGraph([Toy()], ["pen"]).fingerprint != OverlayGraph([Toy(version=2)], ["pen"]).fingerprint


def test_events_are_drawn_in_order_by_overlays_that_depend_on_their_factor() -> None:
    seen: list[tuple[str, object]] = []

    def noting(name: str) -> Callable[[Event], Sequence[Drawing]]:
        def note(event: Event) -> Sequence[Drawing]:
            seen.append((name, event["visible_time"]))
            return ()

        return note

    a = Toy("a", noting("a"), depends_on=["pen", "pivot"], features=[])
    b = Toy("b", noting("b"), depends_on=["pivot"], features=[])
    graph = OverlayGraph([b, a], ["pen", "pivot", "anchor"])
    graph.draw([("pivot", {"visible_time": 0}), ("pen", {"visible_time": 0}), ("anchor", {"visible_time": 60})])
    assert seen == [("a", 0), ("b", 0), ("a", 0)]


def test_a_suspended_overlay_or_factor_is_left_out_with_all_that_reads_it() -> None:
    graph = OverlayGraph([Toy(), Toy("other", depends_on=["pivot"], features=[])], ["pen", "pivot"])
    assert graph.without("toy").names == ("other",)
    assert graph.without_factors("pen").names == ("other",)
    assert graph.without_factors("pivot").features == ("toy.mark", "toy.line")


def fault_of(draws: Callable[[Event], Sequence[Drawing]]) -> str:
    """The sentence of the fault, which is the same for `draw` and `render`."""
    with pytest.raises(OverlayFault) as drawn:
        OverlayGraph([Toy(draws=draws)], ["pen"]).draw([("pen", EVENT)])
    with pytest.raises(OverlayFault) as rendered:
        OverlayGraph([Toy(renders=lambda _: draws(EVENT))], ["pen"]).render(VIEW)
    assert (drawn.value.overlay, drawn.value.time) == ("toy", 600)
    assert str(drawn.value) == str(rendered.value)
    return str(drawn.value)


def test_an_overlay_that_raises_is_named_with_its_candle() -> None:
    def fail(_: Event) -> Sequence[Drawing]:
        raise RuntimeError("no idea")

    assert fault_of(fail) == "overlay toy failed at the candle at 1970-01-01 00:10 UTC: RuntimeError: no idea"


def line(*values: float, time: int = 600) -> Polyline:
    return Polyline("toy.line", tuple(Point(time, value) for value in values), "red")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (drawing(line(1.0, float("nan")), "toy.line"), "Expected `float`, got `null`"),
        (drawing(line(1.0, float("-inf")), "toy.line"), "Expected `float`, got `null`"),
        (drawing(line(1.0), "toy.line"), "length >= 2"),
        (drawing(line(1.0, 1e300), "toy.line"), "<= 1e"),
        (drawing(line(1.0, 2.0, time=660), "toy.line"), "the candle at 1970-01-01 00:11 UTC, after its"),
        (drawing(Polyline("toy.line", (Point(600, 1.0), Point(540, 1.0)), "red"), "toy.line"), "go back in time"),
        (drawing(msgspec.structs.replace(SOUND, time=-60)), ">= 0"),
        (drawing(msgspec.structs.replace(SOUND, color="")), "regex"),
        (drawing(msgspec.structs.replace(SOUND, color="red;}")), "regex"),
        (drawing(msgspec.structs.replace(SOUND, text="x" * 61)), "length <= 60"),
        (drawing(msgspec.structs.replace(SOUND, size=0.0)), "> 0"),
        (drawing(msgspec.structs.replace(SOUND, feature="pen.confirmed"), "pen.confirmed"), "is not among toy.mark"),
        (drawing(SOUND, "mark:600"), "is no id of the feature toy.mark"),
        (drawing(SOUND, "toy.marker"), "is no id of the feature toy.mark"),
        (drawing(SOUND, ""), "length >= 1"),
    ],
)
def test_a_malformed_drawing_is_a_fault(bad: Drawing, why: str) -> None:
    fault = fault_of(lambda _: [bad])
    assert re.search(why, fault), fault


def test_a_name_drawn_twice_at_once_is_a_fault() -> None:
    assert "toy.mark:600 is drawn twice at once" in fault_of(lambda _: [drawing(), drawing()])


def test_too_many_drawings_of_an_event_are_a_fault() -> None:
    many = [drawing(name=f"toy.mark:{at}") for at in range(MAX_DRAWINGS_OF_AN_EVENT + 1)]
    with pytest.raises(OverlayFault, match="65 drawings at once; the most are 64"):
        OverlayGraph([Toy(draws=lambda _: many)], ["pen"]).draw([("pen", EVENT)])


def test_a_stored_drawing_becomes_visible_with_its_event() -> None:
    with pytest.raises(
        OverlayFault, match=r"toy\.mark:600 has visible_time 1970-01-01 00:11 UTC, its event 1970-01-01 00:10 UTC"
    ):
        OverlayGraph([Toy(draws=lambda _: [drawing(time=660)])], ["pen"]).draw([("pen", EVENT)])


def test_a_rendered_drawing_knows_nothing_later_than_the_window() -> None:
    with pytest.raises(OverlayFault, match=r"has visible_time 1970-01-01 00:11 UTC, after the window.s end"):
        OverlayGraph([Toy(renders=lambda _: [drawing(time=660)])], ["pen"]).render(VIEW)


def test_returned_drawings_are_copies() -> None:
    points = [Point(0, 1.0), Point(600, 2.0)]
    held = Polyline("toy.line", points, "red")  # type: ignore[arg-type]
    (drawn,) = OverlayGraph([Toy(draws=lambda _: [drawing(held, "toy.line")])], ["pen"]).draw([("pen", EVENT)])
    points.clear()
    assert isinstance(drawn.definition, Polyline)
    assert drawn.definition.points == (Point(0, 1.0), Point(600, 2.0))


def test_a_drawing_belongs_to_the_windows_that_it_touches() -> None:
    backwards = Polyline("toy.line", (Point(240, 1.0), Point(120, 1.0)), "red")
    assert within(backwards, 240, 600)
    assert within(backwards, 0, 120)
    assert not within(backwards, 300, 600)
    assert not within(backwards, 0, 60)


def entry(value: str, name: str = "toy") -> EntryPoint:
    return EntryPoint(name, value, "klinesync.overlays")


def test_the_built_in_overlays_come_through_the_entry_points() -> None:
    names = {overlay.name for overlay in load_overlays()}
    assert {"anchor", "pen", "pivot", "zhongshu"} <= names, "run `make setup`: the entry points are not installed"


def test_another_packages_overlay_is_loaded_by_calling_its_entry_point() -> None:
    (toy,) = load_overlays([entry(f"{__name__}:make_toy")])
    assert toy.name == "toy"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("klinesync.no_such_module:Overlay", "cannot be loaded: ModuleNotFoundError"),
        ("klinesync.overlay.structure:NoSuchOverlay", "cannot be loaded: AttributeError"),
        ("klinesync.overlay.structure:PEN_COLOR", "cannot be loaded: TypeError"),
        (f"{__name__}:make_nothing", "returns a object, which is no overlay: it needs name, version"),
    ],
)
def test_an_entry_point_that_is_no_overlay_stops_the_start_with_its_name(value: str, why: str) -> None:
    with pytest.raises(BadOverlay, match=rf"^overlay toy: {value} of an unknown package {why}"):
        load_overlays([entry(value)])


def test_events_need_not_be_dicts() -> None:
    seen = MappingProxyType({"visible_time": 600})
    assert OverlayGraph([Toy(draws=lambda _: [drawing()])], ["pen"]).draw([("pen", seen)]) == [drawing()]


def test_the_overlay_of_the_how_to_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "write-an-overlay.md").read_text()
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert program is not None
    module = ModuleType("level")
    monkeypatch.setitem(sys.modules, "level", module)
    exec(program[1], module.__dict__)
    (overlay,) = load_overlays([entry("level:LevelOverlay")])
    graph = OverlayGraph([overlay], ["pivot"])
    pivot: Event = {"pivot_time": 540, "pivot_price": 2.5, "direction": "support", "visible_time": 600, "window": 1}
    (known,) = graph.draw([("pivot", pivot)])
    assert known.instruction_id == "level.known:540:support"
    (level,) = graph.render(View(SERIES, 0, 600, events={"pivot": [pivot]}))
    assert isinstance(level.definition, Polyline)
    assert level.definition.points == (Point(0, 2.5), Point(600, 2.5))

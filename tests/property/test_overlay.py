"""Readers of draw deltas: a reader of deltas has the same drawings as a new reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.series_id import SeriesId
from klinesync.factor.plugin import Event, Json
from klinesync.overlay.delta import Cursor, DrawDelta, compose
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Definition, Drawing, Instruction, Marker, Point, Polyline
from klinesync.overlay.plugin import View

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
STEP_S = 60


class Toy:
    """Draws its events under few ids, so that ids repeat; also draws two lines over the window."""

    name = "toy"
    version = 1
    depends_on = ("said",)
    features = ("toy.mark", "toy.line", "toy.head", "toy.window")

    def draw(self, factor: str, event: Event) -> Sequence[Drawing]:
        marks, visible_time = event["marks"], event["visible_time"]
        assert isinstance(marks, list)
        assert isinstance(visible_time, int)
        drawings = []
        for mark in marks:
            assert isinstance(mark, Mapping)
            name, back, value = mark["name"], mark["back"], mark["value"]
            assert isinstance(name, int)
            assert isinstance(back, int)
            assert isinstance(value, float)
            time = max(0, visible_time - back * STEP_S)
            shape: Definition = Marker("toy.mark", time, "aboveBar", "#123456", "circle", f"{value}")
            if name % 2 and time < visible_time:
                points = (Point(time, value), Point(visible_time, value + 1))
                shape = Polyline("toy.line", points, "red")
            drawings.append(Drawing(f"{shape.feature}:{name}", visible_time, shape))
        return list({drawing.instruction_id: drawing for drawing in drawings}.values())

    def render(self, view: View) -> Sequence[Drawing]:
        drawings = []
        if view.at_time // STEP_S % 3:
            head = Marker("toy.head", view.at_time, "belowBar", "blue", "arrowUp")
            drawings.append(Drawing("toy.head", view.at_time, head))
        times = sorted({time for event in view.events_of("said") if isinstance(time := event["visible_time"], int)})
        if len(times) > 1:
            line = Polyline("toy.window", tuple(Point(time, 1.0) for time in times), "green", line_width=2)
            drawings.append(Drawing("toy.window", view.at_time, line))
        return drawings


GRAPH = OverlayGraph([Toy()], ["said"])


@dataclass
class Ledger:
    """A series' stored drawings and values, as a store would keep them; open times are 0, 60, 120 …"""

    epoch: int = 0
    events: list[list[Event]] = field(default_factory=list)  # by candle
    values: list[float] = field(default_factory=list)
    stored: list[Instruction] = field(default_factory=list)

    def advance(self, candle: tuple[float, list[list[Mapping[str, Json]]]]) -> None:
        value, said = candle
        time = len(self.events) * STEP_S
        events: list[Event] = [{"visible_time": time, "marks": marks} for marks in said]
        self.events.append(events)
        self.values.append(value)
        drawings = GRAPH.draw([("said", event) for event in events])
        first = len(self.stored) + 1
        self.stored += [Instruction.numbered(first + at, drawing) for at, drawing in enumerate(drawings)]

    def rewind(self, keep: int) -> None:
        del self.events[keep:]
        del self.values[keep:]
        self.stored = [drawing for drawing in self.stored if drawing.visible_time < keep * STEP_S]
        self.epoch += 1

    def answer(self, window: int, cursor: Cursor | None, epoch: int | None, at: int | None = None) -> DrawDelta:
        last = len(self.events) - 1 if at is None else at
        first = max(0, last - window + 1)
        start_time, at_time = first * STEP_S, last * STEP_S
        events = [event for said in self.events[first : last + 1] for event in said]
        known = [drawing for drawing in self.stored if drawing.visible_time <= at_time]
        return compose(
            SERIES,
            self.epoch,
            start_time=start_time,
            at_time=at_time,
            version_id=known[-1].version_id if known else 0,
            stored=[drawing for drawing in known if drawing.visible_time >= start_time],
            rendered=GRAPH.render(View(SERIES, start_time, at_time, events={"said": events})),
            points={"ema_3": [Point(at * STEP_S, self.values[at]) for at in range(first, last + 1)]},
            cursor=cursor,
            cursor_epoch=epoch,
        )


@dataclass
class Reader:
    """A reader that applies deltas as the reference describes."""

    window: int
    epoch: int | None = None
    cursor: Cursor | None = None
    catalogue: dict[str, Definition] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    def ask(self, ledger: Ledger) -> DrawDelta:
        delta = ledger.answer(self.window, self.cursor, self.epoch)
        self.apply(delta)
        return delta

    def apply(self, delta: DrawDelta) -> None:
        if delta.epoch != self.epoch:
            self.catalogue.clear()
            self.points.clear()
        for instruction in delta.instruction_catalog_patch:
            self.catalogue[instruction.instruction_id] = instruction.definition
        last = self.points[-1].time if self.points else -1
        self.points += [point for point in delta.series_points["ema_3"] if point.time > last]
        self.active = delta.active_ids
        self.epoch, self.cursor = delta.epoch, delta.next_cursor

    def shown(self, ledger: Ledger) -> tuple[dict[str, Definition], list[Point]]:
        start_time = (len(ledger.events) - self.window) * STEP_S
        drawn = {name: self.catalogue[name] for name in self.active}
        return drawn, [point for point in self.points if point.time >= start_time]


mark = st.fixed_dictionaries(
    {"name": st.integers(0, 7), "back": st.integers(0, 12), "value": st.floats(-5, 5, allow_nan=False)}
)
candle = st.tuples(st.floats(-5, 5, allow_nan=False), st.lists(st.lists(mark, max_size=3), max_size=2))
candles = st.lists(candle, min_size=1, max_size=30)
windows = st.integers(1, 15)


@given(st.data(), candles, windows)
def test_a_reader_of_deltas_shows_the_same_as_a_new_reader(
    data: st.DataObject, first: list[tuple[float, list[list[Mapping[str, Json]]]]], window: int
) -> None:
    ledger = Ledger()
    ledger.advance((0.0, []))
    reader = Reader(window)
    for candle in first:
        ledger.advance(candle)
        if data.draw(st.booleans(), "asks"):
            reader.ask(ledger)
            new = Reader(window)
            new.ask(ledger)
            assert reader.shown(ledger) == new.shown(ledger)
        if data.draw(st.integers(0, 9), "rewind when 0") == 0:
            ledger.rewind(data.draw(st.integers(1, len(ledger.events)), "kept"))


@given(candles, windows, st.data())
def test_an_answer_applied_twice_changes_nothing(
    all_: list[tuple[float, list[list[Mapping[str, Json]]]]], window: int, data: st.DataObject
) -> None:
    ledger = Ledger()
    reader = Reader(window)
    for candle in all_:
        ledger.advance(candle)
        if data.draw(st.booleans(), "asks"):
            delta = reader.ask(ledger)
            before = reader.shown(ledger)
            reader.apply(delta)
            assert reader.shown(ledger) == before


@given(candles, windows, st.data())
def test_an_answer_about_the_past_equals_the_answer_at_that_time(
    all_: list[tuple[float, list[list[Mapping[str, Json]]]]], window: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(all_) - 1))
    then, now = Ledger(), Ledger()
    for candle in all_[: at + 1]:
        then.advance(candle)
    for candle in all_:
        now.advance(candle)
    assert now.answer(window, None, None, at) == then.answer(window, None, None)


@given(candles, windows)
def test_a_reader_does_not_get_known_drawings_again(
    all_: list[tuple[float, list[list[Mapping[str, Json]]]]], window: int
) -> None:
    ledger = Ledger()
    reader = Reader(window)
    told: set[int] = set()
    for candle in all_:
        ledger.advance(candle)
        delta = reader.ask(ledger)
        numbers = [
            own.version_id
            for own in delta.instruction_catalog_patch
            if own.instruction_id.startswith(("toy.mark", "toy.line"))
        ]
        assert not told.intersection(numbers)
        told.update(numbers)
        again = reader.ask(ledger)
        assert again.instruction_catalog_patch == []
        assert again.series_points == {"ema_3": []}
        assert again.active_ids == delta.active_ids


@given(candles, st.data())
def test_drawings_and_their_numbers_do_not_depend_on_the_batches_of_events(
    all_: list[tuple[float, list[list[Mapping[str, Json]]]]], data: st.DataObject
) -> None:
    events: list[tuple[str, Event]] = [
        ("said", {"visible_time": at * STEP_S, "marks": marks}) for at, (_, said) in enumerate(all_) for marks in said
    ]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=5)))
    pieces = [GRAPH.draw(events[start:end]) for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]
    assert [drawing for piece in pieces for drawing in piece] == GRAPH.draw(events)

"""Outputs of a plugin's factor: what the start refuses, what is a fault at a candle, and how readers know them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from math import inf, isnan, nan
from typing import Any

import msgspec
import pytest

from klinesync.core.candle import Candle
from klinesync.factor.graph import FactorGraph
from klinesync.factor.outputs import MAX_OUTPUTS
from klinesync.factor.plugin import BadFactor, Event, Factor, FactorFault, Feature, Upstream
from klinesync.factor.probe import refuse_broken


class Count(msgspec.Struct, frozen=True):
    candles: int = 0
    note: float = 0.0


class Numbers(Factor[Count]):
    """Counts candles; its numbers are what `give` makes of the count."""

    label = "Numbers"
    state_type = Count

    def __init__(
        self, outputs: Any = ("low", "high"), give: Callable[[int], Any] = lambda count: (count, -count),
        name: str = "numbers", pane: Any = "own", depends_on: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.outputs = outputs
        self.name = name
        self.pane = pane
        self.depends_on = depends_on
        self._give = give

    def seed(self) -> Count:
        return Count()

    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        return Count(state.candles + 1), ()

    def numbers(self, state: Count) -> Sequence[float | None]:
        numbers: Sequence[float | None] = self._give(state.candles)
        return numbers


def candle(time: int) -> Candle:
    return Candle(time, 1.0, 1.0, 1.0, 1.0, 1.0)


def failing(_count: int) -> Any:
    raise ZeroDivisionError("a divisor")


# --- at the start


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (Numbers("low"), "its outputs are 'low', not a list of names"),
        (Numbers((1, 2)), "its outputs are (1, 2), not a list of names"),
        (Numbers(("Low", "high")), "an output is named in lower-case letters, digits and _, a letter first, not 'Low'"),
        (Numbers(("low.low", "high")), "an output is named"),
        (Numbers(name="Numbers"), "a factor with outputs is named in lower-case letters"),
        (Numbers(name="close"), "its outputs would be mistaken for values of candles; rename it"),
        (Numbers(("low", "low")), "two of its outputs have one name: low, low"),
        (Numbers(pane="left"), "its pane is 'left', and panes are price and own"),
        (Numbers([f"o{at}" for at in range(MAX_OUTPUTS + 1)]), f"its 33 outputs are more than {MAX_OUTPUTS}"),
        (Numbers(("one",)), "ValueError: it gives 2 numbers for 1 outputs"),
        (Numbers(()), "ValueError: it gives 2 numbers for 0 outputs"),
        (Numbers(give=lambda _: ()), "ValueError: it gives 0 numbers for 2 outputs"),
        (Numbers(("one",), lambda _: 1.0), "TypeError: it gives a float, where a tuple of numbers is expected"),
        (Numbers(give=lambda _: (1.0, nan)), "ValueError: output high is nan; None says that there is no value"),
        (Numbers(give=lambda _: (-inf, 1.0)), "ValueError: output low is -inf"),
        (Numbers(give=lambda _: (10**400, 1.0)), "OverflowError"),
        (Numbers(give=lambda _: (True, 1.0)), "TypeError: output low is a bool, neither a number nor None"),
        (Numbers(give=lambda _: ("1", 1.0)), "TypeError: output low is a str"),
        (Numbers(give=failing), "its numbers before the first candle: ZeroDivisionError: a divisor"),
    ],
)
def test_wrong_outputs_are_refused_at_the_start_with_a_sentence(factor: Numbers, sentence: str) -> None:
    with pytest.raises(BadFactor) as refused:
        FactorGraph([factor])
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"factor {factor.name}: ")


def test_the_largest_number_of_outputs_is_taken() -> None:
    factor = Numbers([f"o{at}" for at in range(MAX_OUTPUTS)], lambda count: [count] * MAX_OUTPUTS)
    assert len(FactorGraph([factor]).output_keys) == MAX_OUTPUTS


CLOCK = itertools.count()


class Remembering(Numbers):
    """Remembers candles beside the state."""

    seen = 0

    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        self.seen += 1
        return Count(self.seen), ()


class ByTheClock(Numbers):
    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        return Count(next(CLOCK)), ()


class ByChance(Numbers):
    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        return Count(state.candles, random.random()), ()


class EventsByChance(Numbers):
    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        return state, [{"visible_time": candle.time, "chance": random.random()}]


class Lasting(Count, frozen=True):
    """A kind of state that becomes another kind when it is encoded and decoded."""


class Forgetful(Numbers):
    def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
        return Lasting(state.candles + 1 if isinstance(state, Lasting) else 0), ()


@pytest.mark.parametrize(
    ("factor", "what"),
    [
        (Remembering(), "states"),
        (ByTheClock(), "states"),
        (ByChance(), "states"),
        (Forgetful(), "states"),
        (EventsByChance(), "events"),
        (Numbers(give=lambda _: (random.random(), None)), "numbers"),
    ],
    ids=["remembers", "reads a clock", "by chance", "forgets at a restart", "events by chance", "numbers by chance"],
)
def test_results_that_do_not_follow_from_state_and_candle_are_refused_at_the_start(factor: Numbers, what: str) -> None:
    with pytest.raises(BadFactor, match=f"^factor numbers: it gives other {what} for the same candles; results may"):
        refuse_broken(FactorGraph([Numbers(name="good"), factor]))


class Named(msgspec.Struct, frozen=True):
    names: frozenset[str] = frozenset()
    last: float = 0.0


class Collecting(Factor[Named]):
    """Equal states of it may be encoded to other bytes, and NaN does not equal itself."""

    name = label = "collecting"
    state_type = Named

    def seed(self) -> Named:
        return Named()

    def advance(self, state: Named, candle: Candle, upstream: Upstream) -> tuple[Named, Sequence[Event]]:
        names = {f"name {candle.time} {number}" for number in range(50)}
        return Named(state.names | names, nan if candle.volume else 1.0), ()


def test_states_are_the_same_by_value_or_by_their_bytes() -> None:
    refuse_broken(FactorGraph([Collecting()]))
    graph = FactorGraph([Collecting()])
    states = {"collecting": Named(frozenset(map(str, range(1000))))}
    assert graph.same_state("collecting", states, graph.restored(states))
    assert graph.same_state("collecting", {"collecting": Named(last=nan)}, {"collecting": Named(last=float("nan"))})
    assert not graph.same_state("collecting", states, graph.seed())


class Opaque(Numbers):
    def advance(self, state: Any, candle: Candle, upstream: Upstream) -> Any:
        return Count(1, object()), ()  # type: ignore[arg-type]


def test_a_state_that_cannot_be_stored_after_a_candle_is_refused_at_the_start() -> None:
    with pytest.raises(BadFactor, match=r"^factor numbers: its state cannot be stored: "):
        refuse_broken(FactorGraph([Opaque()]))


# --- at a candle


@pytest.mark.parametrize(
    ("give", "error"),
    [
        (lambda count: (1.0, nan if count == 2 else None), "ValueError: output high is nan"),
        (lambda count: (1.0,) * (1 if count == 2 else 2), "ValueError: it gives 1 numbers for 2 outputs"),
        (lambda count: (1.0 / (count - 2), 1.0), "ZeroDivisionError"),
        (lambda count: (1.0, object() if count == 2 else 1.0), "TypeError: output high is a object"),
    ],
)
def test_wrong_numbers_are_a_fault_of_their_candle_and_change_nothing(give: Callable[[int], Any], error: str) -> None:
    graph = FactorGraph([Numbers(give=give), Numbers(name="good")])
    before, _ = graph.advance(graph.seed(), candle(0))
    for fold in (graph.advance_many, graph.fold_outputs):
        with pytest.raises(FactorFault) as fault:
            fold(before, [candle(60), candle(120)])
        assert (fault.value.factor, fault.value.candle_time) == ("numbers", 60)
        assert error in str(fault.value)
    assert graph.without("numbers").fold_outputs(before, [candle(60)])[1] == {"good.low": [2.0], "good.high": [-2.0]}


def test_an_event_of_a_factor_that_has_none_is_a_fault() -> None:
    class Says(Numbers):
        has_events = False

        def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
            return state, [{"visible_time": candle.time}]

    graph = FactorGraph([Says()])
    with pytest.raises(FactorFault, match="it says that it has no events, and returns one"):
        graph.advance(graph.seed(), candle(0))


# --- as readers know them


def test_a_single_output_has_the_name_of_its_factor_and_several_are_named_after_both() -> None:
    graph = FactorGraph([Numbers(name="b"), Numbers(("only",), lambda count: [count], name="a")])
    assert graph.output_keys == ("a", "b.low", "b.high")
    states, lines = graph.fold_outputs(graph.seed(), [candle(0), candle(60)])
    assert lines == {"a": [1.0, 2.0], "b.low": [1.0, 2.0], "b.high": [-1.0, -2.0]}
    assert graph.numbers(states, 60) == {"a": 2.0, "b.low": 2.0, "b.high": -2.0}
    assert graph.fold_outputs(states, [])[1] == {"a": [], "b.low": [], "b.high": []}


def test_an_output_without_a_value_is_nan_in_lines_and_whole_numbers_become_floats() -> None:
    graph = FactorGraph([Numbers(give=lambda count: (None, count))])
    lines = graph.fold_outputs(graph.seed(), [candle(0)])[1]
    assert isnan(lines["numbers.low"][0])
    assert type(lines["numbers.high"][0]) is float


def test_numbers_of_a_state_that_stays_are_those_of_each_candle() -> None:
    class Still(Numbers):
        def advance(self, state: Count, candle: Candle, upstream: Upstream) -> tuple[Count, Sequence[Event]]:
            return state, ()

    graph = FactorGraph([Still(("only",), lambda _: [7])])
    assert graph.fold_outputs(graph.seed(), [candle(0), candle(60)])[1] == {"numbers": [7.0, 7.0]}


def test_the_catalog_has_outputs_as_it_has_those_of_indicators() -> None:
    class Both(Numbers):
        label = "Both"
        features: Sequence[Feature] = (Feature("both.mark", "Marks", default_visible=False),)

    single = Numbers(("only",), lambda count: [count], "a", "price")
    assert FactorGraph([single, Both(name="both")]).catalog() == [
        {
            "key": "a",
            "label": "Numbers",
            "default_visible": True,
            "pane": "price",
            "sub_features": [{"key": "a", "label": "Numbers", "default_visible": True, "style": "line"}],
        },
        {
            "key": "both",
            "label": "Both",
            "default_visible": True,
            "pane": "own",
            "sub_features": [
                {"key": "both.mark", "label": "Marks", "default_visible": False},
                {"key": "both.low", "label": "Both low", "default_visible": True, "style": "line"},
                {"key": "both.high", "label": "Both high", "default_visible": True, "style": "line"},
            ],
        },
    ]


def test_the_factors_with_outputs_are_computed_with_what_they_depend_on_alone() -> None:
    silent = Numbers((), lambda _: (), "silent")
    graph = FactorGraph(
        [silent, Numbers((), lambda _: (), "above"), Numbers(name="below", depends_on=("above", "ema_3"))], ("ema_3",)
    )
    assert graph.numeric.names == ("above", "below")
    assert graph.numeric.outside == {"ema_3"}
    assert FactorGraph([silent]).numeric.names == ()


class Flow(Numbers):
    reads_flow = True
    has_events = False


def test_what_depends_on_order_flow_is_known_through_others_too() -> None:
    quiet = Flow((), lambda _: (), "flow")
    graph = FactorGraph([quiet, Numbers(name="other")])
    assert (graph.flow_names, graph.flow_has_events) == (frozenset({"flow"}), False)
    graph = FactorGraph([quiet, Numbers(name="below", depends_on=("flow",)), Numbers(name="other")])
    assert (graph.flow_names, graph.flow_has_events) == (frozenset({"flow", "below"}), True)
    assert graph.of_flow.names == ("flow", "below")

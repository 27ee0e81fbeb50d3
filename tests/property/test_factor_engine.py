"""The factor graph: for any batches of candles the same states and events, and none from the future."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.factor.graph import FactorGraph, Said, States
from klinesync.factor.plugin import AnyFactor, Event, Factor, FactorSettings, Seen, Upstream, state_of
from klinesync.factor.structure import structure
from support.structure_oracle import markets, structure_graph, told, walk, windows


class Above(msgspec.Struct, frozen=True):
    """A mean of an indicator's values, compared exactly: a sum of floats reveals any other order of work."""

    total: float = 0.0
    count: int = 0


class AboveMean(Factor[Above]):
    """Depends on an indicator, on a factor, and on the exact bits of all candles so far."""

    name = "above_mean"
    label = "Closes above the mean of an indicator"
    depends_on = ("mean_3", "momentum_run")
    state_type = Above

    def seed(self) -> Above:
        return Above()

    def advance(self, state: Above, candle: Candle, upstream: Upstream) -> tuple[Above, Sequence[Event]]:
        value = state_of(upstream, "mean_3", float)
        after = Above(state.total + value / 3.0, state.count + 1)
        if candle.close <= after.total * 3.0 / after.count:
            return after, ()
        return after, [{"above": after.total, "run": len(upstream["momentum_run"].events), "visible_time": candle.time}]


def example() -> Sequence[AnyFactor]:
    path = Path(__file__).parents[2] / "examples" / "momentum_run.py"
    spec = importlib.util.spec_from_file_location("momentum_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Sequence[AnyFactor] = module.factors(FactorSettings())
    return made


EXAMPLE = example()


def everything(major: int, minor: int) -> FactorGraph:
    """The built-in factors, the example of the documents, and a factor that depends on that example and on an
    indicator."""
    return FactorGraph((*structure(FactorSettings(major, minor)), *EXAMPLE, AboveMean()), outside=("mean_3",))


def indicators(candles: Sequence[Candle]) -> list[Upstream]:
    closes = [candle.close for candle in candles]
    return [{"mean_3": Seen(sum(closes[max(0, i - 2) : i + 1]) / 3.0)} for i in range(len(candles))]


def one_by_one(graph: FactorGraph, candles: Sequence[Candle]) -> tuple[States, list[Said]]:
    states, said = graph.seed(), []
    for candle, outside in zip(candles, indicators(candles), strict=True):
        states, events = graph.advance(states, candle, outside)
        said += [Said(name, event) for name in graph.names for event in events.get(name, ())]
    return states, said


@given(markets, windows, st.data())
def test_batches_of_any_size_with_and_without_a_restart_between_them_give_what_one_by_one_gives(
    candles: list[Candle], window: tuple[int, int], data: st.DataObject
) -> None:
    graph = everything(*window)
    outside = indicators(candles)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(candles)), max_size=6), label="cuts"))
    states, said = graph.seed(), []
    for first, end in pairwise([0, *cuts, len(candles)]):
        states, more = graph.advance_many(states, candles[first:end], outside[first:end])
        said += more
        if data.draw(st.booleans(), label="restart"):
            graph = everything(*window)
            states = graph.decode(graph.encode(states))
    expected = one_by_one(graph, candles)
    assert (states, said) == expected
    assert graph.encode(states) == graph.encode(expected[0])
    if candles:
        assert graph.heads(states, candles[-1]) == graph.heads(expected[0], candles[-1])


@given(markets, windows, st.data())
def test_what_was_said_and_the_state_are_the_same_whatever_comes_later(
    candles: list[Candle], window: tuple[int, int], data: st.DataObject
) -> None:
    graph = everything(*window)
    outside = indicators(candles)
    count = data.draw(st.integers(0, len(candles)), label="count")
    then, said_then = graph.advance_many(graph.seed(), candles[:count], outside[:count])
    kept = graph.encode(then)
    _, said = graph.advance_many(graph.seed(), candles, outside)
    assert said[: len(said_then)] == said_then
    assert all(visible(event) >= candles[count].time for _, event in said[len(said_then) :])
    # Advancing from a state does not modify the state.
    _, more = graph.advance_many(then, candles[count:], outside[count:])
    assert said_then + more == said
    assert graph.encode(then) == kept
    assert graph.advance_many(then, candles[count:], outside[count:])[1] == more


def visible(event: Event) -> int:
    time = event["visible_time"]
    assert isinstance(time, int)
    return time


@given(markets, windows)
def test_a_slice_in_the_past_is_the_same_before_and_after_more_candles(
    candles: list[Candle], window: tuple[int, int]
) -> None:
    """`seed(2000) then slice(1000)` and `seed(1000) then slice(1000)`."""
    graph = structure_graph(*window)
    half = len(candles) // 2
    if half:
        run = told(graph, candles)
        states, _ = graph.advance_many(graph.seed(), candles[:half])
        assert run[half - 1][1] == graph.heads(states, candles[half - 1])
        events = [said for one, _, _ in run for said in one.get("pen", []) if visible(said) <= candles[half - 1].time]
        again = [said for one, _, _ in told(graph, candles[:half]) for said in one.get("pen", [])]
        at_time = candles[half - 1].time
        assert graph.histories({"pen": events}, at_time) == graph.histories({"pen": again}, at_time)


def test_a_state_takes_no_more_bytes_after_ten_times_the_candles() -> None:
    graph = structure_graph(10, 3)
    sizes: list[int] = []
    states = graph.seed()
    for candle in walk(1, 5_000):
        states, _ = graph.advance(states, candle)
        sizes.append(len(graph.encode(states)))
    # The number of minor pivots since the last major one changes; except for these pivots the state is full after 21
    # candles.
    assert max(sizes[500:]) < 2 * max(sizes[:500])


@given(markets, windows)
def test_a_graph_without_a_factor_goes_on_from_the_states_of_the_whole_one(
    candles: list[Candle], window: tuple[int, int]
) -> None:
    graph = structure_graph(*window)
    fewer = graph.without("zhongshu")
    assert fewer.names == ("pivot", "pen")
    half = len(candles) // 2
    states, said = graph.advance_many(graph.seed(), candles[:half])
    states, more = fewer.advance_many(states, candles[half:])
    expected, all_said = graph.advance_many(graph.seed(), candles)
    assert {**states} == {name: expected[name] for name in fewer.names}
    assert [one for one in said + more if one.factor in fewer.names] == [
        one for one in all_said if one.factor in fewer.names
    ]


def test_the_example_says_a_run_of_closes_once() -> None:
    graph = FactorGraph(EXAMPLE)
    closes = [1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1]
    candles = [Candle(60 * i, *(float(close),) * 4, 1.0) for i, close in enumerate(closes)]
    states, said = graph.advance_many(graph.seed(), candles)
    events: list[Mapping[str, object]] = [event for _, event in said]
    assert events == [
        {"direction": 1, "length": 5, "visible_time": 300},
        {"direction": -1, "length": 5, "visible_time": 720},
    ]
    assert graph.heads(states, candles[-1]) == {"momentum_run": {"direction": -1, "length": 6}}
    _, lines = graph.fold_outputs(graph.seed(), candles)
    assert lines == {"momentum_run": [0, 1, 2, 3, 4, 5, 6, 0, -1, -2, -3, -4, -5, -6]}

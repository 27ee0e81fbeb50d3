"""Anchor: its switches and its position, from the events visible at every candle."""

from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from support.structure_oracle import markets, structure_graph, switches, told, walk, windows
from support.thorough import examples


@given(markets, windows)
@settings(max_examples=examples(30))
def test_the_anchor_switches_as_the_definition_says(candles: list[Candle], window: tuple[int, int]) -> None:
    graph = structure_graph(*window)
    said = []
    run = told(graph, candles)
    for events, _, _ in run:
        assert len(events.get("anchor", [])) <= 1
        said += events.get("anchor", [])
    expected, anchor = switches(candles, window[0])
    assert said == expected
    if run:
        assert run[-1][1]["anchor"] == {"current_anchor_ref": anchor}
    history = graph.histories({"anchor": said}, candles[-1].time if candles else 0)["anchor"]
    assert history == {"switches": said, "anchors": [event["new_anchor"] for event in said]}


@given(st.integers(0, 10_000), st.integers(1, 200))
@settings(max_examples=examples(15))
def test_where_the_anchor_stands_is_right_at_any_candle(seed: int, count: int) -> None:
    candles = walk(seed, count)
    graph = structure_graph(1, 1)
    states, _ = graph.advance_many(graph.seed(), candles)
    assert graph.heads(states, candles[-1])["anchor"] == {"current_anchor_ref": switches(candles, 1)[1]}


def test_the_walks_have_switches_for_both_reasons_and_after_both_kinds() -> None:
    said = [event for seed in range(8) for event in switches(walk(seed, 200), 1)[0]]
    assert {event["reason"] for event in said} == {"strong_pen", "zhongshu_entry"}
    kinds = [event["new_anchor"]["kind"] for event in said if isinstance(event["new_anchor"], dict)]
    assert set(kinds) == {"confirmed", "candidate"}

"""Pivots: the extremes of their window, against brute force at every candle."""

from itertools import pairwise

from hypothesis import given

from klinesync.core.candle import Candle
from klinesync.factor.graph import FactorGraph
from klinesync.factor.pivot import MINOR_KEPT, PivotFactor
from support.structure_oracle import majors, markets, minors, told, walk, windows


@given(markets, windows)
def test_major_and_minor_pivots_are_those_of_brute_force_at_every_candle(
    candles: list[Candle], window: tuple[int, int]
) -> None:
    major, minor = window
    said = []
    for count, (events, heads, _) in enumerate(told(FactorGraph([PivotFactor(major, minor)]), candles), 1):
        said += events.get("pivot", [])
        if count % 7 == 0 or count == len(candles):
            assert said == majors(candles[:count], major)
        assert heads["pivot"] == {"minor": minors(candles[:count], major, minor), "_window_minor": minor}


def flat(count: int, *changes: tuple[int, float, float]) -> list[Candle]:
    candles = [Candle(60 * i, 10.0, 10.0, 10.0, 10.0, 0.0) for i in range(count)]
    for i, high, low in changes:
        candles[i] = Candle(60 * i, 10.0, high, low, 10.0, 1.0)
    return candles


def test_on_a_plateau_the_earliest_major_pivot_wins_and_all_minor_ones_count() -> None:
    candles = flat(12, *((i, 12.0, 10.0) for i in (4, 5, 6)))
    graph = FactorGraph([PivotFactor(3, 1)])
    states, said = graph.advance_many(graph.seed(), candles)
    assert [(event["pivot_time"], event["visible_time"]) for _, event in said] == [(240, 420)]
    rows = graph.heads(states, candles[-1])["pivot"]["minor"]
    assert isinstance(rows, list)
    resistance = [row["pivot_time"] for row in rows if row["direction"] == "resistance"]
    assert resistance == [300, 360, 480, 540, 600]  # not 240: the window of 240 begins before the major pivot


def test_one_candle_may_be_a_pivot_in_both_directions() -> None:
    graph = FactorGraph([PivotFactor(2, 1)])
    _, said = graph.advance_many(graph.seed(), flat(7, (3, 12.0, 8.0)))
    assert [(event["pivot_time"], event["direction"]) for _, event in said] == [(180, "resistance"), (180, "support")]


def test_minor_pivots_and_with_them_the_state_do_not_grow_with_a_flat_market() -> None:
    graph = FactorGraph([PivotFactor(20, 2)])
    sizes = []
    states = graph.seed()
    for candle in flat(1_000):
        states, _ = graph.advance(states, candle)
        sizes.append(len(graph.encode(states)))
    rows = graph.heads(states, candle)["pivot"]["minor"]
    assert isinstance(rows, list)
    assert len(rows) == MINOR_KEPT
    # The times do not grow in size, so the last size is the largest.
    assert max(sizes[MINOR_KEPT:]) - min(sizes[MINOR_KEPT:]) < 1_500
    assert rows == minors(flat(1_000), 20, 2)


def test_the_walks_have_ties_pivots_in_both_directions_and_minor_pivots_that_are_dropped() -> None:
    """Otherwise the comparison above would prove little."""
    candles = walk(3, 260)
    rows = majors(candles, 2)
    times = [row["pivot_time"] for row in rows]
    assert len(set(times)) < len(times)
    counts = [len(minors(candles[:count], 4, 1)) for count in range(1, 260)]
    assert any(after < before for before, after in pairwise(counts))

"""Zhongshu: zones that form, live, die and are followed by others, from the list of all confirmed pens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.factor.pen import Pen
from klinesync.factor.plugin import Event
from klinesync.factor.zhongshu import ZhongshuState
from support.structure_oracle import confirmed_pens, markets, structure_graph, told, walk, windows, zones


@given(markets, windows)
def test_zones_are_those_of_all_confirmed_pens_at_every_candle(candles: list[Candle], window: tuple[int, int]) -> None:
    said: list[Event] = []
    for count, (events, heads, _) in enumerate(told(structure_graph(*window), candles), 1):
        said += events.get("zhongshu", [])
        if "pen" in events or count == len(candles):
            dead, alive, _ = zones(confirmed_pens(candles[:count], window[0]))
            assert said == dead
            assert heads["zhongshu"] == {"alive": alive}


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60))
def test_zones_of_pens_between_any_prices(prices: list[int]) -> None:
    """Pens that prices alone would rarely produce, including point zones and touching zones."""
    pens = [
        Pen(60 * i, 60 * (i + 1), float(one), float(other), 1 if other > one else -1, 60 * (i + 9))
        for i, (one, other) in enumerate(pairwise(prices))
    ]
    state, said = ZhongshuState(), []
    for pen in pens:
        state, death = state.extended(pen)
        said += [] if death is None else [death]
    dead, alive, formed = zones([pen.said() for pen in pens])
    assert said == dead
    living = [] if state.alive is None else [state.alive.said(None, state.alive.formed_time)]
    assert living == alive
    if formed:
        assert state.entering is not None
        assert (state.formed_time, state.entering.said()) == formed[-1]
    assert len(state.pens) <= 4


def test_the_walks_have_zones_that_live_on_and_die() -> None:
    dead, _, _ = zones(confirmed_pens(walk(8, 260), 1))
    assert len(dead) > 3
    assert any(zone["death_time"] != zone["formed_time"] for zone in dead)

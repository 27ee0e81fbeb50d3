"""Pens: confirmed ones, the extending one and the candidate, against a walk over the whole history at every candle."""

from hypothesis import given

from klinesync.core.candle import Candle
from support.structure_oracle import (
    Line,
    Row,
    confirmed_pens,
    extending_and_candidate,
    majors,
    markets,
    pen_row,
    structure_graph,
    told,
    walk,
    windows,
)


def row(line: Line | None, time: int) -> Row | None:
    return None if line is None else pen_row(line, time)


@given(markets, windows)
def test_pens_are_those_of_the_whole_walk_at_every_candle(candles: list[Candle], window: tuple[int, int]) -> None:
    said = []
    for count, (events, heads, _) in enumerate(told(structure_graph(*window), candles), 1):
        known = candles[:count]
        said += events.get("pen", [])
        extending, candidate = extending_and_candidate(known, window[0])
        now = known[-1].time
        assert heads["pen"] == {"extending": row(extending, now), "candidate": row(candidate, now)}
    assert said == confirmed_pens(candles, window[0])


def test_the_walks_have_all_that_pens_are_made_of() -> None:
    """Pivots that a more extreme one replaces, pens between the two pivots of one candle, heads with and without."""
    candles = walk(5, 260)
    pens = confirmed_pens(candles, 1)
    assert len(pens) < len(majors(candles, 1)) - 2
    assert any(pen["start_time"] == pen["end_time"] for pen in pens)
    heads = [extending_and_candidate(candles[:count], 1) for count in range(1, 260)]
    assert any(extending and candidate for extending, candidate in heads)
    assert any(extending and not candidate for extending, candidate in heads)

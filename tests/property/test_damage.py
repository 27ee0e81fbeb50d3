"""A damaged chunk never gives times out of order, and a page's holes are declared, known or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.gaps import Gap, GapState, declared
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.storage.chunks import CHUNK_CANDLES, Grid, as_candles, pack, unpack_between

MINUTE = Timeframe.parse("1m")
GRID = Grid(0, CHUNK_CANDLES * 60, 60)


@given(st.sets(st.integers(0, CHUNK_CANDLES - 1), min_size=1), st.data())
def test_a_chunk_with_flipped_bits_is_refused_or_gives_ascending_times_of_its_own(
    minutes: set[int], data: st.DataObject
) -> None:
    packed = bytearray(pack([Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in sorted(minutes)]))
    for bit in data.draw(st.lists(st.integers(0, len(minutes) * 64 - 1), max_size=3)):
        packed[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.integers(0, len(packed)))
    packed = packed[: len(packed) - cut] if data.draw(st.booleans()) else packed
    try:
        rows = unpack_between(bytes(packed), 0, 1 << 40, as_candles, GRID)
    except ValueError:
        return
    times = [row.time for row in rows]
    assert times == sorted(set(times))
    assert all(0 <= time < GRID.end for time in times)


@pytest.mark.parametrize("size", [0, 1, 47, 49, 95])
def test_bytes_that_are_no_whole_candles_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no whole candles"):
        unpack_between(bytes(size), 0, 1, as_candles, GRID)


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4))
def test_every_missing_time_of_a_page_is_in_one_of_its_gaps_and_no_other_time_is(
    stored: set[int], spans: list[tuple[int, int]]
) -> None:
    states = list(GapState)
    ledger: list[Gap] = []
    at = 0
    for number, (pause, length) in enumerate(spans):
        start = at + pause
        ledger.append(Gap(start * 60, (start + length) * 60, states[number % len(states)]))
        at = start + length
    times = [minute * 60 for minute in sorted(stored)]
    found = declared(MINUTE, Span(0, 61 * 60), times, ledger)
    by_time: dict[int, GapState] = {}
    for gap in found:
        for time in range(gap.start, gap.end, 60):
            assert time not in by_time
            by_time[time] = gap.state
    assert by_time.keys() == {minute * 60 for minute in range(61)} - set(times)
    for time, state in by_time.items():
        known = [gap.state for gap in ledger if gap.start <= time < gap.end]
        assert state is (known[0] if known else GapState.UNKNOWN)

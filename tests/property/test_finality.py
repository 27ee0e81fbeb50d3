"""is_final: a row is closed when two later rows follow, or when the exchange's clock has passed the row's margin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.finality import LATER_ROWS, final_end, is_final
from klinesync.core.timeframe import Timeframe
from support.timeframes import TIMEFRAMES

FRAMES = TIMEFRAMES
OPENS = st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True).map(sorted)


@given(FRAMES, OPENS, st.none() | st.integers(0, 500), st.integers(0, 10_000), st.integers(-1, 1))
def test_what_is_final_ends_where_the_rule_says(
    frame: Timeframe, numbers: list[int], now: int | None, margin_ms: int, off_ms: int
) -> None:
    base = frame.floor(1_700_000_000)
    times = [frame.shift(base, number) for number in numbers]
    final_ms = None if now is None else frame.shift(base, now) * 1000 + margin_ms + off_ms
    end = final_end(frame, times, final_ms, margin_ms)
    for place, time in enumerate(times):
        later = len(times) - 1 - place
        by_clock = final_ms is not None and final_ms >= frame.next(time) * 1000 + margin_ms
        assert is_final(frame, time, later, final_ms, margin_ms) == (later >= LATER_ROWS or by_clock)
        assert (time < end) == (later >= LATER_ROWS or by_clock)


def test_rows_off_the_grid_and_doubled_ones_are_no_later_rows() -> None:
    frame = Timeframe.parse("1m")
    assert final_end(frame, [600, 607, 613, 600], None, 2000) == 0
    assert final_end(frame, [600, 667, 720], None, 2000) == 660


def test_one_later_row_proves_the_end_and_not_the_values() -> None:
    frame = Timeframe.parse("1m")
    assert not is_final(frame, 600, 1, None, 2000)
    assert not is_final(frame, 600, 1, 661_999, 2000)
    assert is_final(frame, 600, 0, 662_000, 2000)

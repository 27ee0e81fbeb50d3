"""Rows of files are validated by the rules of all candles, batch by batch, with any boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle, check_candle, check_not_future
from klinesync.core.errors import BadCandle
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.rows import (
    MAX_EXAMPLES,
    Columns,
    Judge,
    OutOfOrder,
    TooManyRows,
    columns,
    pages,
    seconds,
    within,
)

NOW = 1_700_000_000
MINUTE = Timeframe.parse("1m")

values = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e101, -1e101])
times = st.one_of(
    st.integers(-120, 10 * 60).map(lambda time: time // 30 * 30),
    st.sampled_from([NOW // 60 * 60 - 60, NOW // 60 * 60, 1_698_796_800, 253_402_300_800, 253_402_300_740, 2**62]),
)
SOUND = Candle(0, 1.0, 2.0, 0.5, 1.5, 1.0)
# Valid except for the time, or for one value, or completely invalid.
candles = st.one_of(
    times.map(lambda time: SOUND._replace(time=time)),
    st.builds(
        lambda time, name, value: SOUND._replace(time=time, **{name: value}),
        times,
        st.sampled_from(["open", "high", "low", "close", "volume"]),
        values,
    ),
    st.builds(Candle, times, values, values, values, values, values),
)
timeframes = st.sampled_from([Timeframe.parse(code) for code in ("1m", "1h", "3d", "1w", "1M")])


def is_sound(candle: Candle, timeframe: Timeframe) -> bool:
    try:
        check_candle(candle, timeframe)
        check_not_future(candle, timeframe, NOW)
    except BadCandle:
        return False
    return True


def model(rows: Sequence[Candle], timeframe: Timeframe) -> tuple[list[Candle], int]:
    """The sound rows in the order of time, and how many rows are bad; of each time the first row in the file counts."""
    kept: dict[int, Candle] = {}
    bad = 0
    for row in rows:
        if is_sound(row, timeframe):
            bad += kept.setdefault(row.time, row) != row
        else:
            bad += 1
    return [kept[time] for time in sorted(kept)], bad


def in_order(rows: Sequence[Candle], timeframe: Timeframe) -> bool:
    times = [row.time for row in rows if is_sound(row, timeframe)]
    return times == sorted(times)


@given(st.lists(st.lists(candles, max_size=8), max_size=4), timeframes)
def test_good_rows_are_valid_candles_in_any_order(batches: list[list[Candle]], timeframe: Timeframe) -> None:
    judge = Judge(timeframe, NOW)
    passed = judge.in_order(map(columns, batches), 100).candles()
    rows = [row for batch in batches for row in batch]
    expected, bad = model(rows, timeframe)
    assert passed == expected
    assert (judge.rows, judge.good, judge.bad) == (len(rows), len(expected), bad)
    assert len(judge.examples) == min(bad, MAX_EXAMPLES)
    assert (judge.first, judge.last) == ((expected[0].time, expected[-1].time) if expected else (None, None))


@given(st.lists(st.lists(candles, max_size=8), max_size=4), timeframes)
def test_ascending_rows_pass_batch_by_batch_and_other_orders_are_detected(
    batches: list[list[Candle]], timeframe: Timeframe
) -> None:
    judge = Judge(timeframe, NOW)
    rows = [row for batch in batches for row in batch]
    try:
        passed = [candle for batch in batches for candle in judge.sound(columns(batch)).candles()]
    except OutOfOrder:
        assert not in_order(rows, timeframe)
        return
    assert in_order(rows, timeframe)
    expected, bad = model(rows, timeframe)
    assert passed == expected
    assert (judge.rows, judge.good, judge.bad) == (len(rows), len(expected), bad)


def test_rows_sorted_in_memory_are_limited() -> None:
    rows = columns([SOUND._replace(time=60 * at) for at in (3, 2, 1)])
    assert len(Judge(MINUTE, NOW).in_order([rows], 3)) == 3
    assert Judge(MINUTE, NOW).in_order([rows], 1, Span(60, 120)).time.tolist() == [60]
    with pytest.raises(TooManyRows):
        Judge(MINUTE, NOW).in_order([rows], 2)


def test_a_bad_row_is_described_with_its_number_in_the_file() -> None:
    rows = [Candle(60 * at, 1.0, 2.0, 0.5, 1.5, 1.0) for at in range(6)]
    rows[1] = rows[1]._replace(volume=-1.0)
    rows[4] = rows[4]._replace(time=0, close=2.0)
    judge = Judge(MINUTE, NOW)
    assert len(judge.in_order([columns(rows[:3]), columns(rows[3:])], 10)) == 4
    assert judge.examples == [
        "row 2: candle at 1970-01-01 00:01 UTC refused: volume -1.0 is negative",
        "row 5: candle at 1970-01-01 00:00 UTC refused: it is given twice, with different values",
    ]


def test_a_duplicate_row_is_ignored_and_a_contradicting_row_is_bad() -> None:
    row = Candle(0, 1.0, 2.0, 0.5, 1.5, 1.0)
    judge = Judge(MINUTE, NOW)
    passed = judge.sound(columns([row, row, row._replace(volume=2.0)])).candles()
    passed += judge.sound(columns([row, row._replace(time=60), row._replace(time=60)])).candles()
    assert passed == [row, row._replace(time=60)]
    assert judge.examples == ["row 3: candle at 1970-01-01 00:00 UTC refused: it is given twice, with different values"]
    assert judge.bad == 1


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_the_unit_of_a_time_follows_from_its_size(unit: int) -> None:
    assert seconds(np.array([1_577_836_800, 1_763_856_000]) * unit).tolist() == [1_577_836_800, 1_763_856_000]


def test_a_time_with_a_fraction_of_a_second_is_invalid() -> None:
    assert seconds(np.array([1_577_836_800_001, 1_577_836_800_000_999])).tolist() == [-1, -1]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 7))
def test_pages_hold_the_same_rows(sizes: list[int], size: int) -> None:
    rows = columns([Candle(60 * at, 1.0, 1.0, 1.0, 1.0, float(at)) for at in range(sum(sizes))])
    ends = np.cumsum(sizes).tolist()
    batches = [rows.take(slice(end - count, end)) for end, count in zip(ends, sizes, strict=True)]
    found = list(pages(batches, size))
    assert [candle for page in found for candle in page.candles()] == rows.candles()
    assert [len(page) for page in found[:-1]] == [size] * (len(found) - 1)
    assert all(0 < len(page) <= size for page in found)


def test_within_cuts_by_open_time() -> None:
    rows: Columns = columns([Candle(60 * at, 1.0, 1.0, 1.0, 1.0, 1.0) for at in range(5)])
    assert within(rows, Span(60, 180)).time.tolist() == [60, 120]

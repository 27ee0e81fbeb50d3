"""Rows of files are validated by the rules of all candles, batch by batch, with any boundaries."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klinesync.core.candle import NO_FLOW, Candle, agree, check_candle, check_not_future, with_sound_flow
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
    joined,
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
# Order flow, valid or not; a missing value is None in a candle and NaN in a column.
flow_values = st.none() | values.filter(lambda value: value == value) | st.sampled_from([0.5, 1.0 + 1e-10, 1.0 + 1e-8])
traded_candles = st.builds(
    lambda candle, flow: Candle(*candle.ohlcv, *flow),
    candles,
    st.tuples(
        flow_values, st.none() | st.sampled_from([-1, 0, 3, 10**10, 10**10 + 1, 2**54]), flow_values, flow_values
    ),
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
    """The valid rows in the order of time, and the number of bad rows; for each time the first row in the
    file counts."""
    kept: dict[int, Candle] = {}
    bad = 0
    for row in rows:
        if is_sound(row := with_sound_flow(row), timeframe):
            bad += not agree(kept.setdefault(row.time, row), row)
        else:
            bad += 1
    return [kept[time] for time in sorted(kept)], bad


def in_order(rows: Sequence[Candle], timeframe: Timeframe) -> bool:
    times = [row.time for row in rows if is_sound(with_sound_flow(row), timeframe)]
    return times == sorted(times)


@given(st.lists(st.lists(candles | traded_candles, max_size=8), max_size=4), timeframes)
@example([[Candle(0, 1.0, 1.0, 1.0, 1.0, 1.0, quote_volume=sys.float_info.max)]], MINUTE)
@example([[Candle(0, 1.0, 1.0, 1.0, 1.0, sys.float_info.max, taker_buy_volume=1.0)]], MINUTE)
def test_good_rows_are_valid_candles_in_any_order(batches: list[list[Candle]], timeframe: Timeframe) -> None:
    judge = Judge(timeframe, NOW)
    passed = judge.in_order(map(columns, batches), 100).candles()
    rows = [row for batch in batches for row in batch]
    expected, bad = model(rows, timeframe)
    assert passed == expected
    assert (judge.rows, judge.good, judge.bad) == (len(rows), len(expected), bad)
    assert len(judge.examples) == min(bad, MAX_EXAMPLES)
    assert (judge.first, judge.last) == ((expected[0].time, expected[-1].time) if expected else (None, None))


@given(st.lists(st.lists(candles | traded_candles, max_size=8), max_size=4), timeframes)
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


@given(st.lists(traded_candles, max_size=20))
def test_order_flow_that_is_invalid_is_left_out_and_counted_and_the_candle_is_kept(rows: list[Candle]) -> None:
    sound = [row for row in rows if is_sound(Candle(*row.ohlcv), MINUTE)]
    spaced = [row._replace(time=60 * at) for at, row in enumerate(sound)]
    judge = Judge(MINUTE, NOW)
    assert judge.sound(columns(spaced)).candles() == [with_sound_flow(row) for row in spaced]
    assert judge.bad == 0
    assert judge.flow_left_out == sum(with_sound_flow(row) is not row for row in spaced)
    assert bool(judge.flow_example) == bool(judge.flow_left_out)


def test_the_first_order_flow_that_is_left_out_is_told_with_its_place_in_the_file() -> None:
    whole = SOUND._replace(quote_volume=1.5, trades=3, taker_buy_volume=0.5, taker_buy_quote_volume=0.75)
    rows = columns([whole, whole._replace(time=60, taker_buy_volume=1.5), whole._replace(time=120, trades=-3)])
    judge = Judge(MINUTE, NOW)
    assert [candle.flow for candle in judge.sound(rows).candles()] == [whole.flow, NO_FLOW, NO_FLOW]
    assert judge.flow_left_out == 2
    assert judge.flow_example == "row 2: taker_buy_volume 1.5 is larger than volume 1.0"
    assert rows.flow is not None
    quote, trades, taker, taker_quote = (column[:1] for column in rows.flow)
    for odd, why in (((quote, trades + 0.5), "trades 3.5 is no whole number"), ((quote * np.inf, trades), "no number")):
        judge = Judge(MINUTE, NOW)
        (candle,) = judge.sound(rows.take(slice(0, 1)).with_flow((*odd, taker, taker_quote))).candles()
        assert candle == Candle(*whole.ohlcv)
        assert why in judge.flow_example


def test_rows_with_and_without_order_flow_are_joined_and_only_the_former_take_memory() -> None:
    whole = SOUND._replace(quote_volume=1.5, trades=3, taker_buy_volume=0.5, taker_buy_quote_volume=None)
    assert columns([SOUND, SOUND]).flow is None
    assert joined([columns([SOUND]), columns([whole])]).candles() == [SOUND, whole]
    assert joined([columns([SOUND]), columns([SOUND])]).flow is None
    assert columns([]).candles() == []


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

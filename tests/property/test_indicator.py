"""Indicators: the same bits in bulk, candle by candle, after any start, restart, rewind and outage."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import nan
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.errors import BadFlag
from klinesync.core.timeframe import Timeframe
from klinesync.factor.columns import Columns
from klinesync.factor.indicator import Indicator
from klinesync.factor.indicator_admission import why_refused
from klinesync.factor.indicator_handle import MAX_RUNNING, Handle
from klinesync.factor.indicator_names import indicator_of, parse_indicators
from klinesync.factor.indicator_talib import function_names, look_up
from support.candles import ohlcv
from support.thorough import examples

MINUTE = Timeframe.parse("1m")
# Each kind of function: a window, a recursion, several prices, several outputs, whole numbers, volume.
KINDS = parse_indicators("SMA(3),EMA(4),RSI(3),ATR(2),MACD(2,4,2),BBANDS(5),STOCH(3,2,0,2,0),CDLENGULFING,MFI(3),HA")
# Chunks far shorter than an indicator's, so that a test covers many of them; longer than the lookback of these
# functions.
SHORT = 16
USUAL = parse_indicators("SMA(20),EMA(21),BBANDS(20),MACD(12,26,9),RSI(14),ATR(14)")


def bits(rows: Sequence[tuple[float, ...]]) -> bytes:
    return np.array(rows, np.float64).tobytes()


def bulk(indicator: Indicator, timeframe: Timeframe, candles: Sequence[Candle], start: int = 0) -> bytes:
    columns = indicator.compute(timeframe, Columns.of(candles), start)
    assert list(columns) == [output.key for output in indicator.outputs]
    return np.column_stack(list(columns.values())).tobytes()


def newest(indicator: Indicator, candles: Sequence[Candle]) -> Columns:
    """The candles that a reader loads for a handle after the last of them."""
    return Columns.of(candles[-indicator.warm_up :])


def walk(seed: int, times: Sequence[int]) -> list[Candle]:
    """Candles at these times: a random walk on a coarse grid, with standstills, plateaus and minutes without trades."""
    dice = np.random.default_rng(seed)
    candles: list[Candle] = []
    price = 100.0
    for time in times:
        if dice.random() < 0.2:
            candles.append(Candle(time, price, price, price, price, 0.0))
            continue
        open_, price = price, price + round(dice.normal(0, 0.3), 1)
        high = max(open_, price) + round(abs(dice.normal(0, 0.1)), 1)
        low = min(open_, price) - round(abs(dice.normal(0, 0.1)), 1)
        candles.append(Candle(time, open_, high, low, price, dice.exponential(10)))
    return candles


@st.composite
def histories(draw: st.DrawFn, timeframe: Timeframe = MINUTE) -> list[Candle]:
    """Stretches with all candles, with few of them, and outages, starting anywhere on the grid."""
    open_time = timeframe.shift(timeframe.floor(1_700_000_000), draw(st.integers(0, 3 * SHORT)))
    times: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        density = draw(st.sampled_from([1.0, 0.9, 0.5, 0.1, 0.03]))
        dice = np.random.default_rng(draw(st.integers(0, 10_000)))
        for _ in range(draw(st.integers(1, 6 * SHORT))):
            step = 1 if density == 1.0 else int(dice.geometric(density))
            open_time = timeframe.shift(open_time, step)
            times.append(open_time)
        open_time = timeframe.shift(open_time, draw(st.sampled_from([0, 0, 1, SHORT, 5 * SHORT])))
    return walk(draw(st.integers(0, 10_000)), times)


indicators = st.sampled_from(KINDS).map(lambda one: replace(one, chunk=SHORT))
timeframes = st.sampled_from(["1m", "15m", "3d", "1w", "1M"]).map(Timeframe.parse)


def defined(indicator: Indicator, timeframe: Timeframe, candles: Sequence[Candle], at: int) -> tuple[float, ...]:
    """The value at the candle with that position, directly from the definition."""
    base = timeframe.offset_s

    def chunk(candle: Candle) -> int:
        return timeframe.count(base, candle.time) // indicator.chunk

    mine = chunk(candles[at])
    before = [candle for candle in candles[: at + 1] if chunk(candle) < mine]
    anchor = min(chunk(candle) for candle in candles)
    for number in range(anchor, mine + 1):
        if sum(chunk(candle) >= number for candle in before) >= indicator.chunk:
            anchor = number
    used = [candle for candle in candles[: at + 1] if chunk(candle) >= anchor]
    if len(used) <= indicator.lookback:
        return (nan,) * len(indicator.outputs)
    values = indicator.function.over(Columns.of(used).prices(indicator.inputs), indicator.parameters)
    return tuple(array[-1].item() if np.isfinite(array[-1]) else nan for array in values)


@given(timeframes.flatmap(lambda one: st.tuples(st.just(one), histories(one))), indicators, st.data())
@settings(max_examples=examples(30), deadline=None)
def test_a_value_is_that_of_the_definition(
    made: tuple[Timeframe, list[Candle]], indicator: Indicator, data: st.DataObject
) -> None:
    timeframe, candles = made
    whole = np.column_stack(list(indicator.compute(timeframe, Columns.of(candles)).values()))
    for _ in range(5):
        at = data.draw(st.integers(0, len(candles) - 1))
        assert whole[at].tobytes() == bits([defined(indicator, timeframe, candles, at)])


@given(histories(), indicators, st.data())
@settings(max_examples=examples(40), deadline=None)
def test_a_window_with_warm_up_before_it_has_the_values_of_the_whole(
    candles: list[Candle], indicator: Indicator, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(candles)))
    end = data.draw(st.integers(start, len(candles)))
    whole = bulk(indicator, MINUTE, candles)
    row = 8 * len(indicator.outputs)
    first = max(start - indicator.warm_up, 0)
    assert bulk(indicator, MINUTE, candles[first:end], start - first) == whole[start * row : end * row]


@given(timeframes.flatmap(lambda one: st.tuples(st.just(one), histories(one))), indicators, st.data())
@settings(max_examples=examples(60), deadline=None)
def test_one_by_one_through_any_restarts_gives_the_values_of_the_bulk(
    made: tuple[Timeframe, list[Candle]], indicator: Indicator, data: st.DataObject
) -> None:
    timeframe, candles = made
    restarts = data.draw(st.lists(st.integers(0, len(candles)), max_size=4))
    handle = indicator.open(timeframe, Columns.of([]))
    rows: list[tuple[float, ...]] = []
    for position, candle in enumerate(candles):
        if position in restarts:
            handle = indicator.open(timeframe, newest(indicator, candles[:position]))
        rows.append(handle.update(candle))
    assert bits(rows) == bulk(indicator, timeframe, candles)


@given(histories(), indicators, st.integers(0, 10_000))
@settings(max_examples=examples(40), deadline=None)
def test_a_forming_candle_shows_what_it_will_have_closed_and_leaves_no_trace(
    candles: list[Candle], indicator: Indicator, seed: int
) -> None:
    handle = indicator.open(MINUTE, Columns.of([]))
    others = walk(seed, [candle.time for candle in candles])
    rows: list[tuple[float, ...]] = []
    for candle, other in zip(candles, others, strict=True):
        handle.peek(other)
        shown = handle.peek(candle)
        rows.append(handle.update(candle))
        assert bits([shown]) == bits(rows[-1:])
    assert bits(rows) == bulk(indicator, MINUTE, candles)


@given(histories(), indicators, st.integers(1, 8 * SHORT))
@settings(max_examples=examples(40), deadline=None)
def test_deep_history_changes_only_values_whose_warm_up_it_reaches(
    candles: list[Candle], indicator: Indicator, older: int
) -> None:
    first = candles[0].time
    deeper = [*walk(1, range(first - 60 * older, first, 60)), *candles]
    before = np.column_stack(list(indicator.compute(MINUTE, Columns.of(candles)).values()))
    after = np.column_stack(list(indicator.compute(MINUTE, Columns.of(deeper)).values()))[older:]
    differ = np.flatnonzero(~((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=1))
    assert not len(differ) or differ[-1] < indicator.warm_up


numbers = st.one_of(
    st.integers(-3, 60).map(str),
    st.floats(-2, 60).map(repr),
    st.sampled_from(["", " 7 ", "1e400", "-0", "100000", "2147483648", "9" * 30, "0x1f", "nan", "."]),
)
written = st.builds(
    lambda name, values: f"{name}({','.join(values)})",
    st.sampled_from([*function_names(), "EMAA", "ema", ""]),
    st.lists(numbers, max_size=4),
)


@given(st.one_of(written, st.text(max_size=30)))
@settings(max_examples=examples(200), deadline=None)
def test_any_text_is_indicators_or_is_refused_with_a_sentence(text: str) -> None:
    try:
        parsed = parse_indicators(text)
    except BadFlag:
        return
    candles = walk(1, range(0, 60 * 300, 60))
    for indicator in parsed:
        assert indicator.name == indicator.name.lower()
        assert parse_indicators(indicator.label)[0] == indicator
        assert len(bulk(indicator, MINUTE, candles)) == 8 * 300 * len(indicator.outputs)


@given(histories(), indicators)
@settings(max_examples=examples(25), deadline=None)
def test_no_value_depends_on_a_later_candle(candles: list[Candle], indicator: Indicator) -> None:
    whole = bulk(indicator, MINUTE, candles)
    for end in range(len(candles), 0, -max(len(candles) // 7, 1)):
        assert whole.startswith(bulk(indicator, MINUTE, candles[:end]))


@pytest.mark.parametrize("name", [name for name in function_names() if why_refused(name) is None])
def test_each_admitted_function_gives_the_same_bits_one_by_one_and_in_bulk(name: str) -> None:
    function = look_up(name)
    assert function is not None
    indicator = indicator_of(function)
    indicator = replace(indicator, chunk=max(indicator.chunk // 8, 2 * indicator.lookback + 2))
    times = [60 * minute for minute in range(5 * indicator.chunk) if minute % 97 and minute // indicator.chunk != 2]
    candles = walk(3, times)
    handle = indicator.open(MINUTE, Columns.of([]))
    rows: list[tuple[float, ...]] = []
    for position, candle in enumerate(candles):
        if position == len(candles) // 2:
            handle = indicator.open(MINUTE, newest(indicator, candles[:position]))
        shown = handle.peek(candle)
        rows.append(handle.update(candle))
        assert bits([shown]) == bits(rows[-1:])
    assert bits(rows) == bulk(indicator, MINUTE, candles)
    assert np.isfinite(rows[-1]).any() or name in {"ACOS", "ASIN", "EXP", "COSH", "SINH"}


def test_a_series_with_hardly_any_candles_runs_few_streams_and_keeps_few_candles() -> None:
    """One candle in each chunk: each of the last candles may be the next anchor."""
    (indicator,) = parse_indicators("EMA(5)")
    candles = walk(5, range(60 * 7, 60 * 1_000 * indicator.chunk, 60 * indicator.chunk))
    handle = indicator.open(MINUTE, Columns.of([]))
    rows: list[tuple[float, ...]] = []
    for candle in candles:
        rows.append(handle.update(candle))
        assert sum(run.stream is not None for run in handle._runs) <= MAX_RUNNING
        assert len(handle._kept) <= 2 * indicator.chunk
    assert bits(rows) == bulk(indicator, MINUTE, candles)


def test_where_no_candle_is_missing_two_streams_run_and_nothing_is_kept() -> None:
    (indicator,) = parse_indicators("EMA(5)")
    handle = indicator.open(MINUTE, Columns.of([]))
    for position, candle in enumerate(walk(5, range(0, 60 * 4 * indicator.chunk, 60))):
        handle.update(candle)
        if position % indicator.chunk > indicator.lookback and position > indicator.chunk:
            assert [run.stream is not None for run in handle._runs] == [True, True]
            assert not handle._kept


def test_the_first_values_are_missing() -> None:
    (indicator,) = parse_indicators("SMA(3)")
    candles = walk(1, range(0, 600, 60))
    values = indicator.compute(MINUTE, Columns.of(candles))["sma_3"]
    assert np.isnan(values).tolist() == [True, True, *[False] * 8]
    assert indicator.compute(MINUTE, Columns.of(candles[:2]))["sma_3"].tolist() != []
    assert indicator.compute(MINUTE, Columns.of([]))["sma_3"].tolist() == []


def test_an_infinite_value_is_none() -> None:
    (indicator,) = parse_indicators("EXP")
    candles = [Candle(0, 1.0, 1.0, 1.0, 1.0, 0.0), Candle(60, 1e4, 1e4, 1e4, 1e4, 0.0)]
    handle = indicator.open(MINUTE, Columns.of(candles[:1]))
    assert np.isnan(handle.peek(candles[1])).all()
    assert np.isnan(handle.update(candles[1])).all()
    assert np.isnan(indicator.compute(MINUTE, Columns.of(candles))["exp"]).tolist() == [False, True]


def test_a_chunk_of_months_may_end_where_the_calendar_has_none_left() -> None:
    (indicator,) = parse_indicators("SMA(1365)")
    month = Timeframe.parse("1M")
    handle = indicator.open(month, Columns.of([]))
    for year in (8999, 9998):
        handle.update(Candle(int(datetime(year, 12, 1, tzinfo=UTC).timestamp()), 1.0, 1.0, 1.0, 1.0, 1.0))
    assert handle.time is not None


def test_of_several_outputs_each_infinite_one_is_none() -> None:
    (indicator,) = parse_indicators("BBANDS(2)")
    candles = [Candle(60 * n, price, price, price, price, 0.0) for n, price in enumerate([1.0, 1e200, 1.0, 1.0, 1.0])]
    handle = indicator.open(MINUTE, Columns.of(candles[:1]))
    rows = [handle.update(candle) for candle in candles[1:]]
    assert np.isnan(rows[0]).tolist() == [True, False, True]
    assert bits(rows) == bulk(indicator, MINUTE, candles, 1)


def test_a_candle_that_does_not_come_after_the_last_one_is_a_broken_invariant() -> None:
    (indicator,) = parse_indicators("SMA(3)")
    candle = Candle(60, 1.0, 1.0, 1.0, 1.0, 1.0)
    handle = indicator.open(MINUTE, Columns.of([candle]))
    for call in (handle.update, handle.peek):
        with pytest.raises(AssertionError, match="60 does not come after 60"):
            call(candle)
    assert handle.time == 60


def test_columns_give_the_candles_back() -> None:
    candles = walk(2, range(0, 6000, 60))
    assert Columns.of(candles).candles() == candles
    assert Columns.of(candles).part(10, 20).candles() == candles[10:20]
    assert Columns.of([]).candles() == []


@pytest.mark.parametrize("indicator", USUAL, ids=lambda one: one.name)
@pytest.mark.parametrize("symbol", ["BTC_USDT", "BRD_BTC"])
def test_recorded_minutes_with_outages_give_the_same_bits_live_in_bulk_and_from_a_window(
    real_data: Path, symbol: str, indicator: Indicator
) -> None:
    candles = recorded(real_data, symbol)
    handle: Handle = indicator.open(MINUTE, Columns.of([]))
    rows: list[tuple[float, ...]] = []
    for position, candle in enumerate(candles):
        if position in {3_000, 9_999}:
            handle = indicator.open(MINUTE, newest(indicator, candles[:position]))
        rows.append(handle.update(candle))
    assert bits(rows) == bulk(indicator, MINUTE, candles)
    start = len(candles) - 2_000
    assert bits(rows[start:]) == bulk(indicator, MINUTE, candles[start - indicator.warm_up :], indicator.warm_up)


def recorded(folder: Path, symbol: str) -> list[Candle]:
    rows = msgspec.json.decode(
        gzip.decompress((folder / "gaps" / f"{symbol}-1m.json.gz").read_bytes()),
        type=list[tuple[int, float, float, float, float, float]],
    )
    return [ohlcv(time // 1000, values) for time, *values in rows]

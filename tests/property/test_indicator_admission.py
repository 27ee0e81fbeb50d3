"""Which TA-Lib functions agree with their full history when they begin at an anchor: measured for all functions."""

from __future__ import annotations

import gzip
import random
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.feather as pa_feather
import pytest

from klinesync.core.timeframe import Timeframe
from klinesync.factor.columns import Columns, Floats
from klinesync.factor.indicator import CHUNK_PERIODS, MIN_CHUNK, Indicator
from klinesync.factor.indicator_admission import (
    DIFFERENCES,
    REFUSED,
    TOLERANCE,
    TRIANGULAR,
    UNUSABLE,
    why_average_refused,
    why_refused,
)
from klinesync.factor.indicator_names import indicator_of
from klinesync.factor.indicator_talib import Function, function_names, look_up
from support.thorough import LONG

MINUTE = Timeframe.parse("1m")
FIRST = 1_700_000_040
LENGTH = 12_000 if LONG else 6_000

ADMITTED = [name for name in function_names() if why_refused(name) is None]


def function(name: str) -> Function:
    found = look_up(name)
    assert found is not None
    return found


def made(close: Floats, dice: np.random.Generator, wick: float, traded: Floats) -> Columns:
    """Candles around these closes: wicks are a share of the price, and the volume is 0 where `traded` is 0."""
    open_ = np.r_[close[0], close[:-1]]
    high = np.maximum(open_, close) * (1 + np.abs(dice.normal(0, wick, len(close))) * traded)
    low = np.minimum(open_, close) * (1 - np.abs(dice.normal(0, wick, len(close))) * traded)
    volume = dice.exponential(10, len(close)) * traded
    return Columns(FIRST + 60 * np.arange(len(close)), open_, high, low, close, volume)


def walk(seed: int, price: float, tick: float, quiet: float) -> Columns:
    """A random walk on a grid of prices, with that share of minutes without trades."""
    dice = np.random.default_rng(seed)
    traded = (dice.random(LENGTH) >= quiet).astype(float)
    close = price * np.exp(np.cumsum(dice.normal(0, 0.001, LENGTH) * traded))
    columns = made(np.round(close / tick) * tick, dice, 0.0005, traded)
    high, low = np.round(columns.high / tick) * tick, np.round(columns.low / tick) * tick
    high = np.maximum(high, np.maximum(columns.open, columns.close))
    low = np.minimum(low, np.minimum(columns.open, columns.close))
    return Columns(columns.time, columns.open, high, low, columns.close, columns.volume)


@cache
def markets() -> dict[str, Columns]:
    """Markets in which functions disagreed, and ordinary ones."""
    dice = np.random.default_rng(7)
    traded = np.ones(LENGTH)
    steps = dice.normal(0, 0.001, LENGTH)
    steps[2_000:5_000] = steps[7_000:10_000] = 0
    still = 100 * np.exp(np.cumsum(steps)) * (1 + dice.normal(0, 1e-5, LENGTH))
    turn = np.where(np.arange(LENGTH) % 2, 0.5, -0.5)
    return {
        "liquid": walk(1, 60_000, 0.01, 0.0),
        "coarse ticks": walk(2, 100, 0.1, 0.0),
        "half the minutes without trades": walk(3, 100, 0.01, 0.5),
        "few trades": walk(4, 100, 0.01, 0.9),
        "tiny prices": walk(5, 3e-6, 1e-8, 0.3),
        "closes in a narrow range": made(still, dice, 0.0005, traded),
        "up and down by turns": made(100 + turn + 0.01 * np.cumsum(dice.normal(0, 1, LENGTH)), dice, 0.0005, traded),
    }


@cache
def standing_still() -> Columns:
    """A market in which now and then 400 minutes, most of the usual chunk, pass without a trade."""
    columns = walk(6, 100, 0.01, 0.0)
    open_, high, low, close = columns.open.copy(), columns.high.copy(), columns.low.copy(), columns.close.copy()
    volume = columns.volume.copy()
    for first in range(1_500, LENGTH - 500, 3_000):
        for price in (open_, high, low, close):
            price[first : first + 400] = columns.close[first - 1]
        volume[first : first + 400] = 0
    return Columns(columns.time, open_, high, low, close, volume)


def recorded(folder: Path) -> dict[str, Columns]:
    """Minutes of a liquid market, and of a market with few trades and with outages."""
    table = pa_feather.read_table(folder / "spot" / "BTC_USDT-1m.feather")
    values = [table[name].to_numpy() for name in ("open", "high", "low", "close", "volume")]
    btc = Columns(table["date"].to_numpy().astype("datetime64[s]").astype(np.int64), *values)
    rows = msgspec.json.decode(
        gzip.decompress((folder / "gaps" / "BRD_BTC-1m.json.gz").read_bytes()),
        type=list[tuple[int, float, float, float, float, float]],
    )
    time, *prices = zip(*rows, strict=True)
    brd = Columns(np.array(time, np.int64) // 1000, *(np.array(column, np.float64) for column in prices))
    return {"BTC/USDT": btc.part(0, 20_000), "BRD/BTC": brd}


def difference(indicator: Indicator, columns: Columns) -> float:
    """The largest difference between anchored and full history, relative to the output's largest absolute value.

    Infinite when only one of them has a value. The first values, which are the full history's, are compared as well.
    """
    anchored = indicator.compute(MINUTE, columns)
    full = indicator.function.over(columns.prices(indicator.inputs), indicator.parameters)
    worst = 0.0
    for ours, theirs in zip(anchored.values(), full, strict=True):
        theirs = np.where(np.isfinite(theirs), theirs, np.nan)
        theirs[: indicator.lookback] = np.nan
        if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
            return np.inf
        there = ~np.isnan(ours)
        scale = np.max(np.abs(theirs[there]), initial=0.0)
        if scale:
            worst = max(worst, float(np.max(np.abs(ours - theirs)[there]) / scale))
    return worst


def tightest(name: str) -> Indicator:
    """The function with the period for which the chunk has the fewest periods."""
    found = function(name)
    if not found.parameters or found.parameters[0].name != "timeperiod":
        return indicator_of(found)
    able = [indicator_of(found, [period]) for period in (10, 20, 21, 40, 42)]
    return min(able, key=lambda one: one.chunk / (one.lookback + 1) if one.chunk > MIN_CHUNK else np.inf)


@pytest.mark.parametrize("name", ADMITTED)
def test_an_admitted_function_agrees_with_the_full_history(name: str) -> None:
    for market, columns in markets().items():
        for indicator in (indicator_of(function(name)), tightest(name)):
            assert difference(indicator, columns) <= TOLERANCE, (indicator.label, market)


def drawn(name: str, dice: random.Random) -> Indicator:
    """The function with realistic parameters of any size, and any admitted kind of average."""
    values: list[int | float] = []
    for parameter in function(name).parameters:
        if parameter.is_average:
            kinds = [kind for kind in range(14) if why_average_refused(name, kind) is None]
            values.append(dice.choice(kinds))
        elif parameter.is_period:
            values.append(dice.randint(2, 40))
        else:
            values.append(round(dice.uniform(0.1, 1.0), 2))
    return indicator_of(function(name), values)


@pytest.mark.parametrize("name", [name for name in ADMITTED if function(name).parameters])
def test_an_admitted_function_agrees_with_the_full_history_whatever_its_parameters(name: str) -> None:
    dice = random.Random(name)
    for market in ("coarse ticks", "few trades", "up and down by turns"):
        indicator = drawn(name, dice)
        assert difference(indicator, markets()[market]) <= TOLERANCE, (indicator.label, market)


@pytest.mark.parametrize("name", sorted(DIFFERENCES))
def test_the_triangular_average_disagrees_in_a_difference_of_averages(name: str) -> None:
    kinds = {"MACDEXT": [9, TRIANGULAR, 49, TRIANGULAR, 9, TRIANGULAR]}
    indicator = indicator_of(function(name), kinds.get(name, [9, 49, TRIANGULAR]))
    assert max(difference(indicator, columns) for columns in markets().values()) > TOLERANCE


@pytest.mark.parametrize("name", ADMITTED)
def test_an_admitted_function_agrees_with_the_full_history_on_recorded_minutes(name: str, real_data: Path) -> None:
    for market, columns in recorded(real_data).items():
        assert difference(indicator_of(function(name)), columns) <= TOLERANCE, market


@pytest.mark.parametrize("name", [name for name in sorted(REFUSED) if name != "LINEARREG_ANGLE"])
def test_a_refused_function_disagrees_somewhere(name: str) -> None:
    everywhere = [*markets().values(), standing_still()]
    shown_by = indicator_of(function(name), [2] if name == "BETA" else [])
    assert max(difference(shown_by, columns) for columns in everywhere) > TOLERANCE


def test_behind_a_standstill_the_ratios_of_wilders_averages_differ_and_no_others() -> None:
    """The only case in which admitted functions differ: gains and losses have decayed to remnants below 1e-9, and the
    full history still divides these remnants. `docs/reference/indicators.md` describes the case."""
    differ = {name for name in ADMITTED if difference(indicator_of(function(name)), standing_still()) > TOLERANCE}
    assert differ == {"CMO", "DX", "MINUS_DI", "PLUS_DI", "RSI", "STOCHRSI"}


def test_the_angle_of_a_regression_disagrees_on_recorded_minutes(real_data: Path) -> None:
    angle = indicator_of(function("LINEARREG_ANGLE"))
    assert difference(angle, recorded(real_data)["BTC/USDT"]) > TOLERANCE


def test_every_function_that_is_named_exists() -> None:
    assert set(REFUSED) | set(UNUSABLE) <= set(function_names())
    assert len(ADMITTED) > 100


def test_a_chunk_is_at_least_24_times_the_longest_period_and_a_power_of_two() -> None:
    for name in ADMITTED:
        for indicator in (indicator_of(function(name)), tightest(name)):
            periods = [
                value
                for parameter, value in zip(indicator.function.parameters, indicator.parameters, strict=True)
                if parameter.is_period
            ]
            assert indicator.chunk >= CHUNK_PERIODS * max([indicator.lookback + 1, *periods])
            assert indicator.chunk.bit_count() == 1

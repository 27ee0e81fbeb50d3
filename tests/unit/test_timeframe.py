"""Timeframes against calendar arithmetic of the standard library."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadTimeframe
from klinesync.core.timeframe import Timeframe

FRAMES = st.sampled_from(list(Timeframe.known.values()))
TIMES = st.integers(0, 4_102_444_800)


def test_the_fifteen_timeframes_are_known() -> None:
    assert " ".join(Timeframe.known) == "1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"


@pytest.mark.parametrize("text", ["", "1", "m", "7m", "1H", "60m", "1 m", "1mo", "01m"])
def test_an_unknown_timeframe_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(BadTimeframe, match="use one of 1m 3m"):
        Timeframe.parse(text)


def test_minutes_and_months_differ_by_case() -> None:
    assert Timeframe.parse("1m") != Timeframe.parse("1M")


@given(FRAMES, TIMES)
def test_a_time_lies_in_the_candle_that_it_is_floored_to(frame: Timeframe, time: int) -> None:
    opened = frame.floor(time)
    assert opened <= time < frame.next(opened)
    assert frame.is_open(opened)
    assert frame.floor(opened) == opened


@given(FRAMES, TIMES, st.integers(-500, 500))
def test_shifting_is_counting(frame: Timeframe, time: int, count: int) -> None:
    opened = frame.floor(time)
    shifted = frame.shift(opened, count)
    assert frame.is_open(shifted)
    assert frame.shift(shifted, -count) == opened
    assert frame.count(*sorted((opened, shifted))) == abs(count)
    assert frame.count(max(opened, shifted), min(opened, shifted)) == 0
    assert frame.next(opened) == frame.shift(opened, 1)


@given(FRAMES, TIMES)
def test_the_latest_closed_candle_has_ended_and_the_one_after_it_has_not(frame: Timeframe, now: int) -> None:
    latest = frame.latest_closed(now)
    assert frame.next(latest) <= now < frame.next(frame.next(latest))


@given(TIMES)
def test_days_weeks_and_months_follow_the_calendar(time: int) -> None:
    moment = datetime.fromtimestamp(time, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=midnight.weekday())
    assert Timeframe.parse("1d").floor(time) == midnight.timestamp()
    assert Timeframe.parse("1w").floor(time) == monday.timestamp()
    assert Timeframe.parse("1M").floor(time) == midnight.replace(day=1).timestamp()
    third = Timeframe.parse("3d").floor(time) // 86_400
    assert third % 3 == 1


def test_binance_opened_its_first_candles_there() -> None:
    listed = 1502928000  # 2017-08-17, the day of BTCUSDT's listing
    assert Timeframe.parse("1d").floor(listed) == listed
    assert Timeframe.parse("3d").floor(listed) == listed
    assert Timeframe.parse("1w").floor(listed) == 1502668800  # 2017-08-14
    assert Timeframe.parse("1M").floor(listed) == 1501545600  # 2017-08-01


@pytest.mark.parametrize("time", [253_402_300_799, 253_399_622_400, 10**15, 10**18, 10**40, -(10**15)])
def test_months_lie_beyond_the_calendar_too(time: int) -> None:
    month = Timeframe.parse("1M")
    opened = month.floor(time)
    assert opened <= time < month.next(opened)
    assert 28 * 86_400 <= month.next(opened) - opened <= 31 * 86_400
    assert month.shift(month.next(opened), -1) == opened
    assert month.count(opened, month.shift(opened, 4800)) == 4800


def test_the_last_month_of_the_calendar_ends_with_it() -> None:
    assert Timeframe.parse("1M").next(253_399_622_400) == 253_402_300_800

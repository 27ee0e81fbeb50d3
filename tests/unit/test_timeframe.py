"""Timeframes against calendar arithmetic of the standard library."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadTimeframe
from klinesync.core.timeframe import DAY_S, MAX_DAYS, Timeframe, code_of
from support.timeframes import TIMEFRAMES

FRAMES = TIMEFRAMES
TIMES = st.integers(0, 4_102_444_800)


def test_the_fifteen_timeframes_are_known() -> None:
    assert " ".join(Timeframe.known) == "1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"


def test_each_part_of_a_day_and_each_number_of_days_has_one_timeframe() -> None:
    lengths = [60 * minutes for minutes in range(1, 1440) if 1440 % minutes == 0]
    lengths += [DAY_S * days for days in range(1, MAX_DAYS + 1)]
    assert {frame.step_s for frame in Timeframe.admitted.values()} == {0, *lengths}
    assert len(Timeframe.admitted) == len(lengths) + 1
    for code, frame in Timeframe.admitted.items():
        assert frame.code == code == (code_of(frame.step_s) if frame.step_s else "1M")
        assert Timeframe.parse(code) is frame


@given(st.integers(1, 2 * MAX_DAYS * 1440))
def test_minutes_are_a_timeframe_or_refused_with_its_code(minutes: int) -> None:
    length_s = 60 * minutes
    code = code_of(length_s)
    admitted = length_s <= MAX_DAYS * DAY_S if length_s % DAY_S == 0 else DAY_S % length_s == 0
    assert (code in Timeframe.admitted) is admitted
    if code == f"{minutes}m" and admitted:
        assert Timeframe.parse(f"{minutes}m").step_s == length_s
        return
    why = (
        f"is written {code}"
        if admitted
        else "is longer than 366d"
        if length_s % DAY_S == 0
        else "does not divide a day"
    )
    with pytest.raises(BadTimeframe, match=f"^timeframe '{minutes}m' {why}"):
        Timeframe.parse(f"{minutes}m")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "is not known; use one of 1m 3m") for text in ("", "1", "m", "1H", "1 m", "1mo", "1s", "1.5h", "-1m")),
        *((text, "does not divide a day; use one of 1m 3m") for text in ("7m", "5h", "16h", "999999999m")),
        *((text, "has no length; use one of 1m 3m") for text in ("0m", "00d", "0w", "0M")),
        *(("60m", "is written 1h"), ("1440m", "is written 1d"), ("2880m", "is written 2d"), ("48h", "is written 2d")),
        *(("7d", "is written 1w"), ("10080m", "is written 1w"), ("01m", "is written 1m"), ("01M", "is written 1M")),
        *(("2M", "has several months"), ("2w", "has several weeks.* as in 14d$"), ("60w", "as in 14d$")),
        *(("367d", "is longer than 366d"), ("9" * 90 + "m", "is not known"), ("\u0661m", "is not known")),
    ],
)
def test_what_is_no_timeframe_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(BadTimeframe, match=why):
        Timeframe.parse(text)


@pytest.mark.parametrize("code", ["2d", "5d", "10d", "14d", "366d", "45m", "90m", "3h"])
def test_the_grid_of_a_timeframe_of_no_exchange_begins_with_1970(code: str) -> None:
    frame = Timeframe.parse(code)
    assert frame.floor(0) == 0
    assert frame.next(0) == frame.step_s
    assert DAY_S % frame.step_s == 0 or frame.step_s % DAY_S == 0


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

"""Timeframe: the grid of open times of a candle series.

All times are UTC seconds since 1970-01-01. A candle is named by its open time; it covers
`[open, next(open))`. Fixed timeframes sit on `offset + k * step`; months follow the calendar.

Fifteen timeframes are those of exchanges. Beside them each number of minutes that divides a day (`45m`, `3h`) and each
number of days (`2d`) is a timeframe, on a grid that begins at 1970-01-01. Each length has one code: 60 minutes are
`1h`, seven days are `1w`.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from klinesync.core.errors import BadTimeframe

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400
# Longest timeframe, in days: a correction of one candle may fold all of its bucket again.
MAX_DAYS = 366
# Years after which the calendar repeats. Times are shifted by whole cycles into the range of `datetime`: the end of a
# month may lie past its last year, and a time from outside anywhere.
CYCLE_YEARS = 400
CYCLE_DAYS = 146_097


@dataclass(frozen=True, slots=True)
class Timeframe:
    """A timeframe. Get it with `Timeframe.parse("5m")`; equal codes are equal objects.

    `step_s` is the length in seconds, 0 for the calendar month. `offset_s` shifts the grid: weeks start on
    Monday (1970-01-05), three-day candles on days = 1 mod 3 since 1970-01-01, as Binance's do.

    `known` has the fifteen of exchanges by code, `admitted` has all.
    """

    code: str
    step_s: int
    offset_s: int = 0

    known: ClassVar[dict[str, Timeframe]] = {}
    admitted: ClassVar[dict[str, Timeframe]] = {}

    @classmethod
    def parse(cls, text: str) -> Timeframe:
        """The timeframe of a code. Raises `BadTimeframe`, which names the right code of a length that has another.
        Codes are case-sensitive: `1m` and `1M` differ."""
        timeframe = cls.admitted.get(text)
        if timeframe is None:
            raise BadTimeframe(text, _refusal(text))
        return timeframe

    def __str__(self) -> str:
        return self.code

    def __hash__(self) -> int:
        return hash(self.code)

    @property
    def seconds(self) -> int:
        """Nominal length in seconds; a month counts as 30 days. For display and rough sizes only."""
        return self.step_s or 30 * DAY_S

    def floor(self, time: int) -> int:
        """The open time of the candle that `time` falls into."""
        if self.step_s:
            return time - (time - self.offset_s) % self.step_s
        return _month_open(_month_of(time))

    def ceil(self, time: int) -> int:
        """The first open time that is not before `time`."""
        return self.next(self.floor(time - 1))

    def is_open(self, time: int) -> bool:
        """Whether `time` is on the grid."""
        return self.floor(time) == time

    def next(self, open_time: int) -> int:
        """The open time after `open_time`, which is also the close of the candle at `open_time` (exclusive)."""
        if self.step_s:
            return open_time + self.step_s
        return _month_open(_month_of(open_time) + 1)

    def shift(self, open_time: int, count: int) -> int:
        """The open time `count` candles later; earlier when negative."""
        if self.step_s:
            return open_time + count * self.step_s
        return _month_open(_month_of(open_time) + count)

    def count(self, first: int, end: int) -> int:
        """How many candles open in `[first, end)`; both on the grid. 0 when `end <= first`."""
        if end <= first:
            return 0
        if self.step_s:
            return (end - first) // self.step_s
        return _month_of(end) - _month_of(first)

    def latest_closed(self, now: int) -> int:
        """The open time of the newest candle that has ended at `now`."""
        return self.shift(self.floor(now), -1)


def _month_of(time: int) -> int:
    """Months since year 0 of the month that `time` falls into."""
    cycles, time = divmod(time, CYCLE_DAYS * DAY_S)
    moment = datetime.fromtimestamp(time, UTC)
    return (moment.year + cycles * CYCLE_YEARS) * 12 + moment.month - 1


def _month_open(month: int) -> int:
    year, zero_based = divmod(month, 12)
    cycles, year = divmod(year - 1970, CYCLE_YEARS)
    return timegm((1970 + year, zero_based + 1, 1, 0, 0, 0)) + cycles * CYCLE_DAYS * DAY_S


_CODE = re.compile(r"([0-9]{1,9})([mhdwM])")
_UNIT_S = {"m": MINUTE_S, "h": HOUR_S, "d": DAY_S, "w": 7 * DAY_S}


def code_of(length_s: int) -> str:
    """The code of a length of whole minutes, whether or not there is such a timeframe."""
    if length_s % DAY_S == 0:
        return "1w" if length_s == 7 * DAY_S else f"{length_s // DAY_S}d"
    return f"{length_s // HOUR_S}h" if length_s % HOUR_S == 0 else f"{length_s // MINUTE_S}m"


def _refusal(text: str) -> str:
    """Why a text is no timeframe, and the right code where there is one."""
    use = f"use one of {' '.join(Timeframe.known)}, another part of a day such as 45m, or days such as 2d"
    match = _CODE.fullmatch(text)
    if match is None:
        return f"is not known; {use}"
    number, unit = int(match[1]), match[2]
    if number == 0:
        return f"has no length; {use}"
    if unit == "M":
        return "is written 1M" if number == 1 else f"has several months, and 1M is the only timeframe of months; {use}"
    length_s = number * _UNIT_S[unit]
    code = code_of(length_s)
    if unit == "w" and number > 1:
        days = code if code in Timeframe.admitted else "14d"
        return f"has several weeks, and 1w is the only timeframe of weeks; days count from 1970-01-01, as in {days}"
    if code in Timeframe.admitted:
        return f"is written {code}"
    return f"is longer than {MAX_DAYS}d" if length_s % DAY_S == 0 else f"does not divide a day; {use}"


def _lengths() -> Iterator[int]:
    """The lengths of all timeframes but the month, in seconds."""
    yield from (step_s for step_s in range(MINUTE_S, DAY_S, MINUTE_S) if DAY_S % step_s == 0)
    yield from range(DAY_S, MAX_DAYS * DAY_S + 1, DAY_S)


Timeframe.known.update(
    (frame.code, frame)
    for frame in (
        Timeframe("1m", 60),
        Timeframe("3m", 180),
        Timeframe("5m", 300),
        Timeframe("15m", 900),
        Timeframe("30m", 1800),
        Timeframe("1h", 3600),
        Timeframe("2h", 7200),
        Timeframe("4h", 14_400),
        Timeframe("6h", 21_600),
        Timeframe("8h", 28_800),
        Timeframe("12h", 43_200),
        Timeframe("1d", DAY_S),
        Timeframe("3d", 3 * DAY_S, DAY_S),
        Timeframe("1w", 7 * DAY_S, 4 * DAY_S),
        Timeframe("1M", 0),
    )
)

# The exchanges' replace those of the same code, so that each code is one object.
Timeframe.admitted.update({code_of(step_s): Timeframe(code_of(step_s), step_s) for step_s in _lengths()})
Timeframe.admitted.update(Timeframe.known)

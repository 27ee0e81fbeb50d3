"""The texts of `klinesync watch` for numbers, times and a series of prices. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import DAY_S

# Decimal digits that a 64-bit float represents exactly.
FAITHFUL_DIGITS = 15
# Most decimal places of a quoted number.
MOST_PLACES = 12
# Decimal digits that are kept of a computed number, which has binary rounding in the last ones.
COMPUTED_DIGITS = 12
BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """One block a value, from the lowest to the highest; middle blocks when all values are equal."""
    lowest, highest = min(values), max(values)
    spread = highest - lowest
    if not spread:
        return BLOCKS[len(BLOCKS) // 2] * len(values)
    return "".join(BLOCKS[min(int((value - lowest) / spread * len(BLOCKS)), len(BLOCKS) - 1)] for value in values)


def places(value: float) -> int:
    """Decimal places of a number as the exchange quoted it: 0.30000000000000004 has 1."""
    digits, exponent = _digits(value)
    if digits > FAITHFUL_DIGITS or -exponent > MOST_PLACES:
        before_point = digits + exponent  # digits before the point; negative for zeros after it
        _, exponent = _digits(round(value, min(COMPUTED_DIGITS - before_point, MOST_PLACES)))
    return max(-exponent, 0)


def _digits(value: float) -> tuple[int, int]:
    """The count of significant digits of the shortest text of a finite number, and the exponent of the last digit."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    return len(digits), exponent


def number(value: float) -> str:
    """A number as the exchange quoted it, without exponent: 1e-05 is 0.00001."""
    return f"{value:.{places(value)}f}"


def change(candle: Candle) -> str:
    """`+0.12%` from open to close; empty without an open price."""
    if not candle.open:
        return ""
    percent = round((candle.close / candle.open - 1) * 100, 2)
    return f"{percent + 0.0:+.2f}%" if percent else "0.00%"


def duration(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`: rounded down."""
    whole_s = max(int(seconds), 0)
    for size, unit in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if whole_s >= 2 * size:
            return f"{whole_s // size} {unit}"
    return f"{whole_s} s"


def clock(time: int) -> str:
    """`2026-11-22 18:04`."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def moment(time: int, series: SeriesId) -> str:
    """The open time of a candle: the date alone for timeframes of a day or more."""
    text = clock(time)
    return text[:10] if series.timeframe.seconds >= DAY_S else text

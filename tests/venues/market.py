"""The market of a venue: pairs, and the rows of its candles at a moment. Pure.

A row is a function of symbol, timeframe, open time and the venue's time. Rows grow while they are forming, keep values
that are not final yet for `late_ms` after their end, and are final from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import inf
from typing import NamedTuple
from zlib import crc32

# The share of the trades in a row at its end, when the row still changes afterwards.
UNFINISHED = 0.97
BASE_PRICE = 1000.0


class Row(NamedTuple):
    """One candle. `time`: open time in UTC seconds; `volume` in the base asset."""

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Quiet(Enum):
    """The rows of minutes without trades: flat rows, no rows, or flat rows that appear later."""

    FLAT = "flat"
    OMITTED = "omitted"
    LATE_FLAT = "late_flat"


@dataclass(frozen=True, slots=True)
class Pair:
    """One symbol. settle: None for a spot pair, the settle asset for a perpetual swap. listed_s: open time of its first
    candle, UTC seconds. quiet_percent: share of the minutes without a trade. quiet_from_s: no trades from then on.
    traded: whether it is traded."""

    base: str
    quote: str = "USDT"
    settle: str | None = None
    listed_s: int = 0
    quiet_percent: int = 0
    quiet_from_s: float = inf
    traded: bool = True

    @property
    def symbol(self) -> str:
        """The name in series ids."""
        return f"{self.base}/{self.quote}"


@dataclass(slots=True)
class Candles:
    """The rows of a venue.

    quiet: the rows of minutes without trades; late flat rows appear `late_flat_ms` after their end. late_ms: rows
    change up to so many ms after their end, each row at its own random moment from 0 on. always_late: every row changes
    exactly `late_ms` after its end.
    """

    quiet: Quiet = Quiet.FLAT
    late_ms: int = 0
    always_late: bool = False
    late_flat_ms: int = 90_000

    def final(self, pair: Pair, frame_s: int, open_s: int) -> Row | None:
        """The final row; None where the row is left out for good."""
        if open_s < pair.listed_s:
            return None
        start = _price(pair, open_s)
        if self.is_quiet(pair, frame_s, open_s):
            return None if self.quiet is Quiet.OMITTED else Row(open_s, start, start, start, start, 0.0)
        return _row(pair, frame_s, open_s, 1.0)

    def row(self, pair: Pair, frame_s: int, open_s: int, now_ms: int) -> Row | None:
        """The row at `now_ms`; None where there is none (yet)."""
        if open_s * 1000 > now_ms:
            return None
        end_ms = (open_s + frame_s) * 1000
        if self.is_quiet(pair, frame_s, open_s):
            late = self.quiet is Quiet.LATE_FLAT and now_ms < end_ms + self.late_flat_ms
            return None if late else self.final(pair, frame_s, open_s)
        if open_s < pair.listed_s or now_ms >= self.final_ms(pair, frame_s, open_s):
            return self.final(pair, frame_s, open_s)
        passed = (now_ms - open_s * 1000) / (frame_s * 1000)
        return _row(pair, frame_s, open_s, max(0.02, min(passed, UNFINISHED)))

    def rows(self, pair: Pair, frame_s: int, start_s: int, end_s: int, now_ms: int) -> list[Row]:
        """The rows that open in [start_s, end_s), ascending, at the present time."""
        opens = range(max(_ceil(start_s, frame_s), _ceil(pair.listed_s, frame_s)), end_s, frame_s)
        found = (self.row(pair, frame_s, open_s, now_ms) for open_s in opens if open_s * 1000 <= now_ms)
        return [row for row in found if row is not None]

    def newest_first(self, pair: Pair, frame_s: int, end_s: int, now_ms: int) -> Iterator[Row]:
        """The rows that open before `end_s`, descending, at the present time."""
        open_s = min(end_s - 1, now_ms // 1000) // frame_s * frame_s
        while open_s >= pair.listed_s:
            row = self.row(pair, frame_s, open_s, now_ms)
            if row is not None:
                yield row
            open_s -= frame_s

    def final_ms(self, pair: Pair, frame_s: int, open_s: int) -> int:
        """The time from which the row is final."""
        late_ms = self.late_ms if self.always_late else _dice(pair, frame_s, open_s, "late") % (self.late_ms + 1)
        return (open_s + frame_s) * 1000 + late_ms

    def is_quiet(self, pair: Pair, frame_s: int, open_s: int) -> bool:
        """Whether the minute has no trades."""
        return open_s >= pair.quiet_from_s or _dice(pair, frame_s, open_s, "quiet") % 100 < pair.quiet_percent


def _row(pair: Pair, frame_s: int, open_s: int, part: float) -> Row:
    """The row after that share of its trades."""
    start, end = _price(pair, open_s), _price(pair, open_s + frame_s)
    close = round(start + (end - start) * part, 2)
    swing = (1 + _dice(pair, frame_s, open_s, "swing") % 300) / 100
    high = round(max(start, close) + swing * part, 2)
    low = round(min(start, close) - swing * part, 2)
    volume = round((100 + _dice(pair, frame_s, open_s, "volume") % 9900) / 10 * part, 3)
    return Row(open_s, start, high, low, close, volume)


def _price(pair: Pair, at_s: int) -> float:
    return round(BASE_PRICE + _dice(pair, 60, at_s // 60 * 60, "price") % 20_000 / 100, 2)


@lru_cache(maxsize=100_000)
def _dice(pair: Pair, frame_s: int, open_s: int, what: str) -> int:
    return crc32(f"{pair.base}/{pair.quote}/{pair.settle}/{frame_s}/{open_s}/{what}".encode())


def _ceil(at_s: int, frame_s: int) -> int:
    return -(-at_s // frame_s) * frame_s

"""A symbol's one-minute candles, and what is folded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Market = Literal["spot", "futures"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MINUTE_S = 60
_SUM_DIGITS = 8
_ROUNDABLE_BELOW = 2.0**53 / 10**_SUM_DIGITS


class Row(NamedTuple):
    """One candle as the exchange has it. `time` is the open time in seconds; `first_id` the id of its first trade,
    or of the next one when it has none (`trades` 0)."""

    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote: float
    trades: int
    taker_volume: float
    taker_quote: float
    first_id: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Candles in columns of equal length, ascending in `time` (seconds); the columns are those of `Row`."""

    time: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    quote: Floats
    trades: Ints
    taker_volume: Floats
    taker_quote: Floats
    first_id: Ints

    def __len__(self) -> int:
        return len(self.time)

    def columns(self) -> tuple[Ints | Floats, ...]:
        """All columns in the order of `Row`."""
        return (
            self.time, self.open, self.high, self.low, self.close, self.volume,
            self.quote, self.trades, self.taker_volume, self.taker_quote, self.first_id,
        )  # fmt: skip

    def cut(self, first: int, end: int) -> Rows:
        """Rows `first` to `end` (exclusive) by position; a view."""
        return Rows(
            self.time[first:end], self.open[first:end], self.high[first:end], self.low[first:end],
            self.close[first:end], self.volume[first:end], self.quote[first:end], self.trades[first:end],
            self.taker_volume[first:end], self.taker_quote[first:end], self.first_id[first:end],
        )  # fmt: skip

    def head(self, most: int) -> Rows:
        """The first `most` rows; a view."""
        return self.cut(0, most)

    def tail(self, most: int) -> Rows:
        """The last `most` rows; a view."""
        return self.cut(max(0, len(self) - most), len(self))

    def between(self, start_s: int, end_s: int) -> Rows:
        """The rows whose time lies in `[start_s, end_s)`; a view."""
        first, end = np.searchsorted(self.time, (start_s, end_s))
        return self.cut(int(first), int(end))

    def row(self, index: int) -> Row:
        return Row(
            int(self.time[index]), float(self.open[index]), float(self.high[index]), float(self.low[index]),
            float(self.close[index]), float(self.volume[index]), float(self.quote[index]), int(self.trades[index]),
            float(self.taker_volume[index]), float(self.taker_quote[index]), int(self.first_id[index]),
        )  # fmt: skip

    def shifted(self, seconds: int) -> Rows:
        """The same candles, so much later."""
        return replace(self, time=self.time + seconds)

    def rows(self) -> list[Row]:
        return [Row(*values) for values in zip(*(column.tolist() for column in self.columns()), strict=True)]


NO_FLOATS: Floats = np.empty(0, np.float64)
NO_INTS: Ints = np.empty(0, np.int64)
NO_ROWS = Rows(
    NO_INTS, NO_FLOATS, NO_FLOATS, NO_FLOATS, NO_FLOATS, NO_FLOATS, NO_FLOATS, NO_INTS, NO_FLOATS, NO_FLOATS, NO_INTS
)


class Tape(Protocol):
    """The finished minutes of one symbol, whenever they are asked for: a function of time, not of what was asked."""

    @property
    def first_s(self) -> int:
        """Open time of the first minute: the listing."""
        ...

    @property
    def end_s(self) -> int | None:
        """Where the tape ends (exclusive); None when it has no end."""
        ...

    def minutes(self, start_s: int, end_s: int) -> Rows:
        """The minutes whose open time lies in `[start_s, end_s)`, both on the minute grid. Missing ones are missing."""
        ...


def fold(rows: Rows, opens: Ints) -> Rows:
    """Candles of a longer interval: row i belongs to the candle that opens at `opens[i]` (ascending).

    Sums are rounded to eight decimals, as the exchange's own decimals are, so that adding in another order gives the
    same candle.
    """
    if not len(rows):
        return NO_ROWS
    starts = np.flatnonzero(np.concatenate((np.array([True]), opens[1:] != opens[:-1])))
    ends = np.concatenate((starts[1:], np.array([len(opens)]))) - 1
    return Rows(
        opens[starts],
        rows.open[starts],
        np.maximum.reduceat(rows.high, starts),
        np.minimum.reduceat(rows.low, starts),
        rows.close[ends],
        decimal_sum(np.add.reduceat(rows.volume, starts)),
        decimal_sum(np.add.reduceat(rows.quote, starts)),
        np.add.reduceat(rows.trades, starts),
        decimal_sum(np.add.reduceat(rows.taker_volume, starts)),
        decimal_sum(np.add.reduceat(rows.taker_quote, starts)),
        rows.first_id[starts],
    )


def decimal_sum(values: Floats) -> Floats:
    """`values` rounded to eight decimals where a double can hold them, itself elsewhere."""
    return np.where(np.abs(values) < _ROUNDABLE_BELOW, np.round(values, _SUM_DIGITS), values)


def _sum(one: float, other: float) -> float:
    value = one + other
    return round(value, _SUM_DIGITS) if abs(value) < _ROUNDABLE_BELOW else value


def join(earlier: Row | None, later: Row) -> Row:
    """One candle of two that follow each other; `earlier` None: the later one alone."""
    if earlier is None:
        return later
    return Row(
        earlier.time,
        earlier.open,
        max(earlier.high, later.high),
        min(earlier.low, later.low),
        later.close,
        _sum(earlier.volume, later.volume),
        _sum(earlier.quote, later.quote),
        earlier.trades + later.trades,
        _sum(earlier.taker_volume, later.taker_volume),
        _sum(earlier.taker_quote, later.taker_quote),
        earlier.first_id,
    )


def rows_of(rows: Sequence[Row]) -> Rows:
    """Columns of `rows`."""
    if not rows:
        return NO_ROWS
    (time, open_, high, low, close, volume, quote, count, taker_volume, taker_quote, first_id) = zip(*rows, strict=True)
    return Rows(
        np.array(time, np.int64), np.array(open_, np.float64), np.array(high, np.float64), np.array(low, np.float64),
        np.array(close, np.float64), np.array(volume, np.float64), np.array(quote, np.float64),
        np.array(count, np.int64), np.array(taker_volume, np.float64), np.array(taker_quote, np.float64),
        np.array(first_id, np.int64),
    )  # fmt: skip


def concat(parts: Sequence[Rows]) -> Rows:
    """The parts one after the other."""
    columns = [np.concatenate(column) for column in zip(*(part.columns() for part in parts), strict=True)]
    return Rows(*columns) if columns else NO_ROWS

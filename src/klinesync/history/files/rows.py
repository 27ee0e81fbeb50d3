"""Rows of files as columns, and their validation as candles. Pure: no file is opened here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import (
    MAX_TIME,
    MAX_TRADES,
    MAX_VALUE,
    NO_FLOW,
    OHLCV,
    TAKER_TOLERANCE,
    Candle,
    check_candle,
    check_not_future,
    check_values,
)
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candle_columns import CandleColumns, columns_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
# Quote volume, trades, taker-buy volume, taker-buy quote volume; NaN for a missing value.
Flow = tuple[Floats, Floats, Floats, Floats]

# Bad rows of a file that are described by a sentence; all are counted.
MAX_EXAMPLES = 5
# A time below the first limit is in seconds, below the second in milliseconds, below the third in microseconds, and
# otherwise in nanoseconds.
_SECONDS_BELOW, _MILLIS_BELOW, _MICROS_BELOW = 10**11, 10**14, 10**17
# The time of a row without a valid time.
NO_TIME = -1

# What Candle._make does, without its frame of Python.
_candle = partial(tuple.__new__, Candle)


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a file, in its order: open times in UTC seconds, prices, volume; NaN for a missing value.

    flow: the order flow; None (the default) when no row has any, which costs no memory.
    unread: why the first bad rows cannot be read, by their index; slices of the rows do not keep it.
    """

    time: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    flow: Flow | None = field(default=None, kw_only=True)
    unread: Mapping[int, str] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.time)

    def values(self) -> tuple[Ints, Floats, Floats, Floats, Floats, Floats]:
        """Open times, prices and volume, in the order of `Candle`."""
        return self.time, self.open, self.high, self.low, self.close, self.volume

    def take(self, rows: Flags | Ints | slice) -> Columns:
        """The rows that `rows` selects."""
        flow = self.flow
        return Columns(
            self.time[rows], self.open[rows], self.high[rows], self.low[rows], self.close[rows], self.volume[rows],
            flow=None if flow is None else (flow[0][rows], flow[1][rows], flow[2][rows], flow[3][rows]),
        )  # fmt: skip

    def with_flow(self, flow: Flow | None) -> Columns:
        """The same rows with another order flow."""
        return Columns(*self.values(), flow=flow, unread=self.unread)

    def candle(self, row: int) -> Candle:
        """A row as a candle, without validation."""
        (candle,) = self.take(slice(row, row + 1)).candles()
        return candle

    def candles(self) -> list[Candle]:
        """All rows as candles, without validation; the numbers of trades are whole."""
        lists = [column.tolist() for column in self.values()]
        if self.flow is None:
            flow: list[list[float | None]] = [[None] * len(self)] * len(NO_FLOW)
        else:
            quote, trades, taker, taker_quote = self.flow
            whole = np.where(np.isnan(trades), 0.0, trades).astype(np.int64)
            flow = [
                _with_none(values, column)
                for values, column in ((quote, quote), (whole, trades), (taker, taker), (taker_quote, taker_quote))
            ]
        return list(map(_candle, zip(*lists, *flow, strict=True)))


def _with_none(values: Floats | Ints, column: Floats) -> list[float | None]:
    """The values as Python's numbers, None where `column` is NaN."""
    missing = np.isnan(column)
    numbers: list[float | None] = values.tolist()
    if not missing.any():
        return numbers
    return [None if absent else value for value, absent in zip(numbers, missing.tolist(), strict=True)]


def seconds(raw: Ints) -> Ints:
    """Times in seconds, milliseconds, microseconds or nanoseconds (each by its size) as seconds; `NO_TIME` for a time
    with a fraction of a second."""
    if not len(raw):
        return raw
    size = np.abs(raw)
    unit = np.where(
        size < _SECONDS_BELOW,
        1,
        np.where(size < _MILLIS_BELOW, 1000, np.where(size < _MICROS_BELOW, 1_000_000, 1_000_000_000)),
    )
    return whole_seconds(raw, unit)


def whole_seconds(raw: Ints, unit: Ints | int) -> Ints:
    """Times in units of 1/`unit` second as seconds; `NO_TIME` for a time with a fraction of a second."""
    whole = raw // unit
    return np.where(whole * unit == raw, whole, NO_TIME)


class OutOfOrder(Exception):
    """Rows of a file are not in the order of time, and have to be sorted."""


class TooManyRows(Exception):
    """More rows than may be sorted in memory."""


@dataclass(slots=True)
class Judge:
    """Validates the rows of one series by the rules of `core.candle`, and deduplicates them. Of rows with the same time
    the first counts; a later row with other values is bad. A row whose order flow alone is invalid is a good row
    without order flow.

    timeframe: of the series.
    now: latest close of a candle, UTC seconds.
    rows, good, bad: numbers of rows so far.
    first, last: open times of the first and the last good row.
    examples: sentences about the first bad rows.
    flow_left_out: number of rows whose order flow was left out.
    flow_example: a sentence about the first of them.
    """

    timeframe: Timeframe
    now: int
    rows: int = 0
    good: int = 0
    bad: int = 0
    first: int | None = None
    last: int | None = None
    examples: list[str] = field(default_factory=list)
    flow_left_out: int = 0
    flow_example: str = ""
    _newest: Candle | None = None

    def sound(self, batch: Columns) -> Columns:
        """The good rows of the next batch of a file whose rows ascend in time. Raises `OutOfOrder` when they do not;
        then the file is read again with `in_order`."""
        rows = self._ascending(*self._valid(batch))
        if len(rows):
            self._count(rows)
            self._newest = rows.candle(len(rows) - 1)
        return rows

    def newest_open(self, batch: Columns) -> int | None:
        """The newest open time of the good rows of a batch, which may have any order; None when no row is good."""
        sound, _ = self._valid(batch)
        return int(sound.time.max()) if len(sound) else None

    def in_order(self, batches: Iterable[Columns], most: int, span: Span | None = None) -> Columns:
        """The good rows of all batches, sorted by time.

        batches: all rows of a file, in any order.
        most: most rows that are held in memory.
        span: only rows that open in it; None (the default): all.

        Raises `TooManyRows`.
        """
        parts = [columns([])]
        places = [np.empty(0, np.int64)]
        count = 0
        for batch in batches:
            rows, at = self._valid(batch)
            if span is not None:
                inside = (rows.time >= span.start) & (rows.time < span.end)
                rows, at = rows.take(inside), at[inside]
            count += len(rows)
            if count > most:
                raise TooManyRows
            parts.append(rows)
            places.append(at)
        rows, at = joined(parts), np.concatenate(places)
        order = np.argsort(rows.time, kind="stable")
        rows = self._each_once(rows.take(order), at[order])
        if len(rows):
            self._count(rows)
        return rows

    def broken(self, why: str) -> None:
        """Count a row of the file that could not be read."""
        self.rows += 1
        self.bad += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(why)

    def _count(self, rows: Columns) -> None:
        self.good += len(rows)
        self.last = int(rows.time[-1])
        self.first = int(rows.time[0]) if self.first is None else self.first

    def _valid(self, batch: Columns) -> tuple[Columns, Ints]:
        """The valid rows of the next batch, and their indexes in the file."""
        at = self.rows
        self.rows += len(batch)
        batch = self._with_sound_flow(batch, at)
        fits = self._fits(batch)
        if fits.all():
            return batch, np.arange(at, at + len(batch))
        for row in np.flatnonzero(~fits)[: MAX_EXAMPLES - len(self.examples)].tolist():
            self._add_example(at + row, batch.unread.get(row) or self._why(batch.candle(row)))
        self.bad += int(np.count_nonzero(~fits))
        return batch.take(fits), np.flatnonzero(fits) + at

    def _with_sound_flow(self, batch: Columns, at: int) -> Columns:
        """The rows, without order flow that is invalid. `at`: index of the first row in the file."""
        flow = batch.flow
        if flow is None:
            return batch
        unsound = _unsound_flow(batch.volume, flow)
        if unsound.any():
            first = int(np.argmax(unsound))
            self.flow_left_out += int(np.count_nonzero(unsound))
            self.flow_example = self.flow_example or f"row {at + first + 1}: {_why_unsound(batch, first)}"
            quote, trades, taker, taker_quote = (np.where(unsound, np.nan, column) for column in flow)
            flow = quote, trades, taker, taker_quote
        return batch.with_flow(flow)

    def _fits(self, batch: Columns) -> Flags:
        # NaN fails every comparison.
        time, open_, high, low, close, volume = batch.values()
        return (
            (low > 0.0) & (low <= open_) & (open_ <= high) & (high <= MAX_VALUE)
            & (low <= close) & (close <= high)
            & (volume >= 0.0) & (volume <= MAX_VALUE)
            & (time >= 0) & (time <= MAX_TIME) & (time <= self.timeframe.latest_closed(self.now))
            & _on_grid(time, self.timeframe)
        )  # fmt: skip

    def _why(self, candle: Candle) -> str:
        if candle.time == NO_TIME:
            return "its time is no whole second, or none at all"
        try:
            check_candle(candle, self.timeframe)
            check_not_future(candle, self.timeframe, self.now)
        except BadCandle as error:
            return str(error)
        raise AssertionError(f"{candle} is valid, and was taken for bad")

    def _ascending(self, batch: Columns, places: Ints) -> Columns:
        """The rows that are newer than all rows before them, in this and earlier batches."""
        if not len(batch):
            return batch
        time = batch.time
        newest = self._newest
        if (newest is None or time[0] > newest.time) and bool((time[1:] > time[:-1]).all()):
            return batch
        if newest is not None:
            batch = joined([columns([newest]), batch])
            places = np.concatenate((np.array([NO_TIME]), places))
        if bool((batch.time[1:] < batch.time[:-1]).any()):
            raise OutOfOrder
        rows = self._each_once(batch, places)
        return rows if newest is None else rows.take(slice(1, None))

    def _each_once(self, batch: Columns, places: Ints) -> Columns:
        """The first row of each time, of ascending rows."""
        time = batch.time
        rises = np.concatenate((np.ones(min(len(time), 1), np.bool_), time[1:] > time[:-1]))
        if rises.all():
            return batch
        # For each row, the index of the row with the same time that is kept.
        kept = np.maximum.accumulate(np.where(rises, np.arange(len(time)), 0))
        same = np.logical_and.reduce([column == column[kept] for column in batch.values()])
        for column in batch.flow or ():
            # A missing value contradicts none.
            same &= (column == column[kept]) | np.isnan(column) | np.isnan(column[kept])
        wrong = np.flatnonzero(~same)
        self.bad += len(wrong)
        for row in wrong[:MAX_EXAMPLES].tolist():
            self._add_example(
                int(places[row]),
                f"candle at {date_text(int(time[row]))} refused: it is given twice, with different values",
            )
        return batch.take(rises)

    def _add_example(self, row: int, why: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"row {row + 1}: {why}")


def _unsound_flow(volume: Floats, flow: Flow) -> Flags:
    """Rows whose order flow `core.candle` refuses. NaN fails every comparison."""
    quote, trades, taker, taker_quote = flow
    most = 1 + TAKER_TOLERANCE
    with np.errstate(over="ignore"):  # infinity, which no part exceeds; the whole itself is refused as too large
        most_volume = volume * most
        most_quote = np.where(np.isnan(quote), MAX_VALUE, quote * most)
    unsound: Flags = (
        (quote < 0.0) | (quote > MAX_VALUE)
        | (trades < 0.0) | (trades > MAX_TRADES) | (trades > np.floor(trades))
        | (taker < 0.0) | (taker > most_volume)
        | (taker_quote < 0.0) | (taker_quote > most_quote)
    )  # fmt: skip
    return unsound


def _why_unsound(batch: Columns, row: int) -> str:
    """Why the order flow of a row is invalid."""
    assert batch.flow is not None
    quote, trades, taker, taker_quote = (float(column[row]) for column in batch.flow)
    for name, value in zip(Candle._fields[OHLCV:], (quote, trades, taker, taker_quote), strict=True):
        if np.isinf(value):
            return f"{name} is no number"
    if trades > np.floor(trades):
        return f"trades {trades} is no whole number"
    whole = None if np.isnan(trades) else int(trades)
    flow = [None if np.isnan(value) else value for value in (quote, taker, taker_quote)]
    # Prices play no part.
    candle = Candle(0, 1.0, 1.0, 1.0, 1.0, float(batch.volume[row]), flow[0], whole, flow[1], flow[2])
    try:
        check_values(candle)
    except BadCandle as error:
        return error.reason
    raise AssertionError(f"the order flow of {candle} is valid, and was taken for bad")


def _on_grid(time: Ints, timeframe: Timeframe) -> Flags:
    step = np.int64(timeframe.step_s)
    if step:
        fits: Flags = (time - timeframe.offset_s) % step == 0
        return fits
    moments = np.clip(time, 0, MAX_TIME).astype("datetime64[s]")
    opens: Flags = moments.astype("datetime64[M]").astype("datetime64[s]") == moments
    return opens


def within(batch: Columns, span: Span) -> Columns:
    """The rows of an ascending batch that open in `span`."""
    first, end = np.searchsorted(batch.time, np.array(span))
    return batch.take(slice(int(first), int(end)))


def pages(batches: Iterable[Columns], size: int) -> Iterator[Columns]:
    """The same rows in batches of `size`; the last batch may be shorter, and no batch is empty."""
    held: list[Columns] = []
    count = 0
    for batch in batches:
        start = 0
        while count + len(batch) - start >= size:
            end = start + size - count
            held.append(batch.take(slice(start, end)))
            yield joined(held)
            held, count, start = [], 0, end
        if start < len(batch):
            held.append(batch.take(slice(start, len(batch))))
            count += len(batch) - start
    if count:
        yield joined(held)


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    time = np.concatenate([part.time for part in parts])
    values = (np.concatenate(values) for values in zip(*(part.values()[1:] for part in parts), strict=True))
    if all(part.flow is None for part in parts):
        return Columns(time, *values)
    flows = (part.flow or (np.full(len(part), np.nan),) * len(NO_FLOW) for part in parts)
    quote, trades, taker, taker_quote = (np.concatenate(column) for column in zip(*flows, strict=True))
    return Columns(time, *values, flow=(quote, trades, taker, taker_quote))


def columns(candles: Sequence[Candle]) -> Columns:
    """Candles as columns."""
    return of_store(columns_of(candles))


def of_store(candles: CandleColumns) -> Columns:
    """Candles of a store as rows of a file."""
    open_, high, low, close, volume = candles.values
    if candles.flow is None:
        return Columns(candles.time, open_, high, low, close, volume)
    quote, trades, taker, taker_quote = candles.flow
    return Columns(candles.time, open_, high, low, close, volume, flow=(quote, trades, taker, taker_quote))

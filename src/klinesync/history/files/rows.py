"""Rows of files in columns, and the rules by which they become candles. Pure: no file is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import MAX_TIME, MAX_VALUE, Candle, check_candle, check_not_future
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Of the bad rows of a file so many are told; all are counted.
MAX_TOLD = 5
# Below each of these a time counts as seconds, milliseconds, microseconds; above, as nanoseconds.
_SECONDS_BELOW, _MILLIS_BELOW, _MICROS_BELOW = 10**11, 10**14, 10**17
# A time that cannot be a candle's.
NO_TIME = -1

# What Candle._make does, without its frame of Python.
_candle = partial(tuple.__new__, Candle)


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a file, in its order: open times in UTC seconds, prices, volume. NaN where a file has nothing. `unread`:
    why cells of its first bad rows cannot be read, by the row's place; it does not go on to parts of these rows."""

    time: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    unread: Mapping[int, str] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.time)

    def values(self) -> tuple[Ints, Floats, Floats, Floats, Floats, Floats]:
        """All columns, in the order of `Candle`."""
        return self.time, self.open, self.high, self.low, self.close, self.volume

    def take(self, rows: Flags | Ints | slice) -> Columns:
        """Those rows."""
        return Columns(
            self.time[rows], self.open[rows], self.high[rows], self.low[rows], self.close[rows], self.volume[rows]
        )

    def candle(self, row: int) -> Candle:
        """One row as it stands, sound or not."""
        time, *values = (column[row].item() for column in self.values())
        return Candle(time, *values)

    def candles(self) -> list[Candle]:
        """All rows as they stand."""
        lists = (column.tolist() for column in self.values())
        return list(map(_candle, zip(*lists, strict=True)))


def seconds(raw: Ints) -> Ints:
    """Times in seconds, milliseconds, microseconds or nanoseconds, each by its size, as seconds; `NO_TIME` for one
    that is no whole second."""
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
    """Times of which `unit` make a second, as seconds; `NO_TIME` for one that is no whole second."""
    whole = raw // unit
    return np.where(whole * unit == raw, whole, NO_TIME)


class OutOfOrder(Exception):
    """A row stands behind a later one: the rows have to be sorted."""


class TooManyRows(Exception):
    """More rows than may be sorted in memory."""


@dataclass(slots=True)
class Judge:
    """Tells sound rows of one series from bad ones, by the rules of `core.candle`.

    Of rows with the same time the first one in the file counts; one that says the same again is left out silently, one
    that says otherwise is bad. `now`: UTC seconds by which a candle must have closed. `bad` counts, and `told` holds
    sentences about the first few.
    """

    timeframe: Timeframe
    now: int
    rows: int = 0
    good: int = 0
    bad: int = 0
    first: int | None = None
    last: int | None = None
    told: list[str] = field(default_factory=list)
    _newest: Candle | None = None

    def sound(self, batch: Columns) -> Columns:
        """The sound rows of the next batch of a file whose rows ascend in time. Raises `OutOfOrder` when one does not;
        then the file is read anew, with `arranged`."""
        rows = self._ascending(*self._fitting(batch))
        if len(rows):
            self._count(rows)
            self._newest = rows.candle(len(rows) - 1)
        return rows

    def newest_open(self, batch: Columns) -> int | None:
        """The newest open time of the sound rows of a batch, whatever their order; None when none is sound."""
        sound, _ = self._fitting(batch)
        return int(sound.time.max()) if len(sound) else None

    def arranged(self, batches: Iterable[Columns], most: int, span: Span | None = None) -> Columns:
        """The sound rows of all batches, whatever their order, ascending. `span`: those that open in it. At most `most`
        are held. Raises `TooManyRows`."""
        parts = [columns([])]
        places = [np.empty(0, np.int64)]
        count = 0
        for batch in batches:
            rows, at = self._fitting(batch)
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
        """A row of the file that could not be read at all."""
        self.rows += 1
        self.bad += 1
        if len(self.told) < MAX_TOLD:
            self.told.append(why)

    def _count(self, rows: Columns) -> None:
        self.good += len(rows)
        self.last = int(rows.time[-1])
        self.first = int(rows.time[0]) if self.first is None else self.first

    def _fitting(self, batch: Columns) -> tuple[Columns, Ints]:
        """The rows of the next batch that are candles by themselves, and their places in the file."""
        at = self.rows
        self.rows += len(batch)
        fits = self._fits(batch)
        if fits.all():
            return batch, np.arange(at, at + len(batch))
        for row in np.flatnonzero(~fits)[: MAX_TOLD - len(self.told)].tolist():
            self._tell(at + row, batch.unread.get(row) or self._why(batch.candle(row)))
        self.bad += int(np.count_nonzero(~fits))
        return batch.take(fits), np.flatnonzero(fits) + at

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
        raise AssertionError(f"{candle} is sound, and was taken for bad")

    def _ascending(self, batch: Columns, places: Ints) -> Columns:
        """What rises above all before it, in this batch and in those before."""
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
        """Of ascending rows the first one of each time."""
        time = batch.time
        rises = np.concatenate((np.ones(min(len(time), 1), np.bool_), time[1:] > time[:-1]))
        if rises.all():
            return batch
        # Each row beside the one of its time that is kept.
        kept = np.maximum.accumulate(np.where(rises, np.arange(len(time)), 0))
        again = np.logical_and.reduce([column == column[kept] for column in batch.values()])
        wrong = np.flatnonzero(~again)
        self.bad += len(wrong)
        for row in wrong[:MAX_TOLD].tolist():
            self._tell(
                int(places[row]),
                f"candle at {date_text(int(time[row]))} refused: it is given twice, with different values",
            )
        return batch.take(rises)

    def _tell(self, row: int, why: str) -> None:
        if len(self.told) < MAX_TOLD:
            self.told.append(f"row {row + 1}: {why}")


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
    """The same rows in batches of `size`; the last one has what is left, and none is empty."""
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
    return Columns(
        time, *(np.concatenate(values) for values in zip(*(part.values()[1:] for part in parts), strict=True))
    )


def columns(candles: Sequence[Candle]) -> Columns:
    """Candles as columns."""
    values = np.array([candle[1:] for candle in candles], np.float64).reshape(len(candles), 5)
    time = np.array([candle.time for candle in candles], np.int64)
    return Columns(time, values[:, 0], values[:, 1], values[:, 2], values[:, 3], values[:, 4])

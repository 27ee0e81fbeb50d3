"""Chunks: runs of closed candles packed column by column, on a fixed grid of open times.

A chunk covers `CHUNK_CANDLES` open times, stored or not, so that the chunk of a candle is computed, not looked up. The
grid of each series is shifted by its number, because otherwise every series would pack a chunk in the same minute.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeAlias, TypeVar

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.timeframe import Timeframe

# Open times of a chunk: 12 KB, three pages. Longer chunks read a little faster, and cost more for each correction and
# each short read.
CHUNK_CANDLES = 256
# Bytes of a packed candle: an open time and five doubles.
CANDLE_BYTES = 48

T = TypeVar("T")
# Turns rows (open time, open, high, low, close, volume) into the results of a read.
Maker: TypeAlias = Callable[[Iterable[Sequence[object]]], list[T]]

_as_candle: Callable[[Iterable[object]], Candle] = partial(tuple.__new__, Candle)


class Grid(NamedTuple):
    """The open times of a chunk: in `[start, end)`, at least `step_s` apart; 0 for a timeframe without a fixed
    length."""

    start: int
    end: int
    step_s: int


def as_candles(rows: Iterable[Sequence[object]]) -> list[Candle]:
    """The rows as candles, in C code: a page has thousands."""
    return list(map(_as_candle, rows))


def pack(candles: Sequence[Candle]) -> bytes:
    """The candles, column by column: open times as 64-bit integers, then five columns of doubles; little-endian."""
    count = len(candles)
    times, *columns = zip(*candles, strict=True)
    return struct.pack(f"<{count}q", *times) + b"".join(struct.pack(f"<{count}d", *column) for column in columns)


def unpack(packed: bytes) -> list[Candle]:
    """The candles that were packed, bit for bit. Raises `ValueError` when the bytes are no whole candles."""
    return unpack_between(packed, 0, MAX_TIME + 1, as_candles)


def unpack_between(packed: bytes, start: int, end: int, make: Maker[T], grid: Grid | None = None) -> list[T]:
    """The packed candles that open in `[start, end)`.

    packed: the bytes of a chunk.
    start, end: open times, `end` exclusive.
    make: turns rows into results.
    grid: the expected open times; None: not checked.

    Raises `ValueError` when the bytes are no whole candles, or the times are not strictly ascending on `grid`.
    """
    count, rest = divmod(len(packed), CANDLE_BYTES)
    if rest or not count:
        raise ValueError(f"{len(packed)} bytes are no whole candles")
    times = struct.unpack_from(f"<{count}q", packed)
    if grid is not None and not _are_on(grid, times):
        raise ValueError("the open times are not those of this chunk, ascending")
    values = struct.unpack_from(f"<{5 * count}d", packed, 8 * count)
    first, last = bisect_left(times, start), bisect_left(times, end)
    columns = (values[column + first : column + last] for column in range(0, 5 * count, count))
    return make(zip(times[first:last], *columns, strict=True))


def _are_on(grid: Grid, times: Sequence[int]) -> bool:
    first, last, step_s = times[0], times[-1], grid.step_s
    if first < grid.start or last >= grid.end:
        return False
    if step_s and last - first == (len(times) - 1) * step_s:
        return times == tuple(range(first, last + step_s, step_s))  # the usual case: no hole
    least_s = step_s or 1
    return all(two - one >= least_s and (two - one) % least_s == 0 for one, two in pairwise(times))


def first_time(packed: bytes) -> int:
    """The first open time of a packed chunk; its first 8 bytes are enough."""
    return int.from_bytes(packed[:8], "little")


def chunk_of(number: int, timeframe: Timeframe, time: int) -> int:
    """The chunk of the candle of `time`, in the series of that number."""
    return (time // timeframe.seconds + number) // CHUNK_CANDLES


def chunk_start(number: int, timeframe: Timeframe, chunk: int) -> int:
    """The first second of a chunk."""
    return (chunk * CHUNK_CANDLES - number) * timeframe.seconds

"""Chunks: runs of closed candles packed column by column, and the grid of times that says which candle is in which.

A chunk covers `CHUNK_CANDLES` open times, whether they are stored or not, so that a candle's chunk is known without
looking. Each series' grid is shifted by its number: else every series would pack in the same minute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe

# 12 KB: three pages. A longer one reads a little faster, and costs each correction and each look at a few candles more.
CHUNK_CANDLES = 256
# An open time and five prices.
CANDLE_BYTES = 48

# Pages are made of thousands: all of it happens in C.
as_candle: Callable[[Iterable[object]], Candle] = partial(tuple.__new__, Candle)


def pack(candles: Sequence[Candle]) -> bytes:
    """The candles, column by column: open times as 64-bit integers, then five columns of doubles; little-endian."""
    count = len(candles)
    times, *columns = zip(*candles, strict=True)
    return struct.pack(f"<{count}q", *times) + b"".join(struct.pack(f"<{count}d", *column) for column in columns)


def unpack(packed: bytes) -> list[Candle]:
    """What `pack` took, bit for bit. Raises `ValueError` when the bytes are no whole candles."""
    count, rest = divmod(len(packed), CANDLE_BYTES)
    if rest:
        raise ValueError(f"{len(packed)} bytes are no whole candles")
    values = struct.unpack(f"<{count}q{5 * count}d", packed)
    columns = (values[first : first + count] for first in range(0, 6 * count, count or 1))
    return list(map(as_candle, zip(*columns, strict=True)))


def chunk_of(number: int, timeframe: Timeframe, time: int) -> int:
    """The chunk of the candle of `time`, in the series of that number."""
    return (time // timeframe.seconds + number) // CHUNK_CANDLES


def chunk_start(number: int, timeframe: Timeframe, chunk: int) -> int:
    """The first second of a chunk."""
    return (chunk * CHUNK_CANDLES - number) * timeframe.seconds

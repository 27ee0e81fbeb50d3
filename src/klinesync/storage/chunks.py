"""Chunks: runs of closed candles packed column by column, on a fixed grid of open times.

A chunk covers `CHUNK_CANDLES` open times, stored or not, so that the chunk of a candle is computed, not looked up. The
grid of each series is shifted by its number, because otherwise every series would pack a chunk in the same minute.

    header    8 bytes: first open time (7 bytes), format (1 byte); last open time (8); candles (2); flags (2);
              checksum (4); all little-endian
    times     only where they are not evenly spaced: seconds after the first, 4 bytes each
    columns   open, high, low, close, volume, and the four of the order flow; each with its length (2 bytes) and its
              kind (1 byte): absent, whole, or with a mask (a bit a candle) of those that are present; then the numbers,
              as pcodec compresses them

The checksum covers all other bytes, and begins with a seed made of the series and the chunk's place: a chunk that lies
where another one belongs is damage too. Chunks of format 0, from before there was a header, are 48 bytes a candle: open
times, then five columns of doubles.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, standalone  # type: ignore[import-untyped]

from klinesync.core.candle import MAX_TIME, NO_FLOW, OHLCV, Candle
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candle_columns import CandleColumns, Floats, Times

# Open times of a chunk: 6 KB. Longer chunks read a little faster, and cost more for each correction and each short
# read.
CHUNK_CANDLES = 256
# First bytes of a chunk that tell its first open time, format and number of candles.
HEADER_BYTES: Final = 24
# The format that is written. Half of its bits differ from format 0: no flipped bit makes one of the other.
FORMAT = 0xA5

_HEADER = struct.Struct("<QqHHI")
_CHECKSUM_BYTES = 4
_COLUMN = struct.Struct("<HB")
_FORMAT_SHIFT = 56
_TIME_MASK = (1 << _FORMAT_SHIFT) - 1
_EVENLY_SPACED = 1
_ABSENT, _WHOLE, _MASKED = 0, 1, 2
# Bytes of a candle in format 0.
_BYTES_OF_FORMAT_0 = 48
# Columns of values behind the open time.
_VALUES = len(Candle._fields) - 1
_TRADES = Candle._fields.index("trades") - 1
# Neighbouring prices are close to each other, volumes are not. The search for the best transform would cost more than
# the compression, and saves 2 % of the bytes.
_PRICES = ChunkConfig(compression_level=1, delta_spec=DeltaSpec.try_consecutive(1))
_VOLUMES = ChunkConfig(compression_level=1, delta_spec=DeltaSpec.no_op())
_CONFIGS = (_PRICES,) * 4 + (_VOLUMES,) * (_VALUES - 4)

T = TypeVar("T")
# Turns rows (the fields of a candle, or its first six) into the results of a read.
Maker: TypeAlias = Callable[[Iterable[Sequence[object]]], list[T]]
# Unpacks columns: from the bytes of a chunk, their place, the number of candles, the part that is wanted, and whether
# all of the columns are.
_ColumnsOf: TypeAlias = Callable[[bytes, int, int, slice, bool], Iterator[Sequence[object]]]

_as_candle: Callable[[Iterable[object]], Candle] = partial(tuple.__new__, Candle)


class Grid(NamedTuple):
    """The open times of a chunk: in `[start, end)`, at least `step_s` apart; 0 for a timeframe without a fixed
    length."""

    start: int
    end: int
    step_s: int


class _Header(NamedTuple):
    first: int
    last: int
    candles: int
    flags: int


def as_candles(rows: Iterable[Sequence[object]]) -> list[Candle]:
    """Rows of all fields as candles, in C code: a page has thousands."""
    return list(map(_as_candle, rows))


def seed_of(series: object, start: int) -> int:
    """The seed of the checksum of the chunk of `series` that begins at `start`, in UTC seconds."""
    return zlib.crc32(f"{series} {start}".encode())


def pack(candles: Sequence[Candle], seed: int) -> bytes:
    """The candles as a chunk.

    candles: 1 to `CHUNK_CANDLES`, ascending.
    seed: see `seed_of`.
    """
    count = len(candles)
    times, *columns = zip(*candles, strict=True)
    first, last = times[0], times[-1]
    evenly = times == tuple(_evenly(first, last, count)) if count > 1 else True
    parts = [] if evenly else [(np.array(times, np.int64) - first).astype("<u4").tobytes()]
    for at, column in enumerate(columns):
        parts += _packed_column(at, column)
    header = _HEADER.pack(first | FORMAT << _FORMAT_SHIFT, last, count, _EVENLY_SPACED if evenly else 0, 0)
    return checked(header + b"".join(parts), seed)


def checked(packed: bytes, seed: int) -> bytes:
    """The bytes with the checksum that belongs to them and to `seed`."""
    body = packed[HEADER_BYTES:]
    summed = packed[: HEADER_BYTES - _CHECKSUM_BYTES]
    return summed + zlib.crc32(body, zlib.crc32(summed, seed)).to_bytes(_CHECKSUM_BYTES, "little") + body


def unpack(packed: bytes, seed: int) -> list[Candle]:
    """The candles that were packed, bit for bit. Raises `ValueError` when the bytes are no chunk."""
    return unpack_between(packed, 0, MAX_TIME + 1, as_candles, seed)


def unpack_between(
    packed: bytes,
    start: int,
    end: int,
    make: Maker[T],
    seed: int,
    grid: Grid | None = None,
    *,
    full: bool = True,
) -> list[T]:
    """The packed candles that open in `[start, end)`.

    packed: the bytes of a chunk.
    start, end: open times, `end` exclusive.
    make: turns rows into results.
    seed: see `seed_of`.
    grid: the expected open times; None: not checked.
    full: whether rows have all fields of a candle, or the first six.

    Raises `ValueError` when the bytes are not as they were written, or the times are not strictly ascending on `grid`.
    """
    times, at, columns_of = _opened(packed, seed, grid)
    part = slice(bisect_left(times, start), bisect_left(times, end))
    return make(zip(times[part], *columns_of(packed, at, len(times), part, full), strict=True))


def unpack_columns(packed: bytes, start: int, end: int, seed: int, grid: Grid | None = None) -> CandleColumns:
    """As `unpack_between`, with all fields, as columns."""
    times, at, _ = _opened(packed, seed, grid)
    part = slice(bisect_left(times, start), bisect_left(times, end))
    count = len(times)
    if format_of(packed) == 0:
        matrix = np.frombuffer(packed, "<f8", 5 * count, at).reshape(5, count)
        columns: list[Floats | None] = [*matrix.astype(np.float64, copy=False), *NO_FLOW]
    else:
        columns = list(_arrays(packed, at, count))
    values = tuple(column[part] for column in columns[: OHLCV - 1] if column is not None)
    flow = columns[OHLCV - 1 :]
    if all(column is None for column in flow):
        return CandleColumns(_as_array(times[part]), values, None)
    unknown = np.full(count, np.nan)
    whole = tuple((unknown if column is None else column)[part] for column in flow)
    return CandleColumns(_as_array(times[part]), values, whole)


def count_of(header: bytes, length: int) -> int:
    """The number of candles of a chunk: from its first `HEADER_BYTES`, and from its length in bytes for format 0."""
    if format_of(header) == 0:
        return length // _BYTES_OF_FORMAT_0
    return int.from_bytes(header[16:18], "little")


def format_of(packed: bytes) -> int:
    """The format of a chunk. Raises `ValueError` when it is not known."""
    number = packed[7] if len(packed) > 7 else -1
    if number not in (0, FORMAT):
        raise ValueError("the bytes are no chunk of a known format")
    return number


def first_time(packed: bytes) -> int:
    """The first open time of a packed chunk; its first 8 bytes are enough."""
    return int.from_bytes(packed[:8], "little") & _TIME_MASK


def chunk_of(number: int, timeframe: Timeframe, time: int) -> int:
    """The chunk of the candle of `time`, in the series of that number."""
    return (time // timeframe.seconds + number) // CHUNK_CANDLES


def chunk_start(number: int, timeframe: Timeframe, chunk: int) -> int:
    """The first second of a chunk."""
    return (chunk * CHUNK_CANDLES - number) * timeframe.seconds


def _opened(packed: bytes, seed: int, grid: Grid | None) -> tuple[Sequence[int], int, _ColumnsOf]:
    """The checked open times of a chunk, the place where its columns begin, and what unpacks these."""
    times: Sequence[int]
    columns_of: _ColumnsOf
    if format_of(packed) == 0:
        count, rest = divmod(len(packed), _BYTES_OF_FORMAT_0)
        if rest or not count:
            raise ValueError(f"{len(packed)} bytes are no whole candles")
        times = struct.unpack_from(f"<{count}q", packed)
        columns_of = _columns_of_format_0
        at = 8 * count
    else:
        header = _checked_header(packed, seed)
        times, at = _times(packed, header)
        columns_of = _columns
    if grid is not None and not _are_on(grid, times):
        raise ValueError("the open times are not those of this chunk, ascending")
    return times, at, columns_of


def _checked_header(packed: bytes, seed: int) -> _Header:
    if len(packed) < HEADER_BYTES:
        raise ValueError(f"{len(packed)} bytes are no chunk")
    tagged, last, candles, flags, checksum = _HEADER.unpack_from(packed)
    header = _Header(tagged & _TIME_MASK, last, candles, flags)
    view = memoryview(packed)
    if checksum != zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: HEADER_BYTES - _CHECKSUM_BYTES], seed)):
        raise ValueError("its checksum is wrong: it is not what was written for this series and time")
    if not header.candles or header.first > header.last:
        raise ValueError("its header has no candles")
    return header


def _evenly(first: int, last: int, count: int) -> range:
    """Open times from `first` to `last`, evenly spaced."""
    return range(first, last + 1, (last - first) // (count - 1) or 1) if count > 1 else range(first, first + 1)


def _times(packed: bytes, header: _Header) -> tuple[Sequence[int], int]:
    """The open times, and where the columns begin."""
    if header.flags & _EVENLY_SPACED:
        times = _evenly(header.first, header.last, header.candles)
        if len(times) != header.candles:
            raise ValueError("its open times are not evenly spaced")
        return times, HEADER_BYTES
    after = np.frombuffer(packed, "<u4", header.candles, HEADER_BYTES).astype(np.int64) + header.first
    return after.tolist(), HEADER_BYTES + 4 * header.candles


def _packed_column(number: int, values: Sequence[float | int | None]) -> list[bytes]:
    mask = b""
    kind = _WHOLE
    numbers = np.array(values, np.float64)  # None becomes NaN; no value of a candle is NaN
    if number >= OHLCV - 1 and (missing := np.isnan(numbers)).any():
        if missing.all():
            return [_COLUMN.pack(0, _ABSENT)]
        mask, kind = np.packbits(~missing).tobytes(), _MASKED
        numbers = numbers[~missing]
    whole = numbers.astype(np.int64) if number == _TRADES else numbers
    packed = standalone.simple_compress(whole, _CONFIGS[number])
    return [_COLUMN.pack(len(mask) + len(packed), kind), mask, packed]


def _columns(packed: bytes, at: int, count: int, part: slice, full: bool) -> Iterator[Sequence[object]]:
    """The columns at `at`, of `count` values each: of the candles in `part`."""
    for kind, column in _packed_columns(packed, at, _VALUES if full else OHLCV - 1):
        if kind == _WHOLE:
            yield _numbers(column, count)[part].tolist()
        elif kind == _ABSENT:
            yield [None] * len(range(count)[part])
        else:
            yield _masked(column, count)[part]


def _arrays(packed: bytes, at: int, count: int) -> Iterator[Floats | None]:
    """All columns at `at`, of `count` values each, NaN where a value is missing; None for a column without any."""
    for kind, column in _packed_columns(packed, at, _VALUES):
        if kind == _WHOLE:
            yield _numbers(column, count).astype(np.float64, copy=False)
        elif kind == _ABSENT:
            yield None
        else:
            present, numbers = _present(column, count)
            values = np.full(count, np.nan)
            values[present] = numbers
            yield values


def _packed_columns(packed: bytes, at: int, most: int) -> Iterator[tuple[int, bytes]]:
    """The kinds and bytes of the first `most` columns."""
    for number in range(most):
        if at + _COLUMN.size > len(packed):
            raise ValueError("a column is missing")
        length, kind = _COLUMN.unpack_from(packed, at)
        at += _COLUMN.size
        if number < OHLCV - 1 and kind != _WHOLE:
            raise ValueError("a price or a volume is missing")
        yield kind, packed[at : at + length]
        at += length


def _columns_of_format_0(packed: bytes, at: int, count: int, part: slice, full: bool) -> Iterator[Sequence[object]]:
    values = struct.unpack_from(f"<{5 * count}d", packed, at)
    for first in range(0, 5 * count, count):
        yield values[first : first + count][part]
    if full:
        for _ in NO_FLOW:
            yield [None] * len(range(count)[part])


def _masked(packed: bytes, count: int) -> list[float | int | None]:
    """A column in which values are missing."""
    present, numbers = _present(packed, count)
    column: list[float | int | None] = [None] * count
    for index, value in zip(np.flatnonzero(present).tolist(), numbers.tolist(), strict=True):
        column[index] = value
    return column


def _present(packed: bytes, count: int) -> tuple[NDArray[np.bool_], Floats]:
    """Which values of a column with a mask are present, and these."""
    bits = (count + 7) // 8
    present = np.unpackbits(np.frombuffer(packed, np.uint8, bits), count=count).astype(bool)
    return present, _numbers(packed[bits:], int(present.sum()))


def _numbers(packed: bytes, count: int) -> Floats:
    try:
        numbers: Floats | None = standalone.simple_decompress(packed)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if numbers is None or len(numbers) != count:
        raise ValueError("a column has another number of values than the chunk has candles")
    return numbers


def _as_array(times: Sequence[int]) -> Times:
    if isinstance(times, range):
        return np.arange(times.start, times.stop, times.step, dtype=np.int64)
    return np.array(times, np.int64)


def _are_on(grid: Grid, times: Sequence[int]) -> bool:
    first, last, step_s = times[0], times[-1], grid.step_s
    if first < grid.start or last >= grid.end:
        return False
    if step_s and last - first == (len(times) - 1) * step_s:
        even = range(first, last + step_s, step_s)  # the usual case: no hole
        return times == even or times == tuple(even)
    least_s = step_s or 1
    return all(two - one >= least_s and (two - one) % least_s == 0 for one, two in pairwise(times))

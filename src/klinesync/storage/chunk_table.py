"""The packed candles of the store: chunks, and what of them cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined
from klinesync.storage.candle_columns import CandleColumns
from klinesync.storage.chunks import (
    CHUNK_CANDLES,
    Grid,
    Maker,
    T,
    as_candles,
    chunk_of,
    chunk_start,
    count_of,
    pack,
    seed_of,
    unpack_between,
    unpack_columns,
)
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.memory import Memory, integer
from klinesync.storage.quarantine import Taken
from klinesync.storage.tables import Tables

# Chunks that are read at a time.
CHUNKS_AT_ONCE = 10

R = TypeVar("R")
# Unpacks the bytes of a chunk, checked by the seed of their checksum and by the grid of their open times.
Unpack: TypeAlias = Callable[[bytes, int, Grid], R]


class ChunkTable:
    """The chunks of all series, within one transaction. What is put is buffered until `save`, or until it is read."""

    def __init__(self, tables: Tables, memory: Memory) -> None:
        self._tables = tables
        self._memory = memory
        self._unsaved: dict[tuple[int, int], bytes] = {}
        # Damage that this transaction has met. The board may have forgotten it meanwhile, by a look at a later state.
        self._met: list[tuple[SeriesId, Span]] = []

    def read(
        self,
        series: SeriesId,
        number: int,
        window: Span,
        make: Maker[T],
        *,
        newest: bool = False,
        strict: bool = True,
        most: int = MAX_TIME,
        full: bool = True,
    ) -> Iterator[list[T]]:
        """The packed candles that open in `window`, chunk by chunk; the newest chunk first where that is asked. Each
        list is ascending, and none is empty. About `most` candles will be wanted, with all their fields or, when not
        `full`, with the first six. A damaged chunk is noted; it raises `StoreDamaged`, or is passed over when not
        `strict`."""

        def unpack(packed: bytes, seed: int, grid: Grid) -> list[T]:
            return unpack_between(packed, *window, make, seed, grid, full=full)

        for rows in self._each(series, number, window, unpack, newest=newest, strict=strict, most=most):
            if rows:
                yield rows

    def columns(self, series: SeriesId, number: int, window: Span, most: int) -> Iterator[CandleColumns]:
        """The packed candles that open in `window`, ascending, chunk by chunk, as columns; none is empty. About `most`
        candles will be wanted. A damaged chunk raises `StoreDamaged`."""

        def unpack(packed: bytes, seed: int, grid: Grid) -> CandleColumns:
            return unpack_columns(packed, *window, seed, grid)

        for columns in self._each(series, number, window, unpack, newest=False, strict=True, most=most):
            if len(columns.time):
                yield columns

    def _each(
        self,
        series: SeriesId,
        number: int,
        window: Span,
        unpack: Unpack[R],
        *,
        newest: bool,
        strict: bool,
        most: int,
    ) -> Iterator[R]:
        """What `unpack` makes of each stored chunk that touches `window`."""
        first = chunk_of(number, series.timeframe, max(window.start, 0))
        last = chunk_of(number, series.timeframe, min(max(window.end - 1, 0), MAX_TIME))
        # So many candles may lie in one chunk more than they fill.
        at_once = min(CHUNKS_AT_ONCE, most // CHUNK_CANDLES + 2, last - first + 1)
        if any(whose == number and first <= chunk <= last for whose, chunk in self._unsaved):
            self.save()
        stored = self._stored(series, number, first, last, at_once, newest=newest, strict=strict, start=window.start)
        for chunk, packed in stored:
            try:
                unpacked = self._unpacked(series, number, chunk, packed, unpack)
            except ValueError as error:
                needed = self._reaches_packed(number, window.start)
                self._note(series, number, chunk, chunk, str(error), strict=strict and needed)
                continue
            if self._memory.damage:
                self._memory.damage.clear(series, Kept.CANDLES, self.span(series, number, chunk))
            yield unpacked

    def one(self, series: SeriesId, number: int, chunk: int, *, strict: bool = True) -> list[Candle]:
        """The candles of one chunk; none when there is no such chunk. Raises `StoreDamaged`."""
        window = self.span(series, number, chunk)
        return [one for few in self.read(series, number, window, as_candles, strict=strict, most=0) for one in few]

    def count(self, number: int, first: int, most: int) -> int:
        """How many candles lie in the chunks from `first` on, counted up to `most` or a little further."""
        self.save()
        candles = 0
        while candles < most:
            at_once = min(CHUNKS_AT_ONCE, most // CHUNK_CANDLES + 1)
            headers = self._tables.headers_of_chunks(number, first, at_once)
            candles += sum(_count(header, length) for _, header, length in headers)
            if len(headers) < at_once:
                break
            first = integer(headers[-1][0]) + 1
        return candles

    def repack(self, series: SeriesId, number: int, first: int, most: int) -> int | None:
        """Pack those of an earlier format anew among the first `most` chunks from `first` on. Damaged ones stay as they
        are, and are noted. Returns the chunk to go on from; None: these were the last ones."""
        headers = self._tables.headers_of_chunks(number, first, most)
        for chunk, header, _ in headers:
            if _is_of_format_0(header):
                candles = self.one(series, number, integer(chunk), strict=False)
                if candles:
                    self.put(series, number, integer(chunk), candles)
        return integer(headers[-1][0]) + 1 if len(headers) == most else None

    def take_damaged(self, series: SeriesId, number: int, window: Span) -> list[Taken]:
        """Delete the damaged chunks that `window` touches, and return what was in them. A chunk that can be read stays.
        Raises `StoreDamaged` where a part of the store itself cannot be read."""
        self.save()
        first = chunk_of(number, series.timeframe, max(window.start, 0))
        last = chunk_of(number, series.timeframe, min(max(window.end - 1, 0), MAX_TIME))
        taken: list[Taken] = []
        for chunk, packed in self._stored(series, number, first, last, CHUNKS_AT_ONCE, newest=False, strict=True):
            span = self.span(series, number, chunk)
            try:
                self._unpacked(series, number, chunk, packed, _whole)
            except ValueError as error:
                found = packed if isinstance(packed, bytes) else str(packed).encode()
                taken.append(Taken(self._packed_part(series, number, span), found, str(error)))
                self._tables.delete_chunks(number, chunk, chunk + 1)
        return taken

    def put(self, series: SeriesId, number: int, chunk: int, candles: Sequence[Candle]) -> None:
        """Store a chunk in place of what is there; without candles there is none."""
        if candles:
            self._unsaved[number, chunk] = pack(candles, seed_of(series, self.span(series, number, chunk).start))
        else:
            self._unsaved.pop((number, chunk), None)
            self._tables.delete_chunks(number, chunk, chunk + 1)

    def delete_before(self, number: int, chunk: int) -> None:
        """Delete the chunks before `chunk`."""
        self.save()
        self._tables.delete_chunks(number, 0, chunk)

    def save(self) -> None:
        """Write what is buffered."""
        if self._unsaved:
            rows = [(number, chunk, packed) for (number, chunk), packed in self._unsaved.items()]
            self._unsaved.clear()
            self._tables.put_chunks(rows)

    def drop(self) -> None:
        """What is buffered is rolled back."""
        self._unsaved.clear()

    def span(self, series: SeriesId, number: int, chunk: int) -> Span:
        """The open times of a chunk."""
        frame = series.timeframe
        start, end = chunk_start(number, frame, chunk), chunk_start(number, frame, chunk + 1)
        return Span(max(start, 0), min(end, MAX_TIME + 1))

    def damaged(self, series: SeriesId) -> list[Span]:
        """The spans of the series that are known to be unreadable, ascending."""
        met = [span for whose, span in self._met if whose == series]
        return joined([*self._memory.damage.spans(series), *met])

    def _unpacked(self, series: SeriesId, number: int, chunk: int, packed: object, unpack: Unpack[R]) -> R:
        """What `unpack` makes of a stored chunk. Raises `ValueError` for a damaged one."""
        if not isinstance(packed, bytes):  # another program wrote it
            raise ValueError("it is no bytes")  # noqa: TRY004  # as any other damage
        grid = self._grid(series, number, chunk)
        return unpack(packed, seed_of(series, grid.start), grid)

    def _stored(
        self,
        series: SeriesId,
        number: int,
        first: int,
        last: int,
        at_once: int,
        *,
        newest: bool,
        strict: bool,
        start: int = 0,
    ) -> Iterator[tuple[int, object]]:
        """The chunks from `first` to `last` (inclusive) as they are stored, `at_once` a question. Parts of the store
        that cannot be read are damage of the chunks that lie in them, if candles from `start` on may be packed there.
        """
        while first <= last:
            try:
                found = self._tables.chunks(number, first, last, at_once, newest=newest)
            except self._tables.unreadable as error:
                # What met such a part of the store cannot be committed.
                needed = self._reaches_packed(number, start)
                told = (strict and needed) or self._memory.writes
                bad = self._next(number, first, last, newest=newest)
                if bad is None:
                    if not needed and told:
                        raise self._memory.unreadable(series, error) from error
                    if not needed:
                        return
                    self._note(series, number, first, last, str(error), strict=told)
                    return
                try:
                    found = self._tables.chunks(number, bad, bad, 1, newest=newest)
                except self._tables.unreadable as reason:
                    self._note(series, number, bad, bad, str(reason), strict=told)
                    found = []
                at_once = 1
                first, last = (first, bad - 1) if newest else (bad + 1, last)
                yield from found
                continue
            yield from found
            if len(found) < at_once:
                return
            chunk = found[-1][0]
            first, last = (first, chunk - 1) if newest else (chunk + 1, last)

    def _next(self, number: int, first: int, last: int, *, newest: bool) -> int | None:
        """The next stored chunk, without reading what is in it; None when even that cannot be read."""
        try:
            found = self._tables.next_chunk(number, first, last, newest=newest)
        except self._tables.unreadable:
            return None
        return found if isinstance(found, int) else None

    def _note(self, series: SeriesId, number: int, first: int, last: int, why: str, *, strict: bool) -> None:
        chunks = Span(self.span(series, number, first).start, self.span(series, number, last).end)
        span = self._packed_part(series, number, chunks)
        damage = Damage(series, span, f"the stored candles cannot be read: {why}")
        self._memory.damage.note(damage)
        self._met.append((series, span))
        if strict:
            raise StoreDamaged(damage)

    def _reaches_packed(self, number: int, start: int) -> bool:
        """Whether candles from `start` on may be packed. Nothing packed lies in a window of rows, though the newest
        chunk may reach into it."""
        return start < self._first_row(number)

    def _packed_part(self, series: SeriesId, number: int, chunks: Span) -> Span:
        """The open times of chunks, on the grid, whose candles may be packed: those before the first row. Of chunks
        behind it, which only a damaged store has, all of them: what is in them is not known."""
        frame, first_row = series.timeframe, self._first_row(number)
        start, end = frame.ceil(chunks.start), frame.ceil(chunks.end)
        return Span(start, min(end, first_row) if first_row > start else end)

    def _first_row(self, number: int) -> int:
        """The open time of the first row: from there on no candle is packed, although the last chunk may reach
        further."""
        try:
            found = self._tables.oldest_candle(number)
        except self._tables.unreadable:
            found = None
        return found if isinstance(found, int) else MAX_TIME + 1

    def _grid(self, series: SeriesId, number: int, chunk: int) -> Grid:
        span = self.span(series, number, chunk)
        return Grid(span.start, span.end, series.timeframe.step_s)


def _whole(packed: bytes, seed: int, grid: Grid) -> CandleColumns:
    return unpack_columns(packed, 0, MAX_TIME + 1, seed, grid)


def _is_of_format_0(header: object) -> bool:
    return isinstance(header, bytes) and header[7:8] == b"\0"


def _count(header: object, length: object) -> int:
    """The number of candles of a chunk; 0 of one that is damaged."""
    try:
        return count_of(header, integer(length)) if isinstance(header, bytes) else 0
    except ValueError:
        return 0

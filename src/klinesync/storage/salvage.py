"""Reads what can be read of a damaged SQLite store, around the pages that cannot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apsw

from klinesync.core.candle import Candle, check_candle
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.storage import page_checksums
from klinesync.storage.chunks import Grid, as_candles, chunk_start, seed_of, unpack_between
from klinesync.storage.damage import OddValue
from klinesync.storage.disk import UNREADABLE, bad_page
from klinesync.storage.memory import integer, series_of
from klinesync.storage.quarantine import Taken
from klinesync.storage.sqlite_schema import APPLICATION_ID, migrations
from klinesync.storage.tables import Row, Values

# Rows of a read. A smaller part is read where one fails.
ROWS_AT_ONCE = 500
# Most reads of a table that fail: behind a page of the tree's upper levels every read does.
MAX_FAILURES = 2000
# The size of a page of each store that was ever made.
PAGE_BYTES = 4096
# Pages behind the first one that tell whether pages have checksums, where the header does not.
SAMPLED_PAGES = 200
_CHUNKS = 1 << 32
_FIELDS = ", ".join(Candle._fields)

# Reads the rows of keys in `[low, high)`, ascending or descending; the first value of a row is its key.
Select = Callable[[int, int, bool], Sequence[Row]]


class StoredSeries:
    """A series of the damaged store.

    number, series: as stored.
    base: number of its base; None: it is not derived.
    origin: see `DerivationOrigin`.
    first: its recorded first open time; None: not recorded.
    """

    def __init__(self, row: Row) -> None:
        """Raises `OddValue`."""
        number, name, base, origin, first = row
        self.number, self.series = integer(number), series_of(name)
        self.base = None if base is None else integer(base)
        self.origin = integer(origin)
        self.first = None if first is None else integer(first)


class Salvage:
    """What can be read of a store.

    connection: to a copy of the store that no other connection uses.
    errors: parts that could not be read, as sentences for people.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.errors: list[str] = []

    def series(self) -> list[StoredSeries]:
        """The series, by number."""
        series: list[StoredSeries] = []
        columns = "series_no, series_id, derived_from, origin, first_time"
        for row in self._rows("series", columns, "series_no", 1, 1 << 31):
            try:
                series.append(StoredSeries(row))
            except OddValue as error:
                self.errors.append(f"the series of number {row[0]}: {error}")
        return sorted(series, key=lambda stored: stored.number)

    def chunks(self, number: int, series: SeriesId) -> Iterator[list[Candle] | Taken]:
        """The packed candles of a series, chunk by chunk, ascending; a damaged chunk as its bytes. Chunks have
        checksums of their own: pages that fail theirs are read too."""
        self._connection.execute("PRAGMA checksum_verification = OFF").fetchall()
        try:
            base = number << 32
            rows = list(self._rows("candle_chunk", "chunk_id", "chunk_id", base, base + _CHUNKS))
            for chunk in sorted(integer(row[0]) - base for row in rows):
                yield self._chunk(number, series, chunk)
        finally:
            self._connection.execute("PRAGMA checksum_verification = ON").fetchall()

    def _chunk(self, number: int, series: SeriesId, chunk: int) -> list[Candle] | Taken:
        frame, packed = series.timeframe, b""
        start, end = (max(chunk_start(number, frame, number_of_chunk), 0) for number_of_chunk in (chunk, chunk + 1))
        try:
            (content,) = self._run("SELECT candles FROM candle_chunk WHERE chunk_id = ?", ((number << 32) + chunk,))[0]
            packed = content if isinstance(content, bytes) else str(content).encode()
            grid = Grid(start, end, frame.step_s)
            candles = unpack_between(packed, start, end, as_candles, seed_of(series, start), grid)
            for candle in candles:
                check_candle(candle, frame)
        except (apsw.Error, *UNREADABLE, ValueError, BadCandle) as error:
            self.errors.append(f"{series}: packed candles from {start} to {end}: {error}")
            return Taken(Span(frame.ceil(start), frame.ceil(end)), packed, str(error))
        return candles

    def candles(self, number: int, series: SeriesId) -> list[Candle]:
        """The newest candles of a series, which are rows, ascending."""
        by_time: dict[int, Candle] = {}
        for row in self._rows("candle", _FIELDS, "time", 0, 1 << 40, number, least=16 * series.timeframe.seconds):
            try:
                candle = Candle(*row)  # type: ignore[arg-type]  # checked next
                check_candle(candle, series.timeframe)
            except (BadCandle, TypeError, ValueError) as error:
                self.errors.append(f"{series}: a stored candle: {error}")
            else:
                by_time[candle.time] = candle
        return [candle for _, candle in sorted(by_time.items())]

    def whole(self, table: str, columns: str, where: str = "", values: Values = ()) -> list[Row] | None:
        """The rows of a part of a table; None when not all of them can be read."""
        try:
            return self._run(f"SELECT {columns} FROM {table} {where}", values)  # noqa: S608  # our words
        except (apsw.Error, *UNREADABLE) as error:
            self.errors.append(f"the table {table}: {error}")
            return None

    def _rows(
        self, table: str, columns: str, key: str, low: int, high: int, number: int | None = None, *, least: int = 1
    ) -> Iterator[Row]:
        """The rows whose `key` lies in `[low, high)`, in any order. `number`: of the series, where the table has those
        of several. `least`: the shortest span of keys that is halved around a row that cannot be read."""
        of = "" if number is None else f"series_no = {number} AND "

        def select(start: int, end: int, descending: bool) -> Sequence[Row]:
            order = "DESC" if descending else "ASC"
            return self._run(
                f"SELECT {columns} FROM {table} WHERE {of}{key} >= ? AND {key} < ?"  # noqa: S608  # our words
                f" ORDER BY {key} {order} LIMIT {ROWS_AT_ONCE}",
                (start, end),
            )

        yield from around_errors(select, low, high, least, lambda error: self.errors.append(f"table {table}: {error}"))

    def _run(self, statement: str, values: Values) -> list[Row]:
        return list(self._connection.execute(statement, values).fetchall())


def around_errors(select: Select, low: int, high: int, least: int, tell: Callable[[Exception], None]) -> Iterator[Row]:
    """The rows of keys in `[low, high)` that `select` can read, in any order: up to an error from both ends; then what
    lies between is halved.

    select: reads rows; raises where it meets a page that it cannot read.
    low, high: keys.
    least: the shortest span of keys that is halved.
    tell: called with the first error.
    """
    failures = 0
    pending = deque([(low, high)])
    while pending and failures < MAX_FAILURES:
        start, end = pending.popleft()  # the widest first
        failed = False
        for descending in (False, True):
            while start < end:
                try:
                    rows = select(start, end, descending)
                except (apsw.Error, *UNREADABLE) as error:
                    failed = True
                    failures += 1
                    if failures == 1:
                        tell(bad_page(error) or error)
                    break
                yield from rows
                if len(rows) < ROWS_AT_ONCE:
                    start = end
                elif descending:
                    end = integer(rows[-1][0])
                else:
                    start = integer(rows[-1][0]) + 1
            if not failed:
                break
        if end - start > least:
            middle = (start + end) // 2
            pending += [(start, middle), (middle, end)]


def mend_header(path: Path) -> bool:
    """Write the header of a store's file anew, as far as it is the same in each store, and the checksum of its page.
    Returns whether the first page was damaged. Raises `OSError`."""
    with path.open("r+b") as file:
        page = bytearray(file.read(PAGE_BYTES))
        if len(page) < PAGE_BYTES:
            return True
        before = bytes(page)
        size = path.stat().st_size
        page[0:16] = b"SQLite format 3\0"
        page[16:18] = PAGE_BYTES.to_bytes(2)
        page[18:20] = b"\x02\x02"  # with a write-ahead log
        page[20] = page_checksums.RESERVED_BYTES if _has_checksums(file.fileno(), before) else 0
        page[21:24] = b"\x40\x20\x20"
        page[44:48] = (4).to_bytes(4)  # format of the schema
        page[52:56] = bytes(4)  # no automatic vacuum
        page[56:60] = (1).to_bytes(4)  # UTF-8
        page[64:68] = bytes(4)
        version = int.from_bytes(page[60:64])
        if not 0 < version <= len(migrations()):
            page[60:64] = len(migrations()).to_bytes(4)
        page[68:72] = APPLICATION_ID.to_bytes(4)
        if page[20]:
            page[-page_checksums.RESERVED_BYTES :] = page_checksums.checksum(bytes(page))
        damaged = bytes(page) != before
        # In a store with a write-ahead log the log may tell another number of pages.
        if int.from_bytes(page[28:32]) * PAGE_BYTES != size:
            page[28:32] = (size // PAGE_BYTES).to_bytes(4)
            page[92:96] = page[24:28]
        if page[20]:
            page[-page_checksums.RESERVED_BYTES :] = page_checksums.checksum(bytes(page))
        file.seek(0)
        file.write(page)
        return damaged


def _has_checksums(file: int, first_page: bytes) -> bool:
    """Whether the pages have checksums: by the first page where it is sound, by the next pages otherwise."""
    if first_page[20] == page_checksums.RESERVED_BYTES and page_checksums.checksum(first_page) == first_page[-8:]:
        return True
    bad, count = page_checksums.bad_pages(file, PAGE_BYTES, 2, SAMPLED_PAGES)
    return count > 0 and len(bad) * 2 < count

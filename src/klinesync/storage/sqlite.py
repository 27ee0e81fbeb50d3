"""The SQLite store: one writer thread, one transaction a batch, WAL, a pool of reader threads.

Candles are read and written through `CandleStore` alone, so that another layout can take its place.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import apsw

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId

R = TypeVar("R")

READER_THREADS = 2
BUSY_TIMEOUT_MS = 5000
# 16 MB of write-ahead log between checkpoints, so that a minute's end seldom pays for one.
WAL_AUTOCHECKPOINT_PAGES = 4000
CACHE_KIB = 65_536


class CandleStore:
    """Closed candles of all series, on one database connection; writes only inside `SqliteDatabase.write`."""

    def __init__(self, connection: apsw.Connection, numbers: dict[SeriesId, int]) -> None:
        self._connection = connection
        self._numbers = numbers

    def head(self, series: SeriesId) -> int | None:
        """The newest stored open time; None when nothing is stored."""
        return self._edge("max", series)

    def first(self, series: SeriesId) -> int | None:
        """The oldest stored open time; None when nothing is stored."""
        return self._edge("min", series)

    def newest(
        self, series: SeriesId, limit: int, *, before: int | None = None, after: int | None = None
    ) -> list[Candle]:
        """The newest `limit` candles between `after` and `before` (both exclusive), ascending."""
        rows = self._rows(series, after, before, "DESC", limit)
        rows.reverse()
        return rows

    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        """The oldest `limit` candles after `since` (exclusive), ascending."""
        return self._rows(series, since, None, "ASC", limit)

    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        """How many candles follow `since`, counted up to `most`."""
        number = self._number(series)
        if number is None:
            return 0
        found = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM candle WHERE series_no = ? AND time > ? LIMIT ?)",
            (number, since, most),
        ).get
        assert isinstance(found, int)
        return found

    def write(self, series: SeriesId, candles: Sequence[Candle]) -> Applied:
        """Store closed candles, in any order; of two with one time the later one in `candles` counts.

        Writing what is stored already changes nothing and is not reported.
        """
        ascending = [by_time for _, by_time in sorted({candle.time: candle for candle in candles}.items())]
        if not ascending:
            return Applied(series, (), frozenset())
        number = self._number(series)
        if number is None:
            self._connection.execute("INSERT INTO series (series_id) VALUES (?)", (str(series),))
            number = self._numbers[series] = self._connection.last_insert_rowid()
        head = self.head(series)
        revised: frozenset[int] = frozenset()
        if head is not None and ascending[0].time <= head:
            stored = dict.fromkeys(self._between(number, ascending[0].time, ascending[-1].time))
            ascending = [candle for candle in ascending if candle not in stored]
            revised = frozenset(candle.time for candle in ascending if candle.time <= head)
        self._connection.executemany(
            "INSERT INTO candle VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " open = excluded.open, high = excluded.high, low = excluded.low,"
            " close = excluded.close, volume = excluded.volume",
            [(number, *candle) for candle in ascending],
        )
        return Applied(series, tuple(ascending), revised)

    def _between(self, number: int, first: int, last: int) -> Iterable[Candle]:
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume FROM candle WHERE series_no = ? AND time BETWEEN ? AND ?",
            (number, first, last),
        )
        return map(_as_candle, found)

    def _rows(self, series: SeriesId, after: int | None, before: int | None, order: str, limit: int) -> list[Candle]:
        number = self._number(series)
        if number is None:
            return []
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume FROM candle"  # noqa: S608  # only our own word is joined in
            f" WHERE series_no = ? AND time > ? AND time < ? ORDER BY time {order} LIMIT ?",
            (number, -1 if after is None else after, MAX_TIME + 1 if before is None else before, limit),
        )
        return [_as_candle(row) for row in found]

    def _edge(self, function: str, series: SeriesId) -> int | None:
        number = self._number(series)
        if number is None:
            return None
        edge = self._connection.execute(
            f"SELECT {function}(time) FROM candle WHERE series_no = ?",  # noqa: S608  # only our own word is joined in
            (number,),
        ).get
        assert edge is None or isinstance(edge, int)
        return edge

    def _number(self, series: SeriesId) -> int | None:
        number = self._numbers.get(series)
        if number is None:
            found = self._connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(series),)).get
            if found is not None:
                assert isinstance(found, int)
                number = self._numbers[series] = found
        return number


class SqliteDatabase:
    """One SQLite file. `async with` opens it, brings its schema up to date, and closes it.

    `write(fn)` runs `fn(CandleStore)` in a transaction on the one writer thread and returns after the commit is
    durable; `read(fn)` runs on a reader thread and sees the newest commit. `fn` must not keep the store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_threads = ThreadPoolExecutor(READER_THREADS, "store-reader")
        self._reader_local = threading.local()
        self._readers: list[apsw.Connection] = []
        self._writer: apsw.Connection | None = None
        self._writer_numbers: dict[SeriesId, int] = {}

    async def __aenter__(self) -> SqliteDatabase:
        await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._open_writer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """What `change` returns, after the commit. When it raises, or the commit does, nothing was changed."""
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._write, change)

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """What `look` returns, of one consistent state."""
        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, self._read, look)

    def _open_writer(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer = apsw.Connection(str(self.path))
            writer.set_busy_timeout(BUSY_TIMEOUT_MS)
            writer.execute("PRAGMA journal_mode = WAL")
            # FULL: what was published as closed survives a power loss too, not only kill -9.
            writer.execute("PRAGMA synchronous = FULL")
            writer.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
            writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            _migrate(writer, self.path)
        except (apsw.Error, OSError) as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error
        self._writer = writer

    def _write(self, change: Callable[[CandleStore], R]) -> R:
        assert self._writer is not None, "the store is open"
        known = len(self._writer_numbers)
        try:
            # IMMEDIATE, because a transaction that begins by reading cannot become a writing one under contention.
            self._writer.execute("BEGIN IMMEDIATE")
            result = change(CandleStore(self._writer, self._writer_numbers))
            self._writer.execute("COMMIT")
        except BaseException as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if len(self._writer_numbers) != known:
                self._writer_numbers.clear()
            if isinstance(error, apsw.Error):
                raise StoreError(f"the store {self.path} cannot be written: {error}") from error
            raise
        return result

    def _read(self, look: Callable[[CandleStore], R]) -> R:
        try:
            reader: apsw.Connection | None = getattr(self._reader_local, "connection", None)
            if reader is None:
                reader = self._reader_local.connection = self._open_reader()
            reader.execute("BEGIN")  # one snapshot for all statements of `look`
            try:
                return look(CandleStore(reader, self._reader_local.numbers))
            finally:
                reader.execute("ROLLBACK")
        except apsw.Error as error:
            raise StoreError(f"the store {self.path} cannot be read: {error}") from error

    def _open_reader(self) -> apsw.Connection:
        reader = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        reader.set_busy_timeout(BUSY_TIMEOUT_MS)
        self._readers.append(reader)
        self._reader_local.numbers = {}
        return reader

    def _close(self) -> None:
        self._writer_thread.shutdown()
        self._reader_threads.shutdown()
        for connection in (*self._readers, self._writer):
            if connection is not None:
                connection.close()


def _as_candle(row: Sequence[object]) -> Candle:
    return Candle._make(row)


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the schema up to the newest version, one numbered script a transaction."""
    scripts = sorted(
        (item for item in resources.files("klinesync.storage.migrations").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )
    version = connection.execute("PRAGMA user_version").get
    assert isinstance(version, int)
    if version > len(scripts):
        raise StoreError(
            f"the store {path} has schema version {version}, and this klinesync knows {len(scripts)}: "
            "it was written by a newer klinesync; use that one"
        )
    for number, script in enumerate(scripts[version:], version + 1):
        with connection:
            connection.execute(script.read_text())
            connection.execute(f"PRAGMA user_version = {number}")

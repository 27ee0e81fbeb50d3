"""The SQLite store: one transaction a batch, WAL, readers beside the writer.

Candles are read and written through `CandleStore` alone, so that another layout can take its place.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Gap, GapChange, GapState, Span, runs
from klinesync.core.series_id import SeriesId
from klinesync.storage.database import CandleStore, Origin, R, Revision
from klinesync.storage.lock import StoreLock

READER_THREADS = 2
BUSY_TIMEOUT_MS = 5000
# 16 MB of write-ahead log between checkpoints, so that a minute's end seldom pays for one.
WAL_AUTOCHECKPOINT_PAGES = 4000
CACHE_KIB = 65_536
# As much as a batch of some hundred candles takes: where there is room for less, the store cannot be written.
PROBE_BYTES = 65_536


class Known:
    """What a connection remembers of the store, so as not to ask for it a thousand times a minute.

    The numbers of series never change. The edges (first and newest open time) and which series have no gap are facts of
    the one writer: it alone may remember them, and it forgets them when a transaction is rolled back.
    """

    def __init__(self, *, writes: bool) -> None:
        self.writes = writes
        self.numbers: dict[SeriesId, int] = {}
        self.edges: dict[SeriesId, tuple[int, int]] = {}
        self.gapless: set[SeriesId] = set()

    def forget(self) -> None:
        self.numbers.clear()
        self.edges.clear()
        self.gapless.clear()


class SqliteCandleStore:
    """`CandleStore` on one connection, in one transaction; `commit` is its number where that is known."""

    def __init__(self, connection: apsw.Connection, known: Known, commit: int | None = None) -> None:
        self._connection = connection
        self._known = known
        self._commit = commit

    def head(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges[1]

    def first(self, series: SeriesId) -> int | None:
        edges = self._edges(series)
        return None if edges is None else edges[0]

    def newest(
        self, series: SeriesId, limit: int, *, before: int | None = None, after: int | None = None
    ) -> list[Candle]:
        rows = self._rows(series, after, before, "DESC", limit)
        rows.reverse()
        return rows

    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        return self._rows(series, since, None, "ASC", limit)

    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        number = self._number(series)
        if number is None:
            return 0
        found = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM candle WHERE series_no = ? AND time > ? LIMIT ?)",
            (number, since, most),
        ).get
        assert isinstance(found, int)
        return found

    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        number = self._number(series)
        return [] if number is None else list(self._between(number, start, end))

    def span(self, series: SeriesId) -> Span | None:
        edges = self._edges(series)
        return None if edges is None else Span(edges[0], series.timeframe.next(edges[1]))

    def commit(self) -> int:
        if self._commit is None:
            found = self._connection.execute("SELECT commits FROM commit_count").get
            assert isinstance(found, int)
            self._commit = found
        return self._commit

    def series(self) -> list[SeriesId]:
        found = self._connection.execute("SELECT series_id FROM series ORDER BY series_no")
        return [SeriesId.parse(str(text)) for (text,) in found]

    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        number = self._number(series)
        found = self._connection.execute("SELECT series_id FROM series WHERE derived_from = ?", (number,))
        return [SeriesId.parse(str(text)) for (text,) in found]

    def gaps(self, series: SeriesId, window: Span | None = None) -> list[Gap]:
        if series in self._known.gapless:
            return []
        number = self._number(series)
        if number is None:
            return []
        start, end = window or (-1, MAX_TIME + 1)
        found = self._connection.execute(
            "SELECT start_time, end_time, state, proof, confirmed_at FROM gap"
            " WHERE series_no = ? AND start_time <= ? AND end_time >= ? ORDER BY start_time",
            (number, end, start),
        )
        gaps = [_as_gap(row) for row in found]
        if not gaps and self._known.writes:
            any_gap = self._connection.execute("SELECT 1 FROM gap WHERE series_no = ? LIMIT 1", (number,)).get
            if any_gap is None:
                self._known.gapless.add(series)
        return gaps

    def revisions(self, series: SeriesId) -> list[Revision]:
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume, revised_at, source FROM candle_revision"
            " WHERE series_no = ? ORDER BY revision_no",
            (self._number(series),),
        )
        return [_as_revision(row) for row in found]

    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        ascending = [by_time for _, by_time in sorted({candle.time: candle for candle in candles}.items())]
        if not ascending:
            return Applied(series, (), frozenset(), commit=self.commit())
        number = self._number(series)
        if number is None:
            number = self._add_series(series, origin)
        edges = self._edges(series)
        head = None if edges is None else edges[1]
        revised: frozenset[int] = frozenset()
        if head is not None and ascending[0].time <= head:
            # By runs: a batch may hold candles that lie years apart.
            times = [candle.time for candle in ascending]
            stored = {row.time: row for span in runs(series.timeframe, times) for row in self._between(number, *span)}
            ascending = [candle for candle in ascending if stored.get(candle.time) != candle]
            revised = frozenset(candle.time for candle in ascending if candle.time <= head)
            self._connection.executemany(
                "INSERT INTO candle_revision (series_no, time, open, high, low, close, volume, revised_at, source)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, *stored[candle.time], origin.at, origin.source)
                    for candle in ascending
                    if candle.time in stored
                ],
            )
        self._connection.executemany(
            "INSERT INTO candle VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " open = excluded.open, high = excluded.high, low = excluded.low,"
            " close = excluded.close, volume = excluded.volume",
            [(number, *candle) for candle in ascending],
        )
        if ascending:
            first, last = ascending[0].time, ascending[-1].time
            self._known.edges[series] = (first, last) if edges is None else (min(edges[0], first), max(edges[1], last))
        return Applied(series, tuple(ascending), revised, commit=self.commit())

    def trim(self, series: SeriesId, before: int) -> None:
        number = self._number(series)
        self._known.edges.pop(series, None)
        for table in ("candle", "candle_revision"):
            self._connection.execute(
                f"DELETE FROM {table} WHERE series_no = ? AND time < ?",  # noqa: S608  # only our own word is joined in
                (number, before),
            )

    def savepoint(self) -> AbstractContextManager[object]:
        return self._connection  # apsw makes a block of a connection a savepoint

    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        if not change:
            return
        number = self._number(series)
        self._known.gapless.discard(series)
        self._connection.executemany(
            "DELETE FROM gap WHERE series_no = ? AND start_time = ?", [(number, gap.start) for gap in change.delete]
        )
        self._connection.executemany(
            "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?)",
            [(number, gap.start, gap.end, str(gap.state), gap.proof, gap.time) for gap in change.insert],
        )

    def _add_series(self, series: SeriesId, origin: Origin) -> int:
        base = None if origin.base is None else self._number(origin.base)
        self._connection.execute("INSERT INTO series (series_id, derived_from) VALUES (?, ?)", (str(series), base))
        number = self._known.numbers[series] = self._connection.last_insert_rowid()
        return number

    def _between(self, number: int, start: int, end: int) -> Iterable[Candle]:
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume FROM candle WHERE series_no = ? AND time >= ? AND time < ?",
            (number, start, end),
        )
        return map(_candle, found)

    def _rows(self, series: SeriesId, after: int | None, before: int | None, order: str, limit: int) -> list[Candle]:
        number = self._number(series)
        if number is None:
            return []
        found = self._connection.execute(
            "SELECT time, open, high, low, close, volume FROM candle"  # noqa: S608  # only our own word is joined in
            f" WHERE series_no = ? AND time > ? AND time < ? ORDER BY time {order} LIMIT ?",
            (number, -1 if after is None else after, MAX_TIME + 1 if before is None else before, limit),
        )
        return list(map(_candle, found))

    def _edges(self, series: SeriesId) -> tuple[int, int] | None:
        """The oldest and the newest stored open time."""
        edges = self._known.edges.get(series)
        if edges is None:
            number = self._number(series)
            if number is None:
                return None
            # Two sub-selects, because only a lone min or max is a look at one end of the index.
            found = self._connection.execute(
                "SELECT (SELECT min(time) FROM candle WHERE series_no = ?1),"
                " (SELECT max(time) FROM candle WHERE series_no = ?1)",
                (number,),
            ).get
            assert isinstance(found, tuple)
            first, head = found
            if first is None:
                return None
            edges = int(first), int(head)
            if self._known.writes:
                self._known.edges[series] = edges
        return edges

    def _number(self, series: SeriesId) -> int | None:
        number = self._known.numbers.get(series)
        if number is None:
            found = self._connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(series),)).get
            if found is not None:
                assert isinstance(found, int)
                number = self._known.numbers[series] = found
        return number


class _File:
    """One SQLite file: a writing connection, and reading ones. Each is used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write_error: StoreError | None = None
        self._writer: apsw.Connection | None = None
        self._known = Known(writes=True)

    def open(self) -> None:
        try:
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

    def open_reader(self) -> apsw.Connection:
        return _open_reader(self.path)

    def write(self, change: Callable[[CandleStore], R], before_commit: Callable[[], None] | None = None) -> R:
        def work(writer: apsw.Connection) -> R:
            commit = writer.execute("UPDATE commit_count SET commits = commits + 1 RETURNING commits").get
            assert isinstance(commit, int)
            return change(SqliteCandleStore(writer, self._known, commit))

        try:
            return self._transaction(work, before_commit or _nothing)
        except BaseException:
            self._known.forget()
            raise

    def probe(self, before_commit: Callable[[], None] | None = None) -> None:
        # Committed in between, because pages that are freed before the commit are never written.
        for statements in (
            f"DROP TABLE IF EXISTS probe; CREATE TABLE probe AS SELECT zeroblob({PROBE_BYTES})",
            "DROP TABLE probe",
        ):
            self._transaction(lambda writer, todo=statements: writer.execute(todo), before_commit or _nothing)  # type: ignore[misc]

    def _transaction(self, work: Callable[[apsw.Connection], R], before_commit: Callable[[], None]) -> R:
        assert self._writer is not None, "the store is open"
        try:
            # IMMEDIATE, because a transaction that begins by reading cannot become a writing one under contention.
            self._writer.execute("BEGIN IMMEDIATE")
            result = work(self._writer)
            before_commit()
            self._writer.execute("COMMIT")
        except BaseException as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                self.write_error = StoreError(f"the store {self.path} cannot be written: {error}")
                raise self.write_error from error
            raise
        self.write_error = None
        return result

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class SqliteDatabase:
    """`Database` on one SQLite file, in threads: one that writes, a few that read.

    While it is open no other process can write to the file; `command` is what others are told of this one.
    """

    def __init__(self, path: Path, command: str = "serve") -> None:
        self.path = path
        self._lock = StoreLock(path, command)
        self._file = _File(path)
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_threads = ThreadPoolExecutor(READER_THREADS, "store-reader")
        self._reader_local = threading.local()
        self._readers: list[apsw.Connection] = []

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """See `Database.write`."""
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._file.write, change)

    @property
    def write_error(self) -> StoreError | None:
        """See `Database.write_error`."""
        return self._file.write_error

    async def probe(self) -> None:
        """See `Database.probe`."""
        await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._file.probe)

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """See `Database.read`."""
        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, self._read, look)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error
        try:
            self._file.open()
        except StoreError:
            self._lock.release()
            raise

    def _read(self, look: Callable[[CandleStore], R]) -> R:
        try:
            reader: apsw.Connection | None = getattr(self._reader_local, "connection", None)
            if reader is None:
                reader = self._reader_local.connection = self._file.open_reader()
                self._reader_local.known = Known(writes=False)
                self._readers.append(reader)
            return _look(reader, self._reader_local.known, look)
        except apsw.Error as error:
            raise StoreError(f"the store {self.path} cannot be read: {error}") from error

    def _close(self) -> None:
        self._writer_thread.shutdown()
        self._reader_threads.shutdown()
        for reader in self._readers:
            reader.close()
        self._file.close()
        self._lock.release()


class InThreadSqliteDatabase:
    """`Database` on one SQLite file, in the caller's thread, for the simulation: same SQL, no threads, no timing.

    `pause` is awaited before and after each transaction, where the threads of `SqliteDatabase` would let others run;
    `before_commit` is called within each writing one, and may raise, as a full disk would (apsw.FullError).
    """

    def __init__(
        self,
        path: Path,
        *,
        pause: Callable[[], Awaitable[None]],
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._file = _File(path)
        self._reader: apsw.Connection | None = None
        self._reader_known = Known(writes=False)
        self._pause = pause
        self._before_commit = before_commit
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._file.open()
        self._reader = self._file.open_reader()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()
        self._file.close()

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """See `Database.write`."""
        async with self._writing:
            await self._pause()
            result = self._file.write(change, self._before_commit)
            await self._pause()
        return result

    @property
    def write_error(self) -> StoreError | None:
        """See `Database.write_error`."""
        return self._file.write_error

    async def probe(self) -> None:
        """See `Database.probe`."""
        async with self._writing:
            await self._pause()
            self._file.probe(self._before_commit)
            await self._pause()

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """See `Database.read`."""
        assert self._reader is not None, "the store is open"
        await self._pause()
        try:
            result = _look(self._reader, self._reader_known, look)
        except apsw.Error as error:
            raise StoreError(f"the store {self.path} cannot be read: {error}") from error
        await self._pause()
        return result


class SqliteReader:
    """Looks into a store beside the process that writes it, if there is one. `with` opens and closes it; used by one
    thread. Nothing is changed, the schema neither."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = Known(writes=False)
        self._connection: apsw.Connection | None = None

    @property
    def connection(self) -> apsw.Connection:
        """The open connection, which can only read."""
        assert self._connection is not None, "the store is open"
        return self._connection

    def read(self, look: Callable[[CandleStore], R]) -> R:
        """What `look` returns, of one consistent state. Raises `StoreError`."""
        try:
            return _look(self.connection, self._known, look)
        except apsw.Error as error:
            raise StoreError(f"the store {self.path} cannot be read: {error}") from error

    def __enter__(self) -> Self:
        """Raises `StoreError` when there is no store, or one of another version."""
        if not self.path.is_file():
            raise StoreError(f"there is no store {self.path}; name another one with --database-url")
        try:
            connection = _open_reader(self.path)
            version, known = _version(connection), len(_scripts())
        except apsw.Error as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error
        if version != known:
            connection.close()
            _refuse_newer(self.path, version, known)
            what = f"has schema version {version}, and this klinesync reads {known}" if version else "is no store yet"
            raise StoreError(f"{self.path} {what}; `klinesync serve` brings it up to date")
        self._connection = connection
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._connection = None


def _open_reader(path: Path) -> apsw.Connection:
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.set_busy_timeout(BUSY_TIMEOUT_MS)
    return reader


def _look(reader: apsw.Connection, known: Known, look: Callable[[CandleStore], R]) -> R:
    reader.execute("BEGIN")  # one snapshot for all statements of `look`
    try:
        return look(SqliteCandleStore(reader, known))
    finally:
        reader.execute("ROLLBACK")


def _nothing() -> None:
    pass


# Pages are made of thousands: all of it happens in C.
_candle: Callable[[Iterable[object]], Candle] = partial(tuple.__new__, Candle)


def _as_gap(row: Sequence[object]) -> Gap:
    return Gap._make(row)._replace(state=GapState(str(row[2])))


def _as_revision(row: Sequence[object]) -> Revision:
    return Revision(_candle(row[:6]), *row[6:])  # type: ignore[arg-type]  # the table is STRICT


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the schema up to the newest version, one numbered script a transaction."""
    scripts = _scripts()
    version = _version(connection)
    _refuse_newer(path, version, len(scripts))
    for number, script in enumerate(scripts[version:], version + 1):
        with connection:
            connection.execute(script.read_text())
            connection.execute(f"PRAGMA user_version = {number}")


def _scripts() -> list[Traversable]:
    return sorted(
        (item for item in resources.files("klinesync.storage.migrations").iterdir() if item.name.endswith(".sql")),
        key=lambda item: item.name,
    )


def _version(connection: apsw.Connection) -> int:
    version = connection.execute("PRAGMA user_version").get
    assert isinstance(version, int)
    return version


def _refuse_newer(path: Path, version: int, known: int) -> None:
    if version > known:
        raise StoreError(
            f"the store {path} has schema version {version}, and this klinesync knows {known}: "
            "it was written by a newer klinesync; use that one"
        )

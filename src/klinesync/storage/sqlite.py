"""The SQLite store: one transaction a batch, WAL, readers beside the writer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from klinesync.core.errors import StoreError
from klinesync.storage.database import CandleStore, R
from klinesync.storage.lock import StoreLock
from klinesync.storage.sqlite_candles import Known, SqliteCandleStore

READER_THREADS = 2
BUSY_TIMEOUT_MS = 5000
# 16 MB of write-ahead log between checkpoints, so that a minute's end seldom pays for one.
WAL_AUTOCHECKPOINT_PAGES = 4000
CACHE_KIB = 65_536
# As much as a batch of some hundred candles takes: where there is room for less, the store cannot be written.
PROBE_BYTES = 65_536


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
            self._known.learn(writer)
        except (apsw.Error, OSError) as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error
        self._writer = writer

    def open_reader(self) -> apsw.Connection:
        return _open_reader(self.path)

    def write(self, change: Callable[[CandleStore], R], before_commit: Callable[[], None] | None = None) -> R:
        def work(writer: apsw.Connection) -> R:
            commit = writer.execute("UPDATE commit_count SET commits = commits + 1 RETURNING commits").get
            assert isinstance(commit, int)
            store = SqliteCandleStore(writer, self._known, commit)
            result = change(store)
            store.save()
            return result

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

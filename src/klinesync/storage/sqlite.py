"""The SQLite store: one transaction a batch, WAL, readers beside the writer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from klinesync.core.errors import StoreError
from klinesync.runtime.log_events import Log
from klinesync.runtime.looking import is_file, is_folder
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, DamageBoard, StoreDamaged
from klinesync.storage.database import R
from klinesync.storage.disk import UNREADABLE, bad_page, disk_trouble
from klinesync.storage.lock import StoreLock, StoreLocked, lock_path
from klinesync.storage.memory import Memory
from klinesync.storage.sqlite_file import SqliteFile, StoreReplaced
from klinesync.storage.sqlite_reader import look_into, open_closed, open_reader, refuse_irregular
from klinesync.storage.sqlite_schema import ForeignFile, check_owner, migrations, version_of
from klinesync.storage.wal_origin import ForeignLog, refuse_foreign_log

log = Log(__name__)

READER_THREADS = 2


class _Reader:
    """A reading connection of one thread. `generation`: of the database's connections, which it belongs to."""

    def __init__(self, connection: apsw.Connection, generation: int, damage: DamageBoard) -> None:
        self.connection = connection
        self.generation = generation
        self.memory = Memory(writes=False, damage=damage)


class SqliteDatabase:
    """`Database` on one SQLite file, in threads: one that writes, a few that read.

    While it is open no other process can write to the file; `command` names this process in the refusal of others. With
    `serves`, a store that is there but cannot be opened for writing (a full or read-only disk) is opened for reading:
    `write_error` says why, and `probe` opens it for writing once that is possible.
    """

    def __init__(self, path: Path, command: str = "serve", *, serves: bool = False) -> None:
        self.path = path
        self._serves = serves
        self._lock = StoreLock(path, command)
        self._file = SqliteFile(path, alone=True)
        self._unwritable: StoreError | None = None
        self._writer_thread = ThreadPoolExecutor(1, "store-writer")
        self._reader_threads = ThreadPoolExecutor(READER_THREADS, "store-reader")
        self._reader_local = threading.local()
        self._readers: list[_Reader] = []
        self._generation = 0
        # Looks into a store that is open for reading only take no lock of SQLite's: none may be under way when it is
        # opened for writing.
        self._reads_unlocked = threading.Lock()

    async def __aenter__(self) -> Self:
        opening = asyncio.get_running_loop().run_in_executor(self._writer_thread, self._open)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on: what it opens is closed before anybody believes that nothing is open.
            await asyncio.wait([opening])
            if opening.exception() is None:
                await asyncio.to_thread(self._close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """See `Database.write`."""
        return await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._write, change)

    @property
    def write_error(self) -> StoreError | None:
        """See `Database.write_error`."""
        return self._unwritable or self._file.write_error

    @property
    def damage(self) -> DamageBoard:
        """See `Database.damage`."""
        return self._file.damage

    async def probe(self) -> None:
        """See `Database.probe`."""
        await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._probe)

    async def check(self) -> None:
        """See `Database.check`."""
        await asyncio.get_running_loop().run_in_executor(self._writer_thread, self._check)

    async def check_pages(self, first: int, most: int) -> tuple[list[int], int]:
        """See `Database.check_pages`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader_threads, self._check_pages, first, most)

    def _check_pages(self, first: int, most: int) -> tuple[list[int], int]:
        try:
            return self._file.check_pages(first, most)
        except OSError as error:
            raise _cannot_read(self.path, error, self.damage) from error

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """See `Database.read`."""
        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, self._read, look)

    def _open(self) -> None:
        refuse_foreign(self.path)
        refuse_irregular(self.path)
        _refuse_other_kinds(self.path)
        try:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
            except OSError as error:
                why = disk_trouble(error, self.path)
                raise StoreError(f"the store {self.path} cannot be opened: {why}") from error
            refuse_foreign_log(self.path)
            self._file.open()
        except (StoreLocked, ForeignFile, ForeignLog):
            self._lock.release()
            raise
        except StoreError as error:
            if not (self._serves and self._readable()):
                self._lock.release()
                raise
            self._unwritable = error
            log.error("store.unwritable", "what is stored is served, and nothing is written", error=error)

    def _readable(self) -> bool:
        """Whether the closed store can be read as it is."""
        try:
            reader = open_closed(self.path)
            try:
                return check_owner(reader, self.path) and version_of(reader) == len(migrations())
            finally:
                reader.close()
        except (apsw.Error, OSError, StoreError, *UNREADABLE):
            return False

    def _write(self, change: Callable[[CandleStore], R]) -> R:
        if self._unwritable is not None:
            raise self._unwritable
        result = self._file.write(change)
        self._check_lock()
        return result

    def _probe(self) -> None:
        if self._unwritable is not None:
            self._open_for_writing()
        self._file.probe()
        self._check_lock()

    def _open_for_writing(self) -> None:
        with self._reads_unlocked:
            try:
                if not self._lock.held():
                    self._lock.acquire()
                self._file.open()
            except OSError as error:
                why = disk_trouble(error, self.path)
                self._unwritable = StoreError(f"the store {self.path} cannot be opened: {why}")
                raise self._unwritable from error
            except StoreError as error:
                self._unwritable = error
                raise
            self._generation += 1
            self._unwritable = None

    def _check(self) -> None:
        self._file.check()
        if self._unwritable is None:
            self._check_lock()

    def _check_lock(self) -> None:
        """The lock file alone may be removed: then it is taken anew. Raises `StoreReplaced` when others have it."""
        if self._lock.held():
            return
        try:
            self._lock.acquire()
        except StoreLocked as error:
            raise self._file.found_replaced(f"its lock file was replaced, and {error}") from None
        except OSError as error:
            why = disk_trouble(error, self._lock.path)
            raise self._file.found_replaced(f"its lock file was removed and cannot be made anew: {why}") from error
        log.warning("store.lock_retaken", "the lock file had been removed; it is there again", path=self._lock.path)

    def _read(self, look: Callable[[CandleStore], R]) -> R:
        if self._unwritable is not None:
            with self._reads_unlocked:
                return self._look(look)
        return self._look(look)

    def _look(self, look: Callable[[CandleStore], R]) -> R:
        try:
            reader: _Reader | None = getattr(self._reader_local, "reader", None)
            if reader is None or reader.generation != self._generation:
                reader = self._reader_local.reader = self._open_reader()
            self._file.check_index()
            return look_into(reader.connection, reader.memory, look)
        except (apsw.Error, OSError, StoreDamaged, *UNREADABLE) as error:
            if (replaced := self._file.replaced) is not None:  # that is why, whatever SQLite makes of it
                raise StoreReplaced(str(replaced)) from error
            if isinstance(error, StoreDamaged):
                raise
            raise _cannot_read(self.path, error, self.damage) from error

    def _open_reader(self) -> _Reader:
        generation = self._generation
        connection = open_reader(self.path) if self._file.is_open else open_closed(self.path)
        try:
            self._file.check_main()
        except StoreReplaced:
            connection.close()
            raise
        reader = _Reader(connection, generation, self.damage)
        self._readers.append(reader)
        return reader

    def _close(self) -> None:
        self._writer_thread.shutdown()
        self._reader_threads.shutdown()
        for reader in self._readers:
            reader.connection.close()
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
        self._file = SqliteFile(path)
        self._reader: apsw.Connection | None = None
        self._reader_memory = Memory(writes=False, damage=self._file.damage)
        self._pause = pause
        self._before_commit = before_commit
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._file.open()
        self._reader = open_reader(self.path)
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

    @property
    def damage(self) -> DamageBoard:
        """See `Database.damage`."""
        return self._file.damage

    async def check(self) -> None:
        """See `Database.check`."""
        async with self._writing:
            self._file.check()

    async def check_pages(self, first: int, most: int) -> tuple[list[int], int]:
        """See `Database.check_pages`."""
        await self._pause()
        return self._file.check_pages(first, most)

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
            result = look_into(self._reader, self._reader_memory, look)
        except (apsw.Error, *UNREADABLE) as error:
            raise _cannot_read(self.path, error, self.damage) from error
        await self._pause()
        return result


def _cannot_read(path: Path, error: apsw.Error | OSError | ValueError, damage: DamageBoard) -> StoreError:
    """What a failed look raises; damage that no series explains is damage of the whole store."""
    error = bad_page(error) or error
    if isinstance(error, UNREADABLE):
        damage.note(Damage(None, None, f"{path}: {error}"))
    return StoreError(f"the store {path} cannot be read: {disk_trouble(error, path)}")


def refuse_foreign(path: Path) -> None:
    """Raises `ForeignFile` for another program's file, before a lock file is made beside it. What cannot be told now
    is reported when the file is opened for writing."""
    with suppress(apsw.Error, OSError, *UNREADABLE):
        _check_owner_of(path)


def _refuse_other_kinds(path: Path) -> None:
    """Raises `StoreError` for a folder, and for a file that is not SQLite's, before a lock file is made beside them. A
    store with a damaged header has a lock file already, and is looked into."""
    if is_file(lock_path(path)):
        return
    try:
        if is_folder(path):
            raise IsADirectoryError
        _check_owner_of(path)
    except (IsADirectoryError, apsw.NotADBError) as error:
        raise StoreError(f"the store {path} cannot be opened: {disk_trouble(error, path)}") from error
    except (apsw.Error, OSError, *UNREADABLE):
        return


def _check_owner_of(path: Path) -> None:
    """Raises `ForeignFile`, `apsw.Error`, `OSError`; nothing for a file that is missing or empty."""
    if not is_file(path) or not path.stat().st_size:
        return
    page_checksums.load()
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        check_owner(connection, path)
    finally:
        connection.close()

"""SqliteReader: looks into a store, be it open elsewhere, closed, on a full disk, or read-only.

A store that a process writes to is opened as SQLite opens any file. A closed store is opened so that nothing is
written: no lock of SQLite's, no shared-memory file; what a crash left in the write-ahead log is indexed in memory.
That is safe only while no process writes, so the reader holds the store's lock, shared with other readers.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import apsw

from klinesync.core.errors import StoreError
from klinesync.runtime.looking import real_path
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import DamageBoard
from klinesync.storage.database import R
from klinesync.storage.disk import UNREADABLE, bad_page, disk_trouble
from klinesync.storage.lock import SharedLock
from klinesync.storage.memory import Memory
from klinesync.storage.sqlite_schema import check_owner, migrations, refuse_newer, version_of
from klinesync.storage.sqlite_tables import SqliteTables
from klinesync.storage.wal_origin import refuse_foreign_log

BUSY_TIMEOUT_MS = 5000
# Most repeats of a look whose snapshot was lost.
MAX_LOOKS = 4
# Most problems of the file that are listed. SQLite stops its search then; in a badly damaged file it takes long.
MAX_FILE_PROBLEMS = 20
# Most numbers of damaged pages that are listed.
MAX_PAGES_TOLD = 20
# How often a page that fails its checksum is looked at again, and the pause before, in seconds: a running service may
# be writing the page.
PAGE_REPEATS = 3
PAGE_REPEAT_S = 0.2
# Characters of one problem.
MAX_PROBLEM_CHARS = 300


def open_reader(path: Path) -> apsw.Connection:
    """A reading connection to a store that a process, maybe this one, writes to. Raises `apsw.Error`."""
    page_checksums.load()
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.set_busy_timeout(BUSY_TIMEOUT_MS)
    reader.execute("PRAGMA temp_store = MEMORY")
    return reader


def open_closed(path: Path) -> apsw.Connection:
    """A reading connection, which writes nothing, to a store that no process writes to. Where a crash has left a
    write-ahead log, checksums of pages are not checked: SQLite's VFS without locks does not know them. Raises
    `apsw.Error`, `OSError`."""
    page_checksums.load()
    wal = Path(f"{real_path(path)}-wal")
    if not wal.exists() or not wal.stat().st_size:
        uri = f"file:{quote(str(path.absolute()))}?immutable=1"
        reader = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        reader.execute("PRAGMA temp_store = MEMORY")
        return reader
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix-none")
    # Else the last connection would bring the write-ahead log into the file, and delete the log.
    reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    # Exclusive, with locks that do nothing: the index of the write-ahead log is made in memory, not in a file.
    reader.execute("PRAGMA locking_mode = EXCLUSIVE")
    reader.execute("PRAGMA temp_store = MEMORY")
    return reader


def refuse_irregular(path: Path, mode: int | None = None) -> None:
    """Raises `StoreError` for what is no regular file: opening a named pipe would wait for a writer.
    `mode`: the file's, where it is known. A file that cannot be inspected is reported when it is opened."""
    if mode is None:
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            return
        if stat.S_ISDIR(mode):
            return
    if not stat.S_ISREG(mode):
        raise StoreError(f"there is no store {path}: it is no regular file; name a file with --database-url")


def look_into(reader: apsw.Connection, memory: Memory, look: Callable[[CandleStore], R]) -> R:
    """What `look` returns, of one snapshot. A page that cannot be read ends the snapshot: the look is repeated until
    nothing was committed meanwhile, at most `MAX_LOOKS` times."""
    version: object = None
    for _ in range(MAX_LOOKS):
        reader.execute("BEGIN")
        tables = SqliteTables(reader)
        try:
            result = look(CandleStore(tables, memory))
        finally:
            if reader.in_transaction:
                reader.execute("ROLLBACK")
        if not tables.snapshot_lost:
            break
        before, version = version, reader.execute("PRAGMA data_version").get
        if before == version:
            break
    return result


class SqliteReader:
    """Looks into a store beside the process that writes it, if there is one. `with` opens and closes it; used by one
    thread. Nothing is changed, the schema neither.

    path: of the store.
    older: whether a store of an earlier version is opened too, to read what that version has; False by default.
    """

    def __init__(self, path: Path, *, older: bool = False) -> None:
        self.path = path
        self._older = older
        self.damage = DamageBoard()
        self._memory = Memory(writes=False, damage=self.damage)
        self._connection: apsw.Connection | None = None
        self._lock = SharedLock(path)
        self._closed_as: tuple[object, ...] | None = None  # the files as they were when they were opened as closed
        # Closed after the connection: closing a file ends SQLite's locks on it.
        self._descriptor: int | None = None

    def read(self, look: Callable[[CandleStore], R]) -> R:
        """What `look` returns, of one consistent state. Raises `StoreError`."""
        try:
            with self._opened() as connection:
                return look_into(connection, self._memory, look)
        except (apsw.Error, *UNREADABLE) as error:
            raise self._error("read", error) from error

    def file_problems(self) -> list[str]:
        """What SQLite's integrity check finds in the whole file, `MAX_FILE_PROBLEMS` at most; empty when it is sound.
        Raises `StoreError` when the file cannot even be opened."""
        found: list[str] = []
        with self.snapshot() as connection:
            try:
                for (text,) in connection.execute(f"PRAGMA integrity_check({MAX_FILE_PROBLEMS})"):
                    found += str(text).splitlines()  # one row may hold many
            except (apsw.Error, *UNREADABLE) as error:  # damage that ends the check itself
                found.append(str(bad_page(error) or error))
        bad = self._bad_pages()
        if bad:
            more = f" and {len(bad) - MAX_PAGES_TOLD} more" if len(bad) > MAX_PAGES_TOLD else ""
            found.append(f"pages that fail their checksum: {', '.join(map(str, bad[:MAX_PAGES_TOLD]))}{more}")
        return [] if found == ["ok"] else [line[:MAX_PROBLEM_CHARS] for line in found[:MAX_FILE_PROBLEMS]]

    def _bad_pages(self) -> list[int]:
        """The pages of the file that fail their checksum; none of a store without checksums. Raises `StoreError`."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            size, first, bad = page_checksums.checked_page_size(self._descriptor), 1, []
            while size is not None:
                wrong, count = page_checksums.bad_pages(self._descriptor, size, first, page_checksums.PAGES_AT_ONCE)
                bad += wrong
                first += count
                if not count:
                    break
            for _ in range(PAGE_REPEATS if self._closed_as is None else 0):
                if bad and size is not None:  # a page may be half written
                    time.sleep(PAGE_REPEAT_S)
                    bad = [page for page in bad if page_checksums.bad_pages(self._descriptor, size, page, 1)[0]]
        except OSError as error:
            raise self._error("read", error) from error
        return bad

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """A reading connection, in a transaction of one consistent state. Of a closed store no process begins to write
        meanwhile. Raises `StoreError`."""
        with self._opened() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _opened(self) -> Iterator[apsw.Connection]:
        """A reading connection. Raises `StoreError`."""
        try:
            connection = self._ready()
        except (apsw.Error, OSError, *UNREADABLE) as error:
            raise self._error("opened", error) from error
        try:
            yield connection
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        """Raises `StoreError` when there is no store, another program's file, or a store of another version."""
        try:
            mode = self.path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"there is no store {self.path}; name another one with --database-url") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise self._error("opened", error) from error
        refuse_irregular(self.path, mode)
        try:
            with self.snapshot() as connection:
                self._check(connection)
        except (apsw.Error, *UNREADABLE) as error:
            self._close()
            raise self._error("opened", error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _check(self, connection: apsw.Connection) -> None:
        check_owner(connection, self.path)
        version, known = version_of(connection), len(migrations())
        refuse_newer(self.path, version, known)
        if version != known and not (self._older and version):
            what = f"has schema version {version}, and this klinesync reads {known}" if version else "is no store yet"
            raise StoreError(f"{self.path} {what}; `klinesync serve` brings it up to date")

    def _ready(self) -> apsw.Connection:
        """The connection that fits how the store is now: open elsewhere; or closed, then the lock is held."""
        if self._connection is not None and self._closed_as is None:
            return self._connection
        taken = self._lock.acquire()
        files = _files(self.path)
        # Without a lock file no klinesync has it open. Without the shared-memory file no other program has.
        closed = taken or (taken is None and files[-1] is None)
        if self._connection is not None and closed and files == self._closed_as:
            return self._connection
        self._close_connection()
        if closed:
            refuse_foreign_log(self.path)
        self._connection = open_closed(self.path) if closed else open_reader(self.path)
        self._closed_as = files if closed else None
        return self._connection

    def _error(self, done: str, error: apsw.Error | OSError | ValueError) -> StoreError:
        return StoreError(f"the store {self.path} cannot be {done}: {disk_trouble(error, self.path)}")

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        self._close_connection()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()


def _files(path: Path) -> tuple[object, ...]:
    """The store's three files: which they are, how long, when last written; None of one that is not there."""
    real = real_path(path)
    found: list[object] = []
    for suffix in ("", "-wal", "-shm"):
        try:
            facts = Path(f"{real}{suffix}").stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return tuple(found)

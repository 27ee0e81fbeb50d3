"""SqliteFile: the writing connection of one SQLite file, and whether it is still the file that was opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from klinesync.core.errors import StoreError
from klinesync.runtime.log_events import Log
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, DamageBoard
from klinesync.storage.database import R
from klinesync.storage.disk import UNREADABLE, bad_page, disk_trouble
from klinesync.storage.file_watch import FileWatch
from klinesync.storage.firsts import record_firsts
from klinesync.storage.memory import Memory
from klinesync.storage.sqlite_reader import BUSY_TIMEOUT_MS
from klinesync.storage.sqlite_schema import check_owner, migrate
from klinesync.storage.sqlite_tables import SqliteTables
from klinesync.storage.tables import TransactionLost

log = Log(__name__)

# 16 MB of write-ahead log between checkpoints, so that a minute's end seldom pays for one.
WAL_AUTOCHECKPOINT_PAGES = 4000
CACHE_KIB = 65_536
# As much as a batch of some hundred candles takes: where there is room for less, the store cannot be written.
PROBE_BYTES = 65_536


class StoreReplaced(StoreError):
    """The store's files are not the ones that were opened: what is written to them is lost."""

    code = "store_replaced"


class SqliteFile:
    """The writing connection. Used by one thread at a time.

    `write_error`: why the last write failed. `replaced`: set for good once the file was found removed, replaced or
    written by another program; nothing is written since. With `alone`, no other process opens it, by whatever name.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self.path = path
        self._alone = alone
        self.damage = DamageBoard()
        self.write_error: StoreError | None = None
        self.replaced: StoreReplaced | None = None
        self._writer: apsw.Connection | None = None
        self._memory = Memory(writes=True, damage=self.damage)
        self._watch = FileWatch(path)
        self._data_version = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a writing connection."""
        return self._writer is not None

    def open(self) -> None:
        """Open the file, and bring its schema up to date. Raises `StoreError`; then nothing is open."""
        writer: apsw.Connection | None = None
        try:
            self._watch.open(alone=self._alone)
            page_checksums.refuse_unchecked(self.path)
            writer = apsw.Connection(str(self.path))
            writer.set_busy_timeout(BUSY_TIMEOUT_MS)
            if not check_owner(writer, self.path):  # before anything is written
                page_checksums.reserve(writer)
            writer.execute("PRAGMA journal_mode = WAL")
            # FULL: what was published as closed survives a power loss too, not only kill -9.
            writer.execute("PRAGMA synchronous = FULL")
            # What SQLite puts aside while it works never needs room on another disk than the store's.
            writer.execute("PRAGMA temp_store = MEMORY")
            writer.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
            writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            migrate(writer, self.path)
            record_firsts(SqliteTables(writer))
            self._memory.learn(SqliteTables(writer))
            self._watch.learn()
            self._data_version = _data_version(writer)
        except BaseException as error:
            errno = 0
            if writer is not None:
                errno = writer.system_errno
                writer.close()
            self._watch.close()
            self._memory.forget()
            if isinstance(error, (apsw.Error, OSError, *UNREADABLE)):
                why = disk_trouble(error, self.path, errno)
                raise StoreError(f"the store {self.path} cannot be opened: {why}") from error
            raise
        self._writer = writer
        self.write_error = None

    def write(self, change: Callable[[CandleStore], R], before_commit: Callable[[], None] | None = None) -> R:
        """What `change` returns, once it is committed to the file that was opened. Raises `StoreError`."""

        def work(writer: apsw.Connection) -> R:
            commit = writer.execute("UPDATE commit_count SET commits = commits + 1 RETURNING commits").get
            assert isinstance(commit, int)
            store = CandleStore(SqliteTables(writer), self._memory, commit)
            result = change(store)
            store.save()
            return result

        try:
            result = self._transaction(work, before_commit or _nothing)
        except BaseException:
            self._memory.undo()
            raise
        self._memory.keep()
        return result

    def probe(self, before_commit: Callable[[], None] | None = None) -> None:
        """Write something and remove it. Raises `StoreError`."""
        # Committed in between, because pages that are freed before the commit are never written.
        for statements in (
            f"DROP TABLE IF EXISTS probe; CREATE TABLE probe AS SELECT zeroblob({PROBE_BYTES})",
            "DROP TABLE probe",
        ):
            self._transaction(lambda writer, todo=statements: writer.execute(todo), before_commit or _nothing)  # type: ignore[misc]

    def check_pages(self, first: int, most: int) -> tuple[list[int], int]:
        """The pages that fail their checksum, among the next `most` ones from `first` on; and how many were checked: 0
        at the end, and of a store whose pages have none. May be called by any thread while the file is open. Raises
        `OSError`."""
        file = self._watch.descriptor
        size = None if file is None else page_checksums.checked_page_size(file)
        return ([], 0) if file is None or size is None else page_checksums.bad_pages(file, size, first, most)

    def check(self) -> None:
        """Look whether the files are in place. Raises `StoreReplaced` when they are not, now and ever after."""
        if self.replaced is not None:
            raise self.replaced
        if self._writer is not None and (what := self._watch.check()) is not None:
            raise self.found_replaced(what)

    def check_index(self) -> None:
        """Before SQLite reads: a shared-memory file that was cut would end the process. Raises `StoreReplaced`. May be
        called by any thread while the file is open."""
        if self._writer is not None and (what := self._watch.check_index()) is not None:
            raise self.found_replaced(what)

    def check_main(self) -> None:
        """As `check`, for a connection that was just opened: whether it has opened the store's own file."""
        if self._writer is not None and not self._watch.is_main():
            raise self.found_replaced("another file was put in its place")

    def found_replaced(self, what: str) -> StoreReplaced:
        """From now on nothing is written; logged once."""
        if self.replaced is None:
            self.replaced = self.write_error = StoreReplaced(
                f"the store {self.path} is not the one that was opened: {what}; nothing is written any more: "
                "stop klinesync, put the store back in its place (or let a new one be made), and start klinesync again"
            )
            log.error("store.replaced", "%s", self.replaced)
        return self.replaced

    def _transaction(self, work: Callable[[apsw.Connection], R], before_commit: Callable[[], None]) -> R:
        if self.replaced is not None:
            raise self.replaced
        assert self._writer is not None, "the store is open"
        writer = self._writer
        self.check_index()
        try:
            # IMMEDIATE, because a transaction that begins by reading cannot become a writing one under contention.
            writer.execute("BEGIN IMMEDIATE")
            # What this connection remembers is not true any more if others write: look before anything is written.
            if _data_version(writer) != self._data_version:
                raise self.found_replaced("another program has written to it")
            if (what := self._watch.check_written(writer)) is not None:
                raise self.found_replaced(what)
            result = work(writer)
            before_commit()
            writer.execute("COMMIT")
        except BaseException as error:
            errno = writer.system_errno
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            cause = error.__cause__ if isinstance(error, TransactionLost) else error
            if isinstance(cause, (apsw.Error, *UNREADABLE)):
                cause = bad_page(cause) or cause
                why = disk_trouble(cause, self.path, errno)
                self.write_error = StoreError(f"the store {self.path} cannot be written: {why}")
                if isinstance(cause, UNREADABLE):  # in a part that is of no one series
                    self.damage.note(Damage(None, None, f"{self.path}: {cause}"))
                raise self.write_error from error
            raise
        self.check()
        self.write_error = None
        return result

    def close(self) -> None:
        """Close the connection, then let go of the file. Our write-ahead log never gets into another store's file: the
        log is not checkpointed, and is renamed, because the next program that opens that file would add it. A damaged
        log is not checkpointed either: the store stays as the last checkpoint left it."""
        if self._writer is not None:
            another = self.replaced is not None and self._watch.is_another()
            if another or self._watch.log_is_damaged:
                self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._writer.close()
            self._writer = None
            if another:
                self._set_log_aside()
            self._watch.close()

    def _set_log_aside(self) -> None:
        try:
            aside = self._watch.set_log_aside()
        except OSError as error:
            log.error(
                "store.log_left",
                "the write-ahead log of the store that was opened lies beside another store, %s, "
                "and cannot be renamed: %s; move %s-wal away before that store is opened",
                self.path,
                disk_trouble(error, self.path),
                self.path,
                path=self.path,
            )
            return
        if aside is not None:
            log.error(
                "store.log_moved",
                "the write-ahead log of the store that was opened is now %s: it is no part of the "
                "store that took its place; to put the former store back, rename it to %s-wal",
                aside,
                self.path,
                path=self.path,
            )


def _data_version(writer: apsw.Connection) -> int:
    version = writer.execute("PRAGMA data_version").get
    assert isinstance(version, int)
    return version


def _nothing() -> None:
    pass

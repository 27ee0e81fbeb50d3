"""An online copy of a store, made while a service writes to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import apsw

from klinesync.core.errors import Rejected, StoreError
from klinesync.core.printable import is_text
from klinesync.storage.disk import bad_page, disk_trouble, sync
from klinesync.storage.own_files import refuse_own_file
from klinesync.storage.sqlite_reader import SqliteReader

# 4 MB a step; progress is reported after each.
PAGES_A_STEP = 1024


def backup(store: SqliteReader, target: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Copy the open `store` to the new file `target`: one snapshot of now, complete and on disk, or nothing.

    store: the store, open for reading.
    target: must not exist; the copy is written under another name beside it, and renamed.
    progress: called with the pages done and the pages in all.

    The writer is not held up: its write-ahead log keeps its changes until the copy is made. Raises `Rejected`,
    `StoreError`.
    """
    refuse_own_file(store.path, target)
    if not is_text(str(target)):
        raise Rejected(f"{target} is not UTF-8, and SQLite opens no other names; name another file")
    if os.path.lexists(target):
        raise Rejected(f"{target} exists already; a backup is written to a new file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
        part = Path(name)
        try:
            with store.snapshot() as source:
                _copy(source, part, progress)
            sync(part)
            if os.path.lexists(target):
                raise Rejected(f"{target} was made by another process meanwhile; nothing was written to it")
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        sync(target.parent)
    except (apsw.Error, OSError) as error:
        why = disk_trouble(error, target if bad_page(error) is None else store.path)
        raise StoreError(f"the store {store.path} cannot be copied to {target}: {why}") from error


def _copy(source: apsw.Connection, part: Path, progress: Callable[[int, int], None]) -> None:
    copy = apsw.Connection(str(part), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        # Of a copy that is not whole nothing is kept: no journal, and one fsync at the end.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        # The snapshot begins with a first statement: without it the copy begins anew whenever the service has written.
        source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        with copy.backup("main", source, "main") as steps:
            while not steps.done:
                steps.step(PAGES_A_STEP)
                progress(steps.page_count - steps.remaining, steps.page_count)
    except apsw.IOError as error:
        if copy.system_errno and bad_page(error) is None:  # tells a limit of a file's size from a failing disk
            raise OSError(copy.system_errno, os.strerror(copy.system_errno)) from error
        raise
    finally:
        copy.close()

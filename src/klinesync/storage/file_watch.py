"""FileWatch: whether the files that a store was opened from are still the ones at its path.

A removed or replaced file goes on taking writes from the process that has it open, and all of them are lost. The
watch asks the file system which files are there: some microseconds, after each commit.
"""

from __future__ import annotations

import fcntl
import os
from itertools import count
from pathlib import Path
from typing import NamedTuple

import apsw

from klinesync.runtime.looking import real_path
from klinesync.storage.lock import StoreLocked
from klinesync.storage.log_watch import LogWatch

# Where the header of a SQLite file tells its page count, free pages and schema cookie: big-endian, 4 bytes each.
HEADER_BYTES = 100
_HEADER_FIELDS = (("page_count", 28), ("freelist_count", 36), ("schema_version", 40))


class _Which(NamedTuple):
    device: int
    inode: int


class FileWatch:
    """Knows the three files of the store at `path`: the store, its write-ahead log, its shared-memory file.

    Made before SQLite opens the store and closed after: closing any descriptor of a file ends SQLite's locks on it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        real = real_path(path)
        self._beside = [(Path(f"{real}-wal"), "write-ahead log"), (Path(f"{real}-shm"), "shared-memory file")]
        self._descriptor: int | None = None
        self._main: _Which | None = None
        self._known: list[_Which] = []
        self._written: tuple[int, int] = (0, 0)
        self._header = b""
        self._written_over = False
        self._log = LogWatch(real)

    def open(self, *, alone: bool) -> None:
        """Hold the file, which is made where there is none, to be able to look into it. With `alone`, no other process
        holds it so, not even by another name (a hard link), whose lock file is another. Raises `OSError`,
        `StoreLocked`."""
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not alone:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(
                f"the store {self._path} is in use by another process, by another name of the same file (a hard "
                "link); one process writes to a store at a time"
            ) from None
        except OSError:  # a file system without such locks: the lock file is what keeps others out
            return

    @property
    def descriptor(self) -> int | None:
        """The open file; None while it is not open. Only for reading; the caller must not close it."""
        return self._descriptor

    def learn(self) -> None:
        """The files that are there now are the store's. Raises `OSError` when one is missing."""
        main = self._path.stat()
        self._main = _Which(main.st_dev, main.st_ino)
        self._known = [_Which(one.st_dev, one.st_ino) for one in (path.stat() for path, _ in self._beside)]
        self._remember(main)
        self._log.open()

    def check(self) -> str | None:
        """What is not as it was, in words; None when all files are in place. After a commit of ours."""
        try:
            main = self._path.stat()
        except OSError:
            return "the file was removed"
        if (main.st_dev, main.st_ino) != self._main:
            return "another file was put in its place"
        for (path, name), known in zip(self._beside, self._known, strict=True):
            try:
                found = path.stat()
            except OSError:
                return f"its {name} {path} was removed"
            if (found.st_dev, found.st_ino) != known:
                return f"its {name} {path} was replaced"
        if (what := self.check_index() or self._log.check()) is not None:
            return what
        if (main.st_mtime_ns, main.st_size) != self._written:
            self._remember(main)
        return None

    def is_main(self) -> bool:
        """Whether the path still leads to the store's file."""
        try:
            main = self._path.stat()
        except OSError:
            return False
        return (main.st_dev, main.st_ino) == self._main

    def check_index(self) -> str | None:
        """Whether the shared-memory file was cut, in words; before SQLite reads it, which would end the process."""
        return self._log.check_index()

    def check_written(self, writer: apsw.Connection) -> str | None:
        """As `check`, before a transaction: whether another program wrote into the file itself since our last one.

        Only a checkpoint of ours writes there. A new time of change alone proves nothing: the header decides.
        """
        if (what := self._log.check()) is not None:
            return what
        try:
            main = self._path.stat()
        except OSError:
            return "the file was removed"
        if (main.st_mtime_ns, main.st_size) == self._written:
            return None
        header = self._read_header()
        if header != self._header:
            for pragma, at in _HEADER_FIELDS:
                if int.from_bytes(header[at : at + 4]) != writer.execute(f"PRAGMA {pragma}").get:
                    self._written_over = True
                    return "another program has written over the file"
        self._remember(main)
        return None

    @property
    def log_is_damaged(self) -> bool:
        """Whether a checkpoint would bring damage of the write-ahead log into the store."""
        return self._log.damaged

    def is_another(self) -> bool:
        """Whether the path leads to another store: a file that was put in its place, or written over in place."""
        return self._path.exists() and (self._written_over or not self.is_main())

    def set_log_aside(self) -> Path | None:
        """Rename our write-ahead log, so that SQLite never adds it to another file; its new name, None where it is not
        there any more. After SQLite has closed the file. Raises `OSError`."""
        wal, known = self._beside[0][0], self._known[0]
        try:
            found = wal.stat()
        except FileNotFoundError:
            return None
        if (found.st_dev, found.st_ino) != known:
            return None
        names = (Path(f"{wal}.aside{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        wal.rename(aside)
        return aside

    def close(self) -> None:
        """Let go of the files; after SQLite has."""
        self._log.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _remember(self, main: os.stat_result) -> None:
        self._written = main.st_mtime_ns, main.st_size
        self._header = self._read_header()

    def _read_header(self) -> bytes:
        assert self._descriptor is not None, "the watch is open"
        return os.pread(self._descriptor, HEADER_BYTES, 0)

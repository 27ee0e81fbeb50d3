"""StoreLock: one process writes to a store at a time, and the lock file names it.

The lock is the kernel's (`flock`) on a file beside the store, so it ends with the process, `kill -9` included. The text
in the file is for people only: a stale file is no obstacle. The file is never removed, because a process that waits for
the lock of a removed file would lock nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import msgspec

from klinesync.core.decoding import Undecodable, decode_json
from klinesync.core.errors import StoreError
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.looking import real_path

# Most bytes that are read of a lock file, which another program may have written.
MAX_TEXT_BYTES = 4096
# Longest wait of a writer for commands that read a closed store, in seconds: most take milliseconds, a backup longer.
READERS_WAIT_S = 10.0
READERS_POLL_S = 0.02


class StoreLocked(StoreError):
    """Another process writes to the store."""

    code = "store_locked"


class Holder(msgspec.Struct, frozen=True):
    """The holder of a lock: process id, command (`serve`), and since when (ISO 8601)."""

    pid: int
    command: str
    since: str


class StoreLock:
    """The right to write to the store at `store`, for `command`."""

    def __init__(self, store: Path, command: str) -> None:
        self.path = lock_path(store)
        self._store = store
        self._command = command
        self._file: FileIO | None = None

    def acquire(self) -> None:
        """Take the lock: at once, or as soon as commands that only read give way. Raises `StoreLocked`, `OSError`."""
        file = self._open()
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        self.release()
        self._file = file
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # The text is for people: on a full or read-only disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), msgspec.json.encode(Holder(os.getpid(), self._command, since)))

    def _take(self, file: FileIO) -> None:
        until_s = SYSTEM_CLOCK.monotonic_s() + READERS_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                who = _who(file.read(MAX_TEXT_BYTES))
                raise StoreLocked(
                    f"the store {self._store} is in use by {who}; one process writes to a store at a time"
                ) from None
            fcntl.flock(file, fcntl.LOCK_UN)
            if SYSTEM_CLOCK.monotonic_s() > until_s:
                raise StoreLocked(
                    f"the store {self._store} is read by another command; start again when that has ended"
                )
            time.sleep(READERS_POLL_S)

    def held(self) -> bool:
        """Whether the lock file is still the one that is held. A removed or replaced file does not keep others out."""
        if self._file is None:
            return False
        try:
            found = self.path.stat()
        except OSError:
            return False
        ours = os.fstat(self._file.fileno())
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        try:
            file = FileIO(self.path, "a+")
            file.seek(0)
            return file
        except PermissionError:
            return FileIO(self.path, "rb")  # a lock file that is there can be locked all the same
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return FileIO(self.path, "rb")


class SharedLock:
    """The right to read the closed store at `store` while no process writes to it; any number of readers share it."""

    def __init__(self, store: Path) -> None:
        self.path = lock_path(store)
        self._file: FileIO | None = None

    def acquire(self) -> bool | None:
        """Try to take the lock, without waiting. True: no process writes to the store, nor can begin to. False: a
        process writes, or may. None: there is no lock file, so no process of ours has the store open. Raises
        `OSError`."""
        self.release()
        try:
            file = FileIO(self.path, "rb")
        except FileNotFoundError:
            return None
        except PermissionError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def exists(self) -> bool:
        """Whether there is a lock file."""
        return self.path.exists()

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def lock_path(store: Path) -> Path:
    """The lock file of `store`. Symbolic links to one store share its lock."""
    real = real_path(store)
    return real.with_name(f"{real.name}.lock")


def _who(text: bytes) -> str:
    try:
        holder = decode_json(text, Holder)
    except Undecodable:  # it is about to write it
        return "another process"
    return f"process {holder.pid} (klinesync {holder.command}), since {holder.since}"

"""StoreLock: one process writes to a store at a time, and says which.

The lock is the kernel's (`flock`) on a file beside the store, so it ends with the process, `kill -9` included. What the
file holds is for people only: a stale one is no obstacle. It is never removed, for who waits for a removed file waits
for nothing.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import msgspec

from klinesync.core.errors import StoreError


class StoreLocked(StoreError):
    """Another process writes to the store."""

    code = "store_locked"


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock: process id, command (`serve`), and since when (ISO 8601)."""

    pid: int
    command: str
    since: str


class StoreLock:
    """The right to write to the store at `store`, for `command`."""

    def __init__(self, store: Path, command: str) -> None:
        # Symbolic links to one store share its lock.
        self.path = store.resolve().with_name(f"{store.resolve().name}.lock")
        self._store = store
        self._command = command
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock; at once or not at all. Raises `StoreLocked`, `OSError`."""
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StoreLocked(
                f"the store {self._store} is in use by {_who(file.read())}; one process writes to a store at a time"
            ) from None
        else:
            self._file = file
        finally:
            if self._file is None:
                file.close()
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        file.truncate(0)
        file.write(msgspec.json.encode(Holder(os.getpid(), self._command, since)).decode())
        file.flush()

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _who(text: str) -> str:
    try:
        holder = msgspec.json.decode(text, type=Holder)
    except msgspec.DecodeError:  # it is about to write it
        return "another process"
    return f"process {holder.pid} (klinesync {holder.command}), since {holder.since}"

"""A disk that becomes full: a VFS of SQLite on which files grow until the room is used up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import apsw

_NAME = "small-disk"


class SmallDisk(apsw.VFS):
    """SQLite's own VFS, except that writes beyond the end of a file use up `room_bytes`, and are refused as the system
    does (ENOSPC) when the room is too small. `refused` counts the refusals."""

    def __init__(self, room_bytes: int = 1 << 40) -> None:
        self.real = apsw.vfs_names()[0]  # the first one is the default
        super().__init__(_NAME, self.real, makedefault=True)
        self._lock = threading.Lock()
        self.room_bytes = room_bytes
        self.refused = 0

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:  # noqa: N802  # SQLite's name
        return _File(self, name, flags)

    def take(self, count: int) -> None:
        with self._lock:
            if count > self.room_bytes:
                self.refused += 1
                raise apsw.FullError("no space left on the device")
            self.room_bytes -= count


class _File(apsw.VFSFile):
    def __init__(self, disk: SmallDisk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(disk.real, name, flags)
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        longer = offset + len(data) - super().xFileSize()
        if longer > 0:
            self._disk.take(longer)
        super().xWrite(data, offset)


@contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """The VFS with which this process opens every store during the block."""
    disk = SmallDisk()
    try:
        yield disk
    finally:
        disk.unregister()
        apsw.set_default_vfs(disk.real)

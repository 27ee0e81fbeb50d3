"""LogWatch: whether a store's write-ahead log still holds what was committed to it.

SQLite knows by its shared-memory file which frames the log holds, and never looks again: a log that was cut or written
over while the store is open takes further writes, and the checkpoint brings its zeros or foreign pages into the store.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from klinesync.storage.wal_origin import checksum

# https://sqlite.org/walformat.html#the_wal_index_file_format: the header's two copies, in the machine's byte order:
# version, unused, change, initialised, order of checksums, page size, frames, pages, checksum of the last frame (2),
# salts (as they are in the log), checksum of the header (2).
_INDEX = struct.Struct("=3I2BH2I2I8s2I")
_CHECKED_BYTES = 40
_NATIVE = "<" if sys.byteorder == "little" else ">"
# The first piece of the shared-memory file that SQLite maps, in bytes.
LEAST_INDEX_BYTES = 32_768
# The log: a header, whose salts are at 16; frames of a header, whose checksum is at 16, and a page.
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MIDDLE = 16
# Looks at a log that another program's checkpoint may be cutting rightfully: the index tells of that first.
LOOKS = 3


class LogWatch:
    """The log and the shared-memory file beside the store at `real`, a path without symbolic links.

    Opened after SQLite opened the store, and closed after SQLite closed it: closing any descriptor of the
    shared-memory file ends SQLite's locks on it.
    """

    def __init__(self, real: Path) -> None:
        self._wal_path = Path(f"{real}-wal")
        self._shm_path = Path(f"{real}-shm")
        self._wal: int | None = None
        self._shm: int | None = None
        self._index_bytes = LEAST_INDEX_BYTES
        # Set for good: a checkpoint would bring the log's damage into the store.
        self.damaged = False

    def open(self) -> None:
        """Hold both files. Raises `OSError`."""
        self.close()
        self.damaged, self._index_bytes = False, LEAST_INDEX_BYTES
        self._wal = os.open(self._wal_path, os.O_RDONLY | os.O_CLOEXEC)
        self._shm = os.open(self._shm_path, os.O_RDWR | os.O_CLOEXEC)

    def check_index(self) -> str | None:
        """Whether the shared-memory file was cut, in words; None when it is whole. It gets its length back, because
        SQLite ends the process when it reads beyond the end; SQLite makes the content anew from the log."""
        assert self._shm is not None, "the watch is open"
        size = os.fstat(self._shm).st_size
        if size >= self._index_bytes:
            self._index_bytes = size
            return None
        os.ftruncate(self._shm, self._index_bytes)
        return f"its shared-memory file {self._shm_path} was cut"

    def check(self) -> str | None:
        """What is wrong with the log, in words; None when it holds what SQLite's index says."""
        if self.damaged:
            return self._cut()
        assert self._wal is not None, "the watch is open"
        assert self._shm is not None, "the watch is open"
        before = b""
        for _ in range(LOOKS):
            index = os.pread(self._shm, _INDEX.size, 0)
            if self._holds(self._wal, index):
                return None
            if index == before:
                self.damaged = True
                return self._cut()
            before = index
        return None  # the index moves on: the next look tells

    def close(self) -> None:
        """Let go of both files; after SQLite has."""
        for descriptor in (self._wal, self._shm):
            if descriptor is not None:
                os.close(descriptor)
        self._wal = self._shm = None

    def _cut(self) -> str:
        return f"its write-ahead log {self._wal_path} was cut or written over"

    @staticmethod
    def _holds(wal: int, index: bytes) -> bool:
        """Whether the log holds what the index's header says. Of a header that is not whole nothing is known: SQLite
        makes the index anew."""
        if len(index) < _INDEX.size:
            return True
        _, _, _, ready, _, page, frames, _, *last, salts, one, two = _INDEX.unpack(index)
        if not ready or not frames or checksum(_NATIVE, index[:_CHECKED_BYTES], (0, 0)) != (one, two):
            return True
        frame_bytes = _FRAME_HEADER_BYTES + (65_536 if page == 1 else page)
        at = _LOG_HEADER_BYTES + (frames - 1) * frame_bytes
        if os.fstat(wal).st_size < at + frame_bytes or os.pread(wal, len(salts), _MIDDLE) != salts:
            return False
        return os.pread(wal, 8, at + _MIDDLE) == struct.pack(">2I", *last)

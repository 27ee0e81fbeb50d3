"""Checksums of the pages of a store's file, by SQLite's checksum VFS.

The VFS keeps a checksum in the last 8 bytes of each page, and compares it whenever a page is read from the disk: a page
that is not as it was written fails the statement that needs it (`BadPage`). A store gets the 8 bytes when it is made;
one from before has none, and is used as it is. APSW's wheel brings the VFS as an extension.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from klinesync.core.errors import StoreError

# Bytes at the end of each page for its checksum; the VFS works with this number alone.
RESERVED_BYTES: Final = 8
# The VFS, as APSW names the extension.
EXTENSION = "cksumvfs"
# Pages whose checksums are compared at once: some 3 ms of work.
PAGES_AT_ONCE: Final = 256
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"

_loading = threading.Lock()
_loaded: bool | None = None


def load() -> bool:
    """Make the checksum VFS the default of this process. Returns False where this installation does not have it. Files
    without the reserved bytes are not affected."""
    global _loaded  # a VFS is registered once a process
    with _loading:
        if _loaded is None:
            _loaded = _register()
        return _loaded


def _register() -> bool:
    try:
        from apsw import sqlite_extra
    except ImportError:  # an APSW from before it brought extensions
        return False
    try:
        memory = apsw.Connection(":memory:")
        sqlite_extra.load(memory, EXTENSION)
        memory.close()
    except (LookupError, AttributeError, sqlite_extra.NotAvailable, apsw.Error):
        return False
    return True


def reserve(connection: apsw.Connection) -> None:
    """Have the pages of a new, empty file checked from now on, where that is possible."""
    if load():
        connection.reserve_bytes(reserve=RESERVED_BYTES)


def refuse_unchecked(path: Path) -> None:
    """Raises `StoreError` where the file has checksums and this installation cannot write them: what it would write
    would be taken for damage. A file that cannot be inspected is reported when it is opened."""
    if not load() and is_checked(path):
        raise StoreError(
            f"the pages of the store {path} have checksums, and this installation of APSW lacks SQLite's checksum VFS; "
            "install the wheel of apsw from PyPI"
        )


def is_checked(path: Path) -> bool:
    """Whether the file's pages have checksums; False of a file that cannot be read. Not for a store that this process
    has open: closing the file would end SQLite's locks on it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return checked_page_size(file) is not None
        finally:
            os.close(file)
    except (OSError, ValueError):
        return False


def checksum(page: bytes) -> bytes:
    """The checksum of a page: its last `RESERVED_BYTES` when nothing has changed it."""
    return bytes(_checksums(np.frombuffer(page, "<u4").reshape(1, -1))[0].astype("<u4").tobytes())


def checked_page_size(file: int) -> int | None:
    """The bytes of a page, by the file's header; None when its pages have no checksums. Raises `OSError`."""
    header = os.pread(file, _HEADER_BYTES, 0)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC) or header[20] != RESERVED_BYTES:
        return None
    size = int.from_bytes(header[16:18])
    size = 65_536 if size == 1 else size
    return size if size >= 512 and size & (size - 1) == 0 else None


def bad_pages(file: int, size: int, first: int, most: int) -> tuple[list[int], int]:
    """The pages that fail their checksum, among the next ones of a checked file. Of a store that is being written a
    page may be half written: look again before you believe it.

    file: a descriptor, open for reading.
    size: bytes of a page.
    first: number of the first page to check; pages count from 1.
    most: most pages to check.

    Returns their numbers, and how many pages were checked: 0 at the end of the file. Raises `OSError`.
    """
    found = os.pread(file, most * size, (first - 1) * size)
    count = len(found) // size
    if not count:
        return [], 0
    pages = np.frombuffer(found[: count * size], "<u4").reshape(count, size // 4)
    wrong = (_checksums(pages) != pages[:, -2:]).any(axis=1)
    return (np.flatnonzero(wrong) + first).tolist(), count


def _checksums(pages: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The two sums of each page, over all words but the last two; all pages at once, word by word."""
    words = np.ascontiguousarray(pages[:, :-2].T)
    one, two = np.zeros(len(pages), np.uint32), np.zeros(len(pages), np.uint32)
    for at in range(0, len(words), 2):
        one += words[at] + two
        two += words[at + 1] + one
    return np.stack((one, two), axis=1)

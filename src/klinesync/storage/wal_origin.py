"""Whether a write-ahead log continues the store that it lies beside.

SQLite knows a log by its name alone. A process that was killed leaves its log; a backup that is then put in place of
the store would get the log's pages, which are of another state: a file of two halves. Each transaction of a store
raises `commit_count` by one, so the log tells where it begins: at the transaction after the last one of its store.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import apsw

from klinesync.core.errors import StoreError
from klinesync.runtime.looking import real_path
from klinesync.storage.disk import UNREADABLE

# The log's format (https://sqlite.org/fileformat2.html#walformat): a header of 32 bytes, then frames: 24 bytes, a page.
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
# Frames whose checksums are computed before the first `commit_count` is met; 1 MB, some 20 ms. It lies in one of the
# first pages of a store, and a transaction writes its pages in ascending order.
MAX_CHECKED_FRAMES = 256


class ForeignLog(StoreError):
    """The write-ahead log beside a store is another store's. Nothing was opened for writing."""

    code = "foreign_log"


class _Stored(NamedTuple):
    """What the file alone says, without its log: the page of `commit_count`, and its value."""

    page: int
    commits: int


def refuse_foreign_log(path: Path) -> None:
    """Raises `ForeignLog` when the log beside the closed store `path` does not continue it. What cannot be told (no
    log, a file that cannot be read) is reported when the store is opened. Only reads."""
    wal = Path(f"{real_path(path)}-wal")
    try:
        if wal.stat().st_size <= _HEADER.size:
            return
        stored = _stored(path)
        counts = None if stored is None else _counts_in(wal, stored.page)
    except (apsw.Error, OSError, *UNREADABLE):
        return
    if stored is None or counts is None:
        return
    first, last = counts
    if first - 1 <= stored.commits <= last:
        return
    raise ForeignLog(
        f"the write-ahead log {wal} is not of the store {path}: the log has transactions {first} to {last}, and the "
        f"store ends with {stored.commits}; probably a backup was put in place of a store whose process was killed. "
        f"Nothing was changed. Move the log away to open {path} as it is, or put the former store back beside its log"
    )


def _stored(path: Path) -> _Stored | None:
    connection = apsw.Connection(
        f"file:{quote(str(path.absolute()))}?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    try:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'commit_count'").get
        commits = None if page is None else connection.execute("SELECT commits FROM commit_count").get
    finally:
        connection.close()
    return _Stored(page, commits) if isinstance(page, int) and isinstance(commits, int) else None


def _counts_in(wal: Path, page: int) -> tuple[int, int] | None:
    """The first and the greatest `commit_count` in the log; None when its beginning has none that is whole."""
    with wal.open("rb") as file:
        counts = _counts(file.fileno(), page)
        first = next(counts, None)
        return None if first is None else (first, max(counts, default=first))


def _counts(file: int, page: int) -> Iterator[int]:
    """The values of `commit_count`, in the order of the log. Up to the first one checksums are looked at: what a loss
    of power left half written counts for nothing."""
    raw = os.pread(file, _HEADER.size, 0)
    if len(raw) < _HEADER.size:
        return
    magic, _, page_size, _, *salts, one, two = _HEADER.unpack(raw)
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or not 512 <= page_size <= 65536:
        return
    order = ">" if magic == _MAGIC_BIG else "<"
    sums = checksum(order, raw[:24], (0, 0))
    if sums != (one, two):
        return
    at, found = _HEADER.size, False
    for number in range(1 << 62):
        head = os.pread(file, _FRAME.size, at)
        if len(head) < _FRAME.size:
            return
        number_of_page, _, *frame_salts, one, two = _FRAME.unpack(head)
        if frame_salts != salts:
            return  # of an earlier log, whose place this one takes
        if not found:
            if number == MAX_CHECKED_FRAMES:
                return
            content = os.pread(file, page_size, at + _FRAME.size)
            if len(content) < page_size:
                return
            sums = checksum(order, content, checksum(order, head[:8], sums))
            if sums != (one, two):
                return
        if number_of_page == page:
            commits = _only_integer(os.pread(file, page_size, at + _FRAME.size))
            if commits is not None:
                found = True
                yield commits
        at += _FRAME.size + page_size


def checksum(order: str, content: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """The log's checksum of `content`, whose length is a multiple of 8 bytes, continued from `sums`. `order`: `<` or
    `>`, the byte order of the numbers that are summed."""
    one, two = sums
    for even, odd in struct.iter_unpack(f"{order}2I", content):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def _only_integer(page: bytes) -> int | None:
    """The value of a table of one row with one integer, of whose only page these are the bytes; None for any others
    (https://sqlite.org/fileformat2.html#b_tree_pages)."""
    if len(page) < 16 or page[0] != 0x0D or int.from_bytes(page[3:5]) != 1:
        return None
    cell = page[int.from_bytes(page[8:10]) :]
    # Payload, row id, and the record's header (its length, one type) take a byte each.
    if len(cell) < 4 or cell[1] & 0x80 or cell[2] != 2:
        return None
    kind = cell[3]
    if kind in (8, 9):
        return kind - 8
    length = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}.get(kind)
    if length is None or len(cell) < 4 + length:
        return None
    return int.from_bytes(cell[4 : 4 + length], signed=True)

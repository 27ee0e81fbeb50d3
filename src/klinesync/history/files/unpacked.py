"""The size of a table in memory, from the metadata of its file, before the table is unpacked.

A few kilobytes of zeros can unpack into gigabytes: a record batch of Arrow and a page of parquet are unpacked whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pa_parquet

# Largest record batch or row group in memory, in bytes: ten million candles.
MAX_UNPACKED_BYTES = 512 << 20
# Largest metadata of the footer or of a batch, in bytes. A footer has 24 bytes for each batch.
MAX_METADATA_BYTES = 64 << 20

# The format (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format): a file ends with its footer, the
# footer's length and a mark; batches lie where the footer says, each behind its own metadata.
_MAGIC = b"ARROW1"
_TAIL = struct.Struct("<i6s")
_CONTINUES = 0xFFFFFFFF
_BLOCK = struct.Struct("<qi4xq")
_BUFFER = struct.Struct("<qq")
# Fields by number, as Arrow's schema of its metadata lists them.
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_KIND, _MESSAGE_HEADER = 1, 2
_IS_DICTIONARY, _DICTIONARY_DATA = 2, 1
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3


def check_feather(path: Path) -> None:
    """Raises ValueError for a feather file with a batch beyond `MAX_UNPACKED_BYTES`, or damaged metadata; and what
    reading raises."""
    try:
        with path.open("rb") as file:
            dictionaries, batches = _blocks(file)
            _check(sum(_unpacked(file, block) for block in dictionaries), "dictionaries")
            for number, block in enumerate(batches, 1):
                _check(_unpacked(file, block), f"record batch {number}")
    except (struct.error, IndexError):
        raise ValueError("its metadata is damaged") from None


def check_parquet(file: pa_parquet.ParquetFile) -> None:
    """Raises ValueError for a parquet file with a row group beyond `MAX_UNPACKED_BYTES`, all columns counted.

    The metadata of single columns is not read: when it is damaged, pyarrow 26 ends the process (`ColumnChunkMetaData`
    lets the C++ exception through), while reading such a column raises.
    """
    for number in range(file.metadata.num_row_groups):
        _check(file.metadata.row_group(number).total_byte_size, f"row group {number + 1}")


def _check(size: int, what: str) -> None:
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"its {what} would take {size} bytes of memory, and at most {MAX_UNPACKED_BYTES} are taken; "
            "write it in smaller pieces, of 65536 rows say"
        )


def _blocks(file: BinaryIO) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The dictionaries and the batches: offset, and bytes of metadata before the body."""
    file.seek(-_TAIL.size, os.SEEK_END)
    length, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != _MAGIC or not 0 < length <= MAX_METADATA_BYTES:
        raise ValueError("it has no footer, and may be cut off; fetch it again")
    file.seek(-_TAIL.size - length, os.SEEK_END)
    footer = _Table.root(file.read(length))
    dictionaries, batches = (
        [(offset, metadata) for offset, metadata, _ in footer.structs(number, _BLOCK)]
        for number in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES)
    )
    return dictionaries, batches


def _unpacked(file: BinaryIO, block: tuple[int, int]) -> int:
    """Size in memory of the batch at `block`, in bytes."""
    offset, length = block
    if offset < 0 or not 0 < length <= MAX_METADATA_BYTES:
        raise ValueError("its metadata is damaged")
    file.seek(offset)
    metadata = file.read(length)
    (mark,) = struct.unpack_from("<I", metadata)
    message = _Table.root(metadata[8 if mark == _CONTINUES else 4 :])
    batch = message.table(_MESSAGE_HEADER)
    if batch is not None and message.byte(_MESSAGE_KIND) == _IS_DICTIONARY:
        batch = batch.table(_DICTIONARY_DATA)
    if batch is None:
        return 0
    buffers = list(batch.structs(_BATCH_BUFFERS, _BUFFER))
    if batch.table(_BATCH_COMPRESSION) is None:
        return sum(size for _, size in buffers)
    return sum(_unpacked_buffer(file, offset + length + at, size) for at, size in buffers)


def _unpacked_buffer(file: BinaryIO, at: int, size: int) -> int:
    """Size in memory of a compressed buffer, which begins with this size; -1 marks an uncompressed buffer."""
    if size < 8:
        return size
    file.seek(max(at, 0))
    (unpacked,) = struct.unpack("<q", file.read(8))
    return size if unpacked < 0 else int(unpacked)


class _Table:
    """A table of a flatbuffer (https://flatbuffers.dev/internals/): fields by number, each of which may be absent."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """The root table of a flatbuffer. Raises `struct.error` when the buffer is damaged, as all methods do."""
        return cls(data, cls._follow(data, 0))

    def byte(self, number: int) -> int:
        """A field of one byte; 0 when it is absent."""
        at = self._field(number)
        return 0 if at is None else self._data[at]

    def table(self, number: int) -> _Table | None:
        """A field that is a table."""
        at = self._field(number)
        return None if at is None else _Table(self._data, self._follow(self._data, at))

    def structs(self, number: int, layout: struct.Struct) -> Iterator[Sequence[int]]:
        """A field that is a list of `layout`; empty when it is absent."""
        at = self._field(number)
        if at is None:
            return
        at = self._follow(self._data, at)
        (count,) = struct.unpack_from("<I", self._data, at)
        for place in range(at + 4, at + 4 + count * layout.size, layout.size):
            yield layout.unpack_from(self._data, place)

    def _field(self, number: int) -> int | None:
        (back,) = struct.unpack_from("<i", self._data, self._at)
        fields = self._at - back
        if fields < 0:
            raise struct.error("before the beginning")
        (length,) = struct.unpack_from("<H", self._data, fields)
        if 4 + 2 * number >= length:
            return None
        (offset,) = struct.unpack_from("<H", self._data, fields + 4 + 2 * number)
        return self._at + int(offset) if offset else None

    @staticmethod
    def _follow(data: bytes, at: int) -> int:
        (offset,) = struct.unpack_from("<I", data, at)
        return at + int(offset)

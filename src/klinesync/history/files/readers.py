"""Files with candles, read batch by batch: feather, parquet, freqtrade's JSON, CSV, and the zips of an archive.

Memory does not grow with the file. Rows that cannot be read are reported to `broken`; `rows.Judge` validates the
others.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pa_parquet

from klinesync.core.decoding import reason_of
from klinesync.core.errors import Rejected
from klinesync.core.printable import printable
from klinesync.history.files.cells import find_columns
from klinesync.history.files.csv_files import csv_names, read_csv, read_zip
from klinesync.history.files.json_files import Broken, read_json, read_json_gz
from klinesync.history.files.names import CHECKSUM
from klinesync.history.files.rows import Columns
from klinesync.history.files.unpacked import check_feather, check_parquet

T = TypeVar("T")

# Rows that are decoded at a time, where the format allows a choice.
BATCH_ROWS = 16_384
# Longest checksum file: 64 hexadecimal digits and a name.
MAX_CHECKSUM_BYTES = 1000
# Bytes that are hashed between two checks whether to stop.
HASH_BYTES = 1 << 22


class BadFile(Rejected):
    """A file that is refused as a whole. `reason` says why."""

    code = "bad_file"

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(printable(f"{path} is refused: {reason}"))


def batches(path: Path, broken: Broken, *, unterminated: bool = False, ending: str | None = None) -> Iterator[Columns]:
    """The rows of a file in its order.

    path: the file.
    broken: called with a sentence about each row that cannot be read.
    unterminated: the last line of a CSV may lack its line end; False by default.
    ending: the format, as the end of a file name; None (the default): that of `path`.

    Raises `BadFile`.
    """
    name = path.name.lower() if ending is None else ending
    reader = next((reader for known, reader in _READERS.items() if name.endswith(known)), None)
    if reader is None:
        raise BadFile(path, f"its name ends in none of {' '.join(ENDINGS)}")
    check_regular(path)
    if unterminated and reader is read_csv:
        reader = partial(read_csv, unterminated=True)
    try:
        yield from reader(path, broken)
    except _READ_ERRORS as error:
        raise BadFile(path, f"it cannot be read: {_first_line(error)}") from error


def ending_by_content(path: Path) -> str:
    """The format of a table by its content: `.feather`, `.parquet`, else `.csv`. Raises `BadFile`."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise BadFile(path, f"it cannot be read: {error.strerror}") from error
    return ".feather" if magic == b"ARROW1" else ".parquet" if magic.startswith(b"PAR1") else ".csv"


def column_names(path: Path, ending: str) -> list[str]:
    """The names of all columns of a table. Raises `BadFile`."""
    try:
        if ending == ".feather":
            with _opened(path) as file, pa_ipc.open_file(file) as reader:
                return list(reader.schema.names)
        if ending == ".parquet":
            with _opened(path) as file:
                return list(pa_parquet.read_schema(file).names)
        return csv_names(path)
    except _READ_ERRORS as error:
        raise BadFile(path, f"it cannot be read: {_first_line(error)}") from error


def check_regular(path: Path) -> None:
    """Raises `BadFile` unless `path` is a regular file: opening a named pipe blocks, and a file is read more than
    once."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise BadFile(path, "there is no such file") from None
    except OSError as error:
        raise BadFile(path, f"it cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        what = next((what for is_such, what in _IRREGULAR if is_such(mode)), "no file")
        raise BadFile(path, f"it is {what}; only regular files are read")


def verify_checksum(path: Path, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Compare an archive's zip with the checksum file beside it. `stopped`: see `check_sha256`. Returns whether there
    is a checksum file. Raises `BadFile` when the checksums differ."""
    beside = path.with_name(path.name + CHECKSUM)
    if not os.path.lexists(beside):
        return False
    check_regular(beside)
    try:
        with beside.open("rb") as file:
            text = file.read(MAX_CHECKSUM_BYTES)
    except OSError as error:
        raise BadFile(path, f"its checksum {beside} cannot be read: {error.strerror}") from error
    check_sha256(path, text, stopped)
    return True


def check_sha256(path: Path, checksum: bytes, stopped: Callable[[], bool] = lambda: False) -> None:
    """Compare a file with its checksum.

    path: the file.
    checksum: the text of its checksum file.
    stopped: asked between blocks whether to end early; never by default.

    Raises `BadFile` when they differ.
    """
    wanted = re.match(rb"\s*([0-9a-fA-F]{64})(?:\s|$)", checksum)
    if wanted is None:
        raise BadFile(path, "its checksum file holds no SHA-256")
    check_regular(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while (block := file.read(HASH_BYTES)) and not stopped():
                digest.update(block)
    except OSError as error:
        raise BadFile(path, f"it cannot be read: {error.strerror}") from error
    actual, expected = digest.hexdigest(), wanted[1].decode().lower()
    if actual != expected:
        raise BadFile(
            path, f"its SHA-256 is {actual[:12]}…, and its checksum file says {expected[:12]}…; fetch it again"
        )


async def next_in_thread(pages: Iterator[T], name: str) -> T | None:
    """The next page of an iterator that blocks, read in a thread; None at its end. On cancellation the read in flight
    is finished first, because a running generator cannot be closed. `name`: of the task."""
    step = asyncio.create_task(asyncio.to_thread(next, pages, None), name=name)
    try:
        return await asyncio.shield(step)
    finally:
        if not step.done():
            await asyncio.wait([step])


# --- tables: feather, parquet. They have no broken rows: such a file is whole, or cannot be read


def _feather(path: Path, _broken: Broken) -> Iterator[Columns]:
    # Not mapped into memory: a file that another program cuts short meanwhile would end this one with SIGBUS.
    check_feather(path)
    with _opened(path) as file, pa_ipc.open_file(file) as reader:
        table = find_columns(reader.schema.names)
        for at in range(reader.num_record_batches):
            batch = reader.get_batch(at)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                rows = batch.slice(start, BATCH_ROWS)
                yield table.rows(rows.column)


def _parquet(path: Path, _broken: Broken) -> Iterator[Columns]:
    with _opened(path) as opened, pa_parquet.ParquetFile(opened) as file:
        table = find_columns(file.schema_arrow.names)
        check_parquet(file)
        for batch in file.iter_batches(BATCH_ROWS, columns=table.wanted):
            yield table.rows(batch.column)


def _opened(path: Path) -> pa.PythonFile:
    """The open file: pyarrow itself opens only names in UTF-8."""
    return pa.PythonFile(path.open("rb"), "r")


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
    return (text or type(error).__name__).splitlines()[0].rstrip(".")


_IRREGULAR: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)
_READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error, pa.ArrowException, msgspec.MsgspecError,
    zipfile.BadZipFile, NotImplementedError, RuntimeError,  # the last two: zips of other kinds, encrypted ones
)  # fmt: skip
_READERS: dict[str, Callable[[Path, Broken], Iterator[Columns]]] = {
    ".feather": _feather,
    ".parquet": _parquet,
    ".json": read_json,
    ".json.gz": read_json_gz,
    ".csv": read_csv,
    ".zip": read_zip,
}
# Ends of the names of files that can be read.
ENDINGS = tuple(_READERS)

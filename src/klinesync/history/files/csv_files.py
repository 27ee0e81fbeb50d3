"""CSV, in a file or in an archive's zip: separators, headers, ends that may be cut off.

A line end proves that the last number is whole. Without one a file may be cut inside that number, and nothing in the
file would tell.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from klinesync.core.printable import shown
from klinesync.history.files.cells import TIME_COLUMNS, VALUE_COLUMNS, find_columns, of_arrow
from klinesync.history.files.json_files import Broken
from klinesync.history.files.rows import Columns

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Bytes of text that are decoded at a time.
BLOCK_BYTES = 1 << 20
# A line that is longer is none of a table of candles, in bytes.
MAX_LINE_BYTES = 100_000
SEPARATORS = (",", ";", "\t", "|")
# How the file in a zip may be packed.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Utf8(io.RawIOBase):
    """A file in which each byte that is no UTF-8 is a question mark. pyarrow reads cells as bytes, but makes text of a
    row of another length; where it cannot, it prints a trace and gives up the whole file."""

    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """As of a file that is read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As of a file, but for those bytes."""
        view = memoryview(buffer)
        if not self._ready:
            self._ready = memoryview(self._next())
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _next(self) -> bytes:
        """The next bytes; a character is held back until its last byte has come. Empty at the end."""
        while block := self._file.read(BLOCK_BYTES):
            if block.isascii() and not self._decoder.getstate()[0]:
                return block
            text = self._decoder.decode(block)
            if text:
                return text.encode(errors="replace")  # one question mark for each byte
        return self._decoder.decode(b"", final=True).encode(errors="replace")


class _Head(NamedTuple):
    """The first lines. `skip`: lines before the first row; `names`: those of its columns."""

    separator: str
    names: list[str]
    skip: int


def read_csv(path: Path, broken: Broken, *, unterminated: bool = False) -> Iterator[Columns]:
    """The rows of a `.csv` file. With `unterminated` the last line may lack its line end. Raises ValueError, and what
    reading raises."""
    with path.open("rb") as file:
        head = _read_head(file)
        _check_end(file, head, unterminated=unterminated)
        file.seek(0)
        yield from _rows(file, head, broken)


def csv_names(path: Path) -> list[str]:
    """The names of a `.csv` file's columns. Raises ValueError, and what reading raises."""
    with path.open("rb") as file:
        return _read_head(file).names


def read_zip(path: Path, broken: Broken) -> Iterator[Columns]:
    """The rows of the one CSV in a zip, whose CRC proves that it is whole."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ValueError(f"it holds {len(members)} files instead of one")
        if members[0].compress_type not in _PACKINGS:  # Python unpacks the others without a limit of memory
            raise ValueError("its file is not packed by deflate, as zip does; pack it anew")
        with archive.open(members[0]) as file:
            head = _read_head(file)
        with archive.open(members[0]) as file:
            yield from _rows(file, head, broken)


def _read_head(file: BinaryIO | IO[bytes]) -> _Head:
    """What the first line says, or the second one behind Excel's `sep=;`. Without names in it the first six columns
    are a candle's, in its order. Raises ValueError."""
    line = _line(file)
    given = re.fullmatch(r'"?sep=(.)"?', line, re.IGNORECASE)
    if given is not None:
        line = _line(file)
    separator = given[1] if given is not None else max(SEPARATORS, key=line.count)
    cells = [cell.strip() for cell in _cells(line, separator)]
    skip = 0 if given is None else 1
    # An index of pandas has no name: a header can begin with an empty cell.
    if not re.match(r"[\d.+-]", cells[0]):
        return _Head(separator, cells, skip + 1)
    if len(cells) < 1 + len(VALUE_COLUMNS):
        raise ValueError(
            f"its rows have {len(cells)} columns, and a candle has 6; its first line is {shown(line)}, "
            f"and columns are separated by {' '.join(map(repr, SEPARATORS))}"
        )
    others = (f"column {at}" for at in range(2 + len(VALUE_COLUMNS), len(cells) + 1))
    return _Head(separator, [TIME_COLUMNS[1], *VALUE_COLUMNS, *others], skip)


def _line(file: BinaryIO | IO[bytes]) -> str:
    raw = file.readline(MAX_LINE_BYTES)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    if not raw.strip():
        raise ValueError("it is empty" if not raw else "its first line is empty")
    # Old files end their lines with \r alone.
    return re.split(r"[\r\n]", raw.decode("utf-8-sig"), maxsplit=1)[0]


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [""])
    except csv.Error as error:
        raise ValueError(f"{error}: {shown(line)}") from None


def _check_end(file: BinaryIO, head: _Head, *, unterminated: bool) -> None:
    """Raises ValueError where the last line has no end, and may be cut off."""
    size = file.seek(0, 2)
    file.seek(max(0, size - MAX_LINE_BYTES))
    end = file.read(MAX_LINE_BYTES)
    if end.endswith((b"\n", b"\r")):
        return
    line = re.split(rb"[\r\n]", end)[-1].decode(errors="replace")
    if not line.strip():
        return
    if line.count('"') % 2 or len(_cells(line, head.separator)) < len(head.names):
        raise ValueError(f"it ends in the middle of a row: {shown(line)}; fetch it again")
    if not unterminated:
        raise ValueError(
            f"its last line has no line end, so that its last number may be cut off: {shown(line)}; fetch it again, or "
            "take it as it is with --unterminated"
        )


def _rows(file: BinaryIO | IO[bytes], head: _Head, broken: Broken) -> Iterator[Columns]:
    wanted = find_columns(head.names)
    # Columns are told apart by their place: a name may stand there twice, or be empty.
    keys = [f"column {at}" for at in range(len(head.names))]
    wanted_keys = [keys[head.names.index(name)] for name in wanted]

    def skip(row: pa_csv.InvalidRow) -> Literal["skip", "error"]:
        broken(f"line {row.number} has {row.actual_columns} columns instead of {row.expected_columns}")
        return "skip"

    # All is read as bytes first, so that one cell that is no number costs its row and not the file.
    reader = pa_csv.open_csv(
        io.BufferedReader(_Utf8(file), BLOCK_BYTES),
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, column_names=keys, skip_rows=head.skip
        ),
        parse_options=pa_csv.ParseOptions(delimiter=head.separator, invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.binary()), include_columns=wanted_keys
        ),
    )
    with reader:
        for batch in reader:
            yield of_arrow(wanted, [batch.column(key) for key in wanted_keys])

"""CSV, in a file or in an archive's zip: separators, headers, truncated ends.

The line end of the last line proves that its last number is whole. Without the line end the file may have been
truncated inside that number.
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
from klinesync.history.files.cells import FLOW_COLUMNS, TIME_COLUMNS, VALUE_COLUMNS, find_columns
from klinesync.history.files.json_files import BLOCK_BYTES, Broken
from klinesync.history.files.rows import Columns

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Longest line, in bytes; a longer line belongs to no table of candles.
MAX_LINE_BYTES = 100_000
# Number of columns of Binance's archive, which has no header on spot: open time, prices, volume, close time, order
# flow, and one that is unused.
BINANCE_COLUMNS = 12
SEPARATORS = (",", ";", "\t", "|")
# Compression methods of the file in a zip.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Utf8(io.RawIOBase):
    """A file in which each byte that is no UTF-8 is replaced by a question mark. pyarrow decodes rows with a wrong
    number of cells as text; when the decoding fails, pyarrow prints a traceback and gives up the whole file."""

    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer)
        if not self._ready:
            self._ready = memoryview(self._next())
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _next(self) -> bytes:
        """The next bytes; an incomplete character waits for its last byte. Empty at the end."""
        while block := self._file.read(BLOCK_BYTES):
            if block.isascii() and not self._decoder.getstate()[0]:
                return block
            text = self._decoder.decode(block)
            if text:
                return text.encode(errors="replace")  # one question mark for each byte
        return self._decoder.decode(b"", final=True).encode(errors="replace")


class _Head(NamedTuple):
    """The head of a file. `names`: of its columns; `skip`: lines before the first row."""

    separator: str
    names: list[str]
    skip: int


def read_csv(path: Path, broken: Broken, *, unterminated: bool = False) -> Iterator[Columns]:
    """The rows of a `.csv` file.

    path: the file.
    broken: called with a sentence about each row that cannot be read.
    unterminated: the last line may lack its line end; False by default.

    Raises ValueError, and what reading raises.
    """
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
    """The rows of the CSV in a zip, whose CRC proves that the CSV is whole."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ValueError(f"it holds {len(members)} files instead of one")
        if members[0].compress_type not in _COMPRESSIONS:  # Python unpacks the others without a limit of memory
            raise ValueError("its file is not packed by deflate, as zip does; pack it anew")
        with archive.open(members[0]) as file:
            head = _read_head(file)
        with archive.open(members[0]) as file:
            yield from _rows(file, head, broken)


def _read_head(file: BinaryIO | IO[bytes]) -> _Head:
    """The head of a file: its first line, or the line after Excel's `sep=;`. Without names the first six columns are
    those of a candle, in its order; twelve columns with a close time in the seventh are Binance's, with order flow.
    Raises ValueError."""
    line = _line(file)
    excel = re.fullmatch(r'"?sep=(.)"?', line, re.IGNORECASE)
    if excel is not None:
        line = _line(file)
    separator = excel[1] if excel is not None else max(SEPARATORS, key=line.count)
    cells = [cell.strip() for cell in _cells(line, separator)]
    skip = 0 if excel is None else 1
    # A header may begin with an empty cell: the unnamed index of pandas.
    if not re.match(r"[\d.+-]", cells[0]):
        return _Head(separator, cells, skip + 1)
    if len(cells) < 1 + len(VALUE_COLUMNS):
        raise ValueError(
            f"its rows have {len(cells)} columns, and a candle has 6; its first line is {shown(line)}, "
            f"and columns are separated by {' '.join(map(repr, SEPARATORS))}"
        )
    ohlcv = [TIME_COLUMNS[1], *VALUE_COLUMNS]
    if len(cells) == BINANCE_COLUMNS and _is_later(cells[len(ohlcv)], cells[0]):
        return _Head(separator, [*ohlcv, "close_time", *(names[0] for names in FLOW_COLUMNS), "ignore"], skip)
    others = (f"column {at}" for at in range(1 + len(ohlcv), len(cells) + 1))
    return _Head(separator, [*ohlcv, *others], skip)


def _is_later(close_time: str, open_time: str) -> bool:
    return close_time.isdecimal() and open_time.isdecimal() and int(close_time) > int(open_time)


def _line(file: BinaryIO | IO[bytes]) -> str:
    raw = file.readline(MAX_LINE_BYTES)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    if not raw.strip():
        raise ValueError("it is empty" if not raw else "its first line is empty")
    # Old files have `\r` as their line end.
    return re.split(r"[\r\n]", raw.decode("utf-8-sig"), maxsplit=1)[0]


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [""])
    except csv.Error as error:
        raise ValueError(f"{error}: {shown(line)}") from None


def _check_end(file: BinaryIO, head: _Head, *, unterminated: bool) -> None:
    """Raises ValueError when the last line has no line end, and may be truncated."""
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
    table = find_columns(head.names)
    # Columns are identified by their index, because names may be empty, or not unique.
    keys = [f"column {at}" for at in range(len(head.names))]
    key_of = {name: keys[head.names.index(name)] for name in table.wanted}

    def skip(row: pa_csv.InvalidRow) -> Literal["skip", "error"]:
        broken(f"line {row.number} has {row.actual_columns} columns instead of {row.expected_columns}")
        return "skip"

    # Cells are read as bytes, so that a cell that is no number loses its row, not the file.
    reader = pa_csv.open_csv(
        io.BufferedReader(_Utf8(file), BLOCK_BYTES),
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, column_names=keys, skip_rows=head.skip
        ),
        parse_options=pa_csv.ParseOptions(delimiter=head.separator, invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.binary()), include_columns=list(key_of.values())
        ),
    )
    with reader:
        for batch in reader:
            yield table.rows(batch.rename_columns(list(key_of)).column)

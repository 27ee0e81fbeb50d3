"""freqtrade's JSON, read block by block: [[ms, open, high, low, close, volume], …]."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from klinesync.core.printable import shown
from klinesync.history.files.cells import (
    READ_TIMES,
    VALUE_COLUMNS,
    Unread,
    float_of_cell,
    time_of_cell,
    times_of_ints,
)
from klinesync.history.files.rows import NO_TIME, Columns

# Bytes of text that are decoded at a time.
BLOCK_BYTES = 1 << 20
# Longest row, in bytes; a longer row is no candle.
MAX_ROW_BYTES = 100_000

# Takes a sentence about a row that cannot be read.
Broken = Callable[[str], None]
_Row = tuple[int, float, float, float, float, float]
_ROWS = msgspec.json.Decoder(list[_Row])
_LOOSE_ROWS = msgspec.json.Decoder(list[object])
_COLUMNS = 6


def read_json(path: Path, broken: Broken) -> Iterator[Columns]:
    """The rows of a `.json` file. Raises ValueError, and what reading raises."""
    with path.open("rb") as file:
        yield from _json_rows(file, broken)


def read_json_gz(path: Path, broken: Broken) -> Iterator[Columns]:
    """The rows of a `.json.gz` file."""
    with gzip.open(path) as file:
        yield from _json_rows(file, broken)


def _json_rows(file: IO[bytes] | gzip.GzipFile, broken: Broken) -> Iterator[Columns]:
    text = file.read(BLOCK_BYTES).lstrip()
    if not text.startswith(b"["):
        raise ValueError("it is no JSON array")
    text = text[1:]
    while block := file.read(BLOCK_BYTES):
        text += block
        cut = text.rfind(b"],")
        if cut < 0:
            if len(text) > MAX_ROW_BYTES + BLOCK_BYTES:
                raise ValueError("it is no JSON array of rows")
            continue
        yield _columns(b"[" + text[: cut + 1] + b"]", broken)
        text = text[cut + 2 :]
    yield _columns(b"[" + text, broken)


def _columns(text: bytes, broken: Broken) -> Columns:
    unread = Unread()
    try:
        rows = _ROWS.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        rows, exact = [], False
        for row in _loose_rows(text):
            cells = _cells(row, broken)
            if cells is not None:
                rows.append(_row(cells, len(rows), unread))
    else:
        exact = True
    if not rows:
        return Columns(np.empty(0, np.int64), *(np.empty(0) for _ in VALUE_COLUMNS))
    time, *values = zip(*rows, strict=True)
    open_, high, low, close, volume = (np.array(column, np.float64) for column in values)
    times = np.array(time, np.int64)
    return Columns(times_of_ints(times) if exact else times, open_, high, low, close, volume, unread=unread.rows)


def _loose_rows(text: bytes) -> list[object]:
    """Rows with cells of any type. `NaN` and `Infinity`, which Python writes, are read although they are no JSON."""
    try:
        return _LOOSE_ROWS.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        problem = error
    try:
        rows: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(str(problem)) from None
    assert isinstance(rows, list), "the text begins with a bracket"
    return rows


def _cells(row: object, broken: Broken) -> list[object] | None:
    if not isinstance(row, list) or len(row) < _COLUMNS:
        what = f"has {len(row)} values instead of {_COLUMNS}" if isinstance(row, list) else "is no list of values"
        broken(f"a row {what}: {shown(repr(row)[:200])}")
        return None
    return row


def _row(cells: list[object], at: int, unread: Unread) -> _Row:
    time = time_of_cell(cells[0])
    if time == NO_TIME:
        unread.note(
            at, "it has no time" if cells[0] is None else f"its time {_text(cells[0])} cannot be read; {READ_TIMES}"
        )
    values = [float_of_cell(cell) for cell in cells[1:_COLUMNS]]
    for name, value, cell in zip(VALUE_COLUMNS, values, cells[1:_COLUMNS], strict=True):
        if value != value:
            unread.note(at, f"it has no {name}" if cell is None else f"its {name} {_text(cell)} is no number")
    open_, high, low, close, volume = values
    return time, open_, high, low, close, volume


def _text(cell: object) -> str:
    return shown(cell if isinstance(cell, str) else repr(cell)[:200])

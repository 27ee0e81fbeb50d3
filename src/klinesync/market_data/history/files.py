"""Files with candles, read batch by batch: feather, parquet, freqtrade's JSON, CSV, and the zips of an archive.

Memory does not grow with the file. What cannot be read as a row is told to `broken`; whether rows make sense is for
`rows.Judge`.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pa_parquet

from klinesync.core.errors import Rejected
from klinesync.market_data.history.names import CHECKSUM
from klinesync.market_data.history.rows import NO_TIME, Columns, Floats, Ints, seconds, whole_seconds

# Rows that are decoded at a time, where the format leaves the choice to us.
BATCH_ROWS = 16_384
# Bytes of text that are decoded at a time.
BLOCK_BYTES = 1 << 20
# A checksum file holds 64 hexadecimal digits and a name.
MAX_CHECKSUM_BYTES = 1000
# A line that is longer is none of a table of candles.
MAX_LINE_BYTES = 100_000
TIME_COLUMNS = ("candle_time", "date", "timestamp", "open_time")
VALUE_COLUMNS = ("open", "high", "low", "close", "volume")

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array[pa.Scalar[pa.DataType]]
    Int64s: TypeAlias = pa.Array[pa.lib.Int64Scalar] | pa.Array[pa.Scalar[pa.lib.Int64Type]]
    Texts: TypeAlias = pa.Array[pa.lib.StringScalar] | pa.Array[pa.Scalar[pa.lib.StringType]]

# Is told why a row cannot be read.
Broken = Callable[[str], None]
_Cell = float | str | bool | None
_Row = tuple[int, float, float, float, float, float]
_ROWS = msgspec.json.Decoder(list[_Row])
_LOOSE_ROWS = msgspec.json.Decoder(list[list[_Cell]])


class BadFile(Rejected):
    """A file that is refused as a whole. `reason` says why."""

    code = "bad_file"

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is refused: {reason}")


def batches(path: Path, broken: Broken) -> Iterator[Columns]:
    """The rows of a file in its order; the kind of file is told by the end of its name. Raises `BadFile`."""
    reader = next((reader for ending, reader in _READERS.items() if path.name.lower().endswith(ending)), None)
    if reader is None:
        raise BadFile(path, f"its name ends in none of {' '.join(_READERS)}")
    try:
        yield from reader(path, broken)
    except _READ_ERRORS as error:
        raise BadFile(path, f"it cannot be read: {_first_line(error)}") from error


def verify_checksum(path: Path) -> bool:
    """Whether a checksum file lies beside an archive's zip. Raises `BadFile` when the zip is not what it says."""
    beside = path.with_name(path.name + CHECKSUM)
    try:
        with beside.open("rb") as file:
            text = file.read(MAX_CHECKSUM_BYTES)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BadFile(path, f"its checksum {beside} cannot be read: {error.strerror}") from error
    check_sha256(path, text)
    return True


def check_sha256(path: Path, checksum: bytes) -> None:
    """Raises `BadFile` when the file's SHA-256 is not what the text of a checksum file says."""
    wanted = re.match(rb"\s*([0-9a-fA-F]{64})(?:\s|$)", checksum)
    if wanted is None:
        raise BadFile(path, "its checksum file holds no SHA-256")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFile(path, f"it cannot be read: {error.strerror}") from error
    expected = wanted[1].decode().lower()
    if found != expected:
        raise BadFile(
            path, f"its SHA-256 is {found[:12]}…, and its checksum file says {expected[:12]}…; fetch it again"
        )


# --- tables: feather, parquet. They have no broken rows: such a file is whole, or cannot be read


def _feather(path: Path, _broken: Broken) -> Iterator[Columns]:
    with pa.memory_map(str(path)) as file, pa_ipc.open_file(file) as reader:
        time, *values = _names_in(reader.schema.names)
        for at in range(reader.num_record_batches):
            batch = reader.get_batch(at)
            yield _of_arrow(time, [batch.column(name) for name in (time, *values)])


def _parquet(path: Path, _broken: Broken) -> Iterator[Columns]:
    with pa_parquet.ParquetFile(path) as file:
        names = _names_in(file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
            yield _of_arrow(names[0], [batch.column(name) for name in names])


def _names_in(names: list[str]) -> tuple[str, ...]:
    """The columns of a table that hold time, prices and volume. Raises ValueError when one is not there."""
    known = {name.strip().lower(): name for name in names}
    time = next((known[name] for name in TIME_COLUMNS if name in known), None)
    missing = [name for name in VALUE_COLUMNS if name not in known]
    if time is None or missing:
        lacks = " or ".join(TIME_COLUMNS[:3]) if time is None else missing[0]
        raise ValueError(f"it has no column {lacks}")
    return time, *(known[name] for name in VALUE_COLUMNS)


def _of_arrow(time_name: str, arrays: list[Array]) -> Columns:
    time, *values = arrays
    kind = time.type
    if pa.types.is_string(kind):
        times = _times_of_text(time_name, time.cast(pa.string()))
    elif isinstance(kind, pa.TimestampType):
        times = whole_seconds(_ints(time.cast(pa.int64())), _IN_A_SECOND[kind.unit])
    elif pa.types.is_date(kind):
        times = _ints(time.cast(pa.timestamp("s")).cast(pa.int64()))
    elif pa.types.is_integer(kind):
        times = _times_of_ints(time_name, _ints(time.cast(pa.int64())))
    else:
        raise ValueError(f"its column {time_name} is {kind}, which is no time")
    open_, high, low, close, volume = (_floats(array) for array in values)
    return Columns(times, open_, high, low, close, volume)


def _times_of_ints(name: str, raw: Ints) -> Ints:
    """Our own `candle_time` is in seconds; others tell the unit by their size."""
    return raw if name.strip().lower() == TIME_COLUMNS[0] else seconds(raw)


def _ints(array: Int64s) -> Ints:
    filled = array.fill_null(NO_TIME) if array.null_count else array
    ints: Ints = filled.to_numpy(zero_copy_only=False)
    return ints


def _floats(array: Array) -> Floats:
    if pa.types.is_string(array.type):
        return _floats_of_text(array.cast(pa.string()))
    floats: Floats = array.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
    return floats


# --- freqtrade's JSON: [[ms, open, high, low, close, volume], …]


def _json(path: Path, broken: Broken) -> Iterator[Columns]:
    with path.open("rb") as file:
        yield from _json_rows(file, broken)


def _json_gz(path: Path, broken: Broken) -> Iterator[Columns]:
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
            if len(text) > MAX_LINE_BYTES + BLOCK_BYTES:
                raise ValueError("it is no JSON array of rows")
            continue
        yield _json_columns(b"[" + text[: cut + 1] + b"]", broken)
        text = text[cut + 2 :]
    yield _json_columns(b"[" + text, broken)


def _json_columns(text: bytes, broken: Broken) -> Columns:
    try:
        rows = _ROWS.decode(text)
    except msgspec.ValidationError:
        rows = [row for cells in _LOOSE_ROWS.decode(text) if (row := _json_row(cells, broken)) is not None]
    if not rows:
        return _NOTHING
    time, *values = zip(*rows, strict=True)
    open_, high, low, close, volume = (np.array(column, np.float64) for column in values)
    return Columns(whole_seconds(np.array(time, np.int64), 1000), open_, high, low, close, volume)


def _json_row(cells: list[_Cell], broken: Broken) -> _Row | None:
    if len(cells) != 6:
        broken(f"a row has {len(cells)} values instead of 6: {cells!r:.100}")
        return None
    time, open_, high, low, close, volume = (
        float(cell) if isinstance(cell, int | float) else float("nan") for cell in cells
    )
    whole = abs(time) < 2**53 and time.is_integer()
    return int(time) if whole else NO_TIME, open_, high, low, close, volume


# --- CSV, and the CSV in an archive's zip


def _csv(path: Path, broken: Broken) -> Iterator[Columns]:
    with path.open("rb") as file:
        head = file.readline(MAX_LINE_BYTES)
        file.seek(0)
        yield from _csv_rows(file, head, broken)


def _zip(path: Path, broken: Broken) -> Iterator[Columns]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise ValueError(f"it holds {len(members)} files instead of one")
        with archive.open(members[0]) as file:
            head = file.readline(MAX_LINE_BYTES)
        with archive.open(members[0]) as file:
            yield from _csv_rows(file, head, broken)


def _csv_rows(file: BinaryIO | IO[bytes], head: bytes, broken: Broken) -> Iterator[Columns]:
    """`head` is the first line; without names in it the first six columns are a candle's, in its order."""
    if not head.strip():
        raise ValueError("it is empty")
    cells = [cell.strip().strip('"') for cell in head.decode("utf-8-sig").rstrip("\r\n").split(",")]
    bare = bool(re.match(r"[\d.+-]", cells[0]))
    if bare and len(cells) < 6:
        raise ValueError(f"its rows have {len(cells)} columns, and a candle has 6")
    names = (
        [*TIME_COLUMNS[-1:], *VALUE_COLUMNS, *(f"column {at}" for at in range(7, len(cells) + 1))] if bare else cells
    )
    wanted = _names_in(names)

    def skip(row: pa_csv.InvalidRow) -> Literal["skip", "error"]:
        broken(f"line {row.number} has {row.actual_columns} columns instead of {row.expected_columns}")
        return "skip"

    # All is read as text first, so that one cell that is no number costs its row and not the file.
    reader = pa_csv.open_csv(
        file,
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=0 if bare else 1
        ),
        parse_options=pa_csv.ParseOptions(invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=list(wanted)
        ),
    )
    with reader:
        for batch in reader:
            yield _of_arrow(wanted[0], [batch.column(name) for name in wanted])


def _times_of_text(name: str, texts: Texts) -> Ints:
    """Whole numbers, or moments in ISO 8601, UTC where they name no zone."""
    try:
        return _times_of_ints(name, _ints(pc.cast(texts, pa.int64())))
    except pa.ArrowInvalid:
        pass
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            return whole_seconds(_ints(pc.cast(texts, kind).cast(pa.int64())), 1_000_000)
        except pa.ArrowInvalid:
            continue
    return np.array([_time_of_text(name, text) for text in texts.to_pylist()], np.int64)


def _time_of_text(name: str, text: str | None) -> int:
    """One that does not go with the others."""
    if not text:
        return NO_TIME
    try:
        return int(_times_of_ints(name, np.array([int(text)], np.int64))[0])
    except (ValueError, OverflowError):
        pass
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            micros = pc.cast(pa.array([text]), kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        return int(whole_seconds(_ints(micros), 1_000_000)[0])
    return NO_TIME


def _floats_of_text(texts: Texts) -> Floats:
    try:
        floats: Floats = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return np.array([_float_of_text(text) for text in texts.to_pylist()], np.float64)
    return floats


def _float_of_text(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).splitlines()[0].rstrip(".")


_IN_A_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_NOTHING = Columns(np.empty(0, np.int64), *(np.empty(0) for _ in range(5)))
_READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error, pa.ArrowException, msgspec.MsgspecError,
    zipfile.BadZipFile, NotImplementedError, RuntimeError,  # the last two: zips of other kinds, encrypted ones
)  # fmt: skip
_READERS: dict[str, Callable[[Path, Broken], Iterator[Columns]]] = {
    ".feather": _feather,
    ".parquet": _parquet,
    ".json": _json,
    ".json.gz": _json_gz,
    ".csv": _csv,
    ".zip": _zip,
}

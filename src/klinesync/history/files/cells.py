"""Parsing cells of tables as times and numbers: names of columns, dates, units. Pure: no file is opened here.

A cell that cannot be read loses its row, not the file: the cell becomes `NO_TIME` or NaN, and `Unread` has the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from klinesync.core.printable import shown
from klinesync.history.files.rows import (
    MAX_EXAMPLES,
    NO_TIME,
    Columns,
    Flags,
    Floats,
    Flow,
    Ints,
    seconds,
    whole_seconds,
)

# Names of the column with the open time, in the order of preference; case, spaces, `_` and `-` are ignored.
TIME_COLUMNS = ("candle_time", "open_time", "date", "datetime", "time", "timestamp", "unix")
VALUE_COLUMNS = ("open", "high", "low", "close", "volume")
# Names of the columns with the order flow, in the order of `Candle`: ours, then those of Binance's archive and of its
# clients.
FLOW_COLUMNS = (
    ("quote_volume", "quote_asset_volume"),
    ("trades", "count", "number_of_trades"),
    ("taker_buy_volume", "taker_buy_base_asset_volume"),
    ("taker_buy_quote_volume", "taker_buy_quote_asset_volume"),
)
# Names of pandas' unnamed index, in parquet and in CSV.
UNNAMED_INDEX = ("__index_level_0__", "")
# Most names of columns in a sentence.
MAX_NAMES_SHOWN = 12
READ_TIMES = (
    "read are unix times (seconds to nanoseconds, also 1747699200000.0), 2025-05-20 00:00:00, 2025/05/20, 20250520, "
    "with a zone or in UTC"
)

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array[pa.Scalar[pa.DataType]]
    Int64s: TypeAlias = pa.Array[pa.lib.Int64Scalar] | pa.Array[pa.Scalar[pa.lib.Int64Type]]
    Texts: TypeAlias = pa.Array[pa.lib.StringScalar] | pa.Array[pa.Scalar[pa.lib.StringType]]

_DATE = re.compile(
    r"(\d{4})(?:([-/.])(\d{1,2})\2(\d{1,2})|(\d\d)(\d\d))"
    r"(?:[ T]+(\d{1,2}):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?"
    r" ?(Z|UTC|GMT|[+-]\d\d:?(?:\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
# Numbers that are dates: YYYYMMDD, YYYYMMDDhhmm, YYYYMMDDhhmmss of the years 1970 to 2100. As unix times of any unit
# they lie in 1970, 1976 or past 2590, where no exchange has candles.
_DATE_NUMBERS = (1, 10**4, 10**6)  # factor of the digits after the eight digits of a date
_FIRST_DATE, _END_DATE = 1970_01_01, 2101_01_01
# Words for a missing value of the order flow, in lower case.
_MISSING = frozenset(("", "nan", "null", "none", "na", "n/a"))
_IN_A_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


class Unread:
    """Why cells of a batch cannot be read, by row, for the first `MAX_EXAMPLES` such rows."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}

    def note(self, row: int, why: str) -> None:
        """Add a reason; the first reason of a row counts. `row`: its index in the batch."""
        if len(self.rows) < MAX_EXAMPLES:
            self.rows.setdefault(row, why)


class Table(NamedTuple):
    """The columns of a table that are read. `ohlcv`: names of open time, prices and volume; `flow`: of the order flow,
    None for a column that is missing."""

    ohlcv: tuple[str, ...]
    flow: tuple[str | None, ...]

    @property
    def wanted(self) -> list[str]:
        """The names of all columns that are read."""
        return [*self.ohlcv, *(name for name in self.flow if name is not None)]

    def rows(self, column: Callable[[str], Array]) -> Columns:
        """Rows of the table. `column`: the cells of a column, by name. Raises ValueError for a column whose type is no
        time, or no number."""
        flow = [None if name is None else column(name) for name in self.flow]
        return of_arrow(self.ohlcv, [column(name) for name in self.ohlcv], flow)


def find_columns(names: Sequence[str]) -> Table:
    """The columns that are read of a table with these columns. Raises ValueError with the columns of the file and the
    missing column."""
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(_folded(name), []).append(name)
    time = next((name for name in map(_folded, TIME_COLUMNS) if name in known), None)
    if time is None:
        time = next((name for name in map(_folded, UNNAMED_INDEX) if name in known), None)
    missing = [name for name in VALUE_COLUMNS if name not in known]
    if time is None or missing:
        absent = f"column {missing[0]}" if missing else f"column with the open time ({', '.join(TIME_COLUMNS)})"
        first = ", ".join(shown(name, 40) for name in names[:MAX_NAMES_SHOWN])
        more = ", …" if len(names) > MAX_NAMES_SHOWN else ""
        raise ValueError(f"it has no {absent}; its columns are {first}{more}")
    flow = [next((name for name in map(_folded, several) if name in known), None) for several in FLOW_COLUMNS]
    for name in (time, *VALUE_COLUMNS, *filter(None, flow)):
        if len(known[name]) > 1:
            raise ValueError(f"it has more than one column {shown(known[name][0], 40)}")
    return Table(
        (known[time][0], *(known[name][0] for name in VALUE_COLUMNS)),
        tuple(None if name is None else known[name][0] for name in flow),
    )


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.strip().lower())


def of_arrow(names: Sequence[str], arrays: Sequence[Array], flow: Sequence[Array | None] = ()) -> Columns:
    """Rows from Arrow columns.

    names, arrays: of open time, prices and volume.
    flow: of the order flow, None for a missing column; none by default.

    Raises ValueError for a column of `arrays` whose type is no time, or no number.
    """
    unread = Unread()
    time = times(names[0], arrays[0], unread)
    values = (floats(name, array, unread) for name, array in zip(names[1:], arrays[1:], strict=True))
    return Columns(time, *values, flow=_flow(flow, len(time)), unread=unread.rows)


def _flow(arrays: Sequence[Array | None], count: int) -> Flow | None:
    if all(array is None for array in arrays):
        return None
    quote, trades, taker, taker_quote = (
        np.full(count, np.nan) if array is None else flow_floats(array) for array in arrays
    )
    return quote, trades, taker, taker_quote


# Made once: pyarrow looks for pandas, file by file, for each scalar that it makes.
_EMPTY = pa.scalar("")
_NULL = pa.scalar(None, pa.string())


def flow_floats(array: Array) -> Floats:
    """A column of order flow: NaN for a missing value, infinity for a cell that cannot be read as a number."""
    array = _plain(array)
    kind = array.type
    if pa.types.is_string(kind):
        texts: Texts = array.cast(pa.string())
        try:
            return _as_floats(pc.cast(texts, pa.float64()))  # the usual case: every cell is a number
        except pa.ArrowInvalid:
            texts = pc.utf8_trim_whitespace(texts)
        texts = pc.call_function("if_else", [pc.call_function("equal", [texts, _EMPTY]), _NULL, texts])
        try:
            return _as_floats(pc.cast(texts, pa.float64()))
        except pa.ArrowInvalid:
            cells = (float_of_cell(text) if text is not None else np.nan for text in texts.to_pylist())
            numbers = np.fromiter(cells, np.float64, len(texts))
            return np.where(np.isnan(numbers) & ~_is_missing(texts), np.inf, numbers)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return _as_floats(array)
    return np.full(len(array), np.inf)


def _is_missing(texts: Texts) -> Flags:
    """Cells without a value: empty, or the words that programs write for that."""
    missing: Flags = np.array([text is None or text.lower() in _MISSING for text in texts.to_pylist()], np.bool_)
    return missing


def times(name: str, array: Array, unread: Unread) -> Ints:
    """A column of open times, as UTC seconds."""
    array = _plain(array)
    kind = array.type
    if pa.types.is_string(kind):
        return _times_of_text(name, array.cast(pa.string()), unread)
    if isinstance(kind, pa.TimestampType):
        return whole_seconds(_ints(array.cast(pa.int64())), _IN_A_SECOND[kind.unit])
    if pa.types.is_date(kind):
        return _ints(array.cast(pa.timestamp("s")).cast(pa.int64()))
    if pa.types.is_integer(kind):
        # Numbers past 2^63 become negative, which no time is.
        return _times_of_ints(name, _ints(array.cast(pa.int64(), safe=False)))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return _times_of_floats(name, _as_floats(array))
    raise ValueError(f"its column {shown(name, 40)} is {shown(str(kind))}, which is no time; {READ_TIMES}")


def floats(name: str, array: Array, unread: Unread) -> Floats:
    """A column of prices or volumes; NaN for a missing value."""
    array = _plain(array)
    kind = array.type
    if pa.types.is_string(kind):
        return _floats_of_text(name, array.cast(pa.string()), unread)
    if (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):  # fmt: skip
        return _as_floats(array)
    raise ValueError(f"its column {shown(name, 40)} is {shown(str(kind))}, which is no number")


def time_of_cell(cell: object) -> int:
    """A cell of JSON as UTC seconds; `NO_TIME` when the cell is no time."""
    if isinstance(cell, str):
        return _time_of_text("", cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return NO_TIME
    if isinstance(cell, int):
        return int(_times_of_ints("", np.array([cell], np.int64))[0]) if abs(cell) < 2**63 else NO_TIME
    return int(_times_of_floats("", np.array([cell]))[0])


def float_of_cell(cell: object) -> float:
    """A cell of JSON as a number; NaN when the cell is no number."""
    if isinstance(cell, str):
        return _float_of_text(cell)
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return float("nan")
    try:
        return float(cell)
    except OverflowError:  # a whole number of more than 308 digits
        return float("nan")


def _plain(array: Array) -> Array:
    """Text in any of Arrow's encodings (large, view, bytes, dictionary, runs) as plain strings."""
    if isinstance(array, pa.RunEndEncodedArray):
        array = pc.call_function("run_end_decode", [array])
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        try:
            return array.cast(pa.string())
        except pa.ArrowInvalid:  # bytes that are no UTF-8
            return pa.array([_decoded(cell.as_py()) for cell in array], pa.string())
    return array


def _decoded(cell: object) -> str | None:
    return cell.decode(errors="replace") if isinstance(cell, bytes) else None


def _as_floats(array: Array) -> Floats:
    # Not safe: whole numbers beyond 2^53 are rounded. Null becomes NaN.
    numbers: Floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _ints(array: Int64s) -> Ints:
    filled = array.fill_null(NO_TIME) if array.null_count else array
    ints: Ints = filled.to_numpy(zero_copy_only=False)
    return ints


def _times_of_ints(name: str, raw: Ints) -> Ints:
    """Times of a column: the own `candle_time` is in seconds; the unit of other columns follows from their size."""
    return raw if _folded(name) == _folded(TIME_COLUMNS[0]) else times_of_ints(raw)


def times_of_ints(raw: Ints) -> Ints:
    """Unix times of any unit, and dates as numbers, as UTC seconds."""
    times = seconds(raw)
    for unit in _DATE_NUMBERS:
        dates = (raw >= _FIRST_DATE * unit) & (raw < _END_DATE * unit)
        if dates.any():
            times = np.where(dates, _seconds_of_dates(raw, unit), times)
    return times


def _seconds_of_dates(raw: Ints, unit: int) -> Ints:
    """Numbers YYYYMMDD, with `unit` 10^4 and 10^6 followed by hhmm and hhmmss."""
    day, clock = raw // unit, raw % unit
    if unit == 10**4:
        clock = clock * 100
    year, month, of_month = day // 10**4, day // 100 % 100, day % 100
    hour, minute, second = clock // 10**4, clock // 100 % 100, clock % 100
    sound = (month >= 1) & (month <= 12) & (of_month >= 1) & (hour < 24) & (minute < 60) & (second < 60)
    months = ((year - 1970) * 12 + np.where(sound, month, 1) - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (of_month - 1)
    sound &= days.astype("datetime64[M]") == months  # not the 31st of June
    times: Ints = np.where(
        sound, days.astype("datetime64[s]").astype(np.int64) + hour * 3600 + minute * 60 + second, NO_TIME
    )
    return times


def _times_of_floats(name: str, raw: Floats) -> Ints:
    whole = np.isfinite(raw) & (np.abs(raw) < 2.0**63)
    whole &= np.where(whole, raw, 0.5) == np.floor(np.where(whole, raw, 0.0))
    ints = np.where(whole, raw, NO_TIME).astype(np.int64)
    return np.where(whole, _times_of_ints(name, ints), NO_TIME)


def _times_of_text(name: str, texts: Texts, unread: Unread) -> Ints:
    """Times from texts: numbers or dates. Most columns have a single form, and are converted at once."""
    try:
        return _times_of_ints(name, _ints(pc.cast(texts, pa.int64())))
    except pa.ArrowInvalid:
        pass
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us")):
        try:
            return whole_seconds(_ints(pc.cast(texts, kind).cast(pa.int64())), 1_000_000)
        except pa.ArrowInvalid:
            continue
    try:
        return _times_of_floats(name, _as_floats(pc.cast(texts, pa.float64())))
    except pa.ArrowInvalid:
        pass
    times = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts.to_pylist()):
        times[row] = time = _time_of_text(name, text)
        if time == NO_TIME:
            unread.note(row, f"its time {shown(text)} cannot be read; {READ_TIMES}" if text else "it has no time")
    return times


def _time_of_text(name: str, text: str | None) -> int:
    text = (text or "").strip()
    match = _DATE.fullmatch(text)
    # Eight digits alone are a number, which `times_of_ints` may take for a date.
    if match is not None and not text.isdecimal():
        return _moment(match)
    if not re.fullmatch(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", text, re.ASCII):
        return NO_TIME
    try:
        return int(_times_of_ints(name, np.array([int(text)], np.int64))[0])
    except (ValueError, OverflowError):
        return int(_times_of_floats(name, np.array([float(text)]))[0])


def _moment(match: re.Match[str]) -> int:
    year, _, month, day, of_eight, of_eight_day, hour, minute, second, fraction, zone = match.groups()
    if fraction is not None and fraction.strip("0"):
        return NO_TIME  # a fraction of a second
    try:
        moment = datetime(
            int(year), int(month or of_eight), int(day or of_eight_day), int(hour or 0), int(minute or 0),
            int(second or 0), tzinfo=_zone(zone),
        )  # fmt: skip
        return int(moment.timestamp())
    except (ValueError, OverflowError):  # the 31st of June
        return NO_TIME


def _zone(text: str | None) -> timezone:
    if text is None or text.upper() in ("Z", "UTC", "GMT"):
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:].lstrip(":") or 0))
    return timezone(-offset if text[0] == "-" else offset)


def _floats_of_text(name: str, texts: Texts, unread: Unread) -> Floats:
    try:
        return _as_floats(pc.cast(texts, pa.float64()))
    except pa.ArrowInvalid:
        pass
    numbers = np.empty(len(texts))
    for row, text in enumerate(texts.to_pylist()):
        numbers[row] = number = _float_of_text(text)
        if number != number:
            unread.note(row, _no_number(name, text))
    return numbers


def _float_of_text(text: str | None) -> float:
    try:
        return float("nan" if not text or "_" in text else text)
    except ValueError:
        return float("nan")


def _no_number(name: str, text: str | None) -> str:
    if not text or not text.strip():
        return f"it has no {name.strip().lower()}"
    hint = "; decimals are written with a point" if "," in text else ""
    return f"its {name.strip().lower()} {shown(text)} is no number{hint}"

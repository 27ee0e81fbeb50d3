"""Export: closed candles of a series, exactly as stored, into a parquet, feather or CSV file, with columns of factors.

The file appears when it is complete and synced to disk. It replaces a file with further candles or columns only on
request. Memory does not grow with the file, except for its open times and a file that it is merged with.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pa_parquet

from klinesync.core.candle import MAX_TIME, OHLCV, Candle
from klinesync.core.dates import iso
from klinesync.core.errors import KlinesyncError, UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.files import rows
from klinesync.history.files.names import freqtrade_path
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Reading
from klinesync.storage.disk import disk_trouble, sync

if TYPE_CHECKING:
    from klinesync.history.files.factor_columns import FactorColumns, Kind, Values
    from klinesync.history.files.merging import Merged

    Array: TypeAlias = pa.Array[pa.Scalar[pa.DataType]]

Format = Literal["parquet", "feather", "csv"]

# Candles of one read of the store.
WINDOW_CANDLES = 20_000
# Candles of a row group of the file.
GROUP_CANDLES = 65_536
EVER = Span(0, MAX_TIME + 1)

_VALUES: list[tuple[str, pa.DataType]] = [(name, pa.float64()) for name in Candle._fields[1:OHLCV]]
_FLOW: list[tuple[str, pa.DataType]] = [
    (name, pa.int64() if name == "trades" else pa.float64()) for name in Candle._fields[OHLCV:]
]
_OURS = pa.schema([("candle_time", pa.int64()), *_VALUES, *_FLOW])
_FREQTRADES = pa.schema([("date", pa.timestamp("ms", "UTC")), *_VALUES])
_KINDS: Mapping[Kind, pa.DataType] = {"number": pa.float64(), "integer": pa.int64(), "text": pa.string()}


class ExportFailed(KlinesyncError):
    """A file that cannot be written."""

    code = "export_failed"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported file.

    path: the file.
    candles: candles of the store in it.
    merged: how they compare with the existing file that they were merged with; None when there was none.
    """

    path: Path
    candles: int
    merged: Merged | None = None


def export(
    store: Reading,
    series: SeriesId,
    span: Span,
    output: Path,
    kind: Format,
    *,
    freqtrade: bool = False,
    overwrite: bool = False,
    factors: FactorColumns | None = None,
    progress: Callable[[int, int], None] = lambda _upto, _count: None,
) -> Exported:
    """Write the candles that open in a span into a file.

    store: has the candles.
    series: whose candles.
    span: open times.
    output: the file; with `freqtrade`, freqtrade's data folder of the exchange, in which the file is named.
    kind: format of the file.
    freqtrade: write freqtrade's form: the first column is `date` (UTC, milliseconds) in place of `candle_time` (UTC
        seconds), there is no order flow, and an existing file is merged: its further candles are kept, and the store's
        values replace its own.
    overwrite: replace an existing file. Without, a file with candles or columns that the export lacks is kept, and
        `ExportFailed` raised.
    factors: columns to add after the values and the order flow, null where a factor says nothing; None (the default):
        none.
    progress: called with the open time that is reached, and the number of candles written.

    Returns the file. Raises `UnknownSeries`, `StoreError`, `ExportFailed` (also when the span has no candle), and
    `FactorsLag` when factors lag behind the candles.
    """
    stored = store.read(lambda look: look.span(series))
    if stored is None:
        raise UnknownSeries(str(series), "the store has no candles of it")
    if str(output) == "-":
        raise ExportFailed("an export is put in place whole, and cannot go to standard output; name a file")
    path = output / freqtrade_path(series, f".{kind}") if freqtrade else output
    before = _state(path)  # before links are followed: what /dev/stdout resolves to has no path
    path = path.resolve() if path.is_symlink() else path
    how = _merging() if freqtrade and not overwrite and before is not None else None
    schema = _FREQTRADES if freqtrade else _OURS
    times: list[rows.Ints] = []

    def counted(pages: Iterator[rows.Columns]) -> Iterator[rows.Columns]:
        for page in pages:
            times.append(page.time)
            yield page

    if factors is None:
        pages = counted(_read(store, series, span))
        if how is not None:
            pages = _merged_with(path, pages, how)
        batches: Iterator[tuple[int, pa.RecordBatch]] = (
            (int(page.time[-1]), _batch(page, schema)) for page in rows.pages(pages, GROUP_CANDLES)
        )
    else:
        for name, its_kind in factors.kinds.items():
            schema = schema.append(pa.field(name, _KINDS[its_kind]))
        batches = _grouped(_with_factors(store, series, span, factors, schema, times), GROUP_CANDLES)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if freqtrade:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            count = 0
            # Opened here: pyarrow opens only files whose names are UTF-8.
            with part.open("xb") as file, _writer(kind, file, schema) as writer:
                for upto, batch in batches:
                    writer.write_batch(batch)
                    count += batch.num_rows
                    progress(upto, count)
            written = np.concatenate(times) if times else np.empty(0, np.int64)
            if not len(written):
                kept = "" if before is None else f"; {path} is left as it is"
                raise ExportFailed(
                    f"the store has no candles of {series} from {_iso(span.start)} to {_iso(span.end)}, only from "
                    f"{_iso(stored.start)} to {_iso(stored.end)}{kept}"
                )
            if before is not None and not overwrite:
                _check_not_poorer(path, schema, written if how is None else None)
            if _state(path) != before:
                raise ExportFailed(
                    f"{path} was changed by another program meanwhile, and is left as it is; run it again"
                )
            if before is not None:
                part.chmod(path.stat().st_mode & 0o7777)
            sync(part)
            part.replace(path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        # pyarrow's texts are long
        why = disk_trouble(OSError(error.errno, os.strerror(error.errno)), path) if error.errno else error
        raise ExportFailed(f"{path} cannot be written: {why}") from error
    return Exported(path, len(written), how)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and modification time of a file; None when it does not exist. Raises `ExportFailed` unless the file
    is regular."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExportFailed(f"{path} cannot be written: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise ExportFailed(f"{path} cannot be written: it is {what}")
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


# Modules that read files are imported where an existing file is read: importing them takes as long as the export of
# 100,000 candles.


def _merging() -> Merged:
    from klinesync.history.files.merging import Merged

    return Merged()


def _merged_with(path: Path, pages: Iterator[rows.Columns], how: Merged) -> Iterator[rows.Columns]:
    from klinesync.history.files.merging import merged, rows_of
    from klinesync.history.files.readers import BadFile

    try:
        old = rows_of(path)
    except BadFile as error:
        raise ExportFailed(f"{path} cannot be merged with: {error.reason}; --overwrite replaces it") from error
    return merged((page.with_flow(None) for page in pages), old, how)


def _check_not_poorer(path: Path, schema: pa.Schema, times: rows.Ints | None) -> None:
    """Raises `ExportFailed` when the existing file has columns or candles that would be lost."""
    from klinesync.history.files.merging import poorer

    why = poorer(path, schema.names, times)
    if why is not None:
        raise ExportFailed(f"{path} is left as it is: {why}; --overwrite replaces it")


def _iso(time_s: int) -> str:
    return iso(min(time_s, MAX_TIME))


def _read(store: Reading, series: SeriesId, span: Span) -> Iterator[rows.Columns]:
    start = span.start
    while start < span.end:
        window = Span(start, span.end)
        page = store.read(lambda look, window=window: look.oldest_columns(series, WINDOW_CANDLES, window))  # type: ignore[misc]
        if not len(page.time):
            return
        yield rows.of_store(page)
        start = int(page.time[-1]) + 1


def _with_factors(
    store: Reading, series: SeriesId, span: Span, factors: FactorColumns, schema: pa.Schema, times: list[rows.Ints]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches with the time of their last candle. Candles and factors of a batch are read in one transaction. Their
    open times are appended to `times`."""

    def look(store: CandleStore, since: int) -> tuple[list[Candle], dict[str, Values]]:
        candles = [candle for candle in store.oldest(series, WINDOW_CANDLES, since=since) if candle.time < span.end]
        return candles, factors.of(store, candles)

    since = span.start - 1
    while True:
        candles, values = store.read(lambda store, since=since: look(store, since))  # type: ignore[misc]
        if not candles:
            return
        since = candles[-1].time
        # from_pandas: NaN is null.
        beside = [
            pa.array(values[field.name], field.type, from_pandas=True) for field in schema if field.name in values
        ]
        page = rows.columns(candles)
        times.append(page.time)
        yield since, _batch(page, schema, beside)


def _grouped(batches: Iterable[tuple[int, pa.RecordBatch]], size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The same rows in batches of at least `size` rows, except for the last batch."""
    held: list[pa.RecordBatch] = []
    upto = 0
    for upto, batch in batches:
        held.append(batch)
        if sum(batch.num_rows for batch in held) >= size:
            yield upto, pa.Table.from_batches(held).combine_chunks().to_batches()[0]
            held = []
    if held:
        yield upto, pa.Table.from_batches(held).combine_chunks().to_batches()[0]


def _batch(page: rows.Columns, schema: pa.Schema, beside: Iterable[Array] = ()) -> pa.RecordBatch:
    time, *values = page.values()
    kind = schema.field(0).type
    if pa.types.is_timestamp(kind):
        return pa.record_batch([pa.array(time * 1000, kind), *map(pa.array, values), *beside], schema=schema)
    return pa.record_batch([pa.array(time, kind), *map(pa.array, values), *_flow_of(page), *beside], schema=schema)


def _flow_of(page: rows.Columns) -> list[Array]:
    """The order flow of candles; null where the source does not tell."""
    flow = page.flow or (np.full(len(page), np.nan),) * len(_FLOW)
    # from_pandas: NaN is null.
    return [pa.array(column, kind, from_pandas=True) for column, (_, kind) in zip(flow, _FLOW, strict=True)]


def _writer(
    kind: Format, file: BufferedWriter, schema: pa.Schema
) -> pa_parquet.ParquetWriter | pa_ipc.RecordBatchFileWriter | pa_csv.CSVWriter:
    match kind:
        case "parquet":
            return pa_parquet.ParquetWriter(file, schema, compression="zstd")
        case "feather":
            return pa_ipc.new_file(file, schema, options=pa_ipc.IpcWriteOptions(compression="lz4"))
        case "csv":
            return pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(quoting_style="none"))

"""Export: the closed candles of a series into a parquet, feather or CSV file, every number as it is stored, and beside
them what factors said when they closed.

The file appears when it is whole and on disk. Memory does not grow with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pa_parquet

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.errors import KlinesyncError, UnknownSeries
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.market_data.factor_columns import FactorColumns, Kind, Values
from klinesync.market_data.findings import Reading
from klinesync.market_data.history import rows
from klinesync.market_data.history.cells import VALUE_COLUMNS
from klinesync.market_data.history.names import freqtrade_path
from klinesync.storage.database import CandleStore

if TYPE_CHECKING:
    Array: TypeAlias = pa.Array[pa.Scalar[pa.DataType]]

Format = Literal["parquet", "feather", "csv"]

# Candles that are read at a time, in one snapshot; and that are packed together in the file.
WINDOW_CANDLES = 20_000
GROUP_CANDLES = 65_536
EVER = Span(0, MAX_TIME + 1)

_VALUES: list[tuple[str, pa.DataType]] = [(name, pa.float64()) for name in VALUE_COLUMNS]
_OURS = pa.schema([("candle_time", pa.int64()), *_VALUES])
_FREQTRADES = pa.schema([("date", pa.timestamp("ms", "UTC")), *_VALUES])
_KINDS: Mapping[Kind, pa.DataType] = {"number": pa.float64(), "integer": pa.int64(), "text": pa.string()}


class ExportFailed(KlinesyncError):
    """A file that cannot be written."""

    code = "export_failed"


def export(
    store: Reading,
    series: SeriesId,
    span: Span,
    output: Path,
    kind: Format,
    *,
    freqtrade: bool = False,
    factors: FactorColumns | None = None,
    progress: Callable[[int, int], None] = lambda _upto, _count: None,
) -> tuple[Path, int]:
    """Write the candles that open in `span`; the file, and how many there are.

    Columns are `candle_time` (UTC seconds), open, high, low, close, volume. With `freqtrade`, `output` is its data
    folder of the exchange, the file gets its name for the series, and `date` (UTC, milliseconds) replaces
    `candle_time`. The columns of `factors` stand behind the others, null where there is nothing. A file of that name is
    replaced. `progress` gets the open time that was reached, and candles written. Raises `UnknownSeries`, `StoreError`,
    `ExportFailed`, and `FactorsLag` when factors have not come as far as the candles.
    """
    if store.read(lambda look: look.span(series)) is None:
        raise UnknownSeries(str(series), "the store has no candles of it")
    path = output / freqtrade_path(series, f".{kind}") if freqtrade else output
    schema = _FREQTRADES if freqtrade else _OURS
    if factors is None:
        batches: Iterator[tuple[int, pa.RecordBatch]] = (
            (int(page.time[-1]), _batch(page, schema)) for page in rows.pages(_read(store, series, span), GROUP_CANDLES)
        )
    else:
        for name, its_kind in factors.kinds.items():
            schema = schema.append(pa.field(name, _KINDS[its_kind]))
        batches = _grouped(_with_factors(store, series, span, factors, schema), GROUP_CANDLES)
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        if freqtrade:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _writer(kind, str(part), schema) as writer:
                for upto, batch in batches:
                    writer.write_batch(batch)
                    count += batch.num_rows
                    progress(upto, count)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error  # pyarrow's texts are long
        raise ExportFailed(f"{path} cannot be written: {why}") from error
    return path, count


def _read(store: Reading, series: SeriesId, span: Span) -> Iterator[rows.Columns]:
    since = span.start - 1
    while candles := store.read(lambda look, since=since: look.oldest(series, WINDOW_CANDLES, since=since)):  # type: ignore[misc]
        yield rows.within(rows.columns(candles), span)
        since = candles[-1].time
        if since >= span.end - 1:
            return


def _with_factors(
    store: Reading, series: SeriesId, span: Span, factors: FactorColumns, schema: pa.Schema
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches with the time of their last candle; candles and factors of each are of one state of the store."""

    def look(store: CandleStore, since: int) -> tuple[list[Candle], dict[str, Values]]:
        candles = [one for one in store.oldest(series, WINDOW_CANDLES, since=since) if one.time < span.end]
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
        yield since, _batch(rows.columns(candles), schema, beside)


def _grouped(batches: Iterable[tuple[int, pa.RecordBatch]], size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The same rows in batches of at least `size`, but for the last one."""
    held: list[pa.RecordBatch] = []
    upto = 0
    for upto, batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= size:
            yield upto, pa.Table.from_batches(held).combine_chunks().to_batches()[0]
            held = []
    if held:
        yield upto, pa.Table.from_batches(held).combine_chunks().to_batches()[0]


def _batch(page: rows.Columns, schema: pa.Schema, beside: Iterable[Array] = ()) -> pa.RecordBatch:
    time, *values = page.values()
    kind = schema.field(0).type
    times = pa.array(time * 1000, kind) if pa.types.is_timestamp(kind) else pa.array(time, kind)
    return pa.record_batch([times, *(pa.array(column) for column in values), *beside], schema=schema)


def _writer(
    kind: Format, file: str, schema: pa.Schema
) -> pa_parquet.ParquetWriter | pa_ipc.RecordBatchFileWriter | pa_csv.CSVWriter:
    match kind:
        case "parquet":
            return pa_parquet.ParquetWriter(file, schema, compression="zstd")
        case "feather":
            return pa_ipc.new_file(file, schema, options=pa_ipc.IpcWriteOptions(compression="lz4"))
        case "csv":
            return pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(quoting_style="none"))

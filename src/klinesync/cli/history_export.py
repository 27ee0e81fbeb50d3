"""`klinesync export`: the closed candles of a series, into a file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from klinesync.cli.arguments import span_of
from klinesync.cli.history_store import stored_derived_step
from klinesync.cli.progress import bar
from klinesync.core.counted import counted
from klinesync.core.errors import UnknownSeries
from klinesync.core.printable import printable
from klinesync.core.series_id import SeriesId
from klinesync.history.files.exporting import EVER, export
from klinesync.runtime.flags import RuntimeFlags, sqlite_path
from klinesync.storage.own_files import refuse_own_file
from klinesync.storage.sqlite_reader import SqliteReader

if TYPE_CHECKING:
    from klinesync.history.files.factor_columns import FactorColumns


def export_series(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    """Write the file; returns the exit status."""
    span = span_of(arguments, EVER)
    factors = _factor_columns(flags, arguments.series_id) if arguments.factors else None
    with SqliteReader(sqlite_path(flags)) as store, bar() as say:
        refuse_own_file(store.path, arguments.output)
        stored = store.read(lambda look: look.span(arguments.series_id))
        if stored is None:
            raise _not_stored(store, flags, arguments.series_id)
        begin, end = max(stored.start, span.start), min(stored.end, span.end)

        def show(upto: int, count: int) -> None:
            say(f"{arguments.series_id}: {counted(count, 'candle')}", (upto - begin) / max(end - begin, 1))

        exported = export(
            store,
            arguments.series_id,
            span,
            arguments.output,
            arguments.format,
            freqtrade=arguments.freqtrade,
            overwrite=arguments.overwrite,
            factors=factors,
            progress=show,
        )
    path, how = exported.path, exported.merged
    size = path.stat().st_size
    if arguments.json:
        facts: dict[str, object] = {
            "path": str(path),
            "series_id": str(arguments.series_id),
            "candles": exported.candles,
            "bytes": size,
            "merged": None
            if how is None
            else {"same": how.same, "different": how.different, "kept": how.kept, "first_different": how.examples},
        }
        print(json.dumps(facts, indent=1))
        return 0
    candles = counted(exported.candles, "candle")
    beside = ""
    if how is not None:
        beside = (
            f", merged with the existing file: {how.same} were equal, {how.different} had other values and now have "
            f"the store's, {how.kept} that are only in the file are kept"
        )
    print(printable(f"{path}: {candles} of {arguments.series_id} ({size} bytes){beside}"))
    for text in () if how is None else how.examples:
        print(printable(f"    {text}"))
    return 0


def _not_stored(store: SqliteReader, flags: RuntimeFlags, series: SeriesId) -> UnknownSeries:
    """The error for a series without candles: how to have it computed, where the base is stored."""
    derived = stored_derived_step(flags)
    hint = derived.hint(series)
    if derived.derives(series):
        hint = f"; a running service computes it from {derived.base}"
    base = series.with_timeframe(derived.base)
    if store.read(lambda look: look.span(base)) is None:
        hint = ""
    return UnknownSeries(str(series), f"the store has no candles of it{hint}")


def _factor_columns(flags: RuntimeFlags, series: SeriesId) -> FactorColumns:
    # Imported here: factors, TA-Lib among them, take longer to import than most exports.
    from klinesync.history.files.factor_columns import FactorColumns
    from klinesync.market.parts_writing import ledger_step
    from klinesync.market.settings import ledger_settings

    settings = ledger_settings(flags)
    return FactorColumns(ledger_step(settings), settings.indicators, series)

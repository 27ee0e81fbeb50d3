"""The commands that move history: backfill, import, export.

Their arguments are defined here, and load at once; the work is in `history_backfill`, `history_import` and
`history_export`, whose imports take seconds. They share the store (`history_store`) and the exchanges
(`history_exchange`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klinesync.cli.arguments import add_span, add_url, given_flags, series
from klinesync.cli.command import INTERRUPTED, Command, WrongUse
from klinesync.cli.running import run, stoppable, until_interrupted
from klinesync.runtime.flags import load_flags


def _backfill_arguments(backfill: argparse.ArgumentParser) -> None:
    backfill.add_argument(
        "series_id",
        type=series,
        nargs="?",
        metavar="SERIES_ID",
        help="the series; of a derived series, its base is read (with --enrich: all stored series)",
    )
    add_span(backfill)
    backfill.add_argument("--source", choices=("rest", "freqtrade", "archive"), help="read this source alone")
    backfill.add_argument(
        "--enrich",
        action="store_true",
        help="fill in the order flow that stored candles lack, from the archive, then from the exchange",
    )
    add_url(backfill, "let the running service at this address read; with --source, send it the candles")
    backfill.add_argument("--json", action="store_true", help="machine output")


def _import_arguments(import_: argparse.ArgumentParser) -> None:
    import_.add_argument("path", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    import_.add_argument(
        "--series", type=series, metavar="SERIES_ID", help="the series of the files, whatever their names"
    )
    import_.add_argument(
        "--exchange", default="binance", metavar="NAME", help="exchange of freqtrade's files (default binance)"
    )
    import_.add_argument("--strict", action="store_true", help="refuse files with a bad row")
    import_.add_argument(
        "--unterminated",
        action="store_true",
        help="accept a CSV whose last line has no line end; its last number may be truncated",
    )
    add_url(import_, "send the candles through the running service at this address")
    import_.add_argument("--json", action="store_true", help="machine output")


def _export_arguments(export: argparse.ArgumentParser) -> None:
    export.add_argument("series_id", type=series, metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1h")
    export.add_argument("--format", choices=("parquet", "feather", "csv"), required=True, help="the file's format")
    export.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="the file; with --freqtrade a folder"
    )
    add_span(export)
    export.add_argument(
        "--factors", action="store_true", help="add the values of factors and indicators when each candle closed"
    )
    export.add_argument(
        "--freqtrade",
        action="store_true",
        help="use freqtrade's file name and columns, for its data folder; an existing file is merged",
    )
    export.add_argument(
        "--overwrite", action="store_true", help="replace an existing file, also when it has more candles"
    )
    export.add_argument("--json", action="store_true", help="machine output")


def _backfill(arguments: argparse.Namespace) -> int:
    flags = load_flags(given_flags(arguments))
    if arguments.enrich:
        from klinesync.cli.history_enrich import enrich

        if arguments.source is not None:
            raise WrongUse("--enrich reads the archive, then the exchange; use it without --source")
        return run(until_interrupted(enrich(flags, arguments), interrupted=INTERRUPTED))
    from klinesync.cli.history_backfill import backfill

    missing = "SERIES_ID" if arguments.series_id is None else "--from" if arguments.from_ is None else None
    if missing is not None:
        raise WrongUse(f"the following arguments are required: {missing}")
    return run(until_interrupted(backfill(flags, arguments), interrupted=INTERRUPTED))


def _import(arguments: argparse.Namespace) -> int:
    from klinesync.cli.history_import import import_paths

    flags = load_flags(given_flags(arguments))
    return run(until_interrupted(import_paths(flags, arguments), interrupted=INTERRUPTED))


def _export(arguments: argparse.Namespace) -> int:
    from klinesync.cli.history_export import export_series

    if arguments.factors and arguments.freqtrade:
        raise WrongUse("freqtrade reads only its own columns; use either --factors or --freqtrade")
    if arguments.freqtrade and arguments.format == "csv":
        raise WrongUse("freqtrade reads no CSV; use --format feather or parquet")
    with stoppable():
        return export_series(load_flags(given_flags(arguments)), arguments)


# The flags that the commands use.
DERIVED_FLAGS = ("enable_derived_timeframes", "derived_base_timeframe", "derived_timeframes")
FACTOR_FLAGS = ("indicators", "factor_pivot_window_major", "factor_pivot_window_minor")
IMPORT_FLAGS = (
    "database_url",
    "api_token",
    "binance_spot_rest_url",
    "binance_futures_rest_url",
    "binance_rest_weight_share",
    "enable_environment_proxies",
    *DERIVED_FLAGS,
)
EXPORT_FLAGS = ("database_url", *FACTOR_FLAGS)
BACKFILL_FLAGS = (
    "database_url",
    "api_token",
    "retention_days",
    "rest_final_margin_s",
    "binance_spot_rest_url",
    "binance_futures_rest_url",
    "binance_rest_weight_share",
    "enable_ccxt_backfill",
    "market_history_source",
    "freqtrade_data_dir",
    "archive_url",
    "enable_environment_proxies",
    *DERIVED_FLAGS,
)
COMMANDS = {
    "backfill": Command(
        _backfill,
        _backfill_arguments,
        more="Requests only missing candles. May be interrupted; run it again to continue.",
        examples=(
            "klinesync backfill binance:spot:BTC/USDT:1m --from 2025-01-01 --to 2025-02-01",
            "klinesync backfill --enrich",
        ),
        flags=BACKFILL_FLAGS,
    ),
    "import": Command(
        _import,
        _import_arguments,
        more=(
            "The series of a file follows from its name, or from --series. Symbols of an exchange's archive are looked "
            "up in the exchange's list of symbols, from the store or from the exchange. Of a folder, the files with a "
            "known name are read. A file that is unreadable, truncated or fails its checksum is refused as a whole; "
            "single bad rows are left out and counted. May be interrupted; run it again to continue."
        ),
        examples=(
            "klinesync import user_data/data/binance",
            "klinesync import candles.csv --series binance:spot:BTC/USDT:1m",
        ),
        flags=IMPORT_FLAGS,
    ),
    "export": Command(
        _export,
        _export_arguments,
        more=(
            "Only reads the store, also beside a running service. An existing file is replaced when the new file is "
            "complete, unless the existing file has candles or columns that the new file would not have."
        ),
        examples=("klinesync export binance:spot:BTC/USDT:1h --format parquet --output btc-1h.parquet",),
        flags=EXPORT_FLAGS,
    ),
}

"""The commands that move history: backfill, import, export.

Their arguments stand here, and load at once; what each one does is in `history_backfill`, `history_import` and
`history_export`, whose imports take seconds. The three share the store that is written (`history_store`) and the
exchange that is asked (`history_exchange`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klinesync.cli.arguments import add_span, add_url, given_flags, series
from klinesync.cli.command import Command, WrongUse
from klinesync.cli.running import INTERRUPTED, run, stoppable, until_interrupted
from klinesync.runtime.flags import load_flags


def _backfill_arguments(backfill: argparse.ArgumentParser) -> None:
    backfill.add_argument("series_id", type=series, metavar="SERIES_ID", help="of a derived series, its base's")
    add_span(backfill, needs_from=True)
    backfill.add_argument("--source", choices=("rest", "freqtrade", "archive"), help="take it from there alone")
    add_url(backfill, "have the running service at this address do it; with --source, send it the candles")
    backfill.add_argument("--json", action="store_true", help="machine output")


def _import_arguments(import_: argparse.ArgumentParser) -> None:
    import_.add_argument("path", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
    import_.add_argument("--series", type=series, metavar="SERIES_ID", help="what the files hold, whatever their names")
    import_.add_argument("--exchange", default="binance", metavar="NAME", help="whose freqtrade files are (binance)")
    import_.add_argument("--strict", action="store_true", help="refuse a file that has a bad row")
    import_.add_argument(
        "--unterminated",
        action="store_true",
        help="take a CSV whose last line has no line end, so that its last number may be cut off",
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
        "--factors", action="store_true", help="beside the candles, what factors and indicators said when they closed"
    )
    export.add_argument(
        "--freqtrade",
        action="store_true",
        help="freqtrade's name and columns, for its data folder; a file that is there is merged with",
    )
    export.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there, also one that has more candles"
    )
    export.add_argument("--json", action="store_true", help="machine output")


def _backfill(arguments: argparse.Namespace) -> int:
    from klinesync.cli.history_backfill import backfill

    flags = load_flags(given_flags(arguments))
    return run(until_interrupted(backfill(flags, arguments), interrupted=INTERRUPTED))


def _import(arguments: argparse.Namespace) -> int:
    from klinesync.cli.history_import import import_paths

    flags = load_flags(given_flags(arguments))
    return run(until_interrupted(import_paths(flags, arguments), interrupted=INTERRUPTED))


def _export(arguments: argparse.Namespace) -> int:
    from klinesync.cli.history_export import export_series

    if arguments.factors and arguments.freqtrade:
        raise WrongUse("freqtrade reads no other columns than its own; leave --factors or --freqtrade")
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
        more=("Asks only for what is missing. May be interrupted, and run again to go on."),
        examples=("klinesync backfill binance:spot:BTC/USDT:1m --from 2025-01-01 --to 2025-02-01",),
        flags=BACKFILL_FLAGS,
    ),
    "import": Command(
        _import,
        _import_arguments,
        more=(
            "The name says which series a file holds, or --series. What the symbols of an archive are is taken from "
            "the exchange's list, the one in the store or a new one. Of a folder the files count whose names "
            "do. A file that is unreadable, truncated or fails its checksum is refused as a whole; single "
            "bad rows are left out and counted. May be interrupted, and run again to go on."
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
            "Only reads, also beside a running service. A file that is there is replaced when the new one is whole, "
            "unless it has candles or columns that the new one lacks."
        ),
        examples=("klinesync export binance:spot:BTC/USDT:1h --format parquet --output btc-1h.parquet",),
        flags=EXPORT_FLAGS,
    ),
}

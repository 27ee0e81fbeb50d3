"""The command that shows what a running service sends: watch."""

from __future__ import annotations

import argparse

from klinesync.cli.arguments import Commands, add_flags, command, given_flags
from klinesync.cli.running import run, until_interrupted
from klinesync.runtime.flags import load_flags


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    watch = command(commands, "watch", _watch, "live candles of a running service in the terminal")
    watch.add_argument("series_id", metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1m")
    watch.add_argument("--url", help="the service's address (default: that of the flags host and port)")
    watch.add_argument("--json", action="store_true", help="one JSON message a line")
    add_flags(watch)


def _watch(arguments: argparse.Namespace) -> int:
    from klinesync.client.watch import watch  # the service does without its packages

    flags = load_flags(given_flags(arguments))
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    url = arguments.url or f"http://{host}:{flags.port}"
    return run(until_interrupted(watch(url, arguments.series_id, as_json_lines=arguments.json)))

"""The command that shows what a running service sends: watch."""

from __future__ import annotations

import argparse

from klinesync.cli.arguments import add_url, given_flags, series
from klinesync.cli.command import Command
from klinesync.cli.running import run, until_interrupted
from klinesync.runtime.flags import load_flags


def _watch_arguments(watch: argparse.ArgumentParser) -> None:
    watch.add_argument("series_id", type=series, metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1m")
    add_url(watch, "the service's address (default: that of the flags host and port)")
    watch.add_argument("--json", action="store_true", help="one JSON message a line")


def _watch(arguments: argparse.Namespace) -> int:
    from klinesync.client.watch import watch  # the service does without its packages

    flags = load_flags(given_flags(arguments))
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    url = arguments.url or f"http://{host}:{flags.port}"
    return run(until_interrupted(watch(url, str(arguments.series_id), as_json_lines=arguments.json)))


COMMANDS = {
    "watch": Command(
        _watch,
        _watch_arguments,
        more=("A board on a terminal, a line an event elsewhere. Ctrl-C ends it."),
        examples=("klinesync watch binance:spot:BTC/USDT:1m",),
        flags=("host", "port"),
        output="stream",
    ),
}

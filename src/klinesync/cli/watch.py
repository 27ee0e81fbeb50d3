"""The command that shows live candles of a running service: watch."""

from __future__ import annotations

import argparse

from klinesync.cli.arguments import add_url, given_flags, series, service_address
from klinesync.cli.command import Command, WrongUse
from klinesync.cli.running import run, until_interrupted
from klinesync.runtime.flags import load_flags


def _watch_arguments(watch: argparse.ArgumentParser) -> None:
    watch.add_argument("series_id", type=series, metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1m")
    add_url(watch, "the service's address (default: that of the flags host and port)")
    watch.add_argument("--json", action="store_true", help="one JSON message a line")
    watch.add_argument(
        "--full",
        action="store_true",
        help="with --json: candles also have quote_volume, trades, taker_buy_volume and taker_buy_quote_volume",
    )


def _watch(arguments: argparse.Namespace) -> int:
    from klinesync.client.watch import watch  # needs rich and aiohttp's client, which the service does not need

    if arguments.full and not arguments.json:
        raise WrongUse("--full belongs to --json; the board and the lines have no room for it")
    url = service_address(load_flags(given_flags(arguments)), arguments)
    return run(
        until_interrupted(watch(url, str(arguments.series_id), as_json_lines=arguments.json, full=arguments.full))
    )


COMMANDS = {
    "watch": Command(
        _watch,
        _watch_arguments,
        more="Shows a board on a terminal, and prints a line per event elsewhere. Ctrl-C ends the command.",
        examples=("klinesync watch binance:spot:BTC/USDT:1m",),
        flags=("host", "port"),
        output="stream",
    ),
}

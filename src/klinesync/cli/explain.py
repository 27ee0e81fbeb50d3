"""The command that explains why candles of a series are missing: explain."""

from __future__ import annotations

import argparse

from klinesync.cli.arguments import add_url, given_flags, series, service_address
from klinesync.cli.command import Command
from klinesync.cli.running import run
from klinesync.core.printable import printable
from klinesync.runtime.flags import RuntimeFlags, load_flags


def _explain_arguments(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("series_id", type=series, metavar="SERIES_ID", help="for example binance:spot:BTC/USDT:1m")
    add_url(explain, "the service's address (default: that of the flags host and port)")
    explain.add_argument("--json", action="store_true", help="the service's JSON answer")


def _explain(arguments: argparse.Namespace) -> int:
    return run(_ask(load_flags(given_flags(arguments)), arguments))


async def _ask(flags: RuntimeFlags, arguments: argparse.Namespace) -> int:
    from klinesync.cli.explain_words import lines
    from klinesync.cli.service_client import service_client

    async with service_client(service_address(flags, arguments), flags.api_token) as service:
        text, explained = await service.explain(arguments.series_id)
    for line in [text] if arguments.json else lines(explained):
        print(printable(line))
    return 0


COMMANDS = {
    "explain": Command(
        _explain,
        _explain_arguments,
        more=(
            "Shows what is stored, the state of the stream, the missing candles with their next request, and the "
            "recent events. No exchange is asked."
        ),
        examples=("klinesync explain binance:spot:BTC/USDT:1m",),
        flags=("host", "port", "api_token"),
    ),
}

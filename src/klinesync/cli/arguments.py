"""What the commands' arguments share: types, options, flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import TypeAlias

from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.runtime.flags import RuntimeFlags

MAX_SYMBOLS = 5000

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # argparse has no public name for it


class WrongUse(Rejected):
    """The command line does not say what to do."""


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}".strip())
    parser.set_defaults(run=run)
    return parser


def add_span(parser: argparse.ArgumentParser, *, needs_from: bool = False) -> None:
    parser.add_argument(
        "--from", dest="from_", type=time_of, required=needs_from, metavar="TIME", help="first open time (the oldest)"
    )
    parser.add_argument("--to", type=time_of, metavar="TIME", help="open times before this one (all)")


def add_url(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--url", type=url, help=meaning)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag as an option; given ones are told apart by being present, so none has a default here."""
    group = parser.add_argument_group("flags", "also as KLINESYNC_<NAME> and in klinesync.toml")
    for name, field in RuntimeFlags.model_fields.items():
        option = "--" + name.replace("_", "-")
        # argparse formats help with %
        text = (field.description or "").replace("%", "%%")
        group.add_argument(option, dest=f"flag_{name}", metavar="VALUE", help=text, default=argparse.SUPPRESS)


def given_flags(arguments: argparse.Namespace) -> dict[str, str]:
    return {name[5:]: value for name, value in vars(arguments).items() if name.startswith("flag_")}


def series(text: str) -> SeriesId:
    try:
        return SeriesId.parse(text)
    except Rejected as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} is no http:// address")
    return text.rstrip("/")


def speed(text: str) -> float:
    speed = float(text)
    if not (isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return speed


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SYMBOLS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MAX_SYMBOLS}")
    return int(text)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def time_of(text: str) -> int:
    """ISO 8601 (UTC when no zone is given) or unix seconds."""
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither ISO 8601 nor unix seconds") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())

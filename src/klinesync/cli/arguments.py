"""Types, options and flags that the arguments of several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from math import isfinite, nan
from typing import TYPE_CHECKING

from klinesync.cli.command import Flags, WrongUse
from klinesync.core.dates import date_text, parse_time
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span

if TYPE_CHECKING:
    from klinesync.runtime.flags import RuntimeFlags

MAX_SYMBOLS = 5000
MAX_PORT = 65_535
# Prefix of the namespace's attributes that hold flags.
FLAG_PREFIX = "flag_"


def add_span(parser: argparse.ArgumentParser, *, needs_from: bool = False) -> None:
    parser.add_argument(
        "--from", dest="from_", type=time_of, required=needs_from, metavar="TIME", help="first open time (the oldest)"
    )
    parser.add_argument("--to", type=time_of, metavar="TIME", help="open times before this one (all)")


def span_of(arguments: argparse.Namespace, default: Span) -> Span:
    """The span of `--from` and `--to`; a missing option takes the end of `default`. Raises `WrongUse`."""
    start = default.start if arguments.from_ is None else arguments.from_
    end = default.end if arguments.to is None else arguments.to
    if start >= end:
        raise WrongUse(f"--from {date_text(start)} is not before --to {date_text(end)}")
    return Span(start, end)


def add_url(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--url", type=url, help=meaning)


def service_address(flags: RuntimeFlags, arguments: argparse.Namespace) -> str:
    """The address of `--url`; without the option, that of the flags `host` and `port`."""
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    return arguments.url or f"http://{host}:{flags.port}"


def add_flags(parser: argparse.ArgumentParser, listed: Flags, defaults: Mapping[str, str]) -> None:
    """Every flag as an option, in groups. Flags that are not `listed` are accepted, but not shown by help. No option
    has a default here, so that the flags of the command line are those that are present. `defaults`: texts for help in
    place of a flag's default."""
    from klinesync.runtime.flag_groups import FLAG_GROUPS, group_of
    from klinesync.runtime.flags import RuntimeFlags

    groups = {}
    for title in (*FLAG_GROUPS, group_of("")):
        names = [name for name in RuntimeFlags.model_fields if group_of(name) == title]
        if listed == "all" or any(name in listed for name in names):
            groups[title] = parser.add_argument_group(f"{title} flags")
        for name in names:
            hidden = listed != "all" and name not in listed
            _add_flag(groups.get(title, parser), name, defaults.get(name), hidden=hidden)


def _add_flag(group: argparse._ActionsContainer, name: str, default: str | None, *, hidden: bool) -> None:
    from klinesync.runtime.flag_sources import option
    from klinesync.runtime.flag_values import choices, metavar
    from klinesync.runtime.flags import RuntimeFlags, default_of, flag_text

    field = RuntimeFlags.model_fields[name]
    words = choices(field)
    default = default or flag_text(default_of(name)).replace(",", ", ") or "none"
    # argparse formats help texts with %
    text = argparse.SUPPRESS if hidden else f"{field.description} (default {default})".replace("%", "%%")
    group.add_argument(
        option(name),
        dest=f"{FLAG_PREFIX}{name}",
        metavar="{" + ",".join(words) + "}" if words else metavar(name, field),
        help=text,
        default=argparse.SUPPRESS,
    )


def given_flags(arguments: argparse.Namespace) -> dict[str, str]:
    """The flags of the command line, as texts by name."""
    return {
        name.removeprefix(FLAG_PREFIX): value for name, value in vars(arguments).items() if name.startswith(FLAG_PREFIX)
    }


def series(text: str) -> SeriesId:
    """A series id."""
    try:
        return SeriesId.parse(text)
    except Rejected as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def url(text: str) -> str:
    """The address of a running service."""
    from klinesync.runtime.flag_values import web_address

    try:
        return web_address(text, "http", "https")
    except ValueError as error:
        hint = "" if "://" in text else f"; write http://{text.strip()}"
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a service: {error}{hint}") from None


def speed(text: str) -> float:
    """The speed of the simulated exchange: its seconds in a second."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not (isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def count(text: str) -> int:
    """A count of symbols."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SYMBOLS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_SYMBOLS}")
    return int(text)


def port(text: str) -> int:
    """A port; 0 means a free port."""
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to {MAX_PORT}")
    return int(text)


def time_of(text: str) -> int:
    """Unix seconds of a time in ISO 8601 (UTC when no zone is given) or in unix seconds."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

"""The commands of docs/reference/commands.md with their own arguments, as the parsers define them. Flags, which nearly
every command accepts as options, have a page of their own."""

from __future__ import annotations

import argparse
from pathlib import Path

import generated

from klinesync.cli.arguments import FLAG_PREFIX
from klinesync.cli.program import SUMMARIES, command_parser, parser

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"


def page() -> str:
    """The text of the page, with its table of arguments written anew."""
    program = parser()
    rows = [
        (f"`{name}`", f"`{_spelled(action)}`", action.help or "")
        for name in sorted(SUMMARIES)
        for action in command_parser(program, name)._actions
        if action.dest != "help" and not action.dest.startswith(FLAG_PREFIX)
    ]
    table = generated.table(("command", "argument", "meaning"), rows)
    return generated.with_part(PAGE.read_text(), "arguments", table)


def _spelled(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and action.metavar is None:
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        return value
    option = max(action.option_strings, key=len)
    spelled = option if action.nargs == 0 else f"{option} {value}"
    return spelled if action.required else f"[{spelled}]"

"""The command that shows the configuration: flags."""

from __future__ import annotations

import argparse
import json

from klinesync.cli.arguments import Commands, add_flags, command, given_flags
from klinesync.runtime.flags import flag_rows, flag_text, load_flags


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    flags = command(commands, "flags", _flags, "every flag: default, value in force, where it came from")
    flags.add_argument("--json", action="store_true", help="machine output")
    add_flags(flags)


def _flags(arguments: argparse.Namespace) -> int:
    given = given_flags(arguments)
    rows = flag_rows(load_flags(given), given)
    if arguments.json:
        table = [
            {
                "name": row.name,
                "environment": row.environment,
                "default": flag_text(row.default),
                "value": flag_text(row.value),
                "source": row.source,
                "meaning": row.meaning,
            }
            for row in rows
        ]
        print(json.dumps(table, indent=1))
        return 0
    for row in rows:
        changed = "" if row.source == "default" else f"  (default {flag_text(row.default) or 'none'})"
        print(f"{row.name} = {flag_text(row.value) or 'none'}  [{row.source}]{changed}")
        print(f"    {row.environment}: {row.meaning}")
    return 0

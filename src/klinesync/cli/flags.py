"""The command that shows the configuration: flags."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from klinesync.cli.arguments import given_flags
from klinesync.cli.command import Command
from klinesync.core.errors import BadFlag
from klinesync.core.printable import printable

if TYPE_CHECKING:
    from klinesync.runtime.flags import Configuration


def _flags_arguments(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--json", action="store_true", help="machine output")


def _flags(arguments: argparse.Namespace) -> int:
    from klinesync.runtime.flags import read_configuration

    configuration = read_configuration(given_flags(arguments))
    problems = [*configuration.problems, *_checked_at_start(configuration)]
    wrong = {problem.name: str(problem) for problem in problems}
    rows = configuration.rows()
    if arguments.json:
        table = [
            {
                "name": row.name,
                "environment": row.environment,
                "default": row.default,
                "value": row.value,
                "source": row.source,
                "meaning": row.meaning,
                "problem": wrong.get(row.name),
            }
            for row in rows
        ]
        print(json.dumps(table, indent=1))
    else:
        for row in rows:
            changed = "" if row.source == "default" else f"  (default {row.default or 'none'})"
            print(printable(f"{row.name} = {row.value or 'none'}  [{row.source}]{changed}"))
            print(f"    {row.environment}: {row.meaning}")
            if row.name in wrong:
                print(f"    WRONG: {wrong[row.name]}")
    for problem in problems:
        print(f"klinesync: {problem}", file=sys.stderr)
    if configuration.left_out:
        print(
            f"klinesync: ignored variables of an orchestrator: {printable(', '.join(configuration.left_out))}",
            file=sys.stderr,
        )
    return 0


def _checked_at_start(configuration: Configuration) -> list[BadFlag]:
    """Problems of well-formed values that only the start of the service finds."""
    from klinesync.runtime.flags import whitelist

    flags = configuration.flags
    problems: list[BadFlag] = []

    def check(names: set[str], judge: Callable[[], object]) -> None:
        if configuration.given.keys() & names:  # defaults are right, and checking them needs slow imports
            try:
                judge()
            except BadFlag as problem:
                problems.append(problem)

    def indicators() -> None:
        from klinesync.factor.indicator_names import parse_listed

        parse_listed(flags.indicators)

    def guard() -> None:
        from klinesync.market.guard import Guard

        Guard.of(flags.host, flags.allowed_origins, flags.api_token)

    check({"whitelist", "whitelist_path"}, lambda: whitelist(flags))
    check({"indicators"}, indicators)
    check({"host", "allowed_origins"}, guard)
    return problems


COMMANDS = {
    "flags": Command(
        _flags,
        _flags_arguments,
        more="Works with a wrong configuration too: problems are shown beside the flag. Secrets are masked.",
        examples=(
            "klinesync flags",
            "klinesync flags --port 8001 --json",
        ),
    ),
}

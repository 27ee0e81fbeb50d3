"""The program: its commands, and how each one ends.

Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from klinesync import __version__
from klinesync.cli import flags, history, serve, store, watch
from klinesync.cli.arguments import WrongUse
from klinesync.cli.running import INTERRUPTED
from klinesync.core.errors import KlinesyncError
from klinesync.runtime.logs import set_up_logs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    arguments = parser().parse_args(argv)
    set_up_logs("console", "debug" if arguments.verbose else "info")
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except WrongUse as error:
        print(f"klinesync: {error}", file=sys.stderr)
        return 2
    except KlinesyncError as error:
        print(f"klinesync: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    program = argparse.ArgumentParser(
        prog="klinesync", description="Candles that charts, strategies and bots can trust.", allow_abbrev=False
    )
    program.add_argument("--version", action="version", version=f"klinesync {__version__}")
    program.add_argument("--verbose", action="store_true", help="log more")
    commands = program.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for family in (serve, watch, history, store, flags):
        family.add_commands(commands)
    return program

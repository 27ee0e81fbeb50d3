"""A command, and the parsers that know it: help in groups, usage errors of one line and a hint."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NoReturn

from klinesync.core.errors import Rejected

# Widest text of help, in characters, however wide the terminal.
MAX_HELP_WIDTH = 100

# Which flags help lists for a command: all, or those. A command takes the others too, as it takes them from the
# environment, and makes no use of them.
Flags = Literal["all"] | tuple[str, ...]


class WrongUse(Rejected):
    """The command line does not say what to do. `prog` is the command that it means, where it means one."""

    def __init__(self, reason: str, prog: str = "klinesync") -> None:
        self.prog = prog
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    run: carries it out; returns the exit status.
    add_arguments: adds its own arguments to its parser.
    more: sentences of help after the summary.
    examples: command lines that help shows.
    flags: the flags that it uses, which help lists; None for a command that takes none.
    output: `report` is written at the end; `service` serves on when its lines cannot be written; `stream` ends when
        nobody reads its lines any more.
    """

    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    more: str = ""
    examples: tuple[str, ...] = ()
    flags: Flags | None = "all"
    output: Literal["report", "service", "stream"] = "report"


class Parser(argparse.ArgumentParser):
    """Raises `WrongUse` in place of printing all its usage, and adds its arguments when they are needed."""

    # Adds the arguments; None when that is done.
    fill: Callable[[Parser], None] | None = None

    def filled(self) -> Parser:
        """The parser with all its arguments."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return self

    def parse_known_args(  # type: ignore[override]  # the overloads of argparse say no more
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        return super(Parser, self.filled()).parse_known_args(args, namespace)

    def format_help(self) -> str:
        return super(Parser, self.filled()).format_help()

    def error(self, message: str) -> NoReturn:
        raise WrongUse(message.removeprefix("argument "), self.prog)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, within reason."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=help_width())


def add_nothing(_: argparse.ArgumentParser) -> None:
    """The arguments of a command that has none."""


def help_width() -> int:
    """Characters in a line of help."""
    return min(shutil.get_terminal_size().columns - 2, MAX_HELP_WIDTH)


def description(summary: str, command: Command) -> str:
    """What help says of a command before it lists options."""
    text = textwrap.fill(f"{summary[0].upper()}{summary[1:]}. {command.more}".strip(), help_width())
    if command.examples:
        title = "example:" if len(command.examples) == 1 else "examples:"
        text += "\n\n" + "\n".join((title, *(f"  {line}" for line in command.examples)))
    return text


def meant(text: str, known: Sequence[str]) -> str:
    """`; did you mean X?` where one of the known words is close."""
    close = get_close_matches(text, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""

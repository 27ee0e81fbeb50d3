"""A command, and its parser: help in groups, and usage errors in one line with a hint."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, NoReturn

from klinesync.core.errors import Rejected

# Exit status of a command that a signal interrupted, by the convention of shells.
INTERRUPTED = 130
# Widest text of help, in characters, however wide the terminal.
MAX_HELP_WIDTH = 100

# The flags that help lists for a command: all of them, or these names. Other flags are accepted too, as they are from
# the environment, and ignored.
Flags = Literal["all"] | tuple[str, ...]


class WrongUse(Rejected):
    """The command line is wrong. `prog`: the command to see help of; None, the default: the one that was named."""

    def __init__(self, reason: str, prog: str | None = None) -> None:
        self.prog = prog
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    run: runs the command; returns the exit status.
    add_arguments: adds the arguments of the command to its parser.
    more: sentences of help after the summary; none by default.
    examples: command lines that help shows; none by default.
    flags: the flags that help lists; all by default, None for a command without flags.
    defaults: texts of defaults that are the command's own, by flag; none by default.
    output: `report` (the default) is written at the end; a `service` goes on when its lines cannot be written; a
        `stream` ends when the reader of its lines is gone.
    """

    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    more: str = ""
    examples: tuple[str, ...] = ()
    flags: Flags | None = "all"
    defaults: Mapping[str, str] = field(default_factory=dict)
    output: Literal["report", "service", "stream"] = "report"


class Parser(argparse.ArgumentParser):
    """A parser that raises `WrongUse` instead of printing its usage, and adds its arguments when they are needed."""

    # Adds the arguments; None afterwards.
    fill: Callable[[Parser], None] | None = None

    def filled(self) -> Parser:
        """The parser with all its arguments."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return self

    def parse_known_args(  # type: ignore[override]  # one signature in place of argparse's overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        return super(Parser, self.filled()).parse_known_args(args, namespace)

    def format_help(self) -> str:
        return super(Parser, self.filled()).format_help()

    def error(self, message: str) -> NoReturn:
        raise WrongUse(message.removeprefix("argument "), self.prog)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, up to `MAX_HELP_WIDTH`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=help_width())


def add_nothing(_: argparse.ArgumentParser) -> None:
    """`add_arguments` of a command without arguments."""


def help_width() -> int:
    """Characters in a line of help."""
    return min(shutil.get_terminal_size().columns - 2, MAX_HELP_WIDTH)


def description(summary: str, command: Command) -> str:
    """The text of a command's help above the options."""
    text = textwrap.fill(f"{summary[0].upper()}{summary[1:]}. {command.more}".strip(), help_width())
    if command.examples:
        title = "example:" if len(command.examples) == 1 else "examples:"
        text += "\n\n" + "\n".join((title, *(f"  {line}" for line in command.examples)))
    return text


def meant(text: str, words: Sequence[str]) -> str:
    """`; did you mean X?` when one of the words is similar; otherwise empty."""
    close = get_close_matches(text, words, n=1)
    return f"; did you mean {close[0]}?" if close else ""

"""The program: its commands, and how each one ends.

Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong use. Modules are imported when a command needs them, so
that help and completion come at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from klinesync import __version__
from klinesync.cli.arguments import add_flags, given_flags
from klinesync.cli.command import Command, HelpFormatter, Parser, WrongUse, description, meant
from klinesync.cli.output import Output
from klinesync.core.errors import BadFlag, KlinesyncError
from klinesync.core.printable import printable
from klinesync.first_moments import UNTIL_STOPPED, signals_as_usual
from klinesync.runtime.open_files import TooFewFiles, require_open_files

# Exit status of work that a signal interrupted, as shells have it.
INTERRUPTED = 130
# Commands with an event loop, its connections, and a store that is written.
NEEDS_OPEN_FILES = UNTIL_STOPPED | {"backfill", "import"}

# Each command's module in this package, and what it does in half a sentence.
SUMMARIES = {
    "serve": ("serve", "the service, against the real exchange"),
    "demo": ("serve", "the service wired to a local simulated exchange: no network, account or key needed"),
    "sim": ("serve", "the simulated exchange alone"),
    "watch": ("watch", "live candles of a running service in the terminal"),
    "explain": ("explain", "why candles of a running service's series are (not) there, in sentences"),
    "backfill": ("history", "fetch history into the store"),
    "import": ("history", "candles from files: freqtrade's, an exchange's archive, CSV"),
    "export": ("history", "closed candles of a series into a file"),
    "verify": (
        "verify",
        "audit the store: gaps by state, derived candles, factors and overlays computed anew and compared",
    ),
    "backup": ("backup", "an online copy of the store"),
    "flags": ("flags", "every flag: default, value in force, where it came from"),
    "completion": ("completion", "a script that completes commands and options in your shell"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    output = Output()
    output.take_over()
    status = _status(sys.argv[1:] if argv is None else argv, output)
    try:
        output.finish()
    except KlinesyncError as error:
        return _failed(error)
    return status


def _status(argv: Sequence[str], output: Output) -> int:
    arguments = argparse.Namespace()
    try:
        _parse(argv, arguments)
        command: Command = arguments.command
        if command.output == "service":
            output.let_go()
        elif command.output == "stream":
            output.tell_closed_pipe()
        from klinesync.runtime.logs import set_up_logs

        set_up_logs("console", "debug" if arguments.verbose else "info")
        if arguments.name not in UNTIL_STOPPED:
            signals_as_usual()  # the others leave at once, until they have handlers of their own
        if arguments.name in NEEDS_OPEN_FILES:
            require_open_files()
        return command.run(arguments)
    except WrongUse as error:
        return _wrong_use(error, error.prog)
    except BadFlag as error:
        # A value of the command line is wrong use, one of the environment or a file is a failure.
        if error.name in given_flags(arguments) or error.source == "command line":
            return _wrong_use(error, f"klinesync {arguments.name}")
        return _failed(error)
    except KlinesyncError as error:
        return _failed(error)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        trouble = _system_trouble(error)
        if trouble is None:
            raise
        from klinesync.runtime.log_events import Log

        Log(__name__).debug("command.failed", "%s", trouble, exc_info=error)
        return _failed(trouble)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # after --help and --version
        return end.code if isinstance(end.code, int) else 0


class SystemTrouble(KlinesyncError):
    """What the system does not give this process: files, memory, a place on a disk."""

    code = "system_error"


def _system_trouble(error: OSError | MemoryError | ImportError | RuntimeError) -> KlinesyncError | None:
    """What the system refused, in a sentence; None for what is a defect of ours."""
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return TooFewFiles()
        if error.errno is None:
            return None
        what = "" if error.filename is None else f"{error.filename}: "
        return SystemTrouble(f"{what}{error.strerror}; --verbose tells where")
    # A limit of memory (`ulimit -v`) also shows as an extension module that cannot be mapped.
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return SystemTrouble("the system gives this process too little memory; raise its limit: ulimit -v")
    if "can't start new thread" in str(error):  # Python has no class of its own for this
        return SystemTrouble("the system lets this user start no further thread; raise the limit: ulimit -u")
    return None


def _failed(error: KlinesyncError) -> int:
    print(printable(f"klinesync: {error}"), file=sys.stderr)
    return 1


def _wrong_use(error: KlinesyncError, prog: str) -> int:
    print(f"{printable(f'{prog}: {error}')}\nsee: {prog} --help", file=sys.stderr)
    return 2


def _parse(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    """Into `arguments`. Raises `WrongUse`."""
    named = next((word for word in argv if not word.startswith("-")), None)
    if named is not None and named not in SUMMARIES:
        raise WrongUse(f"there is no command {named!r}{meant(named, list(SUMMARIES))}")
    commands = parser()
    _, rest = commands.parse_known_args(argv, arguments)
    if not rest:
        return
    prog = f"klinesync {arguments.name}"
    option = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
    if option is None:  # never the word after an option, which may be a secret
        raise WrongUse(f"{rest[0]!r} is one argument too many", prog)
    known = [text for action in command_parser(commands, arguments.name)._actions for text in action.option_strings]  # noqa: SLF001  # argparse has no public way to them
    raise WrongUse(f"there is no option {option}{meant(option, known)}", prog)


def parser() -> Parser:
    """The program's parser. A command's own arguments are added when they are asked for."""
    program = Parser(
        prog="klinesync",
        description="Candles that charts, strategies and bots can trust.",
        epilog="`klinesync COMMAND --help` explains a command. First steps: klinesync demo",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    program.add_argument("--version", action="version", version=f"klinesync {__version__}")
    program.add_argument("--verbose", action="store_true", help="log more")
    commands = program.add_subparsers(title="commands", metavar="COMMAND", dest="name", required=True)
    for name, (_, summary) in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, formatter_class=HelpFormatter, allow_abbrev=False)
        command.fill = partial(_fill, name)
    return program


def command_parser(program: Parser, name: str) -> Parser:
    """The parser of a command, with all its arguments."""
    for action in program._actions:  # noqa: SLF001  # argparse has no public way to them
        if isinstance(action.choices, Mapping) and name in action.choices:
            found: Parser = action.choices[name]
            return found.filled()
    raise AssertionError(name)


def command_of(name: str) -> Command:
    """The command of that name."""
    module, _ = SUMMARIES[name]
    commands: Mapping[str, Command] = importlib.import_module(f"klinesync.cli.{module}").COMMANDS
    return commands[name]


def _fill(name: str, parser: Parser) -> None:
    command = command_of(name)
    parser.description = description(SUMMARIES[name][1], command)
    parser.set_defaults(command=command)
    command.add_arguments(parser)
    positionals = [action.metavar for action in parser._get_positional_actions()]  # noqa: SLF001  # likewise
    flags = " [FLAGS]" if command.flags is not None else ""
    parser.usage = None if command.flags is None else _usage(parser) + flags
    if command.flags is not None:
        add_flags(parser, command.flags)
    assert all(positionals)


def _usage(parser: Parser) -> str:
    """The usage without flags, of which there are too many to name."""
    return parser.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")

"""The program: its commands, and how each one ends.

Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong use. Modules are imported when a command needs them, so
that help and completion are fast.
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
from klinesync.cli.command import INTERRUPTED, Command, HelpFormatter, Parser, WrongUse, description, meant
from klinesync.cli.output import Output
from klinesync.core.errors import BadFlag, KlinesyncError
from klinesync.core.printable import printable
from klinesync.first_moments import UNTIL_STOPPED, signals_as_usual
from klinesync.runtime.open_files import TooFewFiles, require_open_files

# Commands with an event loop, its connections, and a store that is written.
NEEDS_OPEN_FILES = UNTIL_STOPPED | {"backfill", "import"}

# By command: its module in this package, and its summary.
SUMMARIES = {
    "serve": ("serve", "run the service, against real exchanges"),
    "demo": ("serve", "run the service against a local simulated exchange: no network, account or key needed"),
    "sim": ("serve", "run the simulated exchange alone"),
    "watch": ("watch", "show live candles of a running service in the terminal"),
    "explain": ("explain", "explain why candles of a series are missing, by a running service"),
    "backfill": ("history", "read history into the store"),
    "import": ("history", "read candles from files: freqtrade's, an exchange's archive, CSV"),
    "export": ("history", "write closed candles of a series into a file"),
    "verify": (
        "verify",
        "audit the store: gaps by state; derived candles, factors and overlays recomputed and compared",
    ),
    "backup": ("backup", "copy the store while it is in use"),
    "flags": ("flags", "list all flags: default, current value, and its source"),
    "completion": ("completion", "print a script that completes commands and options in a shell"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status of the process."""
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
            signals_as_usual()  # the other commands end at once, until they have handlers of their own
        if arguments.name in NEEDS_OPEN_FILES:
            require_open_files()
        return command.run(arguments)
    except WrongUse as error:
        return _wrong_use(error, error.prog or _prog(arguments))
    except BadFlag as error:
        # A bad value on the command line is wrong use; in the environment or a file it is a failure.
        if error.name in given_flags(arguments) or error.source == "command line":
            return _wrong_use(error, _prog(arguments))
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
    """The system refused a resource: files, memory, space on a disk."""

    code = "system_error"


def _system_trouble(error: OSError | MemoryError | ImportError | RuntimeError) -> KlinesyncError | None:
    """The refusal of the system as a sentence; None for a defect of ours."""
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return TooFewFiles()
        if error.errno is None:
            return None
        file = "" if error.filename is None else f"{error.filename}: "
        return SystemTrouble(f"{file}{error.strerror}; --verbose shows the place")
    # A limit of memory (`ulimit -v`) also shows as an extension module that cannot be mapped.
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return SystemTrouble("this process has too little memory; raise the limit: ulimit -v")
    if "can't start new thread" in str(error):  # Python has no exception class for it
        return SystemTrouble("this user may not start another thread; raise the limit: ulimit -u")
    return None


def _failed(error: KlinesyncError) -> int:
    print(printable(f"klinesync: {error}"), file=sys.stderr)
    return 1


def _prog(arguments: argparse.Namespace) -> str:
    """The command to see help of: the one that was named, or the program."""
    return f"klinesync {arguments.name}" if hasattr(arguments, "name") else "klinesync"


def _wrong_use(error: KlinesyncError, prog: str) -> int:
    print(f"{printable(f'{prog}: {error}')}\nsee: {prog} --help", file=sys.stderr)
    return 2


def _parse(argv: Sequence[str], arguments: argparse.Namespace) -> None:
    """Parse the command line into `arguments`. Raises `WrongUse`."""
    named = next((word for word in argv if not word.startswith("-")), None)
    if named is not None and named not in SUMMARIES:
        raise WrongUse(f"there is no command {named!r}{meant(named, list(SUMMARIES))}")
    commands = parser()
    _, unknown = commands.parse_known_args(argv, arguments)
    if not unknown:
        return
    prog = f"klinesync {arguments.name}"
    option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if option is None:  # never the word after an option, which may be a secret
        raise WrongUse(f"{unknown[0]!r} is an unexpected argument", prog)
    options = [text for action in command_parser(commands, arguments.name)._actions for text in action.option_strings]  # noqa: SLF001  # argparse has no public access to actions
    raise WrongUse(f"there is no option {option}{meant(option, options)}", prog)


def parser() -> Parser:
    """The program's parser. The arguments of a command are added when its parser is used."""
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
    for action in program._actions:  # noqa: SLF001  # argparse has no public access to actions
        if isinstance(action.choices, Mapping) and name in action.choices:
            subparser: Parser = action.choices[name]
            return subparser.filled()
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
    if command.flags is not None:
        # Usage does not name the flags, which are too many.
        usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
        parser.usage = f"{usage} [FLAGS]"
        add_flags(parser, command.flags, command.defaults)

"""The sources of flags: command line, environment, `.env` and `klinesync.toml`."""

from __future__ import annotations

import io
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from dotenv.parser import parse_stream

from klinesync.core.errors import BadFlag

ENV_PREFIX = "KLINESYNC_"
CONFIG_FILE = "klinesync.toml"
ENV_FILE = ".env"
# Variables with our prefix that are not flags: paths for the test suite.
TEST_VARIABLES = frozenset({"KLINESYNC_REAL_DATA", "KLINESYNC_CHROMIUM"})
# Largest configuration file, in bytes.
MAX_CONFIG_BYTES = 1 << 20

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"

# Variables that Kubernetes and Docker's links put into the environment of every container for a service whose name
# begins with klinesync.
_ORCHESTRATOR = re.compile(
    r"(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|SERVICE_\w+|PORT_\w+|ENV_\w+"
)
_ORCHESTRATOR_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S*")


@dataclass(frozen=True, slots=True)
class Given:
    """A given value of a flag. `source`: a word for its source; `where`: the source within a sentence."""

    name: str
    value: object
    source: str
    where: str


@dataclass(slots=True)
class Sources:
    """The values of all sources.

    given: by flag, the value of the source with the highest precedence.
    left_out: ignored variables of an orchestrator.
    problems: unknown flags and unreadable sources.
    """

    given: dict[str, Given] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    problems: list[BadFlag] = field(default_factory=list)


def read_sources(command_line: Mapping[str, object], names: Collection[str]) -> Sources:
    """Read all sources, those of higher precedence last. `names`: of all flags."""
    sources = Sources()
    _read_toml(sources, Path(CONFIG_FILE), names)
    _read_env_file(sources, Path(ENV_FILE), names)
    take_variables(sources, os.environ, names, ENVIRONMENT, f"the {ENVIRONMENT}")
    for name, value in command_line.items():
        _take(sources, Given(name, value, COMMAND_LINE, f"the {COMMAND_LINE} ({option(name)})"), names, name)
    return sources


def option(name: str) -> str:
    """A flag's name as an option of the command line."""
    return "--" + name.replace("_", "-")


def take_variables(
    sources: Sources, variables: Mapping[str, str], names: Collection[str], source: str, where: str
) -> None:
    """Add the values of variables with our prefix to `sources`.

    sources: the values so far.
    variables: of the environment or of a file.
    names: of all flags.
    source: a word for the source of the variables.
    where: the source within a sentence.
    """
    for variable in sorted(variables, reverse=True):  # KLINESYNC_PORT comes after klinesync_port, and overrides it
        if not variable.upper().startswith(ENV_PREFIX) or variable in TEST_VARIABLES:
            continue
        name = variable[len(ENV_PREFIX) :]
        if is_orchestrators(name.upper(), variables[variable], names):
            sources.left_out.append(variable)
            continue
        _take(sources, Given(name.lower(), variables[variable], source, f"{where} ({variable})"), names, variable)


def is_orchestrators(name: str, value: str, names: Collection[str]) -> bool:
    """Whether an orchestrator sets this variable for a service.

    name: of the variable, without the prefix.
    value: of the variable.
    names: of all flags.
    """
    if (name == "PORT" or name.endswith("_PORT")) and _ORCHESTRATOR_ADDRESS.fullmatch(value):
        return True
    if name == "NAME":  # Docker's links: /container/alias
        return value.startswith("/")
    return name.lower() not in names and _ORCHESTRATOR.fullmatch(name) is not None


def no_such_flag(written: str, names: Collection[str]) -> BadFlag:
    """The error for an unknown flag. `written`: its name as in its source; `names`: of all flags."""
    name = written.upper().removeprefix(ENV_PREFIX).lower().replace("-", "_")
    close = get_close_matches(name, names, n=1)
    if not close:
        return BadFlag(written, "there is no such flag; `klinesync flags` lists them all")
    meant = f"{ENV_PREFIX}{close[0].upper()}" if written.upper().startswith(ENV_PREFIX) else close[0]
    return BadFlag(written, f"there is no such flag; did you mean {meant}? `klinesync flags` lists them all")


def _take(sources: Sources, given: Given, names: Collection[str], written: str) -> None:
    if given.name in names:
        sources.given[given.name] = given
    else:
        sources.problems.append(no_such_flag(written, names))


def _read_toml(sources: Sources, path: Path, names: Collection[str]) -> None:
    text = _read_text(sources, path)
    if text is None:
        return
    try:
        values = tomllib.loads(text)
    except (ValueError, OverflowError) as error:  # TOMLDecodeError is a ValueError
        sources.problems.append(BadFlag(CONFIG_FILE, f"cannot be read: {error}"))
        return
    except RecursionError:
        sources.problems.append(BadFlag(CONFIG_FILE, "cannot be read: it is nested too deep"))
        return
    for name, value in values.items():
        _take(sources, Given(name, value, CONFIG_FILE, f"{CONFIG_FILE} ({name})"), names, name)


def _read_env_file(sources: Sources, path: Path, names: Collection[str]) -> None:
    """Read `NAME=value` lines, also with quotes or `export`. `$NAME` within a value is not replaced."""
    text = _read_text(sources, path)
    if text is None:
        return
    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.key is not None and binding.value is not None:
            variables[binding.key] = binding.value
        elif (binding.error or binding.key is not None) and ENV_PREFIX in binding.original.string.upper():
            # The line is not shown, because it may have a secret.
            line = f"line {binding.original.line} is not NAME=value"
            sources.problems.append(BadFlag(ENV_FILE, f"cannot be read: {line}", ENV_FILE))
    take_variables(sources, variables, names, ENV_FILE, ENV_FILE)


def _read_text(sources: Sources, path: Path) -> str | None:
    """The text of a configuration file; None when there is no such file."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_CONFIG_BYTES:
            sources.problems.append(BadFlag(path.name, f"is larger than {MAX_CONFIG_BYTES} bytes"))
            return None
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        sources.problems.append(BadFlag(path.name, f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError:
        sources.problems.append(BadFlag(path.name, "cannot be read: it is not UTF-8"))
    return None

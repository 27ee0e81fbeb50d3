"""Where the values of flags come from: command line, environment, `.env`, `klinesync.toml`; nothing else is read."""

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
# Variables with our prefix that are no flags: they tell the test suite where things are.
TEST_VARIABLES = frozenset({"KLINESYNC_REAL_DATA", "KLINESYNC_CHROMIUM"})
# Largest configuration file that is read, in bytes: a mistyped name must not read a disk.
MAX_CONFIG_BYTES = 1 << 20

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"

# What Kubernetes, and Docker's links before it, put into the environment of every container for a service that is
# called klinesync, or klinesync-something.
_ORCHESTRATOR = re.compile(
    r"(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|SERVICE_\w+|PORT_\w+|ENV_\w+"
)
_ORCHESTRATOR_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S*")


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody gave to a flag. `source` is where, in a word; `where` the same in a sentence."""

    name: str
    value: object
    source: str
    where: str


@dataclass(slots=True)
class Sources:
    """What was found. `given` has the value in force of each flag by name; `left_out` the variables of an orchestrator;
    `problems` what is no flag or cannot be read."""

    given: dict[str, Given] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    problems: list[BadFlag] = field(default_factory=list)


def read_sources(command_line: Mapping[str, object], known: Collection[str]) -> Sources:
    """Everything that was given, the more important source last read: it takes the place of the others."""
    sources = Sources()
    _read_toml(sources, Path(CONFIG_FILE), known)
    _read_env_file(sources, Path(ENV_FILE), known)
    take_variables(sources, os.environ, known, ENVIRONMENT, f"the {ENVIRONMENT}")
    for name, value in command_line.items():
        _take(sources, Given(name, value, COMMAND_LINE, f"the {COMMAND_LINE} ({option(name)})"), known, name)
    return sources


def option(name: str) -> str:
    """A flag's name as an option of the command line."""
    return "--" + name.replace("_", "-")


def take_variables(
    sources: Sources, variables: Mapping[str, str], known: Collection[str], source: str, where: str
) -> None:
    """Take what variables with our prefix give.

    variables: an environment's, or what stands in a file like one.
    known: the flags there are.
    source: one word for where the variables come from.
    where: the same in a sentence.
    """
    for variable in sorted(variables, reverse=True):  # KLINESYNC_PORT comes after klinesync_port, and counts
        if not variable.upper().startswith(ENV_PREFIX) or variable in TEST_VARIABLES:
            continue
        name = variable[len(ENV_PREFIX) :]
        if is_orchestrators(name.upper(), variables[variable], known):
            sources.left_out.append(variable)
            continue
        _take(sources, Given(name.lower(), variables[variable], source, f"{where} ({variable})"), known, variable)


def is_orchestrators(name: str, value: str, known: Collection[str]) -> bool:
    """Whether a variable, named without the prefix, is one that orchestrators inject beside a service's name."""
    if (name == "PORT" or name.endswith("_PORT")) and _ORCHESTRATOR_ADDRESS.fullmatch(value):
        return True
    if name == "NAME":  # Docker's links: /container/alias
        return value.startswith("/")
    return name.lower() not in known and _ORCHESTRATOR.fullmatch(name) is not None


def no_such_flag(written: str, known: Collection[str]) -> BadFlag:
    """The sentence for a name that is no flag's, written as in its source."""
    name = written.upper().removeprefix(ENV_PREFIX).lower().replace("-", "_")
    close = get_close_matches(name, known, n=1)
    if not close:
        return BadFlag(written, "there is no such flag; `klinesync flags` lists them all")
    meant = f"{ENV_PREFIX}{close[0].upper()}" if written.upper().startswith(ENV_PREFIX) else close[0]
    return BadFlag(written, f"there is no such flag; did you mean {meant}? `klinesync flags` lists them all")


def _take(sources: Sources, given: Given, known: Collection[str], written: str) -> None:
    if given.name in known:
        sources.given[given.name] = given
    else:
        sources.problems.append(no_such_flag(written, known))


def _read_toml(sources: Sources, path: Path, known: Collection[str]) -> None:
    text = _read_text(sources, path)
    if text is None:
        return
    try:
        found = tomllib.loads(text)
    except (ValueError, OverflowError) as error:  # TOMLDecodeError is a ValueError
        sources.problems.append(BadFlag(CONFIG_FILE, f"cannot be read: {error}"))
        return
    except RecursionError:
        sources.problems.append(BadFlag(CONFIG_FILE, "cannot be read: it is nested too deep"))
        return
    for name, value in found.items():
        _take(sources, Given(name, value, CONFIG_FILE, f"{CONFIG_FILE} ({name})"), known, name)


def _read_env_file(sources: Sources, path: Path, known: Collection[str]) -> None:
    """`NAME=value` lines, also quoted or after `export`. `$NAME` inside a value stands for itself."""
    text = _read_text(sources, path)
    if text is None:
        return
    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.key is not None and binding.value is not None:
            variables[binding.key] = binding.value
        elif (binding.error or binding.key is not None) and ENV_PREFIX in binding.original.string.upper():
            # The line itself may hold a secret.
            line = f"line {binding.original.line} is not NAME=value"
            sources.problems.append(BadFlag(ENV_FILE, f"cannot be read: {line}", ENV_FILE))
    take_variables(sources, variables, known, ENV_FILE, ENV_FILE)


def _read_text(sources: Sources, path: Path) -> str | None:
    """A configuration file's text; None where there is none, or a folder has its name."""
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

"""Rules of the house that no linter checks, tested over the syntax tree of every module."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import get_args

import klinesync
from klinesync.market_data.orchestrator import MarketDataOrchestrator

SRC = Path(klinesync.__file__).parent
# Readers of environment variables: only the flags.
READS_ENVIRONMENT = {"runtime/flags.py", "runtime/flag_sources.py"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb"}

# Rooms in which every module is pure, and the mark of a pure module elsewhere: the word in its docstring.
PURE_ROOMS = ("core", "factor", "overlay")
PURE = re.compile(r"\bPure[.:;]")
# Modules that a pure module must not import: loops, threads, sockets, databases, processes, the clock, logs.
EFFECTS = {
    "aiohttp", "apsw", "asyncio", "logging", "multiprocessing", "select", "sqlite3", "subprocess", "tempfile",
    "threading", "time", "uvicorn", "websockets",
}  # fmt: skip
# Names and numbers of errors are values.
VALUES_OF = {"core/network_errors.py": {"os", "socket"}, "core/errors.py": {"errno"}}
# The clock and randomness, by attribute: `datetime.now()`, `random.random()`. A seeded `random.Random` is a value.
CLOCKS = {"now", "utcnow", "today"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The path of each module below the package, and its syntax tree."""
    for path in sorted(SRC.rglob("*.py")):
        yield path.relative_to(SRC).as_posix(), ast.parse(path.read_text())


def reads_environment(tree: ast.AST) -> bool:
    """Whether code names `os.environ` or `os.getenv`, or imports either from `os`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os" | "posix"), attr=name) if name in ENVIRONMENT_NAMES:
                return True
            case ast.ImportFrom(module="os" | "posix", names=names):
                if any(alias.name in ENVIRONMENT_NAMES for alias in names):
                    return True
    return False


def test_the_environment_is_read_where_flags_are_read_and_nowhere_else() -> None:
    assert {path for path, tree in modules() if reads_environment(tree)} == READS_ENVIRONMENT


def test_every_way_to_read_the_environment_is_seen() -> None:
    for code in (
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ",
        "def f():\n    from os import getenv as read",
    ):
        assert reads_environment(ast.parse(code)), code
    assert not reads_environment(ast.parse("import os\nos.path.join('a')\nenviron = {}"))


def effects(tree: ast.AST) -> set[str]:
    """The impure names that code uses: modules with effects, the system, the clock, randomness without a seed."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names} & (EFFECTS | {"os", "socket"})
            case ast.ImportFrom(module=str(module), level=0) if module.partition(".")[0] in EFFECTS | {"os", "socket"}:
                found.add(module.partition(".")[0])
            case ast.ImportFrom(module="random", names=names):
                found |= {alias.name for alias in names} - {"Random"}
            case ast.Attribute(value=ast.Name(id="datetime" | "date"), attr=name) if name in CLOCKS:
                found.add(name)
            case ast.Attribute(value=ast.Name(id="random"), attr=name) if name != "Random":
                found.add(f"random.{name}")
    return found


def test_what_is_said_to_be_pure_has_no_loop_socket_database_clock_or_chance() -> None:
    checked = 0
    for path, tree in modules():
        if path.partition("/")[0] in PURE_ROOMS or PURE.search(ast.get_docstring(tree) or ""):
            checked += 1
            assert effects(tree) - VALUES_OF.get(path, set()) == set(), path
    assert checked > 60


def test_every_effect_is_seen() -> None:
    for code in (
        "import asyncio",
        "from asyncio import sleep",
        "import os.path",
        "from datetime import datetime\ndatetime.now()",
        "import random\nrandom.random()",
        "from random import choice",
        "def f():\n    from time import monotonic",
    ):
        assert effects(ast.parse(code)), code
    assert not effects(ast.parse("from random import Random\nfrom datetime import datetime\ndatetime.fromtimestamp(0)"))


# Rooms whose objects refer to each other: a nested function there may use a name that is assigned later, which no tool
# detects. A part that needs another gets it as a constructor argument.
BUILDERS = re.compile(r"market/(runtime_builder|parts_\w+|settings)\.py")
MOST_BUILDER_LINES = 200
# A longer module says in its docstring why it is not split.
MOST_LINES = 450
LONG_FILE = re.compile(r"The file is long")


def nested_functions(tree: ast.AST) -> list[int]:
    """The lines of functions and lambdas within functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    outer = [node for node in ast.walk(tree) if isinstance(node, functions)]
    pairs = [(node, below) for node in outer for below in ast.walk(node) if isinstance(below, functions)]
    return sorted({below.lineno for node, below in pairs if below is not node})


def test_the_builder_has_no_nested_function() -> None:
    nested = {path: lines for path, tree in modules() if BUILDERS.fullmatch(path) and (lines := nested_functions(tree))}
    assert nested == {}


def test_the_builder_is_short() -> None:
    lines = len((SRC / "market/runtime_builder.py").read_text().splitlines())
    assert lines <= MOST_BUILDER_LINES


def test_a_long_module_gives_its_reason() -> None:
    silent = {
        str(path.relative_to(SRC)): lines
        for path in SRC.rglob("*.py")
        if (lines := len((text := path.read_text()).splitlines())) > MOST_LINES
        and not LONG_FILE.search(ast.get_docstring(ast.parse(text)) or "")
    }
    assert silent == {}


def test_nested_functions_and_lambdas_are_seen() -> None:
    assert nested_functions(ast.parse("def f():\n    def g(): pass")) == [2]
    assert nested_functions(ast.parse("def f():\n    return lambda: later")) == [2]
    assert nested_functions(ast.parse("class A:\n    def f(self): pass\n\ndef g(): pass")) == []


# This machine's clocks, by module and name. `SystemClock` reads them for all parts; the simulation and the client have
# clocks of their own, as they import `core` alone.
SYSTEM_CLOCKS = {("time", name) for name in ("time", "time_ns", "monotonic", "monotonic_ns")}
CLOCK_MODULE = "runtime/clock.py"
OWN_CLOCKS = ("sim/", "client/")


def system_clocks(tree: ast.AST) -> list[int]:
    """The lines that read a clock of this machine: of `time`, or of an event loop."""
    lines = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in SYSTEM_CLOCKS:
                lines.add(node.lineno)
            case ast.ImportFrom(module="time", names=names):
                if any(("time", alias.name) in SYSTEM_CLOCKS for alias in names):
                    lines.add(node.lineno)
            case ast.Attribute(value=ast.Name(id="loop") | ast.Attribute(attr="loop" | "_loop"), attr="time"):
                lines.add(node.lineno)
            case ast.Attribute(value=ast.Call(func=ast.Attribute(attr="get_running_loop")), attr="time"):
                lines.add(node.lineno)
    return sorted(lines)


def test_clocks_of_this_machine_are_read_by_the_system_clock_alone() -> None:
    readers = {
        path: lines
        for path, tree in modules()
        if path != CLOCK_MODULE and not path.startswith(OWN_CLOCKS) and (lines := system_clocks(tree))
    }
    assert readers == {}


def test_every_way_to_read_a_clock_is_seen() -> None:
    for code in (
        "import time\ntime.monotonic()",
        "from time import time",
        "monotonic = asyncio.get_running_loop().time",
        "loop.time()",
        "self.loop.time()",
    ):
        assert system_clocks(ast.parse(code)), code
    assert system_clocks(ast.parse("time.sleep(1)\nself._time.known_s()\nclock.monotonic_s()")) == []


def test_routes_know_the_one_face_of_market_data_and_none_of_its_services() -> None:
    parameters = inspect.signature(MarketDataOrchestrator, eval_str=True).parameters.values()
    services = {
        kind.__name__
        for parameter in parameters
        for kind in (parameter.annotation, *get_args(parameter.annotation))
        if isinstance(kind, type) and kind is not NoneType and "klinesync" in kind.__module__
    }
    assert {"CandleReader", "HealthService", "WsSubscriptionCoordinator"} <= services
    services.remove("SeriesId")
    named = {
        (path, alias.name)
        for path, tree in modules()
        if re.fullmatch(r"market/\w+_routes\.py", path)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in services
    }
    assert named == set()

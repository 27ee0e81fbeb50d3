"""Rules of the house that no linter knows, checked over the syntax tree of every module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import klinesync

SRC = Path(klinesync.__file__).parent
# Readers of the environment's variables: the flags, and nothing else.
READS_ENVIRONMENT = {"runtime/flags.py", "runtime/flag_sources.py"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb"}

# Rooms in which every module is pure, and what marks a module elsewhere: the word in its docstring.
PURE_ROOMS = ("core", "factor", "overlay")
PURE = re.compile(r"\bPure[.:;]")
# What a pure module imports nothing of: loops, threads, sockets, databases, processes, the clock, logs.
EFFECTS = {
    "aiohttp", "apsw", "asyncio", "logging", "multiprocessing", "select", "sqlite3", "subprocess", "tempfile",
    "threading", "time", "uvicorn", "websockets",
}  # fmt: skip
# Names of errors and their numbers are values.
VALUES_OF = {"core/network_errors.py": {"os", "socket"}, "core/errors.py": {"errno"}}
# The clock and chance, by attribute: `datetime.now()`, `random.random()`. A seeded `random.Random` is a value.
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
    """What code uses that is no value: modules with effects, the system, the clock, chance without a seed."""
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

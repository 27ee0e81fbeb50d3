"""Rules of the house that no linter knows, checked over the syntax tree of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import klinesync

SRC = Path(klinesync.__file__).parent
# Readers of the environment's variables: the flags, and nothing else.
READS_ENVIRONMENT = {"runtime/flags.py", "runtime/flag_sources.py"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb"}


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

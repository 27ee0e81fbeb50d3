"""The classes, functions and modules named in the explanations exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import architecture_page
import pytest

from klinesync.core.gaps import GapState
from klinesync.core.stream_state import StreamState

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "klinesync"
PAGES = [ROOT / "docs" / "explanation" / name for name in ("architecture.md", "glossary.md", "how-it-works.md")]


@cache
def defined() -> frozenset[str]:
    """The names of all classes, functions and methods of the package."""
    return frozenset(
        node.name
        for path in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )


def missing(text: str) -> list[str]:
    """The names in a text that the code does not have: classes (`CandleHub`), functions (`assess()`,
    `CandleHub.attach()`), modules (`core/splice.py`), rooms (`core/`)."""
    classes = re.findall(r"`([A-Z][a-z]+[A-Za-z]*)`", text)
    functions = [name for path in re.findall(r"`([A-Za-z_.]+)\(\)`", text) for name in path.split(".")]
    modules = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_0-9]+\.py)?)`", text)
    return [name for name in (*classes, *functions) if name not in defined()] + [
        name for name in modules if not (SRC / name).exists() and not (ROOT / name).exists()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_the_code_that_a_page_has_exists(page: Path) -> None:
    assert missing(page.read_text()) == []


def test_every_room_stands_in_the_contract_and_on_the_page_of_the_architecture() -> None:
    built = {path.parent.name for path in SRC.glob("*/__init__.py")} | {path.stem for path in SRC.glob("*.py")}
    rooms = [room for layer in architecture_page.layers() for room in layer]
    assert {room.name for room in rooms if not room.planned} == built - {"__init__"}
    assert not {room.name for room in rooms if room.planned} & built, "the room is there: take the brackets away"


WALKS = ("A closed candle", "A subscription", "A GET", "A correction", "A missing candle")


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_through_the_code_enters_each_room_once(title: str) -> None:
    text = (ROOT / "docs/explanation/how-it-works.md").read_text()
    walk = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rooms = re.findall(r"^\d\. \*\*`([a-z_]+)/`\*\*", walk, re.MULTILINE)
    assert len(rooms) == len(set(rooms)) == len(re.findall(r"^\d\. ", walk, re.MULTILINE)) > 2
    for room in rooms:
        assert (SRC / room / "__init__.py").exists(), room


def rows_of_the_glossary() -> list[list[str]]:
    """The cells of each row of the tables."""
    text = (ROOT / "docs/explanation/glossary.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [row for row in rows if row[0] != "term"]


def test_each_term_of_the_glossary_stands_once_with_its_meaning_its_chinese_and_its_place() -> None:
    rows = rows_of_the_glossary()
    assert len({term for term, *_ in rows}) == len(rows) > 60
    for row in rows:
        assert len(row) == 4, row
        _, chinese, meaning, place = row
        assert re.search(r"[\u4e00-\u9fff]", chinese), row
        assert meaning, row
        assert re.search(r"`[^`]+`|\]\(", place), row


def test_the_glossary_has_every_state_of_a_gap_and_of_a_stream() -> None:
    text = (ROOT / "docs/explanation/glossary.md").read_text()
    for state in (*GapState, *StreamState):
        assert f"`{state.value}`" in text, state


def test_a_name_that_does_not_exist_is_seen() -> None:
    assert missing("`CandleHub` `CandleHub.attach()` `core/splice.py` `core/`") == []
    assert missing("`CandleHut` `CandleHub.attak()` `core/slice.py` `cord/`") == [
        "CandleHut", "attak", "core/slice.py", "cord/",
    ]  # fmt: skip

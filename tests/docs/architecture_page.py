"""The picture and the table of rooms of docs/explanation/architecture.md, as import-linter's contract has the rooms."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import NamedTuple

import generated

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
CONTRACT = "who may import whom"
# Planned rooms, and their purpose.
PLANNED = {"cluster": "Which process owns which series, for several processes over one store."}
# Rooms that no part of the service imports: used by the command line, users and tests.
ASIDE = ("client", "sim")
# Modules that only start the program, left out of the picture.
START = ("__main__", "first_moments")


class Room(NamedTuple):
    """A package, or a module, below `klinesync`; `planned`: not built yet."""

    name: str
    planned: bool


def layers() -> list[list[Room]]:
    """The rooms by layer, the uppermost first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["name"] == CONTRACT)
    assert contract["exhaustive"], "a room that stands nowhere is an error"
    return [
        [Room(name.strip("() "), planned=name.strip().startswith("(")) for name in layer.split("|")]
        for layer in contract["layers"]
    ]


def page() -> str:
    """The text of the page, with its picture and its table written anew."""
    text = generated.with_part(PAGE.read_text(), "picture", _picture())
    rows = [
        (str(number), f"`{room.name}`", _meaning(room)) for number, layer in enumerate(layers(), 1) for room in layer
    ]
    return generated.with_part(text, "rooms", generated.table(("layer", "room", "holds"), rows))


def _picture() -> str:
    lines = ["flowchart TB"]
    previous: list[str] = []
    for layer in layers():
        rooms = [room for room in layer if room.name not in ASIDE + START]
        if not rooms:
            continue
        lines += [f'  {room.name}["{room.name}{" (planned)" if room.planned else ""}"]' for room in rooms]
        lines += [f"  {upper} --> {room.name}" for upper in previous for room in rooms]
        previous = [room.name for room in rooms]
    lines += [f"  cli --> {room} --> core" for room in ASIDE]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def _meaning(room: Room) -> str:
    if room.planned:
        return f"{PLANNED[room.name]} Not built yet."
    path = ROOT / "src/klinesync" / f"{room.name}.py"
    if path.exists():
        return generated.sentence(path.read_text().partition('"""')[2].partition('"""')[0])
    return generated.sentence(importlib.import_module(f"klinesync.{room.name}").__doc__)

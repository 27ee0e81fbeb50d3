"""docs/reference/clients.md against the pins, and its examples against the exchange."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import documentation
import pytest
from simulated_exchange import SimulatedExchange

HERE = Path(__file__).parent


def pins() -> dict[str, str]:
    lines = (HERE / "constraints.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def test_the_page_names_the_versions_that_are_installed_here() -> None:
    named = dict(re.findall(r"^\| ([a-z-]+) \| ([0-9.]+) \|", documentation.PAGE, re.MULTILINE))
    assert len(named) == 6
    assert named == {client: version(client) for client in named}


def test_every_pin_is_a_name_and_a_version_and_what_is_installed() -> None:
    assert pins() == {name: version(name) for name in pins()}


@pytest.mark.parametrize(
    "block", documentation.blocks("python"), ids=lambda block: re.findall(r"(?:import|from) (\w+)", block)[1]
)
def test_the_example_runs_as_it_is_printed(
    exchange: SimulatedExchange, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(documentation.pointed(block, exchange), "docs/reference/clients.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out

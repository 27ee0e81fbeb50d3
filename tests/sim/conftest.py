"""Options of the simulation. They are known when pytest is given this folder: `pytest tests/sim --seeds 500`."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from sim.world import Outcome

SEEDS_FILE = Path(__file__).parent / "seeds.txt"
FRESH_SEEDS = 20
VENUE_SCHEDULES = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=FRESH_SEEDS, help="how many fresh seeds to simulate")
    group.addoption("--first-seed", default="0", help="the first of them (default 0), or `random`")
    group.addoption("--schedules", type=int, default=VENUE_SCHEDULES, help="how many schedules of a venue to simulate")
    group.addoption("--keep-seeds", action="store_true", help="write failing seeds into tests/sim/seeds.txt")


def kept_seeds() -> list[int]:
    """The seeds that failed once."""
    lines = (line.partition("#")[0].strip() for line in SEEDS_FILE.read_text().splitlines())
    return [int(line) for line in lines if line]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    if "kept_seed" in metafunc.fixturenames:
        metafunc.parametrize("kept_seed", kept_seeds())
    if "venue_seed" in metafunc.fixturenames:
        metafunc.parametrize("venue_seed", range(config.getoption("--schedules", VENUE_SCHEDULES)))
    if "fresh_seed" in metafunc.fixturenames:
        given = config.getoption("--first-seed", "0")
        # All worker processes of one run draw the same seeds.
        drawn = Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
        first = drawn.randrange(10**9) if given == "random" else int(given)
        count = config.getoption("--seeds", FRESH_SEEDS)
        metafunc.parametrize("fresh_seed", range(first, first + count))


@pytest.fixture(scope="session")
def venue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stores of a venue's schedules while they run."""
    return tmp_path_factory.mktemp("venue")


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> object:
    """With --keep-seeds, keeps a seed that failed."""

    def kept(outcome: Outcome) -> None:
        if outcome.wrong and request.config.getoption("--keep-seeds", False):
            with SEEDS_FILE.open("a") as file:
                file.write(f"{outcome.scenario.seed}  # {outcome.wrong[0]}\n")

    return kept

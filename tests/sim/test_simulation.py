"""The whole service under virtual time, with faults: the promises hold for every seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sim.runs import known_outcome
from sim.scenario import draw_scenario
from sim.world import Outcome, run_seed

Keep = Callable[[Outcome], None]


def test_a_seed_that_once_failed_passes(kept_seed: int) -> None:
    outcome = run_seed(kept_seed)
    assert not outcome.wrong, f"\n{outcome}"


def test_a_fresh_seed_passes(fresh_seed: int, keep: Keep) -> None:
    outcome = known_outcome(draw_scenario(fresh_seed))
    keep(outcome)
    assert not outcome.wrong, f"\n{outcome}"


def test_a_seed_gives_the_same_transcript_every_time() -> None:
    for seed in (1, 5, 7):
        assert run_seed(seed).transcript == known_outcome(draw_scenario(seed)).transcript


def test_a_seed_gives_the_same_transcript_with_any_hash_seed() -> None:
    program = "from sim.world import run_seed; print(*(run_seed(seed).transcript for seed in (2, 8, 9)))"
    tests = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    transcripts = set()
    for hash_seed in ("0", "4321"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": tests}
        answer = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        transcripts.add(answer.stdout)
    assert len(transcripts) == 1
    assert known_outcome(draw_scenario(2)).transcript == transcripts.pop().split()[0]


def test_scenarios_have_every_fault_and_differ() -> None:
    scenarios = [draw_scenario(seed) for seed in range(200)]
    assert len(set(map(str, scenarios))) == 200
    for name in type(scenarios[0].faults).__dataclass_fields__:
        with_it = sum(bool(getattr(scenario.faults, name)) for scenario in scenarios)
        assert 20 < with_it < 180, name


def test_every_kind_of_fault_happens_in_the_simulation() -> None:
    """Without faults the simulation would prove nothing."""
    facts: dict[str, int] = {}
    for seed in range(12):
        for name, count in known_outcome(draw_scenario(seed)).facts.items():
            facts[name] = facts.get(name, 0) + count
    assert min(facts.values()) > 0, facts
    assert facts["lines"] > 5000

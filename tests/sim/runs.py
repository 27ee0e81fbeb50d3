"""Runs of the unmodified service. The outcome of a scenario is always the same, so that several tests share one run."""

from __future__ import annotations

from functools import cache

from sim.scenario import Scenario
from sim.world import Outcome, run_scenario


@cache
def known_outcome(scenario: Scenario) -> Outcome:
    """The outcome of a scenario, perhaps from an earlier test. Not for a service with a deliberate break."""
    return run_scenario(scenario)

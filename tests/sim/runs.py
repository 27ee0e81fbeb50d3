"""Runs of the service as it is. A scenario's outcome is always the same: one run of it does for several tests."""

from __future__ import annotations

from functools import cache

from sim.scenario import Scenario
from sim.world import Outcome, run_scenario


@cache
def known_outcome(scenario: Scenario) -> Outcome:
    """The outcome of a scenario, perhaps from an earlier test. Not for a service with a deliberate break."""
    return run_scenario(scenario)

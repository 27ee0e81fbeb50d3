"""Surroundings: clock, randomness, bulkheads and tuning of a service; the simulation has its own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock


@dataclass(frozen=True, slots=True)
class Surroundings:
    """clock: our time.
    rng: jitter.
    bulkheads: begin the tasks, and count the defects in them.
    tuning: limits and timings that no flag sets.
    """

    clock: Clock = SYSTEM_CLOCK
    rng: random.Random = field(default_factory=random.Random)
    bulkheads: Bulkheads = field(default_factory=Bulkheads)
    tuning: Tuning = USUAL_TUNING

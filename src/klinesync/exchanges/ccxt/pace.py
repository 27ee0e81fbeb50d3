"""Pace: spends the budget of a venue evenly, where ccxt's limiter counts its requests wrong. Pure.

Time is an argument, in monotonic seconds. What was spent is paid off at a steady rate; a request may go while no more
than `burst_s` of the budget is owed.
"""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.exchanges.ccxt.timings import USUAL_TURNS


@dataclass(slots=True)
class Pace:
    """`weight_per_s`: the weight that is paid off in a second; None: nothing is paced. `burst_s`: what may be spent
    ahead, in seconds of the budget."""

    weight_per_s: float | None = None
    burst_s: float = USUAL_TURNS.burst_s
    _paid_s: float = float("-inf")  # when all that was spent is paid off

    def held_s(self, now_s: float) -> float:
        """For how long no request goes; 0 when one may."""
        return max(0.0, self._paid_s - now_s - self.burst_s)

    def spend(self, weight: float, now_s: float) -> None:
        """A request of that weight goes."""
        if self.weight_per_s is not None:
            self._paid_s = max(self._paid_s, now_s) + weight / self.weight_per_s

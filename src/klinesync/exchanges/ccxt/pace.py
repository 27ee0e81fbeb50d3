"""Pace: a token bucket that spends the budget of a venue evenly, where ccxt's limiter counts its requests wrong. Pure.

Time is an argument, in monotonic seconds. Spent weight is paid off at a steady rate; a request may be sent while the
debt is at most `burst_s` of the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.exchanges.ccxt.timings import USUAL_TURNS


@dataclass(slots=True)
class Pace:
    """The budget of one venue.

    weight_per_s: weight that is paid off in a second; None: nothing is paced.
    burst_s: largest debt at which a request may be sent, in seconds of the budget.
    """

    weight_per_s: float | None = None
    burst_s: float = USUAL_TURNS.burst_s
    _paid_s: float = float("-inf")  # when the debt is paid off

    def held_s(self, now_s: float) -> float:
        """Seconds until a request may be sent; 0 when one may be sent now."""
        return max(0.0, self._paid_s - now_s - self.burst_s)

    def spend(self, weight: float, now_s: float) -> None:
        """Spend the weight of a request that is sent now."""
        if self.weight_per_s is not None:
            self._paid_s = max(self._paid_s, now_s) + weight / self.weight_per_s

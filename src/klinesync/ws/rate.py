"""MessageRate: the rate limit of the messages of one client. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The rate limit of one client.

    burst: largest burst, in messages: a client may subscribe to all series of a connection (2,000) and unsubscribe at
        once.
    per_s: sustained rate, in messages a second.
    refused_max: consecutive refused messages after which the connection is closed.
    """

    burst: int = 4000
    per_s: float = 100.0
    refused_max: int = 1000


USUAL_RATE = RateLimits()


class Verdict(Enum):
    """How a message is treated."""

    TAKEN = "taken"
    REFUSED = "refused"
    ABUSE = "abuse"


class MessageRate:
    """A token bucket of `limits.burst` messages, refilled with `limits.per_s` a second."""

    __slots__ = ("_refilled_s", "_refused", "_tokens", "limits")

    def __init__(self, now_s: float, limits: RateLimits = USUAL_RATE) -> None:
        self.limits = limits
        self._tokens = float(limits.burst)
        self._refilled_s = now_s
        self._refused = 0

    def judge(self, now_s: float) -> Verdict:
        """How a message that arrives at `now_s` (monotonic seconds) is treated."""
        self._tokens = min(self.limits.burst, self._tokens + (now_s - self._refilled_s) * self.limits.per_s)
        self._refilled_s = now_s
        if self._tokens >= 1:
            self._tokens -= 1
            self._refused = 0
            return Verdict.TAKEN
        self._refused += 1
        return Verdict.ABUSE if self._refused > self.limits.refused_max else Verdict.REFUSED

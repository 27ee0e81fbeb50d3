"""MessageRate: the rate limit of the messages of one client. Pure; time is an argument."""

from __future__ import annotations

from enum import Enum

# Largest burst, in messages: a client may subscribe to all series of a connection (2,000) and unsubscribe at once.
RATE_BURST = 4000
# Sustained rate, in messages a second.
RATE_PER_S = 100.0
# Consecutive refused messages after which the connection is closed.
REFUSED_MAX = 1000


class Verdict(Enum):
    """How a message is treated."""

    TAKEN = "taken"
    REFUSED = "refused"
    ABUSE = "abuse"


class MessageRate:
    """A token bucket of `RATE_BURST` messages, refilled with `RATE_PER_S` a second."""

    __slots__ = ("_refilled_s", "_refused", "_tokens")

    def __init__(self, now_s: float) -> None:
        self._tokens = float(RATE_BURST)
        self._refilled_s = now_s
        self._refused = 0

    def judge(self, now_s: float) -> Verdict:
        """How a message that arrives at `now_s` (monotonic seconds) is treated."""
        self._tokens = min(RATE_BURST, self._tokens + (now_s - self._refilled_s) * RATE_PER_S)
        self._refilled_s = now_s
        if self._tokens >= 1:
            self._tokens -= 1
            self._refused = 0
            return Verdict.TAKEN
        self._refused += 1
        return Verdict.ABUSE if self._refused > REFUSED_MAX else Verdict.REFUSED

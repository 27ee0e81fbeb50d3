"""MessageRate: the rate limit of the messages of one client. Pure; time is an argument."""

from __future__ import annotations

from enum import Enum

# Burst of messages: a client may subscribe to, and unsubscribe from, all series of a connection (2,000) at once.
RATE_BURST = 4000
RATE_PER_S = 100.0
# Consecutive refused messages after which the connection is closed.
REFUSED_MAX = 1000


class Verdict(Enum):
    """How a message is treated."""

    TAKEN = "taken"
    REFUSED = "refused"
    ABUSE = "abuse"


class MessageRate:
    """A bucket of `RATE_BURST` messages that fills with `RATE_PER_S` a second."""

    __slots__ = ("_left", "_refused", "_seen_s")

    def __init__(self, now_s: float) -> None:
        self._left = float(RATE_BURST)
        self._seen_s = now_s
        self._refused = 0

    def judge(self, now_s: float) -> Verdict:
        """How a message that arrives at `now_s` (monotonic seconds) is treated."""
        self._left = min(RATE_BURST, self._left + (now_s - self._seen_s) * RATE_PER_S)
        self._seen_s = now_s
        if self._left >= 1:
            self._left -= 1
            self._refused = 0
            return Verdict.TAKEN
        self._refused += 1
        return Verdict.ABUSE if self._refused > REFUSED_MAX else Verdict.REFUSED

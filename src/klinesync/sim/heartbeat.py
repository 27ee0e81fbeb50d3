"""Pings: when the server sends one, and when it gives a silent client up. On the host's clock: liveness is real."""

from __future__ import annotations

from dataclasses import dataclass, field

from klinesync.sim.tape import Market

PING_EVERY_S: dict[Market, float] = {"spot": 20.0, "futures": 180.0}
PONG_WITHIN_S: dict[Market, float] = {"spot": 60.0, "futures": 600.0}


@dataclass(slots=True)
class Heartbeat:
    """One connection's pings. Times are monotonic seconds of the host."""

    market: Market
    pinged_s: float
    _waiting: dict[bytes, float] = field(default_factory=dict)

    def ping(self, now_s: float, payload: bytes) -> bytes | None:
        """The payload of the ping that is due now; None when none is. `payload` is what it would be."""
        if now_s - self.pinged_s < PING_EVERY_S[self.market]:
            return None
        self.pinged_s = now_s
        self._waiting[payload] = now_s
        return payload

    def pong(self, payload: bytes) -> bool:
        """Whether the pong answers one of our pings. An unsolicited pong does not keep a connection alive."""
        if payload not in self._waiting:
            return False
        self._waiting.clear()  # it has read everything up to this one
        return True

    def is_dead(self, now_s: float) -> bool:
        """Whether the oldest unanswered ping has waited too long."""
        return any(now_s - sent_s > PONG_WITHIN_S[self.market] for sent_s in self._waiting.values())

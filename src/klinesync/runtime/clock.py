"""What time it is on the exchange: learned from the exchange, never taken from our own clock."""

from __future__ import annotations

# A stamp so far ahead of the newest one, and the time since, is a clock that jumped, or a lie: the exchange is asked.
MAX_AHEAD_MS = 60_000


class ExchangeClock:
    """The newest time stamp received from one exchange market, in ms.

    `proven_ms` is that stamp: only it can prove that a candle is over. `estimate_ms` adds the monotonic time since
    it arrived, for display and health; an exchange that runs at another speed than ours (a simulated one) makes the
    estimate wrong by that factor, and a stamp corrects it.
    """

    __slots__ = ("_learned_at_s", "proven_ms")

    def __init__(self) -> None:
        self.proven_ms: int | None = None
        self._learned_at_s = 0.0

    def plausible(self, stamp_ms: int, monotonic_s: float) -> bool:
        """Whether a stamp that arrives at `monotonic_s` may be right: not far ahead of what is known. Without anything
        known no stamp is."""
        estimate_ms = self.estimate_ms(monotonic_s)
        return estimate_ms is not None and stamp_ms <= estimate_ms + MAX_AHEAD_MS

    def learn(self, stamp_ms: int, monotonic_s: float) -> None:
        """Take in a stamp that arrived at `monotonic_s`. An older stamp than the newest is ignored; the same again says
        that the clock stands still."""
        if self.proven_ms is None or stamp_ms >= self.proven_ms:
            self.proven_ms = stamp_ms
            self._learned_at_s = monotonic_s

    def age_s(self, monotonic_s: float) -> float:
        """How long ago the newest stamp arrived; endless before the first."""
        return float("inf") if self.proven_ms is None else monotonic_s - self._learned_at_s

    def estimate_ms(self, monotonic_s: float) -> int | None:
        """The newest stamp plus the time since it arrived; None before the first."""
        if self.proven_ms is None:
            return None
        return self.proven_ms + int((monotonic_s - self._learned_at_s) * 1000)

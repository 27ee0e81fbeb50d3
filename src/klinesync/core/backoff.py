"""Backoff: how long to wait before a retry. Pure: the number of the retry in, seconds out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that grow by a factor with each retry in a row, up to a limit, as a value.

    The caller counts its consecutive failures, and begins again at 0 after a success.

    initial_s: delay before the first retry, in seconds.
    most_s: longest delay, in seconds; at least `initial_s`.
    factor: growth with each retry, at least 1; 2 by default.
    jitter: largest random share by which a delay is shortened, from 0 (none, the default) to 1 (all of the delay), so
        that clients which failed together do not retry together.
    """

    initial_s: float
    most_s: float
    factor: float = 2.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        assert 0.0 <= self.initial_s <= self.most_s < float("inf"), f"{self} begins above its longest delay, or below 0"
        assert self.factor >= 1.0, f"{self} shrinks"
        assert 0.0 <= self.jitter <= 1.0, f"{self} has a jitter that is no share"

    def delay_s(self, retry: int, rng: Random | None = None) -> float:
        """Seconds to wait before a retry.

        retry: consecutive retries before this one, from 0.
        rng: source of the jitter; without one the delay is the full one.
        """
        try:
            delay_s = min(self.initial_s * self.factor**retry, self.most_s)
        except OverflowError:  # after some thousand consecutive retries
            delay_s = self.most_s
        return delay_s if rng is None else delay_s * rng.uniform(1.0 - self.jitter, 1.0)

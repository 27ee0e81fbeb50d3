"""A clock that stands still until a test moves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ManualClock:
    """`now_s`: the time of both clocks, set by the test; `wall_from_s`: how far the wall clock is ahead."""

    now_s: float = 0.0
    wall_from_s: float = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.wall_from_s + self.now_s

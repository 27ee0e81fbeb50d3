"""The exchange's clock: a value computed from a monotonic time that is passed in."""

from __future__ import annotations

from klinesync.core.errors import Rejected

MAX_SPEED = 1_000_000.0


class BadClock(Rejected):
    """A speed or an advance that the clock cannot follow."""

    code = "bad_clock"


class ExchangeClock:
    """Exchange time: `speed` exchange seconds per second of `mono_s`, pausable, able to jump ahead, never back.

    `mono_s` is any monotonic time in seconds; exchange times are UTC milliseconds.
    """

    def __init__(self, now_ms: int, mono_s: float, speed: float) -> None:
        self._base_ms = float(now_ms)
        self._base_mono_s = mono_s
        self._speed = _checked_speed(speed)
        self._paused = False

    @property
    def speed(self) -> float:
        """Exchange seconds per second while it runs, also when it is paused just now."""
        return self._speed

    @property
    def paused(self) -> bool:
        return self._paused

    def now_ms(self, mono_s: float) -> int:
        return int(self._now(mono_s))

    def mono_s_at(self, time_ms: float) -> float | None:
        """The monotonic time at which the exchange's clock will show `time_ms`; None while it stands."""
        if self._paused:
            return None
        return self._base_mono_s + (time_ms - self._base_ms) / (self._speed * 1000.0)

    def set_speed(self, speed: float, mono_s: float) -> None:
        """Raises `BadClock` for a speed that is not a positive number."""
        speed = _checked_speed(speed)
        self._rebase(mono_s)
        self._speed = speed

    def pause(self, paused: bool, mono_s: float) -> None:
        self._rebase(mono_s)
        self._paused = paused

    def advance(self, seconds: float, mono_s: float) -> None:
        """Jump ahead, also while paused. Raises `BadClock` for a negative or endless jump."""
        if not 0 <= seconds <= 100 * 365 * 86_400:
            raise BadClock(f"advance_s is {seconds}; the clock goes ahead by 0 seconds or more, a century at most")
        self._rebase(mono_s)
        self._base_ms += seconds * 1000.0

    def _now(self, mono_s: float) -> float:
        if self._paused:
            return self._base_ms
        return self._base_ms + (mono_s - self._base_mono_s) * self._speed * 1000.0

    def _rebase(self, mono_s: float) -> None:
        self._base_ms = self._now(mono_s)
        self._base_mono_s = mono_s


def _checked_speed(speed: float) -> float:
    if not 0 < speed <= MAX_SPEED:
        raise BadClock(f"speed is {speed}; use a number above 0, at most {MAX_SPEED:g}")
    return float(speed)

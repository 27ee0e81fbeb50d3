"""Clock: the port for the time of this machine. `ExchangeClock` has the time of an exchange.

Two clocks implement the port: `SystemClock`, and the simulation's, whose time is virtual.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

# Reads a monotonic clock, for parts that need only this method of a `Clock`.
Monotonic = Callable[[], float]


class Clock(Protocol):
    """The two clocks of a machine. Both may be read from any thread.

    The monotonic clock is that of the event loop's timers: a deadline of `monotonic_s` may be handed to
    `asyncio.timeout_at`.
    """

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary moment; never goes back. For throttles, backoffs, ages and timeouts."""
        ...

    def wall_s(self) -> float:
        """UTC seconds by this machine, which may be wrong and may jump. For dates that are stored or shown."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wall_s(self) -> float:
        """See `Clock`."""
        return time.time()


SYSTEM_CLOCK = SystemClock()

"""ExchangeTime: what time it is on the exchange of a series, as the services judge "latest", "future" and "stale"."""

from __future__ import annotations

from collections.abc import Mapping

from klinesync.core.series_id import SeriesId
from klinesync.runtime.clock import Clock
from klinesync.runtime.exchange_clock import ExchangeClock

# Age of a stamp in seconds from which on the exchange is asked for its time anew.
CLOCK_AGE_S = 5.0


class ExchangeTime:
    """The time of each exchange, in UTC seconds.

    clocks: what is known of each market's time, by exchange and market; exchanges may join later.
    clock: our own time, which counts where an exchange's is not known.
    """

    def __init__(self, clocks: Mapping[tuple[str, str], ExchangeClock], clock: Clock) -> None:
        self._clocks = clocks
        self._clock = clock

    def known_s(self, series: SeriesId) -> float | None:
        """The time on the exchange of `series`; None before the exchange has told any."""
        clock = self._clocks.get((series.exchange, series.market))
        now_ms = None if clock is None else clock.estimate_ms(self._clock.monotonic_s())
        return None if now_ms is None else now_ms / 1000

    def now_s(self, series: SeriesId) -> float:
        """The time on the exchange of `series`; our wall clock's before the exchange has told any."""
        known_s = self.known_s(series)
        return self._clock.wall_s() if known_s is None else known_s

    def fresh_s(self, series: SeriesId) -> float | None:
        """The time on the exchange of `series`; None where it is to be asked for.

        Where nothing is followed no stream tells the time: an old stamp lags an exchange that runs faster than we do,
        or went on while this machine slept, and a tail would never seem to be missing.
        """
        clock = self._clocks.get((series.exchange, series.market))
        if clock is None or clock.age_s(self._clock.monotonic_s()) > CLOCK_AGE_S:
            return None
        return self.known_s(series)

    def service_s(self) -> float:
        """The time by the exchange that was heard last; our wall clock's before any was heard."""
        now_s = self._clock.monotonic_s()
        heard = min(self._clocks.values(), key=lambda clock: clock.age_s(now_s), default=None)
        now_ms = None if heard is None else heard.estimate_ms(now_s)
        return self._clock.wall_s() if now_ms is None else now_ms / 1000

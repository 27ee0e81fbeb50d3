"""ExchangeTime: the time of each exchange, by which "latest", "future" and "stale" are judged."""

from __future__ import annotations

from collections.abc import Mapping

from klinesync.core.series_id import SeriesId
from klinesync.runtime.clock import Clock
from klinesync.runtime.exchange_clock import ExchangeClock

# Age of the newest stamp at which the exchange has to be asked for its time, in seconds.
CLOCK_AGE_S = 5.0


class ExchangeTime:
    """The time of each exchange, in UTC seconds.

    clocks: exchange clocks by exchange and market; exchanges may be added later.
    clock: of this machine, used while an exchange's time is unknown.
    clock_age_s: age of the newest stamp at which the exchange has to be asked for its time, in seconds.
    """

    def __init__(
        self, clocks: Mapping[tuple[str, str], ExchangeClock], clock: Clock, clock_age_s: float = CLOCK_AGE_S
    ) -> None:
        self._clock_age_s = clock_age_s
        self._clocks = clocks
        self._clock = clock

    def known_s(self, series: SeriesId) -> float | None:
        """The time of the exchange of `series`; None when unknown."""
        clock = self._clocks.get((series.exchange, series.market))
        now_ms = None if clock is None else clock.estimate_ms(self._clock.monotonic_s())
        return None if now_ms is None else now_ms / 1000

    def now_s(self, series: SeriesId) -> float:
        """The time of the exchange of `series`; that of the wall clock when unknown."""
        known_s = self.known_s(series)
        return self._clock.wall_s() if known_s is None else known_s

    def fresh_s(self, series: SeriesId) -> float | None:
        """The time of the exchange of `series`; None when the newest stamp is older than `clock_age_s`, and the
        exchange has to be asked.

        An estimate from an old stamp lags an exchange that runs faster, or went on while this machine slept; judged by
        it, no tail would be missing.
        """
        clock = self._clocks.get((series.exchange, series.market))
        if clock is None or clock.age_s(self._clock.monotonic_s()) > self._clock_age_s:
            return None
        return self.known_s(series)

    def service_s(self) -> float:
        """The time of the exchange with the newest stamp; that of the wall clock when none is known."""
        now_s = self._clock.monotonic_s()
        newest = min(self._clocks.values(), key=lambda clock: clock.age_s(now_s), default=None)
        now_ms = None if newest is None else newest.estimate_ms(now_s)
        return self._clock.wall_s() if now_ms is None else now_ms / 1000

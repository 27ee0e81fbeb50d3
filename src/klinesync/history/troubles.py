"""Troubles: warnings about a series, limited in rate."""

from __future__ import annotations

from klinesync.core.series_id import SeriesId
from klinesync.runtime.clock import Monotonic
from klinesync.runtime.log_events import Log, LogEvent
from klinesync.runtime.log_limit import LogLimit

# Shortest time between two warnings of one event about one series, in seconds.
LOG_EVERY_S = 600.0


class Troubles:
    """Warnings of one reader."""

    def __init__(self, log: Log, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._log = log
        self._logged = LogLimit(LOG_EVERY_S)

    def warn(self, event: LogEvent, series: SeriesId, sentence: str, *values: object, **fields: object) -> None:
        """Log an event of a series, as `Log.warning`."""
        if self._logged.allow((series, event), self._monotonic()) is not None:
            self._log.warning(event, sentence, *values, series=series, **fields)

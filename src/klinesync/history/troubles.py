"""Troubles: warnings about a series, each at most once in a while."""

from __future__ import annotations

import asyncio
import logging

from klinesync.core.series_id import SeriesId
from klinesync.runtime.log_limit import LogLimit

# Shortest time between two warnings of one text about one series, in seconds.
LOG_EVERY_S = 600.0


class Troubles:
    """Warnings of one reader."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged = LogLimit(LOG_EVERY_S)

    def warn(self, series: SeriesId, text: str, *values: object) -> None:
        """Log `text`, a format whose first value is the series."""
        if self._logged.allow((series, text), asyncio.get_running_loop().time()) is not None:
            self._log.warning(text, series, *values)

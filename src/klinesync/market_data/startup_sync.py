"""StartupSync: follows the whitelist from the start, and knows how much of it is up to date. Serving does not wait for
the sweep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count

from klinesync.core.backoff import Backoff
from klinesync.core.errors import KlinesyncError, Rejected
from klinesync.core.series_id import SeriesId
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Shortest time between two log lines about progress, in seconds.
LOG_EVERY_S = 5.0
# Backoff of a series that cannot be followed.
RETRY = Backoff(initial_s=1.0, most_s=60.0)


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """The progress of the sweep: of `total` series, `done` are up to date and `refused` cannot be followed."""

    total: int
    done: int
    refused: int


class StartupSync:
    """Brings series up to date once. `run` is its task, and ends with the sweep. All series are followed concurrently;
    the request budget of their exchange is the limit.

    series: to follow.
    follow: begins to follow a series.
    caught_up: returns when a series is up to date. An error of `follow` or `caught_up` is retried with backoff.
    monotonic: monotonic seconds.
    refresh: computes derived candles and ledgers of a series then; None (the default): nothing is computed.
    request_declared: has declared gaps of a series healed then; None (the default): none are.
    bulkheads: contains defects; a new one by default.
    retry: backoff of a series that cannot be followed.
    """

    def __init__(
        self,
        *,
        series: Iterable[SeriesId],
        follow: Callable[[SeriesId], Awaitable[None]],
        caught_up: Callable[[SeriesId], Awaitable[None]],
        monotonic: Callable[[], float],
        refresh: Callable[[SeriesId], Awaitable[None]] | None = None,
        request_declared: Callable[[SeriesId], None] | None = None,
        bulkheads: Bulkheads | None = None,
        retry: Backoff = RETRY,
    ) -> None:
        self._retry = retry
        self._bulkheads = bulkheads or Bulkheads()
        self._series = tuple(dict.fromkeys(series))
        self._follow = follow
        self._caught_up = caught_up
        self._refresh = refresh
        self._request_declared = request_declared
        self._monotonic = monotonic
        self._waiting: set[SeriesId] = set(self._series)
        self._refused = 0
        self._started_s: float | None = None
        self._logged_s = 0.0
        self._errors = LogLimit(LOG_EVERY_S)

    def progress(self) -> SweepProgress:
        """The progress of the sweep."""
        total = len(self._series)
        done = total - len(self._waiting) - self._refused
        return SweepProgress(total, done, self._refused)

    def waiting(self, series: SeriesId) -> bool:
        """Whether the sweep has not brought the series up to date yet."""
        return series in self._waiting

    async def run(self) -> None:
        """Sweep all series. A series that fails or hangs does not delay the others."""
        self._started_s = self._logged_s = self._monotonic()
        if self._series:
            async with asyncio.TaskGroup() as group:
                for series in self._series:
                    if series in self._waiting:
                        work, name = partial(self._bring_up_to_date, series), f"start-up {series}"
                        self._bulkheads.begin(group, work, part=Part.STARTUP, name=name, restart=True)

    async def _bring_up_to_date(self, series: SeriesId) -> None:
        for retry in count():
            try:
                await self._follow(series)
                await self._caught_up(series)
                if self._refresh is not None:
                    await self._refresh(series)
                break
            except Rejected as error:
                log.warning(
                    "startup.left_out", "the series is left out of the start-up sweep", series=series, error=error
                )
                self._refused += 1
                self._waiting.discard(series)
                self._log()
                return
            except KlinesyncError as error:
                retry_s = self._retry.delay_s(retry)
                suppressed = self._errors.allow(error.code, self._monotonic())
                if suppressed is not None:
                    log.warning(
                        "startup.retry",
                        "the start-up sweep tries the series again in %.1f s",
                        retry_s,
                        series=series,
                        suppressed=suppressed,
                        error=error,
                    )
            await asyncio.sleep(retry_s)
        if self._request_declared is not None:
            self._request_declared(series)
        self._waiting.discard(series)
        self._log()

    def _log(self) -> None:
        now_s = self._monotonic()
        if self._waiting and now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        progress = self.progress()
        log.info(
            "startup.progress",
            "start-up sweep: %d of %d series up to date, after %.1f s",
            progress.done,
            progress.total,
            now_s - (self._started_s or now_s),
            done=progress.done,
            total=progress.total,
        )

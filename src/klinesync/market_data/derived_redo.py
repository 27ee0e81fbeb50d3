"""DerivedRedo: recomputes derived series after a start with another base or other timeframes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from klinesync.core.errors import StoreError
from klinesync.pipelines.derived_settings import Settled
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.log_events import Log
from klinesync.storage.damage import StoreDamaged

log = Log(__name__)

# Pause after a failed write of the store, in seconds.
REDO_RETRY_S = 5.0
# Shortest time between two log lines about progress, in seconds.
PROGRESS_LINE_S = 10.0


class DerivedRedo:
    """Recomputes derived series. `settle` marks them before the service begins to write; `run` is its task.

    pipeline: writes candles.
    monotonic: monotonic seconds.
    """

    def __init__(self, pipeline: IngestPipeline, monotonic: Callable[[], float]) -> None:
        self._pipeline = pipeline
        self._monotonic = monotonic
        self._settled: Settled | None = None
        self._logged = ""  # the newest error
        self.remaining = 0  # series that are still to be recomputed

    async def settle(self) -> None:
        """Mark the series that other settings have computed. After an error of the store `run` tries again."""
        try:
            self._settled = await self._pipeline.settle_derived()
        except StoreError as error:
            if self._logged == str(error):
                return
            self._logged = str(error)
            log.warning(
                "derived.settle_failed", "derived series are checked once the store can be written", error=error
            )
        else:
            self.remaining = len(self._settled.redo)

    async def run(self) -> None:
        """Recompute the marked series."""
        while self._settled is None:
            await asyncio.sleep(REDO_RETRY_S)
            await self.settle()
        redo, refresh = self._settled.redo, self._settled.refresh
        if redo:
            log.info(
                "derived.recompute",
                "%d derived series are computed anew: the flags were others, or candles came from elsewhere",
                len(redo),
                done=0,
                total=len(redo),
            )
        logged_s = self._monotonic()
        for done, series in enumerate(redo, 1):
            await self._with_retries(partial(self._pipeline.redo_derived, series))
            self.remaining = len(redo) - done
            if self._monotonic() - logged_s >= PROGRESS_LINE_S:
                logged_s = self._monotonic()
                log.info("derived.recompute", "derived series are computed anew", done=done, total=len(redo))
        for series in refresh:
            await self._with_retries(partial(self._pipeline.refresh_series, series))
        if redo:
            log.info("derived.recompute", "derived series are computed anew", done=len(redo), total=len(redo))
        if self._settled.changed:
            await self._with_retries(self._pipeline.settled_derived)

    async def _with_retries(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, and retry after an error of the store; damaged candles, which the store reports, end it."""
        while True:
            try:
                await work()
            except StoreDamaged:
                return
            except StoreError as error:
                log.error("derived.recompute_failed", "derived series cannot be computed anew at present", error=error)
                await asyncio.sleep(REDO_RETRY_S)
            else:
                return

"""DerivedRedo: after a start with another base or other timeframes, what the old ones computed is computed anew."""

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

# Pause after a piece that the store did not take, in seconds.
REDO_RETRY_S = 5.0
# Progress is logged that often, in seconds.
PROGRESS_LINE_S = 10.0


class DerivedRedo:
    """`settle` marks what is to be done, before the service begins to write; `run`, its one task, does it.

    remaining: how many series are still to be computed anew.
    """

    def __init__(self, pipeline: IngestPipeline, monotonic: Callable[[], float]) -> None:
        self._pipeline = pipeline
        self._monotonic = monotonic
        self._settled: Settled | None = None
        self._told = ""
        self.remaining = 0

    async def settle(self) -> None:
        """Mark what the settings of this start do not give. A store that takes no writes is settled later."""
        try:
            self._settled = await self._pipeline.settle_derived()
        except StoreError as error:
            if self._told == str(error):
                return
            self._told = str(error)
            log.warning(
                "derived.settle_failed", "derived series are checked once the store can be written", error=error
            )
        else:
            self.remaining = len(self._settled.redo)

    async def run(self) -> None:
        """Compute anew what is marked, until all is done."""
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
        told_s = self._monotonic()
        for at, series in enumerate(redo):
            await self._insist(partial(self._pipeline.redo_derived, series))
            self.remaining = len(redo) - at - 1
            if self._monotonic() - told_s >= PROGRESS_LINE_S:
                told_s = self._monotonic()
                log.info("derived.recompute", "derived series are computed anew", done=at + 1, total=len(redo))
        for series in refresh:
            await self._insist(partial(self._pipeline.refresh_series, series))
        if redo:
            log.info("derived.recompute", "derived series are computed anew", done=len(redo), total=len(redo))
        if self._settled.changed:
            await self._insist(self._pipeline.settled_derived)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it until the store takes it; damaged candles are told, and are no reason to wait."""
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

"""DerivedForming: the forming candles of derived series, from what forms and closes in their base series."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.derived import FormingBuckets
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.storage.database import CandleStore, Database
from klinesync.ws.hub import CandleHub

log = logging.getLogger(__name__)

RETRY_S = 1.0


@dataclass(slots=True)
class _Progress:
    """One base series, and the latest candle that forms in it. Until `buckets` is read, closed candles wait."""

    buckets: FormingBuckets | None = None
    waiting: list[Candle] = field(default_factory=list)
    latest: Candle | None = None


class DerivedForming:
    """Stands before the hub: passes on what is published and shown, and shows what follows for derived series.

    The closed part of each bucket is read from the store once somebody watches, and again after a correction; then it
    is carried on. `run` does the reading.
    """

    def __init__(self, hub: CandleHub, database: Database, derived: DerivedStep) -> None:
        self._hub = hub
        self._database = database
        self._derived = derived
        self._progress: dict[SeriesId, _Progress] = {}
        self._to_read: asyncio.Queue[SeriesId] = asyncio.Queue()

    def publish(self, applied: Applied) -> None:
        """Closed candles, after their commit."""
        self._hub.publish(applied)
        progress = self._progress.get(applied.series)
        if progress is None:
            return
        if progress.buckets is None:
            progress.waiting += applied.candles
        elif not all(progress.buckets.close(candle) for candle in applied.candles):
            self._read_anew(applied.series)
        else:
            self._show(progress)  # what forms may have waited for this

    def show(self, forming: Forming) -> None:
        """A forming candle of an ingested series."""
        self._hub.show(forming)
        series = forming.series
        if series.timeframe != self._derived.base:
            return
        watched = [target for target in self._derived.targets if self._hub.watched(series.with_timeframe(target))]
        if not watched:
            return
        progress = self._progress.get(series)
        if progress is None:
            self._read_anew(series)
        else:
            progress.latest = forming.candle
            self._show(progress)

    def _show(self, progress: _Progress) -> None:
        if progress.buckets is not None and progress.latest is not None:
            for derived in progress.buckets.show(progress.latest):
                self._hub.show(derived)

    async def run(self) -> None:
        """Read the state of series that need it, until cancelled."""
        while True:
            series = await self._to_read.get()
            progress = self._progress[series]
            buckets = FormingBuckets(series, self._derived.targets)
            try:
                await self._database.read(lambda store, to=buckets, of=series: self._resume(store, of, to))  # type: ignore[misc]
            except StoreError as error:
                log.warning("%s: the derived candles in progress cannot be read: %s", series, error)
                await asyncio.sleep(RETRY_S)
                self._to_read.put_nowait(series)
                continue
            waiting, progress.waiting = progress.waiting, []
            if all(buckets.close(candle) for candle in waiting):
                progress.buckets = buckets
                self._show(progress)
            else:
                self._to_read.put_nowait(series)

    def _read_anew(self, series: SeriesId) -> None:
        self._progress[series] = _Progress()
        self._to_read.put_nowait(series)

    def _resume(self, store: CandleStore, series: SeriesId, buckets: FormingBuckets) -> None:
        def read(timeframe: Timeframe, first: int, end: int) -> list[Candle]:
            return self._derived.closed(store, series, timeframe, Span(first, end))

        buckets.resume(store.head(series), read)

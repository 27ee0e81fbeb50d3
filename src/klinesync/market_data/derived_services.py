"""Forming candles and history of derived series. Their closed candles are computed in the write transaction.

DerivedForming: forming candles, from the forming and the closed candles of the base. DerivedHistory: the first history
when a series is read or watched: base candles, and native candles from before the base begins.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.derived import FormingBuckets
from klinesync.core.errors import StoreError
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Urgency
from klinesync.history.missing import DERIVED, Need, Reason, missing_of_derived
from klinesync.history.service import HistoryService
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database
from klinesync.ws.hub import CandleHub

log = Log(__name__)

# Pause after a failed read of the store, in seconds.
RETRY_S = 1.0
# Most remembered series: without stored candles; and waiting for a candle of their base. The oldest are evicted.
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Progress:
    """The buckets in progress of one base series.

    buckets: None until they are read from the store.
    waiting: closed candles that came meanwhile.
    latest: the newest forming candle.
    """

    buckets: FormingBuckets | None = None
    waiting: list[Candle] = field(default_factory=list)
    latest: Candle | None = None


class DerivedForming:
    """Publishes candles to the hub, and shows forming candles of derived series.

    The closed part of each bucket is read from the store when a derived series is first watched, and after a
    correction; otherwise it is advanced in memory. `run` is the task that reads.

    hub: has the clients.
    database: the store.
    derived: the derived series of a base.
    bulkheads: contains defects; a new one by default.
    """

    def __init__(
        self, hub: CandleHub, database: Database, derived: DerivedStep, bulkheads: Bulkheads | None = None
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
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
            self._reset(applied.series)
        else:
            self._show(progress)  # a forming candle may have waited for these

    def show(self, forming: Forming) -> None:
        """A forming candle of an ingested series."""
        self._hub.show(forming)
        series = forming.series
        if not self._hub.any_watched(self._derived.derived_from(series)):
            return
        progress = self._progress.get(series)
        if progress is None:
            self._reset(series)
        else:
            progress.latest = forming.candle
            self._show(progress)

    def _show(self, progress: _Progress) -> None:
        if progress.buckets is not None and progress.latest is not None:
            for derived in progress.buckets.show(progress.latest):
                self._hub.show(derived)

    async def run(self) -> None:
        """Read the buckets of series from the store, until cancelled."""
        while True:
            series = await self._to_read.get()
            read: bool | None = None
            try:
                with self._bulkheads.contained(Part.DERIVED, f"derived forming of {series}"):
                    read = await self._read(series)
            finally:
                if not read:
                    self._to_read.put_nowait(series)
            if read is None:
                await asyncio.sleep(RETRY_S)

    async def _read(self, series: SeriesId) -> bool | None:
        """Read the buckets of a series. Returns True when they are up to date, False when candles that closed meanwhile
        require another read, and None when the store could not be read."""
        progress = self._progress[series]
        buckets = FormingBuckets(series, self._derived.targets)
        try:
            await self._database.read(lambda store: self._resume(store, series, buckets))
        except StoreError as error:
            log.warning(
                "derived.forming_failed", "the derived candles in progress cannot be read", series=series, error=error
            )
            return None
        waiting, progress.waiting = progress.waiting, []
        if not all(buckets.close(candle) for candle in waiting):
            return False
        progress.buckets = buckets
        self._show(progress)
        return True

    def _reset(self, series: SeriesId) -> None:
        self._progress[series] = _Progress()
        self._to_read.put_nowait(series)

    def _resume(self, store: CandleStore, series: SeriesId, buckets: FormingBuckets) -> None:
        def read(timeframe: Timeframe, first: int, end: int) -> list[Candle]:
            return self._derived.closed(store, series, timeframe, Span(first, end))

        buckets.resume(store.head(series), read)


class DerivedHistory:
    """Completes the history of derived series that are read or watched: brings targets up to date that were off for a
    while, and requests missing base candles, and native candles from before the base begins. Where that beginning moves
    later on, native candles are looked up at the next read alone: only a read shows that such old candles are wanted.

    history: reads missing candles.
    pipeline: computes derived candles from the base.
    database: the store.
    derived: the base of each derived series.
    covers: whether the exchange of a base series can be asked.
    now_s: the time of its exchange as far as it is known, UTC seconds.
    kept_from: the open time before which retention trims a base series with that head; 0: retention is off.
    base_candles: base candles of the first backfill.
    native_candles: native candles before the first bucket of the base; 0: none are requested.
    """

    def __init__(
        self,
        *,
        history: HistoryService,
        pipeline: IngestPipeline,
        database: Database,
        derived: DerivedStep,
        covers: Callable[[SeriesId], bool],
        now_s: Callable[[SeriesId], float],
        kept_from: Callable[[SeriesId, int], int],
        base_candles: int,
        native_candles: int,
    ) -> None:
        self._history = history
        self._pipeline = pipeline
        self._database = database
        self._derived = derived
        self._covers = covers
        self._now_s = now_s
        self._kept_from = kept_from
        self._base_candles = base_candles
        self._native_candles = native_candles
        # By base: derived series that wait for the close of a base candle, and the time of that close.
        self._waiting: OrderedDict[SeriesId, dict[SeriesId, int]] = OrderedDict()
        self._empty: OrderedDict[SeriesId, None] = OrderedDict()  # series of whose base nothing was stored

    def ensure_page(self, series: SeriesId, page_start: int | None) -> bool:
        """As `ensure`, for a read of a page. Returns whether native candles are requested at all."""
        self.ensure(series, page_start)
        return self._native_candles > 0

    def ensure(self, series: SeriesId, page_start: int | None = None) -> bool:
        """Request the missing history of a series that is read or watched; returns at once. A series that is not
        derived is ignored. `page_start`: where the page would begin if it were full; None (the default): it is full, or
        none was read. Returns whether a lookup was queued."""
        return self._can_ask(series) and self._history.look(series, self._find, page_start)

    def declared(self, series: SeriesId) -> None:
        """See `GapsDeclared`: as `ensure`, also when the series was looked up a moment ago."""
        if self._can_ask(series):
            self._history.look(series, self._find, anew=True)

    def _can_ask(self, series: SeriesId) -> bool:
        return self._derived.derives(series) and self._covers(self._derived.base_of(series))

    def published(self, applied: Applied) -> None:
        """Closed candles, after their commit."""
        waiting = self._waiting.get(applied.series)
        if not waiting or not applied.candles:
            return
        closed = applied.series.timeframe.next(applied.candles[-1].time)
        for series in [series for series, close in waiting.items() if close <= closed]:
            if self.ensure(series):
                del waiting[series]
        if not waiting:
            del self._waiting[applied.series]

    async def _find(self, series: SeriesId, page_start: int | None) -> list[Need]:
        """The needs of a series; after an error the series waits for the next base candle. Raises `StoreError`."""
        needs: list[Need] | None = None
        try:
            needs = await self._look_up(series, page_start)
        finally:
            if needs is None:
                self._wait_for(series, 0)
        return needs

    async def _look_up(self, series: SeriesId, page_start: int | None) -> list[Need]:
        """The needs of a series, by the store. Raises `StoreError`."""
        base = self._derived.base_of(series)

        def look(store: CandleStore) -> tuple[Span | None, Span | None, list[Span]]:
            holes = [gap.span for gap in store.gaps(series) if gap.state is not GapState.CONFIRMED_EMPTY]
            return store.span(base), store.span(series), holes

        base_stored, stored, holes = await self._database.read(look)
        if base_stored is None:  # the tail of the base is requested elsewhere
            self._wait_for(series, 0)
            self._empty[series] = None
            if len(self._empty) > MAX_REMEMBERED:
                self._empty.popitem(last=False)
            return []
        empty = stored is None or series in self._empty
        await self._pipeline.refresh_series(base)
        nothing = self._history.nothing_before(series)
        missing = missing_of_derived(
            series,
            base.timeframe,
            base_stored,
            stored,
            holes,
            page_start,
            self._now_s(base),
            base_candles=self._base_candles if empty else 0,
            native_candles=self._native_candles,
            kept_from=self._kept_from(base, base.timeframe.shift(base_stored.end, -1)),
            begins=0 if nothing is None else nothing.end,
        )
        self._empty.pop(series, None)
        if missing.again_at is not None:
            self._wait_for(series, missing.again_at)
        needs = []
        if missing.base is not None and self._history.nothing_before(base) is None:
            needs.append(Need(base, missing.base, Reason.OLDER, DERIVED, Urgency.READ))
        if missing.native is not None:
            needs.append(Need(series, missing.native, Reason.NATIVE, DERIVED, Urgency.READ))
        return needs

    def _wait_for(self, series: SeriesId, close: int) -> None:
        """Look the series up again once its base has a candle that closes at `close` or later."""
        self._waiting.setdefault(self._derived.base_of(series), {})[series] = close
        if len(self._waiting) > MAX_REMEMBERED:
            self._waiting.popitem(last=False)

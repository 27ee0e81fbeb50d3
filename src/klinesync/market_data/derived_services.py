"""What derived series need beside the roll-up in the write transaction.

DerivedForming: their forming candles, from what forms and closes in their base series. DerivedHistory: their first
history, when somebody reads or watches one: enough of the base, and before it the exchange's own (native) candles.
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

RETRY_S = 1.0
# Series of which such is remembered: nothing was stored of them; for which candles of their base they wait.
MAX_REMEMBERED = 10_000


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
            self._read_anew(applied.series)
        else:
            self._show(progress)  # what forms may have waited for this

    def show(self, forming: Forming) -> None:
        """A forming candle of an ingested series."""
        self._hub.show(forming)
        series = forming.series
        if not self._hub.any_watched(self._derived.derived_from(series)):
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
        """Read the state of a series; whether it is current: candles that closed meanwhile may ask for another look.
        None: the store could not be read."""
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

    def _read_anew(self, series: SeriesId) -> None:
        self._progress[series] = _Progress()
        self._to_read.put_nowait(series)

    def _resume(self, store: CandleStore, series: SeriesId, buckets: FormingBuckets) -> None:
        def read(timeframe: Timeframe, first: int, end: int) -> list[Candle]:
            return self._derived.closed(store, series, timeframe, Span(first, end))

        buckets.resume(store.head(series), read)


class DerivedHistory:
    """Looks after the history of derived series that are read or watched: brings targets up to date that were off for a
    while, and has fetched what is missing of the base and of the exchange's own (native) candles before it.

    history: fetches it.
    pipeline: computes derived candles from the base.
    database: where stored spans and gaps are looked up.
    derived: which series is derived from which.
    covers: whether the exchange of a base series can be asked.
    now_s: what time it is on its exchange, as far as is known, UTC seconds.
    kept_from: before which open time a base series with that head is trimmed; 0: retention is off.
    base_candles: base candles of a derived series' first backfill.
    native_candles: native candles before the first bucket that the base gives; 0: none are fetched.
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
        # By base: what is to be looked after once that has closed a candle up to then.
        self._again: OrderedDict[SeriesId, dict[SeriesId, int]] = OrderedDict()
        self._empty: OrderedDict[SeriesId, None] = OrderedDict()  # of these nothing was stored when they were asked for

    @property
    def fetches_native(self) -> bool:
        """Whether native candles are fetched at all."""
        return self._native_candles > 0

    def ensure_page(self, series: SeriesId, page_start: int | None) -> bool:
        """The same as `ensure`; whether native candles are fetched at all."""
        self.ensure(series, page_start)
        return self.fetches_native

    def ensure(self, series: SeriesId, page_start: int | None = None) -> bool:
        """Somebody reads or watches `series`; returns at once, whether it is looked after now. `page_start`: where the
        page would begin, were it full (None: it is, or there is none). What is no derived series is passed over."""
        if not self._derived.derives(series) or not self._covers(self._derived.base_of(series)):
            return False
        return self._history.look(series, self._find, page_start)

    def published(self, applied: Applied) -> None:
        """Closed candles, after their commit."""
        waits = self._again.get(applied.series)
        if not waits or not applied.candles:
            return
        closed = applied.series.timeframe.next(applied.candles[-1].time)
        for series in [one for one, at in waits.items() if at <= closed]:  # for others asking is no use yet
            if self.ensure(series):
                del waits[series]
        if not waits:
            del self._again[applied.series]

    async def _find(self, series: SeriesId, page_start: int | None) -> list[Need]:
        """The needs of a series. Raises `StoreError`."""
        needs: list[Need] | None = None
        try:
            needs = await self._look(series, page_start)
        finally:
            if needs is None:
                self._wait_for(series, 0)
        return needs

    async def _look(self, series: SeriesId, page_start: int | None) -> list[Need]:
        """Raises `StoreError`."""
        base = self._derived.base_of(series)

        def look(store: CandleStore) -> tuple[Span | None, Span | None, list[Span]]:
            holes = [gap.span for gap in store.gaps(series) if gap.state is not GapState.CONFIRMED_EMPTY]
            return store.span(base), store.span(series), holes

        base_stored, stored, holes = await self._database.read(look)
        if base_stored is None:  # somebody else fetches its tail
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

    def _wait_for(self, series: SeriesId, at: int) -> None:
        """Look after the series again once its base has closed a candle up to `at`."""
        self._again.setdefault(self._derived.base_of(series), {})[series] = at
        if len(self._again) > MAX_REMEMBERED:
            self._again.popitem(last=False)

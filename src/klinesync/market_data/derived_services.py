"""What derived series need beside the roll-up in the write transaction.

DerivedForming: their forming candles, from what forms and closes in their base series. DerivedHistory: their first
history, when somebody reads or watches one: enough of the base, and before it the exchange's own (native) candles.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.derived import FormingBuckets
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull, without
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Errand, History, HistoryPage, HistoryWatch, Urgency
from klinesync.history.reading import on_board, read_pages
from klinesync.history.service import NOTHING_BEFORE_TTL_S, HistoryService
from klinesync.market_data.coverage import LOG_EVERY_S, CoolDowns, OlderAsked, back
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import Empty, IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.log_limit import LogLimit
from klinesync.storage.database import CandleStore, Database
from klinesync.ws.hub import CandleHub

log = logging.getLogger(__name__)

RETRY_S = 1.0
# Derived series whose first history is looked after at once, and those that wait for it. What finds no room comes with
# a later read.
HISTORIES_AT_ONCE = 2
MAX_WAITING = 1000
# By then, after its end (seconds of the exchange), a native candle is shown.
SHOWN_AFTER_S = 60
# How often a native candle that has ended is asked for in vain, unless somebody reads the series.
MOST_IN_VAIN = 6
# Native candles that one read has fetched at most.
MAX_NATIVE = 5000
# Series of which it is remembered where the exchange's native candles begin, and for which candles of their base they
# wait.
MAX_REMEMBERED = 10_000
# What health calls it.
NATIVE_REASON = "native candles"


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
            log.warning("%s: the derived candles in progress cannot be read: %s", series, error)
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


@dataclass(frozen=True, slots=True)
class Lack:
    """What a derived series lacks: base candles in `base`, native ones in `native`; and at which close of the base
    there will be more to fetch (`again_at`). None where it is nothing."""

    base: Span | None = None
    native: Span | None = None
    again_at: int | None = None


def lack(
    series: SeriesId,
    base: Timeframe,
    base_stored: Span,
    stored: Span | None,
    holes: list[Span],
    page_start: int | None,
    now_s: float,
    *,
    base_candles: int = 0,
    native_candles: int = 0,
    kept_from: int = 0,
    begins: int = 0,
) -> Lack:
    """What is to be fetched for the derived `series`, of which `stored` is stored with `holes` in it, and `base_stored`
    of its base.

    So many `base_candles` up to `now_s` (exchange time) are wanted. Native ones: `native_candles` before the first
    bucket that the base gives, unless the newest so many candles are there; what is missing behind the first one that
    is there; and where a page from `page_start` on is read, all of it. None before `kept_from`, nor before `begins`,
    where the exchange's own begin.
    """
    frame = series.timeframe
    upto = max(base_stored.end, base.floor(int(now_s)))  # its tail may still be on its way
    start = max(back(base, upto, base_candles), base.ceil(kept_from))
    wanted = Span(start, base_stored.start) if start < base_stored.start else None
    end = frame.ceil(base_stored.start)
    newest = frame.floor(base_stored.end)
    if not native_candles:
        return Lack(wanted)
    start = end if stored is None else max(min(stored.start, end), back(frame, end, MAX_NATIVE))
    if stored is None or stored.start > back(frame, newest, native_candles):
        start = back(frame, end, native_candles)
    if page_start is not None and page_start < end and (stored is None or page_start < stored.start):
        edge = end if stored is None else min(stored.start, end)
        page_start = min(frame.floor(page_start), back(frame, edge, native_candles))
        start = min(start, max(page_start, back(frame, edge, MAX_NATIVE)))
    start = max(start, frame.ceil(max(kept_from, begins)))
    again_at = end if end > newest else None  # the bucket that the base begins in is still open
    window = Span(start, min(end, newest))
    if window.start >= window.end:
        return Lack(wanted, None, again_at)
    missing = without([window], [] if stored is None else [stored]) + clipped(holes, window)
    if not missing:
        return Lack(wanted, None, again_at)
    return Lack(wanted, hull(missing), again_at)


class DerivedHistory:
    """Looks after the history of derived series that are read or watched: brings targets up to date that were off for a
    while, has the base backfilled, fetches native candles. `run` is its one task.

    `history` is the exchange's, which `covers` a base series or not. `base_candles`, `native_candles`: see `lack`; 0
    native ones: none. `now_s`: what time it is on its exchange, as far as is known; `kept_from`: before what open time
    a base series with that head is trimmed (0: never). `watch` is told of what is read of derived series.
    """

    def __init__(
        self,
        *,
        history: History,
        pipeline: IngestPipeline,
        database: Database,
        derived: DerivedStep,
        backfill: HistoryService,
        covers: Callable[[SeriesId], bool],
        now_s: Callable[[SeriesId], float],
        kept_from: Callable[[SeriesId, int], int],
        base_candles: int,
        native_candles: int,
        watch: HistoryWatch,
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._history = history
        self._pipeline = pipeline
        self._database = database
        self._derived = derived
        self._backfill = backfill
        self._covers = covers
        self._now_s = now_s
        self._kept_from = kept_from
        self._base_candles = base_candles
        self._native_candles = native_candles
        self._watch = watch
        self._waiting: asyncio.Queue[SeriesId] = asyncio.Queue(MAX_WAITING)
        self._asked: dict[SeriesId, int | None] = {}  # and where the earliest page begins that was read
        # By base: what is to be looked after once that has closed a candle up to then.
        self._again: OrderedDict[SeriesId, dict[SeriesId, int]] = OrderedDict()
        self._begins: OrderedDict[SeriesId, tuple[int, float]] = OrderedDict()  # and since when that is known
        self._empty: OrderedDict[SeriesId, None] = OrderedDict()  # of these nothing was stored when they were asked for
        self._cool_downs = CoolDowns()
        self._older_asked = OlderAsked()
        self._logged = LogLimit(LOG_EVERY_S)

    @property
    def fetches_native(self) -> bool:
        """Whether native candles are fetched at all."""
        return self._native_candles > 0

    def ensure_page(self, series: SeriesId, page_start: int | None) -> bool:
        """The same as `ensure`; whether native candles are fetched at all."""
        self.ensure(series, page_start)
        return self.fetches_native

    def ensure(self, series: SeriesId, page_start: int | None = None) -> None:
        """Somebody reads or watches `series`; returns at once. `page_start`: where the page would begin, were it full
        (None: it is, or there is none). What is no derived series is passed over."""
        if not self._derived.derives(series) or not self._covers(self._derived.base_of(series)):
            return
        if series in self._asked:
            earlier = self._asked[series]
            starts = [start for start in (earlier, page_start) if start is not None]
            self._asked[series] = min(starts, default=None)
            return
        if page_start is None:
            due = self._cool_downs.over(series, _now_s())
        else:
            due = self._older_asked.admits(series, page_start, _now_s())
        if not due:
            return
        if self._waiting.full():
            self._warn(series, "%s: %d derived series wait for their history; a later read asks again", MAX_WAITING)
            return
        self._asked[series] = page_start
        self._waiting.put_nowait(series)

    def published(self, applied: Applied) -> None:
        """Closed candles, after their commit."""
        waits = self._again.get(applied.series)
        if not waits or not applied.candles:
            return
        closed = applied.series.timeframe.next(applied.candles[-1].time)
        due = [one for one, at in waits.items() if at <= closed and one not in self._asked]  # else asking is no use yet
        for series in due:
            if self._cool_downs.over(series, _now_s()):
                del waits[series]
                self.ensure(series)
        if not waits:
            del self._again[applied.series]

    async def run(self) -> None:
        """Look after what is read or watched, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(1, HISTORIES_AT_ONCE + 1):
                name = f"derived history {number}"
                self._bulkheads.begin(group, self._work, part=Part.DERIVED, name=name, restart=True)
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while True:
            series = await self._waiting.get()
            in_vain, again_s = True, 0.0
            again = partial(self._wait_for, series, 0)
            try:
                with self._bulkheads.contained(Part.DERIVED, f"history of {series}", again):
                    in_vain, again_s = await self._look_after(series)
            finally:
                del self._asked[series]
            self._cool_downs.begin(series, _now_s(), in_vain=in_vain, at_least_s=again_s)

    async def _look_after(self, series: SeriesId) -> tuple[bool, float]:
        """Whether it was in vain, and in how many seconds at least to try again."""
        try:
            return await self._attempt(series, self._asked[series]), 0.0
        except UpstreamError as error:
            self._warn(series, "%s: its native candles cannot be read: %s", error)
            self._wait_for(series, 0)
            return True, error.retry_after_s or 0.0
        except StoreError as error:
            self._warn(series, "%s: its history cannot be brought up to date: %s", error)
            self._wait_for(series, 0)
            return True, 0.0

    async def _attempt(self, series: SeriesId, page_start: int | None) -> bool:
        """Whether it was in vain. Raises `UpstreamError`, `StoreError`."""
        base = self._derived.base_of(series)

        def look(store: CandleStore) -> tuple[Span | None, Span | None, list[Span]]:
            holes = [gap.span for gap in store.gaps(series) if gap.state is not GapState.CONFIRMED_EMPTY]
            return store.span(base), store.span(series), holes

        base_stored, stored, holes = await self._database.read(look)
        if base_stored is None:
            self._wait_for(series, 0)  # somebody else fetches its tail
            self._empty[series] = None
            if len(self._empty) > MAX_REMEMBERED:
                self._empty.popitem(last=False)
            return False
        empty = stored is None or series in self._empty
        await self._pipeline.refresh_series(base)
        begins, since_s = self._begins.get(series, (0, 0.0))
        lacking = lack(
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
            begins=begins if _now_s() - since_s < NOTHING_BEFORE_TTL_S else 0,
        )
        if lacking.base is not None and self._backfill.nothing_before(base) is None:
            self._backfill.request(base, lacking.base, "derived", Urgency.READ)
        self._empty.pop(series, None)
        if lacking.again_at is not None:
            self._wait_for(series, lacking.again_at)
        if lacking.native is None:
            return False
        wanted = lacking.native
        came = await self._fetch(series, wanted)
        short = came is None or came.end < wanted.end
        if short:
            self._wait_for_final(series, wanted.end, self._now_s(base))
        if came is None:
            return True
        if wanted.start < came.start and (stored is None or wanted.start < stored.start):
            self._begins[series] = (came.start, _now_s())
            self._begins.move_to_end(series)
            if len(self._begins) > MAX_REMEMBERED:
                self._begins.popitem(last=False)
        return short

    async def _fetch(self, series: SeriesId, span: Span) -> Span | None:
        """Where the candles lie that came, if any did. Raises `UpstreamError`, `StoreError`."""
        with on_board(self._watch, series, span, NATIVE_REASON) as progress:
            pages = self._history(series, span.start, Errand(Urgency.READ), span.end)
            # The newest first: each page joins what is stored.
            await read_pages(pages, partial(self._write_native, series), progress, newest_first=True)
        return progress.came

    async def _write_native(self, series: SeriesId, page: HistoryPage) -> None:
        await self._pipeline.submit_native(series, page.candles, Empty(page.empty, page.proof))

    def _wait_for_final(self, series: SeriesId, end: int, now_s: float) -> None:
        """The native candle that ends at `end` has not come: it may not be shown yet; or not be final yet, where no
        clock proves that. After so many attempts there is none."""
        shown_at = end + SHOWN_AFTER_S
        if now_s < shown_at:
            self._wait_for(series, shown_at)
        elif self._cool_downs.in_vain(series) < MOST_IN_VAIN:
            self._wait_for(series, 0)

    def _wait_for(self, series: SeriesId, at: int) -> None:
        """Look after the series again once its base has closed a candle up to `at`."""
        self._again.setdefault(self._derived.base_of(series), {})[series] = at
        if len(self._again) > MAX_REMEMBERED:
            self._again.popitem(last=False)

    def _warn(self, series: SeriesId, text: str, value: object) -> None:
        if self._logged.allow((series, text), _now_s()) is not None:
            log.warning(text, series, value)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

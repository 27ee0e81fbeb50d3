"""RequestedBackfills: explicit backfills, noted in the store until they end.

The queue reads their needs, oldest part first. This module has their callers, their progress, and their resumption
after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from klinesync.core import gaps
from klinesync.core.candle import MAX_TIME
from klinesync.core.errors import StoreError, UnknownSeries
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, clipped, hull, without
from klinesync.exchanges.exchange import HistoryWatch
from klinesync.history.missing import BACKFILL, Need, Reason
from klinesync.history.pending import Pending
from klinesync.history.pieces import Fetch
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import HistoryQueue
from klinesync.runtime.clock import Monotonic
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore

log = Log(__name__)

OnProgress = Callable[["BackfillProgress"], None]


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """The progress of an explicit backfill.

    series: whose history.
    span: open times of the backfill.
    total: candles that were missing at its beginning.
    missing: candles that are still missing.
    candles: candles that came.
    elapsed_s: seconds since its beginning.
    trouble: why it makes no progress, a sentence; None when it does.
    lost: candles of the span that no source has any more.
    lost_why: why they are lost, a sentence.
    begins: open time of the first candle, when the exchange has proved to have nothing before; None otherwise.
    """

    series: SeriesId
    span: Span
    total: int
    missing: int
    candles: int
    elapsed_s: float
    trouble: str | None = None
    lost: int = 0
    lost_why: str | None = None
    begins: int | None = None

    @property
    def progress_pct(self) -> float:
        """0 … 100."""
        return round(100.0 * (self.total - self.missing) / self.total, 1) if self.total else 100.0

    @property
    def candles_per_s(self) -> float:
        """Mean rate of candles."""
        return round(self.candles / max(self.elapsed_s, 1e-3), 1)

    @property
    def left_s(self) -> int | None:
        """Estimated seconds to the end; None when nothing was read yet."""
        done = self.total - self.missing
        return round(self.elapsed_s * self.missing / done) if done else None


class RequestedBackfills:
    """The explicit backfills of all series.

    ports: sources, store, progress and limits.
    queue: has their needs.
    submit: adds a need to the queue, and wakes the workers.
    """

    def __init__(self, ports: HistoryPorts, queue: HistoryQueue, submit: Callable[[Need], None]) -> None:
        self._ports = ports
        self._queue = queue
        self._submit = submit
        self._watch = ports.deep_watch or ports.watch
        self._running: dict[SeriesId, _Backfills] = {}

    async def backfill(self, series: SeriesId, span: Span, on_progress: OnProgress) -> BackfillProgress:
        """See `HistoryService.backfill`."""
        progress, request = await self._add(series, span, on_progress)
        if request is None:
            return progress
        try:
            return await asyncio.shield(request.done)
        finally:
            if (backfills := self._running.get(series)) is not None and request in backfills.requests:
                backfills.requests.remove(request)
                self._end_if_over(series, backfills)

    async def start(self, series: SeriesId, span: Span) -> BackfillProgress:
        """See `HistoryService.start`."""
        progress, _ = await self._add(series, span, lambda _: None)
        return progress

    def watch_of(self, fetch: Fetch) -> HistoryWatch | None:
        """The watch of a fetch that belongs to explicit backfills alone; None for another fetch."""
        if fetch.series in self._running and all(pending.requested for pending in fetch.needs):
            return _ProgressWatch(self._running, self._watch)
        return None

    def running(self, series: SeriesId) -> bool:
        """Whether an explicit backfill of the series is running."""
        return series in self._running

    async def _add(
        self, series: SeriesId, span: Span, on_progress: OnProgress
    ) -> tuple[BackfillProgress, _Request | None]:
        """Begin a backfill. Returns its first progress, and the request to wait for; None when nothing is missing."""
        if not self._ports.covers(series):
            raise UnknownSeries(str(series), f"{series.exchange} {series.market} cannot be asked for history")
        frame = series.timeframe
        stored, ledger = await self._ports.stored(series)
        start = frame.ceil(max(span.start, self._kept_from(series, stored), 0))
        end = min(frame.ceil(span.end), frame.floor(int(self._ports.now_s(series))))
        span = Span(start, max(start, end))
        unproven = gaps.unproven(ledger, stored, span) if span.start < span.end else []
        missing, unavailable = self._available(series, span, unproven, stored, ledger)
        if not missing:
            return BackfillProgress(series, span, 0, 0, 0, 0.0, None, *unavailable), None
        await self._mark(series, missing, backfill=span)
        request = self._begin(series, span, missing, on_progress)
        return request.progress(series, self._running[series], 0), request

    def _available(
        self, series: SeriesId, span: Span, missing: Sequence[Span], stored: Span | None, ledger: Sequence[Gap]
    ) -> tuple[list[Span], _Unavailable]:
        """The `missing` parts of `span` that a source may still have, and what is known of the others."""
        frame, reach = series.timeframe, self._ports.reach(series)
        available, why = list(missing), None
        lost_gaps = [gap for gap in ledger if gap.state is GapState.LOST and gap.span.overlaps(span)]
        lost = clipped([gap.span for gap in lost_gaps], span)
        if lost_gaps:
            why = lost_gaps[-1].proof
        if reach is not None and (older := clipped(available, Span(0, reach.oldest))):
            lost, why = [*without(older, lost), *lost], reach.sentence
            available = without(available, [Span(0, reach.oldest)])
        begins, nothing = None, self._queue.memory.nothing_before(series, self._ports.monotonic())
        if stored is not None and nothing is not None and nothing.end == stored.start:
            begins = stored.start if clipped(available, nothing) else None
            available = without(available, [nothing])
        return available, _Unavailable(candle_count(frame, lost), why, begins)

    def _kept_from(self, series: SeriesId, stored: Span | None) -> int:
        """The open time before which retention would trim candles at once; 0: none."""
        return 0 if stored is None else self._ports.kept_from(series, series.timeframe.shift(stored.end, -1))

    def _begin(self, series: SeriesId, span: Span, missing: list[Span], on_progress: OnProgress) -> _Request:
        backfills = self._running.setdefault(series, _Backfills())
        total = candle_count(series.timeframe, missing)
        done: asyncio.Future[BackfillProgress] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda over: over.cancelled() or over.exception())  # the caller may have gone
        monotonic = self._ports.monotonic
        request = _Request(span, missing, total, on_progress, monotonic, monotonic(), backfills.candles, done)
        backfills.requests.append(request)
        whole = hull([part for request in backfills.requests for part in request.missing])
        if whole != backfills.whole:
            backfills.whole = whole
            self._watch.began(series, whole, BACKFILL)
        for part in missing:
            self._submit(Need(series, part, Reason.REQUESTED, BACKFILL))
        return request

    async def resume(self) -> None:
        """Resume the backfills that were running when the service ended. Raises `StoreError`."""
        for series, span in await self._ports.database.read(lambda store: store.backfills()):
            backfills = self._running.get(series)
            if not self._ports.covers(series) or (backfills and any(old.span == span for old in backfills.requests)):
                continue
            stored, ledger = await self._ports.stored(series)
            kept = Span(self._kept_from(series, stored), MAX_TIME + 1)
            missing = clipped(gaps.unsettled(ledger, stored, span), kept)
            if missing:
                log.info("backfill.resumed", "its backfill goes on", series=series, span=missing[0])
                self._begin(series, span, missing, lambda _: None)
            else:
                await self._ports.database.write(lambda store, key=(series, span): store.end_backfill(*key))  # type: ignore[misc]

    async def _mark(self, series: SeriesId, spans: Sequence[Span], backfill: Span | None = None) -> None:
        """Set the gaps in `spans` to `healing` in the ledger, and note the `backfill`. Raises `StoreError`."""

        def mark(store: CandleStore) -> None:
            store.change_gaps(series, gaps.begin_healing(store.gaps(series, hull(spans)), spans))
            if backfill is not None:
                store.add_backfill(series, backfill)

        await self._ports.database.write(mark)

    async def mark_rest(self, pending: Pending) -> None:
        """Set the unread rest of a need to `healing`, once a page before the first stored candle has made a gap of it.
        Raises `StoreError`."""
        backfills = self._running.get(pending.series)
        if backfills is None or not pending.requested or pending.between_stored or pending.span in backfills.marked:
            return
        backfills.marked.add(pending.span)
        await self._mark(pending.series, [pending.span])

    async def settle(self, series: SeriesId) -> None:
        """End the backfills of the series that are over, after a piece of work. Raises `StoreError`."""
        backfills = self._running[series]
        stored, ledger = await self._ports.stored(series)
        for request in list(backfills.requests):
            unsettled = gaps.unsettled(ledger, stored, request.span)
            request.missing, request.unavailable = self._available(series, request.span, unsettled, stored, ledger)
            needs = [need for part in request.missing for need in self._queue.needs_in(series, part)]
            stalled = all(need.fruitless_attempts >= self._ports.retries.stalled_after for need in needs)
            if self._queue.is_looking(series) or not stalled:
                request.report(series, backfills, request.span.start)
                continue
            holes = clipped(request.missing, stored) if stored is not None else []
            await self._ports.database.write(
                lambda store, span=request.span, holes=holes: _end(store, series, span, holes)  # type: ignore[misc]
            )
            if request in backfills.requests:
                backfills.requests.remove(request)
            if not request.done.done():
                request.done.set_result(request.progress(series, backfills, request.span.start))
        self._end_if_over(series, backfills)

    def fail(self, series: SeriesId, error: StoreError) -> None:
        """End the backfills of the series with an error of the store, which their callers get."""
        backfills = self._running.get(series)
        if backfills is None:
            return
        requests, backfills.requests = backfills.requests, []
        for request in requests:
            if not request.done.done():
                request.done.set_exception(error)
        backfills.trouble = str(error)
        self._end_if_over(series, backfills)

    def _end_if_over(self, series: SeriesId, backfills: _Backfills) -> None:
        if not backfills.requests and self._running.get(series) is backfills:
            del self._running[series]
            self._watch.ended(series, backfills.trouble)


class _ProgressWatch:
    """Adds the progress of a reading to the explicit backfills of its series, which health shows in its place."""

    def __init__(self, running: Mapping[SeriesId, _Backfills], watch: HistoryWatch) -> None:
        self._running = running
        self._watch = watch
        self._counted = 0

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        """Nothing: the explicit backfill began before."""

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        if (backfills := self._running.get(series)) is None:
            return  # the caller has gone
        backfills.candles += candles - self._counted
        self._counted = candles
        self._watch.advanced(series, upto, backfills.candles)
        for request in backfills.requests:
            request.report(series, backfills, upto)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        if (backfills := self._running.get(series)) is not None:
            backfills.trouble = error


class _Unavailable(NamedTuple):
    """The part of an explicit backfill that no source has: the last fields of `BackfillProgress`."""

    lost: int = 0
    lost_why: str | None = None
    begins: int | None = None


@dataclass(slots=True, eq=False)
class _Request:
    """A call of `backfill`.

    span: open times of the backfill.
    missing: the parts that were missing after the newest piece of work.
    total: candles that were missing at its beginning.
    on_progress: called after every page.
    monotonic: clock of `began_s`.
    began_s: its beginning, monotonic seconds.
    candles_before: candles that earlier backfills of the series had brought by then.
    done: the caller waits for this.
    unavailable: the part that no source has.
    """

    span: Span
    missing: list[Span]
    total: int
    on_progress: OnProgress
    monotonic: Monotonic
    began_s: float
    candles_before: int
    done: asyncio.Future[BackfillProgress]
    unavailable: _Unavailable = field(default_factory=_Unavailable)

    def progress(self, series: SeriesId, backfills: _Backfills, upto: int) -> BackfillProgress:
        """The progress when everything before `upto` was read since the newest piece of work."""
        missing = candle_count(series.timeframe, clipped(self.missing, Span(upto, MAX_TIME + 1)))
        candles = backfills.candles - self.candles_before
        elapsed_s = self.monotonic() - self.began_s
        return BackfillProgress(
            series, self.span, self.total, missing, candles, elapsed_s, backfills.trouble, *self.unavailable
        )

    def report(self, series: SeriesId, backfills: _Backfills, upto: int) -> None:
        self.on_progress(self.progress(series, backfills, upto))


@dataclass(slots=True, eq=False)
class _Backfills:
    """The explicit backfills of a series.

    requests: the running ones.
    whole: from the first to the last candle that they miss.
    candles: candles that came for all of them.
    marked: needs whose rest was set to `healing` in the ledger.
    trouble: why the newest reading failed, a sentence; None when it did not.
    """

    requests: list[_Request] = field(default_factory=list)
    whole: Span | None = None
    candles: int = 0
    marked: set[Span] = field(default_factory=set)
    trouble: str | None = None


def _end(store: CandleStore, series: SeriesId, span: Span, holes: Sequence[Span]) -> None:
    """Delete the note of a backfill, and set its remaining `holes` back to `unknown`."""
    store.end_backfill(series, span)
    if holes:
        store.change_gaps(series, gaps.end_healing(store.gaps(series, hull(holes)), holes))

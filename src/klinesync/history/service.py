"""HistoryService: reads missing candles. `HistoryQueue` decides what is read next; the workers here read it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from klinesync.core.backoff import Backoff
from klinesync.core.counted import counted
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, Urgency
from klinesync.history import queue
from klinesync.history.holes import HoleReader
from klinesync.history.missing import Need, Reason, declared_gaps
from klinesync.history.natives import NativeReader
from klinesync.history.pending import Pending
from klinesync.history.pieces import Fetch, Outcome
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import Find, HistoryQueue, Look, NeedStatus
from klinesync.history.requested import BackfillProgress, OnProgress, RequestedBackfills
from klinesync.history.tails import Tails
from klinesync.runtime.bulkheads import Part, Work
from klinesync.runtime.log_events import Log
from klinesync.storage.damage import StoreDamaged

log = Log(__name__)

# Answer of a piece of work that a defect ended.
DEFECT = "the reading was ended by a defect of this service"
DEFECT_OF_LOOK = "the lookup was ended by a defect of this service"


class HistoryService:
    """Reads missing candles until each need is filled, confirmed empty or lost. `run` is its task.

    ports: sources, store, progress and limits.
    tails: reads the tails of series that are not followed; None (the default): no tail is needed.
    heals: whether gaps are read that no user asked for; True by default.
    """

    def __init__(self, ports: HistoryPorts, *, tails: Tails | None = None, heals: bool = True) -> None:
        self._ports = ports
        self._tails = tails
        self.heals = heals
        self._queue = HistoryQueue(ports.retries, ports.limits)
        self._errands: dict[SeriesId, Errand] = {}  # of the readings in flight
        self._changed = asyncio.Event()
        self._requested = RequestedBackfills(ports, self._queue, self.submit)
        self._holes = HoleReader(ports, self._queue, self._requested)
        self._natives = NativeReader(ports, self._queue.memory)

    # Requests.

    def submit(self, need: Need) -> None:
        """Queue a need, and return at once.

        Candles that are stored or confirmed empty are not read. A part that waits or is in flight gets the urgency of
        this need. A gap that finds no room in the queue is looked up in the store later.
        """
        in_flight = self._errands.get(need.series)
        if in_flight is not None:  # the need is part of that reading, or waits for its end
            in_flight.urgency = min(in_flight.urgency, need.urgency)
        if not self._queue.submit(need, self._ports.monotonic()):
            self._ports.warn("history.queue_full", need.series, "the queue has no room for all missing candles")
        self._changed.set()

    def look(self, series: SeriesId, find: Find, page_start: int | None = None, *, anew: bool = False) -> bool:
        """Queue a lookup of the needs of a read, and return at once. The needs that are found are submitted.

        series: the series that was read.
        find: looks up the needs in the store.
        page_start: where the page that was read would begin if it were full; None (the default): it is full, or none
            was read.
        anew: whether to look, and to request what is found, also when the same was done a moment ago, because stored
            candles are gone since. False by default.

        Returns False when the same lookup ended a moment ago, or the queue has no room.
        """
        look = Look(series, Urgency.READ, page_start, find)
        if anew:
            self._queue.memory.forget_answers(series)
        elif self._queue.looked_lately(look, self._ports.monotonic()):
            return False
        fits = self._queue.look(look)
        if not fits:
            self._ports.warn("history.queue_full", series, "the queue has no room to look for missing candles")
        self._changed.set()
        return fits

    def heal(self, need: Need) -> None:
        """Submit a need of live ingest, if gaps are healed."""
        if self.heals:
            self.submit(need)

    def request_declared(self, series: SeriesId) -> None:
        """Queue the declared gaps of an ingested series, if gaps are healed, and return at once."""
        if self.heals:
            self._queue.look(Look(series))
            self._changed.set()

    def retry_declared(self, series: SeriesId) -> None:
        """Queue the declared gaps of a series that the exchange lists again; its failed needs are retried at once."""
        self._queue.retry_now(series)
        self._changed.set()
        self.request_declared(series)

    async def backfill(
        self, series: SeriesId, span: Span, on_progress: OnProgress = lambda _: None
    ) -> BackfillProgress:
        """Run an explicit backfill: read every candle of a span that is neither stored nor confirmed empty, oldest part
        first. Lost candles are asked for again, as far as the exchange's history reaches. Overlapping backfills share
        their requests. A backfill is noted in the store until it ends, and resumed after a restart; it goes on when the
        caller is cancelled.

        series: an ingested series.
        span: open times.
        on_progress: called after every page; by default nothing is called.

        Returns the last progress; candles that several attempts did not bring are still `missing`. Raises
        `UnknownSeries` for a series of an exchange that cannot be asked, `StoreError`.
        """
        return await self._requested.backfill(series, span, on_progress)

    async def start(self, series: SeriesId, span: Span) -> BackfillProgress:
        """Begin an explicit backfill without waiting for its end; health shows its progress. Returns the first
        progress. Raises as `backfill`."""
        return await self._requested.start(series, span)

    # State.

    def needs_of(self, series: SeriesId) -> tuple[NeedStatus, ...]:
        """The state of each need of the series that waits or is in flight, ascending."""
        return self._queue.needs_of(series)

    def expects(self, series: SeriesId, reason: Reason) -> bool:
        """Whether a need of the series with that reason waits for its first answer."""
        return self._queue.expects(series, reason)

    def working_on(self, series: SeriesId) -> list[Span]:
        """The spans that are in flight or wait, ascending; without stalled needs, which are retried seldom."""
        return self._queue.working_on(series)

    def nothing_before(self, series: SeriesId) -> Span | None:
        """The span right before the first stored candle in which the exchange has nothing; None when unknown."""
        return self._queue.memory.nothing_before(series, self._ports.monotonic())

    # Workers.

    async def run(self) -> None:
        """Read missing candles until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._begin_part(group, self._resume, "backfill resumed")
            for number in range(1, queue.MAX_AT_ONCE + queue.MAX_URGENT_AT_ONCE + 1):
                self._begin_part(group, self._work, f"history {number}")
            await asyncio.Event().wait()

    def _begin_part(self, group: asyncio.TaskGroup, work: Work, name: str) -> None:
        self._ports.bulkheads.begin(group, work, part=Part.BACKFILL, name=name, restart=True)

    async def _resume(self) -> None:
        while True:
            try:
                await self._requested.resume()
                break
            except StoreError as error:
                log.warning("backfill.resume_failed", "the backfills of before the start cannot be read", error=error)
                await asyncio.sleep(self._store_retry_s())

    async def _work(self) -> None:
        while True:
            work = self._queue.take(self._ports.monotonic())
            if work is None:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._queue.next_due_s()):
                        await self._changed.wait()
                continue
            outcome: Outcome | None = None
            try:
                with self._ports.bulkheads.contained(Part.BACKFILL, f"history of {work.series}"):
                    outcome = await self._try(work)
            finally:
                broken_off = outcome is None
                outcome = Outcome(self._all_of(work), DEFECT) if outcome is None else outcome
                self._queue.settle(work, outcome.remaining, self._ports.monotonic(), outcome.answer)
                self._changed.set()
            if broken_off and isinstance(work, Look):  # by a defect: a shutdown does not come here
                self._look_again(work, DEFECT_OF_LOOK)
            if self._requested.running(work.series):
                with self._ports.bulkheads.contained(Part.BACKFILL, f"backfill of {work.series}"):
                    try:
                        await self._requested.settle(work.series)
                    except StoreError as error:
                        self._requested.fail(work.series, error)

    def _all_of(self, work: Look | Fetch) -> Sequence[Pending]:
        """The needs of a piece of work that a defect ended, to be retried with backoff."""
        if isinstance(work, Look):
            return ()
        return [self._ports.after_fruitless(pending) for pending in work.needs]

    async def _try(self, work: Look | Fetch) -> Outcome:
        """Carry out a piece of work; after a `StoreError` it is repeated: a lookup, and what damage of its series alone
        has ended, with backoff; another reading after a pause of the worker, because the store as a whole fails."""
        try:
            if isinstance(work, Look):
                return await self._look(work)
            errand = self._errands[work.series] = Errand(work.urgency)
            try:
                return await self._read(work, errand)
            finally:
                del self._errands[work.series]
        except StoreError as error:
            self._ports.warn("history.store_failed", work.series, "its gaps cannot be healed at present", error=error)
            remaining: Sequence[Pending] = ()
            if isinstance(work, Look):
                self._look_again(work, str(error))
            elif isinstance(error, StoreDamaged):  # of this series: no worker waits for its end
                remaining = [self._ports.after_no_answer(pending, 0.0) for pending in work.needs]
            else:
                remaining = work.needs
                await asyncio.sleep(self._store_retry_s())
            self._requested.fail(work.series, error)
            return Outcome(remaining, str(error))

    def _look_again(self, look: Look, why: str) -> None:
        """Repeat a failed lookup, with backoff."""
        limits = self._ports.limits
        backoff = Backoff(limits.store_retry_s, max(limits.look_retry_most_s, limits.store_retry_s), jitter=0.25)
        delay_s = backoff.delay_s(look.failures, self._ports.rng)
        self._ports.warn(
            "history.look_failed",
            look.series,
            "its missing candles cannot be looked up for the %d. time in a row, again in %d s: %s",
            look.failures + 1,
            delay_s,
            why,
        )
        self._queue.look_again(look, self._ports.monotonic() + delay_s)

    async def _look(self, look: Look) -> Outcome:
        """Submit the needs that the store shows. Raises `StoreError`."""
        find = look.find or self._find_declared
        needs = await find(look.series, look.page_start)
        for need in needs:
            self.submit(need)
        return Outcome((), f"{counted(len(needs), 'need')} found")

    async def _find_declared(self, series: SeriesId, _page_start: int | None) -> Sequence[Need]:
        return declared_gaps(series, await self._ports.database.read(lambda store: store.gaps(series)))

    async def _read(self, fetch: Fetch, errand: Errand) -> Outcome:
        """Read a fetch. Raises `StoreError`."""
        if fetch.reason is Reason.NATIVE:
            return await self._natives.read(fetch.needs[0], errand)
        if fetch.reason is Reason.TAIL and self._tails is not None:
            outcome = await self._tails.read(fetch.needs[0], errand)
            if outcome.candles:
                self.request_declared(fetch.series)  # the part of the tail beyond its limit is a gap now
            return outcome
        return await self._holes.read(fetch, errand)

    def _store_retry_s(self) -> float:
        return self._ports.limits.store_retry_s * self._ports.rng.uniform(0.75, 1.0)

"""HistoryService: every candle that is missing. `HistoryQueue` decides what is read next, here it is carried out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from klinesync.core.counted import counted
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, Urgency
from klinesync.history import queue
from klinesync.history.holes import HoleReader
from klinesync.history.missing import Need, Reason, declared_gaps
from klinesync.history.natives import NativeReader
from klinesync.history.pending import Pending, fruitless
from klinesync.history.pieces import Fetch, Outcome
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import Find, HistoryQueue, Look, NeedStatus
from klinesync.history.requested import BackfillProgress, OnProgress, RequestedBackfills
from klinesync.history.tails import Tails
from klinesync.runtime.bulkheads import Part, Work
from klinesync.runtime.log_events import Log

log = Log(__name__)

# After a failed read or write of the store, in seconds.
STORE_RETRY_S = 10.0
# What is told of work that a defect ended.
DEFECT = "the reading was ended by a defect of this service"


class HistoryService:
    """Reads what is missing, until each need is filled, confirmed empty or lost. `run` is its one task.

    ports: the sources, the store, and who is told.
    tails: reads the tails of series that nobody follows; None: nobody needs them.
    heals: whether declared gaps are read.
    """

    def __init__(self, ports: HistoryPorts, *, tails: Tails | None = None, heals: bool = True) -> None:
        self._ports = ports
        self._tails = tails
        self._heals = heals
        self._queue = HistoryQueue()
        self._errands: dict[SeriesId, Errand] = {}  # of the readings under way
        self._changed = asyncio.Event()
        self._requested = RequestedBackfills(ports, self._queue, self.submit)
        self._holes = HoleReader(ports, self._queue, self._requested)
        self._natives = NativeReader(ports, self._queue.memory)

    # Who needs candles.

    def submit(self, need: Need) -> None:
        """Have a need read; returns at once.

        The part of it that is stored or confirmed empty is not read. What waits already, or is being read, is raised to
        its urgency. A gap that finds no room in the queue is looked up in the store later.
        """
        under_way = self._errands.get(need.series)
        if under_way is not None:
            under_way.urgency = min(under_way.urgency, need.urgency)  # it is joined, or waited for
        if not self._queue.submit(need, self._ports.monotonic()):
            self._ports.warn("history.queue_full", need.series, "the queue has no room for all missing candles")
        self._changed.set()

    def look(self, series: SeriesId, find: Find, page_start: int | None = None) -> bool:
        """Have `find` tell from the store what a read of the series needs, and have that read; returns at once. False
        when that was done a moment ago, or there is no room.

        page_start: where the page that was read would begin, were it full; None: it is full, or none was read.
        """
        look = Look(series, Urgency.READ, page_start, find)
        if self._queue.looked_lately(look, self._ports.monotonic()):
            return False
        fits = self._queue.look(look)
        if not fits:
            self._ports.warn("history.queue_full", series, "the queue has no room to look for missing candles")
        self._changed.set()
        return fits

    def request_declared(self, series: SeriesId) -> None:
        """Have all gaps read that the store declares of an ingested series; returns at once."""
        self._queue.look(Look(series))
        self._changed.set()

    def retry_declared(self, series: SeriesId) -> None:
        """The same for a series that the exchange lists again: needs that failed before do not wait for their next
        retry."""
        self._queue.retry_now(series)
        self.request_declared(series)

    async def backfill(
        self, series: SeriesId, span: Span, on_progress: OnProgress = lambda _: None
    ) -> BackfillProgress:
        """Read all of `span` of an ingested series that is neither stored nor confirmed empty, oldest part first; how
        that went. What the exchange has not (yet), or what several fruitless attempts did not bring, is still `missing`
        then. What was lost is asked for once more, as far as the exchange's history reaches. Whoever does not want to
        wait any longer may be cancelled: it goes on.

        `on_progress` is called after every page. Overlapping ones are read once. It is noted in the store until it is
        over: what is left of it is taken up again after a restart.
        Raises `UnknownSeries` for a series of an exchange that cannot be asked, `StoreError`.
        """
        return await self._requested.backfill(series, span, on_progress)

    async def start(self, series: SeriesId, span: Span) -> BackfillProgress:
        """The same, and nobody waits for it: what it will read. It is followed in health. Raises as `backfill`."""
        return await self._requested.start(series, span)

    # What is known.

    def needs_of(self, series: SeriesId) -> tuple[NeedStatus, ...]:
        """Each need of the series that waits or is being read, ascending."""
        return self._queue.needs_of(series)

    def expects(self, series: SeriesId, reason: Reason) -> bool:
        """Whether a need of the series with that reason waits for its first answer."""
        return self._queue.expects(series, reason)

    def working_on(self, series: SeriesId) -> list[Span]:
        """The spans that are being read or wait for it, ascending. A hole of several fruitless attempts is not among
        them, though it is asked for again now and then."""
        return self._queue.at_work(series)

    def nothing_before(self, series: SeriesId) -> Span | None:
        """A span right before the first stored candle in which the exchange has nothing, as it showed not long ago."""
        return self._queue.memory.nothing_before(series, self._ports.monotonic())

    # Who reads.

    async def run(self) -> None:
        """Read what is missing, until cancelled."""
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
                await self._requested.begin_again()
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
                outcome = Outcome(self._all_of(work), DEFECT) if outcome is None else outcome
                self._queue.settle(work, outcome.remaining, self._ports.monotonic(), outcome.answer)
                self._changed.set()
            if self._requested.under_way(work.series):
                with self._ports.bulkheads.contained(Part.BACKFILL, f"backfill of {work.series}"):
                    try:
                        await self._requested.judge(work.series)
                    except StoreError as error:
                        self._requested.fail(work.series, error)

    def _all_of(self, work: Look | Fetch) -> Sequence[Pending]:
        """The needs of work that a defect ended: asked for again, with backoff."""
        if isinstance(work, Look):
            return ()
        return [fruitless(pending, self._ports.monotonic(), self._ports.rng) for pending in work.needs]

    async def _try(self, work: Look | Fetch) -> Outcome:
        """Carry out a piece of work, whatever the store does."""
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
            await asyncio.sleep(self._store_retry_s())
            if isinstance(work, Look):
                self._queue.look(work)
            self._requested.fail(work.series, error)
            return Outcome(work.needs if isinstance(work, Fetch) else (), str(error))

    async def _look(self, look: Look) -> Outcome:
        """Add what the store tells to the queue. Raises `StoreError`."""
        find = look.find or self._find_declared
        needs = await find(look.series, look.page_start)
        for need in needs:
            self.submit(need)
        return Outcome((), f"{counted(len(needs), 'need')} found")

    async def _find_declared(self, series: SeriesId, _page_start: int | None) -> Sequence[Need]:
        return declared_gaps(series, await self._ports.database.read(lambda store: store.gaps(series)))

    async def _read(self, fetch: Fetch, errand: Errand) -> Outcome:
        """Raises `StoreError`."""
        if fetch.reason is Reason.NATIVE:
            return await self._natives.read(fetch.needs[0], errand)
        if fetch.reason is Reason.TAIL and self._tails is not None:
            outcome = await self._tails.read(fetch.needs[0], errand)
            if self._heals and outcome.candles:
                self.request_declared(fetch.series)  # what was out of reach is a hole now
            return outcome
        return await self._holes.read(fetch, errand)

    def _store_retry_s(self) -> float:
        return STORE_RETRY_S * self._ports.rng.uniform(0.75, 1.0)

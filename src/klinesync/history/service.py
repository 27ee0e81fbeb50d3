"""HistoryService: heals declared gaps, and reads what users ask for. `HistoryQueue` decides, here it is carried out.

Files come before the exchange, each asked only for what is still missing. What is asked for at length (`backfill`) is
read oldest part first, noted in the store until it is over, and taken up again after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from klinesync.core import gaps
from klinesync.core.candle import MAX_TIME
from klinesync.core.dates import date_text
from klinesync.core.errors import WRONG_REQUEST, NotListed, Rejected, StoreError, UnknownSeries, UpstreamError
from klinesync.core.gaps import SETTLED, Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, clipped, hull, without
from klinesync.exchanges.exchange import Errand, History, HistoryPage, HistoryWatch, Reach, Urgency
from klinesync.history import queue
from klinesync.history.queue import PATIENCE, Answer, Fetch, HistoryQueue, Look, Need, Piece, Standing
from klinesync.history.reading import REST, Progress, Shelf, on_board, read_pages
from klinesync.pipelines.ingest_pipeline import Empty, IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part, Work
from klinesync.runtime.log_limit import LogLimit
from klinesync.storage.database import CandleStore, Database

log = logging.getLogger(__name__)

# Readings of the healing at a time; the exchange's budget rations them further.
MAX_AT_ONCE = 4
# And readings that only what is urgent may take, so that a user need not wait for those of the healing to end.
MAX_URGENT_AT_ONCE = 2
# After a failed read or write of the store.
STORE_RETRY_S = 10.0
# About one series the same trouble is logged this often at most.
LOG_EVERY_S = 600.0
# For how long, and of how many series, it is remembered that the exchange has nothing before the first stored candle.
# What an exchange has does change now and then: old history that is brought back, a symbol that is listed again.
NOTHING_BEFORE_TTL_S = 6 * 3600.0
MAX_NOTHING_BEFORE = 10_000
# What health calls an explicit backfill.
BACKFILL = "backfill"
# Why a hole is lost that lies before what the exchange's answers reach back to.
NOT_REACHED = "each answer of an hour showed that the exchange's history does not reach so far back"
# Why a hole is left that no file fills.
NOT_ASKED = "no file has the rest, and the exchange is not asked for history"


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How an explicit backfill of `span` stands: of the `total` candles that it lacked when it began, `elapsed_s` ago,
    so many are still `missing`; so many `candles` were brought. `trouble`: what is in the way, if anything is.

    `lost`: candles of the span that no source gives any more, and `lost_why` as a sentence. `begins`: the first open
    time that there is, where the span begins before it, and the exchange has shown that it has nothing there.
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
        """How fast they came so far."""
        return round(self.candles / max(self.elapsed_s, 1e-3), 1)

    @property
    def left_s(self) -> int | None:
        """About how many seconds it will take; None when that cannot be known."""
        done = self.total - self.missing
        return round(self.elapsed_s * self.missing / done) if done else None


class HistoryService:
    """Heals declared gaps: asks the exchange for them, one reading of a series at a time, until each is filled or
    confirmed empty; what is requested with more urgency comes before. `run` is its one task.

    `history` is the exchange's (`Source.history`); `shelves` come before it, in that order. `covers`: whether anything
    of a series can be had at all; `asks`: whether its exchange may be asked for history. `watch` is told of each
    reading, `deep_watch` of explicit backfills; `kept_from`: before what open time a series with that head is trimmed
    (0: never); `reach`: how far back the exchange's history of a series goes (None: all of it is there, or that is not
    known); `now_s`: what time it is on its exchange, as far as is known (files may have candles of the future); `rng`
    spreads what is asked for again.
    """

    def __init__(
        self,
        *,
        history: History,
        pipeline: IngestPipeline,
        database: Database,
        watch: HistoryWatch,
        rng: random.Random,
        deep_watch: HistoryWatch | None = None,
        shelves: Sequence[Shelf] = (),
        covers: Callable[[SeriesId], bool] = lambda _: True,
        asks: Callable[[SeriesId], bool] = lambda _: True,
        kept_from: Callable[[SeriesId, int], int] = lambda _series, _head: 0,
        now_s: Callable[[SeriesId], float] = lambda _: float(MAX_TIME),
        reach: Callable[[SeriesId], Reach | None] = lambda _: None,
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._history = history
        self._pipeline = pipeline
        self._database = database
        self._watch = watch
        self._deep_watch = deep_watch or watch
        self._shelves = tuple(shelves)
        self._covers = covers
        self._asks = asks
        self._kept_from = kept_from
        self._now_s = now_s
        self._reach = reach
        self._deep: dict[SeriesId, _Deep] = {}
        self._rng = rng
        self._queue = HistoryQueue()
        self._errands: dict[SeriesId, Errand] = {}  # of the readings under way
        self._nothing_before: OrderedDict[SeriesId, tuple[Span, float]] = OrderedDict()  # and since when (monotonic)
        self._changed = asyncio.Event()
        self._logged = LogLimit(LOG_EVERY_S)

    def request(self, series: SeriesId, span: Span, reason: str, urgency: Urgency = Urgency.DEEP) -> None:
        """Have `span` of an ingested series read, as far as it is neither stored nor confirmed empty; returns at once.

        It may lie before the first stored candle. `reason` is told in health. `urgency` counts until it was asked for
        once; what waits already, or is being read, is raised to it. What finds no room in the queue and is a declared
        gap is looked up in the store later.
        """
        under_way = self._errands.get(series)
        if under_way is not None:
            under_way.urgency = min(under_way.urgency, urgency)  # it is joined, or waited for
        if not self._queue.request(series, span, reason, urgency):
            self._warn(series, "%s: no room to ask for all that is missing; the rest comes later", series)
        self._changed.set()

    def request_declared(self, series: SeriesId) -> None:
        """Have all gaps read that the store declares of an ingested series; returns at once."""
        self._queue.look(series)
        self._changed.set()

    def retry_declared(self, series: SeriesId) -> None:
        """The same for a series that the exchange lists again: needs that failed before do not wait for their next
        retry."""
        self._queue.retry_now(series)
        self.request_declared(series)

    async def backfill(
        self, series: SeriesId, span: Span, on_progress: Callable[[BackfillProgress], None] = lambda _: None
    ) -> BackfillProgress:
        """Read all of `span` of an ingested series that is neither stored nor confirmed empty, oldest part first; how
        that went. What the exchange has not (yet), or what it was asked for in vain several times, is still `missing`
        then. What was lost is asked for once more, as far as the exchange's history reaches. Whoever does not want to
        wait any longer may be cancelled: it goes on.

        `on_progress` is called after every page. Overlapping ones are read once. It is noted in the store until it is
        over: what is left of it is taken up again after a restart.
        Raises `UnknownSeries` for a series of an exchange that cannot be asked, `StoreError`.
        """
        begun, ask = await self._ask(series, span, on_progress)
        if ask is None:
            return begun
        try:
            return await asyncio.shield(ask.done)
        finally:
            if (deep := self._deep.get(series)) is not None and ask in deep.asks:
                deep.asks.remove(ask)
                self._end_if_over(series, deep)

    async def start(self, series: SeriesId, span: Span) -> BackfillProgress:
        """The same, and nobody waits for it: what it will read. It is followed in health. Raises as `backfill`."""
        begun, _ = await self._ask(series, span, lambda _: None)
        return begun

    async def _ask(
        self, series: SeriesId, span: Span, on_progress: Callable[[BackfillProgress], None]
    ) -> tuple[BackfillProgress, _Ask | None]:
        """How it stands when it begins, and what is to be waited for, if anything is."""
        if not self._covers(series):
            raise UnknownSeries(str(series), f"{series.exchange} {series.market} cannot be asked for history")
        frame = series.timeframe
        stored, ledger = await self._stored(series)
        kept_from = 0 if stored is None else self._kept_from(series, frame.shift(stored.end, -1))
        first = frame.ceil(max(span.start, kept_from, 0))
        end = min(frame.ceil(span.end), frame.floor(int(self._now_s(series))))
        span = Span(first, max(first, end))
        left = gaps.unproven(ledger, stored, span) if span.start < span.end else []
        left, beyond = self._beyond(series, span, left, stored, ledger)
        if not left:
            return beyond.of(BackfillProgress(series, span, 0, 0, 0, 0.0)), None
        await self._mark(series, left, asked=span)
        ask = self._begin(series, span, left, on_progress)
        return ask.progress(series, self._deep[series], 0), ask

    def _beyond(
        self, series: SeriesId, span: Span, missing: Sequence[Span], stored: Span | None, ledger: Sequence[Gap]
    ) -> tuple[list[Span], _Beyond]:
        """What of the `missing` parts of `span` may still be had, and what the others are."""
        frame, reach = series.timeframe, self._reach(series)
        left, why = list(missing), None
        inside = [gap for gap in ledger if gap.state is GapState.LOST and gap.span.overlaps(span)]
        lost = clipped([gap.span for gap in inside], span)
        if inside:
            why = inside[-1].proof
        if reach is not None and (older := clipped(left, Span(0, reach.oldest))):
            lost, why = [*without(older, lost), *lost], reach.sentence
            left = without(left, [Span(0, reach.oldest)])
        begins, nothing = None, self.nothing_before(series)
        if stored is not None and nothing is not None and nothing.end == stored.start:
            begins = stored.start if clipped(left, nothing) else None
            left = without(left, [nothing])
        return left, _Beyond(candle_count(frame, lost), why, begins)

    def _kept(self, series: SeriesId, spans: Sequence[Span], stored: Span | None) -> list[Span]:
        """What of them would not be trimmed at once."""
        kept_from = 0 if stored is None else self._kept_from(series, series.timeframe.shift(stored.end, -1))
        return clipped(spans, Span(kept_from, MAX_TIME + 1))

    def _begin(
        self, series: SeriesId, span: Span, left: list[Span], on_progress: Callable[[BackfillProgress], None]
    ) -> _Ask:
        deep = self._deep.setdefault(series, _Deep())
        total = candle_count(series.timeframe, left)
        done: asyncio.Future[BackfillProgress] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda over: over.cancelled() or over.exception())  # nobody may be waiting for it
        ask = _Ask(span, left, total, on_progress, _now_s(), deep.candles, done, _Beyond())
        deep.asks.append(ask)
        whole = hull([part for one in deep.asks for part in one.left])
        if whole != deep.whole:
            deep.whole = whole
            self._deep_watch.began(series, whole, BACKFILL)
        for part in left:
            self._queue.request(series, part, BACKFILL, oldest_first=True)
        self._changed.set()
        return ask

    def working_on(self, series: SeriesId) -> list[Span]:
        """The spans that are being read or wait for it, ascending. A hole that was asked for in vain several times is
        not among them, though it is asked for again now and then."""
        return self._queue.at_work(series)

    def nothing_before(self, series: SeriesId) -> Span | None:
        """A span right before the first stored candle in which the exchange has nothing, as it showed not long ago."""
        span, since_s = self._nothing_before.get(series, (None, 0.0))
        return span if _now_s() - since_s < NOTHING_BEFORE_TTL_S else None

    async def run(self) -> None:
        """Read what is requested, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._begin_part(group, self._resume, "backfill resumed")
            for number in range(1, MAX_AT_ONCE + 1):
                self._begin_part(group, self._work, f"backfill {number}")
            for number in range(1, MAX_URGENT_AT_ONCE + 1):
                self._begin_part(group, partial(self._work, urgent_only=True), f"urgent backfill {number}")
            await asyncio.Event().wait()

    def _begin_part(self, group: asyncio.TaskGroup, work: Work, name: str) -> None:
        self._bulkheads.begin(group, work, part=Part.BACKFILL, name=name, restart=True)

    async def _resume(self) -> None:
        """Take up again what was being backfilled when the service ended."""
        while True:
            try:
                await self._begin_again()
                break
            except StoreError as error:
                log.warning("what was being backfilled cannot be looked up: %s", error)
                await asyncio.sleep(STORE_RETRY_S * self._rng.uniform(0.75, 1.0))

    async def _begin_again(self) -> None:
        """Raises `StoreError`."""
        for series, span in await self._database.read(lambda store: store.backfills()):
            under_way = self._deep.get(series)
            if not self._covers(series) or (under_way and any(ask.span == span for ask in under_way.asks)):
                continue
            stored, ledger = await self._stored(series)
            left = self._kept(series, gaps.unsettled(ledger, stored, span), stored)
            if left:
                log.info("%s: its backfill goes on, from %d on", series, left[0].start)
                self._begin(series, span, left, lambda _: None)
            else:
                await self._database.write(lambda store, one=(series, span): store.end_backfill(*one))  # type: ignore[misc]

    async def _work(self, *, urgent_only: bool = False) -> None:
        while True:
            work = self._queue.take(_now_s(), urgent_only=urgent_only)
            if work is None:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._queue.next_due_s(urgent_only=urgent_only)):
                        await self._changed.wait()
                continue
            left: Sequence[Need] | None = None
            try:
                with self._bulkheads.contained(Part.BACKFILL, f"history of {work.series}"):
                    left = await self._try(work)
            finally:
                self._queue.settle(work, self._all_of(work) if left is None else left)
            self._changed.set()
            if work.series in self._deep:
                with self._bulkheads.contained(Part.BACKFILL, f"backfill of {work.series}"):
                    try:
                        await self._judge(work.series)
                    except StoreError as error:
                        self._fail(work.series, error)

    async def _give_up(self, series: SeriesId, needs: Sequence[Need]) -> list[Need]:
        """What of the needs may still be had. What of the others lies between stored candles is declared lost. Raises
        `StoreError`."""
        now_s, reach = _now_s(), self._reach(series)
        kept = [need for need in needs if not queue.is_lost(need, now_s)]
        lost = [(need.span, NOT_REACHED) for need in needs if need not in kept]
        if reach is not None:
            lost += [(need.span, reach.sentence) for need in kept if need.span.start < reach.oldest]
            lost = [(Span(span.start, max(span.start, min(span.end, reach.oldest))), why) for span, why in lost]
            kept = queue.reached(kept, reach.oldest)
        if not lost:
            return kept
        stored, ledger = await self._stored(series)
        for span, why in lost:
            holes = [] if stored is None else clipped(gaps.unsettled(ledger, stored, span), stored)
            if holes:
                missing = candle_count(series.timeframe, holes)
                self._warn(
                    series, "%s: %d candles from %s on are lost: %s", series, missing, date_text(span.start), why
                )
                await self._pipeline.submit(series, [], "rest", Empty(holes, why, lost=True))
            if stored is not None and span.start < stored.start and reach is not None and reach.oldest >= stored.start:
                self._remember(series, Span(span.start, stored.start))
        return kept

    def _all_of(self, work: Look | Fetch) -> Sequence[Need]:
        """The needs of work that came to nothing by a defect: asked for again, with backoff."""
        if isinstance(work, Look):
            return ()
        return [queue.in_vain(need, _now_s(), self._rng) for need in work.needs]

    async def _try(self, work: Look | Fetch) -> Sequence[Need]:
        """Do it; what is left of it."""
        try:
            return await self._carry_out(work)
        except StoreError as error:
            self._warn(work.series, "%s: its gaps cannot be healed at present: %s", work.series, error)
            await asyncio.sleep(STORE_RETRY_S * self._rng.uniform(0.75, 1.0))
            if isinstance(work, Look):
                self._queue.look(work.series)
            self._fail(work.series, error)
            return work.needs if isinstance(work, Fetch) else ()

    async def _carry_out(self, work: Look | Fetch) -> Sequence[Need]:
        """Do it; what is left of it. Raises `StoreError`."""
        stored, ledger = await self._stored(work.series)
        match work:
            case Look(series):
                for gap in reversed(ledger):  # the newest find room first
                    if gap.state not in SETTLED:
                        marked = gap.state is GapState.HEALING
                        reason = BACKFILL if marked else "declared gap"
                        self._queue.request(series, gap.span, reason, oldest_first=marked)
                return ()
            case Fetch(series):
                now = queue.standing(work, stored, ledger)
                if not now.needs:
                    return queue.too_early(work, stored, _now_s(), self._rng)
                return await self._fetch(work, now)

    async def _fetch(self, fetch: Fetch, now: Standing) -> Sequence[Need]:
        series = fetch.series
        explicit = series in self._deep and all(need.oldest_first for need in fetch.needs)
        watch = _DeepWatch(self._deep, self._deep_watch) if explicit else self._watch
        span = queue.piece_of(series.timeframe, now).span
        errand = self._errands[series] = Errand(fetch.urgency)
        try:
            with on_board(watch, series, span, fetch.needs[-1].reason) as progress:
                return await self._fetch_told(fetch, now, errand, progress)
        finally:
            del self._errands[series]

    async def _fetch_told(self, fetch: Fetch, now: Standing, errand: Errand, progress: Progress) -> Sequence[Need]:
        """The files, then the exchange; the needs that remain. Raises `StoreError`."""
        series = fetch.series
        later: list[Need] = []  # what is not asked for now
        if self._shelves and not all(need.filed for need in now.needs):
            if not await self._look_into_files(fetch, now, errand, progress):
                due = [replace(need, due_s=_now_s()) for need in now.needs]
                return [*due, *queue.too_early(fetch, now.stored, _now_s(), self._rng)]
            stored, ledger = await self._stored(series)
            early = queue.too_early(fetch, stored, _now_s(), self._rng)
            fetch, others = queue.after_files(fetch, now, stored, ledger)
            later = [*early, *others]
            if fetch.needs:
                now = queue.standing(fetch, stored, ledger)
            if not fetch.needs or not now.needs:
                return later
        if not self._asks(series):
            progress.trouble = NOT_ASKED
            stored, _ = await self._stored(series)
            left = [queue.unanswered(need, _now_s(), self._rng) for need in now.needs]
            return [*left, *queue.too_early(fetch, stored, _now_s(), self._rng), *later]
        reachable = await self._give_up(series, fetch.needs)
        if reachable != list(fetch.needs):
            stored, ledger = await self._stored(series)
            later += queue.too_early(fetch, stored, _now_s(), self._rng)
            fetch = Fetch(series, tuple(reachable))
            now = queue.standing(fetch, stored, ledger) if reachable else replace(now, needs=())
            if not now.needs:
                return later
        piece = queue.piece_of(series.timeframe, now)
        asked = progress.part(piece.span.start)
        try:
            await self._read(series, piece, now, errand, asked)
            stored, ledger = await self._stored(series)
            first = None if asked.came is None else asked.came.start
            answer = Answer(asked.reached, first, stored, ledger)
            self._remember(series, queue.nothing_before_first(piece, answer))
            left = queue.left_over(fetch, now, piece, answer, _now_s(), self._rng)
            left = await self._give_up(series, left)
            progress.trouble = self._in_vain(series, left)
        except NotListed as error:
            progress.trouble = str(error)
            self._warn(series, "%s: its gaps are left as they are: %s", series, error)
            # Nobody has anything of it, unless it is listed again, or the list was wrong.
            waiting = [need for need in now.needs if not need.oldest_first]
            left = [queue.in_vain(need, _now_s(), self._rng) for need in waiting]
        except UpstreamError as error:
            progress.trouble = str(error)
            self._warn(series, "%s: its gaps cannot be read: %s", series, error)
            again_s = error.retry_after_s or 0.0
            needs = [replace(need, vain=0) if asked.candles else need for need in now.needs]
            now_s = _now_s()
            if error.status == WRONG_REQUEST:
                # An exchange may call a question about candles that it keeps no more a wrong one.
                beyond = not asked.candles
                left = [queue.in_vain(need, now_s, self._rng, again_s, beyond=beyond) for need in needs]
            else:
                left = [queue.not_answered(need, now_s, self._rng, again_s) for need in needs]
            left = await self._give_up(series, left)
            left += queue.too_early(fetch, now.stored, _now_s(), self._rng)
        return [*left, *later]

    async def _look_into_files(self, fetch: Fetch, now: Standing, errand: Errand, progress: Progress) -> bool:
        """Read from the files what they have of the needs that stand. False when something urgent is waiting for the
        series: then the rest comes later. Raises `StoreError`."""
        series = fetch.series
        for shelf in self._shelves:
            stored, ledger = await self._stored(series)
            for need in now.needs:
                for span in gaps.unsettled(ledger, stored, need.span):
                    part = _of_shelf(shelf, series, need, span, stored, self._now_s(series))
                    if part is None:
                        continue
                    older = stored is not None and part.end == stored.start and not need.oldest_first
                    try:
                        whole = await read_pages(
                            shelf.files.pages(series, part),
                            partial(self._write, series, shelf.name, need),
                            progress.part(part.start),
                            newest_first=older,
                            enough=partial(_is_more_urgent, errand, need),
                        )
                    except (UpstreamError, Rejected) as error:
                        self._warn(series, "%s: files (%s) are left out: %s", series, shelf.name, error)
                        continue
                    if not whole:
                        return False
        return True

    async def _read(self, series: SeriesId, piece: Piece, now: Standing, errand: Errand, progress: Progress) -> None:
        """Read a piece of the needs that stand from the exchange. Raises `UpstreamError`, `StoreError`."""
        older = now.stored is not None and piece.span.end == now.stored.start
        whole = await read_pages(
            self._history(series, piece.around.start, errand, piece.around.end),
            partial(self._write, series, REST, now.needs[0]),
            progress,
            newest_first=older and piece.most is None,
            enough=partial(_is_piece_full, piece, progress),
        )
        if whole:
            progress.reached = piece.span.end

    async def _write(self, series: SeriesId, source: str, need: Need, page: HistoryPage) -> None:
        await self._pipeline.submit(series, page.candles, source, Empty(page.empty, page.proof))
        await self._mark_rest(series, need)

    # Explicit backfills.

    async def _mark(self, series: SeriesId, spans: Sequence[Span], asked: Span | None = None) -> None:
        """Note in the ledger that somebody is at work on the holes in `spans`, and what was `asked` for. Raises
        `StoreError`."""

        def mark(store: CandleStore) -> None:
            store.change_gaps(series, gaps.begin_healing(store.gaps(series, hull(spans)), spans))
            if asked is not None:
                store.add_backfill(series, asked)

        await self._database.write(mark)

    async def _mark_rest(self, series: SeriesId, need: Need) -> None:
        """What was written has made a hole of the rest of a need from before the first stored candle."""
        deep = self._deep.get(series)
        if need.oldest_first and not need.inside and deep is not None and need.span not in deep.marked:
            deep.marked.add(need.span)
            await self._mark(series, [need.span])

    async def _judge(self, series: SeriesId) -> None:
        """Something of the series was read: which of its backfills are over? Raises `StoreError`."""
        deep = self._deep[series]
        stored, ledger = await self._stored(series)
        for ask in list(deep.asks):
            ask.left, ask.beyond = self._beyond(
                series, ask.span, gaps.unsettled(ledger, stored, ask.span), stored, ledger
            )
            waiting = [need for part in ask.left for need in self._queue.waiting(series, part)]
            if self._queue.looks(series) or any(need.vain < PATIENCE for need in waiting):
                ask.tell(series, deep, ask.span.start)
                continue
            holes = clipped(ask.left, stored) if stored is not None else []
            await self._database.write(lambda store, ask=ask, holes=holes: _end(store, series, ask.span, holes))  # type: ignore[misc]
            if ask in deep.asks:
                deep.asks.remove(ask)
            if not ask.done.done():
                ask.done.set_result(ask.progress(series, deep, ask.span.start))
        self._end_if_over(series, deep)

    def _fail(self, series: SeriesId, error: StoreError) -> None:
        deep = self._deep.get(series)
        if deep is None:
            return
        asks, deep.asks = deep.asks, []
        for ask in asks:
            if not ask.done.done():
                ask.done.set_exception(error)
        deep.trouble = str(error)
        self._end_if_over(series, deep)

    def _end_if_over(self, series: SeriesId, deep: _Deep) -> None:
        if not deep.asks and self._deep.get(series) is deep:
            del self._deep[series]
            self._deep_watch.ended(series, deep.trouble)

    def _remember(self, series: SeriesId, nothing: Span | None) -> None:
        if nothing is None:
            return
        self._nothing_before[series] = (nothing, _now_s())
        self._nothing_before.move_to_end(series)
        if len(self._nothing_before) > MAX_NOTHING_BEFORE:
            self._nothing_before.popitem(last=False)

    async def _stored(self, series: SeriesId) -> tuple[Span | None, list[Gap]]:
        return await self._database.read(lambda store: (store.span(series), store.gaps(series)))

    def _in_vain(self, series: SeriesId, left: Sequence[Need]) -> str | None:
        """A sentence about what the answer neither filled nor showed empty; None when there is nothing of the kind."""
        vain = [need for need in left if need.vain]
        if not vain:
            return None
        missing = candle_count(series.timeframe, [need.span for need in vain])
        first = date_text(vain[0].span.start)
        sentence = f"the exchange neither brings {missing} candles from {first} on nor shows that it has none"
        self._warn(series, "%s: %s", series, sentence)
        return sentence

    def _warn(self, series: SeriesId, text: str, *values: object) -> None:
        if self._logged.allow((series, text), _now_s()) is not None:
            log.warning(text, *values)


class _DeepWatch:
    """Counts a reading among the explicit backfills of its series; health shows these, not their readings."""

    def __init__(self, deeps: Mapping[SeriesId, _Deep], watch: HistoryWatch) -> None:
        self._deeps = deeps
        self._watch = watch
        self._counted = 0

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        """The explicit backfill began before."""

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        if (deep := self._deeps.get(series)) is None:
            return  # nobody waits for it any more
        deep.candles += candles - self._counted
        self._counted = candles
        self._watch.advanced(series, upto, deep.candles)
        for ask in deep.asks:
            ask.tell(series, deep, upto)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        if (deep := self._deeps.get(series)) is not None:
            deep.trouble = error


@dataclass(frozen=True, slots=True)
class _Beyond:
    """What of an explicit backfill cannot be had: see `BackfillProgress`."""

    lost: int = 0
    lost_why: str | None = None
    begins: int | None = None

    def of(self, how: BackfillProgress) -> BackfillProgress:
        """The progress, with this in it."""
        return replace(how, lost=self.lost, lost_why=self.lost_why, begins=self.begins)


@dataclass(slots=True, eq=False)
class _Ask:
    """One call of `backfill`: what it asked for, what of it was `left` at the last look, and who waits for it."""

    span: Span
    left: list[Span]
    total: int
    on_progress: Callable[[BackfillProgress], None]
    began_s: float
    candles_before: int
    done: asyncio.Future[BackfillProgress]
    beyond: _Beyond

    def progress(self, series: SeriesId, deep: _Deep, upto: int) -> BackfillProgress:
        """How it stands when all before `upto` was read since the last look."""
        missing = sum(series.timeframe.count(max(start, upto), end) for start, end in self.left if end > upto)
        candles = deep.candles - self.candles_before
        elapsed_s = _now_s() - self.began_s
        return self.beyond.of(
            BackfillProgress(series, self.span, self.total, missing, candles, elapsed_s, deep.trouble)
        )

    def tell(self, series: SeriesId, deep: _Deep, upto: int) -> None:
        self.on_progress(self.progress(series, deep, upto))


@dataclass(slots=True, eq=False)
class _Deep:
    """The explicit backfills of one series: what they lack from first to last, how many candles came, which needs were
    marked in the ledger."""

    asks: list[_Ask] = field(default_factory=list)
    whole: Span | None = None
    candles: int = 0
    marked: set[Span] = field(default_factory=set)
    trouble: str | None = None


def _is_more_urgent(errand: Errand, need: Need) -> bool:
    """Whether the series is wanted more urgently than when the need was taken."""
    return errand.urgency < need.urgency


def _is_piece_full(piece: Piece, progress: Progress) -> bool:
    """Whether a piece that is read until enough candles came has them."""
    return piece.most is not None and progress.reached > piece.span.start and progress.candles >= piece.most


def _of_shelf(shelf: Shelf, series: SeriesId, need: Need, span: Span, stored: Span | None, now_s: float) -> Span | None:
    """What of the missing `span` is looked for in these files."""
    frame = series.timeframe
    span = Span(span.start, max(span.start, min(span.end, frame.floor(int(now_s)))))
    most = count = frame.count(*span)
    if not need.oldest_first:
        if shelf.gap_most is not None:
            most = min(most, shelf.gap_most)
        if stored is not None and span.end == stored.start:
            most = min(most, queue.PIECE_CANDLES)  # it is held until all of it is there
    if count < shelf.least_candles or most <= 0:
        return None
    return span if most == count else Span(frame.shift(span.end, -most), span.end)


def _end(store: CandleStore, series: SeriesId, asked: Span, holes: Sequence[Span]) -> None:
    """What was asked for is over: nobody is at work on its `holes` any more."""
    store.end_backfill(series, asked)
    if holes:
        store.change_gaps(series, gaps.end_healing(store.gaps(series, hull(holes)), holes))


def _now_s() -> float:
    return asyncio.get_running_loop().time()

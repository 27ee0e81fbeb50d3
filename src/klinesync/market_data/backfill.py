"""BackfillService: heals declared gaps, and reads what users ask for. `HealQueue` decides, here it is carried out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.gaps import Gap, GapState, Span
from klinesync.core.series_id import SeriesId
from klinesync.market_data import heal_queue
from klinesync.market_data.heal_queue import Answer, Fetch, HealQueue, Look, Need, Piece, Standing
from klinesync.pipelines.ingest_pipeline import Empty, IngestPipeline
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.sources import Errand, HistoryPage, HistoryWatch, Urgency
from klinesync.storage.database import Database

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


class BackfillService:
    """Heals declared gaps: asks the exchange for them, one reading of a series at a time, until each is filled or
    confirmed empty; what is requested with more urgency comes before. `run` is its one task.

    `history` is the exchange's (`Source.history`); `watch` is told of each reading; `rng` spreads what is asked for
    again.
    """

    def __init__(
        self,
        *,
        history: Callable[[SeriesId, int, Errand, int | None], AsyncGenerator[HistoryPage, None]],
        pipeline: IngestPipeline,
        database: Database,
        watch: HistoryWatch,
        rng: random.Random,
    ) -> None:
        self._history = history
        self._pipeline = pipeline
        self._database = database
        self._watch = watch
        self._rng = rng
        self._queue = HealQueue()
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
            for number in range(1, MAX_AT_ONCE + 1):
                group.create_task(self._work(), name=f"backfill {number}")
            for number in range(1, MAX_URGENT_AT_ONCE + 1):
                group.create_task(self._work(urgent_only=True), name=f"urgent backfill {number}")

    async def _work(self, *, urgent_only: bool = False) -> None:
        while True:
            work = self._queue.take(_now_s(), urgent_only=urgent_only)
            if work is None:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._queue.next_due_s(urgent_only=urgent_only)):
                        await self._changed.wait()
                continue
            try:
                left = await self._carry_out(work)
            except StoreError as error:
                self._warn(work.series, "%s: its gaps cannot be healed at present: %s", work.series, error)
                await asyncio.sleep(STORE_RETRY_S * self._rng.uniform(0.75, 1.0))
                left = work.needs if isinstance(work, Fetch) else ()
                if isinstance(work, Look):
                    self._queue.look(work.series)
            self._queue.settle(work, left)
            self._changed.set()

    async def _carry_out(self, work: Look | Fetch) -> Sequence[Need]:
        """Do it; what is left of it. Raises `StoreError`."""
        stored, ledger = await self._stored(work.series)
        match work:
            case Look(series):
                for gap in reversed(ledger):  # the newest find room first
                    if gap.state is not GapState.CONFIRMED_EMPTY:
                        self._queue.request(series, gap.span, "declared gap")
                return ()
            case Fetch(series):
                now = heal_queue.standing(work, stored, ledger)
                if not now.needs:
                    return heal_queue.too_early(work, stored, _now_s(), self._rng)
                return await self._fetch(work, now)

    async def _fetch(self, fetch: Fetch, now: Standing) -> Sequence[Need]:
        series = fetch.series
        piece = heal_queue.piece_of(series.timeframe, now)
        trouble: str | None = "the reading was broken off"
        reading = _Progress(piece.span.start)
        errand = self._errands[series] = Errand(fetch.urgency)
        self._watch.began(series, piece.span, fetch.needs[-1].reason)
        try:
            older = now.stored is not None and piece.span.end == now.stored.start
            await self._read(series, piece, reading, errand, newest_first=older and not piece.one_page)
            stored, ledger = await self._stored(series)
            answer = Answer(reading.reached, reading.first, stored, ledger)
            self._remember(series, heal_queue.nothing_before_first(piece, answer))
            left = heal_queue.left_over(fetch, now, piece, answer, _now_s(), self._rng)
            trouble = self._in_vain(series, left)
        except UpstreamError as error:
            trouble = str(error)
            self._warn(series, "%s: its gaps cannot be read: %s", series, error)
            again_s = error.retry_after_s or 0.0
            asked = [replace(need, vain=0) if reading.rows else need for need in now.needs]
            left = [heal_queue.in_vain(need, _now_s(), self._rng, again_s) for need in asked]
            left += heal_queue.too_early(fetch, now.stored, _now_s(), self._rng)
        except StoreError as error:
            trouble = str(error)
            raise
        finally:
            del self._errands[series]
            self._watch.ended(series, trouble)
        return left

    async def _read(
        self, series: SeriesId, piece: Piece, reading: _Progress, errand: Errand, *, newest_first: bool
    ) -> None:
        """Read a piece into the pipeline, page by page. With `newest_first`, which is for what ends with the first
        stored candle, the pages wait for the last one: each joins what is stored then, and nobody ever reads a hole.
        Raises `UpstreamError`, `StoreError`.
        """
        held: list[HistoryPage] = []
        async with aclosing(self._history(series, piece.start, errand, piece.until)) as pages:
            async for page in pages:
                if newest_first:
                    held.append(page)
                else:
                    await self._submit(series, page)
                reading.take(series, page)
                self._watch.advanced(series, reading.reached, reading.rows)
                if piece.one_page and reading.reached > piece.span.start:
                    return
        for page in reversed(held):
            await self._submit(series, page)
        reading.reached = piece.span.end

    async def _submit(self, series: SeriesId, page: HistoryPage) -> None:
        await self._pipeline.submit(series, page.candles, "rest", Empty(page.empty, page.proof))

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
        missing = sum(series.timeframe.count(*need.span) for need in vain)
        sentence = (
            f"the exchange neither brings {missing} candles from {vain[0].span.start} on nor shows that it has none"
        )
        self._warn(series, "%s: %s", series, sentence)
        return sentence

    def _warn(self, series: SeriesId, text: str, *values: object) -> None:
        if self._logged.allow((series, text), _now_s()) is not None:
            log.warning(text, *values)


@dataclass(slots=True)
class _Progress:
    """How far a piece is read: all before `reached`. How many `rows` came, and the open time of the `first`."""

    reached: int
    rows: int = 0
    first: int | None = None

    def take(self, series: SeriesId, page: HistoryPage) -> None:
        if self.first is None and page.candles:
            self.first = page.candles[0].time
        self.rows += len(page.candles)
        if page.candles:
            self.reached = max(self.reached, series.timeframe.next(page.candles[-1].time))
        if page.empty:
            self.reached = max(self.reached, page.empty[-1].end)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

"""IngestPipeline: the only writer of closed candles, in the order candles -> factor -> overlay -> publish.

Group commit: an idle writer commits at once what has arrived; what arrives while it is busy is the next batch.
Publishing happens after the commit, in commit order, and awaits nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from klinesync.core import gaps
from klinesync.core.candle import Applied, Candle, Closed, check_candle
from klinesync.core.errors import DerivedSeries, StoreError
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.factor.engine import FactorEngine
from klinesync.overlay.engine import OverlayEngine
from klinesync.pipelines.derived_step import DerivedStep, write_closed
from klinesync.storage.database import CandleStore, Database, Origin

log = logging.getLogger(__name__)

# Candles that may wait for the writer. Past that, `submit` waits for room.
MAX_QUEUED_CANDLES = 200_000
# Candles in one transaction; a submission is never split, so one that is larger goes alone.
MAX_BATCH_CANDLES = 20_000
# Base candles of one transaction that brings a derived series up to date.
MAX_REFRESH_CANDLES = 20_000


@dataclass(frozen=True, slots=True)
class Empty:
    """Spans of open times at which the exchange has nothing, and how it showed that."""

    spans: Sequence[Span]
    proof: str


@dataclass(frozen=True, slots=True)
class Submission:
    """Closed candles of one series that are written together, where they come from, and who waits for them."""

    series: SeriesId
    candles: Sequence[Candle]
    source: str
    empty: Empty | None
    written: asyncio.Future[Applied]


class IngestPipeline:
    """Takes checked, closed candles and writes, folds and publishes them. `run` is its one task.

    `wall_s` is the system clock: it dates revisions and confirmations.
    """

    def __init__(
        self,
        database: Database,
        derived: DerivedStep,
        factors: FactorEngine,
        overlays: OverlayEngine,
        publish: Callable[[Applied], None],
        wall_s: Callable[[], float],
    ) -> None:
        self._database = database
        self._derived = derived
        self._factors = factors
        self._overlays = overlays
        self._publish = publish
        self._wall_s = wall_s
        self._queue: deque[Submission] = deque()
        self._queued_candles = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()

    def submit_nowait(
        self, series: SeriesId, candles: Sequence[Candle], source: str, empty: Empty | None = None
    ) -> asyncio.Future[Applied]:
        """Queue closed candles of `series`; the future ends after their commit and publication.

        Candles are checked here: a bad one raises `BadCandle`, and nothing of the submission is queued. `empty` is
        confirmed in the gap ledger after the candles are in. The future fails with `StoreError` when the commit did;
        then nothing of the submission was written.
        """
        if self._derived.derives(series):
            raise DerivedSeries(series, self._derived.base)
        for candle in candles:
            check_candle(candle, series.timeframe)
        written: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        self._queue.append(Submission(series, candles, source, empty, written))
        self._queued_candles += len(candles)
        self._arrived.set()
        return written

    async def submit(
        self, series: SeriesId, candles: Sequence[Candle], source: str, empty: Empty | None = None
    ) -> Applied:
        """Like `submit_nowait`, but waits for room in the queue first, and for the commit."""
        async with self._room:
            await self._room.wait_for(lambda: self._queued_candles < MAX_QUEUED_CANDLES)
        return await self.submit_nowait(series, candles, source, empty)

    async def refresh_series(self, series: SeriesId) -> None:
        """Bring what is derived from base `series` up to its head, where it lags: a target that was off for a while,
        or never on. In transactions of `MAX_REFRESH_CANDLES` base candles, between live batches. Raises `StoreError`.
        """
        if series.timeframe != self._derived.base:
            return
        for target in self._derived.targets:
            lacking = await self._database.read(
                lambda store, target=target: self._derived.lacking(store, series, target)  # type: ignore[misc]
            )
            for span in lacking:
                start = span.start
                while start < span.end:
                    end = min(target.floor(series.timeframe.shift(start, MAX_REFRESH_CANDLES)), span.end)
                    end = max(end, target.next(start))
                    await self._refresh(series, target, Span(start, end))
                    start = end

    async def _refresh(self, series: SeriesId, target: Timeframe, window: Span) -> None:
        at = int(self._wall_s())
        for applied in await self._database.write(
            lambda store: self._derived.refresh(store, series, target, window, at)
        ):
            self._publish(applied)

    async def run(self) -> None:
        """Write what is queued, until cancelled; a batch that has begun is finished."""
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            write = asyncio.create_task(self._write(batch), name="pipeline write")
            try:
                await asyncio.shield(write)
            except asyncio.CancelledError:
                await write
                raise

    async def drain(self) -> None:
        """Write all that is queued; for the shutdown, after `run` was cancelled."""
        while batch := self._take():
            await self._write(batch)

    def apply(self, store: CandleStore, batch: Sequence[Submission]) -> list[list[Applied]]:
        """The write transaction of one batch: what each submission changed, base first, then what is derived from it.

        Runs on the writer thread.
        """
        at = int(self._wall_s())
        changes = [self._apply_one(store, submission, at) for submission in batch]
        closed = [Closed(one.series, candle) for change in changes for one in change for candle in one.candles]
        try:
            with store.savepoint():
                self._factors.advance(closed)
                self._overlays.advance(closed)
        except Exception:
            # A plugin's fault, of whatever kind, must not cost a candle: the ledgers lag, the candles stay.
            log.exception("factor or overlay failed; the ledgers lag behind the candles")
        return changes

    def _apply_one(self, store: CandleStore, submission: Submission, at: int) -> list[Applied]:
        series, empty = submission.series, submission.empty
        applied = write_closed(store, series, submission.candles, Origin(submission.source, at))
        spans: Sequence[Span] = ()
        if empty is not None and empty.spans:
            window = Span(empty.spans[0].start, empty.spans[-1].end)
            change = gaps.confirm_empty(store.gaps(series, window), empty.spans, empty.proof, at)
            store.change_gaps(series, change)
            spans = empty.spans if change else ()
        changes = [applied, *self._derived.advance(store, series, applied, spans, at)]
        return [_with_gaps(store, one) for one in changes]

    def _take(self) -> list[Submission]:
        batch: list[Submission] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].candles) <= MAX_BATCH_CANDLES):
            submission = self._queue.popleft()
            size += len(submission.candles)
            batch.append(submission)
        return batch

    async def _write(self, batch: Sequence[Submission]) -> None:
        try:
            results = await self._database.write(lambda store: self.apply(store, batch))
        except StoreError as error:
            log.error("a batch of %d submissions was not stored: %s", len(batch), error)
            for submission in batch:
                if not submission.written.done():
                    submission.written.set_exception(error)
        else:
            for submission, changes in zip(batch, results, strict=True):
                for applied in changes:
                    if applied.candles:
                        self._publish(applied)
                if not submission.written.done():
                    submission.written.set_result(changes[0])
        finally:
            self._queued_candles -= sum(len(submission.candles) for submission in batch)
            async with self._room:
                self._room.notify_all()


def _with_gaps(store: CandleStore, applied: Applied) -> Applied:
    """The same, with what the ledger says of the holes that a follower meets. The usual batch has none, and asks for
    none: one candle at the head, or a run, behind the one before it."""
    if not applied.candles:
        return applied
    first, last = applied.candles[0].time, applied.candles[-1].time
    found = store.gaps(applied.series, Span(first, last))
    return replace(applied, gaps=tuple(found)) if found else applied

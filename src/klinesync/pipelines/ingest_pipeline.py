"""IngestPipeline: the only writer of closed candles, in the order candles -> factor -> overlay -> publish.

Group commit: an idle writer commits at once what has arrived; what arrives while it is busy is the next batch.
Publishing happens after the commit, in commit order, and awaits nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from klinesync.core.candle import Applied, Candle, Closed, check_candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.factor.engine import FactorEngine
from klinesync.overlay.engine import OverlayEngine
from klinesync.storage.database import CandleStore, Database

log = logging.getLogger(__name__)

# Candles that may wait for the writer. Past that, `submit` waits for room.
MAX_QUEUED_CANDLES = 200_000
# Candles in one transaction; a submission is never split, so one that is larger goes alone.
MAX_BATCH_CANDLES = 20_000


@dataclass(frozen=True, slots=True)
class Submission:
    """Closed candles of one series that are written together, and who waits for them."""

    series: SeriesId
    candles: Sequence[Candle]
    written: asyncio.Future[Applied]


class IngestPipeline:
    """Takes checked, closed candles and writes, folds and publishes them. `run` is its one task."""

    def __init__(
        self,
        database: Database,
        factors: FactorEngine,
        overlays: OverlayEngine,
        publish: Callable[[Applied], None],
    ) -> None:
        self._database = database
        self._factors = factors
        self._overlays = overlays
        self._publish = publish
        self._queue: deque[Submission] = deque()
        self._queued_candles = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()

    def submit_nowait(self, series: SeriesId, candles: Sequence[Candle]) -> asyncio.Future[Applied]:
        """Queue closed candles of `series`; the future ends after their commit and publication.

        Candles are checked here: a bad one raises `BadCandle`, and nothing of the submission is queued. The future
        fails with `StoreError` when the commit did; then nothing of the submission was written.
        """
        for candle in candles:
            check_candle(candle, series.timeframe)
        submission = Submission(series, candles, asyncio.get_running_loop().create_future())
        self._queue.append(submission)
        self._queued_candles += len(candles)
        self._arrived.set()
        return submission.written

    async def submit(self, series: SeriesId, candles: Sequence[Candle]) -> Applied:
        """Like `submit_nowait`, but waits for room in the queue first, and for the commit."""
        async with self._room:
            await self._room.wait_for(lambda: self._queued_candles < MAX_QUEUED_CANDLES)
        return await self.submit_nowait(series, candles)

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

    def apply(self, store: CandleStore, batch: Sequence[Submission]) -> list[Applied]:
        """The write transaction of one batch. Runs on the writer thread."""
        written = [store.write(submission.series, submission.candles) for submission in batch]
        closed = [Closed(one.series, candle) for one in written for candle in one.candles]
        self._factors.advance(closed)
        self._overlays.advance(closed)
        return written

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
            for submission, written in zip(batch, results, strict=True):
                if written.candles:
                    self._publish(written)
                if not submission.written.done():
                    submission.written.set_result(written)
        finally:
            self._queued_candles -= sum(len(submission.candles) for submission in batch)
            async with self._room:
                self._room.notify_all()

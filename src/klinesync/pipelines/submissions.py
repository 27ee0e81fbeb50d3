"""Submissions: closed candles that wait for the writer, and the order in which they are taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span

# Assumed time to write a candle, in seconds, until the first transaction is measured.
ASSUMED_S_PER_CANDLE = 20e-6


class Empty(Struct, frozen=True):
    """Spans of open times for which no source has candles.

    spans: the empty spans.
    proof: how the exchange has shown that it has no candles, as a text; of lost candles the reason.
    lost: there may have been candles, but no source has them any more.
    """

    spans: Sequence[Span]
    proof: str
    lost: bool = False


class Submission(Struct, frozen=True):
    """Closed candles of one series that are written together.

    series: of the candles.
    candles: ascending where the series is derived or live.
    source: a label of metrics; `rest`, `http` and others.
    empty: spans to confirm empty after the candles are written.
    live: whether the candles come from a stream, and go first.
    written: set to the changes of the series after the commit.
    by_frames: only frames say that the candles are final, which is no reason to change a stored candle.
    """

    series: SeriesId
    candles: Sequence[Candle]
    source: str
    empty: Empty | None
    live: bool
    written: asyncio.Future[Applied]
    by_frames: bool = False


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the writer's backlog, in candles.

    live: most live candles. A series whose candles find no room begins again from its stored head, and REST gives the
        missing candles.
    bulk: most bulk candles (history, HTTP, files). Above it `submit` waits for room.
    batch: most candles of one transaction. A submission is never split: a larger one is a transaction of its own.
    share: most live candles of one series in a batch.
    flush_s: longest wait of a live candle for a transaction of bulk candles, in seconds.
    """

    live: int = 50_000
    bulk: int = 200_000
    batch: int = 20_000
    share: int = 200
    flush_s: float = 0.5


class Submissions:
    """The writer's backlog: submissions that wait, live ones first, and those that are being written.

    A series of which a live candle was not stored is broken: nothing live of the series is accepted until `mend`, so
    that no hole is written.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        # Candles that wait, or are being written.
        self.live_candles = 0
        self.bulk_candles = 0
        self._live: dict[SeriesId, deque[Submission]] = {}
        self._bulk: deque[Submission] = deque()
        self._broken: set[SeriesId] = set()
        self._s_per_candle = ASSUMED_S_PER_CANDLE

    def has_room_for_live(self, series: SeriesId, count: int) -> bool:
        """Whether `count` live candles of the series may be added. Without room the series is broken from now on."""
        if series in self._broken:
            return False
        if self.live_candles + count > self.limits.live:
            self._broken.add(series)
            return False
        return True

    @property
    def may_mend(self) -> bool:
        """Whether broken series may begin again: half of the room for live candles is free."""
        return self.live_candles <= self.limits.live // 2

    @property
    def has_room_for_bulk(self) -> bool:
        """Whether another bulk submission may be added."""
        return self.bulk_candles < self.limits.bulk

    def mend(self, series: SeriesId) -> None:
        """Accept live candles of the series again; the caller begins from the stored head."""
        self._broken.discard(series)

    def is_broken(self, series: SeriesId) -> bool:
        """Whether live candles of the series are refused."""
        return series in self._broken

    def add(self, submission: Submission) -> None:
        """Queue a submission. The caller has checked that there is room."""
        if submission.live:
            self._live.setdefault(submission.series, deque()).append(submission)
            self.live_candles += len(submission.candles)
        else:
            self._bulk.append(submission)
            self.bulk_candles += len(submission.candles)

    def take(self) -> list[Submission]:
        """The next batch: live candles first, each series up to its share; then bulk candles, as many as are written
        within `flush_s`."""
        batch: list[Submission] = []
        size = 0
        for series, waiting in list(self._live.items()):
            series_size = 0
            while waiting and (not series_size or series_size + len(waiting[0].candles) <= self.limits.share):
                submission = waiting.popleft()
                series_size += len(submission.candles)
                batch.append(submission)
            del self._live[series]
            if waiting:
                self._live[series] = waiting  # last in line now
            size += series_size
            if size >= self.limits.batch:
                break
        most = min(self.limits.batch, int(self.limits.flush_s / self._s_per_candle))
        while self._bulk and (not batch or size + len(self._bulk[0].candles) <= most):
            submission = self._bulk.popleft()
            size += len(submission.candles)
            batch.append(submission)
        return batch

    def ended(self, batch: Sequence[Submission], took_s: float) -> None:
        """The batch was written, or failed, after `took_s` seconds."""
        self.dropped(batch)
        count = sum(len(submission.candles) for submission in batch)
        if count:
            self._s_per_candle = max(0.8 * self._s_per_candle + 0.2 * took_s / count, 1e-6)

    def dropped(self, batch: Sequence[Submission]) -> None:
        """Take the candles of a batch off the counters of the backlog."""
        for submission in batch:
            if submission.live:
                self.live_candles -= len(submission.candles)
            else:
                self.bulk_candles -= len(submission.candles)

    def break_off(self, batch: Sequence[Submission]) -> list[Submission]:
        """Nothing of the batch was written. Removes and returns the waiting submissions that would leave a hole now:
        live ones of its live series, and history of these series, which begins after the lost candles."""
        self._broken.update(submission.series for submission in batch if submission.live)
        unwritable = [submission for series in self._broken for submission in self._live.pop(series, ())]
        history = [
            submission for submission in self._bulk if submission.series in self._broken and submission.source == "rest"
        ]
        self._bulk = deque(submission for submission in self._bulk if submission not in history)
        unwritable += history
        self.dropped(unwritable)
        return unwritable


def fail(submissions: Sequence[Submission], error: StoreError) -> None:
    """Tell the callers that nothing of their submissions was written."""
    for submission in submissions:
        if not submission.written.done():
            submission.written.set_exception(error)
            submission.written.exception()  # the caller may have been cancelled; the failure was logged

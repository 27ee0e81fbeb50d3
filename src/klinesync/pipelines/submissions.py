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

# Assumed cost of a candle, in seconds, until the first transaction is measured.
ASSUMED_S_PER_CANDLE = 20e-6


class Empty(Struct, frozen=True):
    """Spans of open times without candles at the exchange, and the proof. `lost`: there may have been candles, but no
    source has them any more, and `proof` says why."""

    spans: Sequence[Span]
    proof: str
    lost: bool = False


class Submission(Struct, frozen=True):
    """Closed candles of one series that are written together, with their source and the future of the caller.

    `by_frames`: only frames say that the candles are final, which is no reason to change a stored candle.
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
    """Bounds of what waits for the writer, in candles.

    live: most live ones. A series whose candles find no room begins again from its stored head, and REST has the
        missing ones.
    bulk: most others (history, HTTP, files). Beyond, whoever submits waits for room.
    batch: most of one transaction. A submission is never split: a larger one is a transaction of its own.
    share: most live ones of one series in a batch.
    flush_s: longest wait of a live candle behind a transaction of others, in seconds.
    """

    live: int = 50_000
    bulk: int = 200_000
    batch: int = 20_000
    share: int = 200
    flush_s: float = 0.5


class Submissions:
    """What waits for the writer, live candles before all others, and what is being written.

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
        """Whether so many live candles of the series may be added. Without room the series is broken from now on."""
        if series in self._broken:
            return False
        if self.live_candles + count > self.limits.live:
            self._broken.add(series)
            return False
        return True

    @property
    def may_mend(self) -> bool:
        """Whether there is room again for series that begin anew: half of it."""
        return self.live_candles <= self.limits.live // 2

    @property
    def has_room_for_bulk(self) -> bool:
        """Whether another submission that is not live may be added."""
        return self.bulk_candles < self.limits.bulk

    def mend(self, series: SeriesId) -> None:
        """The series begins anew from its stored head."""
        self._broken.discard(series)

    def is_broken(self, series: SeriesId) -> bool:
        """Whether live candles of the series are refused."""
        return series in self._broken

    def add(self, submission: Submission) -> None:
        """Queue a submission; whether there is room is the caller's question."""
        if submission.live:
            self._live.setdefault(submission.series, deque()).append(submission)
            self.live_candles += len(submission.candles)
        else:
            self._bulk.append(submission)
            self.bulk_candles += len(submission.candles)

    def take(self) -> list[Submission]:
        """The next batch: live candles first, each series up to its share; then others, as many as are written within
        `flush_s`."""
        batch: list[Submission] = []
        size = 0
        for series, waiting in list(self._live.items()):
            taken = 0
            while waiting and (not taken or taken + len(waiting[0].candles) <= self.limits.share):
                submission = waiting.popleft()
                taken += len(submission.candles)
                batch.append(submission)
            del self._live[series]
            if waiting:
                self._live[series] = waiting  # last in line now
            size += taken
            if size >= self.limits.batch:
                break
        most = min(self.limits.batch, int(self.limits.flush_s / self._s_per_candle))
        while self._bulk and (not batch or size + len(self._bulk[0].candles) <= most):
            submission = self._bulk.popleft()
            size += len(submission.candles)
            batch.append(submission)
        return batch

    def ended(self, batch: Sequence[Submission], took_s: float) -> None:
        """The batch was written, or was not, in so many seconds."""
        self.dropped(batch)
        count = sum(len(submission.candles) for submission in batch)
        if count:
            self._s_per_candle = max(0.8 * self._s_per_candle + 0.2 * took_s / count, 1e-6)

    def dropped(self, batch: Sequence[Submission]) -> None:
        """The batch does not wait any more."""
        for submission in batch:
            if submission.live:
                self.live_candles -= len(submission.candles)
            else:
                self.bulk_candles -= len(submission.candles)

    def break_off(self, batch: Sequence[Submission]) -> list[Submission]:
        """Nothing of the batch was written. Returns the waiting submissions that must not be written either, because
        they would leave a hole: live ones of its live series, and history of these series, which was read from behind
        the lost candles. They do not wait any more."""
        self._broken.update(submission.series for submission in batch if submission.live)
        behind = [submission for series in self._broken for submission in self._live.pop(series, ())]
        history = [one for one in self._bulk if one.series in self._broken and one.source == "rest"]
        self._bulk = deque(one for one in self._bulk if one not in history)
        behind += history
        self.dropped(behind)
        return behind


def fail(submissions: Sequence[Submission], error: StoreError) -> None:
    """Tell the callers that nothing of their submissions was written. A caller may be gone."""
    for submission in submissions:
        if not submission.written.done():
            submission.written.set_exception(error)
            submission.written.exception()  # the caller may not look; the failure was logged

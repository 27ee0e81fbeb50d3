"""BackfillBoard: the progress of all readings of history, for health and clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from typing import Literal

from klinesync.core.counted import counted
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryWatch

# Most finished readings of a reader that are remembered.
MAX_FINISHED = 10_000
# Pause between two progress messages of a reading, and before the first one, in seconds.
PUBLISH_EVERY_S = 1.0
# Missing candles from which on a reading is published at its beginning.
PUBLISH_CANDLES = 2000
# Reason of a reading that failed before its span was known.
UNBEGUN = "the newest candles"

# Sends a progress message to the clients of a series: a sentence and its facts.
Publish = Callable[[SeriesId, str, Mapping[str, object]], None]
# Takes a finished reading: its series, its span (None: it failed before the span was known), its reason, the number of
# candles that came, and its error.
NoteReading = Callable[[SeriesId, Span | None, str, int, str | None], None]


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """The progress of reading a series' history.

    state: of the reading; `idle` when there was none.
    progress_pct: 0 … 100.
    started_at, updated_at: UTC seconds of the wall clock.
    reason: why the history is read.
    note: a sentence about the candles that came.
    error: why the reading failed, a sentence.
    recent: whether the reading runs, or ended recently.
    start_missing_seconds, start_missing_candles: missing at the beginning.
    current_missing_seconds, current_missing_candles: missing now.
    candles: candles that came.
    candles_per_s: their mean rate.
    left_s: estimated seconds to the end; None when unknown.
    """

    state: Literal["idle", "running", "succeeded", "failed"] = "idle"
    progress_pct: float | None = None
    started_at: int | None = None
    updated_at: int | None = None
    reason: str | None = None
    note: str | None = None
    error: str | None = None
    recent: bool = False
    start_missing_seconds: int | None = None
    start_missing_candles: int | None = None
    current_missing_seconds: int | None = None
    current_missing_candles: int | None = None
    candles: int | None = None
    candles_per_s: float | None = None
    left_s: int | None = None


@dataclass(slots=True)
class _Reading:
    """A reading of history.

    series: whose history.
    span: open times that are read.
    reason: why.
    number: rises with each reading that begins.
    started_s, updated_s: UTC seconds of the wall clock.
    upto: every open time of the span before this one has been read.
    candles: candles that came.
    state: of the reading.
    error: why it failed, a sentence.
    published_s: time of the newest progress message; None before the first.
    """

    series: SeriesId
    span: Span
    reason: str
    number: int
    started_s: float
    updated_s: float
    upto: int
    candles: int = 0
    state: Literal["running", "succeeded", "failed"] = "running"
    error: str | None = None
    published_s: float | None = None

    @property
    def missing(self) -> int:
        return self.series.timeframe.count(self.upto, self.span.end)

    @property
    def progress_pct(self) -> float:
        total = self.series.timeframe.count(*self.span)
        return round(100.0 * (total - self.missing) / total, 1) if total else 100.0

    def report(self, *, recent: bool) -> BackfillReport:
        return BackfillReport(
            state=self.state,
            progress_pct=self.progress_pct,
            started_at=int(self.started_s),
            updated_at=int(self.updated_s),
            reason=self.reason,
            note=f"{counted(self.candles, 'candle')} came" if self.candles else None,
            error=self.error,
            recent=recent,
            start_missing_seconds=self.span.end - self.span.start,
            start_missing_candles=self.series.timeframe.count(*self.span),
            current_missing_seconds=self.span.end - self.upto,
            current_missing_candles=self.missing,
            candles=self.candles,
            candles_per_s=self._candles_per_s(),
            left_s=self._left_s() if self.state == "running" else None,
        )

    def sentence(self) -> str:
        if self.state == "failed":
            return f"history cannot be read: {self.error}"
        left_s = self._left_s()
        return f"history is read: {self.progress_pct:g} %" + (f", about {left_s} s left" if left_s else "")

    def facts(self) -> dict[str, object]:
        return {
            "state": self.state,
            "reason": self.reason,
            "progress_pct": self.progress_pct,
            "candles": self.candles,
            "missing_candles": self.missing,
            "candles_per_s": self._candles_per_s(),
            "left_s": self._left_s(),
        }

    def _candles_per_s(self) -> float:
        return round(self.candles / self._elapsed_s(), 1)

    def _elapsed_s(self) -> float:
        return max(self.updated_s - self.started_s, 1e-3)

    def _left_s(self) -> int | None:
        read = self.series.timeframe.count(self.span.start, self.upto)
        return round(self._elapsed_s() * self.missing / read) if read else None


class _Watch:
    """The readings of one reader, which reads a series once at a time."""

    def __init__(self, board: BackfillBoard) -> None:
        self._board = board
        self.running: dict[SeriesId, _Reading] = {}
        self.finished: dict[SeriesId, _Reading] = {}

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        now_s = self._board.wall_s()
        span = Span(span.start, max(span.start, span.end))
        self.finished.pop(series, None)
        before = self.running.get(series)
        reading = _Reading(series, span, reason, next(self._board.numbers), now_s, now_s, span.start)
        self.running[series] = reading
        if before is not None:
            reading.published_s = before.published_s  # the same reading with a longer span
        elif reading.missing >= PUBLISH_CANDLES:
            self._publish(reading)

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        reading = self.running.get(series)
        if reading is None:
            return
        reading.upto = min(max(reading.upto, series.timeframe.floor(upto)), reading.span.end)
        reading.candles = candles
        reading.updated_s = self._board.wall_s()
        since_s = reading.started_s if reading.published_s is None else reading.published_s
        if reading.updated_s - since_s >= PUBLISH_EVERY_S:
            self._publish(reading)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        reading = self.running.pop(series, None)
        if reading is None:
            if error is not None and self._board.note is not None:
                self._board.note(series, None, UNBEGUN, 0, error)
            return
        reading.state = "succeeded" if error is None else "failed"
        reading.error = error
        reading.updated_s = self._board.wall_s()
        if error is None:
            reading.upto = reading.span.end
        if self._board.note is not None:
            self._board.note(series, reading.span, reading.reason, reading.candles, error)
        self.finished[series] = reading
        if len(self.finished) > self._board.max_finished:
            del self.finished[next(iter(self.finished))]
        if reading.published_s is not None:
            self._publish(reading)

    def _publish(self, reading: _Reading) -> None:
        reading.published_s = reading.updated_s
        if self._board.publish is not None:
            self._board.publish(reading.series, reading.sentence(), reading.facts())


class BackfillBoard:
    """The progress of all readings of history. Each reader reports through a watch of its own.

    wall_s: UTC seconds of the wall clock.
    publish: sends progress messages of a long reading to the clients of its series; None by default.
    note: takes each finished reading; None by default.
    max_finished: most finished readings of a reader that are remembered; the oldest are evicted.
    """

    def __init__(
        self,
        wall_s: Callable[[], float],
        publish: Publish | None = None,
        note: NoteReading | None = None,
        *,
        max_finished: int = MAX_FINISHED,
    ) -> None:
        self.wall_s = wall_s
        self.max_finished = max_finished
        self.publish = publish
        self.note = note
        self.numbers = count(1)
        self._watches: list[_Watch] = []

    def watch(self) -> HistoryWatch:
        """A watch for another reader. A report on a series before `began` or after `ended` is ignored."""
        watch = _Watch(self)
        self._watches.append(watch)
        return watch

    def report(self, series: SeriesId, recent_s: float) -> BackfillReport:
        """The newest running reading of `series`, or the newest finished one when none runs. `recent_s`: seconds for
        which a finished reading counts as recent."""
        running = [watch.running[series] for watch in self._watches if series in watch.running]
        if running:
            return max(running, key=_number).report(recent=True)
        finished = [watch.finished[series] for watch in self._watches if series in watch.finished]
        if not finished:
            return BackfillReport()
        recent = any(self.wall_s() - reading.updated_s <= recent_s for reading in finished)
        return max(finished, key=_number).report(recent=recent)


_number = attrgetter("number")

"""BackfillBoard: who reads history of which series, and how far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from klinesync.core.counted import counted
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryWatch

# Readings of one reader that are over and still told of; the oldest are forgotten.
MAX_FINISHED = 10_000
# A reading that takes longer is told of to those who watch the series, and again so often; one of so many candles from
# its beginning on. Its end is told, too, of each that was told of.
TELL_EVERY_S = 1.0
TELL_CANDLES = 2000
# The reason of a reading that failed before anything was read.
UNBEGUN = "the newest candles"

Tell = Callable[[SeriesId, str, Mapping[str, object]], None]
# Takes a reading that has ended: its series, its span (None: the reading failed before that was known), its reason, how
# many candles came, and what was in the way.
NoteReading = Callable[[SeriesId, Span | None, str, int, str | None], None]


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """How the reading of a series' history stands. Times are UTC seconds of the wall clock. `start_missing_*` is what
    was to be read when it began, `current_missing_*` what still is; `recent`: it runs, or ended not long ago. So many
    `candles` came, at that rate; about `left_s` seconds are left, where that can be known."""

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
    """One reading: all of `span` before `upto` is read, which brought `candles`. Of readings the one with the highest
    `number` began last."""

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
    told_s: float | None = None

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
    """What one reader tells: it reads a series once at a time."""

    def __init__(
        self, wall_s: Callable[[], float], tell: Tell | None, note: NoteReading | None, numbers: Iterator[int]
    ) -> None:
        self._wall_s = wall_s
        self._tell = tell
        self._note = note
        self._numbers = numbers
        self.running: dict[SeriesId, _Reading] = {}
        self.finished: dict[SeriesId, _Reading] = {}

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        now_s = self._wall_s()
        span = Span(span.start, max(span.start, span.end))
        self.finished.pop(series, None)
        again = self.running.get(series)
        reading = _Reading(series, span, reason, next(self._numbers), now_s, now_s, span.start)
        self.running[series] = reading
        if again is not None:
            reading.told_s = again.told_s  # it grew
        elif reading.missing >= TELL_CANDLES:
            self._say(reading)

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        reading = self.running.get(series)
        if reading is None:
            return
        reading.upto = min(max(reading.upto, series.timeframe.floor(upto)), reading.span.end)
        reading.candles = candles
        reading.updated_s = self._wall_s()
        since_s = reading.started_s if reading.told_s is None else reading.told_s
        if reading.updated_s - since_s >= TELL_EVERY_S:
            self._say(reading)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        reading = self.running.pop(series, None)
        if reading is None:
            if error is not None and self._note is not None:
                self._note(series, None, UNBEGUN, 0, error)
            return
        reading.state = "succeeded" if error is None else "failed"
        reading.error = error
        reading.updated_s = self._wall_s()
        if error is None:
            reading.upto = reading.span.end
        if self._note is not None:
            self._note(series, reading.span, reading.reason, reading.candles, error)
        self.finished[series] = reading
        if len(self.finished) > MAX_FINISHED:
            del self.finished[next(iter(self.finished))]
        if reading.told_s is not None:
            self._say(reading)  # who was told of its progress is told of its end

    def _say(self, reading: _Reading) -> None:
        reading.told_s = reading.updated_s
        if self._tell is not None:
            self._tell(reading.series, reading.sentence(), reading.facts())


class BackfillBoard:
    """Remembers who reads history of which series, and how far: each reader tells it through a watch of its own. Times
    are the wall clock's.

    `tell` passes a sentence and its facts on to those who watch the series, while a reading goes on that takes long.
    `note` takes each reading that has ended.
    """

    def __init__(self, wall_s: Callable[[], float], tell: Tell | None = None, note: NoteReading | None = None) -> None:
        self._wall_s = wall_s
        self._tell = tell
        self._note = note
        self._numbers = count(1)
        self._watches: list[_Watch] = []

    def watch(self) -> HistoryWatch:
        """A watch for one more reader. What it is told of a series before `began`, or after `ended`, is passed over."""
        watch = _Watch(self._wall_s, self._tell, self._note, self._numbers)
        self._watches.append(watch)
        return watch

    def report(self, series: SeriesId, recent_s: float) -> BackfillReport:
        """Of the readings of `series` that run the one that began last; when none runs, of those that are over.
        `recent_s`: how long an ended one counts as recent."""
        running = [watch.running[series] for watch in self._watches if series in watch.running]
        if running:
            return max(running, key=_number).report(recent=True)
        finished = [watch.finished[series] for watch in self._watches if series in watch.finished]
        if not finished:
            return BackfillReport()
        recent = any(self._wall_s() - reading.updated_s <= recent_s for reading in finished)
        return max(finished, key=_number).report(recent=recent)


def _number(reading: _Reading) -> int:
    return reading.number

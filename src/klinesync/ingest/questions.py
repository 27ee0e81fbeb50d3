"""Questions: stored candles for which a frame had other values, and when to request them. The row of REST decides.
Pure.

REST may lag behind the stream: while REST has the stored values, a candle is requested twice more. Each market has at
most one request in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import itemgetter

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span

# Delays of the repeated requests while REST has the stored values, in seconds after the first answer.
AGAIN_AFTER_S = (10.0, 120.0)
# Delay after a failed request, in seconds.
RETRY_S = 10.0
# Age at which an unanswered question is dropped, in seconds; the audit requests its candle later.
GIVE_UP_S = 900.0
# Shortest time between two requests of a market, in seconds.
PAUSE_S = 1.0
# Most candles of a request.
MAX_SPAN = 500
# Most questions of a market; the oldest are dropped, and left to the audit.
MAX_QUESTIONS = 1_000


@dataclass(slots=True)
class _Question:
    """A question. `answers`: answers with the stored values; `first_s`: monotonic time of the first of them."""

    begun_s: float
    due_s: float
    answers: int = 0
    first_s: float = 0.0


class Questions:
    """The questions of one market. Times named `_s` are monotonic; an open time identifies a candle."""

    def __init__(self) -> None:
        self._pending: OrderedDict[tuple[SeriesId, int], _Question] = OrderedDict()
        self.asked = 0  # candles for which a frame had other values
        self.settled = 0  # of these, candles for which REST had other values, too

    def __len__(self) -> int:
        return len(self._pending)

    def ask(self, series: SeriesId, times: Iterable[int], now_s: float) -> None:
        """Add questions: frames had other values for these candles. A pending question stays as it is."""
        for time in times:
            self.asked += 1
            if (series, time) not in self._pending:
                self._pending[series, time] = _Question(now_s, now_s)
            if len(self._pending) > MAX_QUESTIONS:
                self._pending.popitem(last=False)

    def due_s(self) -> float | None:
        """When the next request is due; None when nothing is pending."""
        return min((question.due_s for question in self._pending.values()), default=None)

    def next(self, now_s: float) -> tuple[SeriesId, Span] | None:
        """The series and the open times of the request that is due; None when no request is due."""
        due = [(question.due_s, key) for key, question in self._pending.items() if question.due_s <= now_s]
        if not due:
            return None
        _, (series, _) = min(due, key=itemgetter(0))
        times = sorted(time for _, (other, time) in due if other == series)
        last = max(time for time in times if series.timeframe.count(times[0], time) < MAX_SPAN)
        return series, Span(times[0], series.timeframe.next(last))

    def answered(self, series: SeriesId, span: Span, changed: Collection[int], now_s: float) -> None:
        """REST has answered a request.

        series: of the request.
        span: of the request.
        changed: open times of candles whose final rows differ from the stored candles.
        now_s: monotonic seconds.
        """
        for key in self._covered(series, span):
            question = self._pending[key]
            if key[1] in changed:
                self.settled += 1
                del self._pending[key]
            elif question.answers == len(AGAIN_AFTER_S):
                del self._pending[key]
            else:
                question.first_s = now_s if question.answers == 0 else question.first_s
                question.due_s = question.first_s + AGAIN_AFTER_S[question.answers]
                question.answers += 1

    def failed(self, series: SeriesId, span: Span, now_s: float) -> None:
        """REST did not answer a request. Parameters as for `answered`."""
        for key in self._covered(series, span):
            question = self._pending[key]
            question.due_s = now_s + RETRY_S
            if now_s - question.begun_s > GIVE_UP_S:
                del self._pending[key]

    def forget(self, series: SeriesId) -> None:
        """The series is not followed any more."""
        for key in [key for key in self._pending if key[0] == series]:
            del self._pending[key]

    def _covered(self, series: SeriesId, span: Span) -> list[tuple[SeriesId, int]]:
        return [key for key in self._pending if key[0] == series and span.holds(key[1])]

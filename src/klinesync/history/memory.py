"""SourceMemory: where a source has nothing, and what it answered a moment ago. Pure: times are monotonic seconds."""

from __future__ import annotations

from collections import OrderedDict

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.missing import Reason

# How long it is remembered that a source has nothing before a series' first candle, in seconds. What an exchange has
# does change now and then: old history is brought back, a symbol is listed again.
NOTHING_BEFORE_TTL_S = 6 * 3600.0
# Series of which each is remembered; the ones that were noted longest ago are forgotten first.
MAX_REMEMBERED = 10_000


class SourceMemory:
    """What is known of the sources, so that they are not asked again and again."""

    def __init__(self) -> None:
        self._nothing_before: OrderedDict[SeriesId, tuple[Span, float]] = OrderedDict()  # and since when
        self._answered: OrderedDict[tuple[SeriesId, Reason | None], tuple[Span, float]] = OrderedDict()  # and until

    def nothing_before(self, series: SeriesId, now_s: float) -> Span | None:
        """The span right before the first candle in which the source has nothing; None when that is not known."""
        span, since_s = self._nothing_before.get(series, (None, 0.0))
        return span if now_s - since_s < NOTHING_BEFORE_TTL_S else None

    def remember_nothing(self, series: SeriesId, span: Span, now_s: float) -> None:
        """An answer shows that the source has nothing in `span`, which ends with the series' first candle."""
        self._nothing_before[series] = (span, now_s)
        self._nothing_before.move_to_end(series)
        if len(self._nothing_before) > MAX_REMEMBERED:
            self._nothing_before.popitem(last=False)

    def was_answered(self, series: SeriesId, reason: Reason | None, span: Span, now_s: float) -> bool:
        """Whether all of `span` was answered not long ago. `reason`: None for a look into the store."""
        answered, until_s = self._answered.get((series, reason), (Span(0, 0), 0.0))
        return now_s < until_s and answered.start <= span.start and span.end <= answered.end

    def remember_answer(
        self, series: SeriesId, reason: Reason | None, span: Span, until_s: float, now_s: float
    ) -> None:
        """All of `span` was answered: it is not asked for until then, or longer if an answer said so before."""
        if self.was_answered(series, reason, span, now_s) and self._answered[series, reason][1] >= until_s:
            return
        self._answered[series, reason] = (span, until_s)
        self._answered.move_to_end((series, reason))
        if len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)

"""SourceMemory: where a source has no candles, and recent answers. Pure: times are monotonic seconds."""

from __future__ import annotations

from collections import OrderedDict

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.missing import Reason


class SourceMemory:
    """Deduplicates requests: where a source has proved to have nothing, and which spans were answered recently."""

    def __init__(self, limits: HistoryLimits = USUAL_LIMITS) -> None:
        self._limits = limits
        self._nothing_before: OrderedDict[SeriesId, tuple[Span, float]] = OrderedDict()  # the span, and since when
        self._answered: OrderedDict[tuple[SeriesId, Reason | None], tuple[Span, float]] = OrderedDict()  # until when

    def nothing_before(self, series: SeriesId, now_s: float) -> Span | None:
        """The span right before the first stored candle in which the source has nothing; None when unknown."""
        span, since_s = self._nothing_before.get(series, (None, 0.0))
        return span if now_s - since_s < self._limits.nothing_before_ttl_s else None

    def remember_nothing(self, series: SeriesId, span: Span, now_s: float) -> None:
        """Note that the source has nothing in a span. A longer span before the same candle is kept: a read from before
        a write may have the newer part of it requested again.

        series: whose history.
        span: ends with the series' first candle.
        now_s: monotonic seconds.
        """
        known = self.nothing_before(series, now_s)
        if known is not None and known.end == span.end and known.start < span.start:
            return
        self._nothing_before[series] = (span, now_s)
        self._nothing_before.move_to_end(series)
        if len(self._nothing_before) > self._limits.remembered:
            self._nothing_before.popitem(last=False)

    def was_answered(self, series: SeriesId, reason: Reason | None, span: Span, now_s: float) -> bool:
        """Whether all of a span was answered recently.

        series: whose history.
        reason: of the need; None for a lookup in the store.
        span: open times.
        now_s: monotonic seconds.
        """
        answered, until_s = self._answered.get((series, reason), (Span(0, 0), 0.0))
        return now_s < until_s and answered.start <= span.start and span.end <= answered.end

    def remember_answer(
        self, series: SeriesId, reason: Reason | None, span: Span, until_s: float, now_s: float
    ) -> None:
        """Note that all of a span was answered.

        series, reason, span: as for `was_answered`.
        until_s: the answer counts until then, monotonic seconds, or longer if an earlier answer did.
        now_s: monotonic seconds.
        """
        if self.was_answered(series, reason, span, now_s) and self._answered[series, reason][1] >= until_s:
            return
        self._answered[series, reason] = (span, until_s)
        self._answered.move_to_end((series, reason))
        if len(self._answered) > self._limits.remembered:
            self._answered.popitem(last=False)

    def forget_answers(self, series: SeriesId) -> None:
        """Forget the recent answers about a series, because stored candles of it are gone."""
        for reason in (None, *Reason):
            self._answered.pop((series, reason), None)

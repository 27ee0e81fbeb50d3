"""Coverage: requests the candles that a read needs and the store lacks, for later reads.

The read itself does not wait: its needs are submitted to `HistoryService`.
"""

from __future__ import annotations

from collections.abc import Callable

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Urgency
from klinesync.history.missing import READ, Need, Reason, missing_older
from klinesync.history.service import HistoryService
from klinesync.history.tails import TailLimits


class Coverage:
    """Requests the tail of a series that is not followed, and history before the first stored candle.

    history: reads it.
    base_of: the base of a derived series; another series itself.
    covers: whether a base series has any source.
    followed: whether the series is followed, so that its tail comes live.
    exchange_s: the time of its exchange, UTC seconds; None: the exchange has to be asked.
    now_s: the time of its exchange as far as it is known, UTC seconds.
    limits: how much a read may request.
    derived: takes a derived series that is read, and where the page would begin if it were full; returns whether older
        history is read as native candles.
    """

    def __init__(
        self,
        *,
        history: HistoryService,
        base_of: Callable[[SeriesId], SeriesId],
        covers: Callable[[SeriesId], bool],
        followed: Callable[[SeriesId], bool],
        exchange_s: Callable[[SeriesId], float | None],
        now_s: Callable[[SeriesId], float],
        limits: TailLimits,
        derived: Callable[[SeriesId, int | None], bool] = lambda _series, _start: False,
    ) -> None:
        self._history = history
        self._base_of = base_of
        self._covers = covers
        self._followed = followed
        self._exchange_s = exchange_s
        self._now_s = now_s
        self._limits = limits
        self._derived = derived

    def base_of(self, series: SeriesId) -> SeriesId | None:
        """The series whose candles are requested for a read of `series`; None when it has no source."""
        base = self._base_of(series)
        return base if self._covers(base) else None

    def ensure(
        self, series: SeriesId, base: SeriesId, stored: Span | None, page_start: int | None, *, newest: bool
    ) -> None:
        """Request the candles that a read needs and the store lacks; returns at once.

        series: the series that is read.
        base: its base, or itself.
        stored: the stored span of `base`; None when nothing is stored.
        page_start: where the page would begin if it were full; None: it is full.
        newest: whether the page ends with the head.
        """
        if not self._followed(base):
            self._ensure_tail(base, stored)
        filling = newest and self._history.expects(base, Reason.TAIL)  # the tail may fill the page
        if series != base and self._derived(series, None if filling else page_start):
            return
        if page_start is not None and stored is not None and not filling:
            self._ensure_older(series, base, stored, page_start)

    def _ensure_tail(self, base: SeriesId, stored: Span | None) -> None:
        exchange_s = self._exchange_s(base)
        final_s = (self._now_s(base) if exchange_s is None else exchange_s) - self._limits.final_margin_s
        span = self._limits.missing(base, stored, final_s)
        if span is None and exchange_s is None:  # `Tails` asks the exchange for its time
            end = base.timeframe.floor(int(final_s)) if stored is None else stored.end
            span = Span(end, base.timeframe.next(end))
        if span is not None:
            self._history.submit(Need(base, span, Reason.TAIL, READ, Urgency.READ))

    def _ensure_older(self, series: SeriesId, base: SeriesId, stored: Span, page_start: int) -> None:
        kept_from = self._limits.kept_from(base, base.timeframe.shift(stored.end, -1))
        nothing = self._history.nothing_before(base)
        most = self._limits.most_candles
        span = missing_older(series.timeframe, base.timeframe, stored, page_start, most, kept_from, nothing)
        if span is not None:
            self._history.submit(Need(base, span, Reason.OLDER, READ, Urgency.READ))

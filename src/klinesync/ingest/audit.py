"""Audit: requests the newest closed candles of every followed series from REST again, series by series.

Stored values may differ from those of the exchange: a stream may have sent other final values, a revision may have been
missed while disconnected, and REST may have shown a row before it was final. Candles that differ are written as
revisions. Order flow that a stored candle lacks is written too, which is no revision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from klinesync.core.candle import Applied, Candle
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, History, HistoryPage, Urgency
from klinesync.history.reading import read_pages, unreported
from klinesync.ingest.timings import USUAL_AUDIT, AuditLimits
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log

log = Log(__name__)


class Audit:
    """Audits a series every `interval_s` seconds, in turns. `run` is its task.

    history: pages of the exchange.
    series: the followed series that are caught up.
    stored: the span of a series that may be requested; None when nothing is stored.
    not_streamed_since: the given candles without those that the stream sent since a time, in ms of the exchange.
    submit: writes candles.
    now_ms: the exchange's time; None when unknown.
    interval_s: seconds between two audits.
    monotonic: monotonic seconds.
    limits: which candles are requested, and how often.
    """

    def __init__(
        self,
        history: History,
        *,
        series: Callable[[], Iterable[SeriesId]],
        stored: Callable[[SeriesId], Awaitable[Span | None]],
        not_streamed_since: Callable[[SeriesId, Sequence[Candle], int], Sequence[Candle]],
        submit: Callable[[SeriesId, Sequence[Candle], str, Empty], Awaitable[Applied]],
        now_ms: Callable[[SeriesId], int | None],
        interval_s: float,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        limits: AuditLimits = USUAL_AUDIT,
    ) -> None:
        self._monotonic = monotonic
        self._limits = limits
        self._history = history
        self._series = series
        self._stored = stored
        self._not_streamed_since = not_streamed_since
        self._submit = submit
        self._now_ms = now_ms
        self._interval_s = interval_s
        self._audited_s: dict[SeriesId, float] = {}
        self.audits = 0  # finished audits
        self.revised = 0  # candles that they revised
        self.enriched = 0  # candles whose missing order flow they filled in

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            series = self._next(self._monotonic())
            if series is None:
                continue
            try:
                await self.audit(series)
            except (UpstreamError, StoreError) as error:
                log.info("audit.postponed", "the audit is postponed", series=series, error=error)

    def _next(self, now_s: float) -> SeriesId | None:
        """The series whose last audit is the longest ago; None when no audit is due."""
        followed = set(self._series())
        for unfollowed in self._audited_s.keys() - followed:
            del self._audited_s[unfollowed]
        audited_s = {series: self._audited_s.get(series, float("-inf")) for series in followed}
        series = min(followed, key=lambda series: (audited_s[series], str(series)), default=None)
        if series is None or now_s - audited_s[series] < self._limits.again_s:
            return None
        self._audited_s[series] = now_s
        return series

    async def audit(self, series: SeriesId) -> None:
        """Compare the newest candles of a series with those of the exchange. Raises `UpstreamError`, `StoreError`."""
        stored, now_ms = await self._stored(series), self._now_ms(series)
        if stored is None or now_ms is None:
            return
        frame = series.timeframe
        old_s = now_ms // 1000 - self._limits.age_s
        end = min(stored.end, frame.floor(old_s))
        start = max(stored.start, frame.shift(end, -self._limits.candles))
        if start >= end:
            return
        pages = self._history(series, start, Errand(Urgency.DEEP), end)
        await read_pages(pages, partial(self._compare, series, old_s * 1000), unreported(series, start))
        self.audits += 1

    async def _compare(self, series: SeriesId, old_ms: int, page: HistoryPage) -> None:
        """Write the candles of a page that the stream has not sent since `old_ms`; other values make a revision."""
        candles = self._not_streamed_since(series, page.candles, old_ms)
        applied = await self._submit(series, candles, "audit", Empty(page.empty, page.proof))
        self.enriched += len(applied.enriched)
        candles = [candle for candle in applied.candles if candle.time not in applied.enriched]
        if candles:
            self.revised += len(candles)
            times = ", ".join(date_text(candle.time) for candle in candles[:5])
            revised = counted(len(candles), "candle")
            log.warning("audit.revised", "the audit found other values of %s: %s", revised, times, series=series)

"""Audit: REST is asked again for the newest closed candles of every followed series, one after the other, for ever.

A stream may have called a candle final with other values than the exchange keeps, a revision may have been told while
nobody listened, and REST itself may have shown a row too early. What differs is written, and so becomes a revision.
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
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log

log = Log(__name__)

# How far back one look reaches: futures pages of up to 100 rows cost the least, and spot pages all the same. Two more
# rows are asked for, which prove the newest.
AUDIT_CANDLES = 97
# Candles younger than this are left alone: REST may lag behind the stream, and the stream's word is the newer one.
AUDIT_AGE_S = 120
# One series is not looked at more often than this.
AUDIT_AGAIN_S = 60.0


class Audit:
    """Looks at one series every `interval_s`, in turns. `series` are those that are followed and caught up; `stored` is
    the stored span of one; `untold_since` leaves out what the stream told later than a time
    (ms); `submit` writes."""

    def __init__(
        self,
        history: History,
        *,
        series: Callable[[], Iterable[SeriesId]],
        stored: Callable[[SeriesId], Awaitable[Span | None]],
        untold_since: Callable[[SeriesId, Sequence[Candle], int], Sequence[Candle]],
        submit: Callable[[SeriesId, Sequence[Candle], str, Empty], Awaitable[Applied]],
        now_ms: Callable[[SeriesId], int | None],
        interval_s: float,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self._monotonic = monotonic
        self._history = history
        self._series = series
        self._stored = stored
        self._untold_since = untold_since
        self._submit = submit
        self._now_ms = now_ms
        self._interval_s = interval_s
        self._looked_at_s: dict[SeriesId, float] = {}
        self.looked = 0
        self.revised = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            one = self._next(self._monotonic())
            if one is None:
                continue
            try:
                await self.look(one)
            except (UpstreamError, StoreError) as error:
                log.info("audit.postponed", "the audit is postponed", series=one, error=error)

    def _next(self, now_s: float) -> SeriesId | None:
        """Who was not looked at for the longest time."""
        followed = set(self._series())
        for gone in self._looked_at_s.keys() - followed:
            del self._looked_at_s[gone]
        chosen = min(followed, key=lambda one: (self._looked_at_s.get(one, float("-inf")), str(one)), default=None)
        if chosen is None or now_s - self._looked_at_s.get(chosen, float("-inf")) < AUDIT_AGAIN_S:
            return None
        self._looked_at_s[chosen] = now_s
        return chosen

    async def look(self, series: SeriesId) -> None:
        """Compare one series' newest candles with the exchange's. Raises `UpstreamError`, `StoreError`."""
        stored, now_ms = await self._stored(series), self._now_ms(series)
        if stored is None or now_ms is None:
            return
        frame = series.timeframe
        old_s = now_ms // 1000 - AUDIT_AGE_S
        end = min(stored.end, frame.floor(old_s))
        start = max(stored.start, frame.shift(end, -AUDIT_CANDLES))
        if start >= end:
            return
        pages = self._history(series, start, Errand(Urgency.DEEP), end)
        await read_pages(pages, partial(self._compare, series, old_s * 1000), unreported(series, start))
        self.looked += 1

    async def _compare(self, series: SeriesId, old_ms: int, page: HistoryPage) -> None:
        """Write the page's candles that the stream has not told at or after `old_ms`: what differs is a revision."""
        candles = self._untold_since(series, page.candles, old_ms)
        applied = await self._submit(series, candles, "audit", Empty(page.empty, page.proof))
        if applied.candles:
            self.revised += len(applied.candles)
            times = ", ".join(date_text(candle.time) for candle in applied.candles[:5])
            revised = counted(len(applied.candles), "candle")
            log.warning("audit.revised", "the audit found other values of %s: %s", revised, times, series=series)

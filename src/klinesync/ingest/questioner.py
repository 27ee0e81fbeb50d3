"""Questioner: requests candles for which a frame and the store have different values from REST, and writes the rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from klinesync.core.candle import Applied, Candle
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, Exchange, HistoryPage, Urgency
from klinesync.history.reading import REST, read_pages, unreported
from klinesync.ingest.questions import PAUSE_S, Questions
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Shortest time between two log lines about questions of a series, in seconds.
LOG_EVERY_S = 60.0


class Questioner:
    """The questions of one market. `run` is its task.

    exchange: its rows decide.
    submit: writes rows of a series, with the name of their source.
    monotonic: monotonic seconds.
    """

    def __init__(
        self,
        exchange: Exchange,
        submit: Callable[[SeriesId, Sequence[Candle], str], Awaitable[Applied]],
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self._monotonic = monotonic
        self._exchange = exchange
        self._submit = submit
        self.questions = Questions()
        self._asked = asyncio.Event()
        self._log_limit = LogLimit(LOG_EVERY_S)

    def ask(self, series: SeriesId, candles: Iterable[Candle]) -> None:
        """Request these candles, for which a frame and the store have different values."""
        now_s = self._monotonic()
        times = [candle.time for candle in candles]
        self.questions.ask(series, times, now_s)
        self._asked.set()
        suppressed = self._log_limit.allow(series, now_s)
        if suppressed is not None:
            log.warning(
                "stream.values_differ",
                "a frame has other values than the stored candle of %s; REST is asked",
                date_text(times[0]),
                series=series,
                suppressed=suppressed,
            )

    async def run(self) -> None:
        """Send due requests, one at a time, until cancelled."""
        while True:
            request = self.questions.next(self._monotonic())
            if request is None:
                self._asked.clear()
                due_s = self.questions.due_s()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_s):
                        await self._asked.wait()
                continue
            await self._request(*request)
            await asyncio.sleep(PAUSE_S)

    async def _request(self, series: SeriesId, span: Span) -> None:
        """Send a request, and write its rows."""
        changed: set[int] = set()
        try:
            pages = self._exchange.history(series, span.start, Errand(Urgency.FILL), span.end)
            await read_pages(pages, partial(self._write, series, changed), unreported(series, span.start))
        except (UpstreamError, StoreError) as error:
            log.info("stream.check_postponed", "the check over REST is postponed", series=series, error=error)
            self.questions.failed(series, span, self._monotonic())
        except BaseException:  # a defect, or cancellation: the question stays pending
            self.questions.failed(series, span, self._monotonic())
            raise
        else:
            self.questions.answered(series, span, changed, self._monotonic())

    async def _write(self, series: SeriesId, changed: set[int], page: HistoryPage) -> None:
        """Write the rows, and add the open times of candles whose stored values changed to `changed`. Order flow that
        was missing decides nothing: REST may still lag behind the frame."""
        applied = await self._submit(series, page.candles, REST)
        changed.update(candle.time for candle in applied.candles if candle.time not in applied.enriched)

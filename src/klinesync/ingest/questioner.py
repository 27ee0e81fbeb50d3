"""Questioner: asks REST about stored candles of which frames told other values, and writes what REST has."""

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

# Of questions one in this time (ours) is logged, for each series.
LOG_EVERY_S = 60.0


class Questioner:
    """The questions of one market. `run` is its one task.

    `exchange`: whose rows decide. `submit`: writes the rows of a series, from the source of that name.
    `monotonic`: our clock.
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
        """A frame told these candles, which are stored with other values."""
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
        """Ask what is due, one request at a time, until cancelled."""
        while True:
            request = self.questions.next(self._monotonic())
            if request is None:
                self._asked.clear()
                due_s = self.questions.due_s()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_s):
                        await self._asked.wait()
                continue
            await self._put(*request)
            await asyncio.sleep(PAUSE_S)

    async def _put(self, series: SeriesId, span: Span) -> None:
        """One request, and what becomes of its rows."""
        changed: set[int] = set()
        try:
            pages = self._exchange.history(series, span.start, Errand(Urgency.FILL), span.end)
            await read_pages(pages, partial(self._write, series, changed), unreported(series, span.start))
        except (UpstreamError, StoreError) as error:
            log.info("stream.check_postponed", "the check over REST is postponed", series=series, error=error)
            self.questions.failed(series, span, self._monotonic())
        except BaseException:  # a defect, or the end of the task: the question stands
            self.questions.failed(series, span, self._monotonic())
            raise
        else:
            self.questions.answered(series, span, changed, self._monotonic())

    async def _write(self, series: SeriesId, changed: set[int], page: HistoryPage) -> None:
        """Store the rows; the open times of those that were stored with other values are `changed`."""
        applied = await self._submit(series, page.candles, REST)
        changed.update(candle.time for candle in applied.candles)

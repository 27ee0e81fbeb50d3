"""HistoryPorts: the sources, the store, progress and limits that all readers of history share."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from klinesync.core.candle import MAX_TIME
from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import History, HistoryWatch, Reach
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.pending import USUAL_RETRIES, Pending, RetryPolicy
from klinesync.history.reading import Shelf
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log, LogEvent
from klinesync.runtime.log_limit import LogLimit
from klinesync.storage.database import Database

log = Log(__name__)

# Shortest time between two warnings of one event about one series, in seconds.
LOG_EVERY_S = 600.0


async def _itself(series: SeriesId) -> SeriesId | None:
    return series


@dataclass(frozen=True, slots=True)
class HistoryPorts:
    """The sources, the store, progress and limits of reading history.

    history: pages of the exchange (`Exchange.history`).
    pipeline: writes candles.
    database: has stored spans and gaps.
    watch: follows the progress of each reading.
    rng: jitter of the retry delays.
    retries: when history that could not be read is requested again.
    limits: of the queue, of one request, and of what is remembered.
    deep_watch: follows the progress of explicit backfills; None: `watch` does.
    shelves: history files, searched in this order before the exchange is asked.
    covers: whether a series has any source.
    asks: whether the exchange of a series may be asked for history.
    native_source: the series of the exchange that gives the native candles of a derived series, by default the series
        itself; None: the exchange has none. Raises `UpstreamError`.
    has_clients: whether a client follows a series: its needs are retried however long ago it was read.
    kept_from: the open time before which retention trims a series with that head; 0: retention is off.
    now_s: the exchange's time as far as it is known, UTC seconds; later candles of files are left out.
    reach: how far back the exchange's history of a series goes; None: to the first candle, or unknown.
    monotonic: clock of the queue.
    bulkheads: contain defects.
    logged: rate limit of warnings.
    """

    history: History
    pipeline: IngestPipeline
    database: Database
    watch: HistoryWatch
    rng: random.Random
    retries: RetryPolicy = USUAL_RETRIES
    limits: HistoryLimits = USUAL_LIMITS
    deep_watch: HistoryWatch | None = None
    shelves: Sequence[Shelf] = ()
    covers: Callable[[SeriesId], bool] = lambda _: True
    asks: Callable[[SeriesId], bool] = lambda _: True
    native_source: Callable[[SeriesId], Awaitable[SeriesId | None]] = _itself
    has_clients: Callable[[SeriesId], bool] = lambda _: False
    kept_from: Callable[[SeriesId, int], int] = lambda _series, _head: 0
    now_s: Callable[[SeriesId], float] = lambda _: float(MAX_TIME)
    reach: Callable[[SeriesId], Reach | None] = lambda _: None
    monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s
    bulkheads: Bulkheads = field(default_factory=Bulkheads)
    logged: LogLimit = field(default_factory=lambda: LogLimit(LOG_EVERY_S))

    async def stored(self, series: SeriesId) -> tuple[Span | None, list[Gap]]:
        """The stored span (None when nothing is stored), and all rows of the gap ledger. Raises `StoreError`."""
        return await self.database.read(lambda store: (store.span(series), store.gaps(series)))

    def after_fruitless(self, pending: Pending, at_least_s: float = 0.0, *, out_of_reach: bool = False) -> Pending:
        """`RetryPolicy.after_fruitless`, now."""
        now_s = self.monotonic()
        retry = self.retries.after_fruitless(pending, now_s, self.rng, at_least_s, out_of_reach=out_of_reach)
        return self._while_followed(retry)

    def after_no_answer(self, pending: Pending, at_least_s: float) -> Pending:
        """`RetryPolicy.after_no_answer`, now."""
        return self._while_followed(self.retries.after_no_answer(pending, self.monotonic(), self.rng, at_least_s))

    def after_no_source(self, pending: Pending) -> Pending:
        """`RetryPolicy.after_no_source`, now."""
        return self.retries.after_no_source(pending, self.monotonic(), self.rng)

    def _while_followed(self, retry: Pending) -> Pending:
        """The need, still wanted when it is due if a client follows its series."""
        if retry.due_s <= retry.wanted_until_s or not self.has_clients(retry.series):
            return retry
        return replace(retry, wanted_until_s=retry.due_s)

    def warn(self, event: LogEvent, series: SeriesId, sentence: str, *values: object, **fields: object) -> None:
        """Log a warning, as `Log.warning`, at most once in `LOG_EVERY_S` for a series and an event."""
        suppressed = self.logged.allow((series, event), self.monotonic())
        if suppressed is not None:
            log.warning(event, sentence, *values, series=series, suppressed=suppressed, **fields)

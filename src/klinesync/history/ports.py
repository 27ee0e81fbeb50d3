"""HistoryPorts: what all who read missing candles share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from klinesync.core.candle import MAX_TIME
from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import History, HistoryWatch, Reach
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


@dataclass(frozen=True, slots=True)
class HistoryPorts:
    """The sources of candles, the store, and who is told.

    history: pages of the exchange (`Exchange.history`).
    pipeline: where candles are written.
    database: where stored spans and gaps are looked up.
    watch: is told of each reading.
    rng: jitter of the retry delays.
    deep_watch: is told of explicit backfills; None: `watch` is.
    shelves: files, looked into in this order before the exchange is asked.
    covers: whether anything of a series can be had at all.
    asks: whether the exchange of a series may be asked for history.
    kept_from: before which open time a series with that head is trimmed; 0: retention is off.
    now_s: the exchange's time as far as is known, UTC seconds: files may have candles of the future.
    reach: how far back the exchange's history of a series goes; None: all the way, or unknown.
    monotonic: our clock, by which the queue goes.
    bulkheads: contain defects.
    logged: keeps warnings apart.
    """

    history: History
    pipeline: IngestPipeline
    database: Database
    watch: HistoryWatch
    rng: random.Random
    deep_watch: HistoryWatch | None = None
    shelves: Sequence[Shelf] = ()
    covers: Callable[[SeriesId], bool] = lambda _: True
    asks: Callable[[SeriesId], bool] = lambda _: True
    kept_from: Callable[[SeriesId, int], int] = lambda _series, _head: 0
    now_s: Callable[[SeriesId], float] = lambda _: float(MAX_TIME)
    reach: Callable[[SeriesId], Reach | None] = lambda _: None
    monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s
    bulkheads: Bulkheads = field(default_factory=Bulkheads)
    logged: LogLimit = field(default_factory=lambda: LogLimit(LOG_EVERY_S))

    async def stored(self, series: SeriesId) -> tuple[Span | None, list[Gap]]:
        """The stored span (None when nothing is stored), and all rows of the gap ledger. Raises `StoreError`."""
        return await self.database.read(lambda store: (store.span(series), store.gaps(series)))

    def warn(self, event: LogEvent, series: SeriesId, sentence: str, *values: object, **fields: object) -> None:
        """Log an event of a series, as `Log.warning`; limited in rate by series and event."""
        suppressed = self.logged.allow((series, event), self.monotonic())
        if suppressed is not None:
            log.warning(event, sentence, *values, series=series, suppressed=suppressed, **fields)

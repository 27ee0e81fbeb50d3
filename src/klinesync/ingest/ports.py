"""IngestPorts: the ports that supervisors, jobs and readers of tails share."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from klinesync.core.candle import Forming
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.contact import StreamStatus
from klinesync.exchanges.exchange import HistoryWatch
from klinesync.history.missing import Need
from klinesync.history.reading import TailFiles
from klinesync.history.series_events import SeriesEvents
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestPorts:
    """The ports of ingest.

    pipeline: writes candles.
    stored: the stored span of a series; None when nothing is stored.
    show: publishes forming candles.
    base_of: the base of a derived series; another series itself.
    notice: publishes each change of a stream's state.
    heal: queues the need of a gap or an older span, if gaps are healed.
    heal_declared: queues the declared gaps of a symbol that is listed again, if gaps are healed.
    watch: makes a watch of readings of history.
    events: notes events of series.
    rng: jitter.
    clock: of this machine.
    bulkheads: contain defects.
    files: read before a first history is requested from the exchange; None: there are no files.
    """

    pipeline: IngestPipeline
    stored: Callable[[SeriesId], Awaitable[Span | None]]
    show: Callable[[Forming], None]
    base_of: Callable[[SeriesId], SeriesId]
    notice: Callable[[SeriesId, StreamStatus], None]
    heal: Callable[[Need], None]
    heal_declared: Callable[[SeriesId], None]
    watch: Callable[[], HistoryWatch]
    events: SeriesEvents
    rng: random.Random
    clock: Clock
    bulkheads: Bulkheads
    files: TailFiles | None

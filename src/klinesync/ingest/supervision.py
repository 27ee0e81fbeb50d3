"""Supervision: makes the supervisor of each exchange, all with the same ports and settings."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from klinesync.core.candle import Forming
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.contact import StreamStatus
from klinesync.exchanges.exchange import Exchange, HistoryWatch
from klinesync.history.missing import Need
from klinesync.history.reading import TailFiles
from klinesync.history.series_events import SeriesEvents
from klinesync.ingest.followed import FollowSettings
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import Clock

# Is asked to read a span of a series, with the reason.
Heal = Callable[[Need], None]
# Is asked to read all declared gaps of a series.
HealDeclared = Callable[[SeriesId], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What supervisors share. See `IngestSupervisor` for the ports.

    watch: makes what is told of the readings of one supervisor.
    """

    pipeline: IngestPipeline
    stored: Callable[[SeriesId], Awaitable[Span | None]]
    show: Callable[[Forming], None]
    base_of: Callable[[SeriesId], SeriesId]
    notice: Callable[[SeriesId, StreamStatus], None]
    heal: Heal | None
    heal_declared: HealDeclared | None
    watch: Callable[[], HistoryWatch]
    events: SeriesEvents
    settings: FollowSettings
    rng: random.Random
    clock: Clock
    bulkheads: Bulkheads
    files: TailFiles | None

    def supervisor(self, exchange: Exchange) -> IngestSupervisor:
        """A new supervisor of the exchange."""
        return IngestSupervisor(
            exchange=exchange,
            pipeline=self.pipeline,
            stored=self.stored,
            show=self.show,
            base_of=self.base_of,
            notice=self.notice,
            heal=self.heal,
            heal_declared=self.heal_declared,
            history_watch=self.watch(),
            events=self.events,
            settings=replace(self.settings, one_list_decides=exchange.one_list_decides),
            rng=self.rng,
            clock=self.clock,
            bulkheads=self.bulkheads,
            files=self.files,
        )

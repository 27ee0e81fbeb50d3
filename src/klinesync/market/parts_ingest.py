"""The parts that follow series: supervisors, start-up sweep, on-demand jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from klinesync.core.series_id import SeriesId
from klinesync.ingest.ports import IngestPorts
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.market.parts_exchanges import ExchangeParts
from klinesync.market.parts_history import HistoryParts
from klinesync.market.parts_writing import WritingParts
from klinesync.market.settings import IngestSettings
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.on_demand import OnDemand
from klinesync.market_data.startup_sync import StartupSync


@dataclass(frozen=True, slots=True)
class IngestParts:
    """`on_demand`: None when subscriptions start no jobs."""

    startup: StartupSync
    on_demand: OnDemand | None


def build_ingest(
    settings: IngestSettings,
    around: Surroundings,
    writing: WritingParts,
    exchange: ExchangeParts,
    history: HistoryParts,
    followed: Iterable[SeriesId],
) -> IngestParts:
    """The parts that follow series. Binds the supervisors of the exchanges.

    settings: how series are followed.
    around: clock, jitter, bulkheads.
    writing, exchange, history: the parts below.
    followed: base series to follow from the start.
    """
    ports = IngestPorts(
        pipeline=writing.pipeline,
        stored=history.reader.stored,
        show=writing.forming.show,
        base_of=writing.derived.base_of,
        notice=writing.teller.stream,
        heal=history.backfill.heal,
        heal_declared=history.backfill.retry_declared,
        watch=history.board.watch,
        events=writing.events,
        rng=around.rng,
        clock=around.clock,
        bulkheads=around.bulkheads,
        files=history.files,
    )
    supervisors = exchange.supervisors
    follow = replace(settings.follow, timings=around.tuning.follow, audit=around.tuning.audit)
    supervisors.bind(partial(IngestSupervisor, ports=ports, settings=follow))
    startup = StartupSync(
        series=followed,
        follow=supervisors.follow,
        caught_up=supervisors.caught_up,
        refresh=writing.pipeline.refresh_series,
        monotonic=around.clock.monotonic_s,
        request_declared=history.backfill.request_declared,
        bulkheads=around.bulkheads,
        retry=around.tuning.startup_retry,
    )
    on_demand = None
    if settings.on_demand:
        on_demand = OnDemand(supervisors, history.scope, writing.derived, history.derived_history, history.coverage)
    return IngestParts(startup, on_demand)

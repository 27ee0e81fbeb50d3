"""The parts that write candles and publish them: pipeline, derived series, ledgers, hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.core.errors import BadFlag, Rejected
from klinesync.core.timeframe import Timeframe
from klinesync.factor.graph import FactorGraph
from klinesync.factor.plugin import FactorSettings
from klinesync.factor.probe import refuse_broken
from klinesync.factor.registry import load_factors
from klinesync.history.event_keeper import EventKeeper
from klinesync.history.event_log import EventLog
from klinesync.history.series_events import Clocks, SeriesEvents
from klinesync.market.settings import LedgerSettings, WritingSettings
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.derived_redo import DerivedRedo
from klinesync.market_data.derived_services import DerivedForming
from klinesync.market_data.retention import Retention
from klinesync.market_data.teller import Teller
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.registry import load_overlays
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import RETRY, LedgerStep
from klinesync.pipelines.publishing import Publisher
from klinesync.pipelines.watchdog import Watchdog
from klinesync.storage.database import Database
from klinesync.ws.hub import CandleHub


@dataclass(frozen=True, slots=True)
class WritingParts:
    """`retention`: None when no candles are deleted."""

    database: Database
    derived: DerivedStep
    ledger: LedgerStep
    hub: CandleHub
    forming: DerivedForming
    teller: Teller
    publisher: Publisher
    pipeline: IngestPipeline
    events: SeriesEvents
    event_keeper: EventKeeper
    derived_redo: DerivedRedo
    retention: Retention | None


def build_writing(settings: WritingSettings, around: Surroundings, database: Database, clocks: Clocks) -> WritingParts:
    """The pipeline; the subscribers of its publisher are bound later.

    settings: how candles are written.
    around: clock and bulkheads.
    database: the store.
    clocks: the exchanges' clocks by exchange and market, for the times of events.

    Raises `BadFactor`, `BadOverlay`, `BadFlag`.
    """
    derived = derived_step(settings.derived_base, settings.derived_targets)
    ledger = ledger_step(settings.ledger, around.tuning.ledger_retry)
    hub = CandleHub(around.bulkheads, around.clock.monotonic_s, around.tuning.clients)
    teller = Teller(hub, derived, around.clock)
    log = EventLog()
    events = SeriesEvents(
        log,
        clocks=clocks,
        wall_s=around.clock.wall_s,
        monotonic=around.clock.monotonic_s,
        bulkheads=around.bulkheads,
        derives=derived.derives,
    )
    publisher = Publisher(around.bulkheads)
    pipeline = IngestPipeline(
        database,
        derived,
        ledger,
        publisher.publish,
        around.clock.wall_s,
        tell=teller.ledger,
        committed=events.committed,
        limits=settings.limits,
        monotonic=around.clock.monotonic_s,
    )
    retention = None
    if settings.retention_days:
        retention = Retention(
            database, ledger, derived.base, derived.targets, settings.retention_days, around.tuning.trimming
        )
    return WritingParts(
        database=database,
        derived=derived,
        ledger=ledger,
        hub=hub,
        forming=DerivedForming(hub, database, derived, around.bulkheads),
        teller=teller,
        publisher=publisher,
        pipeline=pipeline,
        events=events,
        event_keeper=EventKeeper(database, log, pipeline.live_waits),
        derived_redo=DerivedRedo(pipeline, around.clock.monotonic_s),
        retention=retention,
    )


def derived_step(base: Timeframe, targets: Sequence[Timeframe]) -> DerivedStep:
    """The derived timeframes. Raises `BadFlag` for a timeframe that cannot be computed from `base`."""
    try:
        return DerivedStep(base, targets)
    except Rejected as error:
        raise BadFlag("derived_timeframes", str(error)) from None


def ledger_step(settings: LedgerSettings, retry: Backoff = RETRY) -> LedgerStep:
    """The registered factors and overlays. `retry`: backoff before a ledger that could not be advanced is tried again.
    Raises `BadFactor`, `BadOverlay`, `BadFlag`."""
    names = tuple(indicator.name for indicator in settings.indicators)
    windows = settings.pivot_window_major, settings.pivot_window_minor
    factors = FactorGraph(load_factors(FactorSettings(*windows, (*names, *settings.factors))), names)
    for name in settings.factors:
        if name not in factors.names:
            raise BadFlag("indicators", f"the built-in factor {name} is not registered; install klinesync again")
    guard = Watchdog()
    with guard:
        refuse_broken(factors)
    overlays = OverlayGraph(load_overlays(), factors.names)
    most = settings.advance_max_candles
    return LedgerStep(factors, overlays, settings.indicators, max_candles=most, guard=guard, retry=retry)

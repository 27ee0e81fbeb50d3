"""The services of market data, composed by `MarketDataOrchestrator`, and the front."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from klinesync.market.bodies import BodyBudget
from klinesync.market.front import DebugApi, FormingIngest, Front
from klinesync.market.inspection import Inspection, Parts
from klinesync.market.parts_exchanges import ExchangeParts
from klinesync.market.parts_history import HistoryParts
from klinesync.market.parts_ingest import IngestParts
from klinesync.market.parts_writing import WritingParts
from klinesync.market.settings import ServiceSettings
from klinesync.market.stopping import Requests
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.explain import ExplainService
from klinesync.market_data.factor_services import FactorReader
from klinesync.market_data.health_service import HealthService, later_than_usual_s
from klinesync.market_data.ingest_service import MarketIngestService
from klinesync.market_data.orchestrator import MarketDataOrchestrator
from klinesync.market_data.series_health import SeriesHealthService
from klinesync.market_data.status_service import StatusService, market_facts, restarts
from klinesync.market_data.top_markets import TopMarkets
from klinesync.market_data.ws_services import WsSubscriptionCoordinator


@dataclass(frozen=True, slots=True)
class ServedParts:
    """The parts below the services."""

    around: Surroundings
    writing: WritingParts
    exchange: ExchangeParts
    history: HistoryParts
    ingest: IngestParts


def build_market_data(settings: ServiceSettings, parts: ServedParts) -> MarketDataOrchestrator:
    """The services of market data, composed."""
    around, writing, exchange, history = parts.around, parts.writing, parts.exchange, parts.history
    supervisors, registry, database = exchange.supervisors, exchange.registry, writing.database
    health = HealthService(
        database=database,
        base_of=writing.derived.base_of,
        check_known=history.reader.check_known,
        exchange_s=exchange.time.known_s,
        wall_s=around.clock.wall_s,
        stream=supervisors.status,
        board=history.board,
        backfill=history.backfill,
        startup=parts.ingest.startup,
        first_history_due=supervisors.first_history_due,
        late_s=partial(later_than_usual_s, supervisors.final_margin_s, settings.usual_margin_s),
        trouble=supervisors.trouble,
        grace_s=settings.health_grace_s,
        recent_s=settings.health_recent_s,
    )
    status = StatusService(
        database=database,
        health=health,
        followed=supervisors.followed,
        markets=partial(market_facts, supervisors.contacts, registry.made),
        queued_candles=writing.pipeline.queued_candles,
        now_s=exchange.time.service_s,
        ingest=settings.follows,
        damaged=database.damage.sentence,
        restarts=partial(restarts, around.bulkheads, around.clock),
        scrub=history.scrub.progress,
        monotonic=around.clock.monotonic_s,
        max_streams=around.tuning.status_streams,
    )
    subscriptions = WsSubscriptionCoordinator(
        writing.hub,
        history.reader,
        supervisors.status,
        parts.ingest.on_demand,
        exchange.time.now_s,
        around.bulkheads,
        around.clock.monotonic_s,
    )
    return MarketDataOrchestrator(
        reader=history.reader,
        ingest=MarketIngestService(writing.pipeline, exchange.time),
        backfill=history.backfill,
        derived=writing.derived,
        factors=FactorReader(database, writing.ledger, settings.indicators, history.reader.check_known),
        health=health if settings.health else None,
        explain=ExplainService(
            database=database,
            health=health,
            base_of=writing.derived.base_of,
            stream=supervisors.status,
            history=history.backfill,
            events=writing.events,
            refusal=registry.timeframe_refusal,
            hint=writing.derived.hint,
            monotonic=around.clock.monotonic_s,
        ),
        status=status,
        top_markets=TopMarkets(registry, clock=around.clock, limits=around.tuning.top_markets),
        subscriptions=subscriptions,
        hub=writing.hub,
        whitelist=settings.listed,
    )


def build_front(settings: ServiceSettings, parts: ServedParts) -> Front:
    """The front: guard, inspection and limits."""
    writing, history, supervisors = parts.writing, parts.history, parts.exchange.supervisors
    now_s, clock, tuning = parts.exchange.time.now_s, parts.around.clock, parts.around.tuning
    inspected = Parts(
        database=writing.database,
        pipeline=writing.pipeline,
        ledger=writing.ledger,
        registry=parts.exchange.registry,
        supervisors=supervisors,
        healing=history.backfill.working_on,
        sweep=parts.ingest.startup.progress,
        hub=writing.hub,
        now_s=now_s,
        clock=clock,
        grace_s=settings.health_grace_s,
        scrub=history.scrub.progress,
        healed=history.healer.healed,
        defects=parts.around.bulkheads.counts,
    )
    debug = None
    if settings.debug:
        health = SeriesHealthService(
            database=writing.database,
            base_of=writing.derived.base_of,
            check_known=history.reader.check_known,
            now_s=now_s,
            working_on=history.backfill.working_on,
        )
        debug = DebugApi(supervisors, health, FormingIngest(writing.forming.show, writing.derived, now_s))
    return Front(
        settings.guard,
        Inspection(inspected, tuning.store_facts_ttl_s),
        debug,
        bodies=BodyBudget(tuning.bodies, clock.monotonic_s),
        requests=Requests(clock.monotonic_s),
        connections=tuning.connections,
    )

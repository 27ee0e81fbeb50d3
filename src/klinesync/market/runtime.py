"""MarketRuntime: the running parts. `async with` is the order in which they start, and its reverse the stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType

from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.ingest.exchanges import Exchanges
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.market.front import Front
from klinesync.market_data.backfill import BackfillService
from klinesync.market_data.coverage import Coverage
from klinesync.market_data.derived_redo import DerivedRedo
from klinesync.market_data.derived_services import DerivedForming, DerivedHistory
from klinesync.market_data.factor_services import FactorReader
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.ingest_service import MarketIngestService
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.retention import Retention
from klinesync.market_data.startup_sync import StartupSync
from klinesync.market_data.status_service import StatusService
from klinesync.market_data.store_scrub import StoreScrub
from klinesync.market_data.top_markets import TopMarkets
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.storage.database import Database
from klinesync.ws.hub import CandleHub

log = logging.getLogger(__name__)

# How often a store that could not be written is tried.
STORE_PROBE_S = 5.0


class MarketRuntime:
    """What the routes use. One TaskGroup carries every long-lived task; when one breaks, the service stops.

    `resources` are entered first and left last, also when the store cannot be opened.
    """

    def __init__(
        self,
        *,
        database: Database,
        resources: Sequence[AbstractAsyncContextManager[object]],
        pipeline: IngestPipeline,
        derived: DerivedStep,
        forming: DerivedForming,
        derived_history: DerivedHistory,
        retention: Retention | None,
        hub: CandleHub,
        supervisor: IngestSupervisor,
        exchanges: Exchanges,
        backfill: BackfillService,
        coverage: Coverage | None,
        front: Front,
        startup: StartupSync,
        scrub: StoreScrub,
        derived_redo: DerivedRedo,
        health: HealthService | None,
        status: StatusService,
        top_markets: TopMarkets,
        reader: CandleReader,
        factors: FactorReader,
        ingest: MarketIngestService,
        coordinator: WsSubscriptionCoordinator,
        whitelist: Sequence[SeriesId],
    ) -> None:
        self.reader = reader
        self.factors = factors
        self.ingest = ingest
        self.coordinator = coordinator
        self.hub = hub
        self.derived = derived
        self.whitelist = tuple(whitelist)
        self._database = database
        self._resources = tuple(resources)
        self._pipeline = pipeline
        self._forming = forming
        self._derived_history = derived_history
        self._retention = retention
        self.supervisor = supervisor
        self.exchanges = exchanges
        self.health = health
        self.status = status
        self.top_markets = top_markets
        self.front = front
        self._backfill = backfill
        self._coverage = coverage
        self.startup = startup
        self._scrub = scrub
        self._derived_redo = derived_redo
        self._stack = AsyncExitStack()
        self._started = False

    async def __aenter__(self) -> MarketRuntime:
        async with AsyncExitStack() as stack:
            for resource in self._resources:
                await stack.enter_async_context(resource)
            await stack.enter_async_context(self._database)
            await self._derived_redo.settle()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._pipeline.drain)
            write = group.create_task(self._pipeline.run(), name="pipeline")
            stack.push_async_callback(_cancel, write)
            form = group.create_task(self._forming.run(), name="derived forming")
            stack.push_async_callback(_cancel, form)
            supervise = group.create_task(self.supervisor.run(), name="supervisor")
            stack.push_async_callback(_cancel, supervise)
            exchanges = group.create_task(self.exchanges.run(), name="other exchanges")
            stack.push_async_callback(_cancel, exchanges)
            follow = group.create_task(self.startup.run(), name="start-up sweep")
            stack.push_async_callback(_cancel, follow)
            heal = group.create_task(self._backfill.run(), name="backfill")
            stack.push_async_callback(_cancel, heal)
            look_after = group.create_task(self._derived_history.run(), name="derived histories")
            stack.push_async_callback(_cancel, look_after)
            if self._coverage is not None:
                cover = group.create_task(self._coverage.run(), name="coverage")
                stack.push_async_callback(_cancel, cover)
            if self._retention is not None:
                trim = group.create_task(self._retention.run(), name="retention")
                stack.push_async_callback(_cancel, trim)
            redo = group.create_task(self._derived_redo.run(), name="derived redo")
            stack.push_async_callback(_cancel, redo)
            scrub = group.create_task(self._scrub.run(), name="store scrub")
            stack.push_async_callback(_cancel, scrub)
            probe = group.create_task(self._probe_store(), name="store probe")
            stack.push_async_callback(_cancel, probe)
            self._stack = stack.pop_all()
        self._started = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._started = False
        return await self._stack.__aexit__(kind, error, trace)

    @property
    def backfill(self) -> BackfillService:
        """Reads history on request."""
        return self._backfill

    async def unready(self) -> str | None:
        """What keeps the service from being ready; None when it has started and its store is read and written."""
        if not self._started:
            return "not started"
        try:
            await self._database.read(lambda _: None)
        except StoreError:
            return "the store cannot be read"
        return None if self._database.write_error is None else "the store cannot be written"

    async def _probe_store(self) -> None:
        """Be there something to write or not: look whether the store is still in its place, and after a failed write
        find out when the store can be written again. A trouble is logged when it begins or changes."""
        logged: str | None = None
        while True:
            await asyncio.sleep(STORE_PROBE_S)
            try:
                if self._database.write_error is None:
                    await self._database.check()
                    continue
                await self._database.probe()
            except StoreError as error:
                if str(error) != logged:
                    logged = str(error)
                    log.error("store_probe_failed %s", error)
            else:
                logged = None
                log.warning("the store can be written again")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])

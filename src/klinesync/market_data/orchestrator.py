"""MarketDataOrchestrator: composes the services of market data, for routes and sockets."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.requested import BackfillProgress
from klinesync.history.service import HistoryService
from klinesync.market_data.explain import ExplainService
from klinesync.market_data.factor_services import FactorReader
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.ingest_service import Checked, MarketIngestService
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.status_service import StatusService
from klinesync.market_data.top_markets import TopMarkets
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.ws.hub import CandleHub


class MarketDataOrchestrator:
    """The services of market data. The work of a single service is called on its attribute; methods here combine
    services.

    reader: reads candles.
    ingest: takes closed candles from outside.
    backfill: reads history on request.
    derived: the derived timeframes, and their base.
    factors: reads factors and drawings.
    health: judges series; None: switched off.
    explain: explains missing candles.
    status: judges the service.
    top_markets: ranks symbols.
    subscriptions: serves the clients of sockets.
    hub: has these clients.
    whitelist: the series that are followed for as long as the service runs.
    """

    def __init__(
        self,
        *,
        reader: CandleReader,
        ingest: MarketIngestService,
        backfill: HistoryService,
        derived: DerivedStep,
        factors: FactorReader,
        health: HealthService | None,
        explain: ExplainService,
        status: StatusService,
        top_markets: TopMarkets,
        subscriptions: WsSubscriptionCoordinator,
        hub: CandleHub,
        whitelist: Sequence[SeriesId],
    ) -> None:
        self.reader = reader
        self.ingest = ingest
        self.backfill = backfill
        self.derived = derived
        self.factors = factors
        self.health = health
        self.explain = explain
        self.status = status
        self.top_markets = top_markets
        self.subscriptions = subscriptions
        self.hub = hub
        self.whitelist = tuple(whitelist)

    async def ingest_candles_closed(self, series: SeriesId, candles: Sequence[Candle]) -> bool:
        """Store closed candles of one series, all or none; returns after the commit. Returns whether the factors or
        overlays of the series are known to lag behind its candles.

        Raises `BadCandle`, `DerivedSeries`, and `StoreError` when nothing was stored.
        """
        return await self.ingest_checked(self.ingest.check(series, candles, self.ingest.now(series)))

    async def ingest_checked(self, checked: Checked) -> bool:
        """As `ingest_candles_closed`, for candles that `ingest.check` has validated: of many candles in a thread."""
        await self.ingest.store(checked)
        return self.factors.lagging(checked.series)

    async def start_backfill(self, series: SeriesId, span: Span) -> BackfillProgress:
        """Begin an explicit backfill of a series, or of the base of a derived series. Returns the first progress.

        Raises `UnknownSeries`, `UpstreamError`, `StoreError`.
        """
        base = self.derived.base_of(series)
        await self.reader.check_known(base)
        return await self.backfill.start(base, span)

    @property
    def is_full(self) -> bool:
        """Whether no further WebSocket client is taken."""
        return self.hub.is_full

    def end_streams(self) -> None:
        """End every event stream, because the service stops."""
        self.top_markets.end()
        self.status.streams.end()

    async def end_sockets(self) -> None:
        """Close every socket with 1001 at once, because the service stops. Clients resume elsewhere."""
        await self.hub.end(0)

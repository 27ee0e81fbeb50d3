"""MarketDataOrchestrator: the services of market data, composed, and the one face that routes and sockets call."""

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
from klinesync.market_data.ingest_service import MarketIngestService
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.status_service import StatusService
from klinesync.market_data.top_markets import TopMarkets
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.ws.hub import CandleHub


class MarketDataOrchestrator:
    """Market data as the front door sees it. What one service does alone is asked of that service, which is an
    attribute here; what takes several is a method.

    reader: reads candles.
    ingest: takes closed candles from outside.
    backfill: reads history on request.
    derived: the derived timeframes, and their base.
    factors: reads factors and drawings.
    health: judges series; None where that is switched off.
    explain: tells why candles are (not) there.
    status: judges the service.
    top_markets: ranks symbols.
    subscriptions: serve the clients of sockets.
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

    async def read_candles(self, series: SeriesId, since: int | None, before: int | None, limit: int) -> bytes:
        """A page of closed candles, encoded. What it lacks may be fetched, for a later read.

        series: whose candles.
        since, before: open times, exclusive; at most one of them.
        limit: most candles.

        Raises `Rejected` when both are given, `UnknownSeries`, `UpstreamError`, `StoreError`.
        """
        return await self.reader.page(series, since, before, limit)

    async def ingest_candles_closed(self, series: SeriesId, candles: Sequence[Candle]) -> bool:
        """Store closed candles of one series, all or none; returns after the commit. Whether it is known that the
        factors or overlays of the series lag behind its candles.

        Raises `BadCandle`, `DerivedSeries`, and `StoreError` when nothing was stored.
        """
        await self.ingest.ingest_candles_closed(series, candles)
        return self.factors.lagging(series)

    async def start_backfill(self, series: SeriesId, span: Span) -> BackfillProgress:
        """Have missing history read: that of the base, where `series` is a derived one. How it stands when it begins.

        Raises `UnknownSeries`, `UpstreamError`, `StoreError`.
        """
        base = self.derived.base_of(series)
        await self.reader.check_known(base)
        return await self.backfill.start(base, span)

    @property
    def clients(self) -> int:
        """How many clients are connected to sockets."""
        return self.hub.clients

    def end_streams(self) -> None:
        """End every event stream: the service stops."""
        self.top_markets.end()
        self.status.end()

    async def end_sockets(self) -> None:
        """Close every socket with 1001, at once: the service stops, and clients resume elsewhere."""
        await self.hub.end(0)

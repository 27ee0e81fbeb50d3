"""build_market_runtime: the one reader of flags; every part gets plain values."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from klinesync import __version__
from klinesync.core.errors import BadFlag
from klinesync.factor.engine import FactorEngine
from klinesync.ingest.binance_rest import EXCHANGE, TIMEOUT_S, BinanceRest, market_routes
from klinesync.ingest.supervisor import IngestSupervisor
from klinesync.market.runtime import MarketRuntime
from klinesync.market_data.ingest_service import MarketIngestService
from klinesync.market_data.read_services import CandleReader
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.overlay.engine import OverlayEngine
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags, sqlite_path, whitelist
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.ws.hub import CandleHub


def build_market_runtime(flags: RuntimeFlags) -> MarketRuntime:
    """The parts of the service, wired. Runs inside the event loop; nothing has started yet. Raises `BadFlag`."""
    loop = asyncio.get_running_loop()
    listed = whitelist(flags)
    for series in listed:
        if series.exchange != EXCHANGE:
            raise BadFlag("whitelist", f"{series}: other exchanges than {EXCHANGE} are not built yet")
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    database = SqliteDatabase(sqlite_path(flags))
    hub = CandleHub()
    pipeline = IngestPipeline(database, FactorEngine(), OverlayEngine(), hub.publish)
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"User-Agent": f"klinesync/{__version__}"},
    )
    rest = BinanceRest(
        session,
        market_routes(flags.binance_spot_rest_url, flags.binance_futures_rest_url),
        clocks,
        final_margin_s=flags.rest_final_margin_s,
        monotonic=loop.time,
    )
    reader = CandleReader(database, rest.knows)
    supervisor = IngestSupervisor(
        session=session,
        ws_urls={"spot": flags.binance_spot_ws_url, "futures": flags.binance_futures_ws_url},
        rest=rest,
        clocks=clocks,
        pipeline=pipeline,
        head=reader.head,
        show=hub.show,
        first_history_candles=flags.startup_kline_sync_target_candles,
        forming_interval_s=flags.market_forming_min_interval_ms / 1000,
        rng=random.Random(),  # noqa: S311  # jitter, not a secret
    )
    return MarketRuntime(
        database=database,
        session=session,
        pipeline=pipeline,
        hub=hub,
        supervisor=supervisor,
        reader=reader,
        ingest=MarketIngestService(pipeline, {(EXCHANGE, market): clock for market, clock in clocks.items()}),
        coordinator=WsSubscriptionCoordinator(hub, reader, supervisor.state),
        whitelist=listed,
        followed=listed if flags.enable_whitelist_ingest else (),
    )

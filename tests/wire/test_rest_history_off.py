"""`enable_ccxt_backfill=off`: no history over REST in any case; files are read, and the live edge is repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId
from klinesync.ingest.timings import AuditLimits, FollowTimings
from klinesync.market.tuning import Tuning
from klinesync.sim.faults import Disconnect, DropClosed
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from support.history_files import write_freqtrade
from support.running_service import Service, retrying, running_service
from support.upstream import passed, plain, stored, truth
from support.waiting import until

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
HOURS = SeriesId.parse("binance:spot:BTC/USDT:1h")
UNFOLLOWED = SeriesId.parse("binance:spot:ETH/USDT:1m")
START = 1_700_000_130
NEWEST = START // 60 * 60
OFF = {
    "enable_ccxt_backfill": "off",
    "whitelist": f"{SPOT},{FUTURES}",
    "audit_interval_s": "0.05",
    "startup_kline_sync_target_candles": "300",
}


QUICK = Tuning(
    follow=FollowTimings(fruitless=Backoff(0.2, 300.0)),
    audit=AuditLimits(age_s=0, again_s=0.2),
)


class Exchange(SimServer):
    """Records the first open time of each request for klines, by market and symbol."""

    def __init__(self, config: SimConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[Market, str, int]] = []

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        answer = super()._rest_of(market)

        async def rest(request: web.Request) -> web.Response:
            if request.match_info["path"] == "klines":
                self.asked.append((market, request.query["symbol"], int(request.query["startTime"]) // 1000))
            return await answer(request)

        return rest


async def with_a_past(service: Service, exchange: SimServer, *, holes: bool = True) -> None:
    """Store candles of yesterday with a gap."""
    past = [time for time in range(NEWEST - 86_400, NEWEST - 80_000, 60) if not holes or time % 3600 > 600]
    for series in (SPOT, FUTURES):
        await service.runtime.market_data.ingest_candles_closed(series, truth(exchange, series, past))


async def test_candles_from_before_the_live_edge_are_never_read_over_rest(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store.sqlite"
    async with Exchange(SimConfig(symbols=2, start=START, speed=60.0)) as exchange:
        async with running_service(store, None) as service:
            await with_a_past(service, exchange)
        began_s = exchange.now_ms() // 60_000 * 60
        async with running_service(store, exchange, None, retrying(0.05, 3600.0, QUICK), **OFF) as service:
            startup = service.runtime.startup
            await until(lambda: startup.progress().done == 2, "the start does not wait for what nobody reads")
            for series in (SPOT, FUTURES, HOURS, UNFOLLOWED):
                for params in ({}, {"limit": 5000}, {"before": NEWEST - 86_400}, {"since": NEWEST - 82_000}):
                    await service.get("/api/market/candles", series_id=str(series), **params)
            status, begun = await service.post(
                "/api/market/ingest/backfill", {"series_id": str(SPOT), "from": NEWEST - 90_000, "to": NEWEST - 86_400}
            )
            assert (status, begun["missing_candles"]) == (200, 60), begun
            await passed(exchange, 200)
            exchange.faults.add(DropClosed(every=2))
            exchange.faults.add(Disconnect())
            await passed(exchange, 300)
            live = [one for one in await stored(service, SPOT, NEWEST) if one.time > began_s + 60]
            until_s = exchange.now_ms() // 60_000 * 60 - 120
            wanted = truth(exchange, SPOT, range(live[0].time, until_s, 60))
            assert [one for one in live if one.time < until_s] == wanted, "the live edge is repaired"
            assert exchange.asked, "by REST"
            audit = service.runtime.supervisors.by_name()["binance"].audit
            assert audit is not None
            assert audit.audits, "and audited"
            assert [one for one in exchange.asked if one[2] < began_s] == []
            assert {symbol for _, symbol, _ in exchange.asked} == {"BTCUSDT"}
            await until(lambda: not service.runtime.backfill.working_on(SPOT), "nobody is at work on what is missing")
            _, answer = await service.get("/api/market/health", series_id=str(SPOT))
            assert (answer["status"], answer["status_reason"]) == ("red", "interior_gap")


async def test_files_fill_history_that_rest_must_not(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with Exchange(SimConfig(symbols=2, start=START, speed=10.0)) as exchange:
        for series in (SPOT, UNFOLLOWED):
            whole = truth(exchange, series, range(NEWEST - 86_400 - 3600, NEWEST, 60))
            write_freqtrade(tmp_path / "data" / "binance" / f"{series.symbol.replace('/', '_')}-1m.feather", whole)
        async with running_service(store, None) as service:
            await with_a_past(service, exchange)
        files = {"market_history_source": "freqtrade", "freqtrade_data_dir": str(tmp_path / "data")}
        began_s = exchange.now_ms() // 60_000 * 60
        async with running_service(
            store, exchange, None, retrying(0.05, 3600.0, QUICK), **OFF | files | {"whitelist": str(SPOT)}
        ) as service:
            right = truth(exchange, SPOT, range(NEWEST - 86_400, NEWEST, 60))
            async with asyncio.timeout(60):
                while [one for one in await stored(service, SPOT) if one.time < NEWEST] != right:
                    await asyncio.sleep(0.05)
            right = truth(exchange, UNFOLLOWED, range(NEWEST - 500 * 60, NEWEST, 60))
            async with asyncio.timeout(60):
                while True:
                    _, page = await service.get("/api/market/candles", series_id=str(UNFOLLOWED), limit=500)
                    rows = page["candles"]
                    assert isinstance(rows, list)
                    if [row["candle_time"] for row in rows] == [one.time for one in right]:
                        break
                    await asyncio.sleep(0.05)
        assert [one for one in exchange.asked if one[2] < began_s] == []
        assert {symbol for _, symbol, _ in exchange.asked} <= {plain(SPOT)}

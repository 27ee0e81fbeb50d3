"""Health of the whole service, over real sockets, against the simulated exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
FIVE = "binance:spot:BTC/USDT:5m"
START = 1_700_000_100
TIMEOUT_S = 30.0
Answer = dict[str, object]


def truth(exchange: SimServer, times: Iterable[int]) -> list[Candle]:
    rows = (exchange.exchange.spot["BTCUSDT"].minute(time) for time in times)
    return [Candle(row.time, row.open, row.high, row.low, row.close, row.volume) for row in rows if row is not None]


async def until(service: Service, series_id: str, true: Callable[[Answer], bool]) -> list[Answer]:
    """The answers up to the first that satisfies the condition."""
    seen: list[Answer] = []
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            status, answer = await service.get("/api/market/health", series_id=series_id)
            assert status == 200, answer
            seen.append(answer)
            if true(answer):
                return seen
            await asyncio.sleep(0.02)


def is_green(answer: Answer) -> bool:
    return answer["status"] == "green"


async def store_with_hole(store: Path, exchange: SimServer) -> None:
    """Store some hours up to an hour before the exchange's time, with a gap of ten minutes."""
    times = [time for time in range(START - 4 * 3600, START - 3600, 60) if not 3000 < START - 3600 - time <= 3600]
    async with running_service(store) as service:
        await service.runtime.market_data.ingest_candles_closed(BTC, truth(exchange, times))


async def test_a_service_becomes_current_and_heals_declared_gaps(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(symbols=3, start=START + 20)) as exchange:
        await store_with_hole(store, exchange)
        async with running_service(store, exchange, whitelist=str(BTC)) as service:
            for series_id in (str(BTC), FIVE):
                seen = await until(service, series_id, is_green)
                assert all(answer["status"] == "yellow" for answer in seen[:-1]), seen
                newest = seen[-1]
                assert newest["gaps"] == {"unknown": 0, "healing": 0, "confirmed_empty": 0, "lost": 0}
                assert newest["missing_candles"] == 0
            stream = (await until(service, str(BTC), is_green))[-1]["stream"]
            assert isinstance(stream, dict)
            assert stream["state"] in ("subscribed", "live")
            # Listed, and not followed.
            status, answer = await service.get("/api/market/health", series_id=str(ETH))
            assert (status, answer["status_reason"]) == (200, "missing_head")
            assert answer["stream"] == {"state": "off", "since": None, "last_frame_at": None, "detail": None}
            status, answer = await service.get("/api/market/health", series_id="binance:spot:NOSUCH/USDT:1m")
            assert (status, answer["code"]) == (404, "unknown_series")


async def test_without_healing_a_gap_stays_and_is_red(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(symbols=2, start=START + 20)) as exchange:
        await store_with_hole(store, exchange)
        off = {"whitelist": str(BTC), "enable_market_gap_backfill": "off"}
        async with running_service(store, exchange, **off) as service:
            for series_id, missing in ((str(BTC), 10), (FIVE, 2)):
                seen = await until(service, series_id, lambda answer: answer["missing_candles"] == 0)
                assert (seen[-1]["status"], seen[-1]["status_reason"]) == ("red", "interior_gap")
                assert seen[-1]["gaps"] == {"unknown": missing, "healing": 0, "confirmed_empty": 0, "lost": 0}


async def test_health_can_be_switched_off(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", enable_kline_health_v2="off") as service:
        status, answer = await service.get("/api/market/health", series_id=str(BTC))
        assert (status, answer["code"]) == (404, "not_found")

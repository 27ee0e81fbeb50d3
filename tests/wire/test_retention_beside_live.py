"""`retention_days` in a running service: old candles are trimmed beside live ones, and `verify` passes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from klinesync.cli import main
from klinesync.core.timeframe import DAY_S
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data.retention import Trimming
from klinesync.sim.server import SimConfig, SimServer
from support.processes import SERIES
from support.running_service import Service, running_service

POLL_S = 0.05


async def edges(service: Service) -> tuple[int, int] | None:
    """The first and the newest stored open time."""
    _, body = await service.get("/api/market/candles", series_id=str(SERIES), since=0, limit=1)
    candles, head = body["candles"], body["server_head_time"]
    assert isinstance(candles, list)
    if not candles:
        return None
    assert isinstance(head, int)
    return int(candles[0]["candle_time"]), head


async def test_a_service_trims_old_candles_while_it_ingests(tmp_path: Path) -> None:
    around = Surroundings(tuning=Tuning(trimming=Trimming(period_s=0.05)))
    store = tmp_path / "store.sqlite"
    flags = {"startup_kline_sync_target_candles": "6000", "retention_days": "1", "whitelist": str(SERIES)}
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(store, exchange, None, around, **flags) as service,
        asyncio.timeout(90),
    ):
        while (found := await edges(service)) is None or found[1] - found[0] >= 2 * DAY_S or found[0] % DAY_S:
            await asyncio.sleep(POLL_S)
        trimmed = found
        while (found := await edges(service)) is None or found[1] < trimmed[1] + 1200:
            await asyncio.sleep(POLL_S)
        assert found[1] - found[0] >= DAY_S
    assert await asyncio.to_thread(main, ["verify", f"--database-url=sqlite:///{store}"]) == 0

"""`klinesync backup` beside a running service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from klinesync.sim.server import SimConfig, SimServer
from support.processes import SERIES, klinesync
from support.running_service import running_service


async def test_a_backup_of_a_running_service_is_a_sound_store(tmp_path: Path) -> None:
    url = f"--database-url=sqlite:///{tmp_path / 'store.sqlite'}"
    copy = f"--database-url=sqlite:///{tmp_path / 'copy.sqlite'}"
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, enable_market_auto_tail_backfill="off") as service,
        asyncio.timeout(90),
    ):
        count = 0
        while count < 2010:
            _, body = await service.get("/api/market/candles", series_id=str(SERIES), limit=5000)
            assert isinstance(body["candles"], list)
            count = len(body["candles"])
        status, out, errors = await asyncio.to_thread(klinesync, "backup", url, str(tmp_path / "copy.sqlite"))
        assert (status, errors) == (0, "")
        assert "is copied to" in out
        status, _, errors = await asyncio.to_thread(klinesync, "backup", url, str(tmp_path / "copy.sqlite"))
        assert (status, errors.count("\n")) == (1, 1)
        assert "exists already" in errors
    status, out, errors = await asyncio.to_thread(klinesync, "verify", copy)
    assert (status, errors) == (0, "")
    assert f"{SERIES}: 20" in out
    async with running_service(tmp_path / "copy.sqlite") as service:
        _, body = await service.get("/api/market/candles", series_id=str(SERIES), limit=5000)
        assert isinstance(body["candles"], list)
        assert len(body["candles"]) >= count

"""The example of the page about exchanges: the page shows the source file, and a service serves the exchange to a
reader."""

from __future__ import annotations

import asyncio
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from klinesync.exchanges.registry import GROUP, load_entries
from support.running_service import running_service

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/write-an-exchange.md"
WAVE = "wave:spot:WAVE/USDT:1m"
PATIENCE_S = 60.0


def test_the_code_on_the_page_is_that_of_the_example() -> None:
    example = (ROOT / "examples/wave_exchange.py").read_text().splitlines()
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        lines = [line for line in block.splitlines() if line]
        assert len(lines) > 3
        assert [line for line in lines if line not in example] == []


async def test_the_example_is_followed_stored_and_served_as_any_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    (value,) = re.findall(r'^wave = "(.*)"$', PAGE.read_text(), re.MULTILINE)
    (entry,) = load_entries([EntryPoint("wave", value, GROUP)])
    flags = {"whitelist": WAVE, "enable_whitelist_ingest": "on", "startup_kline_sync_target_candles": "600"}
    async with running_service(tmp_path / "store.sqlite", None, entry, **flags) as service:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status, page = await service.get("/api/market/candles", series_id=WAVE, limit=1000)
                _, health = await service.get("/api/market/health", series_id=WAVE)
                candles = page["candles"]
                assert status == 200
                assert isinstance(candles, list)
                if len(candles) >= 600 and health["status"] == "green" and page["gaps"] == []:
                    break
                await asyncio.sleep(0.05)
        times = [candle["candle_time"] for candle in candles]
        assert times == list(range(times[0], times[-1] + 60, 60))
        status, derived = await service.get("/api/market/candles", series_id=WAVE.replace("1m", "1h"))
        assert (status, len(derived["candles"]) >= 9) == (200, True)  # type: ignore[arg-type]
        status, overall = await service.get("/api/market/status")
        assert [(exchange["exchange"], exchange["market"], exchange["state"]) for exchange in overall["exchanges"]] == [  # type: ignore[attr-defined]
            ("wave", "spot", "live")
        ]
        status, refused = await service.get("/api/market/candles", series_id="wave:spot:SEA/USDT:1m")
        assert (status, refused["code"]) == (404, "unknown_series")
        assert "wave lists no SEA/USDT" in str(refused["detail"])

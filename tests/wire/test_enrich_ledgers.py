"""`klinesync backfill --enrich` beside factors that read order flow: values appear, and the epoch stays."""

from __future__ import annotations

import asyncio
import json
from itertools import accumulate
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from klinesync.core.candle import Candle
from klinesync.core.timeframe import DAY_S
from klinesync.sim.server import SimConfig, SimServer
from support.candles import of_minute
from support.processes import SERIES, klinesync
from support.running_service import Service, running_service

NOW = 1_714_521_600 + 17
COUNT = 1500
FLAGS = {
    "indicators": "CVD,TAKER_RATIO",
    "derived_timeframes": "5m",
    "enable_market_gap_backfill": "off",
    "enable_market_auto_tail_backfill": "off",
    "enable_ondemand_ingest": "off",
}


async def get(service: Service, path: str, **params: str | int) -> Any:
    """The answer, once the ledger has caught up."""
    status, answer = await service.get(path, **({"series_id": str(SERIES)} | params))
    while status == 409:
        status, answer = await service.get(path, **({"series_id": str(SERIES)} | params))
    assert status == 200, answer
    return answer


def minutes(exchange: SimServer, first: int) -> list[Candle]:
    listing = exchange.exchange.spot["BTCUSDT"]
    return [of_minute(row) for at in range(COUNT) if (row := listing.minute(first + 60 * at)) is not None]


def row(candle: Candle) -> dict[str, float]:
    return {"candle_time": candle.time} | dict(zip(Candle._fields[1:6], candle.ohlcv[1:], strict=True))


@pytest.mark.parametrize("through_service", [False, True])
async def test_a_pass_gives_values_to_ledgers_and_keeps_their_epoch(tmp_path: Path, through_service: bool) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(symbols=2, start=NOW)) as exchange:
        whole = minutes(exchange, NOW // 60 * 60 - 60 * (COUNT + 60))
        async with running_service(store, **FLAGS) as service:
            body = {"series_id": str(SERIES), "candles": [row(candle) for candle in whole]}
            assert (await service.post("/api/market/ingest/candles_closed", body))[0] == 200
            before = await get(service, "/api/draw/delta")
            assert before["series_points"] == {"cvd": [], "taker_ratio": []}
        ask = ["backfill", "--enrich", "--json"]
        for market in ("spot", "futures"):
            ask += [f"--binance-{market}-rest-url={exchange.http_url}", f"--binance-{market}-ws-url={exchange.ws_url}"]
        env = {f"KLINESYNC_{name.upper()}": value for name, value in FLAGS.items()}
        if through_service:
            async with running_service(store, **FLAGS) as service:
                ask += [str(SERIES), "--url", service.url]
                status, out, err = await asyncio.to_thread(klinesync, *ask, env=env)
        else:
            ask.append(f"--database-url=sqlite:///{store}")
            status, out, err = await asyncio.to_thread(klinesync, *ask, env=env)
        assert (status, err, json.loads(out)[0]["enriched"]) == (0, "", len(whole))
        async with running_service(store, **FLAGS) as service:
            after = await get(service, "/api/draw/delta", window_candles=2000)
            five = await get(service, "/api/draw/delta", series_id=f"{str(SERIES)[:-2]}5m")
    assert after["epoch"] == before["epoch"]
    found = {point["time"]: point["value"] for point in after["series_points"]["cvd"]}
    days = {candle.time // DAY_S for candle in whole}
    expected: dict[int, float] = {}
    for day in days:
        of_day = [candle for candle in whole if candle.time // DAY_S == day]
        deltas = accumulate(2 * (candle.taker_buy_volume or 0.0) - candle.volume for candle in of_day)
        expected |= dict(zip((candle.time for candle in of_day), deltas, strict=True))
    assert len(days) == 2
    assert found.keys() == expected.keys()
    assert all(isclose(found[time], value, abs_tol=1e-6) for time, value in expected.items())
    ends = {point["time"]: point["value"] for point in five["series_points"]["cvd"]}
    assert len(ends) > 200
    assert all(
        isclose(value, expected[time + 240], abs_tol=1e-6) for time, value in ends.items() if time >= DAY_S * max(days)
    )
    status, out, _ = await asyncio.to_thread(klinesync, "verify", f"--database-url=sqlite:///{store}", env=env)
    assert status == 0, out

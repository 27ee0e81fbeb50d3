"""Commands that write through a running service retry while the service is busy or stopping, a bounded number
of times."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from klinesync.cli.service_client import ServiceClient, ServiceError, service_client
from klinesync.core import busy
from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.history.files.importing import PartlyStored

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
CANDLE = Candle(1_700_000_040, 1.0, 2.0, 0.5, 1.5, 10.0)


@asynccontextmanager
async def refusing(refusals: int, status: int, code: str) -> AsyncIterator[tuple[ServiceClient, list[object]]]:
    """A service that refuses some writes, then takes them."""
    taken: list[object] = []

    async def candles_closed(request: web.Request) -> web.StreamResponse:
        taken.append(json.loads(await request.read()))
        if len(taken) <= refusals:
            headers = {"Retry-After": "0"}
            return web.json_response({"detail": "not now", "code": code}, status=status, headers=headers)
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_post("/api/market/ingest/candles_closed", candles_closed)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with service_client(f"http://127.0.0.1:{runner.addresses[0][1]}", None) as client:
            yield client, taken
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "REPEAT", Backoff(0.001, 30.0))


@pytest.mark.parametrize("code", ["busy", "shutting_down"])
async def test_a_write_that_a_busy_service_refuses_is_sent_again(code: str) -> None:
    async with refusing(2, 503, code) as (client, taken):
        await client.put(BTC, [CANDLE])
    assert len(taken) == 3
    assert taken[0] == taken[2]


async def test_a_service_that_stays_busy_is_given_up() -> None:
    async with refusing(100, 503, "busy") as (client, taken):
        with pytest.raises(PartlyStored, match="answers 503: not now") as failed:
            await client.put(BTC, [CANDLE])
    assert failed.value.stored == 0
    assert isinstance(failed.value.__cause__, ServiceError)
    assert len(taken) == 1 + busy.MAX_REPEATS


async def test_another_refusal_is_not_repeated() -> None:
    async with refusing(100, 503, "store_error") as (client, taken):
        with pytest.raises(PartlyStored, match="not now") as failed:
            await client.put(BTC, [CANDLE])
    assert failed.value.stored == 0
    assert isinstance(failed.value.__cause__, ServiceError)
    assert len(taken) == 1

"""Troubles that last for days: backoffs keep their limits after many failures, and the service goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.timings import RECONNECT, StreamTimings
from klinesync.ingest.timings import FRUITLESS, FollowTimings
from klinesync.market.runtime import MarketRuntime
from klinesync.market.tuning import Tuning
from klinesync.runtime.http_client import WebSocket
from sim.http import Answer
from sim.scenario import EPOCH_S
from sim.spot_service import run_beside
from sim.virtual_loop import VirtualLoop

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
# More than a thousand retries, one or two minutes apart: enough doublings to overflow a float.
LONG_S = 1.4 * 86_400.0


class IdleExchange:
    """An exchange without streams and candles, with only its time and a symbol."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.connects = self.pages = 0

    def get(self, url: str, params: Mapping[str, str] | None = None) -> Answer:
        if url.endswith("/time"):
            return Answer(200, b'{"serverTime":%d}' % int((EPOCH_S + self._loop.time()) * 1000))
        if url.endswith("/exchangeInfo"):
            return Answer(
                200, b'{"symbols":[{"symbol":"BTCUSDT","status":"TRADING","baseAsset":"BTC","quoteAsset":"USDT"}]}'
            )
        if url.endswith("/klines"):
            self.pages += 1
            return Answer(200, b"[]")
        raise aiohttp.ClientConnectionError("Cannot connect to host")

    async def close(self) -> None:
        """Store nothing."""

    async def ws_connect(self, url: str, **_: object) -> WebSocket:
        self.connects += 1
        raise aiohttp.ClientConnectionError("Cannot connect to host")


def test_days_without_streams_and_without_candles_do_not_end_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuning = Tuning(
        store_probe_s=45.0,
        follow=FollowTimings(tick_s=45.0, fruitless=replace(FRUITLESS, most_s=45.0)),
        binance_streams=StreamTimings(reconnect=replace(RECONNECT, most_s=45.0)),
    )
    caplog.set_level(logging.CRITICAL, "klinesync")  # the same message each time
    loop = VirtualLoop()
    exchange = IdleExchange(loop)

    async def live(_: MarketRuntime) -> None:
        await asyncio.sleep(LONG_S)

    store = tmp_path / "store.sqlite"
    run_beside(exchange, loop, store, live, tuning=tuning, whitelist=str(SERIES), audit_interval_s=0)
    assert exchange.connects > 1024
    assert exchange.pages > 1024

"""Connections to the exchange: subscribing, dropping, reconnecting, and frames that are none."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.series_id import SeriesId
from klinesync.ingest import binance_ws
from klinesync.ingest.binance_ws import BinanceConnection
from klinesync.runtime.sources import KlineEvent, StreamCallbacks
from klinesync.sim.server import SimConfig, SimServer
from running_service import running_service

T = TypeVar("T")
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")

FRAME = {
    "stream": "btcusdt@kline_1m",
    "data": {
        "e": "kline",
        "E": 60_005,
        "s": "BTCUSDT",
        "k": {"t": 0, "s": "BTCUSDT", "i": "1m", "o": "1", "c": "1", "h": "1", "l": "1", "v": "1", "x": True},
    },
}


@dataclass
class Exchange:
    """A scripted exchange: notes requests, answers them, says what a test wants it to."""

    answers: bool = True
    error: dict[str, object] | None = None
    requests: asyncio.Queue[dict[str, object]] = field(default_factory=asyncio.Queue)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            asked = json.loads(message.data)
            self.requests.put_nowait(asked)
            if self.answers:
                answer = {"result": None} if self.error is None else {"error": self.error}
                await socket.send_json(answer | {"id": asked["id"]})
        return socket

    async def asked(self) -> tuple[object, object]:
        request = await asyncio.wait_for(self.requests.get(), 10)
        return request["method"], request["params"]


@dataclass
class Heard:
    """What a connection told."""

    attached: asyncio.Queue[SeriesId] = field(default_factory=asyncio.Queue)
    events: asyncio.Queue[KlineEvent] = field(default_factory=asyncio.Queue)
    lost: asyncio.Queue[list[SeriesId]] = field(default_factory=asyncio.Queue)

    def callbacks(self) -> StreamCallbacks:
        def lost(series: Iterable[SeriesId]) -> None:
            self.lost.put_nowait(list(series))

        return StreamCallbacks(self.attached.put_nowait, self.events.put_nowait, lost)


@asynccontextmanager
async def connected(exchange: Exchange, *wanted: SeriesId) -> AsyncIterator[tuple[BinanceConnection, Heard]]:
    app = web.Application()
    app.router.add_get("/stream", exchange.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    heard = Heard()
    async with aiohttp.ClientSession() as session:
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/stream"
        connection = BinanceConnection(session, url, heard.callbacks(), rng=random.Random(1))
        for series in wanted:
            connection.want(series)
        task = asyncio.create_task(connection.run())
        try:
            yield connection, heard
        finally:
            task.cancel()
            await asyncio.wait([task])
            await runner.cleanup()


async def soon(queue: asyncio.Queue[T]) -> T:
    return await asyncio.wait_for(queue.get(), 10)


async def test_streams_are_subscribed_attached_once_answered_and_dropped_while_it_runs() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m"])
        assert await soon(heard.attached) == BTC
        connection.want(ETH)
        assert await exchange.asked() == ("SUBSCRIBE", ["ethusdt@kline_1m"])
        assert await soon(heard.attached) == ETH
        connection.unwant(BTC)
        assert await exchange.asked() == ("UNSUBSCRIBE", ["btcusdt@kline_1m"])
        assert connection.room == binance_ws.STREAMS_PER_CONNECTION - 1


async def test_a_lost_connection_is_made_again_and_everything_is_subscribed_anew() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, ETH) as (connection, heard):
        await soon(heard.attached)
        await soon(heard.attached)
        await exchange.asked()
        await exchange.sockets[0].close()
        assert await soon(heard.lost) == [BTC, ETH]
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m", "ethusdt@kline_1m"])
        assert await soon(heard.attached) == BTC
        assert connection.reconnects == 1


async def test_a_refused_subscription_ends_the_connection_and_is_tried_again() -> None:
    exchange = Exchange(error={"code": 2, "msg": "Invalid request"})
    async with connected(exchange, BTC) as (_, heard):
        await exchange.asked()
        await exchange.asked()
        assert heard.attached.empty()
        exchange.error = None
        assert await soon(heard.attached) == BTC


async def test_a_subscription_that_is_not_answered_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binance_ws, "ANSWER_TIMEOUT_S", 0.05)
    exchange = Exchange(answers=False)
    async with connected(exchange, BTC) as (_, heard):
        await exchange.asked()
        await exchange.asked()
        exchange.answers = True
        assert await soon(heard.attached) == BTC


async def test_a_frame_that_is_none_is_quarantined_and_the_connection_lives_on() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        for bad in ("{", "[]", '{"stream":"btcusdt@kline_1m","data":{"k":1}}'):
            await exchange.sockets[0].send_str(bad)
        await exchange.sockets[0].send_bytes(b"\x00")
        await exchange.sockets[0].send_json(FRAME)
        assert (await soon(heard.events)).closed
        assert connection.quarantined == 4
        assert connection.reconnects == 0


async def test_hundreds_of_streams_share_few_connections_and_all_deliver(tmp_path: Path) -> None:
    async with SimServer(SimConfig(speed=60, symbols=250)) as exchange:
        names = [f"binance:spot:{one.symbol.base}/{one.symbol.quote}:1m" for one in exchange.exchange.spot.values()]
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=",".join(names), startup_kline_sync_target_candles="5"
        ) as service:
            async with service.http.ws_connect(service.url + "/ws/market") as socket:
                for name in names:
                    await socket.send_json({"type": "subscribe", "series_id": name})
                closed: set[str] = set()
                formed: set[str] = set()
                while closed != set(names) or formed != set(names):
                    message = await socket.receive_json(timeout=20)
                    if message["type"] == "candle_closed":
                        closed.add(message["series_id"])
                    elif message["type"] == "candle_forming":
                        formed.add(message["series_id"])
            async with service.http.get(exchange.http_url + "/sim/state") as response:
                state = await response.json()
        assert len(state["connections"]) == 2

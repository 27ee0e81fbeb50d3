"""An exchange that refuses this service, or fails at every request: the request rate, the reports, and the time until
the service has recovered after the exchange has. Under virtual time; each request is counted at the exchange."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import aiohttp
import pytest
from aiohttp import RequestInfo
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from klinesync.core.series_id import SeriesId
from klinesync.exchanges import access
from klinesync.exchanges.comeback import PROBE_MOST_S
from klinesync.market.runtime import MarketRuntime
from klinesync.runtime.http_client import WebSocket
from sim.http import Answer
from sim.scenario import EPOCH_S
from sim.spot_service import run_beside
from sim.virtual_loop import VirtualLoop

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
MSG = b'{"code":0,"msg":"Service unavailable from a restricted location \\u001b[31m <b>"}'
HTML = b"<html><body>Sign in to this network</body></html>"
# Seconds from the start until the backoff has reached its limit.
RAMP_S = 90.0
REST, STREAMS = "rest", "streams"
What = Literal["rest", "streams"]
Fault = Callable[[str], None]


def handshake_error(status: int) -> aiohttp.WSServerHandshakeError:
    url, headers = URL("ws://exchange"), CIMultiDictProxy(CIMultiDict[str]())
    return aiohttp.WSServerHandshakeError(RequestInfo(url, "GET", headers, url), (), status=status)


def unconnected(error: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(ConnectionKey("exchange", 443, True, True, None, None, None), error)


TROUBLES: dict[str, int | bytes | Exception] = {
    "451": 451,
    "403": 403,
    "401": 401,
    "500": 500,
    "html": HTML,
    "refused": unconnected(ConnectionRefusedError(111, "Connection refused")),
    "no name": unconnected(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    "tls": unconnected(ssl.SSLError(1, "wrong version number")),
    "no answer": TimeoutError(),
}


class Exchange:
    """Trades BTC each minute; `rest` and `streams` are its faults, None while it works. Records when and what is
    requested. Streams never connect: closed candles come over REST."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.asked: list[tuple[float, str]] = []
        self.rest: int | bytes | Exception | None = None
        self.streams: int | bytes | Exception | None = None

    def get(self, url: str, params: Mapping[str, str] | None = None) -> Answer:
        name = url.rpartition("/")[2]
        self.asked.append((self._loop.time(), name))
        match self.rest:
            case int(status):
                return Answer(status, MSG, wait_s=0.05)
            case bytes(body):
                return Answer(200, body, wait_s=0.05)
            case Exception() as trouble:
                return Answer(0, b"", trouble, 10.0 if isinstance(trouble, TimeoutError) else 0.0)
        now_ms = int((EPOCH_S + self._loop.time()) * 1000)
        if name == "time":
            return Answer(200, b'{"serverTime":%d}' % now_ms)
        if name == "exchangeInfo":
            symbols = [
                {"symbol": f"{base}USDT", "status": "TRADING", "baseAsset": base, "quoteAsset": "USDT"}
                for base in ("BTC", "ETH")
            ]
            return Answer(200, json.dumps({"symbols": symbols}).encode())
        if name == "klines":
            assert params is not None
            first = -(-int(params["startTime"]) // 60_000) * 60_000
            last = min(now_ms, int(params.get("endTime", now_ms)))
            times = range(first, last + 1, 60_000)[: int(params["limit"])]
            rows = [[at, "1", "2", "0.5", "1.5", "3", at + 59_999, "1", 1, "1", "1", "0"] for at in times]
            return Answer(200, json.dumps(rows).encode())
        return Answer(200, b"[]")

    async def close(self) -> None:
        """Store nothing."""

    async def ws_connect(self, url: str, **_: object) -> WebSocket:
        self.asked.append((self._loop.time(), access.HANDSHAKE))
        match self.streams:
            case int(status):
                raise handshake_error(status)
            case Exception() as trouble:
                raise trouble
        raise unconnected(ConnectionRefusedError(111, "Connection refused"))

    def pauses_s(self, after_s: float, *, handshakes: bool = True) -> list[float]:
        """The seconds between consecutive requests from that time on."""
        times = [at for at, name in self.asked if at >= after_s and (handshakes or name != access.HANDSHAKE)]
        return [later - before for before, later in pairwise(times)]


def run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, live: Callable[[MarketRuntime, Exchange], Awaitable[None]]
) -> None:
    """Let `live` run beside a service that follows two series of the exchange."""
    caplog.set_level(logging.CRITICAL, "klinesync")
    loop = VirtualLoop()
    exchange = Exchange(loop)

    async def beside(service: MarketRuntime) -> None:
        await live(service, exchange)

    store, followed = tmp_path / "store.sqlite", f"{BTC},{ETH}"
    run_beside(exchange, loop, store, beside, streams_most=1, whitelist=followed, audit_interval_s=1)


async def elapse(seconds: float, meanwhile: Callable[[], Coroutine[None, None, object]] | None = None) -> None:
    """Let time pass with a read every second."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    while loop.time() < end_s:
        if meanwhile is not None:
            await meanwhile()
        await asyncio.sleep(1.0)


async def caught_up(service: MarketRuntime) -> float:
    """The seconds until both series are up to date."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert service.market_data.health is not None
    async with asyncio.timeout(600):
        while any([(await service.market_data.health.health(one)).status_reason != "up_to_date" for one in (BTC, ETH)]):
            await asyncio.sleep(0.25)
    return loop.time() - began_s


@pytest.mark.parametrize("status", [451, 403, 401])
def test_a_market_that_refuses_all_is_asked_once_in_thirty_seconds_and_its_answer_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async def live(service: MarketRuntime, exchange: Exchange) -> None:
        assert service.market_data.health is not None
        exchange.rest = exchange.streams = status
        began_s = asyncio.get_running_loop().time()
        await elapse(RAMP_S, lambda: service.market_data.reader.page(BTC, None, None, 500))
        assert len(exchange.asked) <= 12, exchange.asked
        await elapse(900, lambda: service.market_data.reader.page(BTC, None, None, 500))
        pauses_s = exchange.pauses_s(began_s + RAMP_S)
        assert min(pauses_s) >= access.REFUSED.most_s, exchange.asked
        assert max(pauses_s) <= access.REFUSED.most_s + access.YIELD_S + 1.0, "it is still asked"
        for series in (BTC, ETH):
            health = await service.market_data.health.health(series)
            assert (health.status, health.status_reason) == ("red", "exchange_refuses")
            assert health.detail is not None
            assert f"answered {status}: 0 Service unavailable from a restricted location" in health.detail
            assert "\x1b" not in health.detail, "the exchange's words are escaped"
        told = await service.market_data.status.status()
        assert (told.status, told.status_reason) == ("red", "exchange_refuses")
        assert f"answered {status}: 0 Service unavailable" in told.detail
        assert await service.unready() is None, "it serves what is stored"
        exchange.rest = exchange.streams = None
        assert await caught_up(service) <= access.REFUSED.most_s + 5.0
        assert (await service.market_data.status.status()).status_reason != "exchange_refuses"

    run(tmp_path, caplog, live)


def test_a_refusal_after_the_start_is_treated_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def live(service: MarketRuntime, exchange: Exchange) -> None:
        assert service.market_data.health is not None
        await caught_up(service)
        exchange.rest = exchange.streams = 451
        began_s = asyncio.get_running_loop().time()
        await elapse(RAMP_S + 600)
        assert min(exchange.pauses_s(began_s + RAMP_S)) >= access.REFUSED.most_s
        health = await service.market_data.health.health(BTC)
        assert (health.status, health.status_reason) == ("red", "exchange_refuses")
        exchange.rest = exchange.streams = None
        assert await caught_up(service) <= access.REFUSED.most_s + 5.0

    run(tmp_path, caplog, live)


def test_with_refused_handshakes_candles_come_from_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def live(service: MarketRuntime, exchange: Exchange) -> None:
        exchange.streams = 403
        await caught_up(service)
        began_s = asyncio.get_running_loop().time()
        await elapse(RAMP_S + 600)
        handshakes = [at for at, name in exchange.asked if name == access.HANDSHAKE and at > began_s + RAMP_S]
        assert min(after - before for before, after in pairwise(handshakes)) >= access.REFUSED.most_s
        assert await caught_up(service) <= 5.0
        told = await service.market_data.status.status()
        assert (told.status, told.status_reason) == ("yellow", "handshakes_fail")
        assert "answers a WebSocket handshake with 403" in told.detail

    run(tmp_path, caplog, live)


@pytest.mark.parametrize("name", ["500", "html", "refused", "no name", "tls", "no answer"])
def test_a_market_that_fails_at_every_request_is_probed_every_five_seconds_and_unreachable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def live(service: MarketRuntime, exchange: Exchange) -> None:
        assert service.market_data.health is not None
        exchange.rest = TROUBLES[name]
        exchange.streams = unconnected(ConnectionRefusedError(111, "Connection refused"))
        began_s = asyncio.get_running_loop().time()
        await elapse(RAMP_S, lambda: service.market_data.reader.page(BTC, None, None, 500))
        assert len(exchange.asked) <= 100, [(round(at - began_s, 2), what) for at, what in exchange.asked][:120]
        await elapse(600, lambda: service.market_data.reader.page(BTC, None, None, 500))
        assert min(exchange.pauses_s(began_s + RAMP_S, handshakes=False)) >= access.TROUBLE.most_s
        health = await service.market_data.health.health(BTC)
        assert (health.status, health.status_reason) == ("red", "exchange_unreachable"), health
        assert health.detail is not None
        told = await service.market_data.status.status()
        assert (told.status, told.status_reason) == ("red", "exchange_unreachable")
        exchange.rest = exchange.streams = None
        assert await caught_up(service) <= 2 * PROBE_MOST_S + 10.0

    run(tmp_path, caplog, live)

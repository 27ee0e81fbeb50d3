"""Outgoing requests: no redirect is followed, and proxies are used as the environment says."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest

from klinesync.cli.service_client import ServiceError, service_client
from klinesync.client.asking import ServiceError as ClientError
from klinesync.client.follow import follow
from klinesync.client.service import AsyncKlinesync
from klinesync.client.updates import Disconnected
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.ccxt.installed import TIMEOUT_MS, ccxt_exchange
from klinesync.history.files.sources import ExchangeArchive
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import load_flags, proxies_of
from klinesync.runtime.http_client import HttpClient, Redirected
from klinesync.runtime.proxies import Proxies, Proxy
from klinesync.sim.server import SimConfig, SimServer
from support.outgoing import forward_proxy, signpost, tls_front
from support.processes import running_anew, serve_arguments
from support.upstream import plain_id
from support.waiting import PATIENCE_S

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
# Names that cannot be encoded, a missing host, a path, and nothing at all.
TARGETS = ["http://" + "a" * 300 + ".example/", "http://\udcff/", "http://[::1/", "/elsewhere", "", "\x1b[31m"]


def rest_of(url: str, client: HttpClient) -> BinanceRest:
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    monotonic = asyncio.get_running_loop().time
    return BinanceRest(client, market_routes(url, url), clocks, final_margin_s=2, monotonic=monotonic)


async def state_of(exchange: SimServer) -> dict[str, object]:
    async with aiohttp.ClientSession() as http, http.get(f"{exchange.http_url}/sim/state") as response:
        state: dict[str, object] = await response.json()
    return state


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_rest_takes_a_redirect_for_a_failed_answer_and_says_where_it_pointed(status: int) -> None:
    async with signpost(status) as post, HttpClient() as client:
        with pytest.raises(UpstreamError, match=f"answered {status} and points to '.*elsewhere") as failed:
            await rest_of(post.url, client).now_ms("spot")
        assert (failed.value.status, post.followed, post.asked) == (status, 0, 1)


@pytest.mark.parametrize("target", TARGETS)
async def test_wherever_a_redirect_points_it_is_one_error_of_the_exchange(target: str) -> None:
    async with signpost() as post, HttpClient() as client:
        post.target = target.encode("utf-8", "surrogateescape").decode("latin-1").replace("\x1b", "%1b")
        with pytest.raises(UpstreamError, match="redirects are not followed"):
            await rest_of(post.url, client).now_ms("spot")


async def test_a_handshake_that_is_redirected_fails_and_says_where_it_pointed() -> None:
    async with signpost() as post, HttpClient() as client:
        with pytest.raises(Redirected, match=r"answered 302 and points to '.*elsewhere"):
            await client.ws_connect(f"{post.url}/stream", heartbeat=20, max_msg_size=1000, close_timeout_s=1)
        assert post.followed == 0


async def test_the_archive_and_the_clients_of_the_service_follow_no_redirect() -> None:
    async with signpost(307) as post:
        with pytest.raises(UpstreamError, match=r"answered 307.*and points to"):
            async for _ in ExchangeArchive(post.url, plain_id).pages(SERIES, Span(1_700_000_000, 1_700_086_400)):
                pass
        async with service_client(post.url, "a token of sixteen characters") as service:
            with pytest.raises(ServiceError, match="answers 307 and points to"):
                await service.now(SERIES)
        async with AsyncKlinesync(post.url) as market:
            with pytest.raises(ClientError, match="307 and points to"):
                await market.candles(SERIES)
        async with aclosing(follow(post.url, SERIES)) as updates:
            update = await anext(updates)
        assert isinstance(update, Disconnected)
        assert "307 and points to" in update.reason
        assert post.followed == 0


async def test_rest_streams_and_archive_go_through_the_proxy_of_the_environment() -> None:
    async with SimServer(SimConfig(symbols=2)) as exchange:
        port = int(exchange.http_url.rpartition(":")[2])
        async with forward_proxy(http=port) as proxy:
            proxies = Proxies({"HTTP_PROXY": proxy.url.replace("//", "//me:p%40ss@")})
            async with HttpClient(proxies=proxies) as client:
                assert (
                    abs(await rest_of("http://api.exchange.test", client).now_ms("spot") - exchange.now_ms()) < 60_000
                )
                url = "ws://stream.exchange.test/stream?streams=btcusdt@kline_1m"
                socket = await client.ws_connect(url, heartbeat=20, max_msg_size=100_000, close_timeout_s=1)
                frame = await asyncio.wait_for(socket.receive(), PATIENCE_S)
                assert "btcusdt@kline_1m" in frame.data
                await socket.close()
            end = exchange.now_ms() // 86_400_000 * 86_400
            archive = ExchangeArchive("http://archive.exchange.test", plain_id, proxies=proxies)
            days = [page async for page in archive.pages(SERIES, Span(end - 2 * 86_400, end - 86_400))]
            assert sum(len(page.candles) for page in days) == 1440
            hosts = {line.split(" ")[1].split("/")[2] for line in proxy.asked}
            assert hosts == {"api.exchange.test", "stream.exchange.test", "archive.exchange.test"}
            assert set(proxy.logins) == {aiohttp.encode_basic_auth("me", "p@ss")}


async def test_a_proxy_that_refuses_is_an_error_without_the_credentials() -> None:
    async with signpost(407) as post:
        proxies = Proxies({"HTTPS_PROXY": post.url.replace("//", "//me:secret@")})
        async with HttpClient(proxies=proxies) as client:
            with pytest.raises(
                UpstreamError, match=r"^api\.exchange\.test cannot be reached: the proxy refuses with 4\d\d$"
            ) as failed:
                await rest_of("https://api.exchange.test", client).now_ms("spot")
            assert "secret" not in str(failed.value)
            assert aiohttp.encode_basic_auth("me", "secret") not in str(failed.value)


async def test_the_service_reaches_an_exchange_behind_a_proxy_by_tls(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with SimServer(SimConfig(symbols=2)) as exchange:
        port = int(exchange.http_url.rpartition(":")[2])
        async with tls_front(port, tmp_path) as (front, certificate), forward_proxy(https=front) as proxy:
            env = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "unused.example", "SSL_CERT_FILE": str(certificate)}
            arguments = serve_arguments("https://api.exchange.test", tmp_path / "store.sqlite")
            async with running_anew(*arguments, log=log, env=env) as service:
                await service.address("serves")
                async with asyncio.timeout(PATIENCE_S):
                    while not (await state_of(exchange))["connections"]:
                        await asyncio.sleep(0.05)
            assert {line.split(" ")[0] for line in proxy.asked} == {"CONNECT"}


def test_proxies_are_switched_off_by_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    url = "https://api.binance.com"
    assert proxies_of(load_flags()).proxy_for(url) == Proxy("http://proxy.example:3128")
    assert proxies_of(load_flags({"enable_environment_proxies": "off"})).proxy_for(url) is None
    monkeypatch.setenv("https_proxy", "socks5://proxy.example:1080")
    assert proxies_of(load_flags({"enable_environment_proxies": "off"})).proxy_for(url) is None


def test_ccxt_is_told_to_use_the_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    for name in ("ccxt", "ccxt.pro"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["ccxt.pro"], "okx", lambda settings: given.append(settings), raising=False)
    monkeypatch.setenv("https_proxy", "http://me:p%40ss@proxy.example:3128")
    ccxt_exchange("okx")
    ccxt_exchange("okx", proxies=proxies_of(load_flags()))
    monkeypatch.setenv("no_proxy", "*")
    ccxt_exchange("okx", proxies=proxies_of(load_flags()))
    ccxt_exchange("okx", proxies=proxies_of(load_flags({"enable_environment_proxies": "off"})))
    plain = {"enableRateLimit": True, "timeout": TIMEOUT_MS}
    proxied = plain | {"aiohttp_trust_env": True}
    assert given == [plain, proxied | {"wssProxy": "http://me:p%40ss@proxy.example:3128"}, proxied, plain]

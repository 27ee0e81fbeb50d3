"""GET top_markets and its stream over real sockets: the contract's shapes, limits and errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.exchange import Listing, Ticker
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.market_data.top_markets import FORCED_MOST, MAX_LIMIT, USUAL_TOP, TopLimits, TopMarkets, TopQuery
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.sim.server import SimConfig, SimServer
from support.fake_exchange import FakeExchange, context, registry_of
from support.running_service import Service, running_service

PATH = "/api/market/top_markets"


class Exchange(FakeExchange):
    """The exchange's answers."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = 1.0
        self.error: UpstreamError | None = None
        self.asked = 0

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        quote = "USDT" if market == "spot" else "USDC"
        return {
            f"{base}/{quote}": Listing(f"{base}/{quote}", base + quote, base, quote, "TRADING")
            for base in ("BTC", "ETH")
        }

    async def tickers(self, market: str) -> Sequence[Ticker]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [
            Ticker(base + quote, 64_000.5, self.volume, -1.25) for base in ("ETH", "BTC") for quote in ("USDT", "USDC")
        ]


@asynccontextmanager
async def service_with(store: Path, exchange: Exchange, limits: TopLimits = USUAL_TOP) -> AsyncIterator[Service]:
    async with running_service(store) as service:
        service.runtime.market_data.top_markets = TopMarkets(registry_of(exchange), clock=SYSTEM_CLOCK, limits=limits)
        yield service


async def test_every_contract_is_listed_under_a_name_that_is_served_and_odd_symbols_are_left_out(
    tmp_path: Path,
) -> None:
    async with (
        SimServer(SimConfig(symbols=3, contracts=True, odd_symbols=True)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist="binance:spot:ETH/USDT:1m") as service,
    ):
        for market, listed in (("spot", exchange.exchange.spot), ("futures", exchange.exchange.futures)):
            status, answer = await service.get(
                PATH, exchange="binance", market=market, quote_asset="USDT", limit=MAX_LIMIT
            )
            assert status == 200, answer
            items = answer["items"]
            assert isinstance(items, list)
            named = {item["symbol_id"]: SeriesId.parse(f"binance:{market}:{item['symbol']}:1m") for item in items}
            assert set(named) == {name for name, listing in listed.items() if listing.symbol.quote == "USDT"}
            assert [str(series).split(":", 2)[2] for series in named.values()] == [
                f"{item['symbol']}:1m" for item in items
            ]
            assert len(set(named.values())) == len(items)
        kinds = {listing.symbol.contract: name for name, listing in exchange.exchange.futures.items()}
        assert kinds.keys() >= {"PERPETUAL", "TRADIFI_PERPETUAL"}
        assert any(":USDT-" in series.symbol for series in named.values()), "a contract with a delivery date"
        for name in kinds.values():
            status, page = await service.get("/api/market/candles", series_id=str(named[name]), limit=1)
            assert status == 200, page


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def service(tmp_path: Path, exchange: Exchange) -> AsyncIterator[Service]:
    async with service_with(tmp_path / "store.sqlite", exchange) as running:
        yield running


class Events:
    """Reads server-sent events: (event, id, data), a comment as ("", "", text)."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, str, dict[str, object]] | None:
        """The next event; None at the end of the stream."""
        async with asyncio.timeout(60):
            while True:
                fields: dict[str, str] = {}
                while (line := (await self.response.content.readline()).decode()) not in ("\n", ""):
                    assert line.endswith("\n")
                    name, _, value = line.rstrip("\n").partition(": ")
                    fields[name] = value
                if not line:
                    assert not fields, "no event is cut off"
                    return None
                if "event" in fields:
                    return fields["event"], fields.get("id", ""), json.loads(fields["data"])
                assert list(fields) == [""], "a comment"


@asynccontextmanager
async def stream(service: Service, **params: str | float) -> AsyncIterator[Events]:
    async with service.http.get(service.url + PATH + "/stream", params=params) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        yield Events(response)


async def test_the_answer_has_the_contracts_shape(service: Service, exchange: Exchange) -> None:
    status, answer = await service.get(PATH, exchange="binance", market="spot", quote_asset="USDT", limit=1)
    assert status == 200
    generated_at_ms = answer.pop("generated_at_ms")
    assert isinstance(generated_at_ms, int)
    assert abs(generated_at_ms / 1000 - time.time()) < 60
    assert answer == {
        "exchange": "binance",
        "market": "spot",
        "quote_asset": "USDT",
        "limit": 1,
        "cached": False,
        "stale": False,
        "items": [
            {
                "exchange": "binance",
                "market": "spot",
                "symbol": "BTC/USDT",
                "symbol_id": "BTCUSDT",
                "base_asset": "BTC",
                "quote_asset": "USDT",
                "last_price": 64_000.5,
                "quote_volume": 1.0,
                "price_change_percent": -1.25,
            }
        ],
    }
    status, answer = await service.get(PATH)
    items = answer["items"]
    assert isinstance(items, list)
    assert (status, answer["cached"], answer["limit"], len(items)) == (200, True, 20, 2)
    status, answer = await service.get(PATH, market="futures", quote_asset="usdc")
    assert (status, answer["quote_asset"], answer["cached"]) == (200, "USDC", False)
    assert exchange.asked == 2


async def test_force_asks_again_and_is_429_beyond_the_limit(service: Service, exchange: Exchange) -> None:
    for _ in range(FORCED_MOST):
        status, answer = await service.get(PATH, force="true")
        assert (status, answer["cached"]) == (200, False)
    async with service.http.get(service.url + PATH, params={"force": "1"}) as response:
        assert response.status == 429
        assert (await response.json())["code"] == "rate_limited"
        assert 0 < int(response.headers["Retry-After"]) <= 60
    assert exchange.asked == FORCED_MOST


async def test_an_exchange_that_cannot_be_asked_is_502_without_an_answer_and_stale_with_one(
    service: Service, exchange: Exchange
) -> None:
    exchange.error = UpstreamError("the exchange is down", 503)
    status, answer = await service.get(PATH)
    assert (status, answer) == (502, {"code": "upstream_error", "detail": "the exchange is down"})
    exchange.error = None
    assert (await service.get(PATH, force="true"))[0] == 200
    exchange.error = UpstreamError("the exchange is down", 503)
    status, answer = await service.get(PATH, force="true")
    assert (status, answer["cached"], answer["stale"]) == (200, True, True)


@pytest.mark.parametrize("path", [PATH, PATH + "/stream"])
@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"exchange": "okx"}, "exchange 'okx' is not known"),
        ({"market": "options"}, "market 'options' is not known"),
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"quote_asset": ""}, "quote_asset"),
        ({"quote_asset": "U" * 21}, "quote_asset"),
    ],
)
async def test_a_malformed_request_is_422(
    service: Service, exchange: Exchange, path: str, params: dict[str, str | int], word: str
) -> None:
    status, answer = await service.get(path, **params)
    assert (status, answer["code"]) == (422, "bad_request")
    assert word in str(answer["detail"])
    assert exchange.asked == 0


@pytest.mark.parametrize(
    "params", [{"interval_s": "0.1"}, {"interval_s": "nan"}, {"interval_s": 31}, {"max_events": -1}]
)
async def test_malformed_parameters_of_a_stream_are_422(service: Service, params: dict[str, str | int]) -> None:
    status, answer = await service.get(PATH + "/stream", **params)
    assert (status, answer["code"]) == (422, "bad_request")
    assert next(iter(params)) in str(answer["detail"])


async def test_the_stream_sends_answers_when_items_change_and_ends_after_so_many(
    tmp_path: Path, exchange: Exchange
) -> None:
    async with (
        service_with(tmp_path / "store.sqlite", exchange, TopLimits(tickers_ttl_s=0.0)) as service,
        stream(service, interval_s=1, max_events=2, limit=1) as events,
    ):
        first = await events.next()
        assert first is not None
        assert first[0] == "top_markets"
        assert first[1] == str(first[2]["generated_at_ms"])
        assert set(first[2]) == set((await service.get(PATH))[1])
        exchange.volume = 2.0
        second = await events.next()
        assert second is not None
        assert second[2]["items"] != first[2]["items"]
        assert int(second[1]) > int(first[1])
        assert await events.next() is None


async def test_an_error_is_an_event_of_the_stream_which_goes_on(tmp_path: Path, exchange: Exchange) -> None:
    exchange.error = UpstreamError("the exchange is down", 503)
    async with (
        service_with(tmp_path / "store.sqlite", exchange, TopLimits(failed_pause_s=0.0)) as service,
        stream(service, interval_s=0.2, max_events=0) as events,
    ):
        assert await events.next() == ("error", "", {"detail": "the exchange is down", "code": "upstream_error"})
        exchange.error = None
        after = await events.next()
        assert after is not None
        assert after[0] == "top_markets"


async def test_open_streams_are_limited_and_a_client_that_leaves_frees_its_place(
    tmp_path: Path, exchange: Exchange
) -> None:
    async with service_with(tmp_path / "store.sqlite", exchange, TopLimits(streams=1)) as service:
        async with stream(service, interval_s=30) as events:
            assert await events.next() is not None
            async with asyncio.timeout(60):
                status, answer = await service.get(PATH + "/stream")
            assert (status, answer["code"]) == (429, "rate_limited")
            events.response.close()
        async with asyncio.timeout(60):
            while True:
                async with service.http.get(service.url + PATH + "/stream", params={"max_events": 1}) as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.01)


async def test_a_service_that_stops_ends_its_streams_cleanly(tmp_path: Path, exchange: Exchange) -> None:
    async with aiohttp.ClientSession() as http:
        async with service_with(tmp_path / "store.sqlite", exchange) as service:
            response = await http.get(service.url + PATH + "/stream", params={"interval_s": 30})
            events = Events(response)
            assert await events.next() is not None
        assert await events.next() is None


async def test_the_simulated_exchange_is_ranked_through_the_rest_client() -> None:
    async with SimServer(SimConfig(symbols=8)) as simulated:
        entry = BinanceEntry(market_routes(simulated.http_url, simulated.http_url), {})
        registry = ExchangeRegistry([entry], context())
        top = TopMarkets(registry, clock=SYSTEM_CLOCK)
        for market in ("spot", "futures"):
            answer = await top.top(TopQuery("binance", market, "USDT", 500))
            volumes = [item.quote_volume for item in answer.items]
            assert volumes == sorted(volumes, reverse=True)
            assert {"BTC/USDT", "ETH/USDT"} <= {item.symbol for item in answer.items}
            status = registry.exchange("binance").rest()[market]
            assert (status.used, status.errors) == ({"spot": 100, "futures": 41}[market], {})
        await registry.close()

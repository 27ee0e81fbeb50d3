"""python-binance: the async client and BinanceSocketManager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from binance import AsyncClient, BinanceSocketManager
from binance.enums import HistoricalKlinesType
from binance.exceptions import BinanceAPIException
from simulated_exchange import (
    SPOT,
    USDM,
    Market,
    SimulatedExchange,
    assert_frames_end_in_the_rest_rows,
    closed_by,
)

SYMBOLS = ("BTCUSDT", "ETHUSDT")
EACH_MARKET = pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)
KIND = {SPOT: HistoricalKlinesType.SPOT, USDM: HistoricalKlinesType.FUTURES}
CLOSES = 4


@pytest.fixture
async def client(exchange: SimulatedExchange) -> AsyncIterator[AsyncClient]:
    class Pointed(AsyncClient):
        API_URL = f"{exchange.http_url}/api"
        FUTURES_URL = f"{exchange.http_url}/fapi"

    pointed = await Pointed.create()
    yield pointed
    await pointed.close_connection()


@pytest.fixture
def sockets(exchange: SimulatedExchange, client: AsyncClient) -> BinanceSocketManager:
    class Pointed(BinanceSocketManager):
        STREAM_URL = f"{exchange.ws_url}/"
        FSTREAM_URL = f"{exchange.ws_url}/"

    # The queue holds 100 messages by default, which futures at high speed exceed at once.
    return Pointed(client, max_queue_size=10_000)


async def test_exchange_info_names_every_symbol_and_its_filters(
    exchange: SimulatedExchange, client: AsyncClient
) -> None:
    spot, futures = await client.get_exchange_info(), await client.futures_exchange_info()
    assert [s["symbol"] for s in spot["symbols"]] == exchange.symbols(SPOT)
    assert [s["symbol"] for s in futures["symbols"]] == exchange.symbols(USDM)
    info = await client.get_symbol_info("BTCUSDT")
    assert {"PRICE_FILTER", "LOT_SIZE"} <= {f["filterType"] for f in info["filters"]}


@EACH_MARKET
async def test_klines_are_the_rest_rows(exchange: SimulatedExchange, client: AsyncClient, market: Market) -> None:
    ask = client.get_klines if market is SPOT else client.futures_klines
    for interval in ("1m", "15m"):
        now = exchange.now_ms(market)
        rows = await ask(symbol="BTCUSDT", interval=interval, limit=300)
        assert len(rows) == 300
        closed = closed_by(rows, now)
        assert len(closed) >= 298
        assert closed == exchange.rows(market, "BTCUSDT", interval, closed[0][0], closed[-1][0])


async def test_continuous_klines_of_the_perpetual_are_its_klines(
    exchange: SimulatedExchange, client: AsyncClient
) -> None:
    now = exchange.now_ms(USDM)
    rows = await client.futures_continuous_klines(pair="BTCUSDT", contractType="PERPETUAL", interval="1m", limit=100)
    closed = closed_by(rows, now)
    assert len(closed) >= 98
    assert closed == exchange.rows(USDM, "BTCUSDT", "1m", closed[0][0], closed[-1][0])


@EACH_MARKET
async def test_historical_klines_from_time_zero_start_at_the_first_candle_and_miss_none(
    exchange: SimulatedExchange, client: AsyncClient, market: Market
) -> None:
    first = exchange.first_open_ms(market, "ETHUSDT", "1m")
    end = first + 2_499 * 60_000
    rows = await client.get_historical_klines("ETHUSDT", "1m", 0, end, klines_type=KIND[market])
    assert rows[0][0] == first
    assert len(rows) == 2_500
    assert rows == exchange.rows(market, "ETHUSDT", "1m", first, end)


async def test_an_unknown_symbol_is_an_api_exception_with_the_exchanges_code(client: AsyncClient) -> None:
    for ask in (client.get_klines, client.futures_klines):
        with pytest.raises(BinanceAPIException) as error:
            await ask(symbol="NOPEUSDT", interval="1m")
        assert (error.value.status_code, error.value.code, error.value.message) == (400, -1121, "Invalid symbol.")


async def klines_until_closed(socket: Any) -> list[dict[str, Any]]:
    """All klines of a socket up to the CLOSES-th closed one."""
    klines: list[dict[str, Any]] = []
    async with socket as stream:
        while sum(k["x"] for k in klines) < CLOSES:
            message = await stream.recv()
            assert message["e"] in ("kline", "continuous_kline"), message
            klines.append(message["k"])
    return klines


@EACH_MARKET
async def test_kline_sockets_end_in_the_rest_rows(
    exchange: SimulatedExchange, sockets: BinanceSocketManager, market: Market
) -> None:
    # On USD-M this client subscribes to <pair>_perpetual@continuousKline_1m.
    open_socket = sockets.kline_socket if market is SPOT else sockets.kline_futures_socket
    async with asyncio.timeout(60):
        streams = await asyncio.gather(*(klines_until_closed(open_socket(symbol, "1m")) for symbol in SYMBOLS))
    for symbol, klines in zip(SYMBOLS, streams, strict=True):
        assert_frames_end_in_the_rest_rows(exchange, market, symbol, klines)


@EACH_MARKET
async def test_a_multiplexed_socket_carries_all_its_symbols(
    exchange: SimulatedExchange, sockets: BinanceSocketManager, market: Market
) -> None:
    open_socket = sockets.multiplex_socket if market is SPOT else sockets.futures_multiplex_socket
    klines: dict[str, list[dict[str, Any]]] = {symbol: [] for symbol in SYMBOLS}
    async with (
        asyncio.timeout(60),
        open_socket([f"{symbol.lower()}@kline_1m" for symbol in SYMBOLS]) as stream,
    ):
        while any(sum(k["x"] for k in of_symbol) < CLOSES for of_symbol in klines.values()):
            message = await stream.recv()
            assert message["stream"] == f"{message['data']['s'].lower()}@kline_1m"
            klines[message["data"]["s"]].append(message["data"]["k"])
    for symbol in SYMBOLS:
        assert_frames_end_in_the_rest_rows(exchange, market, symbol, klines[symbol])

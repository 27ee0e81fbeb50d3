"""ccxt: REST and pro (WebSocket), spot and USD-M through one exchange object, as its users run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import ccxt.pro
import pytest
from simulated_exchange import SPOT, USDM, Market, SimulatedExchange, as_floats, closed_by

SYMBOLS = {SPOT: ("BTC/USDT", "ETH/USDT"), USDM: ("BTC/USDT:USDT", "ETH/USDT:USDT")}
EACH_MARKET = pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)
CLOSES = 4


def exchange_name(symbol: str) -> str:
    """ccxt's BTC/USDT:USDT is the exchange's BTCUSDT."""
    return symbol.split(":")[0].replace("/", "")


@pytest.fixture
async def client(exchange: SimulatedExchange) -> AsyncIterator[ccxt.pro.binance]:
    http, ws = exchange.http_url, exchange.ws_url
    pointed = ccxt.pro.binance(
        {
            "urls": {
                "api": {
                    "public": f"{http}/api/v3",
                    "fapiPublic": f"{http}/fapi/v1",
                    # ccxt tells spot from futures by "/stream" in the URL, and turns a linear "/ws" into "/market/ws".
                    "ws": {"spot": f"{ws}/stream/ws", "linear": f"{ws}/ws"},
                }
            },
            "options": {"fetchMarkets": {"types": ["spot", "linear"]}},
        }
    )
    yield pointed
    await pointed.close()


async def test_load_markets_finds_every_symbol_of_both_markets(
    exchange: SimulatedExchange, client: ccxt.pro.binance
) -> None:
    markets = (await client.load_markets()).values()
    assert {m["id"] for m in markets if m["spot"]} == set(exchange.symbols(SPOT))
    assert {m["id"] for m in markets if m["swap"] and m["linear"]} == set(exchange.symbols(USDM))
    assert all(m["active"] and m["precision"]["price"] and m["precision"]["amount"] for m in markets)


async def test_fetch_time_is_the_exchanges_own(exchange: SimulatedExchange, client: ccxt.pro.binance) -> None:
    before = exchange.now_ms(SPOT)
    assert before <= await client.fetch_time() <= exchange.now_ms(SPOT)


@EACH_MARKET
@pytest.mark.parametrize("interval", ["1m", "5m", "1h"])
async def test_fetch_ohlcv_equals_the_rest_rows(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market, interval: str
) -> None:
    for symbol in SYMBOLS[market]:
        now = exchange.now_ms(market)
        newest = await client.fetch_ohlcv(symbol, interval, limit=200)
        assert len(newest) == 200
        rows = closed_by(exchange.rows(market, exchange_name(symbol), interval, newest[0][0], newest[-1][0]), now)
        assert len(rows) >= 199 - 1
        assert newest[: len(rows)] == [as_floats(row) for row in rows]


@EACH_MARKET
async def test_paging_from_since_zero_starts_at_the_first_candle_and_misses_none(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market
) -> None:
    symbol = SYMBOLS[market][0]
    paged: list[list[float]] = []
    since = 0
    for _ in range(3):
        paged += await client.fetch_ohlcv(symbol, "1m", since=since, limit=1000)
        since = paged[-1][0] + 1
    name = exchange_name(symbol)
    assert paged[0][0] == exchange.first_open_ms(market, name, "1m")
    assert len(paged) == 3000
    assert paged == [as_floats(row) for row in exchange.rows(market, name, "1m", paged[0][0], paged[-1][0])]


@EACH_MARKET
async def test_the_whole_history_can_be_paged_up_to_now(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market
) -> None:
    symbol = SYMBOLS[market][1]
    now = exchange.now_ms(market)
    paged: list[list[float]] = []
    since = 0
    while page := await client.fetch_ohlcv(symbol, "1h", since=since, limit=1000):
        paged += page
        since = page[-1][0] + 1
    rows = closed_by(exchange.rows(market, exchange_name(symbol), "1h", 0, paged[-1][0]), now)
    assert len(rows) > 1000
    assert paged[: len(rows)] == [as_floats(row) for row in rows]


@EACH_MARKET
async def test_fetch_tickers_knows_every_symbol(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market
) -> None:
    kind = {SPOT: {"type": "spot"}, USDM: {"type": "swap", "subType": "linear"}}[market]
    tickers = await client.fetch_tickers(params=kind)
    assert {exchange_name(symbol) for symbol in tickers} == set(exchange.symbols(market))
    assert all(t["low"] <= t["last"] <= t["high"] and t["quoteVolume"] >= 0 for t in tickers.values())


async def test_an_unknown_symbol_is_a_bad_symbol_also_when_the_exchange_says_so(client: ccxt.pro.binance) -> None:
    with pytest.raises(ccxt.BadSymbol):
        await client.fetch_ohlcv("NOPE/USDT", "1m")
    for ask in (client.public_get_klines, client.fapipublic_get_klines):
        with pytest.raises(ccxt.BadSymbol, match="-1121"):
            await ask({"symbol": "NOPEUSDT", "interval": "1m"})


async def test_an_unknown_interval_is_a_bad_request(client: ccxt.pro.binance) -> None:
    for ask in (client.public_get_klines, client.fapipublic_get_klines):
        with pytest.raises(ccxt.BadRequest, match="-1120"):
            await ask({"symbol": "BTCUSDT", "interval": "7m"})


async def watch(client: ccxt.pro.binance, symbol: str) -> list[list[float]]:
    """Follow a symbol until CLOSES candles have ended; the last state seen of each candle, the open one left out."""
    seen: dict[int, list[float]] = {}
    while len(seen) <= CLOSES:
        for candle in await client.watch_ohlcv(symbol, "1m"):
            seen[candle[0]] = list(candle)
    assert list(seen) == sorted(seen)
    return list(seen.values())[:-1]


def assert_watched_equals_rest(
    exchange: SimulatedExchange, market: Market, symbol: str, watched: list[list[float]]
) -> None:
    rows = exchange.rows(market, exchange_name(symbol), "1m", watched[0][0], watched[-1][0])
    assert watched == [as_floats(row) for row in rows if market is SPOT or row[8] > 0]


@EACH_MARKET
async def test_watch_ohlcv_of_several_symbols_ends_in_the_rest_rows(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market
) -> None:
    symbols = SYMBOLS[market]
    async with asyncio.timeout(60):
        watched = await asyncio.gather(*(watch(client, symbol) for symbol in symbols))
    for symbol, candles in zip(symbols, watched, strict=True):
        assert len(candles) >= CLOSES
        assert_watched_equals_rest(exchange, market, symbol, candles)


@EACH_MARKET
async def test_watch_ohlcv_for_symbols_follows_all_of_them_on_one_connection(
    exchange: SimulatedExchange, client: ccxt.pro.binance, market: Market
) -> None:
    symbols = SYMBOLS[market]
    seen: dict[str, dict[int, list[float]]] = {symbol: {} for symbol in symbols}
    async with asyncio.timeout(60):
        while any(len(candles) <= CLOSES for candles in seen.values()):
            update = await client.watch_ohlcv_for_symbols([[symbol, "1m"] for symbol in symbols])
            for symbol, by_timeframe in update.items():
                for candle in by_timeframe["1m"]:
                    seen[symbol][candle[0]] = list(candle)
    assert len(client.clients) == 1
    for symbol, candles in seen.items():
        assert_watched_equals_rest(exchange, market, symbol, list(candles.values())[:-1])


@EACH_MARKET
async def test_un_watch_ohlcv_ends_one_stream_and_leaves_the_other(client: ccxt.pro.binance, market: Market) -> None:
    left, kept = SYMBOLS[market]
    async with asyncio.timeout(60):
        await client.watch_ohlcv_for_symbols([[left, "1m"], [kept, "1m"]])
        await client.un_watch_ohlcv_for_symbols([[left, "1m"]])
        assert len(await watch(client, kept)) >= CLOSES
    # ccxt dropped the candles on unsubscribing, and its cache has not been filled again.
    assert not client.ohlcvs[left]

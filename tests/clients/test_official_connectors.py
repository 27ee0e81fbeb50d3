"""The exchange's own Python connectors: binance-sdk-spot and binance-sdk-derivatives-trading-usds-futures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from binance_common.configuration import ConfigurationRestAPI, ConfigurationWebSocketStreams
from binance_common.constants import TimeUnit
from binance_common.errors import BadRequestError
from binance_common.models import ApiResponse
from binance_sdk_derivatives_trading_usds_futures.derivatives_trading_usds_futures import DerivativesTradingUsdsFutures
from binance_sdk_derivatives_trading_usds_futures.rest_api.models import (
    ContinuousContractKlineCandlestickDataContractTypeEnum,
    ContinuousContractKlineCandlestickDataIntervalEnum,
    ExchangeInformationResponse,
    KlineCandlestickDataIntervalEnum,
)
from binance_sdk_derivatives_trading_usds_futures.websocket_streams.models import (
    ContinuousContractKlineCandlestickStreamsContractTypeEnum,
    ContinuousContractKlineCandlestickStreamsIntervalEnum,
    KlineCandlestickStreamsIntervalEnum,
)
from binance_sdk_spot.rest_api.models import ExchangeInfoResponse, KlinesIntervalEnum
from binance_sdk_spot.spot import Spot
from binance_sdk_spot.websocket_streams.models import KlineIntervalEnum, KlineOffsetIntervalEnum
from simulated_exchange import (
    SPOT,
    USDM,
    Market,
    SimulatedExchange,
    assert_frames_end_in_the_rest_rows,
    closed_by,
)

SYMBOLS = ("BTCUSDT", "ETHUSDT")
CLOSES = 4
REST_TIMEOUT_MS = 10_000


@pytest.fixture
def spot(exchange: SimulatedExchange) -> Spot:
    return Spot(
        config_rest_api=ConfigurationRestAPI(base_path=exchange.http_url, timeout=REST_TIMEOUT_MS),
        config_ws_streams=ConfigurationWebSocketStreams(stream_url=exchange.ws_url),
    )


@pytest.fixture
def usdm(exchange: SimulatedExchange) -> DerivativesTradingUsdsFutures:
    return DerivativesTradingUsdsFutures(
        config_rest_api=ConfigurationRestAPI(base_path=exchange.http_url, timeout=REST_TIMEOUT_MS),
        config_ws_streams=ConfigurationWebSocketStreams(stream_url=exchange.ws_url),
    )


def assert_klines_are_the_rest_rows(
    exchange: SimulatedExchange, market: Market, ask: Callable[..., ApiResponse[Any]], **which: Any
) -> None:
    """The newest 300 klines, and the first 1000 from time zero on, that `ask` finds for BTCUSDT 1m."""
    now = exchange.now_ms(market)
    newest = closed_by(ask(**which, limit=300).data(), now)
    assert len(newest) >= 298
    assert newest == exchange.rows(market, "BTCUSDT", "1m", newest[0][0], newest[-1][0])
    oldest = ask(**which, start_time=0, limit=1000).data()
    assert len(oldest) == 1000
    assert oldest[0][0] == exchange.first_open_ms(market, "BTCUSDT", "1m")
    assert oldest == exchange.rows(market, "BTCUSDT", "1m", oldest[0][0], oldest[-1][0])


def test_spot_klines_are_the_rest_rows(exchange: SimulatedExchange, spot: Spot) -> None:
    interval = KlinesIntervalEnum["INTERVAL_1m"]
    assert_klines_are_the_rest_rows(exchange, SPOT, spot.rest_api.klines, symbol="BTCUSDT", interval=interval)


def test_usdm_klines_are_the_rest_rows(exchange: SimulatedExchange, usdm: DerivativesTradingUsdsFutures) -> None:
    interval = KlineCandlestickDataIntervalEnum["INTERVAL_1m"]
    assert_klines_are_the_rest_rows(
        exchange, USDM, usdm.rest_api.kline_candlestick_data, symbol="BTCUSDT", interval=interval
    )


def test_usdm_continuous_klines_are_the_rest_rows(
    exchange: SimulatedExchange, usdm: DerivativesTradingUsdsFutures
) -> None:
    assert_klines_are_the_rest_rows(
        exchange,
        USDM,
        usdm.rest_api.continuous_contract_kline_candlestick_data,
        pair="BTCUSDT",
        contract_type=ContinuousContractKlineCandlestickDataContractTypeEnum.PERPETUAL,
        interval=ContinuousContractKlineCandlestickDataIntervalEnum["INTERVAL_1m"],
    )


def test_exchange_information_parses_into_the_connectors_models(
    exchange: SimulatedExchange, spot: Spot, usdm: DerivativesTradingUsdsFutures, caplog: pytest.LogCaptureFixture
) -> None:
    of_spot, of_usdm = spot.rest_api.exchange_info().data(), usdm.rest_api.exchange_information().data()
    # The connector returns an answer of an unexpected shape raw, with a warning in the log.
    assert isinstance(of_spot, ExchangeInfoResponse), caplog.text
    assert isinstance(of_usdm, ExchangeInformationResponse), caplog.text
    assert [s.symbol for s in of_spot.symbols] == exchange.symbols(SPOT)
    assert [s.symbol for s in of_usdm.symbols] == exchange.symbols(USDM)


def test_the_used_weight_is_told_with_each_answer(spot: Spot, usdm: DerivativesTradingUsdsFutures) -> None:
    for answer in (spot.rest_api.time(), usdm.rest_api.check_server_time()):
        told = {(limit.rateLimitType, limit.intervalNum, limit.interval) for limit in answer.rate_limits}
        assert told == {("REQUEST_WEIGHT", 1, "MINUTE")}
        assert answer.rate_limits[0].count >= 1


def test_spot_klines_in_microseconds_are_the_same_candles(exchange: SimulatedExchange, spot: Spot) -> None:
    micro = Spot(
        config_rest_api=ConfigurationRestAPI(
            base_path=exchange.http_url, timeout=REST_TIMEOUT_MS, time_unit=TimeUnit.MICROSECOND.value
        )
    )
    asked = {"symbol": "BTCUSDT", "interval": KlinesIntervalEnum["INTERVAL_1m"], "start_time": 0, "limit": 10}
    milliseconds, microseconds = spot.rest_api.klines(**asked).data(), micro.rest_api.klines(**asked).data()
    assert len(milliseconds) == 10
    for in_ms, in_us in zip(milliseconds, microseconds, strict=True):
        assert in_us[0] == in_ms[0] * 1000
        assert in_us[6] == in_ms[6] * 1000 + 999
        assert in_us[1:6] + in_us[7:] == in_ms[1:6] + in_ms[7:]


def test_an_unknown_symbol_is_a_bad_request_with_the_exchanges_code(
    spot: Spot, usdm: DerivativesTradingUsdsFutures
) -> None:
    asks = (
        (spot.rest_api.klines, KlinesIntervalEnum["INTERVAL_1m"]),
        (usdm.rest_api.kline_candlestick_data, KlineCandlestickDataIntervalEnum["INTERVAL_1m"]),
    )
    for ask, interval in asks:
        with pytest.raises(BadRequestError) as error:
            ask(symbol="NOPEUSDT", interval=interval)
        assert (error.value.status_code, error.value.error_message) == (-1121, "Invalid symbol.")


@pytest.fixture
async def spot_streams(spot: Spot) -> AsyncIterator[Any]:
    streams = await spot.websocket_streams.create_connection()
    yield streams
    await streams.close_connection()


@pytest.fixture
async def usdm_streams(usdm: DerivativesTradingUsdsFutures) -> AsyncIterator[Any]:
    streams = await usdm.websocket_streams.create_connection()
    # The connector opens three sockets; a refused one is logged, not raised.
    assert {connection.url_path for connection in streams.connections} == {"public", "market", "private"}
    yield streams
    await streams.close_connection()


async def assert_streams_end_in_the_rest_rows(
    exchange: SimulatedExchange, market: Market, subscribe: Callable[[str], Any]
) -> None:
    """Subscribe to the klines of all SYMBOLS on one connection and check them against REST."""
    klines: dict[str, list[dict[str, Any]]] = {symbol: [] for symbol in SYMBOLS}
    enough = asyncio.Event()

    def collect(symbol: str, message: Any) -> None:
        klines[symbol].append(json.loads(message.k.to_json()))
        if all(sum(k["x"] for k in of_symbol) >= CLOSES for of_symbol in klines.values()):
            enough.set()

    async with asyncio.timeout(60):
        for symbol in SYMBOLS:
            handle = await subscribe(symbol)
            handle.on("message", lambda message, symbol=symbol: collect(symbol, message))
        await enough.wait()
    for symbol in SYMBOLS:
        assert_frames_end_in_the_rest_rows(exchange, market, symbol, klines[symbol])


async def test_spot_kline_streams_end_in_the_rest_rows(exchange: SimulatedExchange, spot_streams: Any) -> None:
    interval = KlineIntervalEnum["INTERVAL_1m"]
    await assert_streams_end_in_the_rest_rows(
        exchange, SPOT, lambda symbol: spot_streams.kline(symbol=symbol.lower(), interval=interval.value)
    )


async def test_spot_kline_streams_of_another_time_zone_are_the_same_minutes(
    exchange: SimulatedExchange, spot_streams: Any
) -> None:
    interval = KlineOffsetIntervalEnum["INTERVAL_1m"]
    await assert_streams_end_in_the_rest_rows(
        exchange, SPOT, lambda symbol: spot_streams.kline_offset(symbol=symbol.lower(), interval=interval.value)
    )


async def test_usdm_kline_streams_end_in_the_rest_rows(exchange: SimulatedExchange, usdm_streams: Any) -> None:
    interval = KlineCandlestickStreamsIntervalEnum["INTERVAL_1m"]
    await assert_streams_end_in_the_rest_rows(
        exchange,
        USDM,
        lambda symbol: usdm_streams.kline_candlestick_streams(symbol=symbol.lower(), interval=interval.value),
    )


async def test_usdm_continuous_kline_streams_end_in_the_rest_rows(
    exchange: SimulatedExchange, usdm_streams: Any
) -> None:
    interval = ContinuousContractKlineCandlestickStreamsIntervalEnum["INTERVAL_1m"]
    await assert_streams_end_in_the_rest_rows(
        exchange,
        USDM,
        lambda symbol: usdm_streams.continuous_contract_kline_candlestick_streams(
            pair=symbol.lower(),
            contract_type=ContinuousContractKlineCandlestickStreamsContractTypeEnum.perpetual.value,
            interval=interval.value,
        ),
    )

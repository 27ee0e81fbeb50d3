"""unicorn-binance-websocket-api: streams in threads of its own; it pings the server every five seconds."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
from simulated_exchange import SPOT, USDM, Market, SimulatedExchange, assert_frames_end_in_the_rest_rows
from unicorn_binance_websocket_api import BinanceWebSocketApiManager

EXCHANGE_NAME = {SPOT: "binance.com", USDM: "binance.com-futures"}
CLOSES = 7  # longer than its ping interval
DEADLINE_S = 60


@pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)
def test_kline_streams_of_every_symbol_end_in_the_rest_rows(exchange: SimulatedExchange, market: Market) -> None:
    symbols = exchange.symbols(market)[:5]
    arrived: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    klines: dict[str, list[dict[str, Any]]] = {symbol: [] for symbol in symbols}
    manager = BinanceWebSocketApiManager(
        exchange=EXCHANGE_NAME[market],
        websocket_base_uri=f"{exchange.ws_url}/",
        output_default="dict",
        warn_on_update=False,
        disable_colorama=True,
    )
    try:
        assert manager.create_stream(["kline_1m"], symbols, process_stream_data=arrived.put)
        deadline = time.monotonic() + DEADLINE_S
        # The first two trade in every minute; of the others, a minute without a trade closes silently on USD-M.
        while any(sum(k["x"] for k in klines[symbol]) < CLOSES for symbol in symbols[:2]):
            message = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            if "data" in message:
                klines[message["data"]["s"]].append(message["data"]["k"])
            else:
                assert message["result"] is None, message
    finally:
        manager.stop_manager()
    assert manager.get_reconnects() == 0
    for symbol in symbols:
        assert_frames_end_in_the_rest_rows(exchange, market, symbol, klines[symbol])

"""unicorn-binance-websocket-api: streams in threads of its own; it pings the server, every five seconds by default."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
from simulated_exchange import SPOT, USDM, Market, SimulatedExchange, assert_frames_end_in_the_rest_rows
from unicorn_binance_websocket_api import BinanceWebSocketApiManager

EXCHANGE_NAME = {SPOT: "binance.com", USDM: "binance.com-futures"}
PING_INTERVAL_S = 1
CLOSES = 5  # that takes longer than a ping interval
DEADLINE_S = 60


@pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)
def test_kline_streams_of_every_symbol_end_in_the_rest_rows(exchange: SimulatedExchange, market: Market) -> None:
    # The last symbol is quiet. Spot closes minutes without a trade too; USD-M sends nothing for them, sometimes for
    # long.
    symbols = exchange.symbols(market) if market is SPOT else exchange.symbols(market)[:-1]
    arrived: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    klines: dict[str, list[dict[str, Any]]] = {symbol: [] for symbol in symbols}
    manager = BinanceWebSocketApiManager(
        exchange=EXCHANGE_NAME[market],
        websocket_base_uri=f"{exchange.ws_url}/",
        output_default="dict",
        warn_on_update=False,
        disable_colorama=True,
        ping_interval_default=PING_INTERVAL_S,
        ping_timeout_default=PING_INTERVAL_S,
    )
    try:
        assert manager.create_stream(["kline_1m"], symbols, process_stream_data=arrived.put)
        deadline = time.monotonic() + DEADLINE_S
        while any(sum(k["x"] for k in of_symbol) < CLOSES for of_symbol in klines.values()):
            message = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            if "data" in message:
                klines[message["data"]["s"]].append(message["data"]["k"])
            else:
                assert message["result"] is None, message
        connections = exchange.get("/sim/state")["connections"]
        # Without answers to its pings the client would have given up the connection by now.
        assert sum(connection["pings_received"] for connection in connections) >= 1
    finally:
        manager.stop_manager()
    assert manager.get_reconnects() == 0
    for symbol in symbols:
        assert_frames_end_in_the_rest_rows(exchange, market, symbol, klines[symbol])

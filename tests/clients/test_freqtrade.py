"""freqtrade: its own command line in a process of its own, as its users run it before a backtest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import documentation
import loopback_only
import pyarrow.feather
import pytest
from simulated_exchange import MINUTE_MS, SPOT, USDM, Market, SimulatedExchange, as_floats

DAY_MS = 86_400_000
COMMAND_TIMEOUT_S = 80
PAIRS = {SPOT: ("BTC/USDT", "ETH/USDT"), USDM: ("BTC/USDT:USDT", "ETH/USDT:USDT")}
EACH_MARKET = pytest.mark.parametrize("market", [SPOT, USDM], ids=lambda market: market.name)


class Freqtrade:
    """A freqtrade user directory whose exchange is the simulated one."""

    def __init__(self, exchange: SimulatedExchange, market: Market, directory: Path) -> None:
        self.directory = directory
        self.refused = directory / "refused-addresses.txt"
        self.config = directory / "config.json"
        settings = json.loads(documentation.pointed(documentation.blocks("json")[0], exchange))
        settings["exchange"]["pair_whitelist"] = PAIRS[market]
        if market is USDM:
            settings |= {"trading_mode": "futures", "margin_mode": "isolated"}
            settings["exchange"]["ccxt_config"]["options"]["fetchMarkets"]["types"] = ["linear"]
        self.config.write_text(json.dumps(settings))

    def run(self, *arguments: str) -> str:
        """Run a sub-command to its end; what it printed on stdout. Fails the test with its log when it fails."""
        done = subprocess.run(
            [
                Path(sys.executable).with_name("freqtrade"),
                *arguments,
                "--config",
                self.config,
                "--userdir",
                self.directory,
            ],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=self.directory,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(loopback_only.__file__).parent),
                loopback_only.LOG: str(self.refused),
            },
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert " ERROR " not in done.stderr, done.stderr
        assert not self.refused.exists(), self.refused.read_text()
        return done.stdout


@EACH_MARKET
def test_download_data_writes_the_rest_rows(calm_exchange: SimulatedExchange, market: Market, tmp_path: Path) -> None:
    freqtrade = Freqtrade(calm_exchange, market, tmp_path)
    before = calm_exchange.now_ms(market)
    freqtrade.run("download-data", "--timeframes", "1m", "5m", "--days", "1", "--data-format-ohlcv", "feather")
    for pair in PAIRS[market]:
        for timeframe, step_ms in (("1m", MINUTE_MS), ("5m", 5 * MINUTE_MS)):
            stem = pair.replace("/", "_").replace(":", "_")
            name = f"{stem}-{timeframe}.feather" if market is SPOT else f"futures/{stem}-{timeframe}-futures.feather"
            table = pyarrow.feather.read_table(tmp_path / "data" / "binance" / name)
            opens_ms = [int(when.timestamp() * 1000) for when in table["date"].to_pylist()]
            columns = [table[column].to_pylist() for column in ("open", "high", "low", "close", "volume")]
            symbol = pair.split(":")[0].replace("/", "")
            rows = calm_exchange.rows(market, symbol, timeframe, opens_ms[0], opens_ms[-1])
            assert [list(row) for row in zip(opens_ms, *columns, strict=True)] == [as_floats(row) for row in rows]
            # A whole day, up to the last candle that had closed; only the newest, still open, is left out.
            assert opens_ms[0] <= before - DAY_MS + step_ms
            assert opens_ms[-1] >= before - 2 * step_ms


@EACH_MARKET
def test_list_markets_and_list_pairs_name_every_symbol(
    calm_exchange: SimulatedExchange, market: Market, tmp_path: Path
) -> None:
    freqtrade = Freqtrade(calm_exchange, market, tmp_path)
    for command in ("list-markets", "list-pairs"):
        printed = freqtrade.run(command, "--print-json")
        pairs = json.loads(printed.splitlines()[-1])
        assert {pair.split(":")[0].replace("/", "") for pair in pairs} == set(calm_exchange.symbols(market))

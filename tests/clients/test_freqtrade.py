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
from simulated_exchange import MINUTE_MS, SPOT, USDM, Market, SimulatedExchange, as_floats, simulated_exchange

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


def stored(directory: Path, market: Market, pair: str, timeframe: str) -> list[list[float]]:
    """The candles of a freqtrade data file, as [open time ms, open, high, low, close, volume]."""
    stem = pair.replace("/", "_").replace(":", "_")
    name = f"{stem}-{timeframe}.feather" if market is SPOT else f"futures/{stem}-{timeframe}-futures.feather"
    table = pyarrow.feather.read_table(directory / name)
    opens_ms = [int(when.timestamp() * 1000) for when in table["date"].to_pylist()]
    columns = [table[column].to_pylist() for column in ("open", "high", "low", "close", "volume")]
    return [list(row) for row in zip(opens_ms, *columns, strict=True)]


@EACH_MARKET
def test_download_data_writes_the_rest_rows(calm_exchange: SimulatedExchange, market: Market, tmp_path: Path) -> None:
    freqtrade = Freqtrade(calm_exchange, market, tmp_path)
    before = calm_exchange.now_ms(market)
    freqtrade.run("download-data", "--timeframes", "1m", "5m", "--days", "1")
    for pair in PAIRS[market]:
        for timeframe, step_ms in (("1m", MINUTE_MS), ("5m", 5 * MINUTE_MS)):
            candles = stored(tmp_path / "data" / "binance", market, pair, timeframe)
            symbol = pair.split(":")[0].replace("/", "")
            rows = calm_exchange.rows(market, symbol, timeframe, candles[0][0], candles[-1][0])
            assert candles == [as_floats(row) for row in rows]
            # More than a day, up to the last closed candle; the newest candle is left out, as it may be forming.
            assert candles[0][0] <= before - DAY_MS + step_ms
            assert candles[-1][0] >= before - 3 * step_ms


@pytest.mark.parametrize(("market", "recorded"), [(SPOT, "spot"), (USDM, "futures_um")], ids=["spot", "usdm"])
def test_what_freqtrade_recorded_once_it_downloads_again_bit_for_bit(
    market: Market, recorded: str, tmp_path: Path
) -> None:
    if not os.environ.get("KLINESYNC_REAL_DATA"):
        pytest.skip("KLINESYNC_REAL_DATA is not set: there are no recorded candles to replay")
    directory = Path(os.environ["KLINESYNC_REAL_DATA"]) / recorded
    with simulated_exchange("--data", str(directory)) as exchange:
        shift_ms = exchange.get("/sim/state")["shift_s"] * 1000
        Freqtrade(exchange, market, tmp_path).run("download-data", "--timeframes", "1m", "--days", "1")
    for pair in PAIRS[market]:
        candles = stored(tmp_path / "data" / "binance", market, pair, "1m")
        assert len(candles) > DAY_MS / MINUTE_MS
        truth = {row[0] + shift_ms: row[1:] for row in stored(directory, market, pair, "1m")}
        assert {row[0]: row[1:] for row in candles} == {
            time: values for time, values in truth.items() if candles[0][0] <= time <= candles[-1][0]
        }


@pytest.mark.parametrize(("command", "market"), [("list-markets", SPOT), ("list-pairs", USDM)])
def test_it_lists_every_symbol(calm_exchange: SimulatedExchange, command: str, market: Market, tmp_path: Path) -> None:
    printed = Freqtrade(calm_exchange, market, tmp_path).run(command, "--print-json")
    pairs = json.loads(printed.splitlines()[-1])
    assert {pair.split(":")[0].replace("/", "") for pair in pairs} == set(calm_exchange.symbols(market))

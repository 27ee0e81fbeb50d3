"""The simulated exchange as a process, and its answers over plain HTTP, which the tests take as the truth."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
MINUTE_MS = 60_000

# [open time ms, open, high, low, close, volume, close time ms, quote volume, trades, taker base, taker quote, "0"]
Row = list[Any]


@dataclass(frozen=True, slots=True)
class Market:
    """One of the exchange's two markets: how its REST paths begin, and how many klines one page may hold."""

    name: str
    rest: str
    page: int


SPOT = Market("spot", "/api/v3", 1000)
USDM = Market("usdm", "/fapi/v1", 1500)


class ExchangeError(Exception):
    """A REST answer other than 200, with its status and body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class SimulatedExchange:
    """A running `klinesync sim`. All times are its own, in ms; `rows` are REST klines exactly as it sent them."""

    http_url: str

    @property
    def ws_url(self) -> str:
        return self.http_url.replace("http://", "ws://")

    def get(self, path: str, **params: str | int) -> Any:
        """The decoded body of a GET. Raises `ExchangeError`."""
        url = f"{self.http_url}{path}?{urllib.parse.urlencode(params)}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(url, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ExchangeError(error.code, error.read().decode()) from None

    def now_ms(self, market: Market) -> int:
        return int(self.get(f"{market.rest}/time")["serverTime"])

    def symbols(self, market: Market) -> list[str]:
        """All symbols that trade, in the exchange's order."""
        return [s["symbol"] for s in self.get(f"{market.rest}/exchangeInfo")["symbols"] if s["status"] == "TRADING"]

    def first_open_ms(self, market: Market, symbol: str, interval: str) -> int:
        """Open time of the oldest candle that there is."""
        rows = self.get(f"{market.rest}/klines", symbol=symbol, interval=interval, startTime=0, limit=1)
        return int(rows[0][0])

    def rows(self, market: Market, symbol: str, interval: str, start_ms: int, end_ms: int) -> list[Row]:
        """All klines that open in [start_ms, end_ms], over as many pages as it takes, ascending."""
        found: list[Row] = []
        while start_ms <= end_ms:
            page = self.get(
                f"{market.rest}/klines",
                symbol=symbol,
                interval=interval,
                startTime=start_ms,
                endTime=end_ms,
                limit=market.page,
            )
            found += page
            if len(page) < market.page:
                break
            start_ms = page[-1][0] + 1
        return found


def closed_by(rows: list[Row], now_ms: int) -> list[Row]:
    """The rows whose candle had closed at `now_ms`, and so are final."""
    return [row for row in rows if row[6] < now_ms]


def as_floats(row: Row) -> list[float]:
    """[open time, open, high, low, close, volume]: the columns that clients like ccxt keep of a row."""
    return [row[0], *map(float, row[1:6])]


def row_of_frame(kline: dict[str, Any]) -> Row:
    """The `k` object of a kline frame as the REST row of the same candle, without the unused last column."""
    return [kline[key] for key in ("t", "o", "h", "l", "c", "v", "T", "q", "n", "V", "Q")]


def exact(row: Row) -> list[int | Decimal]:
    """A row by value: "3917" and "3917.000" are the same volume."""
    return [value if isinstance(value, int) else Decimal(value) for value in row[:11]]


def assert_frames_end_in_the_rest_rows(
    exchange: SimulatedExchange, market: Market, symbol: str, klines: list[dict[str, Any]]
) -> None:
    """Check one symbol's live klines, all frames in order of arrival, at least two of them closing ones.

    Forming candles are seen too. Open times never go back; each candle ends in exactly one closed frame, its last;
    no candle that was traded is missing (USD-M is silent about a minute without a trade, spot is not); closed values
    are those of REST.
    """
    times = [k["t"] for k in klines]
    assert times == sorted(times)
    closes = [k for k in klines if k["x"]]
    assert 2 <= len(closes) < len(klines)
    assert all(k["T"] == k["t"] + MINUTE_MS - 1 for k in klines)
    for earlier, later in itertools.pairwise(klines):
        # The frame that closes a candle is the last of that candle, and a new candle starts only after it.
        assert earlier["x"] == (later["t"] > earlier["t"])
    truth = exchange.rows(market, symbol, "1m", closes[0]["t"], closes[-1]["t"])
    told = [row for row in truth if market is SPOT or row[8] > 0]
    assert [exact(row_of_frame(k)) for k in closes] == [exact(row) for row in told]


def klinesync() -> Path:
    """The command under test: `KLINESYNC` when set, else the command of the project's own environment."""
    return Path(os.environ.get("KLINESYNC") or REPOSITORY / ".venv" / "bin" / "klinesync")


@contextmanager
def simulated_exchange(*options: str) -> Iterator[SimulatedExchange]:
    """A running `klinesync sim` with these options on a free port; stopped at the end of the block."""
    process = subprocess.Popen(
        [klinesync(), "sim", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "PYTHONUNBUFFERED": "1"},
    )
    said: list[str] = []
    address: list[str] = []
    settled = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found and not address:
                address.append(found[0])
                settled.set()
        settled.set()

    listener = threading.Thread(target=listen, name="sim-output", daemon=True)
    listener.start()
    try:
        settled.wait(START_TIMEOUT_S)
        assert address, f"the simulated exchange did not come up:\n{''.join(said)}"
        yield SimulatedExchange(address[0])
        assert process.poll() is None, f"the simulated exchange died:\n{''.join(said)}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            listener.join()
            assert process.stdout is not None
            process.stdout.close()

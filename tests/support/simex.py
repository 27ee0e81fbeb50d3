"""An exchange object like ccxt's, backed by the simulated exchange."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Mapping, Sequence

from klinesync.exchanges.ccxt.rows import Row


class Pointed:
    """An exchange object like ccxt's, backed by the simulated exchange. It is polled: it has no `watch_ohlcv`."""

    rate_limit_ms = 5.0

    def __init__(self, url: str) -> None:
        self.has: Mapping[str, object] = {"fetchOHLCV": True, "fetchTime": True}
        self.timeframes: Mapping[str, object] | None = {"1m": "1m", "5m": "5m", "1h": "1h"}
        self.rateLimit = self.rate_limit_ms
        self.last_response_headers: Mapping[str, str] | None = None
        self.url = url
        self.closed = False
        self.listed: Callable[[list[str]], list[str]] = list  # the part of the list of base assets that is sent
        self.lists = 0

    async def _get(self, path: str, **params: object) -> object:
        text = "&".join(f"{name}={value}" for name, value in params.items() if value is not None)

        def ask() -> object:
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"{self.url}{path}?{text}", timeout=10) as answer:
                return json.load(answer)

        return await asyncio.to_thread(ask)

    async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
        def market(base: str, symbol_id: str, settle: str | None) -> Mapping[str, object]:
            kind = {"spot": settle is None, "swap": settle is not None}
            return {"base": base, "quote": "USDT", "settle": settle, "id": symbol_id, "active": True} | kind

        self.lists += 1
        bases = self.listed(["BTC", "ETH", *(f"S{number}" for number in range(30))])
        listed = {f"{base}/USDT": market(base, f"{base}USDT", None) for base in bases}
        return listed | {f"{base}/USDT:USDT": market(base, f"{base}USDT", "USDT") for base in bases}

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        return 500

    async def fetch_time(self) -> int | None:
        told = await self._get("/api/v3/time")
        assert isinstance(told, dict)
        return int(told["serverTime"])

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str, since: int | None = None, limit: int | None = None
    ) -> Sequence[Row]:
        prefix = "/fapi/v1" if ":" in symbol else "/api/v3"
        name = symbol.partition(":")[0].replace("/", "")
        rows = await self._get(f"{prefix}/klines", symbol=name, interval=timeframe, startTime=since, limit=limit)
        assert isinstance(rows, list)
        return [[row[0], *(float(value) for value in row[1:6])] for row in rows]

    async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
        return {}

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
        raise NotImplementedError

    async def un_watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True

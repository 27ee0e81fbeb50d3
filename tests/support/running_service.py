"""The service and the simulated exchange in this process, over real sockets, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from klinesync.core.backoff import Backoff
from klinesync.exchanges.registry import ExchangeEntry
from klinesync.history.pending import RetryPolicy
from klinesync.market.app import bind, create_app, create_server
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.runtime.flags import load_flags
from klinesync.sim.server import SimServer


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: its address, its parts, and a client session."""

    url: str
    runtime: MarketRuntime
    http: aiohttp.ClientSession

    async def get(self, path: str, **params: str | int) -> tuple[int, dict[str, object]]:
        async with self.http.get(self.url + path, params=params) as response:
            return response.status, await response.json()

    async def answer(self, path: str, **params: str | int) -> Any:
        """The answer to a request that must succeed."""
        status, answer = await self.get(path, **params)
        assert status == 200, answer
        return answer

    async def ingest(self, name: str, rows: Sequence[object]) -> Any:
        """Post closed candles of a series, as the bodies of requests have them."""
        status, answer = await self.post("/api/market/ingest/candles_closed", {"series_id": name, "candles": rows})
        assert status == 200, answer
        return answer

    async def post(self, path: str, body: object) -> tuple[int, dict[str, object]]:
        raw = BytesIO(json.dumps(body).encode())
        headers = {"Content-Type": "application/json"}
        async with self.http.post(self.url + path, data=raw, headers=headers) as response:
            return response.status, await response.json()


def retrying(initial_s: float, most_s: float = 300.0, tuning: Tuning = USUAL_TUNING) -> Surroundings:
    """Surroundings in which a failed request of history is retried after `initial_s`, doubled each time.
    `tuning`: all other limits and timings."""
    return Surroundings(tuning=replace(tuning, retries=RetryPolicy(Backoff(initial_s, most_s))))


@asynccontextmanager
async def running_service(
    store: Path,
    exchange: SimServer | None = None,
    other: ExchangeEntry | None = None,
    around: Surroundings | None = None,
    /,
    **flags: str,
) -> AsyncIterator[Service]:
    """A service on `store`, following `exchange`; without an exchange nothing is followed, and the exchange is
    unreachable. `other`: an entry of the registry in addition to those of the flags. `around`: its clock, jitter and
    tuning."""
    nowhere = "127.0.0.1:9"
    rest_url = f"http://{nowhere}" if exchange is None else exchange.http_url
    ws_url = f"ws://{nowhere}" if exchange is None else exchange.ws_url
    given = {
        "database_url": f"sqlite:///{store}",
        "binance_spot_rest_url": rest_url,
        "binance_futures_rest_url": rest_url,
        "binance_spot_ws_url": ws_url,
        "binance_futures_ws_url": ws_url,
        "enable_whitelist_ingest": "off" if exchange is None else "on",
    } | flags
    async with (
        build_market_runtime(load_flags(given), around, entries=[] if other is None else [other]) as runtime,
        aiohttp.ClientSession() as http,
    ):
        listener = bind("127.0.0.1", 0)
        server = create_server(create_app(runtime), runtime)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", runtime, http)
        finally:
            server.stop()
            await serving

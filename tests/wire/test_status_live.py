"""The status of the whole service, over real sockets: its route and its stream. What it says while the exchange is in
trouble is simulated under virtual time (`sim/test_service_status.py`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.sim.faults import RestError
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
TIMEOUT_S = 60.0
Json = dict[str, Any]
FEW = {"whitelist": BTC, "startup_kline_sync_target_candles": "20", "audit_interval_s": "0"}


async def status(service: Service) -> Json:
    code, answer = await service.get("/api/market/status")
    assert code == 200, answer
    return answer


async def until(service: Service, true: Callable[[Json], bool]) -> list[Json]:
    """The answers up to the first that satisfies the condition."""
    seen: list[Json] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                seen.append(await status(service))
                if true(seen[-1]):
                    return seen
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it did not come to that: {seen[-1]}") from None


def spot(answer: Json) -> Json:
    return next(exchange for exchange in answer["exchanges"] if exchange["market"] == "spot")


def is_live(answer: Json) -> bool:
    return (answer["status"], spot(answer)["state"], spot(answer)["streams"]["live"]) == ("green", "live", 1)


@asynccontextmanager
async def events(service: Service) -> AsyncIterator[list[Json]]:
    """The events of the status stream so far."""
    told: list[Json] = []

    async def read(response: aiohttp.ClientResponse) -> None:
        lines: dict[str, str] = {}
        async for raw in response.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name:
                lines[name] = value
            else:
                assert lines["event"] == "status"
                told.append(json.loads(lines["data"]))
                assert lines["id"] == str(told[-1]["now_time"])

    async with service.http.get(service.url + "/api/market/status/stream", timeout=aiohttp.ClientTimeout()) as response:
        assert response.content_type == "text/event-stream"
        reading = asyncio.create_task(read(response))
        try:
            yield told
        finally:
            reading.cancel()
            await asyncio.wait([reading])


async def test_a_refusal_is_red_at_once_and_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    async with SimServer(SimConfig(symbols=2)) as exchange:
        fault = exchange.faults.add(RestError(status=451))
        async with running_service(tmp_path / "store.sqlite", exchange, **FEW) as service:
            seen = await until(service, lambda one: one["status_reason"] == "exchange_refuses")
            assert "answered 451: -1000 " in seen[-1]["detail"], "what the exchange said"
            code, ready = await service.get("/readyz")
            assert (code, ready["status"]) == (200, "ready"), "what is stored is served"
            assert "451" in str(ready["detail"])
            code, health = await service.get("/api/market/health", series_id=BTC)
            assert (health["status"], health["status_reason"]) == ("red", "exchange_refuses")
            assert "answered 451: -1000 " in str(health["detail"])
            exchange.faults.remove(fault)
            await until(service, is_live)
            assert await service.get("/readyz") == (200, {"status": "ready"})


async def test_without_ingest_the_status_is_green_and_says_so(tmp_path: Path) -> None:
    off = {"enable_whitelist_ingest": "off", "enable_ondemand_ingest": "off"}
    async with running_service(tmp_path / "store.sqlite", **off) as service:
        answer = await status(service)
        assert (answer["status"], answer["status_reason"]) == ("green", "ingest_off")
        assert answer["series"] == {"followed": 0, "green": 0, "yellow": 0, "red": 0}
        store = answer["store"]
        assert isinstance(store, dict)
        assert {name: store[name] for name in ("ok", "detail", "queued_candles")} == {
            "ok": True,
            "detail": None,
            "queued_candles": 0,
        }
        assert store["scrub"].keys() == {"progress_pct", "started_time", "finished_time"}
    async with running_service(tmp_path / "other.sqlite", enable_whitelist_ingest="off") as service:
        assert (await status(service))["status_reason"] == "idle"


async def test_the_status_stream_shows_an_on_demand_series_go_live(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, **FEW) as service,
    ):
        await until(service, is_live)
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": "binance:spot:ETH/USDT:1m", "ack": True})
            states: list[str] = []
            async with asyncio.timeout(TIMEOUT_S):
                while not states or states[-1] != "live":
                    message = await socket.receive_json()
                    if message["type"] == "subscribed":
                        states.append(message["stream"])
                    elif message["type"] == "system" and message["event"].startswith("stream."):
                        states.append(message["data"]["state"])
            assert states[0] == "reconnecting"
            assert len(states) == len(set(states))
            await until(service, lambda one: bool(spot(one)["streams"]["live"] == 2))


async def test_more_streams_of_status_than_may_be_open_are_refused(tmp_path: Path) -> None:
    around = Surroundings(tuning=Tuning(status_streams=1))
    async with running_service(tmp_path / "store.sqlite", None, None, around) as service, events(service) as told:
        async with asyncio.timeout(TIMEOUT_S):
            while not told:
                await asyncio.sleep(0.01)
        code, answer = await service.get("/api/market/status/stream")
        assert (code, answer["code"]) == (429, "rate_limited")

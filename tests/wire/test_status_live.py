"""The status of the whole service, over real sockets, while the simulated exchange is quiet, dies and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from klinesync.exchanges.binance.timings import RECONNECT, StreamTimings
from klinesync.exchanges.reach import USUAL_SILENCE
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.sim.faults import RefuseConnect, RestError, Silent
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


async def test_an_exchange_that_dies_is_red_within_seconds_and_green_again_once_it_is_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        exchange = SimServer(SimConfig(symbols=2))
        await exchange.__aenter__()
        port = int(exchange.http_url.rpartition(":")[2])
        service = await stack.enter_async_context(running_service(tmp_path / "store.sqlite", exchange, **FEW))
        await until(service, is_live)
        told = await stack.enter_async_context(events(service))
        socket = await stack.enter_async_context(service.http.ws_connect(service.url + "/ws/market"))
        await socket.send_json({"type": "subscribe", "series_id": BTC, "ack": True})
        assert (await socket.receive_json())["stream"] == "live"
        await exchange.__aexit__(None, None, None)
        seen = await until(service, lambda one: one["status"] == "red")
        assert seen[-1]["status_reason"] == "exchange_unreachable"
        dead = spot(seen[-1])
        assert dead["state"] == "unreachable"
        assert dead["streams"]["reconnecting"] == 1
        assert dead["since"] is not None
        assert dead["last_frame_at"] is not None
        assert dead["detail"]
        # A market without followed series has no trouble.
        assert [exchange["state"] for exchange in seen[-1]["exchanges"] if exchange["market"] == "futures"] == ["idle"]
        assert all(one["status"] != "green" for one in seen if not spot(one)["streams"]["live"])
        async with asyncio.timeout(TIMEOUT_S):
            while told[-1]["status"] != "red":
                await asyncio.sleep(0.05)
        async with SimServer(SimConfig(symbols=2, port=port)):
            await until(service, is_live)
            stream_events: list[Json] = []
            async with asyncio.timeout(TIMEOUT_S):
                while not stream_events or stream_events[-1]["event"] != "stream.live":
                    message = await socket.receive_json()
                    if message["type"] == "system" and message["event"].startswith("stream."):
                        stream_events.append(message)
                while not is_live(told[-1]):
                    await asyncio.sleep(0.05)
            names = [event["event"] for event in stream_events]
            assert names[0] == "stream.reconnecting"
            assert all(before != after for before, after in pairwise(names)), "each change, once"
            for event in stream_events:
                assert event["data"]["state"] == event["event"].removeprefix("stream.")
                assert event["data"]["since"] is not None
            assert "lost" in stream_events[0]["data"]["detail"]
            assert {one["status"] for one in told} == {"green", "yellow", "red"}


async def test_all_streams_are_live_within_ten_seconds_of_the_exchanges_return(tmp_path: Path) -> None:
    """For any backoff of each connection."""
    longest = replace(RECONNECT, initial_s=RECONNECT.most_s)
    around = Surroundings(tuning=Tuning(binance_streams=StreamTimings(reconnect=longest)))
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(SimServer(SimConfig(symbols=4)))
        port = int(exchange.http_url.rpartition(":")[2])
        names = ("BTC", "ETH", "BNB", "SOL")
        flags = FEW | {
            "whitelist": ",".join(
                f"binance:{market}:{name}/USDT:1m" for market in ("spot", "futures") for name in names
            ),
            "binance_ws_streams_per_connection": "1",
        }
        running = running_service(tmp_path / "store.sqlite", exchange, None, around, **flags)
        service = await stack.enter_async_context(running)
        supervisor = service.runtime.supervisors

        def live() -> int:
            return sum(job.state == "live" for job in supervisor.jobs_state())

        async with asyncio.timeout(TIMEOUT_S):
            while live() < 8:
                await asyncio.sleep(0.05)
        await exchange.__aexit__(None, None, None)
        await until(service, lambda one: one["status"] == "red")
        assert live() == 0
        async with SimServer(SimConfig(symbols=4, port=port)), asyncio.timeout(10):
            while live() < 8:
                await asyncio.sleep(0.05)


async def test_a_quiet_exchange_is_asked_for_its_time_and_is_never_red(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, **FEW) as service,
    ):
        await until(service, is_live)
        exchange.faults.add(Silent())
        watch = service.runtime.supervisors.by_name()["binance"]._markets["spot"].reach

        def was_silent_for_long(_: Json) -> bool:
            last_s = watch.frame_s
            now_s = asyncio.get_running_loop().time()
            return last_s is not None and now_s - last_s > 2 * USUAL_SILENCE.unreachable_after_s

        seen = await until(service, was_silent_for_long)
        assert all(one["status"] != "red" and spot(one)["state"] != "unreachable" for one in seen)


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


async def test_handshakes_that_fail_while_rest_answers_are_yellow(tmp_path: Path) -> None:
    async with SimServer(SimConfig(symbols=2)) as exchange:
        fault = exchange.faults.add(RefuseConnect())
        async with running_service(tmp_path / "store.sqlite", exchange, **FEW) as service:
            seen = await until(service, lambda one: one["status_reason"] == "handshakes_fail")
            assert seen[-1]["status"] == "yellow"
            assert spot(seen[-1])["state"] == "degraded"
            exchange.faults.remove(fault)
            await until(service, is_live)


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

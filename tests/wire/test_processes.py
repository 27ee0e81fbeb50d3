"""The commands as users run them: processes, signals, exit status, kill -9."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle, Disconnected
from klinesync.core.candle import Candle
from support.processes import SERIES, in_process, klinesync, running, serve_arguments


async def stored(url: str) -> list[Candle]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(url + "/api/market/candles", params={"series_id": str(SERIES), "limit": "5000"}) as response,
    ):
        page = await response.json()
    return [Candle(*row.values()) for row in page["candles"]]


async def test_after_kill_9_no_candle_that_a_client_saw_is_missing_and_the_hole_is_filled(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    seen: dict[int, Candle] = {}
    async with running("sim", "--speed=600", "--symbols=2", log=log) as exchange:
        address = await exchange.address("exchange")
        for round_number in range(3):
            async with running(*serve_arguments(address, store), log=log) as service:
                url = await service.address("serves")
                async with aclosing(follow(url, SERIES, max(seen, default=0))) as updates:
                    count = 0
                    async for update in updates:
                        if isinstance(update, ClosedCandle):
                            seen[update.candle.time] = update.candle
                            count += 1
                        # During the first history, and then during live candles.
                        if count == (700, 1310, 20)[round_number]:
                            break
                service.process.kill()
                assert await service.process.wait() == -signal.SIGKILL
        async with running(*serve_arguments(address, store), log=log) as service:
            url = await service.address("serves")
            async with aclosing(follow(url, SERIES, max(seen))) as updates:
                async for update in updates:
                    if isinstance(update, ClosedCandle) and update.candle.time > max(seen) + 600:
                        break
            candles = {candle.time: candle for candle in await stored(url)}
            assert {time: candles.get(time) for time in seen} == seen
            assert sorted(candles) == list(range(min(candles), max(candles) + 60, 60))


async def test_sigterm_ends_serve_cleanly_and_closes_clients_with_1001(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running("sim", "--speed=60", "--symbols=2", log=log) as exchange:
        address = await exchange.address("exchange")
        async with running(*serve_arguments(address, tmp_path / "store.sqlite"), log=log) as service:
            url = await service.address("serves")
            async with aiohttp.ClientSession() as http, http.ws_connect(url + "/ws/market") as socket:
                await socket.send_json({"type": "ping"})
                assert await socket.receive_json(timeout=10) == {"type": "pong"}
                service.process.send_signal(signal.SIGTERM)
                message = await socket.receive(timeout=10)
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0
        exchange.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(exchange.process.wait(), 20) == 0
    assert "Traceback" not in log.read_text()


async def test_demo_serves_a_page_and_moving_candles_on_a_free_port(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running("demo", "--no-browser", "--speed=600", "--symbols=3", log=log) as demo:
        exchange = await demo.address("exchange")
        url = await demo.address("serves")
        async with aiohttp.ClientSession() as http:
            async with http.get(url + "/api/market/whitelist") as response:
                whitelist = (await response.json())["series_ids"]
            assert len(whitelist) == 6
            assert str(SERIES) in whitelist
            async with http.get(exchange + "/sim/state") as response:
                assert (await response.json())["speed"] == 600
        async with aclosing(follow(url, SERIES, 0)) as updates:
            count = 0
            async for update in updates:
                assert not isinstance(update, Disconnected)
                count += isinstance(update, ClosedCandle)
                if count > 2010:
                    break
        demo.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(demo.process.wait(), 20) == 0
    assert "Traceback" not in log.read_text()


async def test_watch_prints_closed_candles_as_they_come(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running("demo", "--no-browser", "--speed=600", "--symbols=2", log=log) as demo:
        url = await demo.address("serves")
        async with aclosing(follow(url, SERIES, 0)) as updates:
            async for update in updates:
                if isinstance(update, ClosedCandle):
                    break
        async with running("watch", str(SERIES), "--url", url, "--json", log=log) as watch:
            assert watch.process.stdout is not None
            times: list[int] = []
            while len(times) < 20:
                update_line = json.loads(await asyncio.wait_for(watch.process.stdout.readline(), 30))
                if update_line["type"] == "closed":
                    times.append(update_line["time"])
            assert times == list(range(times[0], times[0] + 20 * 60, 60))


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        ([], 2, "COMMAND"),
        (["fly"], 2, "no command 'fly'"),
        (["sim", "--speed", "0"], 2, "positive"),
        (["sim", "--speed", "fast"], 2, "--speed"),
        (["sim", "--port", "99999"], 2, "port"),
        (["sim", "--start", "yesterday"], 2, "ISO 8601"),
        (["sim", "--symbols", "0"], 2, "number from 1"),
        (["demo", "--binance-spot-rest-url", "http://127.0.0.1:1"], 2, "demo starts its own exchange"),
        (["sim", "--data", "/nonexistent"], 1, "/nonexistent"),
        (["serve", "--port", "x"], 2, "flag port"),
        (["serve", "--role", "serve"], 2, "not built yet"),
        (["serve", "--database-url", "sqlite:////proc/none/x"], 1, "cannot be opened"),
        (["watch", "BTCUSDT"], 2, "four parts"),
        (["watch", "binance:spot:BTC/USDT:1m", "--url", "http://127.0.0.1:9"], 1, "is it running"),
    ],
)
def test_wrong_use_and_failure_have_their_status_and_one_sentence(arguments: list[str], status: int, word: str) -> None:
    code, out, errors = in_process(*arguments)
    assert (code, out) == (status, "")
    assert word in errors
    assert "Traceback" not in errors
    assert "Unclosed" not in errors


async def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    async with running("sim", "--symbols=2", log=tmp_path / "log") as exchange:
        port = (await exchange.address("exchange")).rpartition(":")[2]
        for arguments in (["sim", "--port", port], ["serve", "--port", port]):
            code, _, errors = await asyncio.to_thread(klinesync, *arguments, cwd=tmp_path)
            assert code == 1
            assert "cannot be listened on" in errors
            assert "Traceback" not in errors


def test_flags_lists_every_flag_with_its_source(tmp_path: Path) -> None:
    code, out, _ = klinesync("flags", "--json", "--port=8001", env={"KLINESYNC_HOST": "localhost"}, cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert (rows["port"]["value"], rows["port"]["source"]) == ("8001", "command line")
    assert (rows["host"]["value"], rows["host"]["source"]) == ("localhost", "environment")
    assert rows["ondemand_max_jobs"]["environment"] == "KLINESYNC_ONDEMAND_MAX_JOBS"
    code, out, _ = in_process("flags")
    assert code == 0
    assert "KLINESYNC_RETENTION_DAYS" in out


@pytest.mark.parametrize("command", ["serve", "demo", "sim", "watch", "flags"])
def test_each_command_explains_itself(command: str) -> None:
    code, out, _ = in_process(command, "--help")
    assert code == 0
    assert "usage: klinesync" in out

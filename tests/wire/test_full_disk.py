"""A store that cannot be written turns /readyz red; reads and streams go on, and no candle is missing in the end."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import aiohttp
import apsw
import pytest

from klinesync.cli import main
from klinesync.core.series_id import SeriesId
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite import SqliteDatabase
from support.processes import SERIES, running, serve_arguments
from support.running_service import Service, running_service
from support.small_disk import small_disk

POLL_S = 0.05
ANOTHER = SeriesId.parse("binance:spot:POSTED/USDT:1m")


async def wait_for_status(url: str, path: str, status: int) -> dict[str, object]:
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while True:
            async with http.get(url + path) as response:
                if response.status == status:
                    body: dict[str, object] = await response.json()
                    return body
            await asyncio.sleep(POLL_S)


async def head_of(url: str) -> tuple[int, int]:
    """The head, and how many of the newest 5000 candles follow one another without a hole."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(url + "/api/market/candles", params={"series_id": str(SERIES), "limit": "5000"}) as response,
    ):
        assert response.status == 200
        times = [row["candle_time"] for row in (await response.json())["candles"]]
    if times:
        assert times == list(range(times[0], times[-1] + 60, 60))
    return max(times, default=0), len(times)


async def wait_for_head(url: str, least: int, least_count: int = 0) -> None:
    async with asyncio.timeout(60):
        while True:
            head, count = await head_of(url)
            if head >= least and count >= least_count:
                return
            await asyncio.sleep(POLL_S)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a running process can be limited on Linux alone")
async def test_a_file_that_cannot_grow_turns_readyz_red_until_it_can_and_nothing_is_missing(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    async with running("sim", "--speed=600", "--symbols=2", log=log) as exchange:
        address = await exchange.address("exchange")
        async with running(*serve_arguments(address, store), log=log) as service:
            url = await service.address("serves")
            await wait_for_head(url, 0, least_count=2010)
            room = store.with_name("store.sqlite-wal").stat().st_size
            resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

            assert await wait_for_status(url, "/readyz", 503) == {"status": "the store cannot be written"}
            await wait_for_status(url, "/healthz", 200)
            await wait_until_told(url, "disk full")
            before, _ = await head_of(url)
            async with aiohttp.ClientSession() as http, http.ws_connect(url + "/ws/market") as socket:
                await socket.send_json({"type": "subscribe", "series_id": str(SERIES), "since": before - 300})
                seen: list[int] = []
                forming = -1
                while forming < before + 20 * 60:  # the exchange's minutes pass, and are shown, but not stored
                    message = await socket.receive_json(timeout=30)
                    if message["type"] == "candle_closed":
                        seen.append(message["candle"]["candle_time"])
                    elif message["type"] == "candle_forming":
                        forming = message["candle"]["candle_time"]
                assert max(seen) < before + 20 * 60
                await wait_for_status(url, "/readyz", 503)

                resource.prlimit(
                    service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )
                assert await wait_for_status(url, "/readyz", 200) == {"status": "ready"}
                while seen[-1] < forming:
                    message = await socket.receive_json(timeout=30)
                    if message["type"] == "candle_closed":
                        seen.append(message["candle"]["candle_time"])
                assert seen == list(range(before - 240, seen[-1] + 60, 60))
            await wait_for_head(url, forming)
            assert await asyncio.to_thread(main, ["verify", f"--database-url=sqlite:///{store}"]) == 0
    assert "Traceback" not in log.read_text()


async def wait_until_told(url: str, words: str) -> None:
    """The status is red because of the store, with these words."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while True:
            async with http.get(url + "/api/market/status") as response:
                told = await response.json()
            if told["status"] == "red" and words in (told["store"]["detail"] or ""):
                assert told["status_reason"] == "store_unavailable"
                assert told["store"]["ok"] is False
                return
            await asyncio.sleep(POLL_S)


async def test_a_live_service_on_a_full_disk_shows_nothing_that_is_not_stored_and_recovers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store.sqlite"
    with small_disk() as disk:
        async with (
            SimServer(SimConfig(symbols=2, speed=600.0)) as exchange,
            running_service(store, exchange, whitelist=str(SERIES)) as service,
        ):
            await wait_for_head(service.url, 0, least_count=2010)
            async with service.http.ws_connect(service.url + "/ws/market") as socket:
                before, _ = await head_of(service.url)
                await socket.send_json({"type": "subscribe", "series_id": str(SERIES), "since": before - 300})
                seen: list[int] = []

                async def receive() -> int:
                    """The open time of the next candle; a closed one is in the file already."""
                    while True:
                        message = await socket.receive_json(timeout=30)
                        if message["type"] == "candle_closed":
                            seen.append(message["candle"]["candle_time"])
                            assert await asyncio.to_thread(head_in_file, store) >= seen[-1]
                        if message["type"] in ("candle_closed", "candle_forming"):
                            return int(message["candle"]["candle_time"])

                while not seen or seen[-1] < before + 300:
                    await receive()
                disk.room_bytes = 0
                await wait_until_told(service.url, "disk full")
                assert await service.get("/readyz") == (503, {"status": "the store cannot be written"})
                full = await asyncio.to_thread(head_in_file, store)
                posted = {"candle_time": 0, "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0}
                body = {"series_id": str(ANOTHER), "candle": posted}
                status, answer = await service.post("/api/market/ingest/candle_closed", body)
                assert (status, answer["code"]) == (500, "ingest_failed:candles")
                forming = full
                while forming < full + 30 * 60:
                    forming = await receive()
                assert await asyncio.to_thread(head_in_file, store) == full
                assert (await head_of(service.url))[0] == full
                assert max(seen) <= full
                assert disk.refused > 0

                disk.room_bytes = 1 << 40
                await wait_for_status(service.url, "/readyz", 200)
                while seen[-1] < forming:
                    await receive()
                assert seen == list(range(before - 240, seen[-1] + 60, 60))
            status, told = await service.get("/api/market/status")
            assert (status, told["store"]["ok"]) == (200, True)  # type: ignore[index]
            status, _ = await service.post("/api/market/ingest/candle_closed", body)
            assert status == 200
    assert await asyncio.to_thread(main, ["verify", f"--database-url=sqlite:///{store}"]) == 0
    assert not any(record.exc_info for record in caplog.records)


def head_in_file(store: Path) -> int:
    """The newest candle of the series that another process reads from the file."""
    connection = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        number = connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(SERIES),)).get
        head = connection.execute("SELECT max(time) FROM candle WHERE series_no = ?", (number,)).get
    finally:
        connection.close()
    assert isinstance(head, int)
    return head


async def limit(service: Service, pages: int) -> None:
    """Limit the store to that many pages; when it already has more, it cannot grow at all."""
    database = service.runtime._database
    assert isinstance(database, SqliteDatabase)
    writer = database._file._writer
    assert isinstance(writer, apsw.Connection)
    await asyncio.get_running_loop().run_in_executor(
        database._writer_thread, lambda: writer.execute(f"PRAGMA max_page_count = {pages}").get
    )


async def test_readyz_recovers_by_itself_where_nobody_writes(tmp_path: Path) -> None:
    around = Surroundings(tuning=Tuning(store_probe_s=0.01))
    async with running_service(tmp_path / "store.sqlite", None, None, around) as service:
        await limit(service, 1)
        candles = [
            {"candle_time": minute * 60, "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0}
            for minute in range(5000)
        ]
        body = {"series_id": str(SERIES), "candles": candles}
        status, answer = await service.post("/api/market/ingest/candles_closed", body)
        assert (status, answer["code"]) == (500, "ingest_failed:candles")
        assert await service.get("/readyz") == (503, {"status": "the store cannot be written"})
        await limit(service, 1 << 30)
        assert await wait_for_status(service.url, "/readyz", 200) == {"status": "ready"}
        status, answer = await service.get("/api/market/candles", series_id=str(SERIES))
        assert status in (200, 404)
        status, _ = await service.post("/api/market/ingest/candles_closed", body)
        assert status == 200

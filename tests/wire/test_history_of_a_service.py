"""`klinesync backfill --url` and `import --url`: a running service gets the request or the rows, and validates the
rows."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.faults import RestSlow
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite_reader import SqliteReader
from support.candles import bare
from support.history_files import minutes, write_freqtrade
from support.processes import SERIES, klinesync, running, serve_arguments
from support.running_service import retrying, running_service
from support.upstream import truth

FIVES = SeriesId.parse("binance:spot:BTC/USDT:5m")
START = 1_700_000_130
NEWEST = START // 60 * 60 - 60
TOKEN = "0123456789abcdef"
PATIENCE_S = 60.0


def stored(store: Path) -> list[Candle]:
    with SqliteReader(store) as reader:
        return reader.read(lambda look: look.between(SERIES, 0, 2_000_000_000))


async def command(*arguments: object) -> tuple[int, str, str]:
    return await asyncio.to_thread(klinesync, *map(str, arguments))


async def exchange_now(http: aiohttp.ClientSession, address: str) -> int:
    async with http.get(address + "/sim/state") as response:
        return int((await response.json())["now_ms"]) // 1000


async def test_a_backfill_through_a_service_waits_for_its_end(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    flags = ("--startup-kline-sync-target-candles=100", f"--api-token={TOKEN}")
    async with running("sim", "--symbols=2", log=log) as exchange:
        address = await exchange.address("exchange")
        async with (
            running(*serve_arguments(address, store), *flags, log=log) as service,
            aiohttp.ClientSession() as http,
        ):
            url = await service.address("serves")
            first = await exchange_now(http, address) // 300 * 300 - 20_000 * 60
            # For a derived series its base is read; `--to` defaults to the service's present.
            ask = ("backfill", FIVES, f"--from={first}", "--url", url, "--json")
            status, _, err = await command(*ask)
            assert (status, "answers 401: it requires a token; give its api_token with --api-token" in err) == (1, True)
            status, _, err = await command(*ask, "--api-token", "another-tokens-text")
            assert (status, "answers 401: it does not accept this token" in err) == (1, True), err
            status, out, err = await command(*ask, "--api-token", TOKEN)
            assert (status, err) == (0, ""), log.read_text()
            brought = json.loads(out)
            assert brought["series_id"] == str(SERIES)
            assert (brought["from"], brought["missing"]) == (first, 0)
            # The start may have read the newest hundred candles.
            assert 19_900 <= brought["candles"] <= 20_022
            times = [candle.time for candle in stored(store)]
            assert times == list(range(first, times[-1] + 60, 60))
            status, out, err = await command(*ask, "--api-token", TOKEN, f"--to={first + 10_000 * 60}")
            assert (status, json.loads(out)["candles"], err) == (0, 0, "")


async def test_an_interrupted_wait_leaves_the_service_at_work(tmp_path: Path) -> None:
    store, log, told = tmp_path / "store.sqlite", tmp_path / "log", tmp_path / "told"
    async with (
        SimServer(SimConfig(symbols=2, start=START)) as exchange,
        running(*serve_arguments(exchange.http_url, store), log=log) as service,
    ):
        url = await service.address("serves")
        async with asyncio.timeout(PATIENCE_S):
            while not (store.exists() and len(stored(store)) >= 2000):
                await asyncio.sleep(0.05)
            slow = exchange.faults.add(RestSlow(delay_s=1.0))
            first = NEWEST - 20_000 * 60
            ask = ("backfill", str(SERIES), f"--from={first}", f"--to={NEWEST}", "--url", url)
            async with running(*ask, log=told) as asking:
                while stored(store)[0].time != first:
                    await asyncio.sleep(0.05)
                asking.process.send_signal(signal.SIGINT)
                assert await asking.process.wait() == 130
            assert f"the service at {url} continues the backfill" in told.read_text()
            assert len(stored(store)) < 20_000
            exchange.faults.remove(slow)
            while len(candles := stored(store)) < 20_000:
                await asyncio.sleep(0.05)
    assert bare(candles) == truth(exchange, SERIES, range(first, candles[-1].time + 60, 60))


async def test_candles_that_a_service_cannot_read_are_reported_with_the_reason(
    tmp_path: Path,
) -> None:
    async with running_service(tmp_path / "store.sqlite", None, None, retrying(0.05)) as service:  # no exchange answers
        await service.runtime.market_data.ingest_candles_closed(SERIES, minutes(NEWEST, 2))
        ask = ("backfill", SERIES, f"--from={NEWEST - 600}", "--url", service.url)
        status, out, err = await command(*ask, f"--to={NEWEST}")
        assert (status, "0 candles read, 10 still missing" in out) == (1, True), out
        assert "klinesync: 10 candles of binance:spot:BTC/USDT:1m are still missing: " in err
        assert "127.0.0.1:9" in err
        status, _, err = await command(*ask, f"--to={NEWEST - 600}")
        assert (status, f"from ({NEWEST - 600}) must be before to" in err) == (1, True), err
        status, _, err = await command("backfill", "nowhere:spot:BTC/USDT:1m", "--from=0", "--url", service.url)
        assert (status, err.count("\n"), "is unknown" in err) == (1, 1, True), err
    status, _, err = await command(*ask)
    assert (status, f"the service at {service.url} does not answer" in err) == (1, True), err


async def test_a_service_judges_closed_candles_of_a_file_by_its_exchanges_time(tmp_path: Path) -> None:
    """The service's time is in 2023, and the file has later candles."""
    store = tmp_path / "store.sqlite"
    path = write_freqtrade(tmp_path / "ETH_USDT-1m.feather", minutes(NEWEST - 299 * 60, 400))
    series = SeriesId.parse("binance:spot:ETH/USDT:1m")
    async with (
        SimServer(SimConfig(symbols=3, start=START, speed=1)) as exchange,
        running_service(store, exchange, whitelist=str(SERIES)) as service,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while service.runtime.startup.waiting(SERIES):
                await asyncio.sleep(0.02)
        status, out, err = await command("import", path, "--url", service.url, "--json")
        assert (status, err) == (0, ""), err
        (file,) = json.loads(out)["files"]
        assert (file["candles"] + file["quarantined"], file["refused"]) == (400, None)
        assert 300 <= file["candles"] <= 302, "a minute or two may have passed"
        assert "which lies after the exchange's now" in file["first_bad_rows"][0]
    with SqliteReader(store) as reader:
        assert len(reader.read(lambda look: look.between(series, 0, 2_000_000_000))) == file["candles"]


async def test_a_refusal_in_the_middle_of_a_file_reports_the_stored_candles(tmp_path: Path) -> None:
    """A service that does not tell the time."""
    store = tmp_path / "store.sqlite"
    candles = minutes(NEWEST - 11_899 * 60, 12_000)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", candles)
    async with (
        SimServer(SimConfig(symbols=2, start=START)) as exchange,
        running_service(store, exchange, whitelist="binance:spot:ETH/USDT:1m", enable_kline_health_v2="off") as service,
    ):
        async with asyncio.timeout(PATIENCE_S):
            while service.runtime.startup.waiting(SeriesId.parse("binance:spot:ETH/USDT:1m")):
                await asyncio.sleep(0.02)
        status, out, err = await command("import", path, "--url", service.url, "--json")
    assert status == 1
    assert "which lies after the exchange's now" in err
    assert "; 10000 of its 12000 candles are stored" in err
    (file,) = json.loads(out)["files"]
    assert file["candles"] == 10_000
    assert stored(store) == candles[:10_000]

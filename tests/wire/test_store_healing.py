"""Damaged candles heal while the service runs: taken out, declared, fetched or computed again; and after a repair."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from klinesync.cli import main
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data.store_healer import HealTimings
from klinesync.market_data.store_scrub import ScrubLimits
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage import page_checksums
from support.running_service import Service, retrying, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIVE = BTC.with_timeframe(Timeframe.parse("5m"))
FLAGS = {
    "whitelist": str(BTC),
    "startup_kline_sync_target_candles": "3000",
    "derived_timeframes": "5m",
    "derived_native_candles": "0",
    "audit_interval_s": "0",
}
TIMEOUT_S = 60.0
POLL_S = 0.05
PAGE_BYTES = 4096
Page = dict[int, dict[str, object]]


# The scrub and the healer begin at once.
SOON = Tuning(scrub=ScrubLimits(begins_s=0.0), healing=HealTimings(look_s=0.05, settle_s=0.05))
AT_ONCE = Surroundings(tuning=SOON)


async def page(service: Service, series: SeriesId) -> tuple[Page, list[object]]:
    status, answer = await service.get("/api/market/candles", series_id=str(series), limit=5000)
    assert status == 200, answer
    rows, gaps = answer["candles"], answer["gaps"]
    assert isinstance(rows, list)
    assert isinstance(gaps, list)
    return {row["candle_time"]: row for row in rows}, gaps


async def until(service: Service, series: SeriesId, true: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    answer: dict[str, object] = {}
    async with asyncio.timeout(TIMEOUT_S):
        while not answer or not true(answer):
            _, answer = await service.get("/api/market/health", series_id=str(series))
            await asyncio.sleep(POLL_S)
    return answer


async def stored_history(service: Service) -> dict[SeriesId, Page]:
    """The candles of both series, once the start has read all history."""
    async with asyncio.timeout(TIMEOUT_S):
        found: dict[SeriesId, Page] = {}
        while len(found.get(FIVE, ())) < 590:
            found = {series: (await page(service, series))[0] for series in (BTC, FIVE)}
            await asyncio.sleep(POLL_S)
    return found


def spoil_first_chunks(store: Path) -> None:
    """Change a byte of the first two chunks of each series, in pages that are as they were written."""
    page_checksums.load()
    connection = apsw.Connection(str(store))
    chunks = connection.execute("SELECT chunk_id FROM candle_chunk ORDER BY chunk_id").fetchall()
    by_series: dict[int, list[int]] = {}
    for (chunk,) in chunks:
        assert isinstance(chunk, int)
        by_series.setdefault(chunk >> 32, []).append(chunk)
    assert len(by_series) == 2
    for some in by_series.values():
        for chunk in some[:2]:
            connection.execute(
                "UPDATE candle_chunk SET candles = CAST(substr(candles, 1, 80) || x'a7' || substr(candles, 82) AS BLOB)"
                " WHERE chunk_id = ?",
                (chunk,),
            )
    connection.close()


def minutes(count: int) -> list[dict[str, float]]:
    return [
        {"candle_time": number * 60, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": float(number % 7)}
        for number in range(count)
    ]


async def test_damaged_candles_are_fetched_or_computed_again(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(speed=60)) as exchange:
        async with running_service(store, exchange, None, AT_ONCE, **FLAGS) as service:
            before = await stored_history(service)
        spoil_first_chunks(store)
        async with running_service(store, exchange, None, retrying(0.2, tuning=SOON), **FLAGS) as service:
            for series in (BTC, FIVE):
                await until(service, series, lambda answer: answer["status_reason"] != "store_damaged")
            async with asyncio.timeout(TIMEOUT_S):
                for series in (BTC, FIVE):
                    gaps: list[object] = [None]
                    while gaps:
                        after, gaps = await page(service, series)
                        await asyncio.sleep(POLL_S)
                    assert {time: after.get(time) for time in before[series]} == before[series]
            _, explained = await service.get("/api/market/explain", series_id=str(FIVE))
            events = explained["events"]
            assert isinstance(events, list)
            assert {"store.quarantined", "gap.declared"} <= {event["event"] for event in events}
            text = ""
            async with asyncio.timeout(TIMEOUT_S):
                while "klinesync_store_damaged_parts 0" not in text:  # also of the series that nobody reads
                    async with service.http.get(service.url + "/metrics") as response:
                        text = await response.text()
                    await asyncio.sleep(POLL_S)
            assert "klinesync_store_chunks_quarantined_total 4" in text


async def test_what_is_in_quarantine_stays_red_over_a_restart_and_is_lost_where_no_source_is(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with (
        SimServer(SimConfig(speed=60)) as exchange,
        running_service(store, exchange, None, AT_ONCE, **FLAGS) as service,
    ):
        await stored_history(service)
    spoil_first_chunks(store)
    for _ in range(2):
        async with running_service(store, None, None, AT_ONCE, **FLAGS) as service:
            await until(service, BTC, lambda answer: sum(answer["gaps"].values()) > 0)  # type: ignore[attr-defined]
            answer = await until(service, BTC, lambda answer: answer["status_reason"] == "store_damaged")
            assert answer["status"] == "red"
            _, status = await service.get("/api/market/status")
            assert status["status_reason"] == "store_damaged"
            _, gaps = await page(service, BTC)
            assert gaps


async def test_a_series_without_any_source_loses_what_was_damaged_and_says_so(tmp_path: Path) -> None:
    store, alone = tmp_path / "store.sqlite", SeriesId.parse("nowhere:spot:BTC/USDT:1m")
    flags = {"derived_timeframes": "5m", "enable_ondemand_ingest": "off"}
    async with running_service(store, None, None, AT_ONCE, **flags) as service:
        await service.ingest(str(alone), minutes(1500))
    spoil_first_chunks(store)
    async with running_service(store, None, None, AT_ONCE, **flags) as service:
        for series in (alone, alone.with_timeframe(FIVE.timeframe)):
            await until(service, series, lambda answer: answer["gaps"]["lost"] > 0)  # type: ignore[index]
            await until(service, series, lambda answer: answer["status_reason"] != "store_damaged")
            _, gaps = await page(service, series)
            assert [gap["state"] for gap in gaps] == ["lost"]  # type: ignore[index]


async def test_a_start_with_a_damaged_header_names_the_repair_after_which_everything_is_there_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.sqlite"
    url = f"--database-url=sqlite:///{store}"
    async with SimServer(SimConfig(speed=60)) as exchange:
        async with running_service(store, exchange, None, AT_ONCE, **FLAGS) as service:
            before = await stored_history(service)
        raw = bytearray(store.read_bytes())
        raw[:16] = b"nonsense, no sql"
        for number in range(3, len(raw) // PAGE_BYTES, 5):  # and each fifth page
            raw[number * PAGE_BYTES + 2000] ^= 0x10
        store.write_bytes(raw)

        with pytest.raises(StoreError, match="verify --repair"):
            async with running_service(store):
                pass
        assert await asyncio.to_thread(main, ["verify", "--json", "--repair", url]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done["damaged"]
        assert Path(done["aside"]).read_bytes() == bytes(raw)
        assert not list(tmp_path.glob("*repair*"))
        assert await asyncio.to_thread(main, ["verify", "--json", "--repair", url]) == 0
        assert json.loads(capsys.readouterr().out)["aside"] is None

        async with running_service(store, exchange, None, retrying(0.2, tuning=SOON), **FLAGS) as service:
            for series in (BTC, FIVE):
                async with asyncio.timeout(TIMEOUT_S):
                    after: Page = {}
                    while not before[series].keys() <= after.keys():
                        after, _ = await page(service, series)
                        await asyncio.sleep(POLL_S)
                assert {time: after[time] for time in before[series]} == before[series]
            await until(service, BTC, lambda answer: answer["status"] == "green")
    assert await asyncio.to_thread(main, ["verify", "--derived-timeframes=5m", url]) == 0


async def test_a_store_that_a_service_has_open_is_not_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.sqlite"
    async with running_service(store):
        assert await asyncio.to_thread(main, ["verify", "--repair", f"--database-url=sqlite:///{store}"]) == 1
    assert "is in use by" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["another program's", "a text", "an empty store", "nothing"])
def test_what_is_no_store_is_not_repaired(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    if what == "another program's":
        connection = apsw.Connection(str(path))
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.close()
    elif what == "a text":
        path.write_text("notes of mine " * 1000)
    elif what == "an empty store":
        path.touch()
    before = path.read_bytes() if path.exists() else None
    assert main(["verify", "--repair", f"--database-url=sqlite:///{path}"]) == 1
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(tmp_path.glob("*damaged*"))
    assert "Traceback" not in capsys.readouterr().err


async def test_derived_candles_that_are_gone_without_a_trace_are_computed_again_without_any_source(
    tmp_path: Path,
) -> None:
    store, alone = tmp_path / "store.sqlite", SeriesId.parse("nowhere:spot:BTC/USDT:1m")
    five = alone.with_timeframe(FIVE.timeframe)
    flags = {"derived_timeframes": "5m", "enable_ondemand_ingest": "off"}
    async with running_service(store, None, None, AT_ONCE, **flags) as service:
        await service.ingest(str(alone), minutes(2000))
        before, _ = await page(service, five)
    assert len(before) == 400
    page_checksums.load()
    connection = apsw.Connection(str(store))
    number = connection.execute("SELECT series_no FROM series WHERE series_id = ?", (str(five),)).get
    assert isinstance(number, int)
    connection.execute("DELETE FROM candle_chunk WHERE chunk_id >> 32 = ?", (number,))
    assert connection.changes() > 0
    connection.close()
    async with running_service(store, None, None, AT_ONCE, **flags) as service, asyncio.timeout(TIMEOUT_S):
        after: Page = {}
        while after != before:
            after, _ = await page(service, five)
            await asyncio.sleep(POLL_S)

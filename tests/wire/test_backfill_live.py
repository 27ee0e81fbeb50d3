"""Backfills of a running service, over real sockets: beside live candles, through bans and kill -9, files first."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from klinesync.core.candle import Candle
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.timings import LONGEST_BLOCK_S, RestTimings
from klinesync.exchanges.exchange import Urgency
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market_data.verify import verify
from klinesync.sim.faults import Disconnect, Outage, RateLimit, RefuseConnect, RestError
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from klinesync.storage.sqlite_reader import SqliteReader
from support.processes import SERIES, running, serve_arguments
from support.running_service import Service, retrying, running_service
from support.upstream import complete, stored, truth
from support.waiting import until

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIVE = Timeframe.parse("5m")
START = 1_700_000_130
NEWEST = START // 60 * 60 - 60
PATIENCE_S = 60.0


class Exchange(SimServer):
    """The simulated exchange, which records the start of each request for minutes; some answers wait until `open`."""

    def __init__(self, config: SimConfig) -> None:
        super().__init__(config)
        self.asked: list[int] = []

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        answer = super()._rest_of(market)

        async def rest(request: web.Request) -> web.Response:
            if request.match_info["path"] == "klines" and request.query["interval"] == "1m":
                self.asked.append(int(request.query["startTime"]) // 1000)
            return await answer(request)

        return rest

    async def advance(self, seconds: int) -> None:
        """Let the given seconds pass at once."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.http_url + "/sim/clock", json={"advance_s": seconds}) as response,
        ):
            assert response.status == 200


@asynccontextmanager
async def following(
    store: Path, exchange: SimServer, around: Surroundings | None = None, /, **flags: str
) -> AsyncIterator[Service]:
    given = {
        "whitelist": str(BTC),
        "startup_kline_sync_target_candles": "100",
        "audit_interval_s": "0",
        "derived_timeframes": "5m",
        "derived_native_candles": "0",
        "derived_backfill_base_candles": "100",
        "enable_market_auto_tail_backfill": "off",
    }
    async with running_service(store, exchange, None, around, **given | flags) as service:
        yield service


async def ask(service: Service, first: int, end: int | None = None, series: SeriesId = BTC) -> dict[str, object]:
    body: dict[str, object] = {"series_id": str(series), "from": first} | ({} if end is None else {"to": end})
    status, answer = await service.post("/api/market/ingest/backfill", body)
    assert status == 200, answer
    return answer


async def health(service: Service) -> dict[str, object]:
    status, answer = await service.get("/api/market/health", series_id=str(BTC))
    assert status == 200, answer
    return answer


async def until_stored(service: Service, first: int) -> list[Candle]:
    """All candles, as soon as they begin at that time and have no gap."""
    candles: list[Candle] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                span, gaps = await service.runtime._database.read(lambda store: (store.span(BTC), store.gaps(BTC)))
                if span is not None and span.start == first and not gaps:  # else all candles are not worth a reading
                    candles = await stored(service, BTC)
                    if candles[0].time == first and len(candles) == (candles[-1].time - first) // 60 + 1:
                        return candles
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{len(candles)} candles; {await health(service)}") from None


def audit(store: Path) -> None:
    with SqliteReader(store) as reader:
        found = {one.series: one.shown for one in verify(reader, BTC.timeframe, [FIVE]) if one.kinds}
    assert found == {}


async def test_deep_history_is_read_oldest_part_first_beside_live_candles_with_progress(tmp_path: Path) -> None:
    store, first = tmp_path / "store.sqlite", NEWEST - 15_000 * 60
    async with (
        Exchange(SimConfig(symbols=2, start=START, speed=120)) as exchange,
        following(store, exchange) as service,
    ):
        await complete(service, exchange, BTC)
        closed: list[int] = []
        progress: list[dict[str, object]] = []

        async def watch() -> None:
            async with service.http.ws_connect(service.url + "/ws/market") as socket:
                for series in (BTC, BTC.with_timeframe(FIVE)):
                    await socket.send_json({"type": "subscribe", "series_id": str(series), "ack": True})
                async for frame in socket:
                    message = frame.json()
                    if message["type"] == "subscribed" and message["series_id"] != str(BTC):
                        begun.set()  # both are, in order
                    elif message["type"] == "candle_closed" and not message.get("revised"):
                        if message["series_id"] == str(BTC):
                            closed.append(message["candle"]["candle_time"])
                    elif message["type"] == "system" and message["event"] == "backfill.progress":
                        progress.append(message)

        begun = asyncio.Event()
        watching = asyncio.create_task(watch())
        await begun.wait()
        exchange.asked.clear()
        answer = await ask(service, first, series=BTC.with_timeframe(FIVE))
        assert answer["series_id"] == str(BTC), "a derived series is read by way of its base"
        assert 14_000 < int(str(answer["missing_candles"])) <= 15_000
        candles = await until_stored(service, first)
        assert candles == truth(exchange, BTC, range(first, candles[-1].time + 60, 60))
        deep = [time for time in exchange.asked if time < NEWEST - 6000]
        assert deep == sorted(deep)
        assert deep[0] == first
        async with asyncio.timeout(PATIENCE_S):
            while not progress or progress[-1]["data"]["state"] != "succeeded":  # type: ignore[index]
                await asyncio.sleep(0.02)
            while len(closed) < 3:
                await asyncio.sleep(0.02)
        watching.cancel()
        await asyncio.wait([watching])
        assert closed == list(range(closed[0], closed[-1] + 60, 60)), "live went on, in order"
        assert {message["series_id"] for message in progress} == {str(BTC), str(BTC.with_timeframe(FIVE))}
        facts = progress[0]["data"]
        assert isinstance(facts, dict)
        assert (facts["state"], facts["reason"], facts["progress_pct"]) == ("running", "backfill", 0.0)
        # Health shows the newest reading, which may be a live tail by now.
        facts = progress[-1]["data"]
        assert isinstance(facts, dict)
        assert (facts["state"], facts["reason"]) == ("succeeded", "backfill")
        assert facts["candles"] >= 14_000, facts
        assert facts["candles_per_s"] > 0
    audit(store)


async def test_a_backfill_is_resumed_after_kill_9(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    flags = ["--startup-kline-sync-target-candles=100", "--audit-interval-s=0", "--derived-timeframes=5m"]
    flags += ["--enable-market-auto-tail-backfill=off"]
    async with running("sim", "--speed=1", "--symbols=2", log=log) as exchange:
        address = await exchange.address("exchange")
        slow = {"kind": "rest_slow", "delay_s": 0.3}

        async def page(http: aiohttp.ClientSession, url: str, **params: int) -> list[dict[str, float]]:
            query = {"series_id": str(SERIES)} | params
            async with http.get(url + "/api/market/candles", params=query) as response:
                answer = await response.json()
            rows = answer["candles"]
            assert isinstance(rows, list)
            return rows

        async with (
            running(*serve_arguments(address, store), *flags, log=log) as service,
            aiohttp.ClientSession() as http,
        ):
            url = await service.address("serves")
            async with asyncio.timeout(PATIENCE_S):
                while len(rows := await page(http, url, limit=100)) < 100:
                    await asyncio.sleep(0.05)
                async with http.post(address + "/sim/faults", json=slow) as response:
                    assert response.status in (200, 201)
                first = int(rows[0]["candle_time"]) - 20_000 * 60
                body = {"series_id": str(SERIES), "from": first}
                async with http.post(url + "/api/market/ingest/backfill", json=body) as response:
                    assert response.status == 200, await response.text()
                while len(before := await page(http, url, since=0, limit=5000)) < 3000:
                    await asyncio.sleep(0.02)
            service.process.kill()
            assert await service.process.wait() == -signal.SIGKILL
        with SqliteReader(store) as reader:
            (hole,) = reader.read(lambda look: look.gaps(SERIES))
        assert hole.state is GapState.HEALING
        assert hole.start > first + 2800 * 60
        assert len(before) >= 3000
        async with aiohttp.ClientSession() as http:
            async with http.get(address + "/sim/state") as response:
                (number,) = [fault["id"] for fault in (await response.json())["faults"]]
            async with http.delete(f"{address}/sim/faults/{number}") as response:
                assert response.status in (200, 204)
        async with (
            running(*serve_arguments(address, store), *flags, log=log) as service,
            aiohttp.ClientSession() as http,
        ):
            url = await service.address("serves")
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    async with http.get(url + "/api/market/health", params={"series_id": str(SERIES)}) as response:
                        gaps = (await response.json())["gaps"]
                    if sum(gaps.values()) == 0:
                        break
                    await asyncio.sleep(0.05)
            times: list[int] = []
            while rows := await page(http, url, since=times[-1] if times else 0, limit=5000):
                times += [int(row["candle_time"]) for row in rows]
        assert times == list(range(first, times[-1] + 60, 60))
        assert "its backfill goes on" in log.read_text()
    audit(store)


async def test_deep_history_waits_for_the_end_of_a_ban(tmp_path: Path) -> None:
    blocks = RestTimings(longest_block_s={**LONGEST_BLOCK_S, Urgency.DEEP: 0.1})
    store, first = tmp_path / "store.sqlite", NEWEST - 9_000 * 60
    async with (
        Exchange(SimConfig(symbols=2, start=START)) as exchange,
        following(store, exchange, retrying(0.5, tuning=Tuning(binance_rest=blocks))) as service,
    ):
        await complete(service, exchange, BTC)
        exchange.faults.add(RateLimit(after=4, count=1, retry_after_s=1, ban_s=2.0))
        await ask(service, first)
        candles = await until_stored(service, first)
        assert exchange.faults.seen()["rate_limit"] >= 2, "429, then the ban"
        assert candles == truth(exchange, BTC, range(first, candles[-1].time + 60, 60))
    audit(store)


async def test_an_outage_in_deep_history_is_confirmed_empty_and_never_requested_again(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    begin = START - 8000 * 60
    async with Exchange(SimConfig(symbols=2, start=begin)) as exchange:
        exchange.faults.add(Outage(minutes=1500))  # more than a page
        await exchange.advance(START - begin)
        first = begin // 60 * 60 - 3000 * 60
        async with following(store, exchange) as service:
            await complete(service, exchange, BTC)
            await ask(service, first)
            async with asyncio.timeout(PATIENCE_S):
                while (counts := (await health(service))["gaps"]) != {
                    "unknown": 0, "healing": 0, "confirmed_empty": 1500, "lost": 0
                }:  # fmt: skip
                    await asyncio.sleep(0.05)
            assert counts
            candles = await stored(service, BTC)
            assert candles == truth(exchange, BTC, range(first, candles[-1].time + 60, 60))
            exchange.asked.clear()
            assert (await ask(service, first))["missing_candles"] in (0, 1)
        async with following(store, exchange) as service:
            await complete_tail(service, exchange)
            assert (await ask(service, first))["missing_candles"] in (0, 1)
        assert all(time > NEWEST - 200 * 60 for time in exchange.asked), "only the newest"
    audit(store)


async def complete_tail(service: Service, exchange: SimServer) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while service.runtime.startup.waiting(BTC):
            await asyncio.sleep(0.02)


async def test_a_backfill_reads_freqtrades_files_then_the_archive_then_rest(tmp_path: Path) -> None:
    store, files = tmp_path / "store.sqlite", tmp_path / "freqtrade"
    first = (NEWEST // 86_400 - 40) * 86_400
    async with Exchange(SimConfig(symbols=2, start=START)) as exchange:
        files.mkdir()
        held = truth(exchange, BTC, range(first, first + 3000 * 60, 60))
        rows = [[1000 * row.time, *row.ohlcv[1:]] for row in held]
        (files / "BTC_USDT-1m.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
        (files / "ETH_USDT-1m.feather").write_bytes(b"no feather")
        flags = {
            "market_history_source": "freqtrade",
            "freqtrade_data_dir": str(files),
            "archive_url": exchange.http_url,
        }
        async with following(store, exchange, **flags) as service:
            await complete(service, exchange, BTC)
            exchange.asked.clear()
            await ask(service, first)
            candles = await until_stored(service, first)
            assert candles == truth(exchange, BTC, range(first, candles[-1].time + 60, 60))
            written = service.runtime._pipeline.written
            assert written["freqtrade"] == 3000
            assert written["archive"] >= 30 * 1440
            assert written["rest"] <= 5 * 1440
            assert all(time > first + 30 * 86_400 for time in exchange.asked), "REST only for what is in no file"
    audit(store)


async def test_a_long_gap_at_the_start_is_read_from_files_except_for_its_newest_part(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    first = (NEWEST // 86_400 - 20) * 86_400
    async with Exchange(SimConfig(symbols=2, start=START)) as exchange:
        async with running_service(store) as service:
            rows = truth(exchange, BTC, range(first, first + 100 * 60, 60))
            await service.runtime.market_data.ingest_candles_closed(BTC, rows)
        # No further request is necessary.
        async with following(store, exchange, retrying(3600.0, 3600.0), archive_url=exchange.http_url) as service:
            async with asyncio.timeout(PATIENCE_S):
                while service.runtime.startup.waiting(BTC) or sum((await health(service))["gaps"].values()):  # type: ignore[attr-defined]
                    await asyncio.sleep(0.05)
            candles = await stored(service, BTC)
            assert candles == truth(exchange, BTC, range(first, candles[-1].time + 60, 60))
            written = service.runtime._pipeline.written
            assert written["archive"] >= 15 * 1440
            assert written["rest"] <= 5 * 1440, "the newest part, and the days that are in no file yet"
        assert exchange.asked[0] == NEWEST - 99 * 60, "the sweep asks for what is newest alone"
        assert min(exchange.asked) > first + 15 * 86_400
    audit(store)


async def test_after_days_offline_a_series_gets_its_newest_candles_first(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store.sqlite"
    async with (
        Exchange(SimConfig(symbols=2, start=START, speed=60)) as exchange,
        following(store, exchange, market_auto_tail_backfill_max_candles="300") as service,
    ):
        before = (await complete(service, exchange, BTC))[BTC]
        # The stream cannot be subscribed while the exchange goes on.
        faults = [exchange.faults.add(fault) for fault in (RefuseConnect(reset=True), RestError(status=503))]
        exchange.faults.add(Disconnect())
        await until(lambda: service.runtime.supervisors.status(BTC).state == "reconnecting", "it is away")
        await exchange.advance(5 * 86_400)
        exchange.asked.clear()
        for fault in faults:
            exchange.faults.remove(fault)
        now = exchange.now_ms() // 1000
        candles = await until_stored(service, before[0].time)
        while candles[-1].time < now - 120:
            candles = await until_stored(service, before[0].time)
        assert candles == truth(exchange, BTC, range(before[0].time, candles[-1].time + 60, 60))
        assert max(exchange.asked[:2]) >= now - 310 * 60, "the newest part first"
        assert min(exchange.asked[2:]) < now - 5000 * 60, "and then the rest"
    audit(store)

"""An unexpected exception is raised in every task of a running service, one after the other."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import ClientSession

from klinesync.core.backoff import Backoff
from klinesync.core.series_id import SeriesId
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.sim.server import SimConfig, SimServer
from support.defects import Unexpected, throw_into
from support.running_service import Service, running_service

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:ETH/USDT:1m")
DERIVED = SPOT.with_timeframe(SPOT.timeframe.parse("5m"))
SPEED = 300.0
# Time limit in seconds within which a part must have recovered.
WHOLE_AGAIN_S = 10.0


async def heads(service: Service) -> dict[str, int]:
    found = {}
    for series in (SPOT, FUTURES, DERIVED):
        status, page = await service.get("/api/market/candles", series_id=str(series), limit=1)
        assert status == 200, page
        head = page["server_head_time"]
        found[str(series)] = head if isinstance(head, int) else 0
    return found


async def whole(service: Service) -> None:
    """Wait until new candles of every followed series have closed, and each followed stream is live."""
    before = await heads(service)
    async with asyncio.timeout(WHOLE_AGAIN_S):
        while True:
            await asyncio.sleep(0.05)
            now = await heads(service)
            states = {job.state for job in service.runtime.supervisors.jobs_state()}
            if all(now[name] >= head + 60 for name, head in before.items()) and states == {"live"}:
                return


def names(service: Service) -> Counter[str]:
    return Counter(task.get_name() for task in service.runtime.bulkheads.tasks if not task.done())


async def test_every_task_of_a_running_service_may_have_a_defect_and_the_service_recovers(tmp_path: Path) -> None:
    around = Surroundings(bulkheads=Bulkheads(restart=Backoff(0.1, 30.0)))  # there are some forty tasks
    whitelist = f"{SPOT},{FUTURES}"
    flags = {"whitelist": whitelist, "derived_timeframes": "5m", "retention_days": "3000", "audit_interval_s": "0.2"}
    seen: list[int] = []
    async with (
        SimServer(SimConfig(speed=SPEED)) as exchange,
        running_service(tmp_path / "s", exchange, None, around, **flags) as one,
    ):
        watching = asyncio.create_task(watch(one, seen))
        await whole(one)
        thrown: set[str] = set()
        for name in sorted(names(one)):
            task = next((t for t in one.runtime.bulkheads.tasks if t.get_name() == name and not t.done()), None)
            if task is None:
                continue  # it has ended by itself
            if await threw(task):
                thrown.add(name)
                try:
                    await whole(one)
                except TimeoutError:
                    pytest.fail(f"after a defect in {name}: {one.runtime.supervisors.jobs_state()}, {await heads(one)}")
        assert {"streams", "listings", "audit", "supervisors", "supervisor binance", "history", "retention"} <= thrown
        assert any(name.startswith("link ") for name in thrown)
        assert any(name.startswith("subscribe ") for name in thrown)
        assert any(name.startswith("connection ") for name in thrown)
        told = set(one.runtime.bulkheads.counts)
        assert told >= {Part.AUDIT, Part.BACKFILL, Part.DERIVED, Part.EXCHANGE, Part.LISTINGS}
        assert told >= {Part.RETENTION, Part.STORE, Part.STREAMS}
        _, status = await one.get("/api/market/status")
        assert status["status"] != "green"
        assert "restarted after a defect" in str(status), "it is told"
        async with one.http.get(one.url + "/metrics") as response:
            assert "klinesync_defects_total" in await response.text()
        watching.cancel()
        await asyncio.wait([watching])
        for series in (SPOT, FUTURES):
            _, page = await one.get("/api/market/candles", series_id=str(series), limit=5000)
            rows = page["candles"]
            assert isinstance(rows, list)
            times = [row["candle_time"] for row in rows]
            assert times == list(range(times[0], times[-1] + 60, 60)), "nothing is lost"
    assert seen == sorted(set(seen)), "a client's stream is strictly increasing"
    assert len(seen) > len(thrown)


async def threw(task: asyncio.Task[None]) -> bool:
    """A busy task waits for something sooner or later."""
    async with asyncio.timeout(WHOLE_AGAIN_S):
        while not task.done():
            if throw_into(task):
                return True
            await asyncio.sleep(0)
    return False


async def watch(service: Service, seen: list[int]) -> None:
    """Follow a derived series like a client: after a cut it resumes with `since`."""
    url = service.url.replace("http", "ws") + "/ws/market"
    async with ClientSession() as session:
        while True:
            async with session.ws_connect(url) as socket:
                since = seen[-1] if seen else None
                await socket.send_json({"type": "subscribe", "series_id": str(SPOT), "since": since})
                async for message in socket:
                    told = message.json()
                    if told["type"] == "candle_closed" and not told.get("revised"):
                        seen.append(told["candle"]["candle_time"])


async def test_a_defect_in_one_series_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from klinesync.ingest.feed import IngestFeed

    closed = IngestFeed.closed
    broken: list[str] = []

    def breaks(feed: IngestFeed, *arguments: object) -> object:
        if feed.series == FUTURES and len(broken) < 3:
            broken.append("once more")
            raise Unexpected
        return closed(feed, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IngestFeed, "closed", breaks)
    flags = {"whitelist": f"{SPOT},{FUTURES}", "derived_timeframes": "5m"}
    async with SimServer(SimConfig(speed=SPEED)) as exchange, running_service(tmp_path / "s", exchange, **flags) as one:
        async with asyncio.timeout(60):
            while len(broken) < 3:
                await asyncio.sleep(0.05)
        await whole(one)
        assert one.runtime.bulkheads.counts[Part.SERIES] == 3


async def break_the_writer(store: Path) -> None:
    async with running_service(store):
        writer = next(task for task in asyncio.all_tasks() if task.get_name() == "pipeline")
        assert await threw(writer)
        await asyncio.Event().wait()  # until the service ends by itself


async def test_only_a_defect_of_the_writer_ends_the_service(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(2 * WHOLE_AGAIN_S):
            await break_the_writer(tmp_path / "s")
    assert caught.group_contains(Unexpected)


def test_all_tasks_of_the_service_begin_through_one_function() -> None:
    """Other tasks begin only at the writer, or on ccxt's own thread."""
    source = Path(__file__).parents[2] / "src" / "klinesync"
    allowed = {
        "runtime/bulkheads.py": 1,
        "pipelines/ingest_pipeline.py": 1,  # finishes a cancelled transaction
        "market/runtime.py": 1,  # the writer
        "history/files/importing.py": 2,  # a command: its progress, and the steps of a reader
        "history/files/readers.py": 1,  # one step of a file's reader, awaited at once
        "exchanges/ccxt/streams.py": 1,  # the next push of a stream, awaited by the task of its series
    }
    found = {}
    for path in source.rglob("*.py"):
        name = path.relative_to(source).as_posix()
        if not name.startswith(("cli/", "client/", "sim/")):
            found[name] = len(re.findall(r"(?<!def )\b(create_task|ensure_future)\(", path.read_text()))
    assert {name: count for name, count in found.items() if count} == allowed

"""An unexpected exception is raised in every task of a running service, one after the other, under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from klinesync.core.series_id import SeriesId
from klinesync.ingest.feed import IngestFeed
from klinesync.runtime.bulkheads import Part
from klinesync.sim.server import SimConfig
from sim.beside import Beside, Watcher, run_beside_exchange
from support.defects import Unexpected, throw_into

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:ETH/USDT:1m")
DERIVED = SPOT.with_timeframe(SPOT.timeframe.parse("5m"))
# Time limit in seconds within which a part must have recovered: its longest backoff, and a bucket of five minutes.
WHOLE_AGAIN_S = 400.0
FLAGS = {"whitelist": f"{SPOT},{FUTURES}", "derived_timeframes": "5m", "retention_days": 3000, "audit_interval_s": 5}


class Resuming(Watcher):
    """A client that resumes with `since` whenever the service closes its connection."""

    closes = 0

    def close(self, code: int) -> None:
        self.closes += 1
        asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        self.end()
        self.connect()
        asyncio.get_running_loop().create_task(self.begin(), name="a client")


async def whole(world: Beside, *series: SeriesId) -> None:
    """Wait until new candles of these series have closed, and each followed stream is live."""
    before = {one: await world.head(one) for one in series}
    async with asyncio.timeout(WHOLE_AGAIN_S):
        while {job.state for job in world.service.supervisors.jobs_state()} != {"live"} or any(
            [await world.head(one) <= head for one, head in before.items()]
        ):
            await asyncio.sleep(1.0)


async def threw(task: asyncio.Task[None]) -> bool:
    """Raise `Unexpected` in the task, once it waits for something that can raise; False when it ends before."""
    async with asyncio.timeout(WHOLE_AGAIN_S):
        while not task.done():
            if throw_into(task):
                return True
            await asyncio.sleep(0.01)
    return False


def run(tmp_path: Path, live: Callable[[Beside], Awaitable[None]]) -> None:
    run_beside_exchange(tmp_path / "store.sqlite", live, SimConfig(symbols=2), FLAGS, defects=True)


def test_every_task_of_a_running_service_may_have_a_defect_and_the_service_recovers(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        await world.complete(SPOT, FUTURES)
        bulkheads = world.service.bulkheads
        client = Resuming(world.service, SPOT)
        await client.begin()
        await whole(world, SPOT, FUTURES, DERIVED)
        thrown: set[str] = set()
        for name in sorted({task.get_name() for task in bulkheads.tasks if not task.done()}):
            task = next((task for task in bulkheads.tasks if task.get_name() == name and not task.done()), None)
            if task is None or not await threw(task):
                continue  # it has ended by itself
            thrown.add(name)
            try:
                await whole(world, SPOT, FUTURES)
            except TimeoutError:
                pytest.fail(f"after a defect in {name}: {world.service.supervisors.jobs_state()}")
        assert {"streams", "listings", "audit", "supervisors", "supervisor binance", "history", "retention"} <= thrown
        for kind in ("link ", "subscribe ", "connection "):
            assert any(name.startswith(kind) for name in thrown), kind
        told = set(bulkheads.counts)
        assert told >= {Part.AUDIT, Part.BACKFILL, Part.DERIVED, Part.EXCHANGE, Part.LISTINGS}
        assert told >= {Part.RETENTION, Part.STORE, Part.STREAMS}
        await whole(world, SPOT, FUTURES, DERIVED)
        await world.complete(SPOT, FUTURES)
        assert client.closed == list(range(client.closed[0], client.closed[-1] + 60, 60))
        assert len(client.closed) > len(thrown)

    run(tmp_path, live)


def test_what_restarted_is_shown_by_the_status(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        await world.complete(SPOT, FUTURES)
        task = next(task for task in world.service.bulkheads.tasks if task.get_name() == "history")
        assert await threw(task)
        await world.until(lambda: bool(world.service.bulkheads.counts), "the defect is counted")
        status = await world.service.market_data.status.status()
        assert status.status != "green"
        assert "restarted after a defect" in str(status)

    run(tmp_path, live)


def test_a_defect_in_one_series_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = IngestFeed.closed
    broken: list[str] = []

    def breaks(feed: IngestFeed, *arguments: object, **named: object) -> object:
        if feed.series == FUTURES and len(broken) < 3:
            broken.append("once more")
            raise Unexpected
        return closed(feed, *arguments, **named)  # type: ignore[arg-type]

    async def live(world: Beside) -> None:
        await world.until(lambda: len(broken) == 3, "the series breaks")
        await whole(world, SPOT, FUTURES)
        assert world.service.bulkheads.counts == {Part.SERIES: 3}
        await world.complete(SPOT, FUTURES)

    monkeypatch.setattr(IngestFeed, "closed", breaks)
    run(tmp_path, live)

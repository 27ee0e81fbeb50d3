"""The cost of judging a series, by the number of followed series."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from klinesync.core.series_id import SeriesId
from support.running_service import running_service

ATTEMPTS = 300


async def test_judging_a_series_costs_the_same_however_many_are_followed(tmp_path: Path) -> None:
    """The status judges every followed series on the event loop, and often: where each looks at all others, a thousand
    series block every client for seconds."""
    few_s, many_s = [await judgement_s(tmp_path / str(count), count) for count in (2, 100)]
    assert many_s < 3 * few_s


async def judgement_s(folder: Path, count: int) -> float:
    """The CPU time of the judgement of a series, where so many are followed whose exchange cannot be reached: the
    shortest of many, which has no interruption."""
    folder.mkdir()
    async with running_service(folder / "store.sqlite", enable_ondemand_ingest="on") as service:
        names = [SeriesId.parse(f"binance:spot:COIN{number}/USDT:1m") for number in range(count)]
        for series in names:
            service.runtime.supervisors.acquire(series)
        async with asyncio.timeout(30):
            while len(service.runtime.supervisors.followed()) < count:
                await asyncio.sleep(0.01)
        health, took_s = service.runtime.market_data.health, []
        assert health is not None
        for _ in range(ATTEMPTS):
            begin = time.thread_time()
            health.judge(names[0], None, [], None)
            took_s.append(time.thread_time() - begin)
        return min(took_s)

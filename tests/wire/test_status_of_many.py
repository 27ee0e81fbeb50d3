"""The cost of judging a series, by the number of followed series."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType

from klinesync.core.series_id import SeriesId
from support.running_service import running_service


async def test_judging_a_series_costs_the_same_however_many_are_followed(tmp_path: Path) -> None:
    """The status judges every followed series on the event loop, and often: where each looks at all others, a thousand
    series block every client for seconds."""
    few, many = [await calls_of_a_judgement(tmp_path / str(count), count) for count in (5, 40)]
    assert many == few


async def calls_of_a_judgement(folder: Path, count: int) -> int:
    """The function calls of the judgement of a series, where so many are followed whose exchange cannot be reached."""
    folder.mkdir()
    async with running_service(folder / "store.sqlite", enable_ondemand_ingest="on") as service:
        names = [SeriesId.parse(f"binance:spot:COIN{number}/USDT:1m") for number in range(count)]
        for series in names:
            service.runtime.supervisors.acquire(series)
        async with asyncio.timeout(30):
            while len(service.runtime.supervisors.followed()) < count:
                await asyncio.sleep(0.01)
        health, counted = service.runtime.market_data.health, 0
        assert health is not None

        def count_call(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count_call)
        try:
            health.judge(names[0], None, [], None)
        finally:
            sys.setprofile(None)
        return counted

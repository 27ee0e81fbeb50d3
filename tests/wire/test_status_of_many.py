"""The cost of the service's status, by the number of followed series."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType

from klinesync.core.series_id import SeriesId
from support.running_service import running_service


async def test_the_status_of_many_series_costs_as_much_as_that_of_each(tmp_path: Path) -> None:
    """The status is computed on the event loop, and often: where each series looks at all others, a thousand series
    block every client for seconds."""
    few, many = [await calls_of_a_status(tmp_path / str(count), count) for count in (20, 80)]
    assert many < 4.5 * few


async def calls_of_a_status(folder: Path, count: int) -> int:
    """The function calls of one status, with that many followed series whose exchange cannot be reached."""
    folder.mkdir()
    async with running_service(folder / "store.sqlite", enable_ondemand_ingest="on") as service:
        for number in range(count):
            service.runtime.supervisors.acquire(SeriesId.parse(f"binance:spot:COIN{number}/USDT:1m"))
        while (await service.runtime.market_data.status.status()).series.followed < count:
            await asyncio.sleep(0.01)
        counted = 0

        def count_call(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count_call)
        try:
            await service.runtime.market_data.status.status()
        finally:
            sys.setprofile(None)
        return counted

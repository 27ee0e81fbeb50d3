"""An unexpected exception is raised in every task of a running service, one after the other."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from klinesync.core.series_id import SeriesId
from support.defects import Unexpected, throw_into
from support.running_service import running_service

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:ETH/USDT:1m")
DERIVED = SPOT.with_timeframe(SPOT.timeframe.parse("5m"))
SPEED = 300.0
# Time limit in seconds within which a part must have recovered.
WHOLE_AGAIN_S = 10.0


async def threw(task: asyncio.Task[None]) -> bool:
    """A busy task waits for something sooner or later."""
    async with asyncio.timeout(WHOLE_AGAIN_S):
        while not task.done():
            if throw_into(task):
                return True
            await asyncio.sleep(0)
    return False


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

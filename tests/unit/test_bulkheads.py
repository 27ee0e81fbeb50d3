"""Bulkheads: which task a defect ends, which part is restarted, and what is counted and logged."""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial

import pytest

from klinesync.core.backoff import Backoff
from klinesync.runtime.bulkheads import Bulkheads, Part


class Unexpected(Exception):
    """An exception that no code catches by name."""


def quick_bulkheads() -> Bulkheads:
    """Bulkheads with short pauses."""
    return Bulkheads(restart=Backoff(0.001, 30.0))


async def test_a_defect_ends_its_own_task_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    parts = quick_bulkheads()
    went_on = asyncio.Event()

    async def breaks() -> None:
        raise Unexpected("for once")

    async def works() -> None:
        await asyncio.sleep(0)
        went_on.set()

    async with asyncio.TaskGroup() as group:
        parts.begin(group, breaks, part=Part.AUDIT, name="audit")
        parts.begin(group, works, part=Part.STREAMS, name="streams")
    assert went_on.is_set()
    assert dict(parts.counts) == {Part.AUDIT: 1}
    assert "defect in audit (audit)" in caplog.text
    assert "Unexpected: for once" in caplog.text, "with its trace"


async def test_a_long_lived_part_is_mended_and_restarted() -> None:
    parts, steps = quick_bulkheads(), list[str]()

    async def work() -> None:
        steps.append("work")
        if len(steps) < 5:
            raise Unexpected

    async with asyncio.TaskGroup() as group:
        parts.begin(group, work, part=Part.BACKFILL, name="b", restart=True, mend=lambda: steps.append("mend"))
    assert steps == ["work", "mend"] * 2 + ["work"]
    assert parts.counts[Part.BACKFILL] == 2


async def test_a_defect_in_a_mend_ends_nothing() -> None:
    parts = quick_bulkheads()

    def mend() -> None:
        raise Unexpected("in the mend")

    with parts.contained(Part.SERIES, "x", mend):
        raise Unexpected
    assert parts.counts[Part.SERIES] == 2


async def test_cancellation_is_no_defect() -> None:
    parts = quick_bulkheads()

    async def work() -> None:
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = parts.begin(group, work, part=Part.STREAMS, name="streams", restart=True)
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert not parts.counts


async def test_a_part_whose_awaited_task_was_cancelled_is_restarted() -> None:
    parts, rounds = quick_bulkheads(), list[int]()

    async def work() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    async with asyncio.TaskGroup() as group:
        task = parts.begin(group, work, part=Part.STARTUP, name="start-up", restart=True)
    assert not task.cancelled()
    assert (len(rounds), parts.counts[Part.STARTUP]) == (2, 1)


async def test_one_trace_a_kind_and_minute_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    parts = quick_bulkheads()
    for _ in range(100):
        with parts.contained(Part.CLIENT, "message"):
            raise Unexpected
    with parts.contained(Part.CLIENT, "message"):
        raise KeyError("another kind")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert parts.counts[Part.CLIENT] == 101


async def test_the_age_of_the_last_defect_of_a_part_is_known() -> None:
    parts = quick_bulkheads()
    with parts.contained(Part.CLIENT, "message"):
        raise Unexpected
    later_s = asyncio.get_running_loop().time() + 100.0
    assert list(parts.ago_s(later_s)) == [Part.CLIENT]
    assert 100.0 <= parts.ago_s(later_s)[Part.CLIENT] < 160.0


def test_a_part_that_is_freed_without_an_event_loop_is_not_restarted() -> None:
    runs = 0

    async def ends_badly() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:  # again and again, although no wait could end the task
            raise KeyboardInterrupt
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)  # there is no loop: raises instead of ending

    async def begin() -> None:
        carried.send(None)

    carried = Bulkheads()._carry(ends_badly, Part.STREAMS, "streams", True, None)
    asyncio.run(begin())
    with pytest.raises(RuntimeError, match="no running event loop"):
        carried.close()
    assert runs == 1


async def test_a_task_that_cannot_begin_leaves_no_coroutine_behind(recwarn: pytest.WarningsRecorder) -> None:
    async with asyncio.TaskGroup() as group:
        pass
    with pytest.raises(RuntimeError):
        Bulkheads().begin(group, partial(asyncio.sleep, 0), part=Part.EVENTS, name="too late")
    gc.collect()
    assert not [str(warning.message) for warning in recwarn]

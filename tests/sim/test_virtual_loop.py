"""Virtual time: no real waiting, the same order in every run, and processes that end between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from sim.scenario import draw_scenario
from sim.virtual_loop import START_S, Deadlock, Process, Runaway, VirtualLoop
from sim.world import NoTime, World


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop(max_iterations=10_000)
    yield made
    made.bury()


def test_a_day_of_sleep_passes_at_once_and_exactly(loop: VirtualLoop) -> None:
    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert loop.run_until_complete(day()) == START_S + 86_400


def test_timers_run_in_the_order_of_their_time(loop: VirtualLoop) -> None:
    seen: list[float] = []
    for delay_s in (3.0, 1.0, 2.0, 0.5):
        loop.call_later(delay_s, seen.append, delay_s)
    loop.run_until_complete(asyncio.sleep(4, None))
    assert seen == [0.5, 1.0, 2.0, 3.0]


def test_waiting_for_nothing_is_an_error(loop: VirtualLoop) -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    task = loop.create_task(forever())
    with pytest.raises(Deadlock, match="no timer is set"):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))


def test_spinning_without_letting_time_pass_is_an_error(loop: VirtualLoop) -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    process = Process("spinning")
    loop.start(process, spin(), "spin")
    with pytest.raises(Runaway):
        loop.run_until_complete(asyncio.sleep(1))
    loop.kill(process)


def test_threads_are_refused(loop: VirtualLoop) -> None:
    with pytest.raises(RuntimeError, match="thread"):
        loop.run_until_complete(asyncio.to_thread(len, ""))


def test_a_killed_process_takes_no_further_step_and_runs_no_cleanup(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            seen.append("child cleaned up")

    async def parent() -> None:
        loop.call_later(3, seen.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            await asyncio.sleep(1)
            seen.append("parent lived")

    process = Process("service")
    loop.start(process, parent(), "parent")
    loop.call_later(2, loop.kill, process)
    loop.run_until_complete(asyncio.sleep(10))
    assert seen == ["parent lived"]


def test_a_fuse_burns_before_the_step_that_it_counts_to(loop: VirtualLoop) -> None:
    def killed_after(steps: int) -> int:
        seen: list[int] = []

        async def work() -> None:
            for step in range(100):
                seen.append(step)
                await asyncio.sleep(0)

        process = Process("service")
        process.light_fuse(steps, lambda: loop.kill(process))
        loop.start(process, work(), "work")
        loop.run_until_complete(asyncio.sleep(1))
        return len(seen)

    assert [killed_after(steps) for steps in (1, 2, 3, 50)] == [0, 1, 2, 49]


def test_the_world_outside_outlives_the_process_that_it_kills(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def outside() -> None:
        await asyncio.sleep(2)
        seen.append("outside")

    async def work() -> None:
        process.light_fuse(1, lambda: loop.kill(process))
        await asyncio.sleep(0)
        seen.append("service")

    process = Process("service")
    task = loop.create_task(outside())
    loop.start(process, work(), "work")
    loop.run_until_complete(task)
    assert seen == ["outside"]


def test_threads_that_other_tests_have_left_may_read_the_clock_of_this_machine_and_the_service_may_not(
    tmp_path: Path,
) -> None:
    world = World(draw_scenario(0), tmp_path / "store.sqlite")
    clock, read = NoTime(world), list[float]()
    idle = Thread(target=lambda: read.extend((clock.monotonic(), clock.time())))
    idle.start()
    idle.join()
    assert (len(read), world.wrong) == (2, [])
    clock.monotonic()
    world.loop.close()
    (wrong,) = world.wrong
    assert "reads the clock of this machine" in wrong

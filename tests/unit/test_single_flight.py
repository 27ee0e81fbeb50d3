"""SingleFlight: concurrent callers share one fetch."""

import asyncio

import pytest

from klinesync.runtime.single_flight import SingleFlight


class Fetch:
    """Counts its calls, and returns on request."""

    def __init__(self) -> None:
        self.count = 0
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.count += 1
        return await asyncio.shield(self.answer)


async def started(tasks: list[asyncio.Task[str]]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_concurrent_callers_share_one_fetch_and_a_later_one_fetches_again() -> None:
    flight, fetch = SingleFlight[str](), Fetch()
    tasks = [asyncio.create_task(flight.get(fetch)) for _ in range(3)]
    await started(tasks)
    fetch.answer.set_result("found")
    assert await asyncio.gather(*tasks) == ["found"] * 3
    assert fetch.count == 1
    assert await flight.get(fetch) == "found"
    assert fetch.count == 2


async def test_all_callers_get_the_error() -> None:
    flight, fetch = SingleFlight[str](), Fetch()
    tasks = [asyncio.create_task(flight.get(fetch)) for _ in range(3)]
    await started(tasks)
    fetch.answer.set_exception(LookupError("gone"))
    for task in tasks:
        with pytest.raises(LookupError, match="gone"):
            await task
    assert fetch.count == 1


async def test_when_the_fetching_caller_is_cancelled_another_one_fetches() -> None:
    flight, fetch = SingleFlight[str](), Fetch()
    tasks = [asyncio.create_task(flight.get(fetch)) for _ in range(3)]
    await started(tasks)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    assert [task.cancelled() for task in tasks] == [True, False, True]
    await started(tasks[1:2])
    fetch.answer.set_result("found")
    assert await tasks[1] == "found"
    assert fetch.count == 2

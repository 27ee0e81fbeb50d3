"""RestGate: requests wait for their turn, and release it in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.binance.rest_gate import RestGate
from klinesync.exchanges.binance.timings import USUAL_REST, RestTimings
from klinesync.exchanges.binance.weight import MAX_IN_FLIGHT, MAX_WAITING, RESERVED, WeightBudget
from klinesync.exchanges.exchange import Errand, Urgency
from klinesync.runtime.exchange_clock import ExchangeClock

T0_MS = 1_700_000_040_000 // 60_000 * 60_000


class Host:
    """A gate, and requests through the gate that end on command."""

    def __init__(self, limit: int = 1000, *, max_waiting: int = MAX_WAITING, timings: RestTimings = USUAL_REST) -> None:
        self.clock = ExchangeClock()
        self.now_s = 5000.0
        self.clock.learn(T0_MS, self.now_s)
        budget = WeightBudget(limit, max_waiting=max_waiting)
        self.gate = RestGate("the host", budget, self.clock, lambda: self.now_s, timings=timings)
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Future[None]] = {}

    def ask(self, name: str, urgency: Urgency, heavy: int = 1, *, errand: Errand | None = None) -> asyncio.Task[None]:
        end = self.ends[name] = asyncio.get_running_loop().create_future()

        async def request() -> None:
            async with self.gate.turn(errand or Errand(urgency), heavy) as turn:
                self.gate.sent(turn)
                self.begun.append(name)
                await end
                self.gate.answered(turn, 200, {})

        return asyncio.create_task(request(), name=name)

    async def answer(self, status: int, headers: Mapping[str, str]) -> None:
        async with self.gate.turn(Errand(Urgency.REPAIR), 1) as turn:
            self.gate.sent(turn)
            self.gate.answered(turn, status, headers)

    def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set_result(None)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_repair_is_sent_before_all_queued_requests() -> None:
    host = Host()
    tasks = [host.ask(f"deep {number}", Urgency.DEEP) for number in range(MAX_IN_FLIGHT + 2)]
    await settled()
    assert len(host.begun) == MAX_IN_FLIGHT - RESERVED
    tasks.append(host.ask("repair", Urgency.REPAIR))
    await settled()
    assert host.begun[-1] == "repair"
    tasks.append(host.ask("read", Urgency.READ))
    host.end("deep 0")
    await settled()
    assert host.begun[-1] == "read"
    host.end(*(name for name in host.ends if name != "deep 0"))
    await asyncio.gather(*tasks)
    assert host.gate.status.under_way == 0
    assert host.gate.status.requests == len(tasks)


async def test_a_request_that_is_cancelled_in_the_queue_or_when_it_is_granted_releases_its_place() -> None:
    host = Host()
    tasks = [host.ask(f"{number}", Urgency.REPAIR) for number in range(MAX_IN_FLIGHT + 2)]
    await settled()
    host.end("0")  # the next request's turn comes just after its cancellation, before it learns of the cancellation
    tasks[MAX_IN_FLIGHT].cancel()
    await settled()
    tasks[MAX_IN_FLIGHT + 1].cancel()
    await settled()
    assert host.gate.status.waiting[Urgency.REPAIR] == 0
    host.end(*"123")
    await asyncio.gather(*tasks[:MAX_IN_FLIGHT])
    assert [task.cancelled() for task in tasks] == [False] * MAX_IN_FLIGHT + [True] * 2
    status = host.gate.status
    assert (status.under_way, status.used) == (0, status.requests)
    last = host.ask("last", Urgency.DEEP)
    host.end("last")
    await last


async def test_a_request_waits_for_the_next_minute_of_the_exchange_when_this_one_is_full() -> None:
    host = Host(limit=10)
    first = host.ask("first", Urgency.REPAIR, heavy=8)
    host.end("first")
    await first
    second = host.ask("second", Urgency.REPAIR, heavy=8)
    host.end("second")
    await settled()
    assert host.begun == ["first"]
    host.clock.learn(T0_MS + 60_000, host.now_s)  # a stream's frame
    async with asyncio.timeout(60):
        await second


async def test_after_429_queued_requests_are_sent_when_the_cooldown_ends_by_the_exchanges_clock() -> None:
    host = Host()
    await host.answer(429, {"Retry-After": "30"})
    waiting = host.ask("waiting", Urgency.DEEP)
    host.end("waiting")
    await settled()
    assert host.begun == []
    assert 0 < host.gate.status.blocked_s <= 30.0
    host.clock.learn(T0_MS + 30_000, host.now_s)
    async with asyncio.timeout(60):
        await waiting


async def test_a_read_fails_at_once_in_a_cooldown_and_its_error_has_the_remaining_time() -> None:
    host = Host()
    await host.answer(429, {"Retry-After": "30"})
    with pytest.raises(UpstreamError, match="is in cooldown for 30 s more") as caught:
        await host.ask("read", Urgency.READ)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30.0)


@pytest.mark.parametrize(
    ("headers", "blocked_s"),
    [({}, 60.0), ({"Retry-After": "soon"}, 60.0), ({"Retry-After": "120"}, 120.0), ({"Retry-After": "9" * 40}, 60.0)],
)
async def test_a_ban_lasts_for_its_retry_after_or_the_default(headers: dict[str, str], blocked_s: float) -> None:
    host = Host()
    await host.answer(418, headers)
    assert host.gate.status.blocked_s == blocked_s


async def test_no_request_waits_for_the_end_of_a_long_ban() -> None:
    host = Host()
    tasks = [host.ask(f"{number}", Urgency.DEEP) for number in range(MAX_IN_FLIGHT)]
    await settled()
    assert len(host.begun) == MAX_IN_FLIGHT - RESERVED
    await host.answer(418, {"Retry-After": "3600"})
    with pytest.raises(UpstreamError) as caught:
        await tasks[-1]
    assert caught.value.retry_after_s == 3600.0
    with pytest.raises(UpstreamError):
        await host.ask("another", Urgency.REPAIR)
    host.end(*host.begun)
    await asyncio.gather(*tasks[:-1])


async def test_a_read_fails_when_it_is_not_granted_within_the_patience_of_a_user() -> None:
    host = Host(limit=10, timings=RestTimings(read_patience_s=0.01))
    await host.answer(200, {"X-MBX-USED-WEIGHT-1M": "9"})
    with pytest.raises(UpstreamError, match="no room"):
        await host.ask("read", Urgency.READ)
    assert host.gate.status.waiting[Urgency.READ] == 0


async def test_a_full_queue_refuses_the_least_urgent_request() -> None:
    host = Host(limit=10, max_waiting=2)
    await host.answer(200, {"X-MBX-USED-WEIGHT-1M": "9"})
    first, second = (host.ask(name, Urgency.DEEP) for name in ("first", "second"))
    await settled()
    with pytest.raises(UpstreamError, match="too many requests wait"):
        await host.ask("third", Urgency.DEEP)
    repair = host.ask("repair", Urgency.REPAIR)
    with pytest.raises(UpstreamError, match="too many requests wait"):
        await second
    host.end("first", "repair")
    host.clock.learn(T0_MS + 60_000, host.now_s)
    async with asyncio.timeout(60):
        await asyncio.gather(first, repair)
    assert host.begun == ["repair", "first"]


def test_collecting_requests_of_a_closed_event_loop_grants_no_other_request() -> None:
    """A service that the simulation kills ends that way."""
    loop = asyncio.new_event_loop()

    async def begun() -> list[asyncio.Task[None]]:
        host = Host()
        tasks = [host.ask(f"{number}", Urgency.REPAIR) for number in range(MAX_IN_FLIGHT + 2)]
        await settled()
        return tasks

    tasks = loop.run_until_complete(begun())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()

"""RestGate: requests wait for their turn, and release it in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.binance.rest_gate import RestGate
from klinesync.exchanges.binance.timings import USUAL_REST, RestTimings
from klinesync.exchanges.binance.weight import AT_ONCE, KEPT_FREE, MAX_WAITING, WeightBudget
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


async def test_a_repair_overtakes_all_who_wait() -> None:
    host = Host()
    tasks = [host.ask(f"deep {number}", Urgency.DEEP) for number in range(AT_ONCE + 2)]
    await settled()
    assert len(host.begun) == AT_ONCE - KEPT_FREE
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


async def test_a_request_that_is_cancelled_while_it_waits_or_just_when_its_turn_comes_leaves_no_trace() -> None:
    host = Host()
    tasks = [host.ask(f"{number}", Urgency.REPAIR) for number in range(AT_ONCE + 2)]
    await settled()
    host.end("0")  # the next request's turn comes just after its cancellation, before it learns of the cancellation
    tasks[AT_ONCE].cancel()
    await settled()
    tasks[AT_ONCE + 1].cancel()
    await settled()
    assert host.gate.status.waiting[Urgency.REPAIR] == 0
    host.end(*"123")
    await asyncio.gather(*tasks[:AT_ONCE])
    assert [task.cancelled() for task in tasks] == [False] * AT_ONCE + [True] * 2
    status = host.gate.status
    assert (status.under_way, status.used) == (0, status.requests)
    last = host.ask("last", Urgency.DEEP)
    host.end("last")
    await last


async def test_a_full_minute_is_waited_out_on_the_exchanges_clock() -> None:
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


async def test_after_429_nothing_is_sent_until_the_exchanges_clock_says_so_and_who_waits_goes_on_then() -> None:
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


async def test_a_user_does_not_wait_for_a_blocked_host_and_is_told_how_long_it_is() -> None:
    host = Host()
    await host.answer(429, {"Retry-After": "30"})
    with pytest.raises(UpstreamError, match="wants to be left alone for 30 s more") as caught:
        await host.ask("read", Urgency.READ)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30.0)


@pytest.mark.parametrize(
    ("headers", "blocked_s"),
    [({}, 60.0), ({"Retry-After": "soon"}, 60.0), ({"Retry-After": "120"}, 120.0), ({"Retry-After": "9" * 40}, 60.0)],
)
async def test_a_ban_lasts_as_long_as_the_exchange_says(headers: dict[str, str], blocked_s: float) -> None:
    host = Host()
    await host.answer(418, headers)
    assert host.gate.status.blocked_s == blocked_s


async def test_a_long_ban_is_waited_for_by_nobody() -> None:
    host = Host()
    tasks = [host.ask(f"{number}", Urgency.DEEP) for number in range(AT_ONCE)]
    await settled()
    assert len(host.begun) == AT_ONCE - KEPT_FREE
    await host.answer(418, {"Retry-After": "3600"})
    with pytest.raises(UpstreamError) as caught:
        await tasks[-1]
    assert caught.value.retry_after_s == 3600.0
    with pytest.raises(UpstreamError):
        await host.ask("another", Urgency.REPAIR)
    host.end(*host.begun)
    await asyncio.gather(*tasks[:-1])


async def test_a_user_does_not_wait_longer_for_a_turn_than_a_user_does() -> None:
    host = Host(limit=10, timings=RestTimings(read_patience_s=0.01))
    await host.answer(200, {"X-MBX-USED-WEIGHT-1M": "9"})
    with pytest.raises(UpstreamError, match="no room"):
        await host.ask("read", Urgency.READ)
    assert host.gate.status.waiting[Urgency.READ] == 0


async def test_a_full_line_refuses_the_less_urgent() -> None:
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


def test_requests_that_are_collected_once_their_event_loop_is_gone_let_nobody_else_go() -> None:
    """As a service that is killed in the simulation ends."""
    loop = asyncio.new_event_loop()

    async def begun() -> list[asyncio.Task[None]]:
        host = Host()
        tasks = [host.ask(f"{number}", Urgency.REPAIR) for number in range(AT_ONCE + 2)]
        await settled()
        return tasks

    tasks = loop.run_until_complete(begun())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()

"""Comeback: while the exchange is unreachable one connection probes, and the others follow after its success."""

from __future__ import annotations

import asyncio
import random

from klinesync.exchanges.comeback import Comeback

LONG_S = 3600.0


class Exchange:
    """Connections of one market that retry, each with a backoff of an hour."""

    def __init__(self) -> None:
        self.comeback = Comeback(random.Random(1), probe_most_s=0.01, follow_within_s=0.01)
        self.there = False
        self.tries: list[int] = []
        self.carried: set[int] = set()

    async def connect(self, number: int) -> None:
        try:
            while True:
                self.tries.append(number)
                if self.there:
                    self.carried.add(number)
                    self.comeback.carried(number)
                    await asyncio.Event().wait()
                await self.comeback.pause(number, LONG_S)
        finally:
            self.comeback.gone(number)


async def settle(exchange: Exchange, count: int) -> None:
    async with asyncio.timeout(60):
        while len(exchange.carried) < count:
            await asyncio.sleep(0.001)


async def test_one_probes_and_all_follow_once_the_exchange_is_back() -> None:
    exchange = Exchange()
    tasks = [asyncio.create_task(exchange.connect(number)) for number in range(10)]
    while len(exchange.tries) < 30:
        await asyncio.sleep(0.001)
    assert set(exchange.tries[10:]) == {0}, "the others wait"
    exchange.there = True
    await settle(exchange, 10)
    assert sorted(exchange.tries[-10:]) == list(range(10)), "each once"
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_another_one_probes_when_the_first_is_gone() -> None:
    exchange = Exchange()
    tasks = [asyncio.create_task(exchange.connect(number)) for number in range(3)]
    while len(exchange.tries) < 6:
        await asyncio.sleep(0.001)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    tried = len(exchange.tries)
    while len(exchange.tries) < tried + 10:
        await asyncio.sleep(0.001)
    assert len(set(exchange.tries[tried + 4 :])) == 1
    exchange.there = True
    await settle(exchange, 2)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])


async def test_a_connection_that_is_lost_alone_keeps_to_its_backoff() -> None:
    exchange = Exchange()
    exchange.comeback.carried("another")
    paused = asyncio.create_task(exchange.comeback.pause("lost", 0.2))
    began_s = asyncio.get_running_loop().time()
    await paused
    assert asyncio.get_running_loop().time() - began_s >= 0.2

"""KnownSeries with exchanges that answer late or never, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import pytest

from klinesync.core.errors import UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.market_data.known_series import (
    LEAST_TIMEOUT_S,
    USUAL_KNOWN,
    KnownLimits,
    KnownSeries,
)
from klinesync.runtime.bulkheads import Bulkheads, Part
from sim.virtual_loop import VirtualLoop

Result = TypeVar("Result")

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
CONTRACT = SeriesId.parse("binance:futures:BTC/USDT:1m")


def run(work: Coroutine[object, object, Result]) -> Result:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


class Exchange:
    """Answers for a market when its event is set; `asked`: the requests so far."""

    def __init__(self) -> None:
        self.answers = {"spot": asyncio.Event(), "futures": asyncio.Event()}
        self.asked: list[SeriesId] = []

    async def knows(self, series: SeriesId) -> bool:
        self.asked.append(series)
        await self.answers[series.market].wait()
        if series == ETH:
            raise UnknownSeries(str(series), "it is not listed")
        return True


async def waited_s(known: KnownSeries, series: SeriesId) -> float:
    """How long it takes until the exchange counts as unreachable."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(UpstreamError):
        await known.known(series)
    return loop.time() - began_s


def test_a_market_that_never_answers_costs_one_timeout_and_does_not_affect_other_markets() -> None:
    async def work() -> None:
        exchange = Exchange()
        exchange.answers["futures"].set()
        known = KnownSeries(exchange.knows, Bulkheads(), asyncio.get_running_loop().time)
        assert await waited_s(known, BTC) == pytest.approx(USUAL_KNOWN.timeout_s)
        assert await waited_s(known, ETH) == pytest.approx(LEAST_TIMEOUT_S), "it has hung for that long already"
        assert await waited_s(known, BTC) == pytest.approx(LEAST_TIMEOUT_S)
        assert await known.known(CONTRACT)
        assert exchange.asked == [BTC, ETH, CONTRACT], "a question that is pending is not asked again"
        exchange.answers["spot"].set()
        await asyncio.sleep(1)
        assert await known.known(BTC)
        with pytest.raises(UnknownSeries):
            await known.known(ETH)

    run(work())


def test_readers_share_an_answer_also_when_a_reader_is_cancelled() -> None:
    async def work() -> None:
        exchange = Exchange()
        known = KnownSeries(exchange.knows, Bulkheads(), asyncio.get_running_loop().time)
        waiting = [asyncio.ensure_future(known.known(BTC)) for _ in range(5)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        await asyncio.sleep(1)
        exchange.answers["spot"].set()
        assert await asyncio.gather(*waiting[1:]) == [True] * 4
        assert exchange.asked == [BTC]

    run(work())


def test_requests_in_flight_are_limited() -> None:
    assert USUAL_KNOWN.requests == 1000

    async def work() -> None:
        exchange = Exchange()
        known = KnownSeries(exchange.knows, Bulkheads(), asyncio.get_running_loop().time, KnownLimits(requests=1))
        assert await waited_s(known, BTC) == pytest.approx(USUAL_KNOWN.timeout_s)
        assert await waited_s(known, CONTRACT) == 0
        exchange.answers["spot"].set()
        await asyncio.sleep(1)
        exchange.answers["futures"].set()
        assert await known.known(CONTRACT), "there is room again"

    run(work())


def test_a_defect_in_a_request_is_counted_and_ends_the_wait_of_its_readers() -> None:
    async def knows(series: SeriesId) -> bool:
        raise ZeroDivisionError

    async def work() -> None:
        bulkheads = Bulkheads()
        known = KnownSeries(knows, bulkheads, asyncio.get_running_loop().time)
        assert await waited_s(known, BTC) == 0
        assert await waited_s(known, BTC) == 0
        assert bulkheads.counts == {Part.LISTINGS: 2}

    run(work())

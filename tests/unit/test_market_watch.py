"""MarketWatch: when the exchange is asked for its time, and the changes of a market's state."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.contact import RestContact
from klinesync.ingest.market_watch import MarketChange, MarketWatch
from klinesync.ingest.timings import USUAL_TIMINGS
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.runtime.exchange_clock import ExchangeClock
from support.fake_exchange import FakeExchange

T0_MS = 1_700_000_040_000


class Exchange(FakeExchange):
    """Answers with the time `later_ms` after T0, or fails; counts its requests."""

    def __init__(self, clock: ExchangeClock) -> None:
        super().__init__()
        self.clock = clock
        self.later_ms = 0
        self.trouble: UpstreamError | None = None
        self.asked = 0
        self.newest = RestContact()

    async def now_ms(self, market: str) -> int:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return T0_MS + self.later_ms

    def contact(self, market: str) -> RestContact:
        return self.newest


def watch_of(exchange: Exchange) -> MarketWatch:
    return MarketWatch(
        "spot",
        exchange=exchange,
        clock=exchange.clock,
        pipeline=SimpleNamespace(submit=None),  # type: ignore[arg-type]  # nothing is written
        believe=lambda _event, _now_s, _came_s: None,
        final_margin_s=2.0,
        our_clock=SYSTEM_CLOCK,
        bulkheads=Bulkheads(),
    )


async def test_an_old_stamp_is_not_taken_for_the_time() -> None:
    """A tail would begin at the head, however long ago, and read everything between the head and now."""
    exchange = Exchange(ExchangeClock())
    watch, now_s = watch_of(exchange), asyncio.get_running_loop().time()
    exchange.clock.learn(T0_MS, now_s - USUAL_TIMINGS.clock_age_s - 1.0)
    exchange.later_ms = 5 * 86_400_000
    assert await watch.fresh_ms() == T0_MS + exchange.later_ms
    exchange.trouble = UpstreamError("the time alone is refused")
    known_ms = await watch.fresh_ms()
    assert (exchange.asked, known_ms < T0_MS + 60_000) == (2, True), "the estimate is better than nothing"


async def test_a_recent_time_is_not_requested_again() -> None:
    exchange = Exchange(ExchangeClock())
    watch = watch_of(exchange)
    exchange.clock.learn(T0_MS, asyncio.get_running_loop().time())
    assert T0_MS <= await watch.fresh_ms() < T0_MS + 60_000
    assert exchange.asked == 0


async def test_without_a_stamp_and_an_answer_the_time_is_unknown() -> None:
    exchange = Exchange(ExchangeClock())
    exchange.trouble = UpstreamError("it is away")
    with pytest.raises(UpstreamError, match="it is away"):
        await watch_of(exchange).fresh_ms()


async def test_a_market_that_answers_again_ends_waiting_backoffs_once() -> None:
    exchange = Exchange(ExchangeClock())
    watch = watch_of(exchange)
    waited_for = watch.answers_again
    exchange.newest = RestContact(failure="503", status=503)
    assert watch.look(100.0, 1, followed=True) == MarketChange(
        None, answers_again=False, event=("exchange.unreachable", "503")
    )
    change = watch.look(100.0 + USUAL_TIMINGS.silence.unreachable_after_s, 1, followed=True)
    assert (change.answers_again, change.event) == (False, None), "the same trouble as before"
    exchange.newest = RestContact(answered_s=106.0)
    change = watch.look(106.0, 1, followed=True)
    assert change.answers_again
    assert change.event == ("exchange.answers", "the exchange answers again")
    assert waited_for.is_set()
    assert not watch.answers_again.is_set()
    assert watch.look(106.5, 1, followed=True) == MarketChange(None, answers_again=False)


async def test_a_refusal_and_silence_are_different_events() -> None:
    exchange = Exchange(ExchangeClock())
    watch = watch_of(exchange)
    exchange.newest = RestContact(failure="no route", status=0)
    watch.look(100.0, 1, followed=True)
    exchange.newest = RestContact(failure="answered 451", status=451)
    assert watch.look(101.0, 1, followed=True).event == ("exchange.refuses", "answered 451")
    assert watch.look(102.0, 1, followed=True).event is None

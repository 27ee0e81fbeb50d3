"""StampCheck: stamps from the future wait until the exchange has said what time it is."""

import asyncio

import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.ingest import stamp_check
from klinesync.ingest.stamp_check import StampCheck
from klinesync.runtime.clock import MAX_AHEAD_MS, ExchangeClock
from klinesync.runtime.sources import KlineEvent

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
NOW_MS = 1_700_000_000_000


def event(after_ms: int, series: SeriesId = BTC) -> KlineEvent:
    return KlineEvent(series, Candle(60, 1.0, 1.0, 1.0, 1.0, 1.0), closed=False, event_ms=NOW_MS + after_ms)


class Market:
    """An exchange that tells its time, or cannot; and what was believed."""

    def __init__(self, now_ms: int | None, known_ms: int | None = NOW_MS) -> None:
        self.now_ms = now_ms
        self.clock = ExchangeClock()
        self.believed: list[KlineEvent] = []
        self.asked = 0
        self.check = StampCheck(self.clock, self.ask, lambda event, _: self.believed.append(event))
        if known_ms is not None:
            self.clock.learn(known_ms, self.now_s())

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self) -> int:
        self.asked += 1
        if self.now_ms is None:
            raise UpstreamError("nobody answers")
        self.clock.learn(self.now_ms, self.now_s())
        return self.now_ms

    def take(self, event: KlineEvent) -> bool:
        return not self.check.check(event, self.now_s())


async def test_a_stamp_near_the_known_time_is_believed_and_learned() -> None:
    market = Market(NOW_MS)
    assert not market.take(event(500))
    assert market.believed == [event(500)]
    assert market.clock.proven_ms == NOW_MS + 500


async def test_a_stamp_from_the_future_is_refused_and_not_learned() -> None:
    market = Market(NOW_MS + 1)
    lie = event(10 * MAX_AHEAD_MS)
    assert market.take(lie)
    await market.check.resolve()
    assert market.believed == []
    assert market.check.refused == 1
    assert market.clock.proven_ms == NOW_MS + 1


async def test_a_clock_that_jumped_is_believed_once_the_exchange_says_so_and_order_is_kept() -> None:
    market = Market(NOW_MS + 10 * MAX_AHEAD_MS)
    later = [event(10 * MAX_AHEAD_MS), event(10 * MAX_AHEAD_MS + 250)]
    assert market.take(later[0])
    assert market.take(later[1]), "it waits behind the first"
    assert market.believed == []
    assert market.check.begin()
    assert not market.check.begin(), "nobody needs to ask twice"
    await market.check.resolve()
    assert market.believed == later
    assert market.asked == 1


async def test_other_series_do_not_wait_for_one_that_lies() -> None:
    market = Market(NOW_MS)
    market.take(event(10 * MAX_AHEAD_MS))
    assert not market.take(event(100, ETH))
    assert market.believed == [event(100, ETH)]


async def test_where_nothing_is_known_and_nobody_answers_stamps_that_agree_are_believed() -> None:
    market = Market(None, known_ms=None)
    lie, another = event(10 * MAX_AHEAD_MS), event(1000 * MAX_AHEAD_MS, ETH)
    for doubted in (lie, event(0), event(0, ETH), another):
        assert market.take(doubted)
    await market.check.resolve()
    assert market.believed == [], "one stamp is none, told twice or not"
    assert market.clock.proven_ms is None
    assert market.take(event(250)), "it makes two"
    await market.check.resolve()
    assert market.believed == [event(0), event(0, ETH), event(250)]
    assert market.check.refused == 2
    assert market.clock.proven_ms == NOW_MS + 250


async def test_a_lone_stamp_waits_until_the_exchange_answers() -> None:
    market = Market(None, known_ms=None)
    market.take(event(0))
    await market.check.resolve()
    market.now_ms = NOW_MS + 100
    await market.check.resolve()
    assert market.believed == [event(0)]
    assert market.clock.proven_ms == NOW_MS + 100


async def test_where_time_is_known_and_nobody_answers_a_stamp_from_the_future_is_refused() -> None:
    market = Market(None)
    market.take(event(10 * MAX_AHEAD_MS))
    await market.check.resolve()
    assert market.believed == []
    assert market.check.refused == 1


async def test_of_too_many_that_wait_the_oldest_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp_check, "MAX_WAITING", 3)
    market = Market(NOW_MS + 10 * MAX_AHEAD_MS)
    for number in range(5):
        market.take(event(10 * MAX_AHEAD_MS + number))
    await market.check.resolve()
    assert [one.event_ms - NOW_MS - 10 * MAX_AHEAD_MS for one in market.believed] == [2, 3, 4]

"""StampCheck: frames with stamps that the exchange's clock does not explain wait for REST's time."""

import asyncio

import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges import stamp_check
from klinesync.exchanges.exchange import KlineEvent
from klinesync.exchanges.stamp_check import StampCheck
from klinesync.runtime.exchange_clock import ExchangeClock

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
NOW_MS = 1_700_000_000_000
FAR_MS = 600_000


def event(after_ms: int, series: SeriesId = BTC) -> KlineEvent:
    return KlineEvent(series, Candle(60, 1.0, 1.0, 1.0, 1.0, 1.0), closed=False, event_ms=NOW_MS + after_ms)


class Market:
    """An exchange that answers with its time or fails, and the believed frames. Nothing waits before REST is asked
    again."""

    def __init__(
        self, now_ms: int | None, known_ms: int | None = NOW_MS, *, max_waiting: int = stamp_check.MAX_WAITING
    ) -> None:
        self.now_ms = now_ms
        self.clock = ExchangeClock()
        self.believed: list[KlineEvent] = []
        self.asked = 0
        self.check = StampCheck(
            self.clock,
            self.ask,
            lambda event, *_: self.believed.append(event),
            ask_every_s=0.0,
            max_waiting=max_waiting,
        )
        if known_ms is not None:
            self.clock.learn(known_ms, self.now_s())

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self) -> int:
        self.asked += 1
        if self.now_ms is None:
            raise UpstreamError("nobody answers")
        self.clock.asking(self.now_s())
        self.clock.answered(self.now_ms, self.now_s())
        return self.now_ms

    def take(self, event: KlineEvent) -> bool:
        return not self.check.check(event, self.now_s())


async def test_a_stamp_near_the_known_time_is_believed_and_learned() -> None:
    market = Market(NOW_MS)
    assert not market.take(event(500))
    assert market.believed == [event(500)]
    assert market.clock.estimate_ms(market.now_s()) in range(NOW_MS + 500, NOW_MS + 1500)


async def test_a_late_first_frame_is_believed_by_the_clock_of_rest_and_not_learned_while_nobody_answers() -> None:
    market = Market(None)
    late = event(-3_000)
    assert not market.take(late)
    assert market.believed == [late]
    assert market.clock.estimate_ms(market.now_s()) in range(NOW_MS, NOW_MS + 1000), "the stamp moves no clock"


async def test_a_late_first_frame_behind_a_stamp_from_the_future_is_believed_once_nobody_answers() -> None:
    market = Market(None)
    lie, late = event(FAR_MS), event(-3_000)
    assert market.take(lie)
    assert market.take(late)
    await market.check.resolve()
    assert market.believed == [late]
    assert market.check.refused == 1


async def test_a_stamp_from_the_future_is_refused_and_not_learned() -> None:
    market = Market(NOW_MS + 1)
    lie = event(FAR_MS)
    assert market.take(lie)
    await market.check.resolve()
    assert market.believed == []
    assert market.check.refused == 1
    assert market.clock.rest_ms == NOW_MS + 1


async def test_a_clock_that_jumped_is_believed_once_the_exchange_says_so_and_order_is_kept() -> None:
    market = Market(NOW_MS + FAR_MS)
    later = [event(FAR_MS), event(FAR_MS + 250)]
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
    market.take(event(FAR_MS))
    assert not market.take(event(100, ETH))
    assert market.believed == [event(100, ETH)]


async def test_where_nothing_is_known_and_nobody_answers_stamps_that_agree_are_believed() -> None:
    market = Market(None, known_ms=None)
    lie, another = event(FAR_MS), event(100 * FAR_MS, ETH)
    now_s = market.now_s()
    for number, doubted in enumerate((lie, another, event(0), event(0, ETH))):
        assert not market.check.check(doubted, now_s + 0.1 * number)
    await market.check.resolve()
    assert market.believed == [], "one stamp is none, told twice or not"
    assert market.clock.estimate_ms(market.now_s()) is None
    assert not market.check.check(event(250), now_s + 0.5), "it makes two"
    await market.check.resolve()
    assert market.believed == [event(0), event(0, ETH), event(250)]
    assert market.check.refused == 2


async def test_a_lone_stamp_waits_until_the_exchange_answers() -> None:
    market = Market(None, known_ms=None)
    market.take(event(0))
    await market.check.resolve()
    market.now_ms = NOW_MS + 100
    await market.check.resolve()
    assert market.believed == [event(0)]
    assert market.clock.rest_ms == NOW_MS + 100


async def test_an_early_close_waits_for_the_time_and_is_left_out_whatever_its_own_stamp_says() -> None:
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    early = KlineEvent(BTC, Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0), closed=True, event_ms=closes_s * 1000 + 5)
    market = Market(closes_s * 1000 - 15_000, known_ms=closes_s * 1000 - 15_000)
    ordinary = KlineEvent(ETH, early.candle, closed=True, event_ms=closes_s * 1000 + 5)
    assert market.take(early)
    await market.check.resolve()
    assert market.believed == []
    assert (market.check.refused, market.check.early) == (0, 1) or market.check.refused == 1
    market.clock.learn(closes_s * 1000 - 1_500, market.now_s())
    assert not market.take(ordinary), "REST's clock is as near as clocks are"
    assert market.asked == 1
    assert market.believed == [ordinary]


async def test_an_early_close_that_made_the_first_of_two_stamps_is_left_out_while_rest_cannot_be_asked() -> None:
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    candle = Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0)
    early = KlineEvent(BTC, candle, closed=True, event_ms=closes_s * 1000 + 5)
    later = KlineEvent(BTC, Candle(closes_s, 1.0, 1.0, 1.0, 1.0, 1.0), closed=False, event_ms=closes_s * 1000 + 9_000)
    market = Market(None, known_ms=None)
    now_s = market.now_s()
    assert not market.check.check(early, now_s - 24.0), "15 s before its end"
    assert not market.check.check(later, now_s), "the second stamp that agrees"
    await market.check.resolve()
    assert market.believed == [later]
    assert market.check.early == 1


@pytest.mark.parametrize("ahead_s", [16, 20, 45, 59])
@pytest.mark.parametrize("shown_by", [BTC, ETH])
async def test_a_forming_candle_stamped_past_its_end_shows_that_the_frames_clock_is_ahead_while_rest_is_not_known(
    ahead_s: int, shown_by: SeriesId
) -> None:
    """Frames are stamped `ahead_s` too late; one closes its candle 15 s before the end, with a stamp past the end."""
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    candle = Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0)
    market = Market(None, known_ms=None)
    now_s = market.now_s()

    before = candle._replace(time=candle.time - 60)
    for second in (-3, -1):
        event_ms = (closes_s - 60 + second + ahead_s) * 1000
        market.check.check(KlineEvent(shown_by, before, closed=False, event_ms=event_ms), now_s + second)
    await market.check.resolve()
    early = KlineEvent(BTC, candle, closed=True, event_ms=closes_s * 1000 + 5)
    assert not market.check.check(early, now_s + 45)
    await market.check.resolve()
    assert market.check.early == 1
    assert early not in market.believed


async def test_one_forming_candle_past_its_end_alone_shows_nothing_of_the_clock() -> None:
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    candle = Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0)
    market = Market(None, known_ms=None)
    now_s = market.now_s()
    for second, late_s in ((50, 0), (52, 600), (54, 0)):
        forming = candle._replace(time=candle.time - late_s)
        event_ms = (closes_s - 60 + second) * 1000
        market.check.check(KlineEvent(ETH, forming, closed=False, event_ms=event_ms), now_s + second)
    await market.check.resolve()
    assert market.check.check(KlineEvent(BTC, candle, closed=True, event_ms=closes_s * 1000 + 5), now_s + 60.1)


@pytest.mark.parametrize(("came_s", "early"), [(30.0, True), (15.9, False)])
async def test_a_close_that_waited_is_early_by_when_it_came_not_by_when_the_exchange_answers(
    came_s: float, early: bool
) -> None:
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    candle = Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0)
    closing = KlineEvent(BTC, candle, closed=True, event_ms=closes_s * 1000 + 5)
    market = Market(closes_s * 1000 + 16_000, known_ms=None)
    assert not market.check.check(closing, market.now_s() - came_s)
    await market.check.resolve()
    await market.check.resolve()
    assert market.believed == ([] if early else [closing])
    assert market.check.early + market.check.refused == early


async def test_closes_of_many_series_that_come_early_share_one_question() -> None:
    closes_s = NOW_MS // 1000 // 60 * 60 + 60
    known_ms = closes_s * 1000 - 30_000
    market = Market(closes_s * 1000 + 10, known_ms=known_ms)
    candle = Candle(closes_s - 60, 1.0, 1.0, 1.0, 1.0, 1.0)
    events = [
        KlineEvent(SeriesId.parse(f"binance:spot:S{number}/USDT:1m"), candle, closed=True, event_ms=closes_s * 1000)
        for number in range(100)
    ]
    for one in events:
        assert market.take(one)
    await market.check.resolve()
    assert market.asked == 1
    assert market.believed == events, "the answer shows that the minute is over"


async def test_where_time_is_known_and_nobody_answers_a_stamp_from_the_future_is_refused() -> None:
    market = Market(None)
    market.take(event(FAR_MS))
    await market.check.resolve()
    assert market.believed == []
    assert market.check.refused == 1


async def test_of_too_many_that_wait_the_oldest_are_given_up() -> None:
    market = Market(NOW_MS + FAR_MS, max_waiting=3)
    for number in range(5):
        market.take(event(FAR_MS + number))
    await market.check.resolve()
    assert [one.event_ms - NOW_MS - FAR_MS for one in market.believed] == [2, 3, 4]

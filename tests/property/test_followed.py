"""Followed against a model exchange: after any events of the stream, REST, the lists and the store, the stored candles
finally equal those of the exchange. Also single decisions by values."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.exchange import HistoryPage, KlineEvent, Listing
from klinesync.ingest.feed import MAX_HOLD_S
from klinesync.ingest.followed import (
    FRUITLESS_SUSPECT,
    CaughtUp,
    Command,
    Declare,
    Fetch,
    Followed,
    FollowSettings,
    Moment,
    Persist,
    Publish,
    Recover,
    Request,
    RequestDeclared,
    Resubscribe,
    Show,
    Suspect,
)
from klinesync.ingest.timings import FRUITLESS, USUAL_TIMINGS
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
MARGIN_S = 2.0
FIRST_S = 1_700_000_040
SETTINGS = FollowSettings(
    first_history_candles=20,
    most_tail_candles=1000,
    forming_interval_s=1.0,
    stream_stale_s=20.0,
    rest_final_margin_s=MARGIN_S,
    audit_interval_s=0.0,
    ondemand_idle_ttl_s=60.0,
    ondemand_max_jobs=0,
)
TRADING = Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", "TRADING")
PAGE = 7


@dataclass
class World:
    """An exchange, a store and the network between them, one second per step."""

    rng: random.Random
    quiet: float  # share of minutes in which nothing is traded and no candle exists
    followed: Followed = field(init=False)
    now_s: float = 0.0
    store: dict[int, Candle] = field(default_factory=dict)
    connected: bool = False
    silent: bool = False
    dropping: float = 0.0
    rest_status: int | None = None  # of a failing REST
    listed: bool = True
    store_fails: bool = False
    fetch: Fetch | None = None
    fetch_at_s: float = 0.0
    recover_at_s: float | None = None
    suspected: bool = False
    caught_up: int = 0
    states: list[str] = field(default_factory=list)
    absent: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.followed = Followed(BTC, None, SETTINGS, 0.0, None)

    @property
    def moment(self) -> Moment:
        return Moment(self.now_s, FIRST_S * 1000 + int(self.now_s * 1000))

    def candle(self, time: int) -> Candle | None:
        """The exchange's candle of that open time, if there was a trade."""
        if time not in self.absent:
            self.absent[time] = self.rng.random() < self.quiet
        price = float(100 + time // 60 % 50)
        return None if self.absent[time] else Candle(time, price, price + 1, price - 1, price, 1.0)

    def rows(self, start: int) -> list[Candle]:
        """The final rows of REST from `start` on."""
        end = int(FIRST_S + self.now_s - MARGIN_S) // 60 * 60
        return [candle for time in range(start, end, 60) if (candle := self.candle(time)) is not None]

    def carry_out(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Persist():
                    assert not self.followed.is_recovering, "nothing is written over a failed write"
                    self.write(command)
                case Fetch():
                    if not self.followed.is_recovering:
                        assert self.fetch is None, "one reading at a time"
                        self.fetch, self.fetch_at_s = command, self.now_s + command.delay_s
                case Declare(span) | Request(span, _):
                    self.store |= {row.time: row for row in self.rows(span.start) if row.time < span.end}
                case Show(candle):
                    assert self.followed.feed.head is None or candle.time > self.followed.feed.head
                case Recover():
                    assert self.recover_at_s is None
                    self.fetch, self.recover_at_s = None, self.now_s + 1.0
                case Suspect():
                    self.suspected = True
                case CaughtUp():
                    self.caught_up += 1
                case Resubscribe():
                    self.silent = False
                    self.carry_out(self.followed.attached(self.moment))
                case Publish(before, status):
                    assert status.state != before
                    self.states.append(str(status.state))

    def write(self, command: Persist) -> None:
        if self.store_fails:
            self.carry_out(self.followed.unwritten(command.candles))
            return
        assert all(candle == self.candle(candle.time) for candle in command.candles)
        self.store |= {candle.time: candle for candle in command.candles}
        self.carry_out(self.followed.written(command))

    def step(self) -> None:
        self.now_s += 1.0
        moment = self.moment
        self.stream(int(FIRST_S + self.now_s))
        if self.recover_at_s is not None and self.now_s >= self.recover_at_s and not self.store_fails:
            self.recover_at_s = None
            self.carry_out(self.followed.restarted(max(self.store, default=None)))
        if self.fetch is not None and self.now_s >= self.fetch_at_s:
            self.read(self.fetch)
        if self.suspected or int(self.now_s) % 60 == 0:
            self.suspected = False
            second = self.followed.list_due_s(self.now_s) == 0.0
            self.carry_out(self.followed.judge(TRADING if self.listed else None, moment, second=second))
        self.carry_out(self.followed.tick(moment, MARGIN_S))

    def stream(self, second: int) -> None:
        if not self.connected or self.silent or not self.listed:
            return
        closed = second % 60 == 0
        candle = self.candle(second - 60 if closed else second // 60 * 60)
        if candle is None or (closed and self.rng.random() < self.dropping):
            return
        event = KlineEvent(BTC, candle, closed, second * 1000)
        self.carry_out(self.followed.event(event, self.now_s, self.now_s))

    def read(self, fetch: Fetch) -> None:
        """Answer the reading in flight."""
        followed = self.followed
        followed.history_begins()
        if self.rest_status is not None or not self.listed:
            self.fetch = None
            status = 400 if not self.listed else self.rest_status or 0
            self.carry_out(followed.history_failed(status, self.now_s))
            return
        oldest = int(FIRST_S + self.now_s) // 60 * 60 - 60 * SETTINGS.first_history_candles
        rows = self.rows(oldest if fetch.start is None else fetch.start)
        for at in range(0, len(rows), PAGE):
            part = rows[max(0, at - 1) : at + PAGE]  # pages overlap by a row
            empty = [Span(a.time + 60, b.time) for a, b in pairwise(part) if b.time > a.time + 60]
            page = HistoryPage(part, empty)
            self.carry_out(followed.shown(page, self.moment))
            self.carry_out(followed.feed.history(page))
            if followed.is_recovering:
                return
            self.carry_out(followed.feed.page_written())
        self.fetch = None
        self.carry_out(followed.history_ended(self.now_s))

    def trouble(self) -> None:
        """A fault begins or ends."""
        match self.rng.randrange(8):
            case 0:
                self.connected = False
                self.carry_out(self.followed.lost(self.moment))
            case 1:
                self.connect()
            case 2:
                self.silent = not self.silent
            case 3:
                self.dropping = self.rng.choice([0.0, 0.3, 1.0])
            case 4:
                self.rest_status = self.rng.choice([None, 0, 429, 503])
            case 5:
                self.store_fails = not self.store_fails
            case 6:
                self.listed = not self.listed
            case 7:
                self.carry_out(self.followed.unreachable(self.moment, "nothing is heard"))
                self.carry_out(self.followed.reachable(self.moment))

    def connect(self) -> None:
        self.connected = True
        self.carry_out(self.followed.attached(self.moment))

    def calm_down(self) -> None:
        """From now on nothing fails."""
        self.silent, self.dropping, self.rest_status, self.listed, self.store_fails = False, 0.0, None, True, False
        self.connect()


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.6]), st.integers(0, 40))
def test_the_store_finally_equals_the_exchange_after_any_events(seed: int, quiet: float, troubles: int) -> None:
    world = World(random.Random(seed), quiet)
    if world.rng.random() < 0.7:
        world.connect()
    for _ in range(troubles):
        world.trouble()
        for _ in range(world.rng.choice([1, 5, 30, 90])):
            world.step()
    world.calm_down()
    for _ in range(1200):
        world.step()
    final = {row.time: row for row in world.rows(min(world.store, default=FIRST_S))}
    late = max(final, default=0)
    assert {time: row for time, row in world.store.items() if time < late} == {
        time: row for time, row in final.items() if time < late
    }
    assert world.caught_up == 1
    assert not world.followed.is_delisted
    assert not world.followed.watch.is_stale


def followed_at_rest(head: int = FIRST_S) -> Followed:
    """A series that is caught up with its stream live, with this stored `head`."""
    followed = Followed(BTC, head - 60, SETTINGS, 0.0, None)
    followed.attached(Moment(0.0, head * 1000))
    followed.history_begins()
    followed.feed.history(HistoryPage([candle_at(head)], []))
    followed.feed.page_written()
    assert followed.history_ended(0.0)[-1] == CaughtUp()
    followed.event(KlineEvent(BTC, candle_at(head + 60), False, head * 1000), 0.0, 0.0)
    assert followed.is_idle
    return followed


def candle_at(time: int) -> Candle:
    return Candle(time, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_history_waits_a_limited_time_for_the_stream() -> None:
    followed = Followed(BTC, None, SETTINGS, 100.0, None)
    assert followed.tick(Moment(100.0 + USUAL_TIMINGS.attach_wait_s - 0.5, None), MARGIN_S) == []
    (fetch,) = followed.tick(Moment(100.0 + USUAL_TIMINGS.attach_wait_s, None), MARGIN_S)
    assert isinstance(fetch, Fetch)
    assert followed.tick(Moment(110.0, None), MARGIN_S) == [], "it is asked for once"


def test_a_candle_that_is_overdue_at_two_ticks_is_requested_from_rest() -> None:
    followed = followed_at_rest()
    due_ms = (FIRST_S + 120 + 3) * 1000  # two closes after the head's open time, the margin, and the stream's second
    assert followed.tick(Moment(1.0, due_ms - 1), MARGIN_S) == []
    assert followed.tick(Moment(1.5, due_ms), MARGIN_S) == []
    (fetch,) = followed.tick(Moment(2.0, due_ms + 500), MARGIN_S)
    assert isinstance(fetch, Fetch)
    assert fetch.start == FIRST_S


def test_fruitless_requests_back_off_and_then_the_lists_are_polled() -> None:
    followed, now_s = followed_at_rest(), 1000.0
    late_ms = (FIRST_S + 3600) * 1000
    for fruitless in range(6):
        asked = [followed.tick(Moment(now_s + 0.5 * tick, late_ms), MARGIN_S) for tick in range(3)]
        assert [type(command) for commands in asked for command in commands] == [Fetch]
        followed.history_begins()
        commands = followed.history_ended(now_s)
        assert (Suspect() in commands) == (fruitless + 1 >= FRUITLESS_SUSPECT)
        before_s = now_s + FRUITLESS.delay_s(fruitless)
        assert followed.tick(Moment(before_s - 0.01, late_ms), MARGIN_S) == []
        now_s = before_s


def test_a_wrong_request_polls_the_lists_and_pauses_rest_for_a_minute() -> None:
    followed = Followed(BTC, None, SETTINGS, 0.0, None)
    followed.attached(Moment(0.0, None))
    assert followed.history_failed(400, 10.0) == [Suspect()]
    assert followed.tick(Moment(10.0 + USUAL_TIMINGS.suspect_listings_age_s - 1, None), MARGIN_S) == []
    assert [
        type(one) for one in followed.tick(Moment(10.0 + USUAL_TIMINGS.suspect_listings_age_s, None), MARGIN_S)
    ] == [Fetch]


def test_a_second_write_that_fails_does_not_recover_twice() -> None:
    followed = followed_at_rest()
    assert followed.unwritten([candle_at(FIRST_S + 60)]) == [Recover()]
    assert followed.unwritten() == []
    assert followed.tick(Moment(5.0, (FIRST_S + 3600) * 1000), MARGIN_S) == []
    (fetch,) = followed.restarted(FIRST_S)
    assert isinstance(fetch, Fetch)


def test_a_first_history_is_requested_later_when_held_candles_were_released() -> None:
    followed = Followed(BTC, None, SETTINGS, 0.0, None)
    followed.attached(Moment(0.0, FIRST_S * 1000))
    followed.event(KlineEvent(BTC, candle_at(FIRST_S), True, (FIRST_S + 60) * 1000), 1.0, 1.0)
    assert followed.tick(Moment(1.0, (FIRST_S + 61) * 1000), MARGIN_S) == []
    commands = followed.tick(Moment(1.0 + MAX_HOLD_S, (FIRST_S + 121) * 1000), MARGIN_S)
    assert commands == [
        Request(Span(FIRST_S + 120 - 60 * SETTINGS.first_history_candles, FIRST_S), "startup"),
        Persist((candle_at(FIRST_S),)),
    ]


@pytest.mark.parametrize("one_list_decides", [True, False])
def test_a_symbol_that_was_never_listed_is_delisted_by_one_complete_list_or_by_two(*, one_list_decides: bool) -> None:
    followed = Followed(BTC, None, replace(SETTINGS, one_list_decides=one_list_decides), 0.0, None)
    first = followed.judge(None, Moment(0.0, None), second=False)
    assert followed.is_delisted == one_list_decides == (CaughtUp() in first)
    if not one_list_decides:
        assert followed.list_due_s(USUAL_TIMINGS.suspect_listings_age_s) == 0.0
        assert CaughtUp() in followed.judge(None, Moment(USUAL_TIMINGS.suspect_listings_age_s, None), second=True)
    assert followed.list_due_s(1000.0) is None


def test_a_symbol_that_was_listed_is_delisted_only_by_two_lists() -> None:
    followed = followed_at_rest()
    assert followed.judge(TRADING, Moment(0.0, None), second=False) == []
    assert followed.judge(None, Moment(1.0, None), second=False) == []
    assert not followed.is_delisted
    assert followed.judge(TRADING, Moment(2.0, None), second=False) == [], "the list was wrong"
    assert followed.list_due_s(100.0) is None
    followed.judge(replace(TRADING, status="BREAK"), Moment(3.0, None), second=False)
    (told,) = followed.judge(replace(TRADING, status="BREAK"), Moment(70.0, None), second=True)
    assert isinstance(told, Publish)
    assert (told.before, told.status.state, told.status.detail) == (
        StreamState.LIVE,
        StreamState.DELISTED,
        "its status is BREAK",
    )


def test_a_relisted_symbol_is_read_from_its_head_on_and_its_gaps_are_requested() -> None:
    followed = followed_at_rest()
    followed.judge(None, Moment(1.0, None), second=True)
    (suspect,) = followed.event(KlineEvent(BTC, candle_at(FIRST_S + 60), False, FIRST_S * 1000), 2.0, 2.0)[:1]
    assert suspect == Suspect()
    commands = followed.judge(TRADING, Moment(3.0, None), second=False)
    assert [type(command) for command in commands] == [Publish, Fetch, RequestDeclared]
    assert not followed.is_delisted

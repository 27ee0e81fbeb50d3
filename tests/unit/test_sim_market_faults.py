"""Faults of the market without sockets: later queries find the same candles, whatever was computed before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klinesync.core.timeframe import Timeframe
from klinesync.sim.exchange import Grid, SimExchange, make_exchange
from klinesync.sim.faults import ClockSkew, Delist, Outage, Revise, Unlisted
from klinesync.sim.feed import Event, KlineFeed, StreamKey
from klinesync.sim.generator import generated_tapes
from klinesync.sim.market_faults import MarketFaults
from klinesync.sim.server import SimConfig, build_exchange
from klinesync.sim.streams import Streams

MINUTE_S = 1_780_315_200  # of five minutes as well
NOW_MS = (MINUTE_S + 140) * 1000
FIVE = Grid(Timeframe.parse("5m"))


class Market:
    """An exchange of one symbol on each market, with a 1m and a 5m stream of the one on spot."""

    def __init__(self) -> None:
        first_s = MINUTE_S - 10 * 86_400
        tapes = [*generated_tapes("spot", 2, 1, first_s), *generated_tapes("futures", 2, 1, first_s)]
        self.exchange: SimExchange = make_exchange(tapes, 1, 0, "generator")
        self.feed = KlineFeed(self.exchange)
        self.streams = Streams(self.feed)
        self.faults = MarketFaults(self.exchange, self.streams)
        self.listing = self.exchange.spot["BTCUSDT"]
        for interval in ("1m", "5m"):
            self.feed.subscribe(StreamKey("spot", f"btcusdt@kline_{interval}"), NOW_MS - 30_000)

    def run(self, to_ms: int) -> list[Event]:
        """All events up to that moment."""
        events: list[Event] = []
        while (due_ms := self.streams.next_due_ms()) is not None and due_ms <= to_ms:
            events += self.streams._due(due_ms, 1000)
        return events


@pytest.fixture
def market() -> Market:
    return Market()


def test_what_was_cached_of_a_revised_candle_is_forgotten(market: Market) -> None:
    market.run(NOW_MS)
    before = market.listing.day(NOW_MS)
    assert market.faults.revise(Revise(market="spot", symbols=("BTCUSDT",)), NOW_MS) == 1
    after = market.listing.day(NOW_MS)
    assert before is not None
    assert after is not None
    assert after.volume > before.volume
    update = [one for one in market.run(NOW_MS + 10_000) if not one.closed and not one.stream.grid.is_minute][-1]
    rest = market.listing.candles(FIVE, MINUTE_S, MINUTE_S + 300, update.sent_ms).row(0)
    assert update.row == rest


def test_a_pushed_revision_closes_no_candle_that_is_still_open(market: Market) -> None:
    market.run(NOW_MS)
    market.faults.revise(Revise(push=True), NOW_MS)
    again = [one for one in market.run(NOW_MS) if one.closed]
    assert [(one.stream.key.name, one.row.time) for one in again] == [("btcusdt@kline_1m", MINUTE_S + 60)]
    end_ms = (MINUTE_S + 301) * 1000
    market.run(end_ms)
    market.faults.revise(Revise(push=True), end_ms)
    again = [one for one in market.run(end_ms) if one.closed]
    assert sorted(one.row.time for one in again) == [MINUTE_S, MINUTE_S + 240]
    assert {one.row for one in again} == {
        market.listing.candles(FIVE, MINUTE_S, MINUTE_S + 300, end_ms).row(0),
        market.listing.minute(MINUTE_S + 240),
    }


def test_a_revision_before_the_final_event_is_in_that_event_and_not_pushed_twice(market: Market) -> None:
    close_ms = (MINUTE_S + 180) * 1000  # a final event on spot comes at least two milliseconds after the close
    market.run(close_ms)
    market.faults.revise(Revise(push=True), close_ms + 1)
    closed = [one for one in market.run(close_ms + 1000) if one.closed]
    assert [one.row for one in closed] == [market.listing.minute(MINUTE_S + 120)]


def test_the_present_minute_of_a_symbol_that_does_not_exist_is_not_there_either(market: Market) -> None:
    market.run(NOW_MS)
    assert market.listing.running(NOW_MS) is not None
    unlisted = Unlisted(symbols=("BTCUSDT",))
    assert market.faults.halt(7, unlisted, NOW_MS) == 2
    assert market.listing.running(NOW_MS) is None
    assert market.listing.day(NOW_MS) is None
    assert market.run(NOW_MS + 600_000) == []
    market.faults.lift(7, unlisted, NOW_MS + 600_000)
    first_s = (NOW_MS + 600_000) // 60_000 * 60 + 60
    events = market.run((first_s + 290) * 1000)
    assert {event.row.time for event in events if event.stream.grid.is_minute} == {first_s + 60 * at for at in range(5)}
    assert market.listing.tape.first_s == market.listing.onboard_s == first_s
    (five,) = [event for event in events if event.closed and not event.stream.grid.is_minute]
    begun = market.listing.tape.minutes(five.row.time, five.row.time + 300)
    assert five.row.trades == begun.trades.sum()


def test_a_delisting_that_is_lifted_in_its_own_minute_has_not_happened(market: Market) -> None:
    truth = market.listing.tape.minutes(MINUTE_S, MINUTE_S + 600)
    delist = Delist()
    market.faults.halt(7, delist, NOW_MS)
    assert len(market.listing.tape.minutes(MINUTE_S, MINUTE_S + 600)) == 3
    market.faults.lift(7, delist, NOW_MS + 30_000)
    assert market.listing.tape.minutes(MINUTE_S, MINUTE_S + 600).rows() == truth.rows()
    assert market.exchange.futures["BTCUSDT"].tape.first_s < MINUTE_S, "nothing is forgotten"


def test_forgetting_can_be_chosen_on_either_market(market: Market) -> None:
    for number, forget in enumerate((True, False)):
        delist = Delist(symbols=(("BTCUSDT", "ETHUSDT")[number],), forget=forget)
        market.faults.halt(number, delist, NOW_MS)
        market.faults.lift(number, delist, NOW_MS + 300_000)
    next_s = (NOW_MS + 300_000) // 60_000 * 60 + 60
    for listings in (market.exchange.spot, market.exchange.futures):
        assert listings["BTCUSDT"].tape.first_s == next_s
        assert listings["ETHUSDT"].tape.first_s < MINUTE_S
    assert market.exchange.futures["ETHUSDT"].onboard_s == next_s
    assert market.exchange.spot["ETHUSDT"].onboard_s < MINUTE_S


def test_outages_add_up_and_concern_what_they_name(market: Market) -> None:
    market.faults.halt(1, Outage(minutes=2, market="spot"), NOW_MS)
    market.faults.halt(2, Outage(minutes=4, symbols=("BTCUSDT",)), NOW_MS)
    opens = [MINUTE_S + 60 * at for at in range(10)]
    left = {
        (listing.symbol.market, listing.symbol.name): [
            opens.index(t) for t in listing.tape.minutes(opens[0], opens[-1] + 60).time
        ]
        for listings in (market.exchange.spot, market.exchange.futures)
        for listing in listings.values()
    }
    assert left == {
        ("spot", "BTCUSDT"): [0, 1, 2, 7, 8, 9],
        ("spot", "ETHUSDT"): [0, 1, 2, 5, 6, 7, 8, 9],
        ("futures", "BTCUSDT"): [0, 1, 2, 7, 8, 9],
        ("futures", "ETHUSDT"): list(range(10)),
    }


def test_a_skewed_clock_is_off_the_start_of_a_recording_too(tmp_path: Path) -> None:
    rows = [[(MINUTE_S + 60 * at) * 1000, 1.0, 2.0, 0.5, 1.5, 3.0] for at in range(600)]
    (tmp_path / "XYZ_USDT-1m.json").write_text(json.dumps(rows))
    host_now_s = MINUTE_S + 86_400.0 * 30
    for skew_s in (0.0, 90.5):
        config = SimConfig(data=tmp_path, start=MINUTE_S + 600, faults=(ClockSkew(skew_s=skew_s),))
        exchange, now_ms = build_exchange(config, host_now_s)
        assert now_ms == (MINUTE_S + 600 + exchange.shift_s + skew_s) * 1000
    config = SimConfig(data=tmp_path, faults=(ClockSkew(skew_s=-3600),))
    assert build_exchange(config, host_now_s + 5 * 3600)[1] == (host_now_s + 4 * 3600) * 1000

"""Events of series: names, sentences, dates, and the scope of each: a series or a market."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core import gaps
from klinesync.core.gaps import Gap, GapChange, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.history.event_log import CROWD_LEAST, CROWD_S, MAX_EVENTS_A_SERIES, EventLog
from klinesync.history.event_words import MAX_GAP_EVENTS, ROUTINE_CANDLES, gap_events, reading_event
from klinesync.history.series_events import SeriesEvents
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.storage.records import Corrected

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
HOUR = SeriesId.parse("binance:spot:BTC/USDT:1h")
MINUTE = BTC.timeframe
EIGHT = 1_764_489_600  # 2025-11-30 08:00 UTC


def at(minute: int) -> int:
    return EIGHT + 60 * minute


class World:
    """The events, and the time with which they are dated."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall_s = float(EIGHT)
        self.clocks: dict[tuple[str, str], ExchangeClock] = {}
        self.log = EventLog()
        self.bulkheads = Bulkheads()
        self.events = SeriesEvents(
            self.log,
            clocks=self.clocks,
            wall_s=lambda: self.wall_s,
            monotonic=lambda: self.now_s,
            bulkheads=self.bulkheads,
            derives=lambda series: series == HOUR,
        )

    def told(self, *series: SeriesId) -> list[tuple[str, str]]:
        return [(event.event, event.detail) for event in self.events.of(*(series or (BTC,)))]

    def names(self, scope: str) -> list[str]:
        return [event.event for event in self.log.events([scope])]

    def turn(self, series: SeriesId, *states: StreamState) -> None:
        for before, state in pairwise(states):
            self.events.stream(series, before, StreamStatus(state, detail="why"))


# --- gaps and corrections


def net(*changes: GapChange) -> list[tuple[str, str]]:
    return [(event.event, event.detail) for event in gap_events(MINUTE, changes)]


def test_a_hole_is_declared_filled_in_part_confirmed_empty_and_lost() -> None:
    hole = Span(at(0), at(10))
    declared = gaps.note([], [hole])
    assert net(declared) == [("gap.declared", "10 candles, 2025-11-30 08:00 UTC to 2025-11-30 08:09 UTC: missing")]
    ledger = declared.applied_to([])
    assert net(gaps.begin_healing(ledger, [hole])) == [], "who works on it is told by the needs"
    filled = gaps.fill(ledger, [Span(at(0), at(1))])
    assert net(filled) == [("gap.filled", "the candle of 2025-11-30 08:00 UTC: filled")]
    ledger = filled.applied_to(ledger)
    empty = gaps.confirm_empty(ledger, [Span(at(1), at(3))], "REST has its neighbours", at(20))
    assert net(empty) == [
        (
            "gap.confirmed_empty",
            "2 candles, 2025-11-30 08:01 UTC to 2025-11-30 08:02 UTC: confirmed empty: REST has its neighbours",
        )
    ]
    ledger = empty.applied_to(ledger)
    [(name, sentence)] = net(gaps.lose(ledger, [hole], "the files are gone", at(30)))
    assert (name, sentence.endswith(": lost: the files are gone")) == ("gap.lost", True)


def test_a_gap_that_is_declared_and_settled_in_one_transaction_makes_one_event() -> None:
    declared = gaps.note([], [Span(at(5), at(6))])
    empty = gaps.confirm_empty(declared.applied_to([]), [Span(at(5), at(6))], "no trades", at(9))
    assert net(declared, empty) == [("gap.confirmed_empty", "a single candle is confirmed empty: no trades")]


def test_thousands_of_gaps_in_one_transaction_are_counted() -> None:
    holes = [Span(at(2 * number), at(2 * number + 1)) for number in range(5000)]
    told = net(gaps.note([], holes))
    assert len(told) == MAX_GAP_EVENTS + 1
    assert told[-1] == ("gap.declared", f"and {5000 - MAX_GAP_EVENTS} more holes at once")


spans = st.tuples(st.integers(0, 30), st.integers(1, 6)).map(lambda span: Span(at(span[0]), at(sum(span))))
steps = st.lists(st.tuples(st.sampled_from(["note", "fill", "heal", "empty"]), spans), max_size=6)


@given(before=st.lists(spans, max_size=4), steps=steps)
def test_the_events_of_a_transaction_are_the_difference_that_it_makes(
    before: list[Span], steps: list[tuple[str, Span]]
) -> None:
    ledger = first = gaps.note([], joined(before)).applied_to([])
    changes = []
    for step, span in steps:
        match step:
            case "note":
                change = gaps.note(ledger, [span])
            case "fill":
                change = gaps.fill(ledger, [span])
            case "heal":
                change = gaps.begin_healing(ledger, [span])
            case _:
                change = gaps.confirm_empty(ledger, [span], "proof", 0)
        ledger = change.applied_to(ledger)
        changes.append(change)

    def candles(rows: list[Gap], *states: GapState) -> set[int]:
        return {time for gap in rows if gap.state in states for time in range(gap.start, gap.end, 60)}

    open_ = (GapState.UNKNOWN, GapState.HEALING)
    empty = GapState.CONFIRMED_EMPTY
    expected = {
        "gap.filled": candles(first, *open_, empty) - candles(ledger, *open_, empty),
        "gap.declared": candles(ledger, *open_) - candles(first, *open_, empty),
        "gap.confirmed_empty": candles(ledger, empty) - candles(first, empty),
    }
    told = gap_events(MINUTE, changes)
    for name, times in expected.items():
        sentences = [event.detail for event in told if event.event == name]
        counts = [1 if text.startswith(("the candle", "a single")) else int(text.split()[0]) for text in sentences]
        assert sum(counts) == len(times), (name, sentences)


def test_a_derived_series_has_no_events_of_gaps_and_corrections() -> None:
    world = World()
    declared = gaps.note([], [Span(at(0), at(60))])
    world.events.committed([(BTC, declared), (HOUR, declared), (HOUR, Corrected(at(0), at(0), 1, "derived"))])
    assert world.names(str(HOUR)) == []
    assert [name for name, _ in world.told(HOUR, BTC)] == ["gap.declared"]


def test_corrections_name_their_source() -> None:
    world = World()
    world.events.committed([(BTC, Corrected(at(1), at(1), 1, "rest")), (BTC, Corrected(at(1), at(9), 3, "file"))])
    assert world.told() == [
        ("candles.corrected", "the candle of 2025-11-30 08:01 UTC: rest has corrected it"),
        (
            "candles.corrected",
            "3 candles between 2025-11-30 08:01 UTC and 2025-11-30 08:09 UTC: file has corrected them",
        ),
    ]


# --- readings


def test_a_short_tail_is_routine_and_makes_no_event() -> None:
    span = Span(at(0), at(5))
    assert reading_event(MINUTE, span, "tail", ROUTINE_CANDLES - 1, None) is None
    assert reading_event(MINUTE, span, "read", 1, None) is None
    for reason, candles in (("tail", ROUTINE_CANDLES), ("declared gap", 1)):
        event = reading_event(MINUTE, span, reason, candles, None)
        assert event is not None
        assert event.event == "history.read"


def test_repeated_failed_requests_are_one_event() -> None:
    world = World()
    for minute in range(5):
        world.wall_s += 60
        world.events.read(BTC, Span(at(0), at(minute + 1)), "tail", 0, None)
    assert world.told() == [("history.empty", "asked for from 2025-11-30 08:00 UTC on (tail): no candle came")]
    for left_s in (2, 4, 8):
        world.events.read(BTC, None, "tail", 0, f"binance spot (http://x) is asked again in {left_s} s: no route")
        world.events.read(BTC, None, "tail", 0, f"okx is in trouble and is asked again in {left_s} s: HTTP 500")
    failures = [(event.detail, event.times) for event in world.events.of(BTC)][1:]
    assert failures == [
        ("asked for (tail), and not answered: binance spot (http://x) is not asked for a while: no route", 3),
        ("asked for (tail), and not answered: okx is not asked for a while: HTTP 500", 3),
    ]


# --- streams


def test_events_of_a_connection_are_events_of_its_market() -> None:
    world = World()
    off, subscribed, live = StreamState.RECONNECTING, StreamState.SUBSCRIBED, StreamState.LIVE
    for number in range(1000):
        series = SeriesId.parse(f"binance:spot:C{number}/USDT:1m")
        world.turn(series, off, subscribed, live, off, live)
        assert world.names(str(series)) == []
    told = {event.event: (event.times, event.detail) for event in world.log.events(["binance:spot"])}
    assert told == {
        "connection.made": (2000, "streams of the market are subscribed"),
        "connection.lost": (1000, "streams of the market are being connected: why"),
    }
    assert len(world.log) == 2


def test_a_stale_stream_is_an_event_of_its_series_until_it_is_live_again() -> None:
    world = World()
    live, stale, rest = StreamState.LIVE, StreamState.STALE, StreamState.REST_FALLBACK
    world.turn(BTC, live, stale, rest, live, StreamState.DELISTED, StreamState.RECONNECTING, live)
    assert world.names(str(BTC)) == ["stream.stale", "stream.rest_fallback", "stream.live", "stream.delisted"]
    assert world.names("binance:spot") == ["connection.lost", "connection.made"]


def test_a_thousand_streams_that_turn_stale_are_a_few_events() -> None:
    world = World()
    everybody = [SeriesId.parse(f"binance:spot:C{number}/USDT:1m") for number in range(1000)]
    for _ in range(10):
        world.now_s += CROWD_S
        world.wall_s += CROWD_S
        for series in everybody:
            world.turn(series, StreamState.LIVE, StreamState.STALE, StreamState.LIVE)
    assert len(world.log) <= 2 * CROWD_LEAST + MAX_EVENTS_A_SERIES
    assert len(world.log.take(10**6).changes) <= CROWD_LEAST + 1, "scopes that a write touches"
    name, sentence = world.told(everybody[-1])[-1]
    assert name == "stream.live"
    assert sentence.startswith(f"more than {CROWD_LEAST} series of the market at once; of one of them: ")


# --- dates


def test_an_event_is_dated_by_its_exchange_and_by_this_machine_while_that_is_unknown() -> None:
    world = World()
    world.events.unfollowed(BTC)
    clock = world.clocks["binance", "spot"] = ExchangeClock()
    for _ in range(3):
        clock.answered(at(100) * 1000 + int(world.now_s * 1000), world.now_s)
        world.now_s += 1.0
    now_ms = clock.estimate_ms(world.now_s)
    assert now_ms is not None
    world.events.followed(BTC, None)
    world.events.followed(SeriesId.parse("okx:spot:BTC/USDT:1m"), at(3))
    assert [event.at_ms for event in world.events.of(BTC)] == [EIGHT * 1000, now_ms]
    assert [event.at_ms for event in world.events.of(SeriesId.parse("okx:spot:BTC/USDT:1m"))] == [EIGHT * 1000]


@pytest.mark.parametrize(("head", "stored"), [(None, "nothing is stored yet"), (EIGHT, "2025-11-30 08:00 UTC")])
def test_a_series_that_is_followed_says_what_is_stored(head: int | None, stored: str) -> None:
    world = World()
    world.events.followed(BTC, head)
    world.events.damaged(BTC)
    world.events.unwritten(BTC)
    assert [name for name, _ in world.told()] == ["series.followed", "store.damaged", "store.failed"]
    assert stored in world.told()[0][1]
    assert world.events.knows(BTC)
    assert not world.events.knows(HOUR)


async def test_a_defect_in_noting_an_event_does_not_reach_the_caller() -> None:
    def broken(_: SeriesId) -> bool:
        raise RuntimeError("a defect")

    bulkheads = Bulkheads()
    events = SeriesEvents(
        EventLog(), clocks={}, wall_s=lambda: float("nan"), monotonic=lambda: 0.0, bulkheads=bulkheads, derives=broken
    )
    events.committed([(BTC, Corrected(at(1), at(1), 1, "rest"))])
    events.followed(BTC, None)
    events.market(BTC, "exchange.answers", "")
    assert bulkheads.counts == {Part.EVENTS: 3}

"""Events under any mixture of faults: only dropped events are lost, and none is invented."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from klinesync.sim.event_faults import EventFault, EventFaults
from klinesync.sim.exchange import SimExchange, make_exchange
from klinesync.sim.faults import DropClosed, Duplicate, LateClosed, Malformed, Reorder, Rule, Silent
from klinesync.sim.feed import Event, KlineFeed, StreamKey
from klinesync.sim.generator import generated_tapes
from klinesync.sim.tape import Row

NOW_MS = 1_780_315_217_000


def exchange() -> SimExchange:
    return make_exchange(generated_tapes("spot", 3, 1, NOW_MS // 1000 - 86_400), 1, 0, "generator")


EXCHANGE = exchange()
FEED = KlineFeed(EXCHANGE)
STREAMS = [
    stream
    for name in ("btcusdt@kline_1m", "btcusdt@kline_5m", "ethusdt@kline_1m")
    if (stream := FEED.subscribe(StreamKey("spot", name), NOW_MS)) is not None
]


def event(stream: int, number: int, closed: bool, sent_ms: int = NOW_MS) -> Event:
    """An event that is identified by its number of trades."""
    return Event(STREAMS[stream], Row(0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, number, 1.0, 1.0, 1), closed, sent_ms)


def numbers(events: list[Event]) -> list[int]:
    return [one.row.trades for one in events]


every, count = st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4))
symbols = st.sampled_from([None, ("BTCUSDT",), ("ETHUSDT",)])
which = st.sampled_from(["all", "closed"])
faults = st.one_of(
    st.builds(DropClosed, every=every, count=count, symbols=symbols),
    st.builds(LateClosed, every=every, count=count, symbols=symbols, delay_s=st.integers(1, 90)),
    st.builds(Duplicate, every=every, count=count, symbols=symbols, events=which),
    st.builds(Reorder, every=every, count=count, symbols=symbols, events=which),
    st.builds(
        Malformed, every=every, count=count, symbols=symbols, events=which, mode=st.sampled_from(["extra", "instead"])
    ),
)
batches = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=6), max_size=12)


@given(st.lists(faults, max_size=5), batches)
def test_events_come_out_as_often_as_the_faults_say(
    chosen: list[EventFault], given_batches: list[list[tuple[int, bool]]]
) -> None:
    work = EventFaults(EXCHANGE)
    rules = [Rule(number, fault) for number, fault in enumerate(chosen, 1)]
    for rule in rules:
        work.add(rule)
    now_ms, number = NOW_MS, 0
    came: Counter[int] = Counter()
    went: list[Event] = []
    for batch in given_batches:
        now_ms += 10_000
        events = []
        for stream, closed in batch:
            number += 1
            came[number] = 1
            events.append(event(stream, number, closed, now_ms))
        out = work.pass_on(events, now_ms) if work.active else events
        assert all(one.sent_ms <= now_ms for one in out)
        went += out
    for rule in rules:
        work.remove(rule.id)
    went += work.pass_on([], now_ms + 90_000)
    assert work.next_due_ms() is None
    assert not work.active
    good = Counter(numbers([one for one in went if one.spoilt is None]))
    acted = Counter[str]()
    for rule in rules:
        instead = isinstance(rule.fault, Malformed) and rule.fault.mode == "instead"
        acted["instead" if instead else type(rule.fault).__name__] += rule.seen
    lost = acted["DropClosed"] + acted["instead"]
    assert set(good) <= set(came)
    assert good.total() == came.total() - lost + acted["Duplicate"]
    assert len([one for one in went if one.spoilt is not None]) == acted["Malformed"] + acted["instead"]
    for rule in rules:
        assert rule.fault.count is None or rule.seen <= rule.fault.count


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=20))
def test_events_that_no_fault_concerns_come_out_as_they_went_in(given_events: list[tuple[int, bool]]) -> None:
    work = EventFaults(EXCHANGE)
    work.add(Rule(1, Reorder(symbols=("ETHUSDT",), market="futures")))
    work.add(Rule(2, DropClosed(market="futures")))
    events = [event(stream, number, closed) for number, (stream, closed) in enumerate(given_events)]
    assert work.pass_on(events, NOW_MS) == events


def test_reordered_events_change_places_in_their_own_stream() -> None:
    work = EventFaults(EXCHANGE)
    work.add(Rule(1, Reorder()))
    events = [event(0, 1, False), event(1, 2, False), event(0, 3, True), event(0, 4, False), event(1, 5, False)]
    assert numbers(work.pass_on(events, NOW_MS)) == [3, 1, 5, 2]
    work.remove(1)
    assert work.next_due_ms() == 0, "what waits is due at once when the fault is lifted"
    assert numbers(work.pass_on([], NOW_MS)) == [4]


def test_a_late_event_says_when_it_is_sent_and_overtakes_nothing() -> None:
    work = EventFaults(EXCHANGE)
    work.add(Rule(1, LateClosed(delay_s=30)))
    assert numbers(work.pass_on([event(0, 1, True), event(0, 2, False)], NOW_MS)) == [2]
    assert work.next_due_ms() == NOW_MS + 30_000
    late = work.pass_on([event(0, 3, False, NOW_MS + 30_001)], NOW_MS + 30_001)
    assert numbers(late) == [1, 3]
    assert late[0].sent_ms == NOW_MS + 30_001


def test_each_stream_counts_for_itself_which_events_it_is_the_turn_of() -> None:
    work = EventFaults(EXCHANGE)
    work.add(Rule(1, DropClosed(every=2)))
    events = [event(stream, 10 * stream + turn, True) for turn in range(4) for stream in range(2)]
    assert numbers(work.pass_on(events, NOW_MS)) == [0, 10, 2, 12]


def test_silence_is_for_all_connections_or_for_those_that_were_there() -> None:
    work = EventFaults(EXCHANGE)
    present, everybody = Rule(1, Silent("present")), Rule(2, Silent(symbols=("ETHUSDT",)))
    work.silence(present, 5)
    bitcoin, ether = event(0, 1, True), event(2, 1, True)
    assert [work.silences(bitcoin, serial) for serial in (4, 5, 6)] == [True, False, False]
    work.silence(everybody, 7)
    assert [work.silences(ether, serial) for serial in (4, 5, 99)] == [True] * 3
    work.remove(1)
    assert not work.silences(bitcoin, 4)
    assert (present.seen, everybody.seen) == (2, 2)


def test_a_wrong_symbol_is_another_one_of_the_market_and_variants_come_in_turn() -> None:
    work = EventFaults(EXCHANGE)
    work.add(Rule(1, Malformed(mode="instead")))
    spoilt = [one.spoilt for one in work.pass_on([event(0, at, False) for at in range(18)], NOW_MS)]
    assert {one.symbol for one in spoilt if one is not None} == {"ETHUSDT", "BNBUSDT"}
    assert Counter(one.variant for one in spoilt if one is not None) == Counter(
        dict.fromkeys((one.variant for one in spoilt[:9] if one is not None), 2)
    )

"""EventLog: limits, order and repetitions; and a store that applies its batches equals the log."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from klinesync.core.events import EventBatch, NumberedEvent, SeriesEvent, market_scope, scopes_of
from klinesync.core.series_id import SeriesId
from klinesync.history.event_log import (
    CROWD_LEAST,
    CROWD_S,
    MAX_DETAIL_CHARS,
    MAX_EVENTS,
    MAX_EVENTS_A_SERIES,
    MAX_SCOPES,
    REPEAT_LOOK,
    REPEAT_WITHIN_MS,
    Crowd,
    EventLog,
)
from support.thorough import examples

A_SERIES, SCOPES, EVENTS = 4, 3, 8
scopes = st.sampled_from(["a", "b", "c", "d", "e"])
names = st.sampled_from(["stream.stale", "stream.live", "gap.declared"])
details = st.sampled_from(["", "one", "two"])


@dataclass
class StoreModel:
    """The content of a store that applies batches."""

    rows: dict[int, tuple[str, SeriesEvent]] = field(default_factory=dict)

    def apply(self, batch: EventBatch) -> None:
        if batch.clear:
            self.rows.clear()
        for change in batch.changes:
            for number, (scope, _) in list(self.rows.items()):
                if scope == change.scope and (number < change.first or number >= change.start):
                    del self.rows[number]
            for number, event in change.events:
                assert number not in self.rows, "a number is one event's"
                self.rows[number] = change.scope, event

    def restored(self) -> list[tuple[str, NumberedEvent]]:
        return [(scope, NumberedEvent(number, event)) for number, (scope, event) in sorted(self.rows.items())]


class LogAndStore(RuleBasedStateMachine):
    """Events come, the store takes batches or fails, the service is killed and starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.log = self.new_log()
        self.store = StoreModel()
        self.now_ms = 0

    def new_log(self) -> EventLog:
        return EventLog(a_series=A_SERIES, scopes=SCOPES, events=EVENTS)

    @rule(scope=scopes, name=names, detail=details, passed_ms=st.integers(-1000, 2 * REPEAT_WITHIN_MS))
    def note(self, scope: str, name: str, detail: str, passed_ms: int) -> None:
        self.now_ms += passed_ms
        before = self.log.events([scope])
        self.log.note(scope, name, detail, self.now_ms)
        after = self.log.events([scope])
        newest = after[-1]
        assert (newest.event, newest.detail, newest.at_ms) == (name, detail, self.now_ms)
        again = [one for one in before if (one.event, one.detail) == (name, detail)]
        again = [one for one in again if abs(self.now_ms - one.at_ms) <= REPEAT_WITHIN_MS]
        if newest.times > 1:
            assert again[-1] == SeriesEvent(name, detail, again[-1].at_ms, newest.since_ms, newest.times - 1)
            assert after[:-1] == [one for one in before if one is not again[-1]]
        else:
            assert not again
            assert after[:-1] == before[len(before) - len(after) + 1 :], "only the oldest is pushed out"

    @rule(most=st.integers(1, 10))
    def stored(self, most: int) -> None:
        batch = self.log.take(most)
        assert sum(len(change.events) for change in batch.changes) <= most
        self.store.apply(batch)

    @rule(most=st.integers(1, 10), then=st.lists(st.tuples(scopes, names, details), max_size=5), lands=st.booleans())
    def store_fails(self, most: int, then: list[tuple[str, str, str]], *, lands: bool) -> None:
        """A write that fails while more events arrive; it may have been committed nevertheless."""
        batch = self.log.take(most)
        for scope, name, detail in then:
            self.log.note(scope, name, detail, self.now_ms)
        if lands:
            self.store.apply(batch)
        self.log.put_back(batch)

    @rule()
    def store_cannot_be_read(self) -> None:
        self.log.restart()

    @rule()
    def killed(self) -> None:
        self.log = self.new_log()
        self.log.restore(self.store.restored())

    @rule()
    def stops_in_order(self) -> None:
        while batch := self.log.take(5):
            self.store.apply(batch)
        told = {scope: self.log.events([scope]) for scope in "abcde"}
        self.killed()
        assert {scope: self.log.events([scope]) for scope in "abcde"} == told
        assert not self.log.take(5), "nothing is written again"

    @invariant()
    def is_bounded(self) -> None:
        each = [self.log.events([scope]) for scope in "abcde"]
        assert all(len(events) <= A_SERIES for events in each)
        assert sum(bool(events) for events in each) <= SCOPES
        assert len(self.log) == sum(map(len, each)) <= EVENTS

    @invariant()
    def several_scopes_are_merged(self) -> None:
        merged = self.log.events(["a", "b", "c", "d", "e"])
        alone = [event for scope in "abcde" for event in self.log.events([scope])]
        assert len(merged) == min(A_SERIES, len(alone))
        for scope in "abcde":
            events = self.log.events([scope])
            shared = [event for event in merged if any(event is one for one in events)]
            assert shared == events[len(events) - len(shared) :], "its newest, in its order"


TestLogAndStore = LogAndStore.TestCase
TestLogAndStore.settings = settings(max_examples=examples(60), stateful_step_count=40)


@given(st.lists(st.tuples(scopes, st.integers(0, 10**6)), max_size=60), st.integers(1, 7))
def test_small_batches_bring_the_same_as_a_large_one(noted: list[tuple[str, int]], most: int) -> None:
    log, large, small = EventLog(), StoreModel(), StoreModel()
    for number, (scope, at_ms) in enumerate(noted):
        log.note(scope, "gap.declared", str(number), at_ms)
    batch = log.take(10**6)
    large.apply(batch)
    log.put_back(batch)
    while batch := log.take(most):
        small.apply(batch)
    assert small.rows == large.rows


def test_alternating_events_are_counted_and_evict_nothing() -> None:
    log = EventLog()
    log.note("a", "gap.declared", "three candles", 0)
    for turn in range(1000):
        log.note("a", "stream.stale", "nothing comes", turn * 1000)
        log.note("a", "stream.live", "", turn * 1000 + 500)
    counts = [(event.event, event.times, event.since_ms, event.at_ms) for event in log.events(["a"])]
    assert counts == [
        ("gap.declared", 1, 0, 0),
        ("stream.stale", 1000, 0, 999_000),
        ("stream.live", 1000, 500, 999_500),
    ]


def test_a_much_later_repetition_is_another_event() -> None:
    log = EventLog()
    for at_ms in (0, REPEAT_WITHIN_MS, 2 * REPEAT_WITHIN_MS + 1):
        log.note("a", "stream.stale", "", at_ms)
    assert [event.times for event in log.events(["a"])] == [2, 1]
    for number in range(REPEAT_LOOK):
        log.note("a", "gap.declared", str(number), 2 * REPEAT_WITHIN_MS + 1)
    log.note("a", "stream.stale", "", 2 * REPEAT_WITHIN_MS + 2)
    assert log.events(["a"])[-1].times == 1, "too much happened in between"


def test_the_log_keeps_its_limits() -> None:
    log = EventLog()
    for number in range(MAX_EVENTS_A_SERIES + 50):
        log.note("much", "gap.declared", str(number), number)
    assert [event.detail for event in log.events(["much"])] == [str(number) for number in range(50, 250)]
    for number in range(MAX_SCOPES + 50):
        log.note(str(number), "stream.stale", "x" * 1000, number)
    assert log.events(["much"]) == log.events(["0"]) == log.events(["49"]) == []
    assert [event.detail for event in log.events(["50"])] == ["x" * MAX_DETAIL_CHARS]
    assert len(log) == MAX_SCOPES
    for number in range(2 * MAX_EVENTS):
        log.note(str(number % (MAX_SCOPES // 2)), "gap.declared", str(number), number)
    assert len(log) == MAX_EVENTS


def test_foreign_text_cannot_forge_a_line() -> None:
    log = EventLog()
    log.note("a", "stream.delisted", "status\nok \x1b[31m", 0)
    assert log.events(["a"])[0].detail == "status\\nok \\x1b[31m"


def test_a_series_has_its_own_events_and_those_of_its_market() -> None:
    derived, base = SeriesId.parse("binance:spot:BTC/USDT:1h"), SeriesId.parse("binance:spot:BTC/USDT:1m")
    market = market_scope("binance", "spot")
    assert scopes_of(derived, base) == [str(derived), str(base), market]
    log = EventLog()
    log.note(market, "exchange.unreachable", "", 5)
    log.note(str(base), "gap.declared", "", 3)
    log.note("binance:spot:ETH/USDT:1m", "gap.declared", "", 4)
    log.note(market_scope("binance", "futures"), "exchange.unreachable", "", 4)
    assert [event.event for event in log.events(scopes_of(derived, base))] == ["exchange.unreachable", "gap.declared"]


def test_events_of_a_thousand_series_at_once_are_an_event_of_their_market() -> None:
    crowd = Crowd()
    said = [crowd.sentence("binance:spot", "stream.stale", f"of {number}", number / 100) for number in range(1000)]
    assert said[:CROWD_LEAST] == [None] * CROWD_LEAST
    [sentence] = set(said[CROWD_LEAST:])
    assert sentence is not None
    assert sentence.endswith(f"of {CROWD_LEAST}")
    assert crowd.sentence("binance:spot", "stream.live", "", 10.0) is None, "another event"
    assert crowd.sentence("binance:futures", "stream.stale", "", 10.0) is None, "another market"
    assert crowd.sentence("binance:spot", "stream.stale", "", CROWD_S) is None, "later"

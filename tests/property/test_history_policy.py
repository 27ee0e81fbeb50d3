"""HistoryQueue against a model: needs of every reason, sources that answer, fail or do not answer, and a clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Urgency
from klinesync.history.limits import HistoryLimits
from klinesync.history.memory import SourceMemory
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import USUAL_RETRIES, Pending
from klinesync.history.pieces import Fetch
from klinesync.history.queue import MAX_AT_ONCE, MAX_URGENT_AT_ONCE, HistoryQueue, Look

SERIES = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(12)]
LENGTH = 40
REASONS = st.sampled_from(list(Reason))
URGENCIES = st.sampled_from([Urgency.READ, Urgency.DEEP])
EARLIEST = 1.0 - USUAL_RETRIES.backoff.jitter


def minutes(span: Span) -> set[int]:
    return set(range(span.start // 60, span.end // 60))


def kind(reason: Reason) -> Reason:
    """Needs of one kind share their readings."""
    return reason if reason in (Reason.TAIL, Reason.NATIVE) else Reason.GAP


@dataclass
class Wanted:
    """The model of the needs of a series and a kind: the needed minutes, each with the earliest time of its next
    request."""

    not_before_s: dict[int, float] = field(default_factory=dict)
    asked_s: float = 0.0


class Policy(RuleBasedStateMachine):
    """Callers that need candles, workers that read them, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = HistoryQueue()
        self.rng = random.Random(1)
        self.now_s = 1000.0
        self.out: list[Look | Fetch] = []
        self.no_look_before_s: dict[SeriesId, float] = {}
        self.wanted: dict[tuple[SeriesId, Reason], Wanted] = {}

    # Requests.

    @rule(
        series=st.sampled_from(SERIES),
        first=st.integers(0, LENGTH),
        count=st.integers(1, 20),
        reason=REASONS,
        urgency=URGENCIES,
    )
    def submit(self, series: SeriesId, first: int, count: int, reason: Reason, urgency: Urgency) -> None:
        need = Need(series, Span(60 * first, 60 * (first + count)), reason, "a test", urgency)
        assert self.queue.submit(need, self.now_s)
        self.wanted.setdefault((series, kind(reason)), Wanted()).asked_s = self.now_s
        waits = {minute for status in self._needs(series, reason) for minute in minutes(status.span)}
        answered = self.queue.memory.was_answered(series, reason, need.span, self.now_s)
        tail = reason is Reason.TAIL  # the newest need of a tail determines its span
        assert minutes(need.span) <= waits or answered or (tail and bool(self._needs(series, reason)))

    @rule(series=st.sampled_from(SERIES), urgency=URGENCIES)
    def look(self, series: SeriesId, urgency: Urgency) -> None:
        assert self.queue.look(Look(series, urgency))

    @rule(series=st.sampled_from(SERIES))
    def listed_again(self, series: SeriesId) -> None:
        self.queue.retry_now(series)
        for (one, _), wanted in self.wanted.items():
            if one == series:
                wanted.not_before_s.clear()

    # Workers.

    @rule()
    def take(self) -> None:
        due_s = self.queue.next_due_s()
        looks = any(self.queue.is_looking(series) for series in SERIES)
        work = self.queue.take(self.now_s)
        if work is None:
            assert due_s is None or due_s > self.now_s
            return
        assert isinstance(work, Look) or (due_s is not None and due_s <= self.now_s) or looks
        assert all(other.series != work.series for other in self.out), "one piece of work of a series at a time"
        self.out.append(work)
        if isinstance(work, Look):
            assert self.no_look_before_s.get(work.series, 0.0) <= self.now_s, "a read ends no backoff"
        if isinstance(work, Fetch):
            reasons = {kind(pending.reason) for pending in work.needs}
            assert len(reasons) == 1, "what is read together is of one kind"
            model = self.wanted[work.series, reasons.pop()]
            for pending in work.needs:
                for minute in minutes(pending.span):
                    assert model.not_before_s.get(minute, 0.0) <= self.now_s, (
                        "asked for more often than the policy has it"
                    )

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["candles", "nothing", "failure", "retry after", "a part"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        work = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if isinstance(work, Look):
            self.queue.settle(work, [], self.now_s)
            if how == "failure":
                self.queue.look_again(work, self.now_s + 60.0)
                assert self.queue.is_looking(work.series) or work.failures + 1 >= USUAL_RETRIES.stalled_after
                self.no_look_before_s[work.series] = self.now_s + 60.0
            return
        remaining: list[Pending] = []
        for pending in work.needs:
            match how:
                case "candles":
                    again = None
                case "nothing":
                    again = USUAL_RETRIES.after_fruitless(pending, self.now_s, self.rng)
                case "failure":
                    again = USUAL_RETRIES.after_no_answer(pending, self.now_s, self.rng, 0.0)
                case "retry after":
                    again = USUAL_RETRIES.after_no_answer(pending, self.now_s, self.rng, 500.0)
                case _:  # a part arrived; the rest is due at once
                    rest = Span(pending.span.start, pending.span.end - 60)
                    again = pending.due_now(rest, self.now_s) if rest.start < rest.end else None
            model = self.wanted[work.series, kind(pending.reason)]
            for minute in minutes(pending.span):
                model.not_before_s.pop(minute, None)
            if again is None or how == "a part":
                remaining += [] if again is None else [again]
                continue
            least_s = (
                500.0
                if how == "retry after"
                else EARLIEST
                * USUAL_RETRIES.backoff.delay_s(min(pending.fruitless_attempts, USUAL_RETRIES.stalled_after))
            )
            assert again.due_s >= self.now_s + least_s
            model.not_before_s |= dict.fromkeys(minutes(pending.span), self.now_s + least_s)
            remaining.append(again)
        self.queue.settle(work, remaining, self.now_s, how)
        for pending in remaining:
            if pending.due_s > pending.wanted_until_s:
                assert self.queue.memory.was_answered(work.series, pending.reason, pending.span, pending.due_s - 0.1)
                continue
            (status,) = [
                one
                for one in self.queue.needs_of(work.series)
                if one.need.span == pending.span and one.need.reason is pending.reason and one.last_answer == how
            ][:1]
            assert not status.in_flight
            assert status.attempts == pending.attempts >= 1
            assert status.need.urgency is Urgency.DEEP, "urgent until it was asked for once"

    @rule(passes_s=st.sampled_from([0.5, 10.0, 60.0, 500.0, 2000.0, 30_000.0]))
    def wait(self, passes_s: float) -> None:
        self.now_s += passes_s

    # Invariants.

    @invariant()
    def the_limits_hold(self) -> None:
        assert len(self.out) <= MAX_AT_ONCE + MAX_URGENT_AT_ONCE
        assert sum(work.urgency is Urgency.DEEP for work in self.out) <= MAX_AT_ONCE

    @invariant()
    def every_need_is_read_or_has_its_next_try(self) -> None:
        for series in SERIES:
            flying = {pending.need for work in self.out if isinstance(work, Fetch) for pending in work.needs}
            for status in self.queue.needs_of(series):
                assert (status.next_try_s is None) is status.in_flight
                assert not status.in_flight or status.need in flying

    @invariant()
    def no_minute_of_one_kind_waits_twice(self) -> None:
        for series in SERIES:
            for reason in (Reason.TAIL, Reason.NATIVE):
                spans = [need.span for need in self._needs(series, reason)]
                assert sum(len(minutes(span)) for span in spans) == len(set().union(*map(minutes, spans)))

    def teardown(self) -> None:
        """All needs are answered, and none remains."""
        for work in self.out:
            self.queue.settle(work, [], self.now_s)
        self.now_s += USUAL_RETRIES.backoff.most_s
        while (last := self.queue.take(self.now_s)) is not None:
            self.queue.settle(last, [], self.now_s)
        assert not self.queue._lines
        assert not self.queue._urgent
        assert (self.queue._size, self.queue._looks, self.queue._in_flight, self.queue._deep_in_flight) == (0, 0, 0, 0)

    def _needs(self, series: SeriesId, reason: Reason) -> list[Need]:
        found = [status.need for status in self.queue.needs_of(series)]
        return [need for need in found if kind(need.reason) is kind(reason)]


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_a_tail_is_dropped_only_when_its_series_is_not_read_any_more() -> None:
    queue, rng, now_s = HistoryQueue(), random.Random(1), 1000.0
    tail = Need(SERIES[0], Span(0, 60), Reason.TAIL, "read", Urgency.READ)
    assert queue.submit(tail, now_s)
    tries: list[float] = []
    while (work := queue.take(now_s)) is not None:
        assert isinstance(work, Fetch)
        tries.append(now_s)
        left = [USUAL_RETRIES.after_no_answer(pending, now_s, rng, 0.0) for pending in work.needs]
        queue.settle(work, left, now_s, "no answer")
        if (statuses := queue.needs_of(SERIES[0])) == ():
            break
        assert statuses[0].next_try_s == left[0].due_s
        now_s = left[0].due_s
    assert tries[-1] <= 1000.0 + USUAL_RETRIES.wanted_s < left[0].due_s
    assert queue.submit(tail, left[0].due_s - 0.1)
    assert queue.take(left[0].due_s - 0.1) is None, "the policy holds for a new reader too"
    assert queue.submit(tail, left[0].due_s)
    assert queue.take(left[0].due_s) is not None
    waits = [after - before for before, after in pairwise(tries)]
    assert max(waits) <= USUAL_RETRIES.backoff.delay_s(USUAL_RETRIES.stalled_after), (
        "it is asked for soon after the exchange's return"
    )


def test_a_read_right_after_an_answer_requests_nothing_unless_it_scrolls_back() -> None:
    queue, now_s = HistoryQueue(), 1000.0
    for reason in (Reason.TAIL, Reason.NATIVE, Reason.OLDER):
        need = Need(SERIES[0], Span(6000, 12_000), reason, "read", Urgency.READ)
        assert queue.submit(need, now_s)
        work = queue.take(now_s)
        assert isinstance(work, Fetch)
        queue.settle(work, [], now_s, "10 candles came")
        assert queue.submit(need, now_s + USUAL_RETRIES.backoff.initial_s - 0.1)
        assert queue.take(now_s + USUAL_RETRIES.backoff.initial_s - 0.1) is None
        earlier = Need(SERIES[0], Span(5940, 12_000), reason, "read", Urgency.READ)
        assert queue.submit(earlier, now_s)
        work = queue.take(now_s)
        assert isinstance(work, Fetch)
        queue.settle(work, [], now_s, "1 candle came")
        now_s += USUAL_RETRIES.backoff.initial_s
        assert queue.submit(need, now_s)
        work = queue.take(now_s)
        assert isinstance(work, Fetch)
        queue.settle(work, [], now_s)
        now_s += USUAL_RETRIES.backoff.initial_s


def test_a_gap_is_requested_as_soon_as_it_is_declared_again() -> None:
    queue = HistoryQueue()
    for _ in range(2):
        assert queue.submit(Need(SERIES[0], Span(0, 60), Reason.GAP, "gap"), 0.0)
        work = queue.take(0.0)
        assert isinstance(work, Fetch)
        queue.settle(work, [], 0.0)


def test_a_waiting_tail_grows_with_each_read_and_is_requested_once() -> None:
    queue = HistoryQueue()
    for minute in range(1, 4):
        assert queue.submit(Need(SERIES[0], Span(0, 60 * minute), Reason.TAIL, "read", Urgency.READ), 0.0)
    work = queue.take(0.0)
    assert isinstance(work, Fetch)
    assert [pending.span for pending in work.needs] == [Span(0, 180)]
    assert queue.submit(Need(SERIES[0], Span(0, 240), Reason.TAIL, "read", Urgency.READ), 0.0)
    queue.settle(work, [], 0.0)
    assert queue.take(0.0) is None


def test_deep_readings_leave_room_for_urgent_ones() -> None:
    queue = HistoryQueue()
    for series in SERIES[: MAX_AT_ONCE + 1]:
        queue.submit(Need(series, Span(0, 60), Reason.GAP, "gap"), 0.0)
    deep = [queue.take(0.0) for _ in range(MAX_AT_ONCE + 1)]
    assert deep.count(None) == 1
    assert queue.next_due_s() is None
    last = SERIES[-1]
    queue.submit(Need(last, Span(0, 60), Reason.TAIL, "read", Urgency.READ), 0.0)
    assert queue.next_due_s() is not None
    work = queue.take(0.0)
    assert work is not None
    assert work.series == last


def test_memory_keeps_the_later_expiry() -> None:
    memory = SourceMemory()
    memory.remember_answer(SERIES[0], Reason.NATIVE, Span(0, 600), 100.0, 0.0)
    memory.remember_answer(SERIES[0], Reason.NATIVE, Span(60, 600), 50.0, 1.0)
    assert memory.was_answered(SERIES[0], Reason.NATIVE, Span(60, 300), 99.0)
    assert not memory.was_answered(SERIES[0], Reason.NATIVE, Span(60, 660), 99.0)
    assert not memory.was_answered(SERIES[0], Reason.OLDER, Span(60, 300), 99.0)
    assert not memory.was_answered(SERIES[0], Reason.NATIVE, Span(60, 300), 100.0)
    memory.remember_answer(SERIES[0], Reason.NATIVE, Span(60, 600), 150.0, 101.0)
    assert memory.was_answered(SERIES[0], Reason.NATIVE, Span(60, 300), 149.0)


def test_memory_keeps_the_longer_span_without_candles_until_it_expires_or_older_candles_come() -> None:
    """A read from before a write had the newer part requested again, and the next read requested the older part."""
    series, memory, ttl_s = SERIES[0], SourceMemory(), HistoryLimits().nothing_before_ttl_s
    memory.remember_nothing(series, Span(0, 6000), 10.0)
    memory.remember_nothing(series, Span(3000, 6000), 20.0)
    assert memory.nothing_before(series, 20.0) == Span(0, 6000)
    memory.remember_nothing(series, Span(3000, 6000), 10.0 + ttl_s)
    assert memory.nothing_before(series, 10.0 + ttl_s) == Span(3000, 6000), "the older part was shown too long ago"
    memory.remember_nothing(series, Span(2400, 3000), 20.0 + ttl_s)
    assert memory.nothing_before(series, 20.0 + ttl_s) == Span(2400, 3000), "there are older candles after all"


def test_waiting_lookups_and_memory_are_limited() -> None:
    limits = HistoryLimits(looks=2, remembered=2)
    queue = HistoryQueue(limits=limits)
    assert [queue.look(Look(series, Urgency.READ)) for series in SERIES[:3]] == [True, True, False]
    assert queue.look(Look(SERIES[0], Urgency.READ)), "it waits already"
    assert [queue.is_looking(series) for series in SERIES[:3]] == [True, True, False]
    memory = SourceMemory(limits)
    for series in SERIES[:3]:
        memory.remember_answer(series, Reason.TAIL, Span(0, 60), 100.0, 0.0)
        memory.remember_nothing(series, Span(0, 60), 0.0)
    assert [memory.was_answered(series, Reason.TAIL, Span(0, 60), 1.0) for series in SERIES[:3]] == [False, True, True]
    assert [memory.nothing_before(series, 1.0) is None for series in SERIES[:3]] == [True, False, False]

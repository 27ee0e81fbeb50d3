"""The weight budget: which request is sent when, and how much weight may be used."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.exchanges.binance import weight
from klinesync.exchanges.binance.weight import MAX_IN_FLIGHT, PART, RESERVED, WEIGHTS, Now, Turn, WeightBudget
from klinesync.exchanges.exchange import Errand, Urgency

MINUTE_MS = 60_000
T0_MS = 1_700_000_040_000 // MINUTE_MS * MINUTE_MS


def at(second: float, since_s: float = 0.0) -> Now:
    """That many seconds after the start of an exchange minute, at which our clock started as well."""
    return Now(T0_MS + int(second * 1000), since_s + second)


def go(budget: WeightBudget, urgency: Urgency, heavy: int, now: Now, used: int | None = None) -> Turn | None:
    """Request one turn; when it is granted, the request is sent and answered."""
    turn = budget.join(Errand(urgency), heavy, now)
    assert turn is not None
    if budget.next(now) is not turn:
        budget.over(turn, now)
        return None
    budget.sent(turn)
    budget.answered(turn, used, now)
    budget.over(turn, now)
    return turn


@pytest.mark.parametrize("urgency", list(Urgency))
def test_requests_of_an_urgency_use_no_more_than_its_part_of_our_share(urgency: Urgency) -> None:
    budget = WeightBudget(1000, share=0.8)
    count = 0
    while go(budget, urgency, 10, at(1)):
        count += 1
    assert count == int(800 * PART[urgency]) // 10
    assert budget.used(at(1)) == count * 10
    assert go(budget, urgency, 10, at(60)), "a new minute"


def test_more_urgent_requests_may_use_more_of_the_budget() -> None:
    assert list(PART) == sorted(PART) == list(Urgency)
    assert sorted(PART.values(), reverse=True) == list(PART.values())
    budget = WeightBudget(1000)
    while go(budget, Urgency.DEEP, 10, at(1)):
        pass
    assert go(budget, Urgency.REPAIR, 10, at(1)), "a live repair finds room at once"


def test_weight_used_by_other_processes_at_the_address_counts() -> None:
    budget = WeightBudget(1000)
    assert go(budget, Urgency.REPAIR, 2, at(1), used=799)
    assert go(budget, Urgency.REPAIR, 2, at(1)) is None
    assert go(budget, Urgency.REPAIR, 1, at(1))


def test_an_unused_minute_has_room_for_any_request() -> None:
    budget = WeightBudget(100, share=0.1)
    assert go(budget, Urgency.DEEP, 80, at(1))
    assert go(budget, Urgency.REPAIR, 1, at(1)) is None


def test_queued_requests_are_granted_by_urgency_then_in_order_of_arrival_and_urgency_may_be_raised() -> None:
    budget = WeightBudget(1000)
    errands = [Errand(urgency) for urgency in (Urgency.DEEP, Urgency.SWEEP, Urgency.FILL, Urgency.SWEEP, Urgency.DEEP)]
    turns = [budget.join(errand, 1, at(0)) for errand in errands]
    errands[4].urgency = Urgency.READ
    served = []
    while (turn := budget.next(at(1))) is not None:
        served.append(turns.index(turn))
        budget.over(turn, at(1))
    assert served == [4, 1, 3, 2, 0]


def test_a_starved_request_is_sent_before_newer_ones_of_higher_urgency() -> None:
    budget = WeightBudget(1000)
    deep = budget.join(Errand(Urgency.DEEP), 10, at(0))
    for minute in range(int(weight.STARVED_S) // 60):
        now = at(60 * minute + 1)
        assert go(budget, Urgency.REPAIR, 400, now)
        assert budget.next(now) is None, "more urgent requests go first until it is starved"
    now = at(60 * (minute + 1) + 1)
    assert go(budget, Urgency.REPAIR, 400, now)
    for _ in range(MAX_IN_FLIGHT):
        assert budget.join(Errand(Urgency.FILL), 10, now)
    assert budget.join(Errand(Urgency.READ), 10, now)
    assert (read := budget.next(now)) is not None
    assert read.errand.urgency is Urgency.READ
    assert budget.next(now) is deep


def test_requests_in_flight_are_bounded_and_a_place_is_reserved_for_repairs_and_reads() -> None:
    budget = WeightBudget(1000)
    for urgency in [*[Urgency.DEEP] * MAX_IN_FLIGHT, *[Urgency.REPAIR] * MAX_IN_FLIGHT]:
        budget.join(Errand(urgency), 1, at(0))
    deep = WeightBudget(1000)
    for _ in range(MAX_IN_FLIGHT):
        deep.join(Errand(Urgency.DEEP), 1, at(0))
    assert sum(budget.next(at(1)) is not None for _ in range(9)) == MAX_IN_FLIGHT
    assert sum(deep.next(at(1)) is not None for _ in range(9)) == MAX_IN_FLIGHT - RESERVED
    deep.join(Errand(Urgency.READ), 1, at(0))
    first = deep.next(at(1))
    assert first is not None
    assert first.errand.urgency is Urgency.READ


def test_the_queue_is_not_searched_while_no_place_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request that joins asks for the next one: a search of all would make a thousand repairs quadratic."""
    budget = WeightBudget(1000)
    for _ in range(MAX_IN_FLIGHT + 10):
        budget.join(Errand(Urgency.REPAIR), 1, at(0))
    for _ in range(MAX_IN_FLIGHT):
        assert budget.next(at(1)) is not None
    monkeypatch.setattr(Turn, "urgency", lambda *_: pytest.fail("the queue is searched"))
    assert budget.next(at(1)) is None


def test_a_nested_request_uses_weight_but_no_place() -> None:
    budget = WeightBudget(1000)
    for _ in range(MAX_IN_FLIGHT):
        budget.join(Errand(Urgency.REPAIR), 2, at(0))
    turn = budget.next(at(1))
    assert turn is not None
    for _ in range(MAX_IN_FLIGHT):
        budget.admit_nested(turn.errand, 1, at(1))
    assert budget.next(at(1)) is not None
    assert budget.used(at(1)) == 2 + MAX_IN_FLIGHT + 2


def test_a_request_cancelled_before_it_was_sent_frees_its_weight_and_a_sent_one_counts_until_it_is_reported() -> None:
    budget = WeightBudget(1000)
    budget.join(Errand(Urgency.READ), 20, at(0))
    turn = budget.next(at(1))
    assert turn is not None
    assert budget.used(at(1)) == 20
    budget.over(turn, at(1))
    assert budget.used(at(1)) == 0
    budget.join(Errand(Urgency.READ), 20, at(0))
    turn = budget.next(at(1))
    assert turn is not None
    budget.sent(turn)
    budget.over(turn, at(1))
    assert budget.used(at(1)) == 20, "the exchange may have counted it"
    go(budget, Urgency.READ, 2, at(2), used=22)
    assert budget.used(at(2)) == 22, "the reported weight includes it"


def test_the_minute_ends_when_the_exchange_resets_its_count_whatever_our_estimate_of_its_clock() -> None:
    budget = WeightBudget(1000)
    assert go(budget, Urgency.REPAIR, 2, at(58), used=790)
    assert go(budget, Urgency.REPAIR, 2, at(59), used=2)
    assert budget.used(at(59)) == 2
    assert go(budget, Urgency.REPAIR, 2, at(59.5), used=300)
    assert budget.used(at(60)) == 300, "our clock reaches that minute later: the count stays"
    assert budget.used(at(120)) == 0


def test_a_late_answer_of_the_previous_minute_does_not_count_in_the_new_one() -> None:
    budget = WeightBudget(1000)
    assert go(budget, Urgency.REPAIR, 2, at(58), used=790)
    budget.join(Errand(Urgency.REPAIR), 2, at(0))
    turn = budget.next(at(59.9))
    assert turn is not None
    budget.sent(turn)
    budget.answered(turn, 792, at(60.1))
    assert budget.used(at(60.1)) == 0
    assert go(budget, Urgency.REPAIR, 2, at(60.2), used=4)
    assert budget.used(at(60.2)) == 4


def test_minutes_are_those_of_our_clock_while_the_exchanges_time_is_unknown() -> None:
    budget = WeightBudget(1000)
    while go(budget, Urgency.REPAIR, 100, Now(None, 30.0)):
        pass
    assert budget.used(Now(None, 59.0)) == 800
    assert budget.used(Now(None, 60.0)) == 0
    assert budget.used(at(1, since_s=60.0)) == 0


@pytest.mark.parametrize(
    ("exchange_s", "our_s", "free"), [(29.0, 29.0, False), (30.0, 1.0, True), (1.0, 30.0, True), (None, 30.0, True)]
)
def test_a_cooldown_ends_by_either_clock(exchange_s: float | None, our_s: float, free: bool) -> None:
    budget = WeightBudget(1000)
    budget.block(30.0, Now(T0_MS, 1000.0))
    budget.join(Errand(Urgency.REPAIR), 1, at(0))
    exchange_ms = None if exchange_s is None else T0_MS + int(exchange_s * 1000)
    now = Now(exchange_ms, 1000.0 + our_s)
    assert (budget.blocked_s(now) == 0.0) is free
    assert (budget.next(now) is not None) is free


def test_a_shorter_cooldown_does_not_replace_a_longer_one_and_none_is_longer_than_the_longest_ban() -> None:
    budget = WeightBudget(1000)
    budget.block(120.0, at(0))
    budget.block(5.0, at(1))
    assert budget.blocked_s(at(1)) == 119.0
    budget.block(1e12, at(1))
    assert budget.blocked_s(at(1)) == weight.LONGEST_RETRY_AFTER_S


def test_requests_that_do_not_wait_for_the_end_of_a_cooldown_are_dropped() -> None:
    budget = WeightBudget(1000)
    read, deep = budget.join(Errand(Urgency.READ), 1, at(0)), budget.join(Errand(Urgency.DEEP), 1, at(0))
    budget.block(60.0, at(0))
    longest = dict.fromkeys(Urgency, 120.0) | {Urgency.READ: 10.0}
    assert budget.drop_blocked(longest, at(0)) == [read]
    assert budget.drop_blocked(longest, at(0)) == []
    assert budget.next(at(60)) is deep


def test_a_full_queue_drops_the_newest_of_its_least_urgent_requests() -> None:
    budget = WeightBudget(1000, max_waiting=3)
    turns = [budget.join(Errand(urgency), 1, at(0)) for urgency in (Urgency.DEEP, Urgency.DEEP, Urgency.READ)]
    assert budget.join(Errand(Urgency.DEEP), 1, at(0)) is None
    assert budget.evict() is None
    assert budget.join(Errand(Urgency.REPAIR), 1, at(0)) is not None
    assert budget.evict() is turns[1]
    assert budget.evict() is None
    assert sum(budget.status(at(1)).waiting.values()) == 3


def test_the_status_shows_used_weight_queue_and_cooldown() -> None:
    budget = WeightBudget(2400, share=0.5)
    assert go(budget, Urgency.READ, 5, at(1), used=70)
    budget.join(Errand(Urgency.DEEP), 1, at(0))
    budget.block(30.0, at(1))
    status = budget.status(at(11))
    assert (status.used, status.limit, status.share, status.under_way, status.requests) == (70, 2400, 0.5, 0, 1)
    assert status.waiting == dict.fromkeys(Urgency, 0) | {Urgency.DEEP: 1}
    assert (status.blocked_s, status.blocked_until_ms) == (20.0, T0_MS + 31_000)
    assert budget.status(at(31)).blocked_until_ms is None


@pytest.mark.parametrize(
    ("market", "limit", "heavy"),
    [
        ("spot", 1, 2),
        ("spot", 1000, 2),
        ("futures", 100, 1),
        ("futures", 101, 2),
        ("futures", 500, 2),
        ("futures", 1000, 5),
        ("futures", 1500, 10),
    ],
)
def test_pages_have_the_weights_that_the_exchange_documents(market: str, limit: int, heavy: int) -> None:
    assert WEIGHTS[market].page(limit) == heavy


@pytest.mark.parametrize(
    ("market", "expected", "best", "size"),
    [
        ("spot", 5, 1000, 1000),
        ("futures", None, 499, 499),
        ("futures", 5000, 499, 499),
        ("futures", 100, 499, 499),
        ("futures", 99, 499, 99),
        ("futures", 1, 499, 99),
        ("futures", 1, 7, 7),
    ],
)
def test_a_short_span_is_requested_in_a_light_page(market: str, expected: int | None, best: int, size: int) -> None:
    assert WEIGHTS[market].page_size(expected, best) == size


@dataclass
class CountingExchange:
    """Counts weight by its own minute."""

    minute: int = 0
    used: int = 0

    def charge(self, heavy: int, now_ms: int) -> int:
        if now_ms // MINUTE_MS != self.minute:
            self.minute, self.used = now_ms // MINUTE_MS, 0
        self.used += heavy
        return self.used


@given(
    seed=st.integers(0, 10**6),
    behind_ms=st.integers(0, 3000),
    speed=st.sampled_from([1.0, 1.0, 60.0]),
    others=st.integers(0, 30),
    losses=st.sampled_from([0.0, 0.2]),
)
def test_the_exchanges_count_stays_below_our_share_though_answers_come_late_or_never(
    seed: int, behind_ms: int, speed: float, others: int, losses: float
) -> None:
    """Requests of several weights at any pace, answers late, out of order or lost, other processes at the same address,
    and a lagging estimate of the exchange's clock: the count exceeds our share at most by the weight in flight."""
    rng = Random(seed)
    exchange, budget = CountingExchange(), WeightBudget(1000)
    true_ms, ours_s = T0_MS + rng.randrange(MINUTE_MS), 5000.0
    under_way: list[tuple[Turn, int | None]] = []
    heaviest = 20
    for _ in range(400):
        step_s = rng.choice((0.0, 0.01, 0.2, 3.0))
        true_ms += int(step_s * 1000 * speed)
        ours_s += step_s
        now = Now(true_ms - behind_ms, ours_s)
        if rng.random() < 0.3:
            exchange.charge(rng.randint(0, others), true_ms)
        budget.join(Errand(rng.choice(list(Urgency))), rng.choice((1, 2, heaviest)), now)
        turn = budget.next(now)
        if turn is not None:
            budget.sent(turn)
            lost = rng.random() < losses
            used = exchange.charge(turn.weight, true_ms) if not lost or rng.random() < 0.5 else None
            # Other processes may exceed our share; we add only weight that we could not know of.
            assert exchange.used <= 800 + MAX_IN_FLIGHT * (heaviest + others)
            under_way.append((turn, None if lost else used))
        if under_way and (rng.random() < 0.6 or len(under_way) == MAX_IN_FLIGHT):
            turn, used = under_way.pop(rng.randrange(len(under_way)))
            if used is not None:
                budget.answered(turn, used, now)
            budget.over(turn, now)
        assert len(under_way) <= MAX_IN_FLIGHT
    for turn, _ in under_way:
        budget.over(turn, now)
    later = Now(true_ms + 2 * MINUTE_MS, ours_s + 120)
    assert budget.used(later) == 0, "unanswered weight is dropped after its minute"

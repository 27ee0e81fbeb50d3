"""The turns of a venue: `TurnQueue` against invariants that hold after every step, and `Turns` under random cancels."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import TROUBLE, USUAL_TURNS, TurnTimings
from klinesync.exchanges.ccxt.turn_queue import (
    RETRY_AFTER_MOST_S,
    Kind,
    Outcome,
    Turn,
    TurnQueue,
)
from klinesync.exchanges.ccxt.turns import Turns
from klinesync.exchanges.exchange import Errand, Urgency
from support.thorough import examples

PLACES = 3
# Of sums and differences of seconds.
ROUNDING_S = 1e-6


class QueueMachine(RuleBasedStateMachine):
    """A queue beside a model that knows the waiting requests and those in flight."""

    turns: Bundle[Turn] = Bundle("turns")

    def __init__(self) -> None:
        super().__init__()
        self.queue = TurnQueue(PLACES)
        self.now_s = 100.0
        self.waiting: set[Turn] = set()
        self.under_way: set[Turn] = set()
        self.cooldown_until_s = 0.0

    @rule(target=turns, urgency=st.sampled_from(list(Urgency)), kind=st.sampled_from(list(Kind)))
    def join(self, urgency: Urgency, kind: Kind) -> Turn:
        turn = self.queue.join(Errand(urgency), kind)
        self.waiting.add(turn)
        return turn

    @rule(turn=turns, urgency=st.sampled_from(list(Urgency)))
    def become_more_urgent(self, turn: Turn, urgency: Urgency) -> None:
        turn.errand.urgency = min(turn.errand.urgency, urgency)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0, 31.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def grant(self) -> None:
        turn = self.queue.next(self.now_s)
        free = {one for one in self.waiting if self.queue.held_s(one.kind, self.now_s) == 0.0}
        if turn is None:
            assert not free or self.under_way, "an idle venue that may be asked is asked"
            return
        assert self.now_s >= self.cooldown_until_s, "no request is sent in a cooldown"
        assert turn in self.waiting
        assert not any(
            (one.errand.urgency, one.number) < (turn.errand.urgency, turn.number)
            for one in free
            if one.kind is turn.kind
        ), "the most urgent of its kind goes first, of those the one that came first"
        self.waiting.remove(turn)
        self.under_way.add(turn)

    @rule(outcome=st.sampled_from(list(Outcome)), pause=st.sampled_from([None, 0.0, 20.0, 86_400.0, float("inf")]))
    def answer(self, outcome: Outcome, pause: float | None) -> None:
        if not self.under_way:
            return
        turn = min(self.under_way, key=lambda one: one.number)
        refused_before = self.queue.refused_s(self.now_s)
        self.queue.ended(turn, outcome, self.now_s, pause)
        self.queue.over(turn)
        self.under_way.remove(turn)
        if outcome is Outcome.REFUSED:
            self.cooldown_until_s = self.now_s + self.queue.refused_s(self.now_s)
        elif self.queue.refused_s(self.now_s) < refused_before:
            self.cooldown_until_s = self.now_s  # a probe that was sent after the refusal was served

    @rule(turn=consumes(turns))
    def leave(self, turn: Turn) -> None:
        self.queue.over(turn)
        self.waiting.discard(turn)
        self.under_way.discard(turn)

    @rule()
    def refuse_the_impatient(self) -> None:
        refused = self.queue.drop_held(self.now_s)
        self.waiting -= set(refused)
        for one in refused:
            held_s = self.queue.held_s(one.kind, self.now_s)
            assert held_s > (0.0 if one.errand.urgency is Urgency.READ else USUAL_TURNS.held_most_s)

    @invariant()
    def counts_and_limits_hold(self) -> None:
        assert self.queue.waiting == len(self.waiting)
        assert self.queue.under_way == len(self.under_way) <= PLACES
        most_s = RETRY_AFTER_MOST_S + ROUNDING_S
        assert self.queue.refused_s(self.now_s) <= most_s
        for kind in Kind:
            assert self.queue.held_s(kind, self.now_s) <= most_s
        wakes_s = self.queue.wakes_s(self.now_s)
        assert wakes_s is None or 0.0 < wakes_s <= most_s


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=examples(30), stateful_step_count=40, deadline=None)


@given(kinds=st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=4, unique=True))
@settings(deadline=None)
def test_a_venue_that_fails_everything_is_asked_once_in_thirty_seconds_in_the_end(kinds: list[Kind]) -> None:
    queue, now_s, sent = TurnQueue(8), 0.0, list[float]()
    while now_s < 600.0:
        if queue.waiting < 4:
            for kind in kinds:
                queue.join(Errand(Urgency.REPAIR), kind)
        while (turn := queue.next(now_s)) is not None:
            sent.append(now_s)
            queue.ended(turn, Outcome.FAILED, now_s)
            queue.over(turn)
        now_s += 0.25
    assert sum(at < 60.0 for at in sent) <= 8
    late = [at for at in sent if at > 120.0]
    assert all(after - before >= TROUBLE.most_s for before, after in pairwise(late))
    assert len(late) >= 10, "the venue is asked all the same"


def test_a_kind_that_fails_is_slowed_down_while_the_other_kinds_go_on() -> None:
    queue, now_s, sent = TurnQueue(8), 0.0, dict.fromkeys(Kind, 0)
    while now_s < 120.0:
        for kind in (Kind.TIME, Kind.ROWS):
            queue.join(Errand(Urgency.REPAIR), kind)
        while (turn := queue.next(now_s)) is not None:
            sent[turn.kind] += 1
            queue.ended(turn, Outcome.FAILED if turn.kind is Kind.TIME else Outcome.SERVED, now_s)
            queue.over(turn)
        now_s += 1.0
    assert sent[Kind.ROWS] == 120
    assert sent[Kind.TIME] <= 10


def test_probes_that_are_given_up_come_no_faster_than_others() -> None:
    queue, now_s, sent = TurnQueue(8), 0.0, 0
    for _ in range(2):
        turn = queue.join(Errand(Urgency.REPAIR), Kind.ROWS)
        assert queue.next(now_s) is turn
        queue.ended(turn, Outcome.FAILED, now_s)
        queue.over(turn)
    while now_s < 60.0:
        turn = queue.join(Errand(Urgency.REPAIR), Kind.ROWS)
        if queue.next(now_s) is turn:
            sent += 1
        queue.over(turn)
        now_s += 0.1
    assert sent <= 60.0 / TROUBLE.initial_s


def test_a_full_queue_gives_up_its_least_urgent_request() -> None:
    queue = TurnQueue(1, timings=TurnTimings(max_waiting=2))
    queue.join(Errand(Urgency.REPAIR), Kind.ROWS)
    deep = queue.join(Errand(Urgency.DEEP), Kind.ROWS)
    queue.join(Errand(Urgency.FILL), Kind.ROWS)
    assert queue.evict() is deep
    assert queue.evict() is None


@pytest.mark.parametrize("first_seed", range(0, 2000, 100))
async def test_no_order_of_cancels_faults_and_answers_loses_a_place_or_raises(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        await random_schedule(random.Random(seed))


async def random_schedule(rng: random.Random) -> None:
    """Requests that arrive, are cancelled and end in random order, also in the very step in which their turn comes."""
    now_s = 0.0
    turns = Turns("venue", rng.randint(1, 3), lambda: now_s)
    answers: dict[int, asyncio.Event] = {}

    async def request(number: int) -> None:
        async with turns.turn(Errand(rng.choice(list(Urgency))), rng.choice(list(Kind))) as turn:
            await answers.setdefault(number, asyncio.Event()).wait()
            turns.ended(turn, rng.choice(list(Outcome)), rng.choice([None, 0.0, 3.0, 1e9]))

    tasks = [asyncio.create_task(request(number)) for number in range(12)]
    for _ in range(30):
        for _ in range(rng.randint(1, 3)):
            move = rng.random()
            if move < 0.4:
                rng.choice(tasks).cancel()
            elif move < 0.8:
                answers.setdefault(rng.randrange(len(tasks)), asyncio.Event()).set()
            else:
                now_s += rng.choice([0.5, 30.0, 1000.0])
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
    for number in range(len(tasks)):
        answers.setdefault(number, asyncio.Event()).set()
    for task in tasks:
        if rng.random() < 0.5:
            task.cancel()
    ended = asyncio.gather(*tasks, return_exceptions=True)
    while not ended.done():
        now_s += 1000.0
        turns._pump()
        await asyncio.sleep(0)
    for result in await ended:
        assert result is None or isinstance(result, UpstreamError | asyncio.CancelledError), repr(result)
    assert (turns.waiting, turns.under_way) == (0, 0)
    now_s += 2 * RETRY_AFTER_MOST_S
    async with turns.turn(Errand(Urgency.READ), Kind.ROWS) as turn:
        turns.ended(turn, Outcome.SERVED)


async def test_a_request_that_is_cancelled_just_before_its_turn_comes_ends_nothing_else() -> None:
    turns = Turns("venue", 1, lambda: 0.0)
    leave = asyncio.Event()

    async def request() -> None:
        async with turns.turn(Errand(Urgency.REPAIR), Kind.ROWS):
            await leave.wait()

    first = asyncio.create_task(request())
    second, third = asyncio.create_task(request()), asyncio.create_task(request())
    await asyncio.sleep(0)
    second.cancel()  # its task does not run before the first request's end passes the turn on
    leave.set()
    await first
    with suppress(asyncio.CancelledError):
        await second
    async with asyncio.timeout(60):
        await third
    assert (turns.waiting, turns.under_way) == (0, 0)


def test_a_request_waits_for_a_budget_that_is_paced_and_is_not_given_up_for_it() -> None:
    queue = TurnQueue(8, Pace(2.0))
    first = queue.join(Errand(Urgency.FILL), Kind.ROWS, 40.0)
    assert queue.next(0.0) is first
    second = queue.join(Errand(Urgency.READ), Kind.ROWS, 40.0)
    assert queue.next(0.0) is None
    assert queue.drop_held(0.0) == [], "a user waits for a while, too"
    wait_s = queue.wakes_s(0.0)
    assert wait_s is not None
    assert wait_s == pytest.approx(40.0 / 2.0 - USUAL_TURNS.burst_s)
    assert queue.next(wait_s - 0.01) is None
    assert queue.next(wait_s + 0.01) is second

"""HistoryQueue and the pieces of history, against an exchange and a store that are sets of minutes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core import gaps
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, missing_spans
from klinesync.exchanges.exchange import Urgency
from klinesync.history.limits import HistoryLimits
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import USUAL_RETRIES, Pending
from klinesync.history.pieces import (
    Answer,
    Fetch,
    Piece,
    behind_head,
    nothing_before_first,
    piece_of,
    remaining,
    still_missing,
)
from klinesync.history.queue import HistoryQueue, Look

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
MINUTE = BTC.timeframe
PAGE = 10
PIECE = 25
LENGTH = 200


LIMITS = HistoryLimits(piece_candles=PIECE, page_candles=PAGE)


def span(first: int, end: int) -> Span:
    return Span(60 * first, 60 * end)


def gap(series: SeriesId, where: Span, asked_by: str, urgency: Urgency = Urgency.DEEP) -> Need:
    return Need(series, where, Reason.GAP, asked_by, urgency)


@dataclass
class World:
    """The exchange's candles, the stored ones, and the known holes; the sets hold minutes, not seconds."""

    exchange: set[int]
    stored: set[int]
    ledger: list[Gap] = field(default_factory=list)
    requests: int = 0
    reads: list[Piece] = field(default_factory=list)
    mute: set[int] = field(default_factory=set)  # rows that the exchange has but does not show

    def __post_init__(self) -> None:
        kept, self.stored = self.stored, set()
        self.write(sorted(kept))

    def span(self) -> Span | None:
        return span(min(self.stored), max(self.stored) + 1) if self.stored else None

    def write(self, minutes: Sequence[int], empty: Sequence[Span] = ()) -> None:
        times = [60 * minute for minute in minutes if minute not in self.stored]
        self.ledger = gaps.arrived(self.ledger, MINUTE, self.span(), times).applied_to(self.ledger)
        self.stored.update(minutes)
        self.ledger = gaps.confirm_empty(self.ledger, empty, "a test says so", 1).applied_to(self.ledger)

    def pages(self, asked: Span) -> Iterator[tuple[list[int], list[Span]]]:
        """Pages of the exchange's answer: rows, and the spans between them."""
        rows = sorted(self.exchange - self.mute)
        start = asked.start
        while True:
            page = [minute for minute in rows if start <= 60 * minute < asked.end][:PAGE]
            self.requests += 1
            if not page:
                return
            yield page, missing_spans(MINUTE, 60 * page[0], 60 * page[-1], [60 * minute for minute in page])
            if len(page) < PAGE or 60 * page[-1] <= start:
                return
            start = 60 * page[-1]

    def carry_out(self, fetch: Fetch, now_s: float, rng: random.Random) -> list[Pending]:
        """The work of the service, with sets in place of a store and an exchange."""
        now = remaining(fetch, self.span(), self.ledger)
        if not now.needs:
            return behind_head(fetch, self.span(), now_s, rng, USUAL_RETRIES)
        piece = piece_of(MINUTE, now, LIMITS)
        self.reads.append(piece)
        reached, first, rows = piece.span.start, None, 0
        for page, empty in self.pages(piece.around):
            self.write(page, empty)
            rows += len(page)
            reached, first = max(reached, 60 * page[-1] + 60), 60 * page[0] if first is None else first
            if piece.most is not None and reached > piece.span.start and rows >= piece.most:
                break
        else:
            reached = piece.span.end
        return still_missing(
            fetch, now, piece, Answer(reached, first, self.span(), self.ledger), now_s, rng, USUAL_RETRIES
        )

    def heal(self, queue: HistoryQueue, now_s: float = 0.0, most: int = 1000) -> None:
        """Everything that is due now."""
        rng = random.Random(1)
        for _ in range(most):
            work = queue.take(now_s)
            if work is None:
                return
            assert isinstance(work, Fetch)
            queue.settle(work, self.carry_out(work, now_s, rng), now_s)
            queued = [status.need.span for status in queue.needs_of(BTC)]
            assert not any(before.overlaps(after) for before, after in pairwise(queued)), "a candle is queued once"
        raise AssertionError("it does not come to an end")


MINUTES = st.sets(st.integers(0, LENGTH - 1))
HOLES = st.lists(st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 120)), max_size=4)


def with_holes(holes: list[tuple[int, int]]) -> set[int]:
    return set(range(LENGTH)) - {minute for first, count in holes for minute in range(first, first + count)}


@given(outages=HOLES, lost=HOLES, confirmed=st.booleans(), asked=HOLES, first=st.integers(0, LENGTH // 2))
def test_every_need_is_filled_or_proven_empty_with_one_request_for_each_candle(
    outages: list[tuple[int, int]],
    lost: list[tuple[int, int]],
    confirmed: bool,
    asked: list[tuple[int, int]],
    first: int,
) -> None:
    exchange = with_holes(outages)
    world = World(exchange, {minute for minute in exchange & with_holes(lost) if minute >= first})
    if confirmed:
        # Some outages are in the gap ledger already.
        for start, count in outages[::2]:
            world.write([], [span(start, start + count)])
    queue = HistoryQueue(limits=LIMITS)
    for start, count in asked:
        assert queue.submit(gap(BTC, span(start, start + count), "a test"), 0.0)
    for row in world.ledger:
        if row.state is GapState.UNKNOWN:
            assert queue.submit(gap(BTC, row.span, "a test"), 0.0)
    before = world.span()
    world.heal(queue)
    # Needs after the head wait, the others are settled, and no stored candle was lost.
    wanted = {minute for start, count in asked for minute in range(start, start + count)}
    if before is None:
        assert not world.requests
        return
    assert all(need.start >= before.end for need in queue.working_on(BTC))
    assert {minute for minute in exchange & wanted if 60 * minute < before.end} <= world.stored
    assert all(gap.state is GapState.CONFIRMED_EMPTY for gap in world.ledger)
    empty = {minute for gap in world.ledger for minute in range(gap.start // 60, gap.end // 60)}
    assert empty == set(range(min(world.stored), max(world.stored))) - world.stored
    assert not empty & exchange
    # No request remains.
    requests = world.requests
    for start, count in asked:
        if 60 * (start + count) <= before.end and start >= min(world.stored):
            queue.submit(gap(BTC, span(start, start + count), "a test"), 0.0)
    world.heal(queue)
    assert world.requests == requests


@pytest.mark.parametrize(
    ("outages", "confirmed", "lost"),
    [
        ([(2, 11)], [(3, 1)], []),  # each of two unknown rows has a hole for a neighbour
        ([(12, 26)], [(12, 26)], [(1, 11)]),  # most of a long hole is confirmed
        ([(11, 54), (10, 62)], [(11, 54)], [(1, 89)]),  # the newest part starts with a hole
    ],
)
def test_a_gap_of_several_states_is_settled(
    outages: list[tuple[int, int]], confirmed: list[tuple[int, int]], lost: list[tuple[int, int]]
) -> None:
    exchange = with_holes(outages)
    world = World(exchange, exchange & with_holes(lost))
    world.write([], [span(start, start + count) for start, count in confirmed])
    queue = HistoryQueue(limits=LIMITS)
    for row in world.ledger:
        queue.submit(gap(BTC, row.span, "a test"), 0.0)
    world.heal(queue)
    assert world.stored == exchange
    assert all(gap.state is GapState.CONFIRMED_EMPTY for gap in world.ledger)


@given(outages=HOLES, lost=HOLES, mute=MINUTES, asked=HOLES)
def test_withheld_rows_are_requested_again_with_backoff(
    outages: list[tuple[int, int]], lost: list[tuple[int, int]], mute: set[int], asked: list[tuple[int, int]]
) -> None:
    """Even the neighbours of a hole may be missing from its answers."""
    exchange = with_holes(outages)
    world = World(exchange, exchange & with_holes(lost), mute=mute)
    queue = HistoryQueue(limits=LIMITS)
    for row in world.ledger:
        queue.submit(gap(BTC, row.span, "a test"), 0.0)
    for start, count in asked:
        queue.submit(gap(BTC, span(start, start + count), "a test"), 0.0)
    world.heal(queue)
    assert queue.take(0.0) is None
    due_s = queue.next_due_s()
    assert due_s is None or due_s >= USUAL_RETRIES.backoff.initial_s * 0.75
    # Fruitless needs wait; once the exchange has all candles, all needs are settled.
    world.mute = set()
    world.heal(queue, now_s=10 * USUAL_RETRIES.backoff.most_s)
    for row in world.ledger:
        if row.state is GapState.UNKNOWN:
            queue.submit(
                gap(BTC, row.span, "a test"), 0.0
            )  # a hidden row between shown ones counts as empty, except these
    world.heal(queue, now_s=20 * USUAL_RETRIES.backoff.most_s)
    assert all(gap.state is GapState.CONFIRMED_EMPTY for gap in world.ledger)


@pytest.mark.parametrize("reason", [Reason.GAP, Reason.REQUESTED])
def test_parts_of_a_gap_that_stay_missing_share_a_request(reason: Reason) -> None:
    """The whole gap is read with each of its parts, so that the other parts need no request of their own."""
    world = World(set(range(20, 200)), {0, *range(20, 200)})  # the exchange has forgotten the candle before the gap
    world.write([], [span(5, 6), span(10, 12)])
    queue = HistoryQueue(limits=LIMITS)
    for row in world.ledger:
        if row.state is GapState.UNKNOWN:
            queue.submit(Need(BTC, row.span, reason, "a test"), 0.0)
    world.heal(queue)
    rounds = 30
    for _ in range(rounds):
        due_s = queue.next_due_s()
        assert due_s is not None
        world.heal(queue, due_s)
    assert [status.need.span for status in queue.needs_of(BTC)] == [span(1, 5), span(6, 10), span(12, 20)]
    assert len(world.reads) == rounds + 1


def needs_of(queue: HistoryQueue, now_s: float = 0.0) -> list[Span]:
    work = queue.take(now_s)
    assert isinstance(work, Fetch)
    return [need.span for need in work.needs]


def test_a_long_empty_gap_costs_one_request() -> None:
    world = World({0, *range(150, 200)}, {0, *range(150, 200)})
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(1, 150), "a test"), 0.0)
    world.heal(queue)
    assert world.requests == 1
    assert [gap.state for gap in world.ledger] == [GapState.CONFIRMED_EMPTY]


def test_a_long_gap_is_filled_newest_part_first_after_its_oldest_page() -> None:
    world = World(set(range(200)), {0, 199})
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(1, 199), "a test"), 0.0)
    world.heal(queue)
    assert world.stored == set(range(200))
    first, *others = world.reads
    assert first == Piece(span(1, 199), span(0, 200), most=1)
    ends = [piece.span.end for piece in others]
    assert ends == sorted(ends, reverse=True)
    assert all(MINUTE.count(*piece.span) <= PIECE for piece in others)


def test_older_history_grows_backwards_without_a_gap_to_the_exchanges_first_candle() -> None:
    world = World(set(range(70, 200)), set(range(190, 200)))
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(0, 190), "first history"), 0.0)
    rng = random.Random(1)
    for _ in range(100):
        work = queue.take(0.0)
        if work is None:
            break
        assert isinstance(work, Fetch)
        queue.settle(work, world.carry_out(work, 0.0, rng), 0.0)
        assert not world.ledger
    assert world.stored == set(range(70, 200))
    assert not queue.working_on(BTC)


def test_two_series_take_turns() -> None:
    queue = HistoryQueue(limits=LIMITS)
    for series in (BTC, ETH):
        queue.submit(gap(series, span(0, 5), "a test"), 0.0)
        queue.submit(gap(series, span(100, 105), "a test"), 0.0)
    taken = []
    while (work := queue.take(0.0)) is not None:
        assert isinstance(work, Fetch)
        taken.append((work.series, work.span))
        queue.settle(work, [], 0.0)
    assert taken == [(BTC, span(100, 105)), (ETH, span(100, 105)), (BTC, span(0, 5)), (ETH, span(0, 5))]


def test_a_series_has_one_fetch_in_flight_and_further_needs_wait_or_join() -> None:
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(10, 20), "a test"), 0.0)
    work = queue.take(0.0)
    assert isinstance(work, Fetch)
    queue.submit(gap(BTC, span(5, 25), "a test"), 0.0)
    assert queue.take(0.0) is None
    queue.settle(work, [], 0.0)
    assert needs_of(queue) == [span(20, 25)]


def test_urgent_needs_precede_other_series_and_newer_needs() -> None:
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(ETH, span(100, 105), "a gap"), 0.0)
    queue.submit(gap(BTC, span(100, 105), "a gap"), 0.0)
    queue.submit(gap(BTC, span(0, 5), "read", Urgency.READ), 0.0)
    assert queue.next_due_s() == float("-inf")
    work = queue.take(0.0)
    assert isinstance(work, Fetch)
    assert (work.series, work.span, work.urgency) == (BTC, span(0, 5), Urgency.READ)
    assert not queue.waits_urgently(BTC)
    assert needs_of(queue) == [span(100, 105)]  # the other series'
    assert queue.take(0.0) is None
    queue.settle(work, [], 0.0)
    assert needs_of(queue) == [span(100, 105)]


def test_an_urgent_need_raises_a_waiting_need_until_its_next_attempt_and_keeps_its_backoff() -> None:
    queue, rng = HistoryQueue(limits=LIMITS), random.Random(1)
    queue.submit(gap(BTC, span(10, 20), "a gap"), 0.0)
    work = queue.take(0.0)
    assert isinstance(work, Fetch)
    assert work.urgency is Urgency.DEEP
    queue.settle(work, [USUAL_RETRIES.after_fruitless(need, 0.0, rng) for need in work.needs], 0.0)
    queue.submit(gap(BTC, span(15, 18), "read", Urgency.READ), 0.0)
    queue.submit(gap(BTC, span(15, 18), "a gap"), 0.0)
    assert queue.take(0.0) is None
    assert queue.waits_urgently(BTC)
    due_s = queue.next_due_s()
    assert due_s is not None
    assert USUAL_RETRIES.backoff.initial_s * 0.75 <= due_s <= USUAL_RETRIES.backoff.initial_s
    work = queue.take(due_s)
    assert isinstance(work, Fetch)
    assert work.urgency is Urgency.READ
    assert [(need.span, need.need.asked_by, need.fruitless_attempts) for need in work.needs] == [
        (span(10, 20), "read", 1)
    ]
    queue.settle(work, [USUAL_RETRIES.after_fruitless(need, due_s, rng) for need in work.needs], 0.0)
    assert not queue.waits_urgently(BTC)
    assert needs_of(queue, due_s + USUAL_RETRIES.backoff.most_s) == [span(10, 20)]


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([BTC, ETH]),
            st.integers(0, LENGTH),
            st.integers(1, 30),
            st.sampled_from([Urgency.READ, Urgency.DEEP]),
        ),
        max_size=8,
    ),
    settles=st.lists(st.booleans(), max_size=8),
)
def test_no_urgent_due_need_is_skipped_and_none_is_lost(
    asked: list[tuple[SeriesId, int, int, Urgency]], settles: list[bool]
) -> None:
    queue = HistoryQueue(limits=LIMITS)
    out: dict[SeriesId, Fetch] = {}
    urgent: dict[SeriesId, set[int]] = {BTC: set(), ETH: set()}
    wanted: dict[SeriesId, set[int]] = {BTC: set(), ETH: set()}
    done: dict[SeriesId, set[int]] = {BTC: set(), ETH: set()}

    def minutes(one: Span) -> set[int]:
        return set(range(one.start // 60, one.end // 60))

    def take() -> bool:
        work = queue.take(0.0)
        if work is None:
            assert not any(queue.waits_urgently(series) for series in (BTC, ETH) if series not in out)
            return False
        assert isinstance(work, Fetch)
        free = [series for series, waiting in urgent.items() if waiting and series not in out]
        assert (work.series in free and work.urgency is Urgency.READ) if free else work.urgency is Urgency.DEEP
        for need in work.needs:
            urgent[work.series] -= minutes(need.span)
        out[work.series] = work
        return True

    def settle() -> None:
        series, work = out.popitem()
        for need in work.needs:
            done[series] |= minutes(need.span)
        queue.settle(work, [], 0.0)

    for number, (series, first, count, urgency) in enumerate(asked):
        queue.submit(gap(series, span(first, first + count), "a test", urgency), 0.0)
        wanted[series] |= set(range(first, first + count))
        under_way = {minute for need in (out[series].needs if series in out else ()) for minute in minutes(need.span)}
        done[series] -= set(range(first, first + count)) - under_way
        if urgency is Urgency.READ:
            urgent[series] |= set(range(first, first + count)) - under_way
        if number < len(settles) and settles[number]:
            take()
        elif out:
            settle()
    while take() or out:
        if out:
            settle()
    assert done == wanted
    assert queue.next_due_s() is None


def test_a_first_row_at_the_first_stored_candle_proves_the_span_before_empty() -> None:
    piece = Piece(span(10, 50), span(9, 51))

    def shown(first: int | None, stored: Span | None) -> Span | None:
        return nothing_before_first(piece, Answer(60 * 50, None if first is None else 60 * first, stored, []))

    assert shown(50, span(50, 90)) == span(10, 50)
    assert shown(30, span(30, 90)) == span(10, 30)
    assert shown(9, span(9, 90)) is None
    assert shown(30, span(20, 90)) is None, "somebody else wrote what this answer does not show"
    assert shown(None, span(50, 90)) is None
    assert shown(50, None) is None


def test_short_needs_of_one_page_share_a_request() -> None:
    queue = HistoryQueue(limits=LIMITS)
    for first in (0, 4, 8, 40):
        queue.submit(gap(BTC, span(first, first + 1), "a test"), 0.0)
    assert needs_of(queue) == [span(40, 41)]
    queue = HistoryQueue(limits=LIMITS)
    for first in (0, 4, 8, 12, 16, 20, 24, 28, 32):
        queue.submit(gap(BTC, span(first, first + 1), "a test"), 0.0)
    assert needs_of(queue) == [span(first, first + 1) for first in (8, 12, 16, 20, 24, 28, 32)]


def test_fruitless_needs_back_off_up_to_a_limit() -> None:
    rng = random.Random(1)
    need, waits = Pending(gap(BTC, span(0, 1), "a test")), []
    for _ in range(20):
        need = USUAL_RETRIES.after_fruitless(need, 100.0, rng)
        waits.append(need.due_s - 100.0)
    most = [USUAL_RETRIES.backoff.delay_s(turn) for turn in range(20)]
    assert all(0.75 * limit <= wait <= limit for wait, limit in zip(waits, most, strict=True))
    assert (
        USUAL_RETRIES.after_fruitless(Pending(gap(BTC, span(0, 1), "a test")), 100.0, rng, at_least_s=500.0).due_s
        == 600.0
    )


def test_a_series_that_is_listed_again_does_not_wait_for_its_next_retry() -> None:
    queue, rng = HistoryQueue(limits=LIMITS), random.Random(0)
    queue.submit(gap(BTC, span(1, 2), "declared gap"), 0.0)
    queue.submit(gap(ETH, span(1, 2), "declared gap"), 0.0)
    for _ in range(2):
        work = queue.take(0.0)
        assert isinstance(work, Fetch)
        queue.settle(
            work,
            [USUAL_RETRIES.after_fruitless(replace(need, fruitless_attempts=5), 0.0, rng) for need in work.needs],
            0.0,
        )
    assert queue.take(1.0) is None
    queue.retry_now(BTC)
    queue.retry_now(SeriesId.parse("binance:spot:NONE/USDT:1m"))
    work = queue.take(1.0)
    assert isinstance(work, Fetch)
    assert (work.series, [need.fruitless_attempts for need in work.needs]) == (BTC, [0])
    assert queue.take(1.0) is None


def test_stalled_needs_are_not_reported_as_being_read() -> None:
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(10, 20), "a test"), 0.0)
    rng, now_s = random.Random(1), 0.0
    for turn in range(USUAL_RETRIES.stalled_after + 2):
        assert queue.working_on(BTC) == ([span(10, 20)] if turn < USUAL_RETRIES.stalled_after else [])
        work = queue.take(now_s)
        assert isinstance(work, Fetch)
        assert queue.working_on(BTC) == ([span(10, 20)] if turn < USUAL_RETRIES.stalled_after else [])
        queue.settle(work, [USUAL_RETRIES.after_fruitless(need, now_s, rng) for need in work.needs], 0.0)
        now_s = queue.next_due_s() or 0.0


def test_the_queue_is_limited_and_looks_gaps_up_again_when_there_is_room() -> None:
    limits = replace(LIMITS, needs_of_series=4)
    queue = HistoryQueue(limits=limits)
    for first in range(0, 400, 100):
        assert queue.submit(gap(BTC, span(first, first + 1), "a test"), 0.0)
    assert not queue.submit(gap(BTC, span(500, 501), "a test"), 0.0)
    assert queue.submit(gap(ETH, span(0, 1), "a test"), 0.0)
    assert needs_of(queue) == [span(300, 301)]
    assert needs_of(queue) == [span(0, 1)]  # the other series'
    queue = HistoryQueue(limits=limits)
    for first in range(0, 500, 100):
        queue.submit(gap(BTC, span(first, first + 1), "a test"), 0.0)
    seen: list[Fetch | Look] = []
    while (work := queue.take(0.0)) is not None:
        seen.append(work)
        queue.settle(work, [], 0.0)
    assert [type(work) for work in seen] == [Fetch, Fetch, Look, Fetch, Fetch]
    queue = HistoryQueue(limits=replace(limits, needs=2))
    assert not queue.submit(gap(BTC, span(0, 1), "a test"), 0.0) or queue.submit(
        gap(BTC, span(100, 101), "a test"), 0.0
    )
    assert not queue.submit(gap(ETH, span(0, 1), "a test"), 0.0)


def test_while_a_lookup_waits_the_whole_series_counts_as_being_read() -> None:
    queue = HistoryQueue(limits=LIMITS)
    assert queue.working_on(BTC) == []
    queue.look(Look(BTC))
    (everything,) = queue.working_on(BTC)
    assert everything.start == 0
    work = queue.take(0.0)
    assert work == Look(BTC)
    assert queue.working_on(BTC) == [everything]
    queue.settle(work, [], 0.0)
    assert queue.working_on(BTC) == []


def test_a_need_after_the_head_waits_for_a_stored_candle() -> None:
    world = World(set(range(200)), set())
    queue = HistoryQueue(limits=LIMITS)
    queue.submit(gap(BTC, span(10, 20), "a test"), 0.0)
    world.heal(queue)
    world.write([25])
    world.heal(queue, now_s=5.0)
    assert not world.requests
    world.heal(queue, now_s=USUAL_RETRIES.backoff.initial_s)
    assert world.stored == {*range(10, 21), 25} | world.stored
    assert set(range(10, 20)) <= world.stored


def test_needs_of_trimmed_candles_are_dropped() -> None:
    world = World(set(range(200)), {*range(20), *range(40, 60), *range(70, 200)}, mute={19, 40, 59, 70})
    queue = HistoryQueue(limits=LIMITS)
    for row in world.ledger:
        queue.submit(gap(BTC, row.span, "a test"), 0.0)
    world.mute |= set(range(20, 70))
    world.heal(queue)  # fruitless: the holes' neighbours are hidden
    assert [gap.state for gap in world.ledger] == [GapState.UNKNOWN] * 2
    # Everything before minute 70 is trimmed, with both gaps.
    world.stored = set(range(70, 200))
    world.ledger = gaps.fill(world.ledger, [span(0, 70)]).applied_to(world.ledger)
    world.mute = set()
    world.requests = 0
    world.heal(queue, now_s=USUAL_RETRIES.backoff.most_s)
    assert world.requests == 0
    assert min(world.stored) == 70
    assert queue.working_on(BTC) == []

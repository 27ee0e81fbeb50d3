"""Access: how often a market that refuses or fails gets requests, for any answers and any number of callers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from klinesync.exchanges.access import HANDSHAKE, REFUSED, TROUBLE, YIELD_S, Access

KINDS = ("time", "klines", "exchangeInfo", HANDSHAKE)
TICK_S = 0.25


class Market:
    """A caller requests each of `kinds` at every tick; answers arrive at once."""

    def __init__(self, *kinds: str) -> None:
        self.access = Access()
        self.kinds = kinds or KINDS
        self.now_s = 1000.0
        self.asked: list[tuple[float, str]] = []

    def run(self, ticks: int, statuses: Mapping[str, int | None]) -> None:
        """`statuses` by kind; None is a good answer."""
        for _ in range(ticks):
            self.now_s += TICK_S
            for kind in self.kinds:
                if self.access.held_s(kind, self.now_s) > 0.0:
                    continue
                self.access.sent(kind, self.now_s)
                self.asked.append((self.now_s, kind))
                status = statuses[kind]
                if status is None:
                    self.access.served(kind)
                else:
                    self.access.failed(kind, status, "why", self.now_s, self.now_s)

    def pauses_s(self, since_s: float, kind: str | None = None) -> list[float]:
        times = [at for at, what in self.asked if at >= since_s and kind in (None, what)]
        return [later - before for before, later in pairwise(times)]


def test_a_market_that_refuses_all_is_asked_once_an_interval_and_every_kind_has_its_turn() -> None:
    market = Market()
    market.run(400, dict.fromkeys(KINDS, 451))
    since_s = market.now_s
    market.run(4000, dict.fromkeys(KINDS, 451))
    pauses_s = market.pauses_s(since_s)
    assert min(pauses_s) >= REFUSED.most_s
    assert max(pauses_s) <= REFUSED.most_s + YIELD_S
    kinds = [kind for at, kind in market.asked if at >= since_s]
    assert len(set(kinds)) > 1
    assert all(before != after for before, after in pairwise(kinds)), "the kind that was refused last lets others go"


def test_a_kind_that_is_refused_alone_is_held_alone() -> None:
    for refused in KINDS:
        market = Market()
        statuses = dict.fromkeys(KINDS) | {refused: 403}
        market.run(400, statuses)
        since_s = market.now_s
        market.run(1000, statuses)
        assert min(market.pauses_s(since_s, refused)) >= REFUSED.most_s
        for kind in set(KINDS) - {refused}:
            assert max(market.pauses_s(since_s, kind)) == TICK_S


def test_a_market_that_fails_at_all_is_probed_and_its_handshakes_are_not_held() -> None:
    for status in (0, 200, 404, 500, 503):
        market = Market()
        market.run(200, dict.fromkeys(KINDS, status))
        since_s = market.now_s
        market.run(1000, dict.fromkeys(KINDS, status))
        rest = [at for at, kind in market.asked if at >= since_s and kind != HANDSHAKE]
        assert min(after - before for before, after in pairwise(rest)) >= TROUBLE.most_s
        assert max(market.pauses_s(since_s, HANDSHAKE)) == TICK_S


def test_what_calls_the_request_wrong_or_one_too_many_holds_nothing() -> None:
    market = Market()
    market.run(100, dict.fromkeys(KINDS, 400) | {"klines": 429})
    assert max(market.pauses_s(0.0)) <= TICK_S


def test_requests_that_were_under_way_together_count_once() -> None:
    access = Access()
    for _ in range(50):
        access.failed("klines", 451, "why", sent_s=1.0, now_s=2.0)
    assert access.held_s("klines", 2.0) == REFUSED.initial_s


@given(st.lists(st.tuples(st.sampled_from([None, 401, 403, 451, 0, 200, 500, 400, 429]), st.integers(1, 200))))
def test_it_ends_with_its_cause_within_an_interval(phases: list[tuple[int | None, int]]) -> None:
    market = Market()
    for status, ticks in phases:
        market.run(ticks, dict.fromkeys(KINDS, status))
    market.run(int((REFUSED.most_s + 2 * YIELD_S) / TICK_S) + 1, dict.fromkeys(KINDS))
    assert not any(market.access.held_s(kind, market.now_s) for kind in KINDS)

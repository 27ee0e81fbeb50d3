"""Backoff: delays that grow up to a limit, shortened by a jitter."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.backoff import Backoff

BACKOFFS = st.builds(
    lambda initial_s, more_s, factor, jitter: Backoff(initial_s, initial_s + more_s, factor, jitter),
    st.floats(0.0, 1000.0),
    st.floats(0.0, 100_000.0),
    st.floats(1.0, 10.0),
    st.floats(0.0, 1.0),
)
RETRIES = st.integers(0, 100_000)


@given(BACKOFFS)
def test_delays_begin_with_the_initial_one_and_grow_by_the_factor_up_to_the_longest(backoff: Backoff) -> None:
    delays = [backoff.delay_s(retry) for retry in range(50)]
    assert delays[0] == backoff.initial_s
    for before, after in pairwise(delays):
        assert after == pytest.approx(min(before * backoff.factor, backoff.most_s))


@given(BACKOFFS, RETRIES)
def test_however_many_retries_a_delay_is_never_longer_than_the_longest(backoff: Backoff, retry: int) -> None:
    assert backoff.initial_s <= backoff.delay_s(retry) <= backoff.most_s


@given(BACKOFFS, RETRIES, st.integers())
def test_the_jitter_shortens_a_delay_by_its_share_at_most(backoff: Backoff, retry: int, seed: int) -> None:
    longest_s = backoff.delay_s(retry)
    delay_s = backoff.delay_s(retry, random.Random(seed))
    assert longest_s * (1.0 - backoff.jitter) <= delay_s <= longest_s
    assert delay_s == backoff.delay_s(retry, random.Random(seed)), "the same randomness gives the same delay"


def test_clients_that_failed_together_do_not_come_back_together() -> None:
    backoff, rng = Backoff(initial_s=1.0, most_s=60.0, jitter=0.5), random.Random(1)
    assert len({round(backoff.delay_s(3, rng), 2) for _ in range(100)}) > 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_s": -1.0},
        {"initial_s": 20.0},
        {"most_s": float("inf")},
        {"most_s": float("nan")},
        {"factor": 0.5},
        {"jitter": -0.1},
        {"jitter": 1.1},
    ],
)
def test_a_backoff_that_makes_no_sense_cannot_be_made(wrong: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        Backoff(**{"initial_s": 1.0, "most_s": 10.0, **wrong})

"""Bodies in flight: the budget and the minimum speed, as values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.market.bodies import (
    BUSY,
    MAX_BODY_BYTES,
    TOO_LARGE,
    Body,
    BodyBudget,
    too_slow,
)
from klinesync.market.error_codes import SHUTTING_DOWN
from klinesync.market.limits import USUAL_BODIES, BodyLimits

TOO_SLOW = too_slow(USUAL_BODIES)


def begun(budget: BodyBudget, now_s: float, declared: int = 0) -> Body:
    body = budget.begin(declared, now_s)
    assert isinstance(body, Body)
    return body


def test_a_body_that_stalls_is_too_slow_at_the_deadline_and_not_before() -> None:
    budget = BodyBudget()
    body = begun(budget, 0.0)
    assert budget.take(body, 10_000, 1.0) is None
    assert body.deadline_s == 1.0 + USUAL_BODIES.stall_timeout_s
    assert budget.take(body, 0, body.deadline_s - 0.01) is None
    assert budget.take(body, 0, body.deadline_s) == TOO_SLOW
    assert budget.size == 0


def test_a_byte_a_second_is_too_slow_and_a_phone_on_a_slow_line_is_not() -> None:
    drip, phone = BodyBudget(), BodyBudget()
    dripping, slow = begun(drip, 0.0), begun(phone, 0.0)
    ends = []
    for second in range(1, 121):
        ends.append(drip.take(dripping, 1, float(second)))
        assert phone.take(slow, 2 * USUAL_BODIES.bytes_per_s, float(second)) is None
    assert ends.index(TOO_SLOW) + 1 == USUAL_BODIES.speed_window_s


def test_a_body_that_was_quick_at_first_is_too_slow_later() -> None:
    budget = BodyBudget()
    body = begun(budget, 0.0)
    assert budget.take(body, 1 << 20, 1.0) is None
    ends = [budget.take(body, 1, float(second)) for second in range(2, 70)]
    assert TOO_SLOW in ends


def test_in_a_full_budget_the_slowest_body_and_new_ones_are_refused() -> None:
    budget = BodyBudget(BodyLimits(bytes_in_flight=1000))
    slow, quick = begun(budget, 0.0), begun(budget, 8.0)
    assert budget.take(slow, 500, 9.0) is None
    assert budget.take(quick, 400, 9.0) is None
    assert budget.begin(200, 9.5) == BUSY
    assert slow.ended == BUSY
    assert budget.size == 400
    assert budget.take(slow, 1, 9.6) == BUSY  # its reader is notified
    assert quick.ended is None
    again = begun(budget, 10.0, declared=200)
    assert budget.take(again, 200, 10.0) is None


def test_a_new_body_does_not_end_bodies_that_began_recently() -> None:
    budget = BodyBudget(BodyLimits(bytes_in_flight=1000))
    bodies = [begun(budget, 0.0) for _ in range(2)]
    assert [budget.take(body, 500, 0.1) for body in bodies] == [None, None]
    assert budget.begin(0, USUAL_BODIES.patience_s - 0.1) == BUSY
    assert [body.ended for body in bodies] == [None, None]


def test_bytes_beyond_the_budget_end_the_slowest_arriving_body() -> None:
    budget = BodyBudget(BodyLimits(bytes_in_flight=1000))
    whole, slow, quick = begun(budget, 0.0), begun(budget, 0.0), begun(budget, 5.0)
    budget.take(whole, 300, 1.0)
    whole.arriving = False
    budget.take(slow, 400, 5.0)
    assert budget.take(quick, 600, 6.0) is None
    assert (whole.ended, slow.ended, budget.size) == (None, BUSY, 900)


def test_a_declared_length_beyond_the_limit_is_refused_before_a_byte_is_read() -> None:
    assert BodyBudget().begin(MAX_BODY_BYTES + 1, 0.0) == TOO_LARGE


def test_at_the_stop_arriving_bodies_are_refused_and_complete_ones_answered() -> None:
    budget = BodyBudget()
    whole, arriving = begun(budget, 0.0), begun(budget, 0.0)
    whole.arriving = False
    budget.close()
    assert (whole.ended, arriving.ended) == (None, SHUTTING_DOWN)
    assert budget.begin(0, 1.0) == SHUTTING_DOWN


@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "take", "whole", "release"]), st.integers(0, 9), st.integers(0, 700)),
        max_size=200,
    )
)
def test_the_budget_is_the_sum_of_its_bodies_and_is_never_exceeded(steps: list[tuple[str, int, int]]) -> None:
    budget, bodies, now_s = BodyBudget(BodyLimits(bytes_in_flight=2000)), list[Body](), 0.0
    for step, which, size in steps:
        now_s += 0.5
        if step == "begin":
            body = budget.begin(size, now_s)
            if isinstance(body, Body):
                bodies.append(body)
        elif bodies:
            body = bodies[which % len(bodies)]
            if step == "take" and body.arriving:
                budget.take(body, size, now_s)
            elif step == "whole" and body.ended is None:
                body.arriving = False
            elif step == "release":
                budget.release(body)
                bodies.remove(body)
        assert budget.size == sum(body.size for body in bodies if body.ended is None) <= 2000

"""Questions: when stored candles with other values in a frame are requested from REST, and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.ingest.questions import AGAIN_AFTER_S, GIVE_UP_S, MAX_QUESTIONS, MAX_SPAN, RETRY_S, Questions

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")


def test_a_candle_is_requested_at_once_and_after_10_and_120_s_while_rest_has_the_stored_values() -> None:
    questions = Questions()
    questions.ask(BTC, [600], 1000.0)
    asked_at = []
    now_s = 1000.0
    while (due_s := questions.due_s()) is not None:
        now_s = max(now_s, due_s)
        request = questions.next(now_s)
        assert request == (BTC, Span(600, 660))
        asked_at.append(now_s)
        questions.answered(*request, set(), now_s)
    assert asked_at == [1000.0, *(1000.0 + after_s for after_s in AGAIN_AFTER_S)] == [1000.0, 1010.0, 1120.0]


def test_other_values_from_rest_settle_a_question() -> None:
    questions = Questions()
    questions.ask(BTC, [600, 720], 1000.0)
    request = questions.next(1000.0)
    assert request == (BTC, Span(600, 780)), "one request for all of a series"
    questions.answered(*request, {600}, 1000.0)
    assert len(questions) == 1
    assert questions.settled == 1


def test_a_repeated_frame_adds_no_requests() -> None:
    questions = Questions()
    requests = 0
    for second in range(120):
        questions.ask(BTC, [600], 1000.0 + second)
        if (request := questions.next(1000.0 + second)) is not None:
            requests += 1
            questions.answered(*request, set(), 1000.0 + second)
    assert requests == 2


def test_a_failed_request_is_retried_and_finally_given_up() -> None:
    questions = Questions()
    questions.ask(BTC, [600], 0.0)
    now_s, requests = 0.0, 0
    while (request := questions.next(now_s)) is not None:
        requests += 1
        questions.failed(*request, now_s)
        now_s += RETRY_S
    assert requests == GIVE_UP_S / RETRY_S + 2
    assert questions.due_s() is None


@given(st.lists(st.tuples(st.sampled_from([BTC, ETH]), st.integers(0, 3000)), min_size=1, max_size=40))
def test_every_question_is_in_a_request_of_its_series_and_requests_are_bounded(
    asked: list[tuple[SeriesId, int]],
) -> None:
    questions = Questions()
    for series, minute in asked:
        questions.ask(series, [60 * minute], 0.0)
    covered: set[tuple[SeriesId, int]] = set()
    while (request := questions.next(0.0)) is not None:
        series, span = request
        assert (span.end - span.start) // 60 <= MAX_SPAN
        covered |= {(one, minute) for one, minute in asked if one == series and span.start <= 60 * minute < span.end}
        questions.answered(series, span, set(), 0.0)
    assert covered == set(asked)


def test_pending_questions_are_limited_and_dropped_with_their_series() -> None:
    questions = Questions()
    questions.ask(BTC, range(0, 60 * (MAX_QUESTIONS + 50), 60), 0.0)
    assert len(questions) == MAX_QUESTIONS
    questions.forget(BTC)
    assert len(questions) == 0

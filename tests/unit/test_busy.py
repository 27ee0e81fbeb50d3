"""Which refusals are retried, after what delay, and how often."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.busy import MAX_REPEATS, REPEAT, repeat_after_s


def test_a_busy_service_is_asked_again_later_and_later() -> None:
    pauses = [repeat_after_s(503, "busy", None, repeats) for repeats in range(MAX_REPEATS + 1)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, None]


@pytest.mark.parametrize(
    ("retry_after", "pause_s"), [("5", 5.0), ("0", 1.0), ("86400", REPEAT.most_s), ("soon", 1.0), ("nan", 1.0)]
)
def test_the_service_names_the_pause_within_bounds(retry_after: str, pause_s: float) -> None:
    assert repeat_after_s(503, "shutting_down", retry_after, 0) == pause_s


@pytest.mark.parametrize(
    ("status", "code"), [(503, None), (503, "store_error"), (500, "busy"), (200, None), (429, "rate_limited")]
)
def test_other_answers_stand(status: int, code: str | None) -> None:
    assert repeat_after_s(status, code, "1", 0) is None


@given(st.one_of(st.none(), st.text(max_size=20)), st.integers(0, MAX_REPEATS - 1))
def test_whatever_the_header_says_the_pause_is_bounded(retry_after: str | None, repeats: int) -> None:
    pause_s = repeat_after_s(503, "busy", retry_after, repeats)
    assert pause_s is not None
    assert 0 < pause_s <= REPEAT.most_s

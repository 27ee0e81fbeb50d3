"""Times as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.dates import LAST_TIME, date_text, iso, parse_time


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("20261129", 1795910400),
        ("2026-11-29", 1795910400),
        ("2026-11-29T18:00", 1795975200),
        ("2026-11-29 18:00:05Z", 1795975205),
        ("2026-11-29T18:00+08:00", 1795946400),
        ("1795910400", 1795910400),
        ("0", 0),
        (" 60 ", 60),
    ],
)
def test_dates_and_unix_seconds_are_read(text: str, time_s: int) -> None:
    assert parse_time(text) == time_s


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "1795910400000",
            "'1795910400000' is not unix seconds but milliseconds; write 1795910400 or 2026-11-29T00:00:00Z",
        ),
        ("1795910400000000", "is not unix seconds but microseconds; write 1795910400 or"),
        ("1795910400000000000", "is not unix seconds but nanoseconds; write 1795910400 or"),
        ("20261399", "'20261399' is neither ISO 8601 nor unix seconds; write a date"),
        ("yesterday", "'yesterday' is neither ISO 8601 nor unix seconds; write a date"),
        ("-1", "neither"),
        ("1.5", "neither"),
        ("", "neither"),
        ("1969-12-31", "lies before 1970-01-01"),
        ("9" * 10_000, "nanoseconds; write a date"),
    ],
)
def test_anything_else_is_refused_with_what_to_write(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_time(text)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 300


@given(st.integers(0, LAST_TIME))
def test_a_time_reads_back_from_its_text(time_s: int) -> None:
    assert parse_time(iso(time_s)) == time_s
    assert parse_time(date_text(time_s).replace(" UTC", "Z")) == time_s


@given(st.text())
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        assert parse_time(text) >= 0
    except ValueError as error:
        assert "0" in str(error)  # noqa: PT017  # either is right


@given(st.integers())
def test_a_number_that_no_date_can_say_stands_for_itself(time_s: int) -> None:
    if not -62135596800 <= time_s <= LAST_TIME:
        assert date_text(time_s) == iso(time_s) == str(time_s)

"""Points in time, parsed from people's notations."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.times import MAX_SECONDS, BadTime, Time, unix_seconds

EAST = timezone(timedelta(hours=8))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_700_000_040, 1_700_000_040),
        (1_700_000_040.9, 1_700_000_040),
        (np.int64(1_700_000_040), 1_700_000_040),
        (0, 0),
        ("1700000040", 1_700_000_040),
        ("2023-11-14", 1_699_920_000),
        ("20231114", 1_699_920_000),
        ("2023-11-14 22:14", 1_700_000_040),
        (" 2023-11-14T22:14:00Z ", 1_700_000_040),
        ("2023-11-15T06:14:00+08:00", 1_700_000_040),
        (datetime(2023, 11, 14, 22, 14), 1_700_000_040),
        (datetime(2023, 11, 14, 22, 14, tzinfo=UTC), 1_700_000_040),
        (datetime(2023, 11, 15, 6, 14, tzinfo=EAST), 1_700_000_040),
    ],
)
def test_a_time_is_unix_seconds_a_datetime_or_iso_text(value: Time, seconds: int) -> None:
    assert unix_seconds(value) == seconds
    assert type(unix_seconds(value)) is int


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1_700_000_040_000, "milliseconds.*1700000040$"),
        ("1700000040000", "milliseconds.*1700000040$"),
        (-1, "before 1970"),
        (datetime(1969, 1, 1), "before 1970"),
        ("yesterday", "2026-11-29T08:00"),
        ("", "2026-11-29T08:00"),
        ("20231399", "2026-11-29T08:00"),
        ("9" * 5000, "no time"),
        (True, "no time"),
        (float("nan"), "no time"),
        (float("inf"), "no time"),
        (2e306, r"^2e\+306 is too far ahead; give seconds$"),
        (10**400, "^10{39}… is too far ahead; give seconds$"),
        pytest.param(10**5000, "^an integer of thousands of digits is too far ahead", id="huge"),
        pytest.param(-(10**5000), "^an integer of thousands of digits lies before 1970", id="huge, negative"),
        (object(), "an? object is no time"),
    ],
)
def test_what_is_none_is_refused_with_a_sentence(value: Time, word: str) -> None:
    with pytest.raises(BadTime, match=word):
        unix_seconds(value)


@given(st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.datetimes(), st.none(), st.binary(max_size=4)))
def test_anything_is_a_time_or_refused(value: Time) -> None:
    try:
        seconds = unix_seconds(value)
    except BadTime as error:
        seconds = 0
        sentence = str(error)
    else:
        sentence = ""
    assert 0 <= seconds < MAX_SECONDS
    assert len(sentence) < 400

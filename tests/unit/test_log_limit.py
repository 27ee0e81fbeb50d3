"""LogLimit: the rate limit of equal log lines."""

from hypothesis import given
from hypothesis import strategies as st

from klinesync.runtime.log_limit import MAX_KEYS, LogLimit


def test_the_first_line_passes_and_later_ones_are_counted_until_the_interval_ends() -> None:
    limit = LogLimit(10.0)
    assert limit.allow("quarantined", 100.0) == 0
    assert [limit.allow("quarantined", 100.0 + second) for second in (0, 1, 9.9)] == [None, None, None]
    assert limit.allow("quarantined", 110.0) == 3
    assert limit.allow("quarantined", 111.0) is None
    assert limit.allow("quarantined", 200.0) == 1


def test_each_key_has_a_line_of_its_own() -> None:
    limit = LogLimit(10.0)
    assert limit.allow(("binance", 1), 0.0) == 0
    assert limit.allow(("binance", 2), 0.0) == 0
    assert limit.allow(("binance", 1), 1.0) is None


def test_keys_beyond_the_limit_share_one_line() -> None:
    limit = LogLimit(10.0)
    assert [limit.allow(key, 0.0) for key in range(MAX_KEYS)] == [0] * MAX_KEYS
    assert limit.allow("one more", 1.0) == 0
    assert limit.allow("and another", 2.0) is None
    assert limit.allow("a third", 11.0) == 0, "the first thousand are old enough to be forgotten"
    assert limit.allow("a third", 12.0) is None


@given(st.lists(st.tuples(st.integers(0, MAX_KEYS + 20), st.floats(0, 3)), max_size=200))
def test_a_key_has_one_line_per_interval_and_suppressed_lines_are_counted(
    calls: list[tuple[int, float]],
) -> None:
    limit, now_s = LogLimit(5.0), 0.0
    last: dict[int, float] = {}
    counted: dict[int, int] = {}
    for key, step_s in calls:
        now_s += step_s
        answer = limit.allow(key, now_s)
        if answer is None:
            assert now_s - last[key] < 5.0
            counted[key] = counted.get(key, 0) + 1
        else:
            assert now_s - last.get(key, float("-inf")) >= 5.0
            assert answer == counted.pop(key, 0)
            last[key] = now_s

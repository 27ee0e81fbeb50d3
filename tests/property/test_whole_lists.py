"""Which answers count as whole lists of symbols, and when the list is requested again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.exchanges import whole_lists
from klinesync.exchanges.whole_lists import MOST_GONE, MOST_GONE_SHARE, USUAL_LISTS, WholeLists

COUNTS = st.integers(0, 3000)


def symbols(count: int, first: int = 0) -> set[str]:
    return {f"S{number}/USDT" for number in range(first, first + count)}


@given(st.integers(1, 3000), COUNTS, COUNTS)
def test_a_list_that_lacks_few_of_the_known_symbols_is_whole_and_any_other_replaces_nothing(
    known: int, told: int, new: int
) -> None:
    lists = WholeLists()
    assert lists.refusal(symbols(known), 0.0) is None
    answer = symbols(min(told, known)) | symbols(new, first=10_000)
    gone = known - min(told, known)
    why = lists.refusal(answer, 1.0)
    whole = bool(answer) and gone <= max(MOST_GONE, int(MOST_GONE_SHARE * known))
    assert (why is None) == whole
    assert lists.known == (answer if whole else symbols(known))
    assert (lists.pause_s(1.0) > 0.0) == (not whole)


def test_what_is_missing_is_told() -> None:
    lists = WholeLists()
    lists.refusal(symbols(400), 0.0)
    assert lists.refusal(set(), 1.0) == "lists nothing, where 400 symbols were listed"
    why = lists.refusal(symbols(12), 2.0)
    assert why == "lists 12 symbols, and 388 of the 400 that it listed before are missing"
    assert WholeLists().refusal(set(), 0.0) == "lists nothing"
    assert WholeLists().refusal(set(), 0.0, expected=False) is None, "it may have no such market"


@given(st.lists(st.booleans(), max_size=40), st.booleans())
def test_an_exchange_that_gives_no_whole_list_is_asked_again_at_growing_intervals(
    empty: list[bool], known: bool
) -> None:
    lists, now_s = WholeLists(), 0.0
    if known:
        lists.refusal(symbols(100), now_s)
    backoff = whole_lists.NEXT_LIST if known else whole_lists.FIRST_LIST
    for retry, one in enumerate(empty):
        expected_s = backoff.delay_s(retry)
        if one or not known:
            assert lists.refusal(set(), now_s) is not None
        else:
            lists.failed(now_s)
        assert lists.pause_s(now_s) == expected_s
        now_s += expected_s
        assert lists.pause_s(now_s) == 0.0
    assert lists.refusal(symbols(100), now_s) is None
    lists.failed(now_s)
    assert lists.pause_s(now_s) == whole_lists.NEXT_LIST.initial_s, "a whole list ends the backoff"


def test_a_list_that_stays_shrunken_is_believed_in_the_end_and_an_empty_one_never() -> None:
    lists = WholeLists()
    lists.refusal(symbols(400), 0.0)
    for at_s in (0.0, USUAL_LISTS.believed_after_s / 2, USUAL_LISTS.believed_after_s - 1.0):
        assert lists.refusal(symbols(200), at_s) is not None
    assert lists.refusal(symbols(100), USUAL_LISTS.believed_after_s) is not None, (
        "another part: the answers contradict each other"
    )
    assert lists.refusal(symbols(100), 2 * USUAL_LISTS.believed_after_s - 1.0) is not None
    assert lists.refusal(set(), 9 * USUAL_LISTS.believed_after_s) is not None
    assert lists.refusal(set(), 99 * USUAL_LISTS.believed_after_s) is not None
    assert lists.refusal(symbols(98), 100 * USUAL_LISTS.believed_after_s) is not None
    assert lists.refusal(symbols(99), 101 * USUAL_LISTS.believed_after_s) is None
    assert lists.known == symbols(99)


def test_the_list_of_an_earlier_start_is_what_a_first_answer_is_judged_by() -> None:
    lists = WholeLists()
    lists.kept(symbols(400))
    assert lists.refusal(symbols(40), 0.0) is not None
    lists.kept(symbols(1))
    assert lists.known == symbols(400)

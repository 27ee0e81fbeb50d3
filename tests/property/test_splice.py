"""Splice: for any interleaving of history and live, the output is increasing and complete, and declares its jumps."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.splice import Jump, Splice
from klinesync.core.timeframe import Timeframe

MINUTE = Timeframe.parse("1m")


@dataclass(frozen=True)
class Item:
    time: int
    source: str = "live"


def items(*minutes: int) -> list[Item]:
    return [Item(minute * 60) for minute in minutes]


def check_stream(out: list[Item | Jump], last: int | None) -> None:
    """Strictly increasing, with a jump before exactly those items that do not follow."""
    jump: Jump | None = None
    for item in out:
        if isinstance(item, Jump):
            assert jump is None
            jump = item
            continue
        if last is not None:
            assert item.time > last
            expected = MINUTE.next(last)
            assert jump == (None if item.time == expected else Jump(expected, item.time))
        else:
            assert jump is None
        jump, last = None, item.time
    assert jump is None


@given(
    exchange=st.sets(st.integers(1, 60), min_size=1),
    attach_at=st.integers(0, 60),
    read_at=st.integers(0, 60),
    live=st.data(),
)
def test_nothing_falls_between_history_and_live(
    exchange: set[int], attach_at: int, read_at: int, live: st.DataObject
) -> None:
    """Live begins at `attach_at`; history is read later, at `read_at`, while live goes on."""
    attach_at, read_at = sorted((attach_at, read_at))
    splice: Splice[Item] = Splice(MINUTE, last=0)
    splice.hold()
    out: list[Item | Jump] = []
    arrivals = [minute for minute in sorted(exchange) if minute > attach_at]
    doubled = [minute for minute in arrivals for _ in range(live.draw(st.integers(1, 2)))]
    for minute in doubled:
        if minute > read_at and splice.holding:
            out += splice.release(Item(past * 60, "history") for past in exchange if past <= read_at)
        out += splice.live(Item(minute * 60))
    if splice.holding:
        out += splice.release(Item(past * 60, "history") for past in exchange if past <= read_at)
    check_stream(out, 0)
    seen = {item.time // 60 for item in out if isinstance(item, Item)}
    assert seen == {minute for minute in exchange if minute <= read_at or minute > attach_at}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40))), st.none() | st.integers(0, 20))
def test_any_sequence_of_items_gives_an_increasing_stream_with_its_jumps_declared(
    steps: list[tuple[bool, int]], last: int | None
) -> None:
    last = None if last is None else last * 60
    splice: Splice[Item] = Splice(MINUTE, last=last)
    out: list[Item | Jump] = []
    for hold, minute in steps:
        if hold:
            splice.hold()
        elif splice.holding:
            out += splice.release(items(minute))
        out += splice.live(Item(minute * 60))
    out += splice.release()
    check_stream(out, last)


def test_of_history_and_live_with_one_time_the_live_one_counts() -> None:
    splice: Splice[Item] = Splice(MINUTE)
    splice.hold()
    splice.live(Item(60, "live"))
    assert splice.release([Item(60, "history"), Item(0, "history")]) == [Item(0, "history"), Item(60, "live")]


def test_what_is_at_or_before_after_is_not_let_through() -> None:
    splice: Splice[Item] = Splice(MINUTE, after=120)
    assert splice.live(Item(60)) == []
    assert splice.live(Item(120)) == []
    assert splice.live(Item(240)) == items(4)  # no predecessor is known, so there is no jump


def test_held_items_are_bounded_and_the_oldest_are_forgotten_and_declared() -> None:
    splice: Splice[Item] = Splice(MINUTE, last=0, max_held=2)
    splice.hold()
    for item in items(1, 2, 3):
        splice.live(item)
    assert splice.release() == [Jump(60, 120), *items(2, 3)]


def test_a_piece_of_history_goes_through_while_live_stays_held() -> None:
    splice: Splice[Item] = Splice(MINUTE, last=0)
    splice.hold()
    splice.live(Item(240))
    assert splice.history(items(2, 1)) == items(1, 2)
    assert splice.held() == items(4)
    assert splice.release() == [Jump(180, 240), *items(4)]


def test_a_run_is_let_through_up_to_the_first_hole_and_past_one_when_asked() -> None:
    splice: Splice[Item] = Splice(MINUTE, last=0)
    splice.hold()
    for item in items(1, 2, 4, 6):
        splice.live(item)
    assert splice.release_run() == items(1, 2)
    assert splice.holding
    assert splice.release_run() == []
    assert splice.release_run(past_hole=True) == [Jump(180, 240), *items(4)]
    assert splice.holding
    assert splice.release_run(past_hole=True) == [Jump(300, 360), *items(6)]
    assert not splice.holding

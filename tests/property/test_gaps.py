"""The gap ledger against a model: a dict from each missing open time to its state and proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.gaps import (
    Gap,
    GapChange,
    GapState,
    arrived,
    begin_healing,
    confirm_empty,
    end_healing,
    fill,
    lose,
    missing_candles,
    note,
    reach,
    unproven,
    unsettled,
    within,
)
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from support.timeframes import TIMEFRAMES

MINUTE = Timeframe.parse("1m")
MONTH = Timeframe.parse("1M")
UNKNOWN, HEALING, EMPTY, LOST = GapState
LENGTH = 20  # candles that the model covers: few, so that spans meet


class Known(NamedTuple):
    state: GapState
    proof: str | None = None
    time: int | None = None


Model = dict[int, Known]


def grid(timeframe: Timeframe) -> list[int]:
    """The open times of the model, and one more as the end of the last span."""
    first = timeframe.floor(int(datetime(2020, 1, 15, tzinfo=UTC).timestamp()))
    return [timeframe.shift(first, at) for at in range(LENGTH + 1)]


def rows_of(model: Model, timeframe: Timeframe) -> list[Gap]:
    """The model as ledger rows: neighbours with one state and one proof are one row, confirmed at the time of its last
    part. The model takes over that time."""
    rows: list[Gap] = []
    for at in sorted(model):
        known, end = model[at], timeframe.next(at)
        if rows and rows[-1].end == at and rows[-1].state == known.state and rows[-1].proof == known.proof:
            times = [time for time in (rows[-1].time, known.time) if time is not None]
            rows[-1] = Gap(rows[-1].start, end, known.state, known.proof, max(times) if times else None)
        else:
            rows.append(Gap(at, end, *known))
    for row in rows:
        for at in model:
            if row.start <= at < row.end:
                model[at] = Known(row.state, row.proof, row.time)
    return rows


def spans_of(times: Iterable[int], timeframe: Timeframe) -> list[Span]:
    """Spans of a set of times, by a slow method."""
    spans: list[Span] = []
    for at in sorted(times):
        start = spans.pop().start if spans and spans[-1].end == at else at
        spans.append(Span(start, timeframe.next(at)))
    return spans


class Series:
    """A ledger being changed beside its model. Each change is made from the rows that touch the change, and must be
    minimal."""

    def __init__(self, timeframe: Timeframe) -> None:
        self.timeframe = timeframe
        self.rows: list[Gap] = []
        self.model: Model = {}
        self.stored: set[int] = set()

    def near(self, spans: Sequence[Span]) -> list[Gap]:
        """The rows that a store would read: those that touch the hull of `spans`."""
        return [row for row in self.rows if row.start <= spans[-1].end and row.end >= spans[0].start]

    def extent(self) -> Span | None:
        return Span(min(self.stored), self.timeframe.next(max(self.stored))) if self.stored else None

    def write(self, change: GapChange) -> None:
        assert set(change.delete) <= set(self.rows)
        assert not set(change.delete) & set(change.insert)  # no row is written unchanged
        assert bool(change) == (change.delete != change.insert)
        self.rows = change.applied_to(self.rows)
        assert self.rows == rows_of(self.model, self.timeframe)


OPERATIONS = st.sampled_from(("note", "fill", "begin", "end", "confirm", "confirm", "lose", "arrive"))
RANGES = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 8)).map(
    lambda drawn: set(range(drawn[0], min(LENGTH, drawn[0] + drawn[1])))
)
PICKED = RANGES | st.sets(st.integers(0, LENGTH - 1), min_size=1)
STEP = st.tuples(OPERATIONS, PICKED, st.sampled_from("ab"), st.integers(1, 9))
# A ledger usually starts with a hole; changes from an empty ledger seldom overlap.
STEPS = st.tuples(st.lists(STEP, max_size=4), st.lists(STEP, max_size=20)).map(
    lambda drawn: [*drawn[0], ("note", set(range(LENGTH)), "a", 1), *drawn[1]]
)


@given(TIMEFRAMES, STEPS)
def test_any_sequence_of_changes_leaves_what_a_dict_of_minutes_would_hold(
    timeframe: Timeframe, steps: list[tuple[str, set[int], str, int]]
) -> None:
    series, times = Series(timeframe), grid(timeframe)
    for operation, picked, proof, time in steps:
        chosen = {times[at] for at in picked}
        spans, model = spans_of(chosen, timeframe), series.model
        near = series.near(spans)
        known = chosen & set(model)
        match operation:
            case "note":
                change = note(near, spans)
                model |= {at: Known(UNKNOWN) for at in chosen if at not in model}
            case "fill":
                change = fill(near, spans)
                for at in known:
                    del model[at]
            case "begin":
                change = begin_healing(near, spans)
                model |= {at: Known(HEALING) for at in known if model[at].state in (UNKNOWN, LOST)}
            case "end":
                change = end_healing(near, spans)
                model |= {at: Known(UNKNOWN) for at in known if model[at].state is HEALING}
            case "confirm":
                change = confirm_empty(near, spans, proof, time)
                model |= {at: Known(EMPTY, proof, time) for at in known if model[at].state is not EMPTY}
            case "lose":
                change = lose(near, spans, proof, time)
                model |= {at: Known(LOST, proof, time) for at in known if model[at].state in (UNKNOWN, HEALING)}
            case _:
                before = series.extent()
                touched = series.near([reach(timeframe, before, sorted(chosen))])
                change = arrived(touched, timeframe, before, sorted(chosen))
                old = series.stored
                passed = {at for at in times[:-1] if not old or not min(old) <= at <= max(old)}
                series.stored = old | chosen
                inside = {at for at in passed if min(series.stored) <= at <= max(series.stored)}
                model |= {at: Known(UNKNOWN) for at in inside - chosen if at not in model}
                for at in known:
                    del model[at]
        series.write(change)


@given(st.lists(st.sets(st.integers(0, LENGTH - 1), min_size=1), max_size=12))
def test_whatever_the_order_of_arrival_each_time_between_the_edges_is_stored_or_noted(arrivals: list[set[int]]) -> None:
    series, times = Series(MINUTE), grid(MINUTE)
    for picked in arrivals:
        chosen = sorted(times[at] for at in picked)
        before = series.extent()
        change = arrived(series.near([reach(MINUTE, before, chosen)]), MINUTE, before, chosen)
        series.rows = change.applied_to(series.rows)
        series.stored |= set(chosen)
        lacking = set(times[:-1]) - series.stored
        inside = {at for at in lacking if min(series.stored) < at < max(series.stored)}
        assert series.rows == [Gap(*span, UNKNOWN) for span in spans_of(inside, MINUTE)]
        assert not arrived(series.rows, MINUTE, series.extent(), chosen)  # repeating the change writes nothing


LEDGERS = st.dictionaries(
    st.integers(0, LENGTH - 1),
    st.sampled_from((Known(UNKNOWN), Known(HEALING), Known(EMPTY, "a", 1), Known(EMPTY, "b", 2), Known(LOST, "c", 3))),
)


def ledger(noted: dict[int, Known]) -> list[Gap]:
    times = grid(MINUTE)
    return rows_of({times[at]: known for at, known in noted.items()}, MINUTE)


@given(LEDGERS, st.integers(0, LENGTH - 1), st.integers(1, LENGTH), st.integers(0, LENGTH - 1), st.integers(0, LENGTH))
def test_unproven_is_what_no_candle_and_no_proof_covers_and_what_of_it_is_not_lost_is_unsettled(
    noted: dict[int, Known], first: int, length: int, stored_first: int, stored_length: int
) -> None:
    times = grid(MINUTE)
    window = Span(times[first], times[min(LENGTH, first + length)])
    stored = Span(times[stored_first], times[min(LENGTH, stored_first + stored_length)]) if stored_length else None
    for look, settled in ((unproven, {EMPTY}), (unsettled, {EMPTY, LOST})):
        expected: set[int] = set()
        for at, time in enumerate(times[:-1]):
            if window.start <= time < window.end:
                known = noted.get(at)
                covered = stored is not None and stored.start <= time < stored.end
                if known.state not in settled if known is not None else not covered:
                    expected.add(time)
        found = look(ledger(noted), stored, window)
        assert {time for time in times if any(start <= time < end for start, end in found)} == expected
        assert sum(MINUTE.count(*span) for span in found) == len(expected)
        assert found == sorted(found)


@given(LEDGERS, st.integers(0, LENGTH - 1), st.integers(0, LENGTH), st.integers(0, 5))
def test_a_window_shows_its_newest_gaps_cut_to_it_and_no_more_than_asked(
    noted: dict[int, Known], first: int, length: int, most: int
) -> None:
    times = grid(MINUTE)
    end = min(LENGTH, first + length)
    rows = ledger(noted)
    inside = rows_of({times[at]: known for at, known in noted.items() if first <= at < end}, MINUTE)
    shown = within(rows, Span(times[first], times[end]), most)
    assert shown == (inside[-most:] if most else [])
    assert all(row.start < row.end for row in shown)


@given(LEDGERS)
def test_missing_candles_are_counted_by_state(noted: dict[int, Known]) -> None:
    counts = missing_candles(MINUTE, ledger(noted))
    assert counts == {state: sum(known.state is state for known in noted.values()) for state in GapState}


def test_missing_months_are_counted_by_the_calendar() -> None:
    times = grid(MONTH)
    assert missing_candles(MONTH, [Gap(times[0], times[14], HEALING)])[HEALING] == 14


HOLE = Gap(600, 1200, UNKNOWN)
CONFIRMED = Gap(600, 1200, EMPTY, "klines answered no row", 5000)


def test_a_candle_inside_a_confirmed_hole_takes_its_minute_out_and_the_proof_holds_for_the_rest() -> None:
    change = arrived([CONFIRMED], MINUTE, Span(0, 3000), [900])
    assert change == GapChange((CONFIRMED,), (CONFIRMED._replace(end=900), CONFIRMED._replace(start=960)))


def test_a_change_names_only_the_rows_that_differ() -> None:
    far = Gap(2400, 3000, UNKNOWN)
    assert begin_healing([HOLE, far], [Span(600, 720)]) == GapChange(
        (HOLE,), (Gap(600, 720, HEALING), Gap(720, 1200, UNKNOWN))
    )


def test_a_hole_noted_beside_another_becomes_one_row_with_it() -> None:
    assert note([HOLE], [Span(1200, 1260)]) == GapChange((HOLE,), (Gap(600, 1260, UNKNOWN),))


def test_confirming_again_keeps_the_first_proof_and_writes_nothing() -> None:
    assert not confirm_empty([CONFIRMED], [CONFIRMED.span], "another proof", 9000)


def test_neighbours_of_one_proof_become_one_row_confirmed_by_the_later_time() -> None:
    rows = [CONFIRMED, Gap(1200, 1260, HEALING)]
    proof = CONFIRMED.proof or ""
    for time, by in ((4000, 5000), (6000, 6000)):
        change = confirm_empty(rows, [Span(1200, 1260)], proof, time)
        assert change.applied_to(rows) == [CONFIRMED._replace(end=1260, time=by)]


def test_neighbours_of_two_proofs_stay_two_rows() -> None:
    rows = [CONFIRMED, Gap(1200, 1260, UNKNOWN)]
    change = confirm_empty(rows, [Span(1200, 1260)], "a row off the grid", 5000)
    assert change == GapChange((rows[1],), (Gap(1200, 1260, EMPTY, "a row off the grid", 5000),))


def test_only_a_noted_hole_can_be_healed_or_confirmed() -> None:
    """A stored candle is not in the ledger, and no mistake of a caller declares it empty."""
    assert not confirm_empty([HOLE], [Span(1200, 2400)], "proof", 1)
    assert not begin_healing([], [Span(0, 600)])


@pytest.mark.parametrize("operation", [begin_healing, end_healing], ids=lambda operation: str(operation.__name__))
def test_a_confirmed_hole_stays_confirmed(
    operation: Callable[[Sequence[Gap], Sequence[Span]], GapChange],
) -> None:
    assert not operation([CONFIRMED], [Span(0, 3000)])


def test_a_restart_puts_all_healing_back_to_unknown_and_joins_it() -> None:
    rows = [
        Gap(600, 900, UNKNOWN),
        Gap(900, 960, HEALING),
        Gap(960, 1200, UNKNOWN),
        CONFIRMED._replace(start=1800, end=2400),
    ]
    assert end_healing(rows, [Span(600, 2400)]).applied_to(rows) == [HOLE, rows[3]]


def test_retention_forgets_the_holes_before_the_first_candle_that_is_kept() -> None:
    assert fill([HOLE], [Span(0, 900)]) == GapChange((HOLE,), (Gap(900, 1200, UNKNOWN),))


def test_a_confirmation_without_a_proof_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError, match="by a proof"):
        confirm_empty([HOLE], [HOLE.span], "", 1)

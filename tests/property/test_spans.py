"""Spans against sets of open times, and against sets of candles on the grids of longer timeframes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.spans import (
    Span,
    candle_count,
    clipped,
    common,
    hull,
    joined,
    missing_spans,
    narrowed,
    runs,
    widened,
    without,
)
from klinesync.core.timeframe import Timeframe
from support.timeframes import TIMEFRAMES

MINUTE = Timeframe.parse("1m")
HOUR = Timeframe.parse("1h")
DAY = Timeframe.parse("1d")
LENGTH = 24  # candles of the grid from which spans are drawn: few, so that spans meet


def grid(timeframe: Timeframe) -> list[int]:
    """The open times, and one more as the end of the last span."""
    first = timeframe.floor(int(datetime(2020, 1, 15, tzinfo=UTC).timestamp()))
    return [timeframe.shift(first, at) for at in range(LENGTH + 1)]


def times_in(spans: Iterable[Span], timeframe: Timeframe = MINUTE) -> set[int]:
    """The open times within spans, one by one."""
    times: set[int] = set()
    for start, end in spans:
        while start < end:
            times.add(start)
            start = timeframe.next(start)
    return times


def apart(spans: list[Span]) -> bool:
    """Whether spans are ascending, not empty, and do not touch."""
    return all(span.start < span.end for span in spans) and all(one.end < two.start for one, two in pairwise(spans))


PLACES = st.integers(0, LENGTH - 1)
ANY_SPANS = st.lists(st.tuples(PLACES, st.integers(1, LENGTH)), max_size=8).map(
    lambda drawn: [Span(60 * at, 60 * (at + length)) for at, length in drawn]
)
SPANS = ANY_SPANS.map(joined)
WINDOWS = st.tuples(PLACES, st.integers(0, LENGTH)).map(lambda drawn: Span(60 * drawn[0], 60 * sum(drawn)))


@given(ANY_SPANS)
def test_joined_spans_hold_what_lies_in_any_of_them_ascending_and_apart(spans: list[Span]) -> None:
    whole = joined(spans)
    assert times_in(whole) == times_in(spans)
    assert apart(whole)
    assert joined(reversed(whole)) == whole


@given(SPANS, SPANS)
def test_spans_are_cut_by_each_other_like_sets(spans: list[Span], others: list[Span]) -> None:
    for cut, expected in (
        (without(spans, others), times_in(spans) - times_in(others)),
        (common(spans, others), times_in(spans) & times_in(others)),
    ):
        assert times_in(cut) == expected
        assert joined(cut) == cut
    assert common(spans, others) == common(others, spans)


@given(ANY_SPANS, WINDOWS)
def test_clipped_spans_hold_what_lies_in_the_window_and_stay_in_their_order(spans: list[Span], window: Span) -> None:
    inside = clipped(spans, window)
    assert [times_in([span]) for span in inside] == [
        times for span in spans if (times := times_in([span]) & times_in([window]))
    ]


@given(WINDOWS, WINDOWS)
def test_one_span_is_clipped_and_held_against_another_like_a_set(span: Span, other: Span) -> None:
    one, two = times_in([span]), times_in([other])
    assert times_in([span.clipped(other)]) == one & two
    assert {60 * at for at in range(2 * LENGTH) if span.holds(60 * at)} == one
    if one and two:
        assert span.overlaps(other) is bool(one & two)


@given(ANY_SPANS.filter(bool))
def test_the_hull_is_the_shortest_span_around_all(spans: list[Span]) -> None:
    times = times_in(spans)
    assert hull(spans) == Span(min(times), max(times) + 60)


@given(TIMEFRAMES, st.sets(PLACES), PLACES, st.integers(0, LENGTH))
def test_runs_cover_the_times_and_missing_spans_the_rest_of_the_window(
    timeframe: Timeframe, present: set[int], first: int, length: int
) -> None:
    opens = grid(timeframe)
    window = Span(opens[first], opens[min(LENGTH, first + length)])
    times = sorted(opens[at] for at in present if window.holds(opens[at]))
    covered = runs(timeframe, times)
    assert times_in(covered, timeframe) == set(times)
    assert apart(covered)
    holes = missing_spans(timeframe, *window, times)
    assert times_in(holes, timeframe) == times_in([window], timeframe) - set(times)
    assert apart(holes)
    assert candle_count(timeframe, covered) == len(times)


@pytest.mark.parametrize("timeframe", [Timeframe.parse(code) for code in ("1h", "3d", "1w", "1M")], ids=str)
@given(data=st.data())
def test_spans_on_a_longer_grid_are_the_candles_that_they_touch_or_fill(
    timeframe: Timeframe, data: st.DataObject
) -> None:
    short = MINUTE if timeframe == HOUR else DAY
    start = grid(timeframe)[0]
    cuts = sorted(data.draw(st.sets(st.integers(0, 4 * timeframe.seconds // short.seconds), max_size=8)))
    spans = [Span(short.shift(start, one), short.shift(start, two)) for one, two in pairwise(cuts)][::2]
    times = times_in(spans, short)
    touched = {timeframe.floor(time) for time in times}
    filled = {one for one in touched if times_in([Span(one, timeframe.next(one))], short) <= times}
    for snapped, expected in ((widened(timeframe, spans), touched), (narrowed(timeframe, spans), filled)):
        assert times_in(snapped, timeframe) == expected
        assert all(timeframe.is_open(edge) for span in snapped for edge in span)
        assert joined(snapped) == snapped


@given(TIMEFRAMES, st.integers(-(10**9), 10**10))
def test_the_ceiling_is_the_first_open_time_that_is_not_before_a_time(timeframe: Timeframe, time: int) -> None:
    ceiling = timeframe.ceil(time)
    assert timeframe.is_open(ceiling)
    assert timeframe.shift(ceiling, -1) < time <= ceiling

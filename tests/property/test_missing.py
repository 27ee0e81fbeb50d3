"""Missing candles behind the stored head and before the first stored candle, by values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.history.missing import LEAST_OLDER_CANDLES, full_page_start, missing_older, missing_tail
from support.timeframes import TIMEFRAMES

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTE = BTC.timeframe
NOW = 1_700_000_070  # in the middle of a minute
FRAMES = TIMEFRAMES
TIMES = st.integers(0, 2_000_000_000)
COUNTS = st.one_of(st.integers(1, 5000), st.integers(1, 10**12))


def span(first: int, count: int) -> Span:
    return Span(first, first + 60 * count)


# --- tails


@given(frame=FRAMES, now=TIMES, most=COUNTS, head=st.none() | TIMES, kept=st.just(0) | TIMES)
def test_a_tail_joins_the_stored_head_or_is_as_long_as_allowed_and_ends_with_what_is_closed(
    frame: Timeframe, now: int, most: int, head: int | None, kept: int
) -> None:
    stored = None if head is None else Span(0, frame.next(frame.floor(head)))
    tail = missing_tail(frame, stored, now, most, kept)
    end = frame.floor(now)
    if tail is None:
        assert (stored is not None and stored.end >= end) or kept > frame.shift(end, -1) or end <= 0 or now < 8 * 86_400
        return
    assert tail.end == end
    assert frame.is_open(tail.start)
    assert 0 <= tail.start < tail.end
    assert frame.count(*tail) <= most
    assert tail.start >= kept
    if stored is not None:
        assert tail.start >= stored.end
    if frame.count(*tail) < most and kept == 0 and frame.shift(tail.start, -1) >= 0:
        assert stored is not None
        assert tail.start == stored.end


def test_a_head_further_back_than_allowed_leaves_a_hole_behind_the_newest_candles() -> None:
    assert missing_tail(MINUTE, span(NOW - 30 - 6000 * 60, 10), NOW, 2000) == span(NOW - 30 - 2000 * 60, 2000)
    assert missing_tail(MINUTE, span(NOW - 30 - 600, 7), NOW, 2000) == span(NOW - 30 - 180, 3)
    assert missing_tail(MINUTE, span(NOW - 30 - 600, 10), NOW, 2000) is None
    assert missing_tail(MINUTE, None, NOW, 2000, kept_from=NOW - 100) == span(NOW - 90, 1)


# --- pages and older history


def candles(first: int, count: int) -> list[Candle]:
    return [Candle(first + 60 * number, 1.0, 1.0, 1.0, 1.0, 0.0) for number in range(count)]


def test_only_a_page_that_is_not_full_needs_older_candles() -> None:
    first = NOW - 30
    stored = span(first, 10)
    assert full_page_start(MINUTE, 10, first, None, 10, stored) is None
    assert full_page_start(MINUTE, 4, first, None, 10, stored) == first - 360
    assert full_page_start(MINUTE, 0, None, first, 10, stored) == first - 600
    assert full_page_start(MINUTE, 0, None, first - 59, 10, stored) == first - 600, (
        "the candle at first - 60 opens before"
    )
    assert full_page_start(MINUTE, 0, None, first - 60, 10, stored) == first - 660
    # An hour of which a few minutes are stored.
    hour = Timeframe.parse("1h")
    assert full_page_start(hour, 0, None, None, 2, stored) == hour.floor(stored.end) - 7200
    assert full_page_start(hour, 0, None, MAX_TIME, 2, stored) == hour.floor(stored.end) - 7200


@given(
    frame=FRAMES,
    first=TIMES,
    page_start=TIMES,
    most=COUNTS,
    kept=st.just(0) | TIMES,
    nothing=st.integers(0, 5000),
)
def test_older_history_ends_with_the_first_candle_and_is_no_more_than_allowed(
    frame: Timeframe, first: int, page_start: int, most: int, kept: int, nothing: int
) -> None:
    first = MINUTE.floor(first)
    stored = span(first, 10)
    empty = Span(max(0, first - 60 * nothing), first) if nothing else None
    older = missing_older(frame, MINUTE, stored, frame.floor(page_start), most, kept, empty)
    if older is None:
        lower = max(first - 60 * most, 0, kept)
        assert lower > first - 60 or (empty is not None and empty.start <= first - 60)
        return
    assert older.end == first
    assert MINUTE.is_open(older.start)
    assert 1 <= MINUTE.count(*older) <= most
    assert older.start >= kept
    assert older.start >= 0
    assert empty is None or older.start < empty.start, "what is asked for is not all known to be empty"
    if frame == MINUTE and kept == 0 and older.start > 0:
        assert MINUTE.count(*older) >= min(LEAST_OLDER_CANDLES, most)
        wanted = MINUTE.count(frame.floor(page_start), first)
        assert MINUTE.count(*older) >= min(wanted, most)
    if frame.next(frame.floor(older.start - 1)) < first:
        assert frame.is_open(older.start), "it begins with a whole bucket"


@given(most=st.integers(1, 3000), limit=st.integers(1, 1500), depth=st.integers(0, 4000))
def test_scrolling_back_ends_at_the_listing_without_further_requests(most: int, limit: int, depth: int) -> None:
    """The exchange has `depth` candles before the first stored one; each answer is remembered as the service does."""
    listing = 1_600_000_020
    stored = span(listing + 60 * depth, 10)
    nothing: Span | None = None
    requests = 0
    before = stored.start
    while True:
        start = full_page_start(MINUTE, 0, None, before, limit, stored)
        assert start is not None
        older = missing_older(MINUTE, MINUTE, stored, start, most, 0, nothing)
        if older is None:
            break
        requests += 1
        stored = Span(max(older.start, listing), stored.end)
        nothing = Span(older.start, listing) if older.start < listing else None
        before = stored.start
    assert stored.start == listing
    least = min(max(limit, LEAST_OLDER_CANDLES), most)
    assert requests <= depth // least + 2


def test_no_older_history_is_requested_that_retention_would_trim() -> None:
    stored = span(NOW - 30, 10)
    assert missing_older(MINUTE, MINUTE, stored, 0, 2000, kept_from=stored.start) is None
    assert missing_older(MINUTE, MINUTE, stored, 0, 2000, kept_from=stored.start - 90) == Span(
        stored.start - 60, stored.start
    )


@given(first=st.integers(21 * 86_400, 2 * 10**9), most=st.integers(1, 3000))
def test_for_a_derived_page_the_base_grows_until_its_buckets_are_whole(first: int, most: int) -> None:
    day = Timeframe.parse("1d")
    stored = span(MINUTE.floor(first), 10)
    page_start = day.floor(stored.end) - 2 * 86_400
    for _ in range(2 * 2 * 1440 // most + 3):
        if stored.start <= page_start:
            break
        older = missing_older(day, MINUTE, stored, page_start, most)
        assert older is not None
        stored = Span(older.start, stored.end)
    assert stored.start <= page_start

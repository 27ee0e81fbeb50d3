"""Gaps and buckets of SeriesHealth, from a gap ledger."""

from klinesync.core.gaps import Gap, GapState
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.market_data.series_health import Bucket, Hole, completeness, holes, recent_opens

M1, M5, D1 = map(Timeframe.parse, ("1m", "5m", "1d"))
UNKNOWN, HEALING, EMPTY = GapState.UNKNOWN, GapState.HEALING, GapState.CONFIRMED_EMPTY


def empty(start: int, end: int) -> Gap:
    return Gap(start, end, EMPTY, "shown", 0)


def test_adjacent_gaps_are_joined_with_the_worst_state() -> None:
    ledger = [empty(60, 120), Gap(120, 180, UNKNOWN), empty(180, 240), empty(600, 660)]
    assert holes(M1, ledger, []) == [Hole(0, 240, 240, 3, UNKNOWN), Hole(540, 660, 120, 1, EMPTY)]


def test_a_gap_is_healing_only_if_all_of_it_is_being_read() -> None:
    ledger = [Gap(60, 180, UNKNOWN), Gap(600, 720, UNKNOWN), empty(900, 960)]
    states = [hole.state for hole in holes(M1, ledger, [Span(0, 180), Span(600, 660), Span(840, 1200)])]
    assert states == [HEALING, UNKNOWN, EMPTY]


def test_a_bucket_counts_the_minutes_that_are_stored() -> None:
    stored, ledger = Span(360, 1440), [Gap(600, 720, UNKNOWN), empty(1020, 1080)]
    assert completeness(M5, M1, stored, ledger, [0, 300, 600, 900, 1200, 1500]) == [
        Bucket(0, 5, 0, 5),
        Bucket(300, 5, 4, 1),
        Bucket(600, 5, 3, 2),
        Bucket(900, 5, 4, 1),
        Bucket(1200, 5, 4, 1),
        Bucket(1500, 5, 0, 5),
    ]


def test_minutes_are_counted_whatever_the_base_is() -> None:
    (bucket,) = completeness(D1, M5, Span(0, 86_400), [Gap(300, 900, UNKNOWN)], [0])
    assert bucket == Bucket(0, 1440, 1430, 10)


def test_the_newest_buckets_have_closed_and_begin_with_the_first_stored_candle() -> None:
    stored = Span(360, 10_000)
    assert recent_opens(M5, stored, 1500, 3) == [600, 900, 1200]
    assert recent_opens(M5, stored, 1499, 3) == [300, 600, 900]
    assert recent_opens(M5, stored, 1500, 100) == [300, 600, 900, 1200]
    assert recent_opens(M5, stored, 1500, 0) == []
    assert recent_opens(M5, stored, 0, 3) == []

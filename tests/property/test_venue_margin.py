"""A venue that changes its rows for a while after their end, and tells the time by headers that may be wrong."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.rows import LiveCandles, Row, read_page
from klinesync.exchanges.ccxt.timings import USUAL_CCXT
from klinesync.exchanges.ccxt.venue_margin import MAX_MARGIN_MS, DateClock, VenueMargin
from support.thorough import examples

MINUTE = Timeframe.parse("1m")
T0 = 1_700_000_040
# Closes of a venue from which its margin is learned, and the time (s) in which a wrong close is corrected.
LEARNED_AFTER = 10
RIGHT_WITHIN_S = 15.0


class LateVenue:
    """One row per minute. Each takes its final close `late_s` after its end, drawn separately for each minute."""

    def __init__(self, most_late_s: float, seed: int, *, always: bool) -> None:
        self._rng = Random(seed)
        self._least_late_s = most_late_s if always else 0.0
        self._most_late_s = most_late_s
        self._late_s: dict[int, float] = {}

    def final(self, minute: int) -> Candle:
        return Candle(T0 + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0 + minute)

    def row(self, minute: int, now_s: float) -> Row:
        late_s = self._late_s.setdefault(minute, self._rng.uniform(self._least_late_s, self._most_late_s))
        candle = self.final(minute)
        volume = candle.volume if now_s >= candle.time + 60 + late_s else candle.volume - 1.0
        return (candle.time * 1000.0, *candle[1:5], volume)

    def rows(self, start: int, now_s: float) -> list[Row]:
        first, last = (start - T0) // 60, int(now_s - T0) // 60
        return [self.row(minute, now_s) for minute in range(max(first, 0), last + 1)]


@settings(max_examples=examples(60), deadline=None)
@given(st.floats(0.0, 9.0), st.floats(2.0, USUAL_CCXT.confirm_s), st.integers(0, 10_000), st.booleans())
def test_after_ten_closes_none_is_told_wrong_and_a_wrong_one_is_right_soon(
    most_late_s: float, pause_s: float, seed: int, always: bool
) -> None:
    venue, margin, rng = LateVenue(most_late_s, seed, always=always), VenueMargin(2000), Random(seed)
    live = LiveCandles(MINUTE, margin)
    now_s, told, wrong_since = T0 + 150.0, dict[int, Candle](), dict[int, float]()
    wrong_closes: list[int] = []
    while len(told) < 30:
        until_due_s = (live.due_ms(int(now_s * 1000)) / 1000) - now_s
        now_s += min(pause_s * rng.uniform(0.9, 1.1), max(until_due_s, 0.25))
        stamp_ms = int(now_s * 1000)
        now_s += 0.05
        rows = venue.rows(live.since(stamp_ms), now_s)
        page = read_page(
            MINUTE, rows, live.since(stamp_ms), None, final_ms=stamp_ms, known_ms=stamp_ms, margin_ms=margin.ms
        )
        for candle, closed in live.take(page):
            if closed:
                told[candle.time] = candle
        for time, candle in told.items():
            right = candle == venue.final((time - T0) // 60)
            if right:
                wrong_since.pop(time, None)
            elif time not in wrong_since:
                wrong_since[time] = now_s
                wrong_closes.append(len(told))
            else:
                assert now_s - wrong_since[time] <= RIGHT_WITHIN_S
    assert len(wrong_closes) <= max(0.0, most_late_s - 2.0) + 1, "each one makes the margin a second larger"
    if always:
        assert all(number <= LEARNED_AFTER for number in wrong_closes), wrong_closes
    assert margin.ms <= MAX_MARGIN_MS
    if most_late_s <= 2.0:
        assert margin.ms == 2000, "a venue that keeps to the margin is not slowed down"


@settings(max_examples=examples(100), deadline=None)
@given(
    leads_s=st.lists(st.integers(-12, 12).map(lambda number: 5.0 * number), min_size=1, max_size=3, unique=True),
    quiet=st.floats(0.0, 0.8),
    pause_s=st.floats(0.3, 10.0),
    seed=st.integers(0, 10_000),
)
def test_a_date_never_shows_more_than_the_true_time(
    leads_s: list[float], quiet: float, pause_s: float, seed: int
) -> None:
    rng, clock = Random(seed), DateClock()
    now_s, newest, minute = 1000.0, T0, T0 // 60
    for lead_s in leads_s:
        for _ in range(60):
            now_s += pause_s
            true_s = T0 + now_s - 1000.0
            if int(true_s) // 60 > minute:
                minute = int(true_s) // 60
                newest = newest if rng.random() < quiet else minute * 60
            least_ms = clock.answered(int(true_s + lead_s) * 1000, newest * 1000, now_s)
            assert least_ms is None or least_ms <= true_s * 1000


def test_a_date_that_is_right_soon_shows_nearly_the_true_time() -> None:
    clock, late_ms = DateClock(), 0.0
    for second in range(600):
        true_s = T0 + second + 0.5
        least_ms = clock.answered(int(true_s) * 1000, int(true_s) // 60 * 60_000, second)
        assert least_ms is not None
        late_ms = true_s * 1000 - least_ms if second > 65 else 0.0
        assert late_ms <= 2500

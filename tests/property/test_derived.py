"""Derived candles: their bits are a function of the base candles alone, for any way of folding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle, check_candle
from klinesync.core.derived import (
    FormingBuckets,
    chain_to,
    complete,
    divides,
    fold,
    links_to,
    native_parts,
    parent_of,
    touched,
)
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, missing_spans, runs
from klinesync.core.timeframe import DAY_S, Timeframe
from support.derived_candles import Bucket, derive, roll_up
from support.timeframes import ADMITTED, DERIVED_OF_MINUTES, KNOWN, TIMEFRAMES

MINUTE = Timeframe.parse("1m")
DERIVED = KNOWN[1:]
SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
# Three minutes before a Monday that starts a month and a three-day candle: a bucket of every timeframe ends here.
TURN = int(datetime(2020, 6, 1, tzinfo=UTC).timestamp())

# Volumes whose sums depend on the order, prices that are often equal, zeros of both signs.
PRICES = (1e-9, 0.3, 1.1, 1e9 / 7)
VOLUMES = (0.0, -0.0, 0.1, 0.2, 0.7, 1 / 3, 1e-9, 1e7 / 3, 2.0**53)
# One drawn number per candle, so that long runs are cheap to generate.
VALUES = st.sampled_from(
    [
        (open_, max(open_, close, other), min(open_, close, other), close, volume)
        for open_, close, other, volume in product(PRICES, PRICES, PRICES, VOLUMES)
    ]
)
# Mostly complete; the taker-buy values are those of no trade, which fit every volume.
FLOWS = st.sampled_from(
    [(0.1, 10**7, -0.0, 0.0), (None, None, None, None), (0.5, None, 0.0, None)]
    + [(quote, 3, 0.0, 0.0) for quote in VOLUMES for _ in range(3)]
)
STEPS = st.sampled_from((1, 1, 1, 1, 1, 1, 1, 1, 2, 7, 50, 700, 4000))


def frame(code: str) -> Timeframe:
    return Timeframe.parse(code)


@st.composite
def base_candles(draw: st.DrawFn, *, most: int = 100) -> list[Candle]:
    """Ascending minutes around that time, with holes of all sizes, up to days."""
    time = TURN - 60 * draw(st.integers(0, 40))
    candles: list[Candle] = []
    for values, flow, step in draw(st.lists(st.tuples(VALUES, FLOWS, STEPS), min_size=1, max_size=most)):
        candles.append(Candle(time, *values, *flow))
        time += 60 * step
    return candles


def bits(candles: Iterable[Candle]) -> list[tuple[object, ...]]:
    """Values to compare, with zeros of different sign as different values."""
    return [
        (candle.time, *(value if value is None else float(value).hex() for value in candle[1:])) for candle in candles
    ]


# --- a slow reference implementation: recursion over one bucket


def by_definition(target: Timeframe, base: Timeframe, open_time: int, stored: dict[int, Candle]) -> Candle | None:
    """The fold of the bucket of `target` at `open_time`, directly from the definition."""
    if target == base:
        return stored.get(open_time)
    parent = parent_of(target, base)
    parts: list[Candle] = []
    for at in touched(parent, (time for time in stored if target.floor(time) == open_time)):
        part = by_definition(parent, base, at, stored)
        assert part is not None
        parts.append(part)
    if not parts:
        return None
    high, low = max(part.high for part in parts), min(part.low for part in parts)
    sums = [summed([getattr(part, name) for part in parts]) for name in SUMMED]
    return Candle(open_time, parts[0].open, high, low, parts[-1].close, *sums)  # type: ignore[arg-type]


SUMMED = ("volume", "quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")


def summed(values: list[float | None]) -> float | None:
    """The sum from left to right; None where a part is None."""
    total = values[0]
    for value in values[1:]:
        total = None if total is None or value is None else total + value
    return total


@given(base_candles(), DERIVED_OF_MINUTES)
def test_a_roll_up_follows_the_definition_bit_for_bit(candles: list[Candle], target: Timeframe) -> None:
    stored = {candle.time: candle for candle in candles}
    expected = [by_definition(target, MINUTE, at, stored) for at in touched(target, stored)]
    rolled = roll_up(candles, MINUTE, (target,))[target]
    assert bits(rolled) == bits(candle for candle in expected if candle is not None)
    for candle in rolled:
        assert check_candle(candle, target) is candle


@given(base_candles(), st.sets(DERIVED_OF_MINUTES), DERIVED_OF_MINUTES)
def test_the_bits_do_not_depend_on_which_links_are_stored(
    candles: list[Candle], switched_on: set[Timeframe], target: Timeframe
) -> None:
    """Each stored timeframe is folded from its nearest stored ancestor, the ones between in memory."""
    stored: dict[Timeframe, Sequence[Candle]] = {MINUTE: candles}
    for link in chain_to(target, MINUTE):
        if link in switched_on or link == target:
            way = (MINUTE, *chain_to(link, MINUTE))
            nearest = next(at for at in reversed(range(len(way) - 1)) if way[at] in stored)
            folded: Sequence[Candle] = stored[way[nearest]]
            for step in way[nearest + 1 :]:
                folded = fold(step, folded)
            stored[link] = folded
    assert bits(stored[target]) == bits(roll_up(candles, MINUTE, (target,))[target])


@given(base_candles(), st.lists(DERIVED_OF_MINUTES, unique=True))
def test_many_targets_at_once_equal_each_target_alone(candles: list[Candle], targets: list[Timeframe]) -> None:
    together = roll_up(candles, MINUTE, targets)
    assert list(together) == targets
    for target in targets:
        assert bits(together[target]) == bits(roll_up(candles, MINUTE, (target,))[target])


@given(base_candles(), DERIVED_OF_MINUTES)
def test_a_long_run_folds_into_what_each_bucket_folds_into_alone(candles: list[Candle], target: Timeframe) -> None:
    one_by_one: list[Candle] = []
    for at in touched(target, [candle.time for candle in candles]):
        inside = [candle for candle in candles if at <= candle.time < target.next(at)]
        one_by_one += roll_up(inside, MINUTE, (target,))[target]
    assert bits(one_by_one) == bits(roll_up(candles, MINUTE, (target,))[target])


def test_volumes_are_added_along_the_chain_and_not_straight_from_the_minutes() -> None:
    """One large minute among small ones: a direct sum loses all small ones, the chain keeps those that are summed
    first."""
    candles = [Candle(TURN + 60 * at, 1.0, 1.0, 1.0, 1.0, 2.0**53 if at == 0 else 1.0) for at in range(15)]
    assert roll_up(candles, MINUTE, (frame("5m"),))[frame("5m")][0].volume == 2.0**53
    assert roll_up(candles, MINUTE, (frame("15m"),))[frame("15m")][0].volume == 2.0**53 + 8


# --- the chain of timeframes


@pytest.mark.parametrize(
    ("target", "base", "chain"),
    [
        ("3m", "1m", "3m"),
        ("5m", "1m", "5m"),
        ("15m", "1m", "5m 15m"),
        ("30m", "1m", "5m 15m 30m"),
        ("1h", "1m", "5m 15m 1h"),
        ("2h", "1m", "5m 15m 1h 2h"),
        ("4h", "1m", "5m 15m 1h 4h"),
        ("6h", "1m", "5m 15m 1h 6h"),
        ("8h", "1m", "5m 15m 1h 4h 8h"),
        ("12h", "1m", "5m 15m 1h 4h 12h"),
        ("1d", "1m", "5m 15m 1h 4h 1d"),
        ("3d", "1m", "5m 15m 1h 4h 1d 3d"),
        ("1w", "1m", "5m 15m 1h 4h 1d 1w"),
        ("1M", "1m", "5m 15m 1h 4h 1d 1M"),
        ("1h", "5m", "15m 1h"),
        ("1d", "1h", "4h 1d"),
        ("6h", "1h", "6h"),
        ("6h", "2h", "6h"),
        ("1d", "6h", "1d"),
        ("1h", "3m", "15m 1h"),
        ("1M", "1d", "1M"),
        ("3d", "12h", "1d 3d"),
        ("4m", "1m", "4m"),
        ("6m", "1m", "3m 6m"),
        ("10m", "1m", "5m 10m"),
        ("45m", "1m", "5m 15m 45m"),
        ("90m", "1m", "5m 15m 30m 90m"),
        ("3h", "1m", "5m 15m 1h 3h"),
        ("2d", "1m", "5m 15m 1h 4h 1d 2d"),
        ("14d", "1m", "5m 15m 1h 4h 1d 14d"),
        ("30d", "1d", "30d"),
        ("10m", "5m", "10m"),
        ("90m", "3m", "15m 30m 90m"),
    ],
)
def test_the_chain_is_fixed(target: str, base: str, chain: str) -> None:
    assert chain_to(frame(target), frame(base)) == tuple(map(frame, chain.split()))


@pytest.mark.parametrize(
    ("target", "base"),
    [
        *(
            ("1m", "5m"),
            ("3m", "5m"),
            ("5m", "3m"),
            ("8h", "6h"),
            ("1w", "3d"),
            ("1M", "1w"),
            ("1M", "3d"),
            ("3d", "1w"),
        ),
        *(("12m", "5m"), ("45m", "1h"), ("6d", "3d"), ("14d", "1w"), ("1M", "2d"), ("2d", "1M")),
    ],
)
def test_a_target_that_the_base_does_not_divide_is_refused_with_a_sentence(target: str, base: str) -> None:
    with pytest.raises(Rejected, match=f"^{target} candles cannot be made of {base} candles, because"):
        chain_to(frame(target), frame(base))
    with pytest.raises(Rejected, match=target):
        roll_up([], frame(base), (frame(target),))


def test_a_base_whose_candles_open_at_other_times_is_named_as_the_reason() -> None:
    with pytest.raises(Rejected, match="14d candles cannot be made of 1w candles, because they open at other times"):
        parent_of(frame("14d"), frame("1w"))


@pytest.mark.parametrize("base", KNOWN, ids=str)
def test_timeframes_of_no_exchange_are_leaves(base: Timeframe) -> None:
    """Therefore the bits of a timeframe do not depend on the other timeframes."""
    for target in ADMITTED:
        if divides(base, target):
            parents = [base, *chain_to(target, base)[:-1]]
            assert all(parent in KNOWN for parent in parents)
            if target not in KNOWN:
                longer = [one for one in KNOWN if one.step_s > parents[-1].step_s and divides(base, one)]
                assert not any(divides(one, target) for one in longer)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("45m", "45m 15m 5m 3m 1m"),
        ("90m", "90m 30m 15m 5m 3m 1m"),
        ("4m", "4m 1m"),
        ("2d", "2d 1d 12h 8h 6h 4h 2h 1h 30m"),  # of shorter candles it has more than a hundred
        ("14d", "14d 1d 12h 8h 6h 4h"),
        ("1M", "1M 1d 12h 8h"),
        ("1w", "1w 1d 12h 8h 6h 4h 2h"),
        ("288m", "288m 3m"),
    ],
)
def test_native_candles_are_those_of_the_longest_timeframe_that_divides_theirs(target: str, parts: str) -> None:
    assert native_parts(frame(target), MINUTE) == tuple(map(frame, parts.split()))


@pytest.mark.parametrize("base", KNOWN, ids=str)
def test_the_base_itself_is_not_derived(base: Timeframe) -> None:
    with pytest.raises(Rejected, match=f"^{base} is the base timeframe"):
        parent_of(base, base)


@pytest.mark.parametrize("whole", ["2h", "1d", "1w", "1M"])
def test_a_grid_that_is_shifted_against_another_does_not_divide_it(whole: str) -> None:
    assert divides(Timeframe("1h", 3600), frame(whole))
    assert not divides(Timeframe("1h from half past", 3600, 1800), frame(whole))


def test_a_month_is_made_of_whole_days_only() -> None:
    assert not divides(Timeframe("5d", 5 * DAY_S), frame("1M"))


def test_of_equal_prices_the_first_one_counts() -> None:
    """This affects only the sign of a zero, but also in the stored bits."""
    nothing = Candle(TURN, 0.0, 0.0, -0.0, 0.0, 0.0)
    mirrored = Candle(TURN + 60, -0.0, -0.0, 0.0, -0.0, -0.0)
    expected = bits([Candle(TURN, 0.0, 0.0, -0.0, -0.0, 0.0)])
    assert bits(fold(frame("5m"), [nothing, mirrored])) == expected
    buckets = FormingBuckets(SERIES, (frame("5m"),))
    buckets.close(nothing)
    assert bits(one.candle for one in buckets.show(mirrored)) == expected


@given(TIMEFRAMES, TIMEFRAMES, st.integers(0, 4_000_000_000))
def test_each_link_divides_the_next_one_wherever_it_lies(base: Timeframe, target: Timeframe, time: int) -> None:
    try:
        chain = chain_to(target, base)
    except Rejected:
        return
    assert chain[-1] == target
    for parent, link in zip((base, *chain), chain, strict=False):
        assert parent_of(link, base) == parent
        assert parent.floor(link.floor(time)) == link.floor(time)  # starts with a whole parent candle
        assert parent.floor(link.next(link.floor(time))) == link.next(link.floor(time))  # and ends with a whole one
        assert parent.seconds < link.seconds


@given(st.lists(DERIVED_OF_MINUTES, unique=True))
def test_links_come_after_their_parents_and_each_once(targets: list[Timeframe]) -> None:
    links = links_to(tuple(targets), MINUTE)
    assert len(set(links)) == len(links)
    assert set(targets) <= set(links)
    for at, link in enumerate(links):
        assert parent_of(link, MINUTE) in (MINUTE, *links[:at])


# --- completeness


@given(base_candles(most=60), st.data())
def test_a_bucket_is_complete_when_each_minute_is_stored_or_confirmed_empty(
    candles: list[Candle], data: st.DataObject
) -> None:
    target = data.draw(st.sampled_from(("3m", "5m", "15m", "1h")).map(frame))
    at = target.floor(data.draw(st.sampled_from(candles)).time) + target.seconds * data.draw(st.integers(-1, 1))
    minutes = set(range(at, target.next(at), 60))
    stored = [candle for candle in candles if candle.time in minutes]
    lacking = sorted(minutes - {candle.time for candle in stored})
    reported = data.draw(
        st.one_of(st.just(set(lacking)), st.sets(st.sampled_from(lacking)) if lacking else st.just(set()))
    )
    empty = runs(MINUTE, sorted(reported | data.draw(st.just({at - 60, target.next(at)}))))

    bucket = derive(target, MINUTE, at, stored, empty)

    assert bucket.time == at
    assert bucket.missing == len(set(lacking) - reported)
    whole = roll_up(stored, MINUTE, (target,))[target]
    assert bucket.candle == (whole[0] if stored and not bucket.missing else None)


@given(base_candles(), DERIVED_OF_MINUTES, st.data())
def test_in_bulk_the_same_buckets_are_complete_as_one_by_one(
    candles: list[Candle], target: Timeframe, data: st.DataObject
) -> None:
    opens = touched(target, [candle.time for candle in candles])
    first, end = opens[0], target.next(opens[-1])
    holes = missing_spans(MINUTE, first, end, [candle.time for candle in candles])
    empty = [hole for hole in holes if data.draw(st.sampled_from((True, True, False)))]
    unproven = sorted(set(holes) - set(empty))

    expected: list[Candle] = []
    for at in opens:
        inside = [candle for candle in candles if at <= candle.time < target.next(at)]
        bucket = derive(target, MINUTE, at, inside, empty)
        if bucket.candle is not None:
            assert bucket.missing == 0
            expected.append(bucket.candle)

    assert bits(complete(target, roll_up(candles, MINUTE, (target,))[target], unproven)) == bits(expected)


@pytest.mark.parametrize("target", DERIVED, ids=str)
def test_a_bucket_wholly_confirmed_empty_has_no_candle_and_is_complete(target: Timeframe) -> None:
    at = target.floor(TURN)
    assert derive(target, MINUTE, at, [], [Span(at, target.next(at))]) == Bucket(at, 0, None)


@pytest.mark.parametrize("target", DERIVED, ids=str)
def test_a_bucket_without_any_candle_is_missing_all_minutes(target: Timeframe) -> None:
    at = target.floor(TURN)
    assert derive(target, MINUTE, at, []) == Bucket(at, MINUTE.count(at, target.next(at)), None)


def test_a_month_is_complete_with_its_last_minute() -> None:
    february = int(datetime(2024, 2, 1, tzinfo=UTC).timestamp())
    minutes = [Candle(february + 60 * at, 1.0, 2.0, 0.5, 1.5, 0.1) for at in range(29 * 1440)]
    assert derive(frame("1M"), MINUTE, february, minutes[:-1]).missing == 1
    whole = derive(frame("1M"), MINUTE, february, minutes)
    assert whole.missing == 0
    assert whole.candle is not None
    assert whole.candle[:5] == (february, 1.0, 2.0, 0.5, 1.5)


def test_weeks_begin_on_monday_and_three_day_candles_on_their_own_grid() -> None:
    days = [Candle(TURN + DAY_S * at, 1.0, 1.0, 1.0, 1.0, 1.0) for at in range(-2, 8)]  # from Saturday to Monday
    weeks = fold(frame("1w"), days)
    assert [(candle.time, candle.volume) for candle in weeks] == [
        (TURN - 7 * DAY_S, 2.0),
        (TURN, 7.0),
        (TURN + 7 * DAY_S, 1.0),
    ]
    threes = fold(frame("3d"), days)
    assert all(candle.time // DAY_S % 3 == 1 for candle in threes)
    assert sum(candle.volume for candle in threes) == 10.0


@given(st.lists(st.integers(0, 4_000_000_000)), DERIVED_OF_MINUTES)
def test_touched_buckets_are_ascending_and_hold_exactly_the_times(times: list[int], target: Timeframe) -> None:
    opens = touched(target, times)
    assert opens == sorted(set(opens))
    assert all(any(at <= time < target.next(at) for time in times) for at in opens)
    assert all(any(at <= time < target.next(at) for at in opens) for time in times)


# --- forming


def closed_so_far(target: Timeframe, base: Timeframe, candles: Sequence[Candle], forming: Candle) -> tuple[object, ...]:
    """The closed fold of the bucket with `forming` taken as closed."""
    return bits([roll_up([*candles, forming], base, (target,))[target][-1]])[0]


@given(base_candles(most=60), st.sets(DERIVED_OF_MINUTES, min_size=1), st.data())
def test_each_forming_candle_is_the_closed_fold_as_if_the_minute_ended_now(
    candles: list[Candle], targets: set[Timeframe], data: st.DataObject
) -> None:
    """Therefore the last forming values of a bucket equal its closed candle, bit for bit."""
    buckets = FormingBuckets(SERIES, tuple(targets))
    for at, candle in enumerate(candles):
        early = Candle(candle.time, *data.draw(VALUES))
        for forming in (early, candle):
            shown = buckets.show(forming)
            # A bucket is shown when no minute is missing between its closed part and the forming minute.
            due = MINUTE.next(candles[at - 1].time) if at else -1
            whole = {target for target in targets if max(target.floor(candle.time), due) == candle.time}
            assert {one.series for one in shown} == {SERIES.with_timeframe(target) for target in whole}
            for one in shown:
                assert bits([one.candle])[0] == closed_so_far(one.series.timeframe, MINUTE, candles[:at], forming)
        assert buckets.close(candle)
        assert buckets.show(candle) == []  # its minute is closed


@given(base_candles(most=80), base_candles(most=20), st.sets(DERIVED_OF_MINUTES, min_size=1), st.data())
def test_a_resume_gives_the_same_forming_candles_as_no_interruption(
    candles: list[Candle], others: list[Candle], targets: set[Timeframe], data: st.DataObject
) -> None:
    through = FormingBuckets(SERIES, tuple(targets))
    for candle in candles:
        through.close(candle)
    restarted = FormingBuckets(SERIES, tuple(targets))
    for candle in others:
        restarted.close(candle)
    restarted.resume(candles[-1].time, MinutesStored(candles))
    assert restarted.show(candles[-1]) == []
    assert not restarted.close(candles[-1])
    for later in data.draw(base_candles(most=5)):
        forming = later._replace(time=candles[-1].time + data.draw(st.sampled_from((60, 60, 120))))
        assert [(one.series, bits([one.candle])) for one in restarted.show(forming)] == [
            (one.series, bits([one.candle])) for one in through.show(forming)
        ]
        assert restarted.close(forming) == through.close(forming)


class MinutesStored:
    """A store of minutes without derived candles, which records its reads."""

    def __init__(self, candles: Sequence[Candle]) -> None:
        self.candles = candles
        self.asked: list[tuple[Timeframe, int]] = []

    def __call__(self, timeframe: Timeframe, first: int, end: int) -> Sequence[Candle]:
        assert timeframe.is_open(first)
        assert timeframe.is_open(end)
        self.asked.append((timeframe, timeframe.count(first, end)))
        inside = [candle for candle in self.candles if first <= candle.time < end]
        return inside if timeframe == MINUTE else roll_up(inside, MINUTE, (timeframe,))[timeframe]


@given(base_candles(most=60), st.data())
def test_a_late_candle_or_a_correction_in_a_bucket_in_progress_asks_for_resume(
    candles: list[Candle], data: st.DataObject
) -> None:
    targets = (frame("5m"), frame("1h"))
    buckets = FormingBuckets(SERIES, targets)
    for candle in candles:
        buckets.close(candle)
    head = candles[-1].time
    late = Candle(head - 60 * data.draw(st.integers(0, 130)), *data.draw(VALUES))
    repaired = sorted({candle.time: candle for candle in (*candles, late)}.values())

    in_progress = late.time >= frame("1h").floor(head)
    assert buckets.close(late) is not in_progress
    if in_progress:
        buckets.resume(head, MinutesStored(repaired))
    forming = candles[0]._replace(time=head + 60)
    for one in buckets.show(forming):
        assert bits([one.candle])[0] == closed_so_far(one.series.timeframe, MINUTE, repaired, forming)


def test_a_restart_reads_less_than_one_bucket_of_each_link() -> None:
    store = MinutesStored([])
    buckets = FormingBuckets(SERIES, DERIVED)
    buckets.resume(TURN - 60, store)  # the last minute of a month: no further minute can be required
    assert sum(count for _, count in store.asked) < 100
    assert max(count for _, count in store.asked) == 30
    store.asked.clear()
    buckets.resume(None, store)
    assert store.asked == []
    begun = [target for target in DERIVED if target.floor(TURN) == TURN]
    assert len(buckets.show(Candle(TURN, 1.0, 1.0, 1.0, 1.0, 1.0))) == len(begun) > 10


def test_a_forming_target_that_the_base_does_not_divide_is_refused() -> None:
    with pytest.raises(Rejected, match="3m does not divide 5m"):
        FormingBuckets(SERIES.with_timeframe(frame("3m")), (frame("5m"),))

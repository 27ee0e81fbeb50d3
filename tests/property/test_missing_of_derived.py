"""Missing candles of derived series, and native candles that computed ones replace, by values and on a real store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from klinesync.core import gaps
from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.history.missing import MAX_NATIVE, missing_of_derived
from klinesync.market_data.verify import verify
from klinesync.pipelines.derived_step import NATIVE, DerivedStep, write_closed
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.derived_candles import roll_up
from support.pauses import one_step

BASE = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTE, FIVE, QUARTER, HOUR, FOUR, DAY = map(Timeframe.parse, ("1m", "5m", "15m", "1h", "4h", "1d"))
HOURS = BASE.with_timeframe(HOUR)
DAYS = BASE.with_timeframe(DAY)
FIVES = BASE.with_timeframe(FIVE)
T0 = 1_699_920_000  # midnight
AT = 1_800_000_000


def minutes(first: int, end: int) -> list[Candle]:
    """Volumes whose sum depends on the order."""
    return [Candle(T0 + 60 * at, 2.0, 3.0, 1.0, 2.5, 0.1 + at % 7 / 10) for at in range(first, end)]


def hour(number: int, volume: float = 0.0) -> Candle:
    """The exchange's own candle, with a volume that is rounded differently, or with the given volume."""
    rows = minutes(60 * number, 60 * number + 60)
    total = sum(sorted(row.volume for row in rows))
    return Candle(T0 + 3600 * number, 2.0, 3.0, 1.0, 2.5, volume or total * (1 + 1e-12))


def write(store: CandleStore, step: DerivedStep, rows: Sequence[Candle]) -> list[frozenset[int]]:
    """Write base candles, with the derived ones; the revised candles of each derived series."""
    applied = write_closed(store, BASE, rows, Origin("rest", AT))
    return [one.revised for one in step.advance(store, BASE, applied, (), AT)]


async def in_store(path: Path, work) -> object:  # type: ignore[no-untyped-def]
    async with InThreadSqliteDatabase(path, pause=one_step) as database:
        return await database.write(work)


async def test_native_candles_are_written_where_the_base_cannot_give_them_and_nowhere_else(tmp_path: Path) -> None:
    step = DerivedStep(MINUTE, [FIVE, QUARTER, HOUR])

    def work(store: CandleStore) -> None:
        assert step.write_native(store, HOURS, [hour(0)], (), "", AT).candles == (), "there is no base yet"
        write(store, step, minutes(10 * 60 + 30, 15 * 60 + 10))
        given = [hour(number, 1e6) for number in range(16)]
        applied = step.write_native(store, HOURS, given, (), "", AT)
        assert [candle.time for candle in applied.candles] == [T0 + 3600 * number for number in range(11)]
        stored = store.between(HOURS, 0, MAX_TIME)
        assert [candle.time for candle in stored] == [T0 + 3600 * number for number in range(15)]
        assert stored[11:] == roll_up(minutes(11 * 60, 15 * 60), MINUTE, (HOUR,))[HOUR]
        assert store.gaps(HOURS) == []
        assert store.derived_of(BASE) == [HOURS] or HOURS in store.derived_of(BASE)
        assert step.write_native(store, HOURS, given, (), "", AT).candles == (), "the same again is nothing"

    await in_store(tmp_path / "store.sqlite", work)


async def test_base_history_takes_the_place_of_native_candles_and_only_what_differs_counts_as_revised(
    tmp_path: Path,
) -> None:
    step = DerivedStep(MINUTE, [HOUR])

    def work(store: CandleStore) -> None:
        write(store, step, minutes(10 * 60, 15 * 60))
        natives = [hour(number, 123.0 if number == 7 else 0.0) for number in range(10)]
        step.write_native(store, HOURS, natives, (), "", AT)
        rolled = roll_up(minutes(5 * 60, 10 * 60), MINUTE, (HOUR,))[HOUR]
        assert [native for native in natives[5:] if native in rolled] == [], "their bits differ"
        (revised,) = write(store, step, minutes(5 * 60, 10 * 60))
        assert revised == {T0 + 7 * 3600}
        assert store.between(HOURS, T0 + 5 * 3600, T0 + 10 * 3600) == rolled
        assert store.between(HOURS, 0, T0 + 5 * 3600) == natives[:5]

    await in_store(tmp_path / "store.sqlite", work)
    with SqliteReader(tmp_path / "store.sqlite") as reader:
        found = {audit.series: (audit.native, audit.kinds) for audit in verify(reader, MINUTE, [HOUR])}
    assert found == {BASE: (0, {}), HOURS: (5, {})}


async def test_a_hole_between_native_candles_is_confirmed_by_the_exchange_and_verify_finds_a_wrong_one(
    tmp_path: Path,
) -> None:
    step, path = DerivedStep(MINUTE, [HOUR]), tmp_path / "store.sqlite"

    def work(store: CandleStore) -> None:
        write(store, step, minutes(10 * 60 + 30, 13 * 60))
        rows = [hour(0), hour(1), hour(4), *(hour(number) for number in range(5, 10)), hour(10)]
        step.write_native(store, HOURS, rows, [Span(T0 + 2 * 3600, T0 + 4 * 3600)], "a test says so", AT)
        (gap,) = store.gaps(HOURS)
        assert (gap.start, gap.end, gap.state) == (T0 + 2 * 3600, T0 + 4 * 3600, GapState.CONFIRMED_EMPTY)

    def spoil(store: CandleStore) -> None:
        # The base has half an hour of the bucket, with higher prices.
        store.write(HOURS, [hour(10)._replace(high=2.9)], Origin(NATIVE, AT, BASE))

    await in_store(path, work)
    with SqliteReader(path) as reader:
        assert [audit.kinds for audit in verify(reader, MINUTE, [HOUR])] == [{}, {}]
    await in_store(path, spoil)
    with SqliteReader(path) as reader:
        assert [audit.kinds for audit in verify(reader, MINUTE, [HOUR])] == [{}, {"derived_unexpected": 1}]


async def test_a_native_candle_of_an_hour_that_proves_to_be_empty_stays_in_whatever_order_they_came(
    tmp_path: Path,
) -> None:
    """The exchange has a candle for an hour and none of its minutes. Longer candles are folded from minutes alone."""
    step = DerivedStep(MINUTE, [HOUR, FOUR])
    night = [*minutes(0, 60), *minutes(120, 240)]
    empty = Span(T0 + 3600, T0 + 7200)
    kept: list[list[Candle]] = []

    def confirm(store: CandleStore) -> None:
        store.change_gaps(BASE, gaps.confirm_empty(store.gaps(BASE), [empty], "a test says so", AT))
        step.advance(store, BASE, Applied(BASE, (), frozenset()), [empty], AT)

    def native_first(store: CandleStore) -> None:
        write(store, step, night)
        step.write_native(store, HOURS, [hour(1, 1e6)], (), "", AT)
        confirm(store)

    def confirmed_first(store: CandleStore) -> None:
        write(store, step, night)
        confirm(store)
        step.write_native(store, HOURS, [hour(1, 1e6)], (), "", AT)

    def later_than_that(store: CandleStore) -> None:
        native_first(store)
        write(store, step, [night[70]._replace(close=1.5)])  # a correction, which folds the four hours again

    for number, work in enumerate((native_first, confirmed_first, later_than_that)):
        path = tmp_path / f"{number}.sqlite"
        await in_store(path, work)
        with SqliteReader(path) as reader:
            stored = reader.read(lambda look: look.between(HOURS, 0, MAX_TIME))
            assert reader.read(lambda look: look.gaps(HOURS)) == []
            fours = reader.read(lambda look: look.between(BASE.with_timeframe(FOUR), 0, MAX_TIME))
            found = {audit.series: (audit.native, audit.kinds) for audit in verify(reader, MINUTE, [HOUR, FOUR])}
        kept.append(stored)
        assert [one.time for one in stored] == [T0 + 3600 * number for number in range(4)]
        assert stored[1] == hour(1, 1e6)
        assert [candle.volume < 1000 for candle in fours] == [True]
        assert found == {BASE: (0, {}), HOURS: (1, {}), BASE.with_timeframe(FOUR): (0, {})}
    assert kept[0] == kept[1]


SERIES = st.sampled_from(
    [BASE.with_timeframe(frame) for frame in (FIVE, HOUR, DAY, *map(Timeframe.parse, ("45m", "90m", "2d", "1M")))]
)


@given(
    series=SERIES,
    first=st.integers(0, 200_000),
    count=st.integers(1, 20_000),
    own=st.none() | st.integers(0, 2000),
    page=st.none() | st.integers(0, 400_000),
    base_candles=st.integers(0, 5000),
    natives=st.sampled_from([0, 1, 500]),
    kept=st.integers(0, 100_000),
)
def test_missing_native_candles_lie_before_the_base_and_are_limited(
    series: SeriesId,
    first: int,
    count: int,
    own: int | None,
    page: int | None,
    base_candles: int,
    natives: int,
    kept: int,
) -> None:
    frame = series.timeframe
    base = Span(T0 + 60 * first, T0 + 60 * (first + count))
    edge = frame.floor(base.end)
    stored = None if own is None else Span(frame.shift(edge, -own - 1), edge)
    kept_from = T0 + 60 * min(kept, first)
    found = missing_of_derived(
        series,
        MINUTE,
        base,
        stored,
        [],
        None if page is None else T0 + 60 * page,
        base.end + 30.0,
        base_candles=base_candles,
        native_candles=natives,
        kept_from=kept_from,
    )
    if found.base is not None:
        assert found.base.end == base.start
        assert found.base.start >= kept_from
        assert MINUTE.count(found.base.start, base.end) <= base_candles
    if found.native is None:
        return
    assert natives
    start, end = found.native
    assert frame.is_open(start)
    assert frame.is_open(end)
    assert kept_from <= start < end <= frame.next(frame.floor(base.start))
    assert end <= edge, "only what is over"
    assert frame.count(start, end) <= MAX_NATIVE + natives
    if stored is not None:
        assert not (stored.start < end and start < stored.end), "nothing is read twice"


def test_an_open_bucket_at_the_beginning_of_the_base_is_looked_up_when_it_closes() -> None:
    base = Span(T0 + 7200, T0 + 7200 + 100 * 60)
    found = missing_of_derived(
        BASE.with_timeframe(DAY), MINUTE, base, None, [], None, base.end + 1.0, native_candles=500
    )
    native = Span(T0 - 499 * 86_400, T0)
    assert found.native == native
    assert found.again_at == T0 + 86_400
    # The bucket is requested then, and again later: after the base has newer buckets, or after a restart.
    day = Span(T0, T0 + 86_400)
    for days, stored, holes in ((1, native, []), (2, native, []), (3, Span(native.start, T0 + 3 * 86_400), [day])):
        base = Span(base.start, T0 + days * 86_400 + 300)
        found = missing_of_derived(
            BASE.with_timeframe(DAY), MINUTE, base, stored, holes, None, base.end + 1.0, native_candles=500
        )
        assert found.native == day

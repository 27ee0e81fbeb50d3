"""The write path's derived candles and gap ledger against an oracle: for any order, batches, repairs, corrections and
flags, the store is a function of the final base candles and confirmed gaps."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from klinesync.core.candle import Candle
from klinesync.core.derived import touched
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.pipelines.submissions import Empty, Submission
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from support.candles import FLOWS, stored_over
from support.derived_candles import derive
from support.pauses import no_pause

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTE = SERIES.timeframe
TARGETS = [Timeframe.parse(code) for code in ("3m", "5m", "10m", "15m", "30m", "45m", "1h", "90m", "2h")]
START = 1_700_006_400  # whole buckets of every target begin at this time


def candle(minute: int, version: int) -> Candle:
    base = 1.0 + (minute * 7919 % 101) / 10 + version
    flow = FLOWS[(minute // 20 + version) % len(FLOWS)]
    volume = 0.1 * (minute % 13) + version + 4.0  # more than a taker-buy part
    return Candle(START + minute * 60, base, base + 0.3, base - 0.7, base + 0.1, volume, *flow)


Step = tuple[str, list[tuple[int, int]], list[Timeframe]]
MINUTES = st.integers(0, 260)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "run", "scatter", "empty", "restart", "switch"]),
        st.lists(st.tuples(MINUTES, st.integers(1, 40)), min_size=1, max_size=3),
        st.lists(st.sampled_from(TARGETS), unique=True),
    ),
    min_size=1,
    max_size=8,
)


class World:
    """A pipeline over a store, fed without its queue; targets may change at a restart."""

    def __init__(self, database: InThreadSqliteDatabase) -> None:
        self.database = database
        self.version = 0
        self.base: dict[int, Candle] = {}
        self.confirmed: set[int] = set()
        self.use(TARGETS)

    def use(self, targets: list[Timeframe]) -> None:
        self.targets = targets
        self.step = DerivedStep(MINUTE, targets)
        self.pipeline = IngestPipeline(self.database, self.step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)

    async def submit(self, candles: list[Candle], empty: Empty | None = None) -> None:
        # `written` has no reader here: `apply` never resolves it.
        submission = Submission(SERIES, candles, "test", empty, live=False, written=None)  # type: ignore[arg-type]
        await self.database.write(lambda store: self.pipeline.apply(store, [submission]))

    async def take(self, kind: str, spans: list[tuple[int, int]]) -> None:
        self.version += 1
        if kind == "empty":
            await self.confirm([Span(START + at * 60, START + (at + count) * 60) for at, count in spans])
            return
        if kind == "run":
            minutes = {minute for at, count in spans for minute in range(at, at + count)}
        else:
            minutes = {at for at, _ in spans}
        rows = [candle(minute, self.version if minute % 5 == 0 else 0) for minute in sorted(minutes)]
        if self.version % 3 == 0:  # equal prices and volumes, with more or fewer order-flow values
            rows = [Candle(*row.ohlcv, *FLOWS[self.version % 5]) for row in rows]
        await self.submit(rows)
        self.base.update((row.time, stored_over(self.base.get(row.time), row)) for row in rows)
        self.confirmed -= {row.time for row in rows}

    async def confirm(self, spans: list[Span]) -> None:
        """Only gaps can be confirmed."""
        if not self.base:
            return
        await self.submit([], Empty(spans[:1], "a test says so"))
        for span in spans[:1]:
            for time in range(span.start, span.end, 60):
                if min(self.base) < time < max(self.base) and time not in self.base:
                    self.confirmed.add(time)

    def expected(self, target: Timeframe) -> list[Candle]:
        """The oracle: each bucket separately, from the model's candles."""
        found = []
        for open_ in touched(target, self.base):
            bucket = [self.base[time] for time in sorted(self.base) if open_ <= time < target.next(open_)]
            empty = [Span(time, time + 60) for time in sorted(self.confirmed)]
            derived = derive(target, MINUTE, open_, bucket, empty).candle
            if derived is not None:
                found.append(derived)
        return found

    def missing(self) -> list[int]:
        return (
            []
            if not self.base
            else [time for time in range(min(self.base), max(self.base), 60) if time not in self.base]
        )


@given(STEPS)
async def test_stored_candles_are_a_function_of_the_final_base_candles(steps: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        async with InThreadSqliteDatabase(Path(folder) / "store.sqlite", pause=no_pause) as database:
            world = World(database)
            for kind, spans, targets in steps:
                if kind in ("restart", "switch"):
                    world.use(targets)
                    if kind == "restart":  # otherwise live candles could overtake the refresh
                        await world.pipeline.refresh_series(SERIES)
                else:
                    await world.take(kind, spans)
            await world.pipeline.refresh_series(SERIES)

            def look(store: CandleStore) -> None:
                for target in world.targets:
                    stored = store.newest(SERIES.with_timeframe(target), 10_000)
                    assert stored == world.expected(target), target
                # Timeframes that are no longer targets may lack candles, but are never wrong.
                for derived in store.derived_of(SERIES):
                    stale = set(store.newest(derived, 10_000)) - set(world.expected(derived.timeframe))
                    assert not stale, derived
                check_ledger(store, world)

            await database.read(look)


def check_ledger(store: CandleStore, world: World) -> None:
    """The ledger has every missing minute with its state, and no other time."""
    ledger: dict[int, GapState] = {}
    for gap in store.gaps(SERIES):
        assert (gap.proof is not None) == (gap.state is GapState.CONFIRMED_EMPTY)
        ledger.update(dict.fromkeys(range(gap.start, gap.end, 60), gap.state))
    assert ledger == {
        time: GapState.CONFIRMED_EMPTY if time in world.confirmed else GapState.UNKNOWN for time in world.missing()
    }


async def test_wholly_empty_buckets_are_confirmed_gaps_of_the_derived_series(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        await world.submit([candle(minute, 0) for minute in range(12)])
        hole = Span(START + 12 * 60, START + 33 * 60)
        await world.submit([candle(minute, 0) for minute in range(33, 60)])
        await world.submit([], Empty([hole], "a test says so"))

        def look(store: CandleStore) -> None:
            five = SERIES.with_timeframe(Timeframe.parse("5m"))
            times = [(one.time - START) // 60 for one in store.newest(five, 100)]
            assert times == [0, 5, 10, 30, 35, 40, 45, 50, 55]
            (gap,) = store.gaps(five)
            assert gap == Gap(
                START + 15 * 60,
                START + 30 * 60,
                GapState.CONFIRMED_EMPTY,
                "its base is confirmed empty",
                1_800_000_000,
            )

        await database.read(look)


async def test_partly_lost_buckets_are_lost_until_all_base_candles_are_stored(tmp_path: Path) -> None:
    five = SERIES.with_timeframe(Timeframe.parse("5m"))
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        await world.submit([candle(minute, 0) for minute in (*range(12), *range(33, 60))])
        await world.submit([], Empty([Span(START + 12 * 60, START + 33 * 60)], "the venue keeps no more", lost=True))

        def lost(store: CandleStore) -> list[tuple[int, int, str, str | None]]:
            ledger = store.gaps(five)
            return [((gap.start - START) // 60, (gap.end - START) // 60, gap.state.value, gap.proof) for gap in ledger]

        assert await database.read(lost) == [(10, 35, "lost", "its base is lost in part")]
        await world.submit([candle(minute, 0) for minute in range(12, 33)])
        assert await database.read(lost) == []


async def test_a_correction_stores_a_revision_in_the_base_and_in_derived_series(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        await world.submit([candle(minute, 0) for minute in range(60)])
        await world.submit([candle(7, 3)])
        await world.submit([candle(7, 3)])

        def look(store: CandleStore) -> None:
            (revision,) = store.revisions(SERIES)
            assert revision.was == candle(7, 0)
            assert (revision.revised_at, revision.source) == (1_800_000_000, "test")
            for target in [one for one in TARGETS if one.seconds <= 3600]:
                (revision,) = store.revisions(SERIES.with_timeframe(target))
                assert revision.source == "derived"
                assert revision.was.time == target.floor(START + 7 * 60)

        await database.read(look)


@pytest.mark.parametrize("outage_buckets", [0, 1, 2])
async def test_a_link_that_is_not_stored_is_folded_from_its_nearest_stored_ancestor(
    outage_buckets: int, tmp_path: Path
) -> None:
    """90m is folded from 30m; without 30m from 15m candles, never from ninety minutes, also when the exchange had an
    outage."""
    ninety, start = Timeframe.parse("90m"), START
    outage = Span(START + 900, START + 900 * (1 + outage_buckets))
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step = DerivedStep(MINUTE, [Timeframe.parse("15m"), ninety])
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        rows = [row for minute in range(90) if not outage.holds((row := candle(minute, 0)).time)]
        parts = rows[:-15], rows[-15:-1], rows[-1:]
        empty = Empty([outage] if outage_buckets else [], "a test says so")
        read: list[tuple[SeriesId, int]] = []

        def apply(store: CandleStore) -> None:
            between = store.between

            def noting(series: SeriesId, first: int, end: int) -> list[Candle]:
                found = between(series, first, end)
                read.append((series, len(found)))
                return found

            for part in parts:
                read.clear()
                submission = Submission(SERIES, part, "test", empty, live=False, written=None)  # type: ignore[arg-type]
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(store, "between", noting)
                    pipeline.apply(store, [submission])
            (stored,) = store.newest(SERIES.with_timeframe(ninety), 10)
            assert stored == derive(ninety, MINUTE, start, rows, empty.spans).candle

        await database.write(apply)
        assert read == [(SERIES, 15), (SERIES.with_timeframe(Timeframe.parse("15m")), 6 - outage_buckets)]


FLOW = (8.0, 3, 0.0, 4.0)
FIVE = SERIES.with_timeframe(Timeframe.parse("5m"))
HOUR = SERIES.with_timeframe(Timeframe.parse("1h"))


async def newest(world: World, series: SeriesId) -> Candle:
    return (await world.database.read(lambda store: store.newest(series, 1)))[0]


async def test_order_flow_that_is_filled_in_minute_by_minute_is_summed_once_it_is_whole(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        bare = [Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.0, 1.0) for at in range(62)]
        await world.submit(bare)
        hour = await newest(world, HOUR)
        for at, row in enumerate(bare[:60]):
            assert (await newest(world, HOUR)) == hour, at
            await world.submit([Candle(*row.ohlcv, *FLOW)])
        assert (await newest(world, HOUR)) == Candle(*hour.ohlcv, 480.0, 180, 0.0, 240.0)
        assert (await newest(world, FIVE)).flow == (40.0, 15, 0.0, 20.0)
        assert await database.read(lambda store: store.revisions(HOUR) + store.revisions(SERIES)) == []


async def test_order_flow_that_a_corrected_minute_lacks_is_taken_from_its_buckets(tmp_path: Path) -> None:
    """The correction does not show in the bucket's prices, and is no revision there."""
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        rows = [Candle(START + 60 * at, 1.0, 2.0, 0.5, 1.0, 1.0, *FLOW) for at in range(60)]
        await world.submit(rows)
        hour = await newest(world, HOUR)
        await world.submit([Candle(*rows[30].ohlcv)._replace(close=1.5)])
        assert (await newest(world, HOUR)) == Candle(*hour.ohlcv)
        assert await database.read(lambda store: store.revisions(HOUR)) == []
        assert len(await database.read(lambda store: store.revisions(SERIES))) == 1


class Joined(frozenset[int]):
    """A set that counts its unions with other sets."""

    times = 0

    def __or__(self, other: object) -> Joined:
        self.times += 1
        return self


async def test_the_cost_of_late_candles_is_linear_in_their_number(tmp_path: Path) -> None:
    """A set that was joined once per candle blocked the writer for seconds at 20,000 candles."""
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        step, late = DerivedStep(MINUTE, TARGETS), Joined(START + 60 * at for at in range(50))

        def change(store: CandleStore) -> None:
            store.write(SERIES, [candle(50, 0)], Origin("test", 0))
            applied = store.write(SERIES, [candle(at, 0) for at in range(50)], Origin("test", 0))
            assert applied.revised == late
            step.advance(store, SERIES, replace(applied, revised=late), [], 0)

        await database.write(change)
    assert late.times == 1

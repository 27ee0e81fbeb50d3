"""Retention: old candles are trimmed oldest first, in small transactions, and whole buckets remain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.market_data import retention
from klinesync.market_data.retention import Retention, Trimming, cut_of, old, trim
from klinesync.market_data.verify import verify
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep, no_ledger
from klinesync.pipelines.submissions import Empty
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, StoreDamaged
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.pauses import no_pause
from support.thorough import examples
from support.timeframes import TIMEFRAMES

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1h")  # hours, so that years are quick
HOUR = SERIES.timeframe
TARGETS = tuple(Timeframe.parse(code) for code in ("3h", "4h", "1d", "2d", "3d", "1w", "1M"))
START = 1_704_067_200  # 2024-01-01, a Monday
DAYS = 100


def at(hour: int) -> int:
    return START + hour * 3600


def candle(hour: int, close: float = 1.5) -> Candle:
    return Candle(at(hour), 1.0, 2.0, 0.5, close, float(hour % 17))


class World:
    """A store that the pipeline writes to."""

    def __init__(self, database: InThreadSqliteDatabase) -> None:
        self.database = database
        self.published = 0
        self.step = DerivedStep(HOUR, TARGETS)
        self.pipeline = IngestPipeline(database, self.step, no_ledger(), self.publish, lambda: 1_800_000_000.0)

    def publish(self, _: object) -> None:
        self.published += 1

    async def write(self, candles: Sequence[Candle], empty: Sequence[Span] = ()) -> None:
        work = asyncio.create_task(self.pipeline.run())
        await self.pipeline.submit(SERIES, candles, "test", Empty(empty, "a test says so"))
        work.cancel()
        await asyncio.wait([work])

    def sound(self) -> None:
        """Every stored candle follows from the base, and none is missing."""
        with SqliteReader(self.database.path) as store:
            for audit in verify(store, HOUR, TARGETS):
                assert not audit.kinds, audit.shown


@given(st.integers(0, 10**9), st.integers(1, 4000), st.sets(TIMEFRAMES))
def test_only_older_candles_and_wholly_older_buckets_are_trimmed(head: int, days: int, derived: set[Timeframe]) -> None:
    horizon = head - days * DAY_S
    if horizon < 0:
        return
    cut = cut_of(head, days, derived)
    assert cut <= horizon
    assert cut % DAY_S == 0 or not derived
    for timeframe in derived:
        assert cut <= timeframe.floor(horizon)
    longest = max([DAY_S, *(timeframe.seconds for timeframe in derived)])
    assert horizon - cut < longest + 2 * DAY_S


async def test_remaining_derived_candles_have_their_base_and_nothing_is_published(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        head = 24 * 300
        holes = [Span(at(24 * 20 + 5), at(24 * 20 + 9)), Span(at(24 * 200), at(24 * 203))]
        missing = {*range(24 * 20 + 5, 24 * 20 + 9), *range(24 * 200, 24 * 203), 24 * 60}
        await world.write([candle(hour) for hour in range(head + 1) if hour not in missing], holes)
        await world.write([candle(3, 1.25), candle(head - 1, 1.25)])
        world.sound()
        before = await database.read(_everything)
        published = world.published

        await Retention(database, no_ledger(), HOUR, TARGETS, DAYS, Trimming(candles=100, pause_s=0.0)).trim()
        world.sound()
        assert world.published == published
        after = await database.read(_everything)
        cut = cut_of(at(head), DAYS, TARGETS)
        # All candles of the kept days remain, and of the month, the week and the three days in which the kept days
        # begin.
        first = min(row.time for row in before[SERIES][0] if row.time >= cut)
        for series, (candles, ledger, revisions) in before.items():
            assert after[series][0] == [row for row in candles if row.time >= first], series
            assert after[series][1] == [gap for gap in ledger if gap.start >= first], series
            assert after[series][2] == [revision for revision in revisions if revision >= first], series
        assert any(len(candles) < len(before[series][0]) for series, (candles, _, _) in after.items())
        assert after[SERIES][2] == [at(head - 1)]

        # A correction of the oldest remaining candle and the end of a bucket still update derived candles.
        await world.write([candle((first - START) // 3600, 1.75)])
        await world.write([candle(hour) for hour in range(head + 1, head + 24 * 40)])
        world.sound()
        # Nothing more can be trimmed, and a restart does not restore candles.
        await world.pipeline.refresh_series(SERIES)
        assert (await database.read(lambda store: store.first(SERIES))) == first


async def test_a_gap_at_the_cut_is_trimmed_with_the_candles_before(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        head = 24 * 40
        cut = (cut_of(at(head), 2, (Timeframe.parse("1M"),)) - START) // 3600
        hole = Span(at(cut - 3), at(cut + 30))
        await world.write([candle(hour) for hour in range(head) if not hole.start <= at(hour) < hole.end], [hole])
        await Retention(database, no_ledger(), HOUR, TARGETS, 2).trim()
        world.sound()
        assert await database.read(lambda store: store.first(SERIES)) == hole.end
        assert await database.read(lambda store: store.gaps(SERIES)) == []


@settings(max_examples=examples(15))
@given(st.integers(1, 60), st.integers(150, 24 * 70), st.lists(st.tuples(st.integers(0, 1600), st.integers(1, 200))))
async def test_remaining_derived_candles_have_their_base_after_an_interruption_at_any_point(
    days: int, most: int, holes: list[tuple[int, int]]
) -> None:
    missing = {hour for start, count in holes for hour in range(start, start + count)}
    with TemporaryDirectory() as folder:
        async with InThreadSqliteDatabase(Path(folder) / "store.sqlite", pause=no_pause) as database:
            world = World(database)
            await world.write([candle(hour) for hour in range(24 * 70) if hour not in missing or hour == 24 * 70 - 1])
            spans = [gap.span for gap in await database.read(lambda store: store.gaps(SERIES))]
            await world.write([], spans[::2])
            for one in await database.read(lambda store: list(old(store, HOUR, TARGETS, days))):
                more = True
                while more:
                    more = await database.write(lambda store, one=one: trim(store, no_ledger(), one, most))  # type: ignore[misc]
                    world.sound()
            assert not await database.read(lambda store: list(old(store, HOUR, TARGETS, days)))


async def test_a_transaction_is_bounded(tmp_path: Path) -> None:
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        world = World(database)
        await world.write([candle(hour) for hour in range(24 * 100)])
        (one,) = await database.read(lambda store: list(old(store, HOUR, TARGETS, 30)))
        counts = [await database.read(_count)]
        more = True
        while more:
            more = await database.write(lambda store: trim(store, no_ledger(), one, 50))
            counts.append(await database.read(_count))
        assert len(counts) > 10
        assert all(0 < before - after <= 100 for before, after in pairwise(counts))


async def test_age_is_counted_from_the_head_of_each_series(tmp_path: Path) -> None:
    other = SeriesId.parse("binance:futures:BTC/USDT:1m")
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        rows = [Candle(START + day * DAY_S, 1, 1, 1, 1, 1) for day in range(10)]
        await database.write(lambda store: store.write(other, rows, Origin("test", 0)))
        await database.write(lambda store: store.write(SERIES, rows[:4], Origin("test", 0)))
        await Retention(database, no_ledger(), Timeframe.parse("1m"), (), 5).trim()
        assert await database.read(lambda store: store.newest(other, 99)) == rows[4:]
        assert await database.read(lambda store: store.newest(SERIES, 99)) == rows[:4]


async def test_damaged_candles_are_trimmed_and_a_failure_does_not_delay_other_series(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    first, second = SERIES, SeriesId.parse("binance:spot:ETH/USDT:1h")
    rows = [candle(hour) for hour in range(24 * 100)]
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        for series in (first, second):
            await database.write(lambda store, to=series: store.write(to, rows, Origin("test", 0)))  # type: ignore[misc]
    connection = apsw.Connection(str(path))
    connection.execute(
        "UPDATE candle_chunk SET candles = zeroblob(5)"
        " WHERE chunk_id = (SELECT chunk_id FROM candle_chunk ORDER BY chunk_id LIMIT 1 OFFSET 1)"
    )
    connection.close()
    for days, count in ((60, 24 * 60), (30, 24 * 30)):
        async with InThreadSqliteDatabase(path, pause=no_pause) as database:
            await Retention(database, no_ledger(), HOUR, (), days).trim()
            for series in (first, second):
                left = await database.read(lambda store, of=series: store.oldest(of, 10_000, since=-1))  # type: ignore[misc]
                assert len(left) <= count + 24
                assert left == rows[-len(left) :]


async def test_a_series_that_cannot_be_trimmed_does_not_delay_other_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = SERIES, SeriesId.parse("binance:spot:ETH/USDT:1h")
    rows = [candle(hour) for hour in range(24 * 100)]

    def broken(store: CandleStore, ledger: LedgerStep, one: retention.Old, most: int) -> bool:
        if one.series == first:
            raise StoreDamaged(Damage(first, None, "a page is damaged"))
        return trim(store, ledger, one, most)

    monkeypatch.setattr(retention, "trim", broken)
    async with InThreadSqliteDatabase(tmp_path / "store.sqlite", pause=no_pause) as database:
        for series in (first, second):
            await database.write(lambda store, to=series: store.write(to, rows, Origin("test", 0)))  # type: ignore[misc]
        await Retention(database, no_ledger(), HOUR, (), 60).trim()
        assert await database.read(lambda store: store.first(first)) == rows[0].time
        assert (await database.read(lambda store: store.first(second)) or 0) > rows[0].time


Everything = dict[SeriesId, tuple[list[Candle], list[Gap], list[int]]]


def _everything(store: CandleStore) -> Everything:
    return {
        series: (
            store.newest(series, 1 << 30),
            store.gaps(series),
            [revision.was.time for revision in store.revisions(series)],
        )
        for series in store.series()
    }


def _count(store: CandleStore) -> int:
    return sum(store.count_after(series, -1, 1 << 30) for series in store.series())

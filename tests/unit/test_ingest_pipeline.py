"""IngestPipeline: group commit, publish after commit in commit order, nothing published that was not stored."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import apsw
import pytest

from klinesync.core.candle import MAX_TIME, Applied, Candle
from klinesync.core.errors import BadCandle, DerivedSeries, StoreError
from klinesync.core.gaps import NOT_LISTED_BEFORE, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.factor.graph import FactorGraph
from klinesync.market_data.store_healer import HealTimings, Sources, StoreHealer
from klinesync.market_data.store_scrub import ScrubLimits, StoreScrub
from klinesync.overlay.graph import OverlayGraph
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import PACK_AFTER_S, IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep, no_ledger
from klinesync.pipelines.submissions import Empty, QueueLimits, Submission
from klinesync.storage import page_checksums
from klinesync.storage.candles import CandleStore
from klinesync.storage.chunks import CHUNK_CANDLES, chunk_of
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.database import Database
from klinesync.storage.sqlite import InThreadSqliteDatabase, SqliteDatabase
from sim.virtual_loop import VirtualLoop
from support.clocks import ManualClock

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")


def candle(minute: int) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, 1.0, 1.0)


class Published:
    """The publications, each with the stored candles at that moment."""

    def __init__(self) -> None:
        self.applied: list[Applied] = []

    def __call__(self, applied: Applied) -> None:
        self.applied.append(applied)

    def times(self, series: SeriesId) -> list[int]:
        return [one.time // 60 for applied in self.applied if applied.series == series for one in applied.candles]


NOTHING_DERIVED = DerivedStep(BTC.timeframe, [])


def make_pipeline(database: Database, published: Published) -> IngestPipeline:
    return IngestPipeline(database, NOTHING_DERIVED, no_ledger(), published, lambda: 1_700_000_000.0)


@asynccontextmanager
async def running(path: Path, published: Published) -> AsyncIterator[tuple[IngestPipeline, SqliteDatabase]]:
    async with SqliteDatabase(path / "store.sqlite") as database:
        pipeline = make_pipeline(database, published)
        task = asyncio.create_task(pipeline.run())
        try:
            yield pipeline, database
        finally:
            task.cancel()
            await asyncio.wait([task])
            await pipeline.drain()


def offered(pipeline: IngestPipeline, series: SeriesId, *candles: Candle) -> asyncio.Future[Applied]:
    """Offer live candles for which there is room."""
    written = pipeline.offer(series, candles)
    assert written is not None
    return written


class Counting(IngestPipeline):
    """Records the candles of each transaction, by series."""

    transactions: list[list[SeriesId]]

    def apply(self, store: CandleStore, batch: Sequence[Submission], now_s: float = 0.0) -> list[list[Applied]]:
        self.transactions.append([one.series for one in batch for _ in one.candles])
        return super().apply(store, batch, now_s)


@asynccontextmanager
async def counting(path: Path, limits: QueueLimits | None = None) -> AsyncIterator[Counting]:
    """A pipeline that is fed before it runs: `async with` runs it at the end of the block."""
    async with SqliteDatabase(path / "store.sqlite") as database:
        pipeline = Counting(database, NOTHING_DERIVED, no_ledger(), Published(), lambda: 0.0, limits=limits)
        pipeline.transactions = []
        yield pipeline
        await pipeline.drain()


async def test_offered_candles_are_stored_before_they_are_published_in_order(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        futures = [offered(pipeline, BTC, candle(minute)) for minute in range(1, 40)]
        await asyncio.gather(*futures)
        assert published.times(BTC) == list(range(1, 40))
        stored = await database.read(lambda store: store.newest(BTC, 100))
        assert [one.time // 60 for one in stored] == list(range(1, 40))


async def test_candles_that_arrive_while_the_writer_is_busy_commit_together(tmp_path: Path) -> None:
    async with counting(tmp_path) as pipeline:
        task = asyncio.create_task(pipeline.run())
        first = offered(pipeline, BTC, candle(1))
        await asyncio.sleep(0)  # the writer takes the first
        await asyncio.gather(first, *(offered(pipeline, BTC, candle(minute)) for minute in range(2, 30)))
        task.cancel()
        await asyncio.wait([task])
        assert [len(transaction) for transaction in pipeline.transactions] == [1, 28]


async def test_one_series_has_its_share_of_a_batch_and_keeps_its_order(tmp_path: Path) -> None:
    async with counting(tmp_path, QueueLimits(share=3)) as pipeline:
        futures = [offered(pipeline, BTC, candle(minute)) for minute in range(1, 8)]
        futures.append(offered(pipeline, ETH, candle(1)))
    assert pipeline.transactions == [[BTC, BTC, BTC, ETH], [BTC, BTC, BTC], [BTC]]
    assert [future.result().candles for future in futures[:7]] == [(candle(minute),) for minute in range(1, 8)]


async def test_bulk_waits_for_live_and_fills_a_transaction_up_to_the_longest_wait(tmp_path: Path) -> None:
    async with counting(tmp_path, QueueLimits(flush_s=0.0)) as pipeline:
        bulk = [asyncio.create_task(pipeline.submit(ETH, [candle(minute)], "test")) for minute in (1, 2)]
        while pipeline.bulk_candles < 2:
            await asyncio.sleep(0)
        offered(pipeline, BTC, candle(1))
        await pipeline.drain()
        await asyncio.gather(*bulk)
    assert pipeline.transactions == [[BTC], [ETH], [ETH]]
    async with counting(tmp_path / "other", QueueLimits(flush_s=60.0)) as pipeline:
        bulk = [asyncio.create_task(pipeline.submit(ETH, [candle(minute)], "test")) for minute in (1, 2)]
        while pipeline.bulk_candles < 2:
            await asyncio.sleep(0)
        offered(pipeline, BTC, candle(1))
        await pipeline.drain()
        await asyncio.gather(*bulk)
    assert pipeline.transactions == [[BTC, ETH, ETH]]


async def test_a_bad_candle_is_refused_with_its_whole_submission(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        with pytest.raises(BadCandle, match="negative"):
            await pipeline.submit(BTC, [candle(1), candle(2)._replace(volume=-1.0)], "test")
        assert await database.read(lambda store: store.head(BTC)) is None
    assert published.applied == []


async def test_a_live_close_from_before_the_first_candle_is_not_written_but_history_is(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        await pipeline.submit(BTC, [candle(5)], "rest")
        await offered(pipeline, BTC, candle(3), candle(6))
        assert await database.read(lambda store: store.first(BTC)) == 300
        await pipeline.submit(BTC, [candle(3), candle(4)], "rest")
        assert await database.read(lambda store: store.first(BTC)) == 180


async def test_posted_candles_of_a_derived_series_are_refused(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        five = Timeframe.parse("5m")
        pipeline = IngestPipeline(database, DerivedStep(BTC.timeframe, [five]), no_ledger(), Published(), lambda: 0.0)
        with pytest.raises(DerivedSeries, match="is derived from 1m"):
            await pipeline.submit(BTC.with_timeframe(five), [Candle(300, 1.0, 2.0, 0.5, 1.0, 1.0)], "test")


async def test_repeats_are_not_published(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, _):
        await pipeline.submit(BTC, [candle(1), candle(2)], "test")
        await pipeline.submit(BTC, [candle(2), candle(3)], "test")
        await pipeline.submit(BTC, [candle(1)], "test")
    assert published.times(BTC) == [1, 2, 3]


async def test_a_failed_commit_publishes_nothing_and_blocks_later_candles_of_its_live_series(
    tmp_path: Path,
) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        await pipeline.submit(BTC, [candle(1)], "test")
        # A second writer locks the file longer than the writer waits.
        database._file._writer.set_busy_timeout(0)  # type: ignore[union-attr]  # it is open
        other = apsw.Connection(str(database.path))
        other.execute("BEGIN IMMEDIATE")
        failing = [offered(pipeline, BTC, candle(2)), asyncio.ensure_future(pipeline.submit(ETH, [candle(2)], "test"))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        failing.append(offered(pipeline, BTC, candle(3)))
        for future in failing:
            with pytest.raises(StoreError, match="cannot be written"):
                await future
        other.execute("ROLLBACK")
        other.close()
        assert pipeline.offer(BTC, [candle(4)]) is None, "2 and 3 are missing before it"
        assert published.times(BTC) == [1]
        await pipeline.mend(BTC)
        await offered(pipeline, BTC, candle(2), candle(3))
        assert published.times(BTC) == [1, 2, 3]


class OnAFullDisk(LedgerStep):
    """A ledger step whose writes meet a full disk while `full`."""

    full = True

    def advance(self, store: CandleStore, changes: Sequence[Applied], now_s: float) -> None:
        if self.full:
            raise apsw.FullError("database or disk is full")


async def test_a_full_disk_while_factors_are_written_is_no_fault_of_a_plugin_and_stores_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = Published()
    step = OnAFullDisk(FactorGraph(()), OverlayGraph((), ()))
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        pipeline = IngestPipeline(database, NOTHING_DERIVED, step, published, lambda: 0.0)
        task = asyncio.create_task(pipeline.run())
        with pytest.raises(StoreError, match="disk full"):
            await pipeline.submit(BTC, [candle(1)], "test")
        assert published.times(BTC) == []
        assert await database.read(lambda store: store.head(BTC)) is None
        assert "disk full" in str(database.write_error)
        step.full = False
        await pipeline.submit(BTC, [candle(1)], "test")
        assert published.times(BTC) == [1]
        task.cancel()
        await asyncio.wait([task])
    assert not any(record.exc_info for record in caplog.records)


def test_rows_are_packed_some_seconds_after_the_last_batch_and_again_after_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = VirtualLoop()

    async def rows(database: Database) -> int:
        return await database.read(lambda store: len(store.tables.candles(1, 0, 1 << 40, -1, newest=True)))

    async def pause() -> None:
        await asyncio.sleep(0)

    async def work() -> None:
        full = False

        def before_commit() -> None:
            if full:
                raise apsw.FullError("database or disk is full")

        async with InThreadSqliteDatabase(
            tmp_path / "store.sqlite", pause=pause, before_commit=before_commit
        ) as database:
            pipeline = IngestPipeline(
                database, NOTHING_DERIVED, no_ledger(), Published(), lambda: 1_700_000_000.0, monotonic=loop.time
            )
            task = asyncio.create_task(pipeline.run())
            await pipeline.submit(BTC, [candle(0)], "test")
            for minute in range(1, 40):
                await offered(pipeline, BTC, candle(minute))
                await asyncio.sleep(PACK_AFTER_S / 2)
            assert await rows(database) == 40, "another batch always came before"
            full = True
            await asyncio.sleep(PACK_AFTER_S)
            assert await rows(database) == 40
            assert caplog.text.count("pipeline.pack_failed") == 1
            full = False
            await asyncio.sleep(10 * PACK_AFTER_S)
            assert await rows(database) == 40
            await offered(pipeline, BTC, candle(40))
            await asyncio.sleep(2 * PACK_AFTER_S)
            assert await rows(database) == 41 - 31, "the first series begins anew one minute before the others"
            task.cancel()
            await asyncio.wait([task])

    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


def spoil_rows(path: Path, series: SeriesId) -> None:
    """The oldest row of a series has no opening price."""
    page_checksums.load()
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'open REAL NOT NULL', 'open REAL') WHERE name = 'candle'"
    )
    connection.close()
    connection = apsw.Connection(str(path))
    connection.execute(
        "UPDATE candle SET open = NULL WHERE series_no = (SELECT series_no FROM series WHERE series_id = ?)"
        " AND time = (SELECT min(time) FROM candle)",
        (str(series),),
    )
    connection.close()


def test_rows_that_cannot_be_read_keep_no_other_series_from_being_packed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop, path = VirtualLoop(), tmp_path / "store.sqlite"

    async def pause() -> None:
        await asyncio.sleep(0)

    async def rows(database: Database, number: int) -> int:
        return await database.read(lambda store: len(store.tables.candles(number, 0, 1 << 40, -1, newest=True)))

    async def work() -> None:
        async with InThreadSqliteDatabase(path, pause=pause) as database:
            pipeline = make_pipeline(database, Published())
            task = asyncio.create_task(pipeline.run())
            for series in (BTC, ETH):
                await pipeline.submit(series, [candle(minute) for minute in range(8)], "test")
            task.cancel()
            await asyncio.wait([task])
        spoil_rows(path, BTC)
        async with InThreadSqliteDatabase(path, pause=pause) as database:
            pipeline = IngestPipeline(
                database, NOTHING_DERIVED, no_ledger(), Published(), lambda: 1_700_000_000.0, monotonic=loop.time
            )
            task = asyncio.create_task(pipeline.run())
            for minute in range(8, 60):
                await asyncio.gather(offered(pipeline, BTC, candle(minute)), offered(pipeline, ETH, candle(minute)))
            commits = await database.read(lambda store: store.commit())
            await asyncio.sleep(10 * PACK_AFTER_S)
            assert await rows(database, 1) == 60, "the rows that cannot be read stay as they are"
            assert await rows(database, 2) == 14
            assert await database.read(lambda store: store.commit()) == commits + 1, "nothing is tried again and again"
            assert caplog.text.count("pipeline.pack_failed") == 1
            task.cancel()
            await asyncio.wait([task])

    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


async def test_a_series_without_room_in_the_queue_is_broken_until_there_is_room(tmp_path: Path) -> None:
    async with counting(tmp_path, QueueLimits(live=4)) as pipeline:
        for minute in (1, 2, 3, 4):
            offered(pipeline, BTC, candle(minute))
        assert pipeline.offer(ETH, [candle(1)]) is None
        assert pipeline.offer(ETH, [candle(2)]) is None
        mending = asyncio.create_task(pipeline.mend(ETH))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not mending.done()
        await pipeline.drain()
        await mending
        offered(pipeline, ETH, candle(1))
    assert pipeline.transactions == [[BTC] * 4, [ETH]]


async def test_stopping_stores_what_is_queued(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, _):
        futures = [offered(pipeline, BTC, candle(minute)) for minute in range(1, 20)]
    assert all(future.done() for future in futures)
    assert published.times(BTC) == list(range(1, 20))


async def test_a_full_queue_makes_bulk_writers_wait_and_lets_them_go_on(tmp_path: Path) -> None:
    async with counting(tmp_path, QueueLimits(bulk=3)) as pipeline:
        tasks = [asyncio.create_task(pipeline.submit(BTC, [candle(minute)], "test")) for minute in (1, 2, 3, 4)]
        for _ in range(9):
            await asyncio.sleep(0)
        assert pipeline.bulk_candles == 3
        task = asyncio.create_task(pipeline.run())
        await asyncio.gather(*tasks)
        task.cancel()
        await asyncio.wait([task])
    assert [len(transaction) for transaction in pipeline.transactions] == [3, 1]


async def test_a_frame_changes_no_stored_candle_and_says_which_it_questions(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        await pipeline.submit(BTC, [candle(1), candle(2)], "rest")
        other = candle(2)._replace(close=1.5)
        rounded = candle(1)._replace(volume=1.0 + 1e-12)
        written = pipeline.offer(BTC, [rounded, other, candle(3)])
        assert written is not None
        applied = await written
        assert applied.questioned == (other,)
        assert await database.read(lambda store: store.newest(BTC, 3)) == [rounded, candle(2), candle(3)]
        by_rest = pipeline.offer(BTC, [other], by_frames=False)
        assert by_rest is not None
        assert (await by_rest).revised == {120}, "a row of REST decides, whoever brings it"
    assert published.times(BTC) == [1, 2, 1, 3, 2]


async def test_a_cancelled_caller_does_not_end_the_writer_when_its_batch_is_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After damage in a batch each submission is written alone; candles after a lost candle are not written."""
    async with counting(tmp_path) as pipeline:
        lost = offered(pipeline, BTC, candle(1))
        behind = offered(pipeline, BTC, candle(2))
        other = offered(pipeline, ETH, candle(1))
        apply = pipeline.apply

        def damaged(store: CandleStore, batch: Sequence[Submission], now_s: float = 0.0) -> list[list[Applied]]:
            if any(one.series == BTC for one in batch):
                raise StoreDamaged(Damage(BTC, None, "made for the test"))
            return apply(store, batch, now_s)

        monkeypatch.setattr(pipeline, "apply", damaged)
        behind.cancel()
        await pipeline.drain()
        assert isinstance(lost.exception(), StoreDamaged)
        assert other.result().candles == (candle(1),)
        assert pipeline.queued_candles() == 0


class Refusing(IngestPipeline):
    """Computes nothing anew while the store refuses it: `refuses` times."""

    refuses = 0

    async def refresh_span(self, series: SeriesId, span: Span) -> None:
        if self.refuses:
            self.refuses -= 1
            raise StoreError("the disk is full")
        await super().refresh_span(series, span)


@asynccontextmanager
async def opened(path: Path, derived: DerivedStep) -> AsyncIterator[tuple[Refusing, SqliteDatabase]]:
    async with SqliteDatabase(path) as database:
        pipeline = Refusing(database, derived, no_ledger(), lambda _: None, lambda: 1_700_000_000.0)
        task = asyncio.create_task(pipeline.run())
        yield pipeline, database
        task.cancel()
        await asyncio.wait([task])


def damage_oldest_chunk(path: Path, series: SeriesId) -> None:
    page_checksums.load()
    connection = apsw.Connection(str(path))
    connection.execute(
        "UPDATE candle_chunk SET candles = CAST(substr(candles, 1, 30) || x'a7' AS BLOB) WHERE chunk_id ="
        " (SELECT min(chunk_id) FROM candle_chunk JOIN series ON series_no = chunk_id >> 32 WHERE series_id = ?)",
        (str(series),),
    )
    connection.close()


async def test_a_correction_reaches_longer_candles_while_their_parts_are_damaged(tmp_path: Path) -> None:
    """Once the parts are computed again, nobody knows that the longer candles are stale."""
    five, quarter = (BTC.with_timeframe(Timeframe.parse(code)) for code in ("5m", "15m"))
    derived, path = DerivedStep(BTC.timeframe, [five.timeframe, quarter.timeframe]), tmp_path / "store.sqlite"
    async with opened(path, derived) as (pipeline, _):
        await pipeline.submit(BTC, [candle(minute) for minute in range(3000)], "rest")
    damage_oldest_chunk(path, five)
    async with opened(path, derived) as (pipeline, database):
        await database.read(lambda store: store.newest(five, 600, strict=False))
        [damaged] = await database.read(lambda store: store.damaged(five))
        assert damaged.end % quarter.timeframe.seconds, "the parts of a candle are damaged in part"
        await pipeline.submit(BTC, [candle(damaged.end // 60)._replace(volume=3.0)], "rest")
        assert await pipeline.take_out_damaged(five, damaged)
        await pipeline.refresh_series(BTC)

        def stored_and_expected(store: CandleStore, series: SeriesId) -> tuple[list[Candle], list[Candle]]:
            window = Span(0, 3000 * 60)
            return store.between(series, *window), derived.expected(store, BTC, series.timeframe, window)

        for series in (five, quarter):
            stored, expected = await database.read(partial(stored_and_expected, series=series))
            assert stored == expected


@pytest.mark.parametrize("ends_in", [Kept.CANDLES, Kept.QUARANTINE])
@pytest.mark.parametrize("store_fails", [False, True], ids=["at once", "when the store can be written again"])
@pytest.mark.parametrize("seen_by", ["the healer", "a reader"])
async def test_a_correction_beside_damaged_minutes_reaches_the_derived_candle_after_the_damage(
    tmp_path: Path, ends_in: Kept, store_fails: bool, seen_by: str
) -> None:
    """The damage ends because the minutes can be read again, as the healer or a reader before it sees, or because all
    in quarantine are stored or settled."""
    day = BTC.with_timeframe(Timeframe.parse("1d"))
    derived, damaged = DerivedStep(BTC.timeframe, [day.timeframe]), Span(0, 60)
    async with opened(tmp_path / "store.sqlite", derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(3000)], "rest")
        database.damage.note(Damage(BTC, damaged, "a test says so"))
        await pipeline.submit(BTC, [candle(1439)._replace(volume=3.0)], "rest")  # of another chunk
        database.damage.drop(BTC, Kept.CANDLES, damaged)
        database.damage.note(Damage(BTC, damaged, "a test says so", ends_in))
        if seen_by == "a reader":
            await database.read(lambda store: store.oldest(BTC, 10, since=-1))
        healer = StoreHealer(
            database, pipeline, Sources(derived.base_of, lambda _: True), timings=HealTimings(retry_s=0.0, settle_s=0.0)
        )
        healer.bind(())
        if store_fails:
            pipeline.refuses = 1
            await healer.heal()
        await healer.heal()
        assert not database.damage
        [first, _] = await database.read(lambda store: store.oldest(day, 3, since=-1))
        assert first.volume == 1439 + 3.0


async def test_a_refresh_of_all_times_takes_no_more_transactions_than_the_stored_candles_need(tmp_path: Path) -> None:
    """Where an index of the store cannot be read for a moment, the damage spans all times."""
    derived, first = DerivedStep(BTC.timeframe, [Timeframe.parse("1d")]), 20_000 * 1440
    async with opened(tmp_path / "store.sqlite", derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(first + minute) for minute in range(3000)], "rest")
        commits = await database.write(lambda store: store.commit())
        for span in (Span(0, MAX_TIME + 1), Span(0, first * 60), Span((first + 3000) * 60, MAX_TIME + 1)):
            await pipeline.refresh_span(BTC, span)
        assert await database.write(lambda store: store.commit()) == commits + 2, "one, and this one"


async def test_a_failed_refresh_is_retried_at_its_pace_and_reported_once_however_often_the_span_is_readable_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part of the store that some reads meet, and others do not, is damaged and readable again with each of them."""
    derived, damaged, clock = DerivedStep(BTC.timeframe, [Timeframe.parse("1d")]), Span(0, 60), ManualClock()
    async with opened(tmp_path / "store.sqlite", derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(3000)], "rest")
        healer = StoreHealer(database, pipeline, Sources(derived.base_of, lambda _: True), clock)
        healer.bind(())
        pipeline.refuses = 100
        tries = []
        for _ in range(61):
            database.damage.note(Damage(BTC, damaged, "a test says so"))
            database.damage.clear(BTC, Kept.CANDLES, damaged)
            await healer.heal()
            tries.append(100 - pipeline.refuses)
            clock.now_s += 1.0
        assert tries == [1] * 30 + [2] * 30 + [3]
        assert caplog.text.count("store.not_healed") == 1


def remove_oldest_chunk(store: CandleStore) -> None:
    """As a damaged file may lose it: nothing tells that it was there."""
    store.tables.delete_chunks(1, 0, 1)


def first_of_second_hour(series: SeriesId, store: CandleStore) -> list[Candle]:
    return store.oldest(series, 1, since=3599)


@pytest.mark.parametrize("codes", [["5m"], ["5m", "15m"], ["15m"]], ids=", ".join)
async def test_no_derived_candle_is_computed_without_minutes_that_are_gone_without_a_trace(
    tmp_path: Path, codes: list[str]
) -> None:
    targets = [Timeframe.parse(code) for code in codes]
    derived = DerivedStep(BTC.timeframe, targets)
    async with opened(tmp_path / "store.sqlite", derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(300)], "rest")
        await database.write(remove_oldest_chunk)
        revised = [candle(minute)._replace(volume=3.0) for minute in (61, 62)]
        await pipeline.submit(BTC, revised, "rest")
        for target in targets:
            stored = await database.read(partial(first_of_second_hour, BTC.with_timeframe(target)))
            assert [one.volume for one in stored] == [target.seconds / 60], "it stays as it was"
        await pipeline.submit(BTC, [candle(minute) for minute in range(60, 75) if minute not in (61, 62)], "rest")
        for target in targets:
            stored = await database.read(partial(first_of_second_hour, BTC.with_timeframe(target)))
            assert [one.volume for one in stored] == [target.seconds / 60 + 4.0]


async def test_a_hole_is_declared_and_filled_though_the_writer_remembers_its_candles(tmp_path: Path) -> None:
    hours = BTC.with_timeframe(Timeframe.parse("1h"))
    derived = DerivedStep(BTC.timeframe, [hours.timeframe])
    async with opened(tmp_path / "store.sqlite", derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(360)], "rest")
        before = await database.read(lambda store: store.oldest(hours, 10, since=-1))
        number = before[-1].time  # the first candles are gone, the newest one is there
        await database.write(lambda store: store.tables.delete_candles(2, number))
        await database.write(lambda store: store.tables.delete_chunks(2, 0, 1))
        declared: list[SeriesId] = []
        scrub = StoreScrub(database, limits=ScrubLimits(pause_s=0.0))
        scrub.bind((declared.append,))
        await scrub._read(hours)
        assert declared == [hours]
        await pipeline.refresh_series(BTC)
        assert await database.read(lambda store: store.oldest(hours, 10, since=-1)) == before


async def test_a_hole_is_declared_though_the_candles_behind_it_are_damaged(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite", NOTHING_DERIVED) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(4 * CHUNK_CANDLES)], "rest")
        first = chunk_of(1, BTC.timeframe, 0)
        await database.write(lambda store: store.tables.delete_chunks(1, first + 1, first + 2))
        await database.write(lambda store: store.tables.put_chunks([(1, first + 2, b"no chunk")]))
        declared: list[SeriesId] = []
        scrub = StoreScrub(database, limits=ScrubLimits(pause_s=0.0))
        scrub.bind((declared.append,))
        await scrub._read(BTC)
        assert declared == [BTC]
        [gap] = await database.read(lambda store: store.gaps(BTC))
        assert BTC.timeframe.count(*gap.span) == CHUNK_CANDLES


async def test_minutes_that_were_damaged_are_lost_not_empty_where_a_symbol_was_listed_anew_since(
    tmp_path: Path,
) -> None:
    """The exchange has forgotten them with the earlier listing; a derived candle that is known stays as it is."""
    five, path = BTC.with_timeframe(Timeframe.parse("5m")), tmp_path / "store.sqlite"
    derived = DerivedStep(BTC.timeframe, [five.timeframe])

    async with opened(path, derived) as (pipeline, database):
        await pipeline.submit(BTC, [candle(minute) for minute in range(300)], "rest")
        before = await database.read(lambda store: store.oldest(five, 100, since=-1))
    damage_oldest_chunk(path, BTC)
    async with opened(path, derived) as (pipeline, database):
        await database.read(lambda store: store.newest(BTC, 300, strict=False))
        [damaged] = await database.read(lambda store: store.damaged(BTC))
        assert await pipeline.take_out_damaged(BTC, damaged)
        for _ in range(2):
            await pipeline.submit(BTC, [], "rest", Empty([damaged], NOT_LISTED_BEFORE))
            ledger = await database.read(lambda store: store.gaps(BTC))
            assert [(gap.state, gap.proof) for gap in ledger] == [(GapState.LOST, NOT_LISTED_BEFORE)]
            assert await database.read(lambda store: store.oldest(five, 100, since=-1)) == before

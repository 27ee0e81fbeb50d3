"""IngestPipeline: group commit, publish after commit in commit order, nothing published that was not stored."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from klinesync.core.candle import Applied, Candle, Closed
from klinesync.core.errors import BadCandle, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.factor.engine import FactorEngine
from klinesync.overlay.engine import OverlayEngine
from klinesync.pipelines import ingest_pipeline
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.storage.database import CandleStore, Database
from klinesync.storage.sqlite import SqliteDatabase

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")


def candle(minute: int) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, 1.0, 1.0)


class Published:
    """What was published, and what the store held at that moment."""

    def __init__(self) -> None:
        self.written: list[Applied] = []

    def __call__(self, written: Applied) -> None:
        self.written.append(written)

    def times(self, series: SeriesId) -> list[int]:
        return [one.time // 60 for written in self.written if written.series == series for one in written.candles]


NOTHING_DERIVED = DerivedStep(BTC.timeframe, [])


def make_pipeline(database: Database, published: Published, factors: FactorEngine | None = None) -> IngestPipeline:
    return IngestPipeline(
        database, NOTHING_DERIVED, factors or FactorEngine(), OverlayEngine(), published, lambda: 1_700_000_000.0
    )


@asynccontextmanager
async def running(
    path: Path, published: Published, factors: FactorEngine | None = None
) -> AsyncIterator[tuple[IngestPipeline, SqliteDatabase]]:
    async with SqliteDatabase(path / "store.sqlite") as database:
        pipeline = make_pipeline(database, published, factors)
        task = asyncio.create_task(pipeline.run())
        try:
            yield pipeline, database
        finally:
            task.cancel()
            await asyncio.wait([task])
            await pipeline.drain()


async def test_what_is_submitted_is_stored_before_it_is_published_in_order(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        futures = [pipeline.submit_nowait(BTC, [candle(minute)], "test") for minute in range(1, 40)]
        await asyncio.gather(*futures)
        assert published.times(BTC) == list(range(1, 40))
        stored = await database.read(lambda store: store.newest(BTC, 100))
        assert [one.time // 60 for one in stored] == list(range(1, 40))


async def test_what_arrives_while_the_writer_is_busy_commits_together(tmp_path: Path) -> None:
    transactions: list[int] = []

    class Counting(IngestPipeline):
        def apply(self, store: CandleStore, batch: object) -> list[list[Applied]]:
            transactions.append(len(batch))  # type: ignore[arg-type]  # a sequence
            return super().apply(store, batch)  # type: ignore[arg-type]  # passed through

    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        pipeline = Counting(database, NOTHING_DERIVED, FactorEngine(), OverlayEngine(), Published(), lambda: 0.0)
        task = asyncio.create_task(pipeline.run())
        first = pipeline.submit_nowait(BTC, [candle(1)], "test")
        await asyncio.sleep(0)  # the writer takes the first
        await asyncio.gather(first, *(pipeline.submit_nowait(BTC, [candle(minute)], "test") for minute in range(2, 30)))
        task.cancel()
        await asyncio.wait([task])
    assert sum(transactions) == 29
    assert transactions == [1, 28]


async def test_a_bad_candle_is_refused_with_all_that_came_with_it(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        with pytest.raises(BadCandle, match="negative"):
            pipeline.submit_nowait(BTC, [candle(1), candle(2)._replace(volume=-1.0)], "test")
        assert await database.read(lambda store: store.head(BTC)) is None
    assert published.written == []


async def test_repeats_are_not_published(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, _):
        await pipeline.submit(BTC, [candle(1), candle(2)], "test")
        await pipeline.submit(BTC, [candle(2), candle(3)], "test")
        await pipeline.submit(BTC, [candle(1)], "test")
    assert published.times(BTC) == [1, 2, 3]


async def test_a_failed_commit_publishes_nothing_and_is_told_to_who_waits(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, database):
        await pipeline.submit(BTC, [candle(1)], "test")
        # A second writer holds the file longer than the writer waits.
        database._file._writer.set_busy_timeout(0)  # type: ignore[union-attr]  # it is open
        import apsw

        other = apsw.Connection(str(database.path))
        other.execute("BEGIN IMMEDIATE")
        futures = [pipeline.submit_nowait(series, [candle(2)], "test") for series in (BTC, ETH)]
        for future in futures:
            with pytest.raises(StoreError, match="cannot be written"):
                await future
        other.execute("ROLLBACK")
        other.close()
        assert published.times(BTC) == [1]
        await pipeline.submit(BTC, [candle(2)], "test")
        assert published.times(BTC) == [1, 2]


async def test_factors_see_the_closed_candles_before_they_are_published(tmp_path: Path) -> None:
    published = Published()
    seen: list[tuple[Closed, int]] = []
    factors = FactorEngine([lambda closed: seen.append((closed, len(published.written)))])
    async with running(tmp_path, published, factors) as (pipeline, _):
        await pipeline.submit(BTC, [candle(1), candle(2)], "test")
    assert seen == [(Closed(BTC, candle(1)), 0), (Closed(BTC, candle(2)), 0)]


async def test_stopping_stores_what_is_queued(tmp_path: Path) -> None:
    published = Published()
    async with running(tmp_path, published) as (pipeline, _):
        futures = [pipeline.submit_nowait(BTC, [candle(minute)], "test") for minute in range(1, 20)]
    assert all(future.done() for future in futures)
    assert published.times(BTC) == list(range(1, 20))


async def test_a_full_queue_makes_writers_wait_and_lets_them_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_pipeline, "MAX_QUEUED_CANDLES", 3)
    published = Published()
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        pipeline = make_pipeline(database, published)
        for minute in (1, 2, 3):
            pipeline.submit_nowait(BTC, [candle(minute)], "test")
        waiting = asyncio.create_task(pipeline.submit(BTC, [candle(4)], "test"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        task = asyncio.create_task(pipeline.run())
        await waiting
        task.cancel()
        await asyncio.wait([task])
    assert published.times(BTC) == [1, 2, 3, 4]

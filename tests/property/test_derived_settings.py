"""The base and the derived timeframes may change between runs, in any order: after a run has settled, `verify` is
clean, and each derived candle equals the fold of its base."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.derived import fold
from klinesync.core.errors import DerivedSeries
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.market_data.derived_redo import DerivedRedo
from klinesync.market_data.findings import SeriesAudit
from klinesync.market_data.verify import verify
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.storage.records import DerivationOrigin
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.pauses import no_pause
from support.thorough import examples

MINUTE = SeriesId.parse("binance:spot:BTC/USDT:1m")
START = 1_699_999_200 // 10_800 * 10_800  # whole buckets of every timeframe begin at this time
CODES = ("1m", "5m", "10m", "15m", "30m", "45m", "1h", "90m")


def series_of(code: str) -> SeriesId:
    return MINUTE.with_timeframe(Timeframe.parse(code))


def candles(code: str, first: int, count: int, salt: int) -> list[Candle]:
    """Candles of any values, which differ by `salt`."""
    step = Timeframe.parse(code).seconds
    made = []
    for number in range(first, first + count):
        value = 10.0 + (number * 7 + salt * 13) % 50
        made.append(Candle(START + number * step, value, value + 2.5, value - 2.5, value + 1, 1.0 + salt / 10))
    return made


async def run(path: Path, base: str, targets: Sequence[str], writes: Sequence[tuple[str, str, int, int, int]]) -> None:
    """One run with these flags: settle, write, and stop when all series are recomputed."""
    step = DerivedStep(Timeframe.parse(base), [Timeframe.parse(code) for code in targets])
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        redo = DerivedRedo(pipeline, asyncio.get_running_loop().time)
        await redo.settle()
        work = asyncio.create_task(pipeline.run())
        redoing = asyncio.create_task(redo.run())
        for source, code, first, count, salt in writes:
            try:
                await pipeline.submit(series_of(code), candles(code, first, count, salt), source)
            except DerivedSeries:
                known = await database.read(lambda store, code=code: store.derivation(series_of(code)))  # type: ignore[misc]
                assert code in targets or (source == "http" and known.base is not None)
        await redoing
        for series in await database.read(lambda store: store.series()):
            await pipeline.refresh_series(series)
        work.cancel()
        await asyncio.wait([work])
    assert audits(path) == {}


def audits(path: Path) -> dict[str, SeriesAudit]:
    """The findings of `verify`, called as by the command."""
    with SqliteReader(path) as store:
        known = store.read(lambda look: look.derived_settings())
        assert known is not None
        return {str(audit.series): audit for audit in verify(store, *known) if audit.differences}


def stored(path: Path, code: str) -> list[Candle]:
    with SqliteReader(path) as store:
        return store.read(lambda look: look.newest(series_of(code), 10_000))


FLAGS = st.sampled_from(
    [
        ("1m", ("5m", "15m", "1h")),
        ("1m", ("5m",)),
        ("1m", ("15m", "30m")),
        ("1m", ("10m", "45m")),
        ("1m", ("15m", "45m", "90m")),
        ("1m", ()),
        ("5m", ("15m", "1h")),
        ("5m", ("30m",)),
        ("5m", ("10m", "30m", "90m")),
        ("5m", ()),
        ("15m", ("30m", "1h")),
    ]
)
WRITES = st.lists(
    st.tuples(
        st.sampled_from(["stream", "rest", "http"]),
        st.sampled_from(CODES),
        st.integers(0, 40),
        st.integers(1, 90),
        st.integers(0, 5),
    ),
    max_size=4,
)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(FLAGS, WRITES), min_size=1, max_size=5))
def test_verify_is_clean_after_any_sequence_of_flags(
    runs: list[tuple[tuple[str, tuple[str, ...]], list[tuple[str, str, int, int, int]]]],
) -> None:
    note(repr(runs))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        for (base, targets), writes in runs:
            asyncio.run(run(path, base, targets, writes))


def test_a_candle_of_a_former_target_is_computed_once_the_minutes_of_its_bucket_are_there(tmp_path: Path) -> None:
    """Other candles stay in a bucket that is incomplete in the base, also while the timeframe is no target any more;
    minutes in one piece, and one by one."""
    for name, last in (("at_once", [(1, 4)]), ("one_by_one", [(1, 1), (2, 1), (3, 1), (4, 1)])):
        path = tmp_path / name
        asyncio.run(run(path, "1m", ("15m",), [("stream", "1m", 0, 1, 0), ("stream", "5m", 0, 1, 1)]))
        asyncio.run(run(path, "1m", ("5m", "15m"), []))
        kept = stored(path, "5m")
        asyncio.run(run(path, "1m", ("15m",), [("stream", "1m", first, count, 0) for first, count in last]))
        assert stored(path, "5m") == fold(Timeframe.parse("5m"), candles("1m", 0, 5, 0)) != kept


def test_a_candle_that_was_posted_while_derived_timeframes_were_off_is_computed_once_they_are_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.sqlite"
    asyncio.run(run(path, "1m", (), [("http", "1m", 0, 20, 0), ("http", "5m", 1, 2, 3)]))
    assert stored(path, "5m") == candles("5m", 1, 2, 3)
    asyncio.run(run(path, "1m", ("5m",), []))
    whole = stored(path, "5m")
    assert [candle.time for candle in whole] == [START + number * 300 for number in range(4)]
    assert whole[1].open == candles("1m", 5, 1, 0)[0].open


def test_changing_the_base_and_back_leaves_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    minutes = ("rest", "1m", 0, 90, 0)
    asyncio.run(run(path, "1m", ("5m", "15m"), [minutes]))
    first = stored(path, "5m"), stored(path, "15m")
    asyncio.run(run(path, "5m", ("15m",), [("stream", "5m", 10, 14, 4)]))
    assert stored(path, "5m")[10:] == candles("5m", 10, 14, 4)
    asyncio.run(run(path, "1m", ("5m", "15m"), []))
    assert stored(path, "5m")[:18] == first[0], "what the minutes give is computed from them"
    assert stored(path, "5m")[18:] == candles("5m", 18, 6, 4), "what they do not give stays"
    assert stored(path, "15m")[:6] == first[1]


async def test_a_stored_derived_series_refuses_posted_candles_while_it_is_off(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await run(path, "1m", ("5m",), [("rest", "1m", 0, 20, 0)])
    step = DerivedStep(Timeframe.parse("1m"), [])
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        await pipeline.settle_derived()
        for source in ("http", "file"):
            with pytest.raises(DerivedSeries, match="is derived from 1m"):
                await pipeline.submit(series_of("5m"), candles("5m", 0, 1, 3), source)
        work = asyncio.create_task(pipeline.run())
        await pipeline.submit(series_of("5m"), candles("5m", 2, 3, 3), "stream")
        work.cancel()
        await asyncio.wait([work])
        origin = await database.read(lambda store: store.derivation(series_of("5m")).origin)
        assert origin is DerivationOrigin.MIXED
    before = stored(path, "5m")
    await run(path, "1m", ("5m",), [])
    assert stored(path, "5m")[:4] != before[:4]
    assert stored(path, "5m")[4] == before[4]


async def test_nothing_is_computed_from_a_timeframe_that_is_still_to_be_recomputed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await run(path, "5m", ("30m",), [("rest", "5m", 0, 24, 0)])
    await run(path, "5m", (), [("http", "15m", 0, 8, 3)])
    step = DerivedStep(Timeframe.parse("5m"), [Timeframe.parse("15m"), Timeframe.parse("1h")])
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        assert (await pipeline.settle_derived()).redo == [series_of("15m")]
        work = asyncio.create_task(pipeline.run())
        await pipeline.submit(series_of("5m"), candles("5m", 3, 1, 5), "rest")
        await pipeline.redo_derived(series_of("15m"))
        await pipeline.settled_derived()
        await pipeline.refresh_series(series_of("5m"))
        work.cancel()
        await asyncio.wait([work])
    assert audits(path) == {}


async def test_an_interrupted_recomputation_continues_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await run(path, "1m", (), [("rest", "1m", 0, 20, 0), ("http", "5m", 0, 4, 3)])
    async with InThreadSqliteDatabase(path, pause=no_pause) as database:
        step = DerivedStep(Timeframe.parse("1m"), [Timeframe.parse("5m")])
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, lambda: 1_800_000_000.0)
        assert (await pipeline.settle_derived()).redo == [series_of("5m")]
    assert stored(path, "5m") == candles("5m", 0, 4, 3)
    await run(path, "1m", ("5m",), [])
    assert stored(path, "5m") != candles("5m", 0, 4, 3)

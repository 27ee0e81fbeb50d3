"""The store is a function of the final closed candles: ninety days of recorded minutes, in any order of arrival, give
the same bytes. Single-minute transactions use a part of the recording, to keep the run short; the other ways use all of
it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from math import isclose
from pathlib import Path

import numpy as np
import pyarrow.feather
import pytest

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.pipelines.submissions import QueueLimits
from klinesync.storage.candles import CandleStore
from klinesync.storage.sqlite import SqliteDatabase
from support.thorough import LONG

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
TARGETS = [Timeframe.parse(code) for code in ("5m", "15m", "1h", "4h", "1d", "1w")]
WINDOW = 300
SLICE = 20_000 if LONG else 6_000

Batches = Sequence[Sequence[Candle]]


def recorded(folder: Path, timeframe: str) -> list[Candle]:
    table = pyarrow.feather.read_table(folder / "spot" / f"BTC_USDT-{timeframe}.feather")
    time = table["date"].to_numpy().astype("datetime64[s]").astype(np.int64)
    values = [table[name].to_numpy().tolist() for name in ("open", "high", "low", "close", "volume")]
    return [Candle(*row) for row in zip(time.tolist(), *values, strict=True)]


@pytest.fixture(scope="module")
def minutes(real_data: Path) -> list[Candle]:
    return recorded(real_data, "1m")


# --- orders of arrival


def cut(candles: Sequence[Candle], dice: random.Random) -> Batches:
    """Into batches of very different sizes."""
    batches = []
    at = 0
    while at < len(candles):
        size = dice.choice((1, 2, 30, 200, 1000))
        batches.append(candles[at : at + size])
        at += size
    return batches


def in_order(candles: list[Candle], dice: random.Random) -> Batches:
    return cut(candles, dice)


def shuffled_within_a_window(candles: list[Candle], dice: random.Random) -> Batches:
    shuffled: list[Candle] = []
    for at in range(0, len(candles), WINDOW):
        shuffled += dice.sample(candles[at : at + WINDOW], len(candles[at : at + WINDOW]))
    return cut(shuffled, dice)


def with_random_duplicates(candles: list[Candle], dice: random.Random) -> Batches:
    """A batch may hold one candle twice, and repeats some: mostly of the last days, now and then of any time."""
    batches = []
    upto = 0
    for batch in cut(candles, dice):
        upto += len(batch)
        past = candles[:upto] if dice.random() < 0.05 else candles[max(0, upto - 3000) : upto]
        batches.append([*batch, *dice.choices(batch, k=2), *dice.choices(past, k=5)])
    return batches


def with_corrections(candles: list[Candle], dice: random.Random) -> Batches:
    """One minute in fifty arrives with wrong values, and is corrected later, often after its day."""
    batches: list[Sequence[Candle]] = []
    wrong: list[Candle] = []
    for batch in cut(candles, dice):
        spoiled = {candle for candle in batch if dice.random() < 0.02}
        batches.append([_spoil(candle) if candle in spoiled else candle for candle in batch])
        wrong += spoiled
        if dice.random() < 0.2:
            batches.append(dice.sample(wrong, len(wrong)))
            wrong = []
    return [*batches, wrong]


def _spoil(candle: Candle) -> Candle:
    return candle._replace(high=candle.high * 1.01, low=candle.low * 0.99, volume=candle.volume + 1.0)


# --- the store


@asynccontextmanager
async def writing(
    store: Path, limits: QueueLimits | None = None
) -> AsyncIterator[tuple[IngestPipeline, SqliteDatabase]]:
    async with SqliteDatabase(store) as database:
        assert database._file._writer is not None
        database._file._writer.execute("PRAGMA synchronous = OFF")  # the disk's speed is not tested here
        pipeline = IngestPipeline(
            database,
            DerivedStep(BTC.timeframe, TARGETS),
            no_ledger(),
            lambda _: None,
            lambda: 1_800_000_000.0,
            limits=limits,
        )
        task = asyncio.create_task(pipeline.run())
        try:
            yield pipeline, database
        finally:
            task.cancel()
            await asyncio.wait([task])
            await pipeline.drain()


async def written(store: Path, *runs: Batches) -> dict[str, bytes]:
    """The dump of a store after `runs`, with a restart of the writer between them."""
    for batches in runs:
        async with writing(store) as (pipeline, _):
            for batch in batches:
                await pipeline.submit(BTC, batch, "test")
    async with SqliteDatabase(store) as database:
        return await database.read(dump)


def dump(store: CandleStore) -> dict[str, bytes]:
    """All closed candles, and the gaps without their proofs and times; by series."""
    return {
        str(series): repr(store.between(series, 0, MAX_TIME)).encode()
        + repr([gap[:3] for gap in store.gaps(series)]).encode()
        for series in sorted(store.series(), key=str)
    }


def same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Whether two dumps are byte-identical; a failed == would print megabytes."""
    return one.keys() == other.keys() and [name for name in one if one[name] != other[name]] == []


@pytest.fixture(scope="module")
def in_one_batch(minutes: list[Candle], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The store that all others are compared with, and its dump."""
    store = tmp_path_factory.mktemp("whole") / "store.sqlite"
    return store, asyncio.run(written(store, [minutes]))


# --- the promises


async def test_derived_candles_of_the_store_are_the_bars_of_the_exchange(
    in_one_batch: tuple[Path, dict[str, bytes]], real_data: Path, minutes: list[Candle]
) -> None:
    async with SqliteDatabase(in_one_batch[0]) as database:
        for target in TARGETS[:2]:
            series = BTC.with_timeframe(target)
            ours = await database.read(lambda store, of=series: store.between(of, 0, MAX_TIME))  # type: ignore[misc]
            theirs = [bar for bar in recorded(real_data, target.code) if target.next(bar.time) <= minutes[-1].time + 60]
            assert [bar[:5] for bar in ours] == [bar[:5] for bar in theirs]
            assert all(isclose(our.volume, other.volume, rel_tol=1e-9) for our, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "arrange",
    [in_order, shuffled_within_a_window, with_random_duplicates, with_corrections],
    ids=lambda way: way.__name__,
)
async def test_however_the_minutes_arrive_the_store_holds_the_same_bytes(
    arrange: Callable[[list[Candle], random.Random], Batches],
    minutes: list[Candle],
    in_one_batch: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    batches = arrange(minutes, random.Random(7))
    assert same(await written(tmp_path / "store.sqlite", batches), in_one_batch[1])


async def test_restarts_in_between_leave_the_same_bytes(
    minutes: list[Candle], in_one_batch: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    dice = random.Random(8)
    batches = with_random_duplicates(minutes, dice)
    cuts = [0, *sorted(dice.sample(range(1, len(batches)), 5)), len(batches)]
    runs = [batches[start:end] for start, end in pairwise(cuts)]
    assert same(await written(tmp_path / "store.sqlite", *runs), in_one_batch[1])


async def test_one_minute_a_transaction_leaves_the_bytes_of_one_batch(minutes: list[Candle], tmp_path: Path) -> None:
    few = minutes[:SLICE]
    whole = await written(tmp_path / "whole.sqlite", [few])
    async with writing(tmp_path / "ones.sqlite", QueueLimits(batch=1)) as (pipeline, _):
        await asyncio.gather(*(pipeline.submit(BTC, [candle], "test") for candle in few))
    assert same(await written(tmp_path / "ones.sqlite"), whole)
    assert len(whole) == 1 + sum(target.seconds * 2 <= SLICE * 60 for target in TARGETS)

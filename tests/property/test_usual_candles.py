"""The short way of the usual candle, one that opens where the head closes, against the general way of any candle."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.market.parts_writing import ledger_step
from klinesync.market.settings import ledger_settings
from klinesync.pipelines.derived_step import NATIVE, DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.flags import load_flags
from klinesync.storage.candles import CandleStore
from klinesync.storage.sqlite import SqliteDatabase

SERIES = [SeriesId.parse(f"binance:spot:{name}/USDT:1m") for name in ("AAA", "BBB")]
TARGETS = [Timeframe.parse(code) for code in ("5m", "15m", "1h", "45m")]
# Short of a day's end, and of the end of a chunk of either series.
START = 1_704_060_000 - 60 * 60


@dataclass(frozen=True)
class Step:
    """One transaction: of each series the minutes from its newest one, with their closes; 0 is the next minute."""

    minutes: tuple[tuple[int, int, int], ...]  # (series, minutes after the next one, price)
    restart: bool = False


steps = st.lists(
    st.builds(
        Step,
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.sampled_from([0] * 12 + [1, 2, -1, -3, -16, -70]),
                st.integers(95, 105),
            ),
            min_size=1,
            max_size=4,
        ).map(tuple),
        st.sampled_from([False] * 9 + [True]),
    ),
    min_size=10,
    max_size=160,
)


@given(steps)
@settings(max_examples=25, deadline=None)
def test_both_ways_store_and_publish_the_same(script: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        usual = asyncio.run(play(Path(folder) / "usual.sqlite", script))
        with general_way():
            general = asyncio.run(play(Path(folder) / "general.sqlite", script))
    assert usual[0] == general[0]
    assert sorted(set(usual[1]) ^ set(general[1])) == []
    assert usual[1] == general[1]


def test_a_native_candle_of_a_bucket_without_minutes_is_no_part_of_longer_candles(tmp_path: Path) -> None:
    """The parts of the longer candle are all in memory, and one of them is the exchange's own."""
    usual = asyncio.run(with_native(tmp_path / "usual.sqlite"))
    with general_way():
        general = asyncio.run(with_native(tmp_path / "general.sqlite"))
    assert usual == general
    assert [applied.candles[0].volume for applied in usual if applied.series.timeframe.code == "15m"] == [15.0, 10.0]


async def with_native(path: Path) -> list[Applied]:
    published: list[Applied] = []
    series, start = SERIES[0], 1_704_067_200
    shorter = series.with_timeframe(TARGETS[0])
    async with SqliteDatabase(path) as database:
        derived = DerivedStep(series.timeframe, TARGETS)
        pipeline = IngestPipeline(
            database, derived, ledger_step(ledger_settings(load_flags({}))), published.append, lambda: 0.0
        )
        running = asyncio.create_task(pipeline.run())

        async def close(*minutes: int) -> None:
            for minute in minutes:
                written = pipeline.offer(series, (Candle(start + 60 * minute, 1.0, 1.0, 1.0, 1.0, 1.0),))
                assert written is not None
                await written

        await close(*range(-15, 5), 10)
        await pipeline.submit(series, (), "rest", Empty([Span(start + 300, start + 600)], "asked"))
        await pipeline.submit(shorter, [Candle(start + 300, 1.0, 1.0, 1.0, 1.0, 7.0)], NATIVE)
        await close(11, 12, 13, 14)
        running.cancel()
        await asyncio.wait([running])
    return published


@contextmanager
def general_way() -> Iterator[None]:
    """Without the short way."""
    with (
        mock.patch.object(CandleStore, "append", return_value=None),
        mock.patch.object(LedgerStep, "_advance_usual", return_value=False),
    ):
        yield


async def play(path: Path, script: list[Step]) -> tuple[list[Applied], list[str]]:
    """What was published, and the rows of every table at the end."""
    published: list[Applied] = []
    newest = dict.fromkeys(SERIES, START - 60)
    todo = list(script)
    while todo:
        async with SqliteDatabase(path) as database:
            ledger = ledger_step(ledger_settings(load_flags({})))
            derived = DerivedStep(SERIES[0].timeframe, TARGETS)
            pipeline = IngestPipeline(database, derived, ledger, published.append, lambda: 0.0)
            running = asyncio.create_task(pipeline.run())
            while todo:
                step = todo.pop(0)
                offered = []
                for which, later, price in step.minutes:
                    series = SERIES[which]
                    time = newest[series] + 60 * (1 + later)
                    newest[series] = max(newest[series], time)
                    candle = Candle(time, 100.0, max(100.0, price), min(100.0, price), float(price), 1.0, 100.0, 3)
                    offered.append(pipeline.offer(series, (candle,), by_frames=False))
                await asyncio.gather(*(written for written in offered if written is not None))
                if step.restart:
                    break
            while ledger.behind():
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
    with sqlite3.connect(path) as store:
        return published, [line for line in store.iterdump() if "INSERT" in line]

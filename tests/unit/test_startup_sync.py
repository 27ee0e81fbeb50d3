"""The start-up sweep: all series concurrently, retries, and logged progress."""

from __future__ import annotations

import asyncio
import logging

import pytest

from klinesync.core.backoff import Backoff
from klinesync.core.errors import StoreError, UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.market_data.startup_sync import StartupSync, SweepProgress
from support.waiting import until

ALL = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(5)]
TIMEOUT_S = 10.0


class Ingest:
    """The arguments of the sweep. A series is up to date when `let` says so."""

    def __init__(self) -> None:
        self.followed: list[SeriesId] = []
        self.declared: list[SeriesId] = []
        self.trouble: dict[SeriesId, list[Exception]] = {}
        self.late_trouble: dict[SeriesId, list[Exception]] = {}
        self.ready = {series: asyncio.Event() for series in ALL}
        self.now_s = 100.0

    async def follow(self, series: SeriesId) -> None:
        self.followed.append(series)
        if self.trouble.get(series):
            raise self.trouble[series].pop(0)

    async def caught_up(self, series: SeriesId) -> None:
        if self.late_trouble.get(series):
            raise self.late_trouble[series].pop(0)
        await self.ready[series].wait()

    def let(self, *all_series: SeriesId) -> None:
        for series in all_series:
            self.ready[series].set()

    def sync(self) -> StartupSync:
        return StartupSync(
            series=ALL,
            follow=self.follow,
            caught_up=self.caught_up,
            monotonic=lambda: self.now_s,
            request_declared=self.declared.append,
            retry=Backoff(0.001, 60.0),
        )


async def test_all_series_are_followed_concurrently_and_counted_when_up_to_date() -> None:
    ingest = Ingest()
    sync = ingest.sync()
    assert sync.progress() == SweepProgress(5, 0, 0)
    assert sync.waiting(ALL[0])
    sweep = asyncio.create_task(sync.run())
    await until(lambda: len(ingest.followed) == 5)
    assert sync.progress() == SweepProgress(5, 0, 0)
    ingest.let(ALL[3])
    await until(lambda: sync.progress().done == 1)
    assert [sync.waiting(series) for series in ALL] == [True, True, True, False, True]
    assert ingest.declared == [ALL[3]], "older gaps of a series are healed once it is up to date"
    ingest.now_s = 107.0
    ingest.let(*ALL)
    await asyncio.wait_for(sweep, TIMEOUT_S)
    assert sync.progress() == SweepProgress(5, 5, 0)
    assert sorted(map(str, ingest.declared)) == sorted(map(str, ALL))


async def test_a_failed_series_is_retried_and_a_series_that_hangs_delays_no_other() -> None:
    ingest = Ingest()
    ingest.trouble[ALL[0]] = [StoreError("the store cannot be read"), StoreError("still not")]
    ingest.late_trouble[ALL[1]] = [UpstreamError("no answer")]
    sync = ingest.sync()
    sweep = asyncio.create_task(sync.run())
    ingest.let(*ALL[:4])
    await until(lambda: sync.progress().done == 4)
    assert [sync.waiting(series) for series in ALL] == [False] * 4 + [True]
    assert ingest.followed.count(ALL[0]) == 3
    assert ingest.followed.count(ALL[1]) == 2
    sweep.cancel()
    await asyncio.wait([sweep])
    assert sweep.cancelled()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("start-up")]


async def test_a_refused_series_is_left_out_and_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    ingest = Ingest()
    ingest.trouble[ALL[2]] = [UnknownSeries(str(ALL[2]), "the exchange lists no such symbol")]
    sync = ingest.sync()
    ingest.let(*ALL)
    await asyncio.wait_for(sync.run(), TIMEOUT_S)
    assert sync.progress() == SweepProgress(5, 4, 1)
    assert not sync.waiting(ALL[2])
    assert ingest.followed.count(ALL[2]) == 1
    assert ALL[2] not in ingest.declared
    assert "is left out" in caplog.text


async def test_a_defect_is_logged_and_the_series_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    ingest = Ingest()
    ingest.trouble[ALL[2]] = [KeyError("a mistake")]
    sync = ingest.sync()
    sweep = asyncio.create_task(sync.run())
    await until(lambda: len(ingest.followed) == 5)
    for series in ALL:
        ingest.let(series)
    await asyncio.wait_for(sweep, TIMEOUT_S)
    assert sync.progress().done == 5
    assert "KeyError: 'a mistake'" in caplog.text


async def test_progress_is_logged_periodically_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ingest = Ingest()
    sync = ingest.sync()
    sweep = asyncio.create_task(sync.run())
    await until(lambda: len(ingest.followed) == 5)
    for done, series in enumerate(ALL, 1):
        ingest.now_s += 2.0
        ingest.let(series)
        await until(lambda done=done: sync.progress().done == done)  # type: ignore[misc]
    await asyncio.wait_for(sweep, TIMEOUT_S)
    assert [record.message for record in caplog.records] == [
        "event=startup.progress done=3 total=5: start-up sweep: 3 of 5 series up to date, after 6.0 s",
        "event=startup.progress done=5 total=5: start-up sweep: 5 of 5 series up to date, after 10.0 s",
    ]


async def test_an_empty_whitelist_is_swept_at_once() -> None:
    ingest = Ingest()
    sync = StartupSync(series=(), follow=ingest.follow, caught_up=ingest.caught_up, monotonic=lambda: 5.0)
    await asyncio.wait_for(sync.run(), TIMEOUT_S)
    assert sync.progress() == SweepProgress(0, 0, 0)

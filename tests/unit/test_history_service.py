"""HistoryService on a real store and pipeline, with an exchange that a test controls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import apsw
import pytest

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import BadCandle, StoreError, UpstreamError
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, missing_spans
from klinesync.exchanges.exchange import Errand, HistoryPage, Reach, Urgency
from klinesync.history import queue as history_queue
from klinesync.history.board import BackfillBoard
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import Pending, RetryPolicy
from klinesync.history.ports import HistoryPorts
from klinesync.history.reading import Shelf
from klinesync.history.requested import BackfillProgress
from klinesync.history.service import HistoryService
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.storage.damage import Damage, StoreDamaged
from klinesync.storage.sqlite import InThreadSqliteDatabase
from support.pauses import one_step

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
PAGE = 10
TIMEOUT_S = 10.0


def candle(minute: int) -> Candle:
    return Candle(60 * minute, 1.0, 2.0, 0.5, 1.5, float(minute))


def span(first: int, end: int) -> Span:
    return Span(60 * first, 60 * end)


def older(series: SeriesId, where: Span, asked_by: str, urgency: Urgency = Urgency.DEEP) -> Need:
    return Need(series, where, Reason.OLDER, asked_by, urgency)


class Exchange:
    """An exchange with the given minutes, which records its requests. `trouble`: errors of the next requests; answers
    wait while `closed` is set."""

    def __init__(self, minutes: Iterable[int]) -> None:
        self.minutes = set(minutes)
        self.asked: list[tuple[SeriesId, int, int]] = []
        self.urgencies: set[Urgency] = set()
        self.trouble: list[UpstreamError] = []
        self.open = asyncio.Event()
        self.open.set()
        self.at_once = self.most_at_once = 0

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        assert end is not None
        self.asked.append((series, start // 60, end // 60))
        self.urgencies.add(errand.urgency)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while True:
                await self.open.wait()
                await asyncio.sleep(0)
                if self.trouble:
                    raise self.trouble.pop(0)
                page = [minute for minute in sorted(self.minutes) if start <= 60 * minute < end][:PAGE]
                if not page:
                    return
                times = [60 * minute for minute in page]
                yield HistoryPage(
                    [candle(minute) for minute in page],
                    missing_spans(series.timeframe, times[0], times[-1], times),
                )
                if len(page) < PAGE or times[-1] <= start:
                    return
                start = times[-1]
        finally:
            self.at_once -= 1


SMALL = HistoryLimits(piece_candles=25, page_candles=PAGE, store_retry_s=0.02)
QUICK = RetryPolicy(Backoff(0.05, 6 * 3600.0, jitter=0.25))


class World:
    """A store, its writer, and the healing on top of both. `fail`: writes fail."""

    def __init__(
        self,
        database: InThreadSqliteDatabase,
        exchange: Exchange,
        shelves: Sequence[Shelf] = (),
        oldest: int | None = None,
        retries: RetryPolicy = QUICK,
        limits: HistoryLimits = SMALL,
    ) -> None:
        self.database = database
        self.ahead_s = 0.0  # seconds by which the clock has jumped
        self.exchange = exchange
        self.board = BackfillBoard(lambda: 1_700_000_000.0)
        nothing = DerivedStep(BTC.timeframe, [])
        self.pipeline = IngestPipeline(database, nothing, no_ledger(), lambda _: None, lambda: 1_700_000_000.0)
        self.healing = HistoryService(
            HistoryPorts(
                history=exchange.history,
                pipeline=self.pipeline,
                database=database,
                watch=self.board.watch(),
                deep_watch=self.board.watch(),
                shelves=shelves,
                reach=lambda _: None if oldest is None else Reach(60 * oldest, "it keeps the newest few"),
                rng=random.Random(1),
                retries=retries,
                limits=limits,
                monotonic=lambda: SYSTEM_CLOCK.monotonic_s() + self.ahead_s,
            )
        )

    async def write(self, series: SeriesId, minutes: Iterable[int], empty: Sequence[Span] = ()) -> None:
        await self.pipeline.submit(series, [candle(minute) for minute in minutes], "http", Empty(empty, "a test"))

    async def ledger(self, series: SeriesId) -> list[Gap]:
        return await self.database.read(lambda store: store.gaps(series))

    async def minutes(self, series: SeriesId) -> list[int]:
        stored = await self.database.read(lambda store: store.oldest(series, 1 << 30, since=-1))
        return [one.time // 60 for one in stored]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for a condition."""
        async with asyncio.timeout(TIMEOUT_S):
            while not true():
                await asyncio.sleep(0.001)

    async def settled(self, *series: SeriesId) -> None:
        """No need of the series is in flight or waits."""
        await self.until(lambda: not any(self.healing.working_on(one) for one in series))


@asynccontextmanager
async def world_on(
    path: Path,
    exchange: Exchange,
    fail: Callable[[], None] | None = None,
    shelves: Sequence[Shelf] = (),
    oldest: int | None = None,
    retries: RetryPolicy = QUICK,
    limits: HistoryLimits = SMALL,
) -> AsyncIterator[World]:
    async with InThreadSqliteDatabase(path / "store.sqlite", pause=one_step, before_commit=fail) as database:
        world = World(database, exchange, shelves, oldest, retries, limits)
        tasks = [asyncio.create_task(world.pipeline.run()), asyncio.create_task(world.healing.run())]
        try:
            yield world
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                assert task.cancelled(), task


async def test_declared_gaps_are_filled_or_confirmed_empty_and_not_requested_again_after_a_restart(
    tmp_path: Path,
) -> None:
    exchange = Exchange([*range(20), *range(60, 100)])  # an outage from 20 to 60
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [*range(5), *range(8, 12), *range(90, 100)])
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        assert await world.minutes(BTC) == sorted(exchange.minutes)
        (hole,) = await world.ledger(BTC)
        assert (hole.span, hole.state) == (span(20, 60), GapState.CONFIRMED_EMPTY)
        assert hole.proof == "one REST answer has its neighbours and nothing between them"
        assert world.exchange.urgencies == {Urgency.DEEP}
    exchange.asked.clear()
    async with world_on(tmp_path, exchange) as world:
        world.healing.request_declared(BTC)
        world.healing.submit(older(BTC, span(0, 100), "a test"))
        await world.settled(BTC)
    assert exchange.asked == []


async def test_an_answer_without_the_stored_neighbour_proves_nothing_and_the_gap_is_retried(tmp_path: Path) -> None:
    exchange = Exchange([*range(10), 15, *range(16, 20)])
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [*range(10), *range(15, 20)])
        exchange.minutes -= {9, 15}  # the exchange shows the hole, but not the candles at its ends
        world.healing.request_declared(BTC)
        await world.until(lambda: len(exchange.asked) >= 2)
        assert [gap.state for gap in await world.ledger(BTC)] == [GapState.UNKNOWN]
        report = world.board.report(BTC, 120)
        assert report.state in ("failed", "running")
        assert set(exchange.asked) == {(BTC, 9, 16)}
        exchange.minutes |= set(range(20))
        async with asyncio.timeout(TIMEOUT_S):
            while await world.ledger(BTC):  # the store publishes nothing
                await asyncio.sleep(0.001)
        assert await world.minutes(BTC) == list(range(20))


class Noted(RetryPolicy):
    """Records `Retry-After` of the exchange, and waits a thousandth of it."""

    waits: ClassVar[list[float]] = []

    def after_fruitless(
        self, pending: Pending, now_s: float, rng: random.Random, at_least_s: float = 0.0, *, out_of_reach: bool = False
    ) -> Pending:
        self.waits.append(at_least_s)
        return RetryPolicy.after_fruitless(self, pending, now_s, rng, at_least_s / 1000, out_of_reach=out_of_reach)


async def test_retry_after_of_the_exchange_is_the_shortest_retry_delay(tmp_path: Path) -> None:
    Noted.waits.clear()
    waits = Noted.waits
    exchange = Exchange(range(100))
    exchange.trouble = [UpstreamError("banned", 418, retry_after_s=90.0), UpstreamError("no answer")]
    async with world_on(tmp_path, exchange, retries=Noted(QUICK.backoff)) as world:
        await world.write(BTC, [0, 99])
        world.healing.request_declared(BTC)
        await world.until(lambda: bool(waits))
        report = world.board.report(BTC, 120)
        assert (report.state, report.error) == ("failed", "banned")
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(100))
    assert waits == [90.0, 0.0]


async def test_a_failed_write_is_retried_until_the_store_works(tmp_path: Path) -> None:
    exchange = Exchange(range(40))
    full = False

    def fail() -> None:
        if full:
            raise apsw.FullError("database or disk is full")

    async with world_on(tmp_path, exchange, fail) as world:
        await world.write(BTC, [0, 39])
        full = True
        world.healing.request_declared(BTC)
        await world.until(lambda: len(exchange.asked) >= 2)
        report = world.board.report(BTC, 120)
        assert report.state in ("failed", "running")
        assert await world.minutes(BTC) == [0, 39]
        full = False
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(40))


async def test_a_failed_lookup_of_gaps_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(range(40))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [0, 39])
        failures = [StoreError("the store cannot be read")] * 3
        read = world.database.read

        async def failing(look):  # type: ignore[no-untyped-def]
            if failures:
                raise failures.pop()
            return await read(look)

        monkeypatch.setattr(world.database, "read", failing)
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        assert not failures
        assert await world.minutes(BTC) == list(range(40))


MANY = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(10)]  # more than there are workers
PATIENT = replace(SMALL, store_retry_s=1000.0, look_retry_most_s=3000.0)


async def test_lookups_that_always_fail_hold_up_no_other_series_and_are_repeated_with_backoff(tmp_path: Path) -> None:
    looks: list[SeriesId] = []

    async def find(series: SeriesId, page_start: int | None) -> Sequence[Need]:
        looks.append(series)
        raise RuntimeError("a defect") if len(looks) % 2 else StoreError("it cannot be read")

    async with world_on(tmp_path, Exchange(range(40)), limits=PATIENT) as world:
        await world.write(BTC, [0, 39])

        async def looked() -> int:
            """The lookups once those that are due have ended, and a gap of another series is filled."""
            for series in MANY:
                world.healing.look(series, find, anew=True)  # as further reads do
            world.healing.request_declared(BTC)
            await world.settled(BTC)
            await world.until(lambda: len(looks) % len(MANY) == 0)
            return len(looks)

        assert await looked() == len(MANY)
        assert await world.minutes(BTC) == list(range(40))
        assert world.healing.working_on(MANY[0]) != []
        counts = []
        for _ in range(12):
            world.ahead_s += 1000.0
            counts.append(await looked() // len(MANY))
        assert counts == [2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6], "after 1,000, 2,000, then every 3,000 s, before jitter"
        assert world.healing.working_on(MANY[0]) == [], "nothing is to be waited for"


async def test_a_shutdown_during_a_lookup_is_reported_neither_as_a_failure_nor_as_a_defect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looking = asyncio.Event()

    async def find(series: SeriesId, page_start: int | None) -> Sequence[Need]:
        looking.set()
        await asyncio.Event().wait()
        raise AssertionError("it never ends")

    async with world_on(tmp_path, Exchange(range(40))) as world:
        world.healing.look(BTC, find)
        async with asyncio.timeout(10):
            await looking.wait()
    assert "history.look_failed" not in caplog.text


async def test_damage_of_many_series_holds_up_the_reading_of_no_other_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Exchange(range(40))
    async with world_on(tmp_path, exchange, limits=PATIENT) as world:
        for series in (*MANY, BTC):
            await world.write(series, [0, 39])
        submit = world.pipeline.submit

        async def damaged(series: SeriesId, *rest: object) -> object:
            if series in MANY:
                raise StoreDamaged(Damage(series, None, "a test says so"))
            return await submit(series, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(world.pipeline, "submit", damaged)
        for series in (*MANY, BTC):
            world.healing.request_declared(series)
        await world.until(lambda: len(exchange.asked) > len(MANY))
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(40))
        [status] = world.healing.needs_of(MANY[0])
        assert "damaged" in str(status.last_answer)


async def test_two_thousand_needs_of_one_gap_share_a_reading(tmp_path: Path) -> None:
    exchange = Exchange(range(12))
    exchange.open.clear()
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [0, 11])
        for turn in range(2000):
            world.healing.submit(older(BTC, span(1, 5 + turn % 7), "a test"))
            if turn == 1000:
                await world.until(lambda: bool(exchange.asked))
        exchange.open.set()
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(12))
    assert exchange.asked == [(BTC, 0, 12)]


async def test_concurrent_readings_are_limited_and_a_series_that_hangs_delays_no_other(tmp_path: Path) -> None:
    others = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(10)]
    exchange = Exchange(range(12))

    hanging = asyncio.Event()
    answer = exchange.history

    async def history(
        series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        if series == BTC:
            hanging.set()
            await asyncio.get_running_loop().create_future()
        async for page in answer(series, start, errand, end):
            yield page

    exchange.history = history  # type: ignore[method-assign]
    async with world_on(tmp_path, exchange) as world:
        for series in (BTC, *others):
            await world.write(series, [0, 11])
            world.healing.request_declared(series)
        await hanging.wait()
        await world.settled(*others)
        assert world.healing.working_on(BTC) == [span(1, 11)]
        assert 2 <= exchange.most_at_once <= history_queue.MAX_AT_ONCE
        assert world.board.report(BTC, 0).state == "running"
    assert world.board.report(BTC, 0).error == "the reading was broken off"


async def test_progress_is_reported_until_the_end(tmp_path: Path) -> None:
    exchange = Exchange(range(40))
    exchange.open.clear()
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [0, 15, 39])
        world.healing.submit(older(BTC, span(1, 15), "a user asked"))
        await world.until(lambda: world.board.report(BTC, 0).state == "running")
        report = world.board.report(BTC, 0)
        assert (report.reason, report.start_missing_candles) == ("a user asked", 14)
        exchange.open.set()
        await world.settled(BTC)
        report = world.board.report(BTC, 120)
        assert (report.state, report.progress_pct, report.error) == ("succeeded", 100.0, None)
        assert await world.minutes(BTC) == [*range(16), 39]


async def test_a_long_gap_is_read_piece_by_piece_its_oldest_page_first_then_newest_first(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [0, 99])
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(100))
    # The oldest page brings minutes 1 to 9.
    assert exchange.asked == [(BTC, 0, 100), (BTC, 73, 100), (BTC, 47, 74), (BTC, 21, 48), (BTC, 9, 22)]


async def test_history_before_the_first_candle_is_read_on_request(tmp_path: Path) -> None:
    exchange = Exchange(range(7, 100))  # listed at 7
    async with world_on(tmp_path, exchange) as world:
        world.healing.submit(older(BTC, span(0, 90), "first history"))
        await world.until(lambda: world.healing.working_on(BTC) != [])
        await world.write(BTC, range(90, 95))
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(7, 95))
        assert await world.ledger(BTC) == []


async def test_a_users_read_does_not_wait_for_healing_that_takes_all_places(tmp_path: Path) -> None:
    others = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(history_queue.MAX_AT_ONCE + 3)]
    exchange = Exchange(range(40))
    hanging: list[Errand] = []
    answer = exchange.history

    async def history(
        series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        if series != BTC:
            hanging.append(errand)
            await asyncio.get_running_loop().create_future()
        async for page in answer(series, start, errand, end):
            yield page

    exchange.history = history  # type: ignore[method-assign]
    async with world_on(tmp_path, exchange) as world:
        for series in (*others, BTC):
            await world.write(series, [20, 39])
            world.healing.request_declared(series)
        await world.until(lambda: len(hanging) == history_queue.MAX_AT_ONCE)
        assert {errand.urgency for errand in hanging} == {Urgency.DEEP}
        world.healing.submit(older(BTC, span(10, 20), "read", Urgency.READ))
        await world.until(lambda: bool(exchange.asked))
        async with asyncio.timeout(TIMEOUT_S):
            while (await world.minutes(BTC))[0] != 10:
                await asyncio.sleep(0.001)
        assert exchange.urgencies == {Urgency.READ}
        # A reading in flight is joined, and gets the urgency of the user.
        world.healing.submit(older(others[0], span(25, 30), "read", Urgency.READ))
        assert sorted(errand.urgency for errand in hanging)[:2] == [Urgency.READ, Urgency.DEEP]


async def test_a_deep_reading_yields_after_a_page_to_a_users_read_of_the_same_series(tmp_path: Path) -> None:
    exchange = Exchange(range(200))
    async with world_on(tmp_path, exchange) as world:
        answer = exchange.history

        async def history(
            series: SeriesId, start: int, errand: Errand, end: int | None = None
        ) -> AsyncGenerator[HistoryPage, None]:
            async for page in answer(series, start, errand, end):
                if len(exchange.asked) == 1:
                    world.healing.submit(older(BTC, span(90, 100), "read", Urgency.READ))
                yield page

        holes = world.healing._holes
        world.healing._holes = replace(holes, ports=replace(holes.ports, history=history))
        await world.write(BTC, [100, 124])
        world.healing.request_declared(BTC)
        await world.until(lambda: len(exchange.asked) == 3)
        await world.settled(BTC)
        assert exchange.asked == [(BTC, 100, 125), (BTC, 90, 101), (BTC, 109, 125)]
        assert await world.minutes(BTC) == list(range(90, 125))


async def test_the_status_of_a_need_has_its_attempts_last_answer_and_next_try(tmp_path: Path) -> None:
    exchange = Exchange([*range(5), *range(15, 20)])
    exchange.trouble = [UpstreamError("banned", 418, retry_after_s=0.2)]
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [0, *range(15, 20)])
        world.healing.request_declared(BTC)
        await world.until(lambda: any(one.last_answer for one in world.healing.needs_of(BTC)))
        (status,) = world.healing.needs_of(BTC)
        assert (status.need.span, status.need.reason, status.need.asked_by) == (span(1, 15), Reason.GAP, "declared gap")
        assert (status.in_flight, status.attempts, status.last_answer) == (False, 1, "banned")
        assert status.next_try_s is not None
        exchange.open.clear()
        await world.until(lambda: world.healing.needs_of(BTC)[0].in_flight)
        assert asyncio.get_running_loop().time() >= status.next_try_s
        (status,) = world.healing.needs_of(BTC)
        assert (status.attempts, status.next_try_s, status.last_answer) == (2, None, "banned")
        exchange.open.set()
        await world.settled(BTC)
        assert world.healing.needs_of(BTC) == ()


async def test_a_proof_that_nothing_is_before_the_first_candle_counts_until_it_expires(
    tmp_path: Path,
) -> None:
    exchange = Exchange(range(7, 100))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(15, 95))
        assert world.healing.nothing_before(BTC) is None
        world.healing.submit(older(BTC, span(10, 15), "read", Urgency.READ))
        await world.settled(BTC)
        assert world.healing.nothing_before(BTC) is None
        world.healing.submit(older(BTC, span(2, 10), "read", Urgency.READ))
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(7, 95))
        assert world.healing.nothing_before(BTC) == span(2, 7)
        world.ahead_s += USUAL_LIMITS.nothing_before_ttl_s
        assert world.healing.nothing_before(BTC) is None


async def test_remembered_beginnings_of_series_are_limited(tmp_path: Path) -> None:
    exchange = Exchange(range(7, 100))
    async with world_on(tmp_path, exchange, limits=replace(SMALL, remembered=1)) as world:
        for series in (BTC, ETH):
            await world.write(series, range(7, 20))
            world.healing.submit(older(series, span(2, 7), "read", Urgency.READ))
            await world.settled(series)
        assert world.healing.nothing_before(BTC) is None
        assert world.healing.nothing_before(ETH) == span(2, 7)


async def test_older_history_of_several_pages_never_leaves_a_gap_before_the_stored_candles(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    seen: list[list[int]] = []
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(60, 70))
        submit = world.pipeline.submit

        async def looking(*submission: object) -> object:
            applied = await submit(*submission)  # type: ignore[arg-type]
            seen.append(await world.minutes(BTC))
            return applied

        world.pipeline.submit = looking  # type: ignore[method-assign,assignment]
        world.healing.submit(older(BTC, span(36, 60), "read", Urgency.READ))
        await world.settled(BTC)
    assert len(seen) == 3
    assert seen[-1] == list(range(36, 70))
    assert all(minutes == list(range(minutes[0], 70)) for minutes in seen)


async def test_an_interrupted_reading_of_older_history_leaves_no_gap(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    answer = exchange.history
    broken: list[int] = []

    async def history(
        series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        async for page in answer(series, start, errand, end):
            yield page
            if not broken:
                broken.append(page.candles[0].time)
                raise UpstreamError("banned", 418, retry_after_s=0.0)

    exchange.history = history  # type: ignore[method-assign]
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(60, 70))
        world.healing.submit(older(BTC, span(36, 60), "read", Urgency.READ))
        await world.until(lambda: bool(broken))
        await world.until(lambda: world.board.report(BTC, 0).state == "failed")
        assert await world.ledger(BTC) == []
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(36, 70))


# --- explicit backfills


async def test_an_explicit_backfill_reads_the_oldest_part_first_and_its_rest_is_declared_as_healing(
    tmp_path: Path,
) -> None:
    exchange = Exchange(range(100))
    seen: list[BackfillProgress] = []
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(90, 95))
        asked = asyncio.create_task(world.healing.backfill(BTC, span(5, 90), seen.append))
        await world.until(lambda: any(one.missing < 80 for one in seen))
        report = world.board.report(BTC, 0)
        assert (report.state, report.reason) == ("running", "backfill")
        (hole,) = await world.ledger(BTC)
        assert (hole.state, hole.end) == (GapState.HEALING, 60 * 90)
        over = await asked
        assert await world.minutes(BTC) == list(range(5, 95))
        assert await world.ledger(BTC) == []
        report = world.board.report(BTC, 120)
        assert (report.state, report.progress_pct) == ("succeeded", 100.0)
    assert (over.total, over.missing, over.trouble) == (85, 0, None)
    assert over.candles >= 85
    missing = [one.missing for one in seen]
    assert missing == sorted(missing, reverse=True)
    # From the first candle to the stored candle after it; each piece joins the piece before.
    starts = [start for _, start, _ in exchange.asked]
    assert starts == sorted(starts)
    assert exchange.asked[0] == (BTC, 5, 91)
    assert exchange.urgencies == {Urgency.DEEP}


async def test_an_interrupted_backfill_is_resumed_after_a_restart(tmp_path: Path) -> None:
    exchange = Exchange(range(200))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(190, 195))
        seen: list[BackfillProgress] = []
        asked = asyncio.create_task(world.healing.backfill(BTC, span(0, 190), seen.append))
        await world.until(lambda: any(one.missing < 150 for one in seen))
        exchange.open.clear()
        asked.cancel()
        await asyncio.wait([asked])
    exchange.open.set()
    exchange.asked.clear()
    async with world_on(tmp_path, exchange) as world:
        before = len(await world.minutes(BTC))
        assert 40 < before < 195
        await world.until(lambda: bool(exchange.asked))
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(195))
        assert exchange.asked[0][1] >= 40, "what is stored is not read again"
        await world.until(lambda: world.board.report(BTC, 120).state == "succeeded")


@pytest.mark.parametrize("minutes", [range(0), range(20), range(180, 200)], ids=["nothing", "older", "newer"])
async def test_a_backfill_is_resumed_after_a_restart_at_any_point_of_interruption(
    minutes: range, tmp_path: Path
) -> None:
    """Behind the stored head there is no hole yet, and before the first candle none until the first page is written."""
    exchange = Exchange(range(200))
    exchange.open.clear()
    async with world_on(tmp_path, exchange) as world:
        if minutes:
            await world.write(BTC, minutes)
        assert (await world.healing.start(BTC, span(0, 200))).missing == 200 - len(minutes)
        await world.until(lambda: bool(exchange.asked))
        before = await world.minutes(BTC)
    assert before == list(minutes)
    for broken_off in (True, False):  # once more in the middle
        exchange.open.set()
        exchange.asked.clear()
        async with world_on(tmp_path, exchange) as world:
            if broken_off:
                await world.until(lambda: len(exchange.asked) >= 3)
                exchange.open.clear()
            else:
                await world.until(lambda: world.board.report(BTC, 120).state == "succeeded")
                assert exchange.asked[0][1] >= 20, "what is stored is not read again"
            before = await world.minutes(BTC)
            assert len(before) < 200 or not broken_off
    assert before == list(range(200))
    exchange.asked.clear()
    async with world_on(tmp_path, exchange) as world:
        assert await world.database.read(lambda store: store.backfills()) == []
        await world.settled(BTC)
    assert exchange.asked == []


async def test_candles_that_the_exchange_does_not_have_are_not_requested_again_after_a_restart(tmp_path: Path) -> None:
    exchange = Exchange(range(7, 80))
    async with world_on(tmp_path, exchange) as world:
        over = await world.healing.backfill(BTC, span(0, 100))
        assert (over.missing, over.begins) == (20, 60 * 7), "before the first one there is nothing"
    exchange.asked.clear()
    async with world_on(tmp_path, exchange) as world:
        assert await world.database.read(lambda store: store.backfills()) == []
        await world.settled(BTC)
    assert exchange.asked == []


async def test_a_restart_resumes_the_gap_of_a_backfill_and_leaves_declared_gaps(
    tmp_path: Path,
) -> None:
    exchange = Exchange(range(200))
    exchange.open.clear()
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [*range(20), *range(90, 100), *range(120, 130)])
        assert (await world.healing.start(BTC, span(0, 90))).missing == 70
        await world.until(lambda: bool(exchange.asked))
        assert [gap.state for gap in await world.ledger(BTC)] == [GapState.HEALING, GapState.UNKNOWN]
    exchange.open.set()
    async with world_on(tmp_path, exchange) as world:
        await world.until(lambda: world.board.report(BTC, 120).state == "succeeded")
        assert await world.minutes(BTC) == [*range(100), *range(120, 130)]


async def test_a_series_of_which_nothing_is_stored_is_backfilled_up_to_what_the_exchange_has(tmp_path: Path) -> None:
    exchange = Exchange(range(7, 80))
    async with world_on(tmp_path, exchange) as world:
        over = await world.healing.backfill(BTC, span(0, 100))
        assert await world.minutes(BTC) == list(range(7, 80))
        assert await world.ledger(BTC) == []
        assert (over.total, over.missing, over.trouble) == (100, 20, None)
        exchange.minutes |= set(range(80, 120))
        over = await world.healing.backfill(BTC, span(50, 110))
        assert await world.minutes(BTC) == list(range(7, 110))
        assert (over.total, over.missing) == (30, 0)
        exchange.asked.clear()
        assert (await world.healing.backfill(BTC, span(7, 110))).total == 0
        assert exchange.asked == []


async def test_holes_and_outages_are_backfilled_from_the_oldest_on(tmp_path: Path) -> None:
    outage = set(range(55, 100))  # longer than a piece
    exchange = Exchange(set(range(200)) - outage)
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [*range(10, 20), *range(50, 52), *range(150, 160)])
        over = await world.healing.backfill(BTC, span(0, 160))
        assert await world.minutes(BTC) == sorted(set(range(160)) - outage)
        (hole,) = await world.ledger(BTC)
        assert (hole.span, hole.state) == (span(55, 100), GapState.CONFIRMED_EMPTY)
        assert over.missing == 0
        starts = [start for _, start, _ in exchange.asked]
        assert starts == sorted(starts)


async def test_overlapping_backfills_share_their_requests_and_each_reports_its_own_progress(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    exchange.open.clear()
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(90, 95))
        asks = [
            asyncio.create_task(world.healing.backfill(BTC, span(first, 90)))
            for first in (60, 70, 60, 50)
            for _ in "12"
        ]
        await world.until(lambda: bool(exchange.asked))
        exchange.open.set()
        overs = await asyncio.gather(*asks)
        assert [over.total for over in overs] == [30, 30, 20, 20, 30, 30, 40, 40]
        assert all(over.missing == 0 for over in overs)
        assert await world.minutes(BTC) == list(range(50, 95))
    rows = [minute for _, start, end in exchange.asked for minute in range(start, end)]
    assert len(rows) <= 90, "the whole of it about once"


async def test_candles_that_the_exchange_repeatedly_withholds_end_a_backfill_as_missing(
    tmp_path: Path,
) -> None:
    exchange = Exchange({*range(10), *range(15, 30)})
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, [*range(10), *range(15, 30)])
        exchange.minutes -= {9, 15}
        over = await world.healing.backfill(BTC, span(0, 30))
        assert (over.total, over.missing) == (5, 5)
        assert over.trouble is not None
        assert "neither brings 5 candles" in over.trouble
        assert [gap.state for gap in await world.ledger(BTC)] == [GapState.UNKNOWN]
        assert len(exchange.asked) == QUICK.stalled_after
        assert world.board.report(BTC, 120).state == "failed"


async def test_a_backfill_waits_for_the_end_of_a_ban(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(90, 95))

        def ban(progress: BackfillProgress) -> None:
            if progress.missing < 60 and not banned:
                banned.append(progress)
                exchange.trouble = [UpstreamError("banned", 418, retry_after_s=0.05)] * 2

        banned: list[BackfillProgress] = []
        over = await world.healing.backfill(BTC, span(0, 90), ban)
        assert banned
        assert (over.missing, over.trouble) == (0, None)
        assert await world.minutes(BTC) == list(range(95))


async def test_live_candles_during_a_backfill_are_written(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    async with world_on(tmp_path, exchange) as world:
        await world.write(BTC, range(90, 95))
        lives = iter(range(95, 120))

        def live(_: BackfillProgress) -> None:
            if (minute := next(lives, None)) is not None:
                written = world.pipeline.offer(BTC, [candle(minute)])
                assert written is not None

        await world.healing.backfill(BTC, span(0, 90), live)
        async with asyncio.timeout(TIMEOUT_S):
            while (minutes := await world.minutes(BTC))[-1] < next(lives, 120) - 1:
                await asyncio.sleep(0.001)
        assert minutes == list(range(minutes[-1] + 1))
        assert minutes[-1] > 95
        assert await world.ledger(BTC) == []


async def test_a_store_that_cannot_be_written_ends_a_backfill_with_its_error(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    full = False

    def fail() -> None:
        if full:
            raise apsw.FullError("database or disk is full")

    def fill(_: BackfillProgress) -> None:
        nonlocal full
        full = True

    async with world_on(tmp_path, exchange, fail) as world:
        await world.write(BTC, range(90, 95))
        with pytest.raises(StoreError, match="full"):
            await world.healing.backfill(BTC, span(0, 90), fill)
        full = False
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(95)), "it goes on all the same"


# --- files


class Files:
    """Files that have the given minutes, and record the requested spans."""

    def __init__(self, minutes: Iterable[int], trouble: Exception | None = None) -> None:
        self.minutes = set(minutes)
        self.trouble = trouble
        self.asked: list[tuple[int, int]] = []

    async def pages(self, series: SeriesId, span: Span) -> AsyncGenerator[HistoryPage, None]:
        self.asked.append((span.start // 60, span.end // 60))
        rows = [minute for minute in sorted(self.minutes) if span.start <= 60 * minute < span.end]
        for first in range(0, len(rows), PAGE):
            await asyncio.sleep(0)
            yield HistoryPage([candle(minute) for minute in rows[first : first + PAGE]], [])
            if self.trouble is not None:
                raise self.trouble


async def test_files_the_archive_and_the_exchange_are_each_asked_for_the_remaining_candles_alone(
    tmp_path: Path,
) -> None:
    exchange = Exchange(range(300))
    files, archive = Files(range(150, 180)), Files([*range(20, 150), *range(210, 230)])
    shelves = [Shelf("freqtrade", files, gap_most=10), Shelf("archive", archive, least_candles=100)]
    async with world_on(tmp_path, exchange, shelves=shelves) as world:
        await world.write(BTC, range(250, 260))
        over = await world.healing.backfill(BTC, span(0, 250))
        assert over.missing == 0
        assert await world.minutes(BTC) == list(range(260))
        assert files.asked == [(0, 250)]
        assert archive.asked == [(0, 150)], "180 to 250 is too short for it"
        rest = {minute for _, start, end in exchange.asked for minute in range(start, end)}
        assert not rest & set(range(40, 140)), "what the files brought"
        assert dict(world.pipeline.written) == {"http": 10, "freqtrade": 30, "archive": 130, "rest": 90}


async def test_a_gap_reads_a_limited_number_of_candles_from_freqtrades_files_once(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    files = Files([*range(40, 60), 61])
    async with world_on(tmp_path, exchange, shelves=[Shelf("freqtrade", files, gap_most=15)]) as world:
        await world.write(BTC, [*range(10), 80])
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        assert await world.minutes(BTC) == list(range(81))
        assert files.asked == [(65, 80)]
    no_files = Files(range(100))
    async with world_on(tmp_path, exchange, shelves=[Shelf("freqtrade", no_files, gap_most=0)]) as world:
        await world.write(ETH, [0, 80])
        world.healing.request_declared(ETH)
        await world.settled(ETH)
        assert no_files.asked == []


async def test_files_never_prove_a_span_empty(tmp_path: Path) -> None:
    exchange = Exchange(range(50))
    files = Files([9, 10, 12, 19, 20])  # it has both neighbours of every hole
    async with world_on(tmp_path, exchange, shelves=[Shelf("freqtrade", files)]) as world:
        await world.write(BTC, [9, 30])
        exchange.trouble = [UpstreamError("away")] * 1000
        world.healing.request_declared(BTC)
        await world.until(lambda: world.board.report(BTC, 0).state == "failed")
        assert {gap.state for gap in await world.ledger(BTC)} == {GapState.UNKNOWN}
        assert await world.minutes(BTC) == [9, 10, 12, 19, 20, 30]
        exchange.trouble.clear()
        async with asyncio.timeout(TIMEOUT_S):
            while await world.ledger(BTC):
                await asyncio.sleep(0.001)
        assert await world.minutes(BTC) == list(range(9, 31))


@pytest.mark.parametrize("trouble", [UpstreamError("the archive is away"), BadCandle(0, "a test says so")], ids=str)
async def test_after_unusable_files_the_exchange_is_asked(tmp_path: Path, trouble: Exception) -> None:
    exchange = Exchange(range(100))
    async with world_on(tmp_path, exchange, shelves=[Shelf("archive", Files(range(100), trouble))]) as world:
        await world.write(BTC, range(90, 95))
        over = await world.healing.backfill(BTC, span(0, 90))
        assert over.missing == 0
        assert await world.minutes(BTC) == list(range(95))
        assert world.pipeline.written["archive"] == PAGE


async def test_older_history_from_files_never_leaves_a_gap_before_the_stored_candles(tmp_path: Path) -> None:
    exchange = Exchange(range(100))
    async with world_on(tmp_path, exchange, shelves=[Shelf("freqtrade", Files(range(30, 100)))]) as world:
        await world.write(BTC, range(60, 70))
        submit = world.pipeline.submit
        seen: list[list[int]] = []

        async def looking(*submission: object) -> object:
            applied = await submit(*submission)  # type: ignore[arg-type]
            seen.append(await world.minutes(BTC))
            return applied

        world.pipeline.submit = looking  # type: ignore[method-assign,assignment]
        world.healing.submit(older(BTC, span(40, 60), "read", Urgency.READ))
        await world.settled(BTC)
        assert seen[-1] == list(range(40, 70))
        assert all(minutes == list(range(minutes[0], 70)) for minutes in seen)
    assert exchange.asked == []


async def test_a_users_read_interrupts_the_reading_of_files(tmp_path: Path) -> None:
    exchange = Exchange(range(1000))
    archive = Files(range(500))
    async with world_on(tmp_path, exchange, shelves=[Shelf("archive", archive, least_candles=100)]) as world:
        await world.write(BTC, [*range(900, 910)])
        seen: list[int] = []

        def scroll_back(progress: BackfillProgress) -> None:
            if not seen and progress.candles >= 5 * PAGE:
                seen.append(progress.candles)
                world.healing.submit(older(BTC, span(880, 900), "read", Urgency.READ))

        over = await world.healing.backfill(BTC, span(0, 900), scroll_back)
        assert over.missing == 0
        assert await world.minutes(BTC) == list(range(910))
        assert len(archive.asked) == 2, "it went on where it was interrupted"
        assert archive.asked[1][0] >= 5 * PAGE


# --- history that the exchange does not have


async def test_candles_older_than_the_exchanges_history_are_lost_at_once_and_never_requested(tmp_path: Path) -> None:
    exchange = Exchange(range(50, 100))
    async with world_on(tmp_path, exchange, oldest=50) as world:
        await world.write(BTC, [*range(10), *range(90, 100)])
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        (hole,) = await world.ledger(BTC)
        assert (hole.span, hole.state, hole.proof) == (span(10, 50), GapState.LOST, "it keeps the newest few")
        assert await world.minutes(BTC) == [*range(10), *range(50, 100)]
        assert min(start for _, start, _ in exchange.asked) >= 49, "what it does not have is not asked for"
        exchange.asked.clear()
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        over = await world.healing.backfill(BTC, span(0, 100))
        assert (over.missing, over.lost, over.lost_why) == (0, 40, "it keeps the newest few")
    assert exchange.asked == []


async def test_a_backfill_reads_the_history_that_an_exchange_keeps_and_reports_the_lost_part(tmp_path: Path) -> None:
    exchange = Exchange(range(50, 100))
    async with world_on(tmp_path, exchange, oldest=50) as world:
        over = await world.healing.backfill(BTC, span(0, 100))
        assert await world.minutes(BTC) == list(range(50, 100))
        assert (over.missing, over.lost, over.lost_why, over.begins) == (0, 50, "it keeps the newest few", None)
        exchange.asked.clear()
        over = await world.healing.backfill(BTC, span(0, 40))
        assert (over.missing, over.lost) == (0, 40)
    assert exchange.asked == []


@pytest.mark.parametrize("refuses", [False, True], ids=["newer rows alone", "a wrong question"])
async def test_a_gap_older_than_every_answer_is_lost_after_the_time_limit(tmp_path: Path, refuses: bool) -> None:
    exchange = Exchange(range(60, 100))

    def reached(start: int) -> None:
        if refuses and start < 60:
            exchange.trouble = [UpstreamError("Maximum 40 points ago are allowed", 400)]

    async with world_on(tmp_path, Asked(exchange, reached)) as world:
        await world.write(BTC, [*range(10), *range(60, 100)])
        world.healing.request_declared(BTC)
        await world.until(lambda: len(exchange.asked) >= QUICK.stalled_after + 1)
        assert [gap.state for gap in await world.ledger(BTC)] == [GapState.UNKNOWN], "it may be trouble"
        world.ahead_s = QUICK.lost_after_s
        async with asyncio.timeout(TIMEOUT_S):
            while [gap.state for gap in await world.ledger(BTC)] != [GapState.LOST]:
                await asyncio.sleep(0.001)
        await world.settled(BTC)
        exchange.asked.clear()
        world.healing.request_declared(BTC)
        await world.settled(BTC)
        assert exchange.asked == []
        exchange.minutes |= set(range(60))
        refuses = False
        over = await world.healing.backfill(BTC, span(0, 100))
        assert (over.missing, over.lost) == (0, 0), "a user may have it asked for once more"
        assert await world.minutes(BTC) == list(range(100))
        assert await world.ledger(BTC) == []


class Asked(Exchange):
    """Another exchange, which checks each request before answering."""

    def __init__(self, other: Exchange, look: Callable[[int], None]) -> None:
        super().__init__(())
        self.other = other
        self.look = look

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        self.look(start // 60)
        async for page in self.other.history(series, start, errand, end):
            yield page

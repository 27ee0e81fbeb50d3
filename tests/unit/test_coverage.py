"""Coverage on a real store and pipeline, with an exchange that a test controls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import apsw

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, HistoryPage, Urgency
from klinesync.history import queue as history_queue
from klinesync.history.board import BackfillBoard
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.missing import Reason
from klinesync.history.pending import USUAL_RETRIES, RetryPolicy
from klinesync.history.ports import HistoryPorts
from klinesync.history.service import HistoryService
from klinesync.history.tails import TailLimits, Tails
from klinesync.market_data.coverage import Coverage
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.storage.sqlite import InThreadSqliteDatabase
from support.fake_exchange import FakeExchange, registry_of
from support.pauses import one_step

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
SOL = SeriesId.parse("binance:spot:SOL/USDT:1m")
OTHER = SeriesId.parse("kraken:spot:BTC/USD:1m")
NOW_S = 60.0 * 1000 + 30
PAGE = 10
TIMEOUT_S = 10.0


def candle(minute: int) -> Candle:
    return Candle(60 * minute, 1.0, 2.0, 0.5, 1.5, float(minute))


class Exchange(FakeExchange):
    """An exchange that lists all symbols except `gone`, and has the minutes up to now; it records its requests.
    `trouble`: errors of the next requests; answers wait until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.minutes = set(range(1000))
        self.gone: set[SeriesId] = set()
        self.asked: list[tuple[SeriesId, int]] = []
        self.urgencies: set[Urgency] = set()
        self.asked_time = 0
        self.looked_up = 0
        self.trouble: list[UpstreamError] = []
        self.open = asyncio.Event()
        self.open.set()

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        self.asked.append((series, start // 60))
        self.urgencies.add(errand.urgency)
        end_minute = 10**9 if end is None else end // 60
        while True:
            await self.open.wait()
            if self.trouble:
                raise self.trouble.pop()
            page = [minute for minute in sorted(self.minutes) if start // 60 <= minute < end_minute][:PAGE]
            if not page:
                return
            yield HistoryPage([candle(minute) for minute in page], [])
            if len(page) < PAGE or page[-1] * 60 == start:
                return
            start = page[-1] * 60

    async def now_ms(self, market: str) -> int:
        self.asked_time += 1
        return int(NOW_S * 1000)

    async def refusal(self, series: SeriesId) -> str | None:
        self.looked_up += 1
        return "it is gone" if series in self.gone else None


# The first retry follows at once.
AT_ONCE = RetryPolicy(Backoff(0.0, 300.0))


class World:
    """A store, its writer, and the coverage on top of both."""

    def __init__(
        self,
        database: InThreadSqliteDatabase,
        exchange: Exchange,
        retries: RetryPolicy = USUAL_RETRIES,
        bounds: HistoryLimits = USUAL_LIMITS,
    ) -> None:
        self.database = database
        self.exchange = exchange
        self.exchange_s: float | None = NOW_S
        self.kept_from = 0
        self.followed: set[SeriesId] = set()
        self.board = BackfillBoard(lambda: 1_700_000_000.0)
        self.pipeline = IngestPipeline(
            database,
            DerivedStep(BTC.timeframe, []),
            no_ledger(),
            lambda _: None,
            lambda: 1_700_000_000.0,
        )
        limits = TailLimits(50, 2.0, lambda series, head: self.kept_from)
        ports = HistoryPorts(
            history=exchange.history,
            pipeline=self.pipeline,
            database=database,
            watch=self.board.watch(),
            rng=random.Random(1),
            retries=retries,
            limits=bounds,
            now_s=lambda series: NOW_S,
        )
        tails = Tails(
            ports=ports,
            source=registry_of(exchange),
            limits=limits,
            followed=lambda series: series in self.followed,
            exchange_s=lambda series: self.exchange_s,
        )
        self.history = HistoryService(ports, tails=tails)
        self.coverage = Coverage(
            history=self.history,
            base_of=lambda series: series,
            covers=lambda series: series.exchange == "binance",
            followed=lambda series: series in self.followed,
            exchange_s=lambda series: self.exchange_s,
            now_s=lambda series: NOW_S,
            limits=limits,
        )

    async def write(self, series: SeriesId, minutes: Iterable[int]) -> None:
        await self.pipeline.submit(series, [candle(minute) for minute in minutes], "http")

    async def minutes(self, series: SeriesId) -> list[int]:
        stored = await self.database.read(lambda store: store.oldest(series, 1 << 30, since=-1))
        return [one.time // 60 for one in stored]

    async def read(self, series: SeriesId, page_start: int | None = None, *, newest: bool = True) -> None:
        """The request that a read of the series causes."""
        stored = await self.database.read(lambda store: store.span(series))
        self.coverage.ensure(series, series, stored, None if page_start is None else 60 * page_start, newest=newest)

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for a condition."""
        async with asyncio.timeout(TIMEOUT_S):
            while not true():
                await asyncio.sleep(0.001)

    async def ended(self, series: SeriesId, state: str) -> None:
        """The reading of the series has ended, with this result."""
        await self.until(lambda: self.board.report(series, 0).state == state)


@asynccontextmanager
async def world_on(
    path: Path,
    fail: Callable[[], None] | None = None,
    retries: RetryPolicy = USUAL_RETRIES,
    bounds: HistoryLimits = USUAL_LIMITS,
) -> AsyncIterator[World]:
    async with InThreadSqliteDatabase(path / "store.sqlite", pause=one_step, before_commit=fail) as database:
        world = World(database, Exchange(), retries, bounds)
        parts = (world.pipeline, world.history)
        tasks = [asyncio.create_task(part.run()) for part in parts]
        try:
            yield world
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                assert task.cancelled(), task


async def test_a_tail_is_read_from_the_stored_head_with_the_urgency_of_a_user(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        await world.write(BTC, range(970, 980))
        await world.read(BTC)
        await world.ended(BTC, "succeeded")
        assert await world.minutes(BTC) == list(range(970, 1000))
        assert world.exchange.asked == [(BTC, 979)]
        assert world.exchange.urgencies == {Urgency.READ}
        assert world.exchange.asked_time == 0
        report = world.board.report(BTC, 0)
        assert (report.reason, report.start_missing_candles, report.error) == ("read", 20, None)


async def test_nothing_is_requested_for_followed_current_or_foreign_series(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        world.followed.add(BTC)
        await world.write(ETH, range(980, 1000))
        assert world.coverage.base_of(OTHER) is None
        assert world.coverage.base_of(BTC) == BTC
        await world.read(BTC)
        await world.read(ETH)
        await world.read(SOL)
        await world.ended(SOL, "succeeded")
        assert world.exchange.asked == [(SOL, 950)]
        assert world.exchange.looked_up == 1


async def test_a_waiting_tail_is_dropped_when_its_series_is_followed(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        await world.read(BTC)
        world.followed.add(BTC)
        await world.until(lambda: world.exchange.looked_up == 1)
        await world.read(ETH)
        await world.ended(ETH, "succeeded")
        assert world.exchange.asked == [(ETH, 950)]


async def test_an_unknown_exchange_time_is_requested_once_in_a_cooldown(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        world.exchange_s = None
        await world.write(BTC, range(980, 1000))
        for _ in range(20):
            await world.read(BTC)
        await world.until(lambda: world.exchange.asked_time == 1)
        await world.read(ETH)
        await world.ended(ETH, "succeeded")
        for _ in range(20):
            await world.read(BTC)
        assert world.exchange.asked_time == 2
        assert world.exchange.asked == [(ETH, 950)]


async def test_retry_after_of_the_exchange_delays_the_retry_of_a_tail(tmp_path: Path) -> None:
    async with world_on(tmp_path, retries=AT_ONCE) as world:
        world.exchange.trouble = [UpstreamError("banned", 418, retry_after_s=3600.0)]
        await world.read(BTC)
        await world.ended(BTC, "failed")
        assert world.board.report(BTC, 0).error == "banned"
        for _ in range(20):
            await world.read(BTC)
        await world.read(ETH)
        await world.ended(ETH, "succeeded")
        assert [series for series, _ in world.exchange.asked] == [BTC, ETH]
        assert world.exchange.looked_up == 2


async def test_a_stored_series_of_an_unlisted_symbol_polls_the_list_seldom(tmp_path: Path) -> None:
    async with world_on(tmp_path, retries=AT_ONCE) as world:
        world.exchange.gone.add(BTC)
        await world.write(BTC, range(900, 905))
        await world.read(BTC)
        await world.until(lambda: world.exchange.looked_up == 1)
        await world.read(ETH)
        await world.ended(ETH, "succeeded")
        for _ in range(20):
            await world.read(BTC)
        await world.read(SOL)
        await world.ended(SOL, "succeeded")
        assert world.exchange.looked_up == 3
        assert BTC not in [series for series, _ in world.exchange.asked]


async def test_an_interrupted_tail_leaves_a_prefix_and_the_part_beyond_the_limit_is_healed(tmp_path: Path) -> None:
    async with world_on(tmp_path, retries=AT_ONCE) as world:
        await world.write(BTC, range(900, 905))
        answer = world.exchange.history
        prefix: list[int] = []

        async def history(
            series: SeriesId, start: int, errand: Errand, end: int | None = None
        ) -> AsyncGenerator[HistoryPage, None]:
            async for page in answer(series, start, errand, end):
                yield page
                if end is None and len(world.exchange.asked) == 1:
                    prefix.extend(await world.minutes(BTC))
                    raise UpstreamError("no answer")

        world.exchange.history = history  # type: ignore[method-assign]
        await world.read(BTC)
        async with asyncio.timeout(TIMEOUT_S):
            while await world.minutes(BTC) != list(range(900, 1000)):
                await asyncio.sleep(0.001)
        assert prefix == [*range(900, 905), *range(950, 960)]


async def test_after_a_failed_write_a_later_read_requests_the_tail_again(tmp_path: Path) -> None:
    full = True

    def fail() -> None:
        if full:
            raise apsw.FullError("database or disk is full")

    async with world_on(tmp_path, fail, AT_ONCE) as world:
        await world.read(BTC)
        await world.ended(BTC, "failed")
        full = False
        await world.read(BTC)
        await world.ended(BTC, "succeeded")
        assert await world.minutes(BTC) == list(range(950, 1000))


async def test_waiting_tails_are_limited_and_a_later_read_requests_a_refused_tail_again(
    tmp_path: Path,
) -> None:
    at_once = history_queue.MAX_AT_ONCE + history_queue.MAX_URGENT_AT_ONCE
    names = [SeriesId.parse(f"binance:spot:A{number}/USDT:1m") for number in range(at_once + 5)]
    async with world_on(tmp_path, bounds=HistoryLimits(needs=3)) as world:
        world.exchange.open.clear()
        for series in names[:at_once]:
            await world.read(series)
        await world.until(lambda: len(world.exchange.asked) == at_once)
        for series in names[at_once:]:
            await world.read(series)
        world.exchange.open.set()
        for series in names[: at_once + 3]:
            await world.ended(series, "succeeded")
        assert len(world.exchange.asked) == at_once + 3
        await world.read(names[-1])
        await world.ended(names[-1], "succeeded")


async def test_older_history_is_not_requested_while_the_tail_may_fill_the_newest_page(
    tmp_path: Path,
) -> None:
    async with world_on(tmp_path) as world:
        await world.write(BTC, range(970, 980))
        world.exchange.open.clear()
        await world.read(BTC, 950)
        await world.until(lambda: world.exchange.asked == [(BTC, 979)])
        await world.read(BTC, 950)
        assert [status.need.reason for status in world.history.needs_of(BTC)] == [Reason.TAIL]
        await world.read(BTC, 965, newest=False)  # scrolling back does not wait for a tail
        older, tail = world.history.needs_of(BTC)
        assert (older.need.reason, older.need.span) == (Reason.OLDER, Span(60 * 920, 60 * 970))
        assert (tail.need.reason, tail.in_flight, tail.attempts) == (Reason.TAIL, True, 1)
        world.exchange.open.set()
        await world.until(lambda: not world.history.working_on(BTC))
        assert (await world.minutes(BTC))[0] == 920


async def test_older_history_is_requested_when_the_tail_brings_nothing(tmp_path: Path) -> None:
    """As when nothing was traded for a while."""
    async with world_on(tmp_path) as world:
        world.exchange.minutes = set(range(980))
        await world.write(BTC, range(970, 980))
        await world.read(BTC, 950)
        await world.until(lambda: any(status.last_answer for status in world.history.needs_of(BTC)))
        await world.read(BTC, 950)
        await world.until(lambda: not any(one.need.reason is Reason.OLDER for one in world.history.needs_of(BTC)))
        assert (await world.minutes(BTC))[0] == 920
        (tail,) = world.history.needs_of(BTC)
        assert (tail.need.reason, tail.last_answer) == (Reason.TAIL, "no candle came")


async def test_candles_that_retention_would_trim_are_not_requested(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        world.kept_from = 60 * 990
        await world.read(BTC)
        await world.ended(BTC, "succeeded")
        assert await world.minutes(BTC) == list(range(990, 1000))
        await world.read(BTC, 900)
        assert world.history.working_on(BTC) == []

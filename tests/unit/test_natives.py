"""Native candles on a real store and pipeline, with an exchange that a test controls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, missing_spans
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import BOTH_NEIGHBOURS, Errand, HistoryPage, Urgency
from klinesync.history import natives
from klinesync.history.board import BackfillBoard
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.missing import Need, Reason
from klinesync.history.native_folds import BESIDE
from klinesync.history.pending import USUAL_RETRIES, RetryPolicy
from klinesync.history.ports import HistoryPorts
from klinesync.history.service import HistoryService
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.storage.sqlite import InThreadSqliteDatabase
from support.pauses import one_step

BASE = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIVES = BASE.with_timeframe(Timeframe.parse("5m"))
STEP_S = 300
BEGIN = 100 * STEP_S  # the first stored candle of the base
TIMEOUT_S = 10.0
AT_ONCE = RetryPolicy(Backoff(0.0, 0.0))


def wanted(first: int, end: int = 100) -> Need:
    return Need(FIVES, Span(first * STEP_S, end * STEP_S), Reason.NATIVE, "derived", Urgency.READ)


def request(first: int, end: int, source: SeriesId = FIVES) -> tuple[int, int]:
    """The buckets of a request for these, as `World.asked` has it: a fold has parts on both sides beside."""
    beside_s = 0 if source == FIVES else BESIDE * 60
    return -(-(first * STEP_S - beside_s) // STEP_S), (end * STEP_S + beside_s) // STEP_S


class World:
    """A store and an exchange. `shown`: the buckets that the exchange has, one page for each request; `trouble`: the
    error of the next request.

    source: the series that the exchange has in place of `FIVES`; None: no such series.
    """

    def __init__(
        self,
        database: InThreadSqliteDatabase,
        source: SeriesId | None = FIVES,
        limits: HistoryLimits = USUAL_LIMITS,
        retries: RetryPolicy = AT_ONCE,
    ) -> None:
        self.clients = False  # whether a client follows `FIVES`
        self.database = database
        self.source = source
        self.shown: set[int] = set()
        self.shown_later: set[int] = set()  # from the second request on
        self.holes: set[int] = set()  # open times of parts that the exchange does not have
        self.proves = False  # whether its answers prove holes
        self.asked: list[tuple[int, int]] = []
        self.trouble: list[UpstreamError] = []
        derived = DerivedStep(BASE.timeframe, [FIVES.timeframe])
        self.pipeline = IngestPipeline(database, derived, no_ledger(), lambda _: None, lambda: 1_700_000_000.0)
        self.history = HistoryService(
            HistoryPorts(
                history=self.pages,
                pipeline=self.pipeline,
                database=database,
                watch=BackfillBoard(lambda: 1_700_000_000.0).watch(),
                rng=random.Random(1),
                retries=retries,
                limits=limits,
                native_source=self.native_source,
                has_clients=lambda series: series == FIVES and self.clients,
            )
        )

    async def native_source(self, series: SeriesId) -> SeriesId | None:
        assert series == FIVES
        return self.source

    async def pages(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        assert series == self.source
        assert end is not None
        self.asked.append((-(-start // STEP_S), end // STEP_S))
        if self.trouble:
            raise self.trouble.pop()
        if len(self.asked) > 1:
            self.shown |= self.shown_later
        step_s = series.timeframe.step_s
        times = [time for time in range(start, end, step_s) if time // STEP_S in self.shown and time not in self.holes]
        if times:
            empty = missing_spans(series.timeframe, times[0], times[-1], times) if self.proves else []
            yield HistoryPage([Candle(time, 1.0, 2.0, 0.5, 1.5, 3.0) for time in times], empty)

    async def stored(self) -> list[int]:
        rows = await self.database.read(lambda store: store.oldest(FIVES, 1 << 30, since=-1))
        return [row.time // STEP_S for row in rows]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for a condition."""
        async with asyncio.timeout(TIMEOUT_S):
            while not true():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def world_on(
    path: Path,
    source: SeriesId | None = FIVES,
    limits: HistoryLimits = USUAL_LIMITS,
    retries: RetryPolicy = AT_ONCE,
) -> AsyncIterator[World]:
    async with InThreadSqliteDatabase(path / "store.sqlite", pause=one_step) as database:
        world = World(database, source, limits, retries)
        tasks = [asyncio.create_task(world.pipeline.run()), asyncio.create_task(world.history.run())]
        try:
            await world.pipeline.submit(BASE, [Candle(BEGIN, 1.0, 2.0, 0.5, 1.5, 3.0)], "http")
            yield world
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@pytest.mark.parametrize("source", [FIVES, BASE], ids=["its own", "folded from its parts"])
async def test_a_native_candle_that_is_not_shown_yet_is_retried_alone(tmp_path: Path, source: SeriesId) -> None:
    async with world_on(tmp_path, source) as world:
        world.shown, world.shown_later = set(range(90, 99)), {99}
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert world.asked[0] == request(90, 100, source)
        assert set(world.asked[1:]) == {request(99, 100, source)}
        assert await world.stored() == list(range(90, 100))


async def test_native_candles_that_are_gone_are_requested_again_also_a_moment_after_an_answer(tmp_path: Path) -> None:
    async def find(series: SeriesId, page_start: int | None) -> list[Need]:
        return [wanted(90)]

    async with world_on(tmp_path, retries=USUAL_RETRIES) as world:
        world.shown = set(range(90, 100))
        for requests, anew in ((1, False), (1, False), (2, True), (3, True)):
            world.history.look(FIVES, find, anew=anew)
            await world.until(lambda: not world.history.working_on(FIVES))
            assert len(world.asked) == requests


@pytest.mark.parametrize("clients", [True, False])
async def test_native_candles_are_retried_for_as_long_as_a_client_follows_the_series(
    tmp_path: Path, clients: bool
) -> None:
    troubles = 3
    async with world_on(tmp_path, retries=RetryPolicy(Backoff(0.001, 0.001), wanted_s=0.0)) as world:
        world.shown, world.clients = set(range(90, 100)), clients
        world.trouble = [UpstreamError("the exchange is away") for _ in range(troubles)]
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert await world.stored() == (list(range(90, 100)) if clients else [])
        assert len(world.asked) == (troubles + 1 if clients else 1)


async def test_a_lookup_that_a_defect_ends_is_repeated(tmp_path: Path) -> None:
    defects = [RuntimeError("a defect")]

    async def find(series: SeriesId, page_start: int | None) -> list[Need]:
        if defects:
            raise defects.pop()
        return [wanted(90)]

    async with world_on(tmp_path, limits=replace(USUAL_LIMITS, store_retry_s=0.001)) as world:
        world.shown = set(range(90, 100))
        world.history.look(FIVES, find)
        await world.until(lambda: bool(world.asked) and not world.history.working_on(FIVES))
        assert await world.stored() == list(range(90, 100))


async def test_native_candles_that_are_never_shown_are_given_up_and_older_ones_requested(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert world.asked == [(90, 100)] * natives.MAX_FRUITLESS
        assert world.history.nothing_before(FIVES) == wanted(90).span
        world.history.submit(wanted(90))
        world.history.submit(wanted(95))
        assert world.history.needs_of(FIVES) == ()
        world.history.submit(wanted(80))
        assert [status.need for status in world.history.needs_of(FIVES)] == [wanted(80)]


async def test_a_gap_after_native_candles_is_given_up_without_marking_older_ones_as_missing(
    tmp_path: Path,
) -> None:
    async with world_on(tmp_path) as world:
        world.shown = set(range(90, 95))
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert world.asked == [(90, 100)] + [(95, 100)] * (natives.MAX_FRUITLESS - 1)
        assert world.history.nothing_before(FIVES) is None
        world.history.submit(wanted(95))
        assert world.history.needs_of(FIVES) == ()


async def test_an_exchange_that_does_not_answer_is_retried_without_limit(tmp_path: Path) -> None:
    async with world_on(tmp_path) as world:
        world.trouble = [UpstreamError("no answer") for _ in range(3 * natives.MAX_FRUITLESS)]
        world.shown = set(range(90, 100))
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert await world.stored() == list(range(90, 100))
        assert len(world.asked) == 3 * natives.MAX_FRUITLESS + 1


async def test_candles_of_a_timeframe_that_the_exchange_lacks_are_folded_the_newest_first_and_asked_for_once(
    tmp_path: Path,
) -> None:
    async with world_on(tmp_path, BASE, HistoryLimits(fold_parts=20)) as world:
        world.shown = set(range(85, 100))
        world.history.submit(wanted(70))
        await world.until(lambda: not world.history.needs_of(FIVES))
        parts = [(96, 100), (92, 96), (88, 92), (84, 88)]  # 84 has nothing: the exchange begins at 85
        assert world.asked == [request(first, end, BASE) for first, end in parts]
        assert await world.stored() == list(range(85, 100))
        assert world.history.nothing_before(FIVES) == Span(70 * STEP_S, 85 * STEP_S)
        stored = await world.database.read(lambda store: store.oldest(FIVES, 1, since=-1))
        assert stored == [Candle(85 * STEP_S, 1.0, 2.0, 0.5, 1.5, 15.0)]
        assert await world.database.read(lambda store: store.span(BASE)) == Span(BEGIN, BEGIN + 60), "no part is stored"


async def test_an_exchange_without_candles_that_can_be_folded_is_not_asked_for_any(tmp_path: Path) -> None:
    async with world_on(tmp_path, None) as world:
        world.history.submit(wanted(90))
        await world.until(lambda: any(need.attempts > 3 for need in world.history.needs_of(FIVES)))
        (need,) = world.history.needs_of(FIVES)
        assert need.last_answer == f"binance has no candles that give those of {FIVES}"
        assert world.asked == []


async def test_gaps_of_several_parts_at_both_ends_are_proved_by_the_parts_beyond_them(tmp_path: Path) -> None:
    """A market that trades seldom: the part directly before and after what is wanted is missing too."""
    async with world_on(tmp_path, BASE) as world:
        world.shown, world.proves = set(range(80, 110)), True
        begins, ends = 95 * STEP_S, 97 * STEP_S
        world.holes = set(range(begins - 300, begins + 120, 60)) | set(range(ends - 120, ends + 300, 60))
        world.history.submit(wanted(95, 97))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert await world.stored() == [95, 96]


async def test_a_gap_with_which_a_folded_candle_begins_is_proved_by_the_part_before_it(tmp_path: Path) -> None:
    async with world_on(tmp_path, BASE) as world:
        world.shown, world.proves = set(range(80, 100)), True
        world.holes = {90 * STEP_S, 90 * STEP_S + 60, *range(95 * STEP_S, 96 * STEP_S, 60)}
        world.history.submit(wanted(90))
        await world.until(lambda: not world.history.needs_of(FIVES))
        assert await world.stored() == [number for number in range(90, 100) if number != 95]
        assert world.history.nothing_before(FIVES) is None, "the exchange has older ones"
        (gap,) = await world.database.read(lambda store: store.gaps(FIVES))
        assert (gap.span, gap.state) == (Span(95 * STEP_S, 96 * STEP_S), GapState.CONFIRMED_EMPTY)
        assert gap.proof == f"of its 1m candles: {BOTH_NEIGHBOURS}"

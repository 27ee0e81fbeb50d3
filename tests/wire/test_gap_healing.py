"""The healing of declared gaps over real sockets: the simulated exchange with an outage, its REST client, a store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.candle import Candle
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.history.board import BackfillBoard
from klinesync.history.missing import Need, Reason
from klinesync.history.ports import HistoryPorts
from klinesync.history.service import HistoryService
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import HttpClient
from klinesync.sim.faults import Outage
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from klinesync.storage.sqlite import SqliteDatabase
from support.candles import of_minute
from support.derived_candles import roll_up

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
START = 1_700_000_040
OUTAGE = Span(START + 3000 * 60, START + 3090 * 60)
NOW = START + 6000 * 60
TIMEOUT_S = 20.0


class Exchange(SimServer):
    """The simulated exchange, which counts requests for klines."""

    asked = 0

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        answer = super()._rest_of(market)

        async def rest(request: web.Request) -> web.Response:
            self.asked += request.match_info["path"] == "klines"
            return await answer(request)

        return rest

    def truth(self, series: SeriesId, first: int, end: int) -> list[Candle]:
        """The traded candles."""
        listings = self.exchange.spot if series.market == "spot" else self.exchange.futures
        rows = (listings["BTCUSDT"].minute(time) for time in range(first, end, 60))
        return [of_minute(row) for row in rows if row]


@asynccontextmanager
async def exchange_with_outage() -> AsyncIterator[Exchange]:
    """The exchange's time is well after an outage of an hour and a half."""
    async with Exchange(SimConfig(symbols=2, start=OUTAGE.start - 30)) as exchange, aiohttp.ClientSession() as http:
        exchange.faults.add(Outage(minutes=90))
        body = {"advance_s": NOW - OUTAGE.start}
        async with http.post(exchange.http_url + "/sim/clock", json=body) as response:
            assert response.status == 200
        yield exchange


@asynccontextmanager
async def healing(
    store: Path, exchange: Exchange, targets: Sequence[Timeframe] = ()
) -> AsyncIterator[tuple[HistoryService, IngestPipeline, SqliteDatabase]]:
    loop = asyncio.get_running_loop()
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    routes = market_routes(exchange.http_url, exchange.http_url)
    async with HttpClient() as http, SqliteDatabase(store) as database:
        pipeline = IngestPipeline(
            database,
            DerivedStep(SPOT.timeframe, targets),
            no_ledger(),
            lambda _: None,
            lambda: 1_800_000_000.0,
        )
        service = HistoryService(
            HistoryPorts(
                history=BinanceRest(http, routes, clocks, final_margin_s=2, monotonic=loop.time).history,
                pipeline=pipeline,
                database=database,
                watch=BackfillBoard(lambda: 1_800_000_000.0).watch(),
                rng=random.Random(1),
            )
        )
        tasks = [asyncio.create_task(pipeline.run()), asyncio.create_task(service.run())]
        try:
            yield service, pipeline, database
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)


async def settled(service: HistoryService, series: SeriesId) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while service.working_on(series):
            await asyncio.sleep(0.01)


async def stored(database: SqliteDatabase, series: SeriesId) -> tuple[list[Candle], list[Gap]]:
    return await database.read(lambda store: (store.oldest(series, 1 << 30, since=-1), store.gaps(series)))


@pytest.mark.parametrize("series", [SPOT, FUTURES], ids=str)
async def test_a_declared_gap_is_filled_and_its_outage_confirmed_empty_and_never_requested_again(
    series: SeriesId, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    async with exchange_with_outage() as exchange:
        truth = exchange.truth(series, START, NOW - 600)
        assert [candle.time for candle in truth if OUTAGE.start <= candle.time < OUTAGE.end] == []
        async with healing(store, exchange) as (service, pipeline, database):
            # Short gaps, and a gap of more than a page that includes the outage.
            lost = {*range(10, 13), *range(700, 701), *range(2800, 4500)}
            kept = [candle for candle in truth if (candle.time - START) // 60 not in lost]
            await pipeline.submit(series, kept, "file")
            _, ledger = await stored(database, series)
            assert [gap.state for gap in ledger] == [GapState.UNKNOWN] * 3
            service.request_declared(series)
            await settled(service, series)
            candles, ledger = await stored(database, series)
            assert candles == truth
            assert [(gap.span, gap.state) for gap in ledger] == [(OUTAGE, GapState.CONFIRMED_EMPTY)]
            assert all(gap.proof for gap in ledger)
        assert exchange.asked
        exchange.asked = 0
        async with healing(store, exchange) as (service, _, database):
            service.request_declared(series)
            service.submit(Need(series, Span(OUTAGE.start - 600, OUTAGE.end + 600), Reason.GAP, "a test"))
            await settled(service, series)
            assert await stored(database, series) == (candles, ledger)
        assert exchange.asked == 0


async def test_a_filled_gap_updates_the_derived_candles_on_both_sides(
    tmp_path: Path,
) -> None:
    """Gaps across midnight, the end of a bucket of 5m, 1h and 1d; and of five minutes up to the end of an hour."""
    targets = tuple(map(Timeframe.parse, ("5m", "1h", "1d")))
    midnight = START // 86_400 * 86_400 + 86_400
    first = midnight - 86_400
    lost = [Span(midnight - 120, midnight + 180), Span(midnight + 3300, midnight + 3600)]
    async with (
        exchange_with_outage() as exchange,
        healing(tmp_path / "store.sqlite", exchange, targets) as (service, pipeline, database),
    ):
        truth = exchange.truth(SPOT, first, midnight + 86_400)
        kept = [candle for candle in truth if not any(start <= candle.time < end for start, end in lost)]
        await pipeline.submit(SPOT, kept, "file")
        rolled = roll_up(truth, SPOT.timeframe, targets)
        touched = {"5m": [-300, 0, 3300], "1h": [-3600, 0], "1d": [-86_400, 0]}
        for target in targets:
            candles, ledger = await stored(database, SPOT.with_timeframe(target))
            missing = {candle.time - midnight for candle in rolled[target]} - {
                candle.time - midnight for candle in candles
            }
            assert sorted(missing) == touched[target.code]
        service.request_declared(SPOT)
        await settled(service, SPOT)
        assert await stored(database, SPOT) == (truth, [])
        for target in targets:
            candles, ledger = await stored(database, SPOT.with_timeframe(target))
            # The day with the outage was not over.
            assert (candles, ledger) == (rolled[target], [])
        assert exchange.asked == 1, "they lie on one page"


@pytest.mark.parametrize("series", [SPOT, FUTURES], ids=str)
async def test_a_gap_that_is_all_outage_costs_one_request(series: SeriesId, tmp_path: Path) -> None:
    async with exchange_with_outage() as exchange:
        truth = exchange.truth(series, OUTAGE.start - 6000, OUTAGE.end + 6000)
        async with healing(tmp_path / "store.sqlite", exchange) as (service, pipeline, database):
            await pipeline.submit(series, truth, "file")
            service.request_declared(series)
            await settled(service, series)
            candles, ledger = await stored(database, series)
    assert candles == truth
    assert [(gap.span, gap.state) for gap in ledger] == [(OUTAGE, GapState.CONFIRMED_EMPTY)]
    assert exchange.asked == 1


async def test_history_before_the_first_stored_candle_is_read_on_request(tmp_path: Path) -> None:
    async with exchange_with_outage() as exchange, healing(tmp_path / "store.sqlite", exchange) as parts:
        service, pipeline, database = parts
        await pipeline.submit(SPOT, exchange.truth(SPOT, NOW - 6000, NOW - 600), "file")
        service.submit(Need(SPOT, Span(OUTAGE.start - 600, NOW - 6000), Reason.OLDER, "startup"))
        await settled(service, SPOT)
        candles, ledger = await stored(database, SPOT)
        assert candles == exchange.truth(SPOT, OUTAGE.start - 600, NOW - 600)
        assert [(gap.span, gap.state) for gap in ledger] == [(OUTAGE, GapState.CONFIRMED_EMPTY)]

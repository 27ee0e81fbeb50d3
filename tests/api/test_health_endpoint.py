"""GET /api/market/health over real sockets: the contract's shape and errors, for ingested and derived series."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from klinesync.core.candle import Candle
from klinesync.core.errors import UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.exchanges.exchange import Errand, HistoryPage
from klinesync.history.board import BackfillBoard
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import USUAL_RETRIES
from klinesync.history.pieces import Fetch
from klinesync.history.ports import HistoryPorts
from klinesync.history.service import HistoryService
from klinesync.market.schemas import HealthAnswer
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.startup_sync import StartupSync
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIVE = "binance:spot:BTC/USDT:5m"
START = 1_700_000_100  # on the five minutes
TIMEOUT_S = 10.0


def candle(minute: int) -> Candle:
    return Candle(START + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0)


class World:
    """A service with an exchange that a test controls: time, streams, history, listings."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.exchange_s: float | None = START + 60 * 20 + 30
        self.wall_s = 1_900_000_000.0
        self.stream = StreamStatus(StreamState.LIVE, START, START + 60 * 20)
        self.unknown = False
        self.pages: asyncio.Queue[HistoryPage] = asyncio.Queue()
        self.board = BackfillBoard(lambda: self.wall_s)
        self.tail = self.board.watch()
        runtime = service.runtime
        self.backfill = HistoryService(
            HistoryPorts(
                history=self._history,
                pipeline=runtime._pipeline,
                database=runtime._database,
                watch=self.board.watch(),
                rng=random.Random(1),
            )
        )
        self.startup: StartupSync | None = None

    def serve(self) -> None:
        """A service with the current flags of health."""
        runtime = self.service.runtime
        runtime.market_data.health = HealthService(
            database=runtime._database,
            base_of=runtime.market_data.derived.base_of,
            check_known=self._check_known,
            exchange_s=lambda _: self.exchange_s,
            wall_s=lambda: self.wall_s,
            stream=lambda _: self.stream,
            board=self.board,
            backfill=self.backfill,
            startup=self.startup,
            grace_s=5,
            recent_s=120,
        )

    async def _history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None
    ) -> AsyncGenerator[HistoryPage, None]:
        yield await self.pages.get()

    async def _check_known(self, series: SeriesId) -> None:
        if self.unknown:
            raise UnknownSeries(str(series), "the exchange lists no such symbol")

    async def write(self, *minutes: int) -> None:
        await self.service.runtime.market_data.ingest_candles_closed(BTC, [candle(minute) for minute in minutes])

    async def get(self, series_id: str = str(BTC)) -> dict[str, object]:
        status, answer = await self.service.get("/api/market/health", series_id=series_id)
        assert status == 200, answer
        return answer

    async def judged(self, series_id: str = str(BTC)) -> tuple[object, object]:
        answer = await self.get(series_id)
        return answer["status"], answer["status_reason"]


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    async with running_service(path / "store.sqlite") as service:
        made = World(service)
        made.serve()
        yield made


async def test_the_answer_has_the_contracts_shape(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.write(*range(20))
        assert await made.get() == {
            "series_id": str(BTC),
            "timeframe_seconds": 60,
            "now_time": START + 1230,
            "expected_latest_closed_time": START + 1140,
            "head_time": START + 1140,
            "lag_seconds": 30,
            "missing_seconds": 0,
            "missing_candles": 0,
            "status": "green",
            "status_reason": "up_to_date",
            "detail": None,
            "backfill": {
                "state": "idle",
                "progress_pct": None,
                "started_at": None,
                "updated_at": None,
                "reason": None,
                "note": None,
                "error": None,
                "recent": False,
                "start_missing_seconds": None,
                "start_missing_candles": None,
                "current_missing_seconds": None,
                "current_missing_candles": None,
                "candles": None,
                "candles_per_s": None,
                "left_s": None,
            },
            "stream": {"state": "live", "since": START, "last_frame_at": START + 1200, "detail": None},
            "gaps": {"unknown": 0, "healing": 0, "confirmed_empty": 0, "lost": 0},
        }


async def test_a_bad_a_missing_and_an_unknown_series_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        get = made.service.get
        status, answer = await get("/api/market/health", series_id="BTCUSDT")
        assert (status, answer["code"]) == (422, "bad_request")
        status, answer = await get("/api/market/health")
        assert (status, answer["code"]) == (422, "bad_request")
        made.unknown = True
        status, answer = await get("/api/market/health", series_id=str(BTC))
        assert (status, answer["code"]) == (404, "unknown_series")
        await made.write(0)
        assert (await made.get())["head_time"] == START, "what is stored is known"


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.service.runtime.market_data.health = None
        status, answer = await made.service.get("/api/market/health", series_id=str(BTC))
        assert (status, answer["code"]) == (404, "not_found")


async def test_without_a_time_of_the_exchange_the_wall_clock_counts(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.write(*range(20))
        made.exchange_s = None
        made.wall_s = START + 60 * 25 + 5
        answer = await made.get()
        assert (answer["now_time"], answer["missing_candles"]) == (START + 1505, 5)


async def test_a_reading_of_history_and_its_end_are_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        assert await made.judged() == ("red", "missing_head")
        await made.write(*range(10))
        assert await made.judged() == ("red", "lagging_no_recent_backfill")
        made.tail.began(BTC, Span(START + 600, START + 1200), "tail")
        made.tail.advanced(BTC, START + 900, 5)
        assert await made.judged() == ("yellow", "backfill_running")
        backfill = (await made.get())["backfill"]
        assert isinstance(backfill, dict)
        assert (backfill["state"], backfill["progress_pct"], backfill["start_missing_candles"]) == ("running", 50.0, 10)
        assert await made.judged(FIVE) == ("yellow", "backfill_running"), "a derived series is read with its base"
        made.tail.ended(BTC)
        assert await made.judged() == ("yellow", "backfill_recent")
        made.wall_s += 121
        assert await made.judged() == ("red", "lagging_no_recent_backfill")


async def test_a_gap_is_red_until_it_is_requested_and_green_when_it_is_confirmed_empty(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as made:
        await made.write(*range(7), *range(10, 20))
        assert await made.judged() == ("red", "interior_gap")
        assert (await made.get())["gaps"] == {"unknown": 3, "healing": 0, "confirmed_empty": 0, "lost": 0}
        # The derived series lacks one candle. It heals with its base.
        assert await made.judged(FIVE) == ("red", "interior_gap")
        made.backfill.request_declared(BTC)
        for series_id, missing in ((str(BTC), 3), (FIVE, 1)):
            answer = await made.get(series_id)
            assert (answer["status"], answer["status_reason"]) == ("yellow", "gap_healing")
            assert answer["gaps"] == {"unknown": 0, "healing": missing, "confirmed_empty": 0, "lost": 0}
        work = asyncio.create_task(made.backfill.run())
        hole = Span(START + 420, START + 600)
        made.pages.put_nowait(HistoryPage([candle(6), candle(10)], [hole]))
        async with asyncio.timeout(TIMEOUT_S):
            while made.backfill.working_on(BTC):
                await asyncio.sleep(0.005)
        assert await made.judged() == ("green", "up_to_date")
        assert (await made.get())["gaps"] == {"unknown": 0, "healing": 0, "confirmed_empty": 3, "lost": 0}
        work.cancel()
        await asyncio.wait([work])


async def test_a_gap_after_several_fruitless_attempts_is_red(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.write(*range(7), *range(10, 20))
        queue = made.backfill._queue
        made.backfill.submit(Need(BTC, Span(START + 420, START + 600), Reason.GAP, "a test"))
        for turn in range(USUAL_RETRIES.stalled_after):
            assert await made.judged() == ("yellow", "gap_healing"), turn
            work = queue.take(1e9)
            assert isinstance(work, Fetch)
            queue.settle(work, [USUAL_RETRIES.after_fruitless(need, 0.0, random.Random(1)) for need in work.needs], 0.0)
        assert await made.judged() == ("red", "interior_gap")


async def test_a_gap_that_an_explicit_backfill_reads_is_healing_though_gaps_are_not_healed(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", enable_market_gap_backfill="off") as service:
        market_data = service.runtime.market_data
        await market_data.ingest_candles_closed(BTC, [candle(minute) for minute in (0, 1, 2, 7, 8)])
        assert market_data.health is not None
        market_data.backfill._queue.submit(Need(BTC, Span(START, START + 600), Reason.REQUESTED, "a test"), 0.0)
        health = await market_data.health.health(BTC)
        assert (health.gaps.healing, health.gaps.unknown) == (4, 0)


async def test_the_sweep_promises_no_healing_where_gaps_are_not_healed(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.write(0, 5)

        async def follow(_: SeriesId) -> None:
            pass

        made.startup = StartupSync(series=[BTC], follow=follow, caught_up=follow, monotonic=lambda: 0.0)
        made.backfill.heals = False
        made.serve()
        assert (await made.get())["gaps"] == {"unknown": 4, "healing": 0, "confirmed_empty": 0, "lost": 0}


async def test_a_series_that_waits_in_the_sweep_is_yellow(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.write(0, 5)

        async def follow(_: SeriesId) -> None:
            pass

        made.startup = StartupSync(series=[BTC], follow=follow, caught_up=follow, monotonic=lambda: 0.0)
        made.serve()
        answer = await made.get()
        assert (answer["status"], answer["status_reason"]) == ("yellow", "backfill_running")
        assert answer["gaps"] == {"unknown": 0, "healing": 4, "confirmed_empty": 0, "lost": 0}
        backfill = answer["backfill"]
        assert isinstance(backfill, dict)
        assert backfill["note"] == "waits in the start-up sweep: 0 of 1 series are up to date"
        made.tail.began(BTC, Span(START, START + 1200), "startup")
        made.tail.ended(BTC, "the exchange does not answer")
        made.wall_s += 121
        assert await made.judged() == ("red", "lagging_no_recent_backfill"), "its turn came, and it failed"
        made.tail.began(BTC, Span(START, START + 1200), "startup")
        made.tail.ended(BTC)
        await made.startup.run()
        made.wall_s += 121
        assert await made.judged() == ("red", "lagging_no_recent_backfill")


async def test_the_documents_example_has_the_shape_of_an_answer(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/http.md").read_text()
    section = text.split("\n## Health\n", 1)[1].split("\n## ", 1)[0]
    (example,) = re.findall(r"```json\n(\{\"series_id\"[^`]*)```", section)
    async with world(tmp_path) as made:
        answer = await made.get()
    told = json.loads(example)
    assert shape(told) == shape(answer)
    assert all(HealthAnswer.model_validate(one) for one in (told, answer))


def shape(answer: object) -> object:
    return {name: shape(value) for name, value in answer.items()} if isinstance(answer, dict) else None

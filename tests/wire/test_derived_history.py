"""The first history of derived series, over real sockets: base candles, and native candles before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import isclose
from pathlib import Path

import pytest

from klinesync.core.candle import MAX_TIME, ROUNDING, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Errand, History, HistoryPage
from klinesync.market.tuning import Tuning
from klinesync.market_data.findings import SeriesAudit
from klinesync.market_data.verify import verify
from klinesync.runtime.flags import load_flags
from klinesync.sim import generator
from klinesync.sim.exchange import Grid
from klinesync.sim.faults import RestError
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite_reader import SqliteReader
from support.derived_candles import roll_up
from support.running_service import Service, retrying, running_service
from support.upstream import truth
from support.waiting import until

BASE = SeriesId.parse("binance:spot:ETH/USDT:1m")
MINUTE = BASE.timeframe
FIVE, HOUR, DAY = map(Timeframe.parse, ("5m", "1h", "1d"))
TARGETS = [Timeframe.parse(code) for code in load_flags({}).derived_timeframes]
START = 1_700_000_130
NEWEST = START // 60 * 60 - 60
LISTED = generator.LISTED_DAYS
PATIENCE_S = 40.0


JUMPING = Tuning(clock_age_s=0.2)  # a jump of the exchange's clock is seen soon


@asynccontextmanager
async def reading(
    store: Path, exchange: SimServer | None, *, whitelist_ingest: str = "off", **flags: str
) -> AsyncIterator[Service]:
    given = {"enable_whitelist_ingest": whitelist_ingest, "audit_interval_s": "0"} | flags
    async with running_service(store, exchange, None, retrying(0.2, tuning=JUMPING), **given) as service:
        yield service


class Late:
    """Native history whose last candle is not shown in the first two answers."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.asked = 0

    async def read(
        self, series: SeriesId, start: int, errand: Errand, end: int | None
    ) -> AsyncGenerator[HistoryPage, None]:
        self.asked += 1
        early = self.asked <= 2
        async for one in self._history(series, start, errand, end):
            shown = [candle for candle in one.candles if series.timeframe.next(candle.time) != end]
            yield HistoryPage(shown, []) if early else one


def theirs(exchange: SimServer, series: SeriesId, first: int, end: int) -> list[Candle]:
    """Native candles of that timeframe that open in `[first, end)`."""
    listing = exchange.exchange.spot[series.symbol.replace("/", "")]
    end = series.timeframe.next(series.timeframe.floor(end - 1))
    rows = listing.candles(Grid(series.timeframe), first, end, end * 1000).rows()
    return [Candle(*row[:6]) for row in rows]


def alike(some: Sequence[Candle], others: Sequence[Candle]) -> bool:
    """Whether they are equal except for the rounding of volumes."""
    return len(some) == len(others) and all(
        one[:5] == other[:5] and isclose(one.volume, other.volume, rel_tol=ROUNDING)
        for one, other in zip(some, others, strict=True)
    )


async def page(service: Service, series: SeriesId, **params: int) -> list[Candle]:
    status, answer = await service.get("/api/market/candles", series_id=str(series), **params)
    assert status == 200, answer
    rows = answer["candles"]
    assert isinstance(rows, list)
    return [Candle(*row.values()) for row in rows]


async def until_page(service: Service, series: SeriesId, count: int, **params: int) -> list[Candle]:
    """The page, once it has the given number of candles; polled."""
    candles: list[Candle] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(candles := await page(service, series, **params)) < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{len(candles)} candles of {series}, {count} are due") from None
    return candles


def audited(store: Path, *series: SeriesId) -> dict[SeriesId, SeriesAudit]:
    with SqliteReader(store) as reader:
        return {audit.series: audit for audit in verify(reader, MINUTE, TARGETS, series)}


async def test_a_daily_series_begins_with_native_candles(tmp_path: Path) -> None:
    store, days = tmp_path / "store.sqlite", BASE.with_timeframe(DAY)
    async with SimServer(SimConfig(symbols=3, start=START)) as exchange, reading(store, exchange) as service:
        candles = await until_page(service, days, LISTED)
        last = DAY.shift(DAY.floor(NEWEST), -1)
        assert alike(candles, theirs(exchange, days, DAY.shift(last, 1 - LISTED), last + 1))
        assert await page(service, BASE, since=0, limit=5000) == truth(
            exchange, BASE, range(NEWEST - 1999 * 60, NEWEST + 60, 60)
        )
        status, health = await service.get("/api/market/health", series_id=str(days))
        assert (status, health["status"]) == (200, "green"), health
        # The same for a page of hours from before the base.
        hours = await until_page(service, BASE.with_timeframe(HOUR), 200, limit=200)
        assert alike(hours, theirs(exchange, BASE.with_timeframe(HOUR), hours[0].time, hours[-1].time + 1))
        older = await until_page(service, BASE.with_timeframe(HOUR), 900, before=hours[0].time, limit=900)
        assert [candle.time for candle in older] == list(range(hours[0].time - 900 * 3600, hours[0].time, 3600))
    found = audited(store)
    assert {audit.series: audit.kinds for audit in found.values() if audit.kinds} == {}
    assert found[days].native == LISTED, "the base gives no whole day"
    assert found[BASE.with_timeframe(HOUR)].native >= 1000
    assert found[BASE].native == 0


async def test_later_base_history_replaces_native_candles_without_a_revision(tmp_path: Path) -> None:
    store, hours = tmp_path / "store.sqlite", BASE.with_timeframe(HOUR)
    async with SimServer(SimConfig(symbols=3, start=START)) as exchange, reading(store, exchange) as service:
        before = await until_page(service, hours, 500)
        revised = service.runtime._pipeline.revised
        first = NEWEST - 9999 * 60
        over = await service.runtime.backfill.backfill(BASE, Span(first, NEWEST))
        assert over.missing == 0
        after = await page(service, hours)
        assert alike(before, after)
        whole = truth(exchange, BASE, range(HOUR.next(HOUR.floor(first)), HOUR.floor(NEWEST), 60))
        rolled = roll_up(whole, MINUTE, (HOUR,))[HOUR]
        assert after[-len(rolled) :] == rolled, "bit for bit"
        assert [candle for candle in before if candle not in after], "they were rounded in another way"
        late = service.runtime._pipeline.revised - revised
        assert late >= 8000, "of the base, which came behind its head"
        assert late < 8000 + 2 * 60 * len(TARGETS) + 2000, "not of what is the same"
    found = audited(store)
    assert {audit.series: audit.kinds for audit in found.values() if audit.kinds} == {}
    assert found[hours].native == found[hours].count - len(rolled)


async def test_a_subscription_of_an_empty_derived_series_reads_its_base_and_native_candles(
    tmp_path: Path,
) -> None:
    store, days = tmp_path / "store.sqlite", BASE.with_timeframe(DAY)
    flags = {"startup_kline_sync_target_candles": "100", "derived_backfill_base_candles": "3000"}
    async with (
        SimServer(SimConfig(symbols=3, start=START, speed=60)) as exchange,
        reading(store, exchange, **flags) as service,
    ):
        seen: dict[int, Candle] = {}
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(days), "since": 0, "supports_batch": True})
            async with asyncio.timeout(PATIENCE_S):
                while len(seen) < LISTED:
                    message = (await socket.receive()).json()
                    assert message["type"] != "error", message
                    rows = message.get("candles", [message.get("candle")])
                    if message["type"] in ("candles_batch", "candle_closed"):
                        seen |= {row["candle_time"]: Candle(*row.values()) for row in rows}
            [job] = service.runtime.supervisors.jobs_state()
            assert job.series_id == str(BASE)
            async with asyncio.timeout(PATIENCE_S):
                while len(base := await page(service, BASE, limit=5000)) < 3000:
                    await asyncio.sleep(0.05)
            assert base == truth(exchange, BASE, range(base[0].time, base[-1].time + 60, 60))
        times = sorted(seen)
        assert times == list(range(times[0], times[-1] + 86400, 86400))
        assert alike([seen[time] for time in times], theirs(exchange, days, times[0], times[-1] + 1))


async def test_a_target_that_was_switched_on_later_is_brought_up_to_date_when_it_is_read(tmp_path: Path) -> None:
    store, hours = tmp_path / "store.sqlite", BASE.with_timeframe(HOUR)
    off = {"derived_native_candles": "0"}
    async with SimServer(SimConfig(symbols=3, start=START)) as exchange:
        async with reading(store, exchange, derived_timeframes="5m", **off) as service:
            await until_page(service, BASE, 500)
        async with reading(store, exchange, **off) as service:
            candles = await until_page(service, hours, 30, limit=30)
            assert alike(candles, theirs(exchange, hours, candles[0].time, candles[-1].time + 1))
            assert service.runtime.supervisors.jobs_state() == []
    assert not audited(store)[hours].kinds


async def test_a_timeframe_that_is_neither_base_nor_derived_is_an_ordinary_series_with_its_own_stream(
    tmp_path: Path,
) -> None:
    threes = BASE.with_timeframe(Timeframe.parse("3m"))
    async with (
        SimServer(SimConfig(symbols=3, start=START, speed=600)) as exchange,
        reading(tmp_path / "store.sqlite", exchange, startup_kline_sync_target_candles="300") as service,
    ):
        closed: list[Candle] = []
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": str(threes), "since": 0})
            async with asyncio.timeout(PATIENCE_S):
                while len(closed) < 305:
                    message = (await socket.receive()).json()
                    if message["type"] == "candle_closed":
                        closed.append(Candle(*message["candle"].values()))
            assert [job.series_id for job in service.runtime.supervisors.jobs_state()] == [str(threes)]
        times = [candle.time for candle in closed]
        assert times == list(range(times[0], times[-1] + 180, 180))
        assert alike(closed, theirs(exchange, threes, times[0], times[-1] + 1))
        status, _ = await service.post(
            "/api/market/ingest/candle_closed",
            {"series_id": str(threes), "candle": dict(zip(("candle_time", "open", "high", "low", "close", "volume"),
                                                          closed[0].ohlcv, strict=True))},
        )  # fmt: skip
        assert status == 200, "it is derived from nothing"


async def test_failed_native_candles_are_retried(tmp_path: Path) -> None:
    days = BASE.with_timeframe(DAY)
    async with (
        SimServer(SimConfig(symbols=3, start=START)) as exchange,
        reading(tmp_path / "store.sqlite", exchange) as service,
    ):
        await until_page(service, BASE, 500)
        fault = exchange.faults.add(RestError(status=503))
        await page(service, days)
        await until(lambda: exchange.faults.seen().get("rest_error", 0) >= 3, "the exchange was asked, in vain")
        exchange.faults.remove(fault)
        assert len(await until_page(service, days, LISTED)) == LISTED


async def test_native_candles_before_the_exchanges_first_are_not_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = BASE.with_timeframe(DAY)
    async with (
        SimServer(SimConfig(symbols=3, start=START, listed_days=30)) as exchange,
        reading(tmp_path / "store.sqlite", exchange) as service,
    ):
        candles = await until_page(service, days, 30)
        assert alike(candles, theirs(exchange, days, candles[0].time, candles[-1].time + 1))
        history = service.runtime.backfill
        await until(lambda: not history.needs_of(days), "it is looked after")
        asked = []
        fetch = history._natives.ports.history

        def noting(*what: object) -> AsyncGenerator[HistoryPage, None]:
            asked.append(what)
            return fetch(*what)  # type: ignore[arg-type]

        ports = replace(history._natives.ports, history=noting)
        monkeypatch.setattr(history, "_natives", replace(history._natives, ports=ports))
        for _ in range(30):
            assert await page(service, days) == candles
            await asyncio.sleep(0.02)  # longer than the cooldown, in total
        assert asked == []


async def test_a_native_candle_that_is_not_shown_yet_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing candle of a bucket that has just ended does not prove that native candles begin later."""
    hours = BASE.with_timeframe(HOUR)
    async with (
        SimServer(SimConfig(symbols=3, start=START)) as exchange,
        reading(tmp_path / "store.sqlite", exchange) as service,
    ):
        await until_page(service, BASE, 500)
        history = service.runtime.backfill
        late = Late(history._natives.ports.history)
        ports = replace(history._natives.ports, history=late.read)
        monkeypatch.setattr(history, "_natives", replace(history._natives, ports=ports))
        candles: list[Candle] = []
        async with asyncio.timeout(PATIENCE_S):
            while (
                late.asked < 3
                or len(candles) < 100
                or not alike(candles, theirs(exchange, hours, candles[0].time, candles[-1].time + 1))
            ):
                await asyncio.sleep(0.05)
                candles = await page(service, hours, limit=100)


async def test_a_native_candle_without_a_proof_of_its_close_is_retried_without_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket ended long ago."""
    hours = BASE.with_timeframe(HOUR)
    flags = {
        "whitelist_ingest": "on",
        "whitelist": str(BASE),
        "startup_kline_sync_target_candles": "30",
        "derived_backfill_base_candles": "1",
    }
    async with (
        SimServer(SimConfig(symbols=3, start=START, speed=30)) as exchange,
        reading(tmp_path / "store.sqlite", exchange, **flags) as service,
    ):
        await until_page(service, BASE, 30, limit=30)  # a longer page causes older base candles to be fetched
        history = service.runtime.backfill
        late = Late(history._natives.ports.history)
        ports = replace(history._natives.ports, history=late.read)
        monkeypatch.setattr(history, "_natives", replace(history._natives, ports=ports))
        await page(service, hours)
        await until(lambda: late.asked > 2, "what was held back is asked for again")
        candles = await until_page(service, hours, 100, limit=100)
        assert alike(candles, theirs(exchange, hours, candles[0].time, candles[-1].time + 1))


async def test_a_gap_in_the_base_keeps_its_native_candle_until_filled(tmp_path: Path) -> None:
    """An explicit backfill declares a gap before the stored candles; the hourly series stays complete."""
    store, hours = tmp_path / "store.sqlite", BASE.with_timeframe(HOUR)
    async with (
        SimServer(SimConfig(symbols=3, start=START)) as exchange,
        reading(store, exchange, enable_market_gap_backfill="off") as service,
    ):
        before = await until_page(service, hours, 500)
        old = NEWEST - 20_000 * 60
        rows = truth(exchange, BASE, range(old, old + 600 * 60, 60))
        await service.runtime.market_data.ingest_candles_closed(BASE, rows)
        assert alike(before, await page(service, hours))
    found = audited(store)
    assert {audit.series: audit.kinds for audit in found.values() if audit.kinds} == {}
    with SqliteReader(store) as reader:
        stored = reader.read(lambda look: look.between(hours, 0, MAX_TIME))
    assert [candle.time for candle in stored] == list(range(stored[0].time, stored[-1].time + 3600, 3600))

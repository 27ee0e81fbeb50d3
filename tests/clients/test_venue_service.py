"""Venues with their real quirks, through the whole service, over unmodified ccxt: finality, faults, health.

The venues' time passes ten times as fast as ours, and so do the service's own timers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from venue_service import first_closes, hurry, is_final, series_of, serving, watching, whitelist

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt.exchange import CcxtExchange
from support.running_service import Service
from support.waiting import until
from venues import faults
from venues.bybit import Bybit
from venues.faults import Ask, Cut, Fault, StreamFault, too_many
from venues.gate import Gate
from venues.kraken import Kraken
from venues.market import Pair
from venues.okx import Okx
from venues.venue import Venue

SPEED = 10.0
LATE_LOOK_S = 5.0
BASES = ("BTC", "ETH", "SOL")


QUICK = hurry(SPEED)


async def status_of(service: Service, series: SeriesId) -> tuple[dict[str, object], dict[str, object]]:
    """The status of the series' market, and the health of the series."""
    _, health = await service.get("/api/market/health", series_id=str(series))
    _, status = await service.get("/api/market/status")
    markets = status["exchanges"]
    assert isinstance(markets, list)
    return next(
        market for market in markets if (market["exchange"], market["market"]) == (series.exchange, "spot")
    ), health


async def test_a_date_that_is_ahead_closes_no_candle_before_its_end(tmp_path: Path) -> None:
    async with Okx(speed=SPEED) as okx, Gate(speed=SPEED) as gate:
        for venue in (okx, gate):
            venue.answers_date_only, venue.date_ahead_s = True, 30.0
        followed = [series_of(okx), series_of(gate)]
        began_ms = okx.now_ms()
        async with (
            serving(tmp_path, okx, gate, hurry=QUICK, **whitelist(*followed)) as service,
            watching(service, (okx, gate), followed) as closes,
        ):
            await until(lambda: all(len(first_closes(closes, one, began_ms)) >= 3 for one in (okx, gate)), "3 closes")
        for venue in (okx, gate):
            for close in first_closes(closes, venue, began_ms):
                assert close.at_ms >= (close.candle.time + 60) * 1000, close
                assert is_final(venue, close)


def requests_waiting(service: Service) -> int:
    source = service.runtime.registry.exchange("kraken")
    assert isinstance(source, CcxtExchange)
    return source.client.turns.waiting


async def test_clients_that_leave_while_their_requests_wait_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bases = [f"C{number:02}" for number in range(20)]
    async with Kraken(speed=SPEED, pairs=[Pair("BTC"), *map(Pair, bases)]) as kraken:
        pinned = series_of(kraken)
        flags = whitelist(pinned) | {"ondemand_idle_ttl_s": "1"}
        async with (
            serving(tmp_path, kraken, hurry=QUICK, **flags) as service,
            watching(service, [kraken], [pinned]) as closes,
        ):
            for _ in range(2):
                async with watching(service, [kraken], [series_of(kraken, base) for base in bases]):
                    await until(lambda: len(service.runtime.supervisors.followed()) == 21, "they are followed")
                    await until(lambda: requests_waiting(service) >= 10, "their requests wait")
            await until(lambda: service.runtime.supervisors.followed() == [pinned], "only the pinned one is followed")
            left_ms = kraken.now_ms()
            await until(lambda: len(first_closes(closes, kraken, left_ms)) >= 2, "the pinned one goes on")
            assert all(is_final(kraken, close) for close in first_closes(closes, kraken, left_ms))
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_venue_in_trouble_is_asked_less_whatever_the_trouble_is(tmp_path: Path) -> None:
    troubles: list[tuple[type[Venue], Fault]] = [
        (Okx, faults.TOO_MANY), (Bybit, faults.SERVER_ERROR), (Kraken, faults.FORBIDDEN), (Gate, faults.HTML),
    ]  # fmt: skip
    later: list[Fault] = [too_many("86400"), faults.UNAVAILABLE, Cut(), faults.EMPTY_OBJECT]
    async with AsyncExitStack() as stack:
        venues = [await stack.enter_async_context(kind(speed=SPEED)) for kind, _ in troubles]
        for venue in venues:
            venue.is_polled = True
        followed = [series_of(venue, base) for venue in venues for base in BASES]
        service = await stack.enter_async_context(serving(tmp_path, *venues, hurry=QUICK, **whitelist(*followed)))

        async def rates(minutes: float) -> list[float]:
            """Requests per minute to each venue."""
            since_s = time.monotonic()
            await until(lambda: time.monotonic() - since_s >= minutes * 60 / SPEED, "a while")
            return [venue.asked(since_s=since_s) / minutes for venue in venues]

        await until(
            lambda: all(service.runtime.supervisors.keeps_up(series) for series in followed), "all are followed"
        )
        healthy = await rates(1.0)
        for faults_now in ([fault for _, fault in troubles], later):
            for venue, fault in zip(venues, faults_now, strict=True):
                venue.fail(fault)
            troubled = await rates(1.0)
            for venue, fault, well, ill in zip(venues, faults_now, healthy, troubled, strict=True):
                assert ill <= well / 2, (venue.name, fault, well, ill)


@pytest.mark.parametrize("from_start", [True, False], ids=["from-the-start", "later"])
async def test_the_status_says_that_a_venue_blocks_or_cannot_be_reached_why_and_since_when(
    tmp_path: Path, from_start: bool
) -> None:
    async with Okx(speed=SPEED) as okx, Kraken(speed=SPEED) as kraken, Bybit(speed=SPEED) as bybit:
        okx.is_polled = True
        pairs = {okx: "429", kraken: "ExchangeNotAvailable", bybit: "403"}

        async def harm() -> None:
            okx.fail(too_many("240"))
            bybit.fail(faults.FORBIDDEN)
            bybit.stream_fault = StreamFault.REFUSED
            await bybit.cut_streams()
            await kraken.refuse_connections()

        if from_start:
            await harm()
        followed = [series_of(venue) for venue in pairs]
        before_s = time.time()
        async with serving(tmp_path, *pairs, timeout_s=1.0, hurry=QUICK, **whitelist(*followed)) as service:
            if not from_start:
                await until(lambda: all(map(service.runtime.supervisors.keeps_up, followed)), "all are followed")
                await asyncio.sleep(0.5)
                await harm()
            looks: dict[str, set[object]] = {venue.name: set() for venue in pairs}
            await asyncio.sleep(2 * QUICK.follow.silence.unreachable_after_s)
            for _ in range(8):
                await asyncio.sleep(0.5)
                for venue, reason in pairs.items():
                    market, health = await status_of(service, series_of(venue))
                    stream, backfill = health["stream"], health["backfill"]
                    assert isinstance(stream, dict)
                    assert isinstance(backfill, dict)
                    assert market["state"] == "unreachable", market
                    assert reason in str(market["detail"])
                    assert stream["state"] == "reconnecting", stream
                    assert reason in stream["detail"]
                    assert stream["since"] is not None
                    looks[venue.name].add(market["since"])
                    if health["status_reason"] == "backfill_running":
                        assert reason in backfill["note"], backfill
                    if venue is okx:
                        assert market["rest"]["banned_until"] is not None
            for venue, since in looks.items():
                assert len(since) == 1, (venue, since)
                assert None not in since
                if from_start:
                    assert int(before_s) <= next(iter(since)) <= time.time()


async def test_a_complete_series_without_trades_stays_green(tmp_path: Path) -> None:
    async with Kraken(speed=SPEED) as kraken, Bybit(speed=SPEED) as bybit:
        for venue in (kraken, bybit):
            quiet_s = venue.now_ms() // 60_000 * 60
            venue.pairs.insert(0, Pair("QUIET", quiet_from_s=quiet_s))
        followed = [series_of(venue, "QUIET") for venue in (kraken, bybit)]
        async with serving(tmp_path, kraken, bybit, hurry=QUICK, **whitelist(*followed)) as service:
            await until(lambda: all(map(service.runtime.supervisors.keeps_up, followed)), "all are followed")
            end_ms = kraken.now_ms() + 180_000
            while kraken.now_ms() < end_ms:
                for series in followed:
                    async with asyncio.timeout(LATE_LOOK_S):  # on a busy machine a REST poll may come late
                        while True:
                            market, health = await status_of(service, series)
                            if health["status"] == "green" and market["state"] in ("live", "degraded"):
                                break
                            await asyncio.sleep(0.1)
                await asyncio.sleep(0.2)


async def test_a_stream_that_is_frozen_silent_or_refused_is_named_and_costs_no_close(tmp_path: Path) -> None:
    async with Okx(speed=SPEED) as okx, Bybit(speed=SPEED) as bybit, Gate(speed=SPEED) as gate:
        okx.stream_fault, bybit.stream_fault = StreamFault.FROZEN, StreamFault.SILENT
        venues = (okx, bybit, gate)
        followed = [series_of(venue) for venue in venues]
        began_ms = okx.now_ms()
        async with (
            serving(tmp_path, *venues, hurry=QUICK, **whitelist(*followed)) as service,
            watching(service, venues, followed) as closes,
        ):
            await until(lambda: all(len(first_closes(closes, venue, began_ms)) >= 4 for venue in venues), "4 closes")
            for venue in venues:
                market, health = await status_of(service, series_of(venue))
                stream = health["stream"]
                assert isinstance(stream, dict)
                assert (stream["state"], market["state"]) == ("rest_fallback", "degraded"), (venue.name, stream)
                assert stream["detail"] in str(market["detail"])
                times = [close.candle.time for close in first_closes(closes, venue, began_ms)]
                assert times == list(range(times[0], times[-1] + 60, 60))
                assert all(is_final(venue, close) for close in first_closes(closes, venue, began_ms))
            assert okx.asked(Ask.ROWS) > 0

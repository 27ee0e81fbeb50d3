"""The exchange has a known fault, under virtual time: what the service decides, and that the store finally equals the
traded candles. The timings are those of the product, and the exchange's clock is as quick as ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.sim.faults import (
    ClockSkew,
    Delist,
    Disconnect,
    DropClosed,
    Fault,
    LateClosed,
    Outage,
    RateLimit,
    RefuseConnect,
    RestStale,
    Revise,
    Silent,
    Unlisted,
)
from klinesync.sim.server import SimConfig, build_exchange
from sim.beside import Beside, run_beside_exchange

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
SPOT_ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
FUTURES_ETH = SeriesId.parse("binance:futures:ETH/USDT:1m")
ALL = (SPOT, SPOT_ETH, FUTURES, FUTURES_ETH)
# Series of one connection.
MANY = 30
# One audit of any series in this time, in seconds.
AUDIT_S = 5.0

Live = Callable[[Beside], Awaitable[None]]


def follow(
    tmp_path: Path,
    live: Live,
    followed: Iterable[SeriesId],
    *,
    faults: tuple[Fault, ...] = (),
    symbols: int = 2,
    tuning: Tuning = USUAL_TUNING,
    all_live: bool = True,
    **flags: object,
) -> None:
    """Let `live` run beside a service that follows these series.

    faults: in force from the start.
    symbols: of each market.
    tuning: limits and timings of the service.
    all_live: whether `live` begins once every stream is live; else it begins at once.
    """
    series = tuple(followed)
    given = {"startup_kline_sync_target_candles": 20, "audit_interval_s": 0} | flags

    async def begin(world: Beside) -> None:
        if all_live:
            await world.until(lambda: all(world.state(one) == "live" for one in series), "all streams are live")
        await live(world)

    config = SimConfig(symbols=symbols, faults=faults)
    given["whitelist"] = ",".join(map(str, series))
    run_beside_exchange(tmp_path / "store.sqlite", begin, config, given, tuning=tuning)


def every_minute(closed: list[int]) -> bool:
    return closed == list(range(closed[0], closed[-1] + 60, 60))


def spot_names(count: int) -> list[SeriesId]:
    """The series of a generated spot market."""
    exchange, _ = build_exchange(SimConfig(symbols=count), time.time())
    symbols = [listing.symbol for listing in exchange.spot.values()]
    return [SeriesId.parse(f"binance:spot:{symbol.base}/{symbol.quote}:1m") for symbol in symbols]


def test_acknowledged_streams_without_frames_are_stale_and_replaced_by_rest(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            fault = world.exchange.faults.add(Silent())
            await world.until(lambda: all(world.state(one) == "rest_fallback" for one in ALL), "REST stands in")
            assert client.stream_events == ["stream.stale", "stream.rest_fallback"]
            assert "REST shows" in (world.service.supervisors.status(SPOT).detail or "")
            await world.passed(240)
            await world.complete(*ALL)
            world.exchange.faults.remove(fault)
            await world.until(lambda: all(world.state(one) == "live" for one in ALL), "live again")
            assert client.stream_events[2:] == ["stream.live"]
            await world.complete(*ALL)
            assert every_minute(client.closed)
            assert not client.gaps

    follow(tmp_path, live, ALL)


def test_one_silent_stream_of_many_is_subscribed_again_alone(tmp_path: Path) -> None:
    names = spot_names(MANY)

    async def live(world: Beside) -> None:
        await world.until(lambda: world.state(SPOT_ETH) == "rest_fallback", "the silent stream is noticed")
        await world.passed(120)
        await world.complete(SPOT, SPOT_ETH)
        others = {world.state(series) for series in names if series != SPOT_ETH}
        assert others == {"live"}, "subscribing one anew costs the others nothing"
        assert all(one.reconnects == 0 for one in world.service.supervisors.connections_state())

    silent = Silent(symbols=("ETHUSDT",), market="spot")
    follow(
        tmp_path, live, names, symbols=MANY, faults=(silent,), all_live=False, startup_kline_sync_target_candles=5
    )  # fmt: skip


def test_a_connection_whose_streams_are_all_silent_is_renewed(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            world.exchange.faults.add(Silent(connections="present"))
            await world.until(lambda: "stream.stale" in client.stream_events, "stale")
            await world.until(lambda: world.state(SPOT) == "live", "live on a new connection")
            await world.complete(SPOT, SPOT_ETH)
            assert every_minute(client.closed)

    follow(tmp_path, live, (SPOT, SPOT_ETH))


def test_a_cut_over_the_minutes_end_loses_nothing(tmp_path: Path) -> None:
    """From :59.8 to :01.2 of the exchange's minute no frame comes: the final frame of that minute is lost."""

    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            for _ in range(3):
                await world.until(lambda: world.exchange.now_ms() % 60_000 >= 59_800, "the end of a minute")
                minute = world.exchange.now_ms() // 60_000 * 60
                fault = world.exchange.faults.add(RefuseConnect())
                world.exchange.faults.add(Disconnect())
                end_ms = (minute + 61) * 1000 + 200
                await world.until(lambda end_ms=end_ms: world.exchange.now_ms() >= end_ms, "the cut ends")  # type: ignore[misc]
                world.exchange.faults.remove(fault)
                await world.passed(45)
            await world.complete(*ALL)
            await world.until(lambda: client.closed[-1] >= minute, "the client has it too")
            assert every_minute(client.closed)
            assert not client.gaps

    follow(tmp_path, live, ALL)


def test_without_any_stream_closed_candles_come_from_rest(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        await world.until(lambda: set(world.service.supervisors.followed()) == set(ALL), "followed")
        await world.passed(300)
        await world.complete(*ALL)

    follow(tmp_path, live, ALL, faults=(RefuseConnect(),), all_live=False)


def test_a_connection_is_replaced_before_its_day_is_over(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            before = set(world.exchange.sockets)
            world.exchange.advance(23.2 * 3600)
            await world.until(lambda: not before & set(world.exchange.sockets), "both are replaced")
            assert len(world.exchange.sockets) == 2
            await world.complete(SPOT, FUTURES)
            after = set(world.exchange.sockets)
            world.exchange.advance(1.5 * 3600)
            await world.passed(30)
            await world.complete(SPOT, FUTURES)
            assert set(world.exchange.sockets) == after, "the day of the new ones has just begun"
            assert every_minute(client.closed)
            assert all(one.reconnects == 0 for one in world.service.supervisors.connections_state())

    follow(tmp_path, live, (SPOT, FUTURES))


def test_a_final_frame_two_seconds_late_is_waited_for_though_rest_has_the_row(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(FUTURES) as client:
            world.exchange.faults.add(LateClosed(delay_s=2.0, market="futures"))
            await world.passed(150)
            await world.complete(FUTURES)
            assert every_minute(client.closed)
            assert client.stream_events == []
            assert client.revised == []

    follow(tmp_path, live, (FUTURES,))


def test_candles_of_lost_final_frames_come_from_rest(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            world.exchange.faults.add(DropClosed(every=2))
            await world.passed(300)
            await world.complete(SPOT, FUTURES)
            assert every_minute(client.closed)
            assert not client.gaps

    follow(tmp_path, live, (SPOT, FUTURES))


def test_rows_that_rest_shows_too_early_are_corrected_by_the_audit(tmp_path: Path) -> None:
    """REST lags by more than the margin, and final frames are lost: stored candles are not final then."""

    async def live(world: Beside) -> None:
        faults = [world.exchange.faults.add(fault) for fault in (RestStale(delay_s=45.0), DropClosed())]
        await world.passed(240)
        wrong = await world.stored(SPOT)
        assert wrong != world.truth(SPOT, [candle.time for candle in wrong]), "or this tests nothing"
        for fault in faults:
            world.exchange.faults.remove(fault)
        await world.passed(300)
        await world.complete(SPOT)

    follow(tmp_path, live, (SPOT,), audit_interval_s=AUDIT_S)


def test_a_ban_during_the_start_of_many_series_delays_history_and_no_stream(tmp_path: Path) -> None:
    names = spot_names(MANY)

    async def live(world: Beside) -> None:
        await world.until(lambda: len(world.service.supervisors.followed()) == MANY, "followed")
        await world.until(lambda: world.exchange.faults.seen().get("rate_limit", 0) >= 1, "the limit is met")
        await world.passed(30)
        met = world.exchange.faults.seen()["rate_limit"]
        assert met <= 8, "nothing is asked before Retry-After has passed, save what was under way"
        assert sum(world.state(one) == "live" for one in names) > 0.8 * MANY, "streams do not mind"
        await world.until(lambda: world.service.startup.progress().done == MANY, "all are up to date")
        await world.complete(*names[::10])

    ban = RateLimit(after=20, count=1, retry_after_s=10, ban_s=60.0)
    follow(
        tmp_path, live, names, symbols=MANY, faults=(ban,), all_live=False, startup_kline_sync_target_candles=30
    )  # fmt: skip


def test_a_stall_in_mid_candle_promotes_nothing_when_our_clock_passes_the_boundary(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(SPOT) as client:
            await world.until(lambda: 20_000 < world.exchange.now_ms() % 60_000 < 40_000, "the middle of a minute")
            await world.complete(SPOT)
            world.exchange.pause(True)
            open_ = world.exchange.now_ms() // 60_000 * 60
            clock, asked = world.service.registry.clocks["binance", "spot"], len(world.exchange.asked)
            await asyncio.sleep(300)
            assert len(world.exchange.asked) - asked < 250, "REST is asked for its time, and hardly for candles"
            assert clock.rest_ms is not None
            assert clock.rest_ms <= world.exchange.now_ms()
            assert client.closed[-1] < open_
            assert (await world.stored(SPOT))[-1].time < open_
            world.exchange.pause(False)
            await world.passed(120)
            await world.complete(SPOT)
            assert every_minute(client.closed)

    follow(tmp_path, live, (SPOT,))


def test_the_hosts_time_zone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live(world: Beside) -> None:
        await world.passed(180)
        await world.complete(SPOT, FUTURES)

    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        follow(tmp_path, live, (SPOT, FUTURES))
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("skew_s", [90.0, -90.0])
def test_an_exchange_is_followed_by_its_own_clock(skew_s: float, tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        await world.passed(180)
        await world.complete(*ALL)
        health = world.service.market_data.health
        assert health is not None
        judged = await health.health(SPOT)
        assert abs(judged.now_time - world.exchange.now_ms() // 1000) <= 1

    follow(tmp_path, live, ALL, faults=(ClockSkew(skew_s=skew_s),))


def test_an_outage_of_the_exchange_is_confirmed_empty(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(FUTURES) as client:
            world.exchange.faults.add(Outage(minutes=5))
            await world.passed(540)
            await world.complete(*ALL)
            (gap,) = client.gaps
            assert gap.actual - gap.expected == 300
            assert gap.state == "confirmed_empty"

    follow(tmp_path, live, ALL)


def test_a_silent_revision_is_found_by_the_audit(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(FUTURES) as client:
            await world.passed(60)
            before = await world.complete(FUTURES)
            world.exchange.faults.add(Revise(market="futures"))
            await world.until(lambda: client.revised != [], "the client is told")
            await world.complete(SPOT, FUTURES)
            (revised,) = client.revised
            assert [revised] == world.truth(FUTURES, [revised.time])
            assert revised not in before[FUTURES]

    follow(tmp_path, live, (SPOT, FUTURES), audit_interval_s=AUDIT_S)


def klines_of(world: Beside, symbol: str, since: int) -> int:
    """The requests for candles of a symbol after the first `since` requests."""
    asked = world.exchange.asked[since:]
    return sum(one.path == "klines" and one.params["symbol"] == symbol for one in asked)


@pytest.mark.parametrize("gone", [False, True], ids=["halted", "not listed any more"])
@pytest.mark.parametrize("series", [SPOT_ETH, FUTURES_ETH], ids=["spot", "futures"])
def test_a_delisted_symbol_is_reported_paused_and_followed_again_when_listed(
    series: SeriesId, gone: bool, tmp_path: Path
) -> None:
    async def live(world: Beside) -> None:
        async with world.watching(series) as client:
            market = series.market
            assert market in ("spot", "futures")
            fault = world.exchange.faults.add(Delist(symbols=("ETHUSDT",), market=market, gone=gone))  # type: ignore[arg-type]
            await world.until(lambda: world.state(series) == "delisted", "its end is noticed")
            detail = world.service.supervisors.status(series).detail or ""
            assert ("not list" in detail) if gone else ("BREAK" in detail or "SETTLING" in detail)
            since = len(world.exchange.asked)
            await world.passed(300)
            assert klines_of(world, "ETHUSDT", since) <= 3, "hardly anything is asked in vain"
            await world.complete(*(one for one in ALL if one != series))
            before = await world.stored(series)
            assert before == world.truth(series, [candle.time for candle in before])
            world.exchange.faults.remove(fault)
            await world.until(lambda: world.state(series) == "live", "it is followed again")
            assert "last candle before" in (world.service.supervisors.status(series).detail or "")
            await world.passed(120)
            await world.until(lambda: len(client.gaps) == 1, "the client is told of the span between")
            assert client.gaps[0].state == "confirmed_empty"
            # A relisted future has no earlier history at the exchange; the store keeps it.
            after = [candle for candle in await world.stored(series) if candle not in before]
            assert after == world.truth(series, range(after[0].time, after[-1].time + 60, 60))
            assert after[-1].time >= world.exchange.now_ms() // 1000 - 180
            assert [candle for candle in await world.stored(series) if candle.time <= before[-1].time] == before
            assert client.stream_events == ["stream.delisted", "stream.subscribed", "stream.live"]

    follow(tmp_path, live, ALL)


def test_gaps_of_a_delisted_symbol_are_filled_once_it_is_traded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def live(world: Beside) -> None:
        await world.complete(SPOT_ETH)
        fault = world.exchange.faults.add(Delist(symbols=("ETHUSDT",), market="spot", gone=True))
        await world.until(lambda: world.state(SPOT_ETH) == "delisted", "its end is noticed")
        first = (await world.stored(SPOT_ETH))[0].time
        old = range(first - 30 * 60, first - 20 * 60, 60)
        await world.service.market_data.ingest_candles_closed(SPOT_ETH, world.truth(SPOT_ETH, old))
        world.service.backfill.request_declared(SPOT_ETH)
        await world.until(lambda: "its gaps are left as they are" in caplog.text, "nobody has anything of it")
        world.exchange.faults.remove(fault)
        wanted = world.truth(SPOT_ETH, range(old.start, first + 60, 60))

        async def stored() -> list[Candle]:
            return [candle for candle in await world.stored(SPOT_ETH) if candle.time <= first]

        async with asyncio.timeout(600):
            while await stored() != wanted:
                await asyncio.sleep(1.0)

    caplog.set_level(logging.WARNING, "klinesync")
    follow(tmp_path, live, (SPOT_ETH,))


def test_a_symbol_that_is_not_listed_yet_is_followed_from_its_first_candle_on(tmp_path: Path) -> None:
    unlisted = (SPOT_ETH, FUTURES_ETH)

    async def live(world: Beside) -> None:
        await world.until(lambda: all(world.state(one) == "delisted" for one in unlisted), "they are named")
        await world.passed(240)
        assert klines_of(world, "ETHUSDT", 0) <= 6
        world.exchange.lift_all()
        await world.until(lambda: all(world.state(one) == "live" for one in unlisted), "they are followed")
        await world.passed(180)
        whole = await world.complete(*ALL)
        for series in unlisted:
            exchange = world.exchange.exchange
            listings = exchange.spot if series.market == "spot" else exchange.futures
            assert whole[series][0].time == listings["ETHUSDT"].tape.first_s

    follow(tmp_path, live, ALL, faults=(Unlisted(symbols=("ETHUSDT",)),), all_live=False)

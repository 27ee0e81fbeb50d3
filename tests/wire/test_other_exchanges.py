"""Exchanges without a client of our own, through the whole service: an exchange object like ccxt's, backed by the
simulated exchange.

tests/clients does the same for the source alone with unmodified ccxt, which is not installed where these tests run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle, FormingCandle, Gap
from klinesync.core.backoff import Backoff
from klinesync.core.errors import BadFlag
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.timings import CcxtTimings, TurnTimings
from klinesync.exchanges.whole_lists import ListTimings
from klinesync.ingest.timings import FollowTimings
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.runtime.flags import load_flags
from klinesync.sim.faults import Outage
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import Service, running_service
from support.simex import Pointed
from support.upstream import complete, passed, stored, truth
from support.waiting import PATIENCE_S, until

BTC = SeriesId.parse("simex:spot:BTC/USDT:1m")
BTC_5M = SeriesId.parse("simex:spot:BTC/USDT:5m")
FUTURES = SeriesId.parse("simex:futures:BTC/USDT:1m")
WAIT_S = 60.0


QUICK = FollowTimings(tick_s=0.05, clock_age_s=0.5)
QUICK_POLLS = CcxtTimings(poll_least_s=0.1)


@asynccontextmanager
async def serving(
    tmp_path: Path, *, follow: FollowTimings = QUICK, timings: CcxtTimings = QUICK_POLLS, **flags: str
) -> AsyncIterator[tuple[SimServer, Service, list[Pointed]]]:
    """A service without series of Binance, and an exchange `simex`."""
    made: list[Pointed] = []
    given = {"startup_kline_sync_target_candles": "20", "ondemand_idle_ttl_s": "0.3", "audit_interval_s": "0"} | flags
    async with SimServer(SimConfig(speed=60, symbols=3)) as exchange:

        def make(name: str) -> Pointed:
            made.append(Pointed(exchange.http_url))
            return made[-1]

        others = CcxtEntry(makers={"simex": make}, timings=timings)
        around = Surroundings(tuning=Tuning(follow=follow))
        async with running_service(tmp_path / "store.sqlite", None, others, around, **given) as service:
            yield exchange, service, made
    assert all(one.closed for one in made)
    assert "ccxt" not in {thread.name for thread in threading.enumerate()}


def jobs(service: Service) -> set[str]:
    return {job.series_id for job in service.runtime.supervisors.jobs_state()}


async def test_a_subscription_starts_a_job_that_stops_after_its_idle_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as (exchange, service, made):
        assert made == [], "nothing is begun before somebody asks"
        for series in (BTC, FUTURES):
            closed, forming = [], 0
            async with aclosing(follow(service.url, series, since=0)) as updates:
                async for update in updates:
                    assert not isinstance(update, Gap)
                    if isinstance(update, ClosedCandle):
                        closed.append(update.candle)
                    forming += isinstance(update, FormingCandle)
                    if len(closed) >= 22 and forming:  # twenty of history, then live
                        break
            times = [candle.time for candle in closed]
            assert times == list(range(times[0], times[-1] + 60, 60))
            assert closed == truth(exchange, series, times)
        await until(lambda: not jobs(service), "nobody watches any more")
        assert len(made) == 1, "one exchange object for all its series"


async def test_a_whitelisted_series_is_followed_from_the_start_and_derived(tmp_path: Path) -> None:
    async with serving(tmp_path, whitelist=str(BTC), enable_whitelist_ingest="on") as (exchange, service, _):
        await until(lambda: service.runtime.supervisors.status(BTC).state == "live", "it is live")
        await complete(service, exchange, BTC)
        derived = await stored(service, BTC_5M)
        assert derived
        assert all(candle.time % 300 == 0 for candle in derived)
        status, health = await service.get("/api/market/health", series_id=str(BTC))
        assert status == 200
        stream = health["stream"]
        assert isinstance(stream, dict)
        assert stream["state"] == "live"


async def test_an_outage_of_the_exchange_is_declared_and_confirmed_empty(tmp_path: Path) -> None:
    async with serving(tmp_path, whitelist=str(BTC), enable_whitelist_ingest="on") as (exchange, service, _):
        await complete(service, exchange, BTC)
        exchange.faults.add(Outage(minutes=3, symbols=("BTCUSDT",), market="spot"))
        from_s = exchange.now_ms() // 60_000 * 60
        async with asyncio.timeout(WAIT_S):
            while True:
                candles = [candle for candle in await stored(service, BTC) if candle.time > from_s + 300]
                status, health = await service.get("/api/market/health", series_id=str(BTC))
                gaps = health["gaps"]
                assert status == 200
                assert isinstance(gaps, dict)
                if candles and gaps["confirmed_empty"] == 3:
                    break
                await asyncio.sleep(0.1)
        assert gaps == {"unknown": 0, "healing": 0, "confirmed_empty": 3, "lost": 0}


async def test_only_a_second_list_without_the_symbol_proves_it_delisted(tmp_path: Path) -> None:
    follow = replace(QUICK, suspect_listings_age_s=1.0, listings_age_s=0.2, listings_pause_s=0.05)
    timings = CcxtTimings(
        poll_least_s=0.1,
        unlisted_ttl_s=0.1,
        turns=TurnTimings(trouble=Backoff(0.05, 0.05)),
        lists=ListTimings(first=Backoff(0.05, 30.0), next=Backoff(0.05, 0.2)),
    )
    async with serving(tmp_path, follow=follow, timings=timings, whitelist=str(BTC), enable_whitelist_ingest="on") as (
        exchange,
        service,
        made,
    ):
        await complete(service, exchange, BTC)

        def state() -> str:
            return service.runtime.supervisors.status(BTC).state

        for part in (0, 3):  # nothing, and a part that the symbol even contains
            made[0].listed = lambda bases, part=part: bases[:part]  # type: ignore[misc]
            lists = made[0].lists
            await until(lambda lists=lists: made[0].lists > lists + 8, "it is asked again")  # type: ignore[misc]
            assert state() != "delisted", part
        made[0].listed = lambda bases: [base for base in bases if base != "BTC"]
        lists, began_s = made[0].lists, asyncio.get_running_loop().time()
        await until(lambda: state() == "delisted", "two lists do not have it")
        assert made[0].lists >= lists + 2
        assert asyncio.get_running_loop().time() - began_s >= 1.0
        made[0].listed = list
        await until(lambda: state() != "delisted", "it is traded again")


async def test_a_read_requests_the_tail_of_a_series_that_is_not_followed(tmp_path: Path) -> None:
    async with serving(tmp_path, market_auto_tail_backfill_max_candles="50") as (exchange, service, _):
        async with asyncio.timeout(WAIT_S):
            while len(candles := await stored(service, BTC)) < 49:
                await asyncio.sleep(0.1)
        assert candles == truth(exchange, BTC, range(candles[0].time, candles[-1].time + 60, 60))
        assert not jobs(service)


@pytest.mark.parametrize(
    ("series_id", "sentence"),
    [
        ("simex:spot:NOPE/USDT:1m", "simex lists no NOPE/USDT on its spot market"),
        ("simex:spot:BTC/USDT:1w", "simex has no 1w; it has 1h 1m 5m"),
        ("nope:spot:BTC/USDT:1m", "ccxt"),
    ],
)
async def test_an_unavailable_series_is_unknown_with_a_sentence(tmp_path: Path, series_id: str, sentence: str) -> None:
    async with serving(tmp_path) as (_, service, _):
        status, answer = await service.get("/api/market/candles", series_id=series_id)
        assert (status, answer["code"]) == (404, "unknown_series")
        assert sentence in str(answer["detail"])
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": series_id})
            error = await socket.receive_json(timeout=30)
        assert error["code"] == "unknown_series"
        assert sentence in error["message"]
        assert not jobs(service)


async def test_posted_candles_are_served_under_a_name_that_no_exchange_has(tmp_path: Path) -> None:
    series = "mine:spot:BTC/USDT:1m"
    candle = {"candle_time": 1_700_000_040, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0}
    async with serving(tmp_path) as (_, service, _):
        status, _ = await service.post("/api/market/ingest/candle_closed", {"series_id": series, "candle": candle})
        assert status == 200
        status, page = await service.get("/api/market/candles", series_id=series)
        assert (status, page["candles"]) == (200, [candle])
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": series, "since": 0, "ack": True})
            message = await socket.receive_json(timeout=30)
        assert message["type"] == "subscribed"
        assert not jobs(service)


async def test_a_series_beyond_the_venues_limit_is_refused_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pointed, "rate_limit_ms", 24_000.0)
    async with serving(tmp_path) as (_, service, _):
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            for series in (BTC, FUTURES):
                await socket.send_json({"type": "subscribe", "series_id": str(series), "ack": True})
            while (message := await socket.receive_json(timeout=30))["type"] != "error":
                pass
        assert (message["code"], message["message"]) == ("capacity", "ondemand_ingest_capacity")
        assert message["series_id"] == str(FUTURES)
        needs = "simex allows about 2 requests for candles a minute, and a series of 1m takes 2"
        assert message["detail"] == f"{needs}: 1 series fit, and 2 are too many"


def too_many() -> str:
    return ",".join(f"hyperliquid:futures:S{number}/USDC:1m" for number in range(20))


async def test_a_whitelist_beyond_the_venues_limit_ends_the_start_with_the_limit(
    tmp_path: Path,
) -> None:
    flags = {"database_url": f"sqlite:///{tmp_path}/store.sqlite", "whitelist": too_many()}
    with pytest.raises(BadFlag, match=r"whitelist.*hyperliquid.* 19 series fit, and 20 are too many"):
        build_market_runtime(load_flags(flags), entries=[Every()])
    build_market_runtime(load_flags(flags | {"enable_whitelist_ingest": "off"}), entries=[Every()])


class Every(CcxtEntry):
    """Has any exchange."""

    def refusal(self, name: str) -> str | None:
        return None


async def test_a_whitelist_with_an_unavailable_exchange_ends_the_start(tmp_path: Path) -> None:
    flags = {"database_url": f"sqlite:///{tmp_path}/store.sqlite", "whitelist": str(BTC)}
    with pytest.raises(BadFlag, match=r"simex:spot:BTC/USDT:1m: .*ccxt"):
        build_market_runtime(load_flags(flags))


async def test_with_history_over_rest_off_a_series_is_followed_from_the_forming_candle_on(tmp_path: Path) -> None:
    async with serving(tmp_path, whitelist=str(BTC), enable_whitelist_ingest="on", enable_ccxt_backfill="off") as (
        exchange,
        service,
        _,
    ):
        began = exchange.now_ms() // 60_000 * 60
        await passed(exchange, 200)
        async with asyncio.timeout(PATIENCE_S):
            while len(candles := await stored(service, BTC)) < 3:
                await asyncio.sleep(0.05)
        assert candles == truth(exchange, BTC, range(candles[0].time, candles[-1].time + 60, 60))
        assert candles[0].time >= began

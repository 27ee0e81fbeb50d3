"""The status of the whole service under virtual time, while the exchange is quiet, refuses, dies and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from klinesync.client.updates import System
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.timings import RECONNECT, StreamTimings
from klinesync.exchanges.reach import USUAL_SILENCE
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.market_data.status import MarketStatus, ServiceStatus
from klinesync.sim.faults import RefuseConnect, RestError, Silent
from klinesync.sim.server import SimConfig
from sim.beside import PATIENCE_S, Beside, Watcher, run_beside_exchange

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
POLL_S = 0.25
Live = Callable[[Beside], Awaitable[None]]


def follow(tmp_path: Path, live: Live, *, tuning: Tuning = USUAL_TUNING, **flags: object) -> None:
    """Let `live` run beside a service that follows BTC."""
    given = {"whitelist": str(BTC), "startup_kline_sync_target_candles": 20, "audit_interval_s": 0} | flags
    run_beside_exchange(tmp_path / "store.sqlite", live, SimConfig(symbols=4), given, tuning=tuning)


def market(status: ServiceStatus, name: str = "spot") -> MarketStatus:
    return next(exchange for exchange in status.exchanges if exchange.market == name)


def is_live(status: ServiceStatus) -> bool:
    spot = market(status)
    return (status.status, spot.state, spot.streams.live) == ("green", "live", 1)


async def until(world: Beside, holds: Callable[[ServiceStatus], bool]) -> list[ServiceStatus]:
    """The answers up to the first that satisfies the condition."""
    seen: list[ServiceStatus] = []
    async with asyncio.timeout(PATIENCE_S):
        while True:
            seen.append(await world.service.market_data.status.status())
            if holds(seen[-1]):
                return seen
            await asyncio.sleep(POLL_S)


def test_an_exchange_that_dies_is_red_within_seconds_and_green_again_once_it_is_back(tmp_path: Path) -> None:
    told: list[ServiceStatus] = []

    async def listen(world: Beside) -> None:
        async with aclosing(world.service.market_data.status.follow()) as statuses:
            async for status in statuses:
                told.append(status)  # noqa: PERF401  # read meanwhile

    async def live(world: Beside) -> None:
        await until(world, is_live)
        # A minute has just begun: no candle is overdue when the exchange dies.
        await world.until(lambda: 5_000 < world.exchange.now_ms() % 60_000 < 10_000, "the beginning of a minute")
        listening = asyncio.create_task(listen(world))
        client = Watcher(world.service, BTC)
        await client.begin()
        world.exchange.die()
        seen = await until(world, lambda status: status.status == "red")
        assert POLL_S * len(seen) < 15
        assert seen[-1].status_reason == "exchange_unreachable"
        dead = market(seen[-1])
        assert (dead.state, dead.streams.reconnecting) == ("unreachable", 1)
        assert None not in (dead.since, dead.last_frame_at, dead.detail)
        # A market without followed series has no trouble.
        assert market(seen[-1], "futures").state == "idle"
        assert all(status.status != "green" for status in seen if not market(status).streams.live)
        await world.until(lambda: told[-1].status == "red", "the stream of the status shows it")
        world.exchange.is_down = False
        await until(world, is_live)
        await world.until(lambda: is_live(told[-1]), "the stream of the status shows it")
        assert {status.status for status in told} == {"green", "yellow", "red"}
        events = [
            update for update in client.updates if isinstance(update, System) and update.event.startswith("stream.")
        ]
        assert (events[0].event, events[-1].event) == ("stream.reconnecting", "stream.live")
        assert all(before.event != after.event for before, after in pairwise(events)), "each change, once"
        for event in events:
            assert event.data["state"] == event.event.removeprefix("stream.")
            assert event.data["since"] is not None
        assert "lost" in str(events[0].data["detail"])
        listening.cancel()
        await asyncio.wait([listening])

    follow(tmp_path, live)


def test_all_streams_are_live_within_ten_seconds_of_the_exchanges_return(tmp_path: Path) -> None:
    """For any backoff of each connection."""
    names = [
        f"binance:{market}:{name}/USDT:1m" for market in ("spot", "futures") for name in ("BTC", "ETH", "BNB", "SOL")
    ]
    longest = StreamTimings(reconnect=replace(RECONNECT, initial_s=RECONNECT.most_s))

    async def live(world: Beside) -> None:
        def streams() -> int:
            return sum(job.state == "live" for job in world.service.supervisors.jobs_state())

        await world.until(lambda: streams() == 8, "all streams are live")
        world.exchange.die()
        await until(world, lambda status: status.status == "red")
        assert streams() == 0
        await asyncio.sleep(300)
        world.exchange.is_down = False
        await world.until(lambda: streams() == 8, "all streams are live again", patience_s=10)

    tuning = replace(USUAL_TUNING, binance_streams=longest)
    follow(tmp_path, live, tuning=tuning, whitelist=",".join(names), binance_ws_streams_per_connection=1)


def test_a_quiet_exchange_is_asked_for_its_time_and_is_never_red(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        await until(world, is_live)
        world.exchange.faults.add(Silent())
        began_s, asked = asyncio.get_running_loop().time(), len(world.exchange.asked)
        over_s = began_s + 4 * USUAL_SILENCE.unreachable_after_s
        seen = await until(world, lambda _: asyncio.get_running_loop().time() > over_s)
        assert all(status.status != "red" and market(status).state != "unreachable" for status in seen)
        assert "time" in [request.path for request in world.exchange.asked[asked:]]

    follow(tmp_path, live)


def test_a_refusal_is_red_at_once_and_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        fault = world.exchange.faults.add(RestError(status=451))
        seen = await until(world, lambda status: status.status_reason == "exchange_refuses")
        assert "answered 451: -1000 " in seen[-1].detail, "what the exchange said"
        assert await world.service.unready() is None, "what is stored is served"
        health = world.service.market_data.health
        assert health is not None
        judged = await health.health(BTC)
        assert (judged.status, judged.status_reason) == ("red", "exchange_refuses")
        assert "answered 451: -1000 " in (judged.detail or "")
        world.exchange.faults.remove(fault)
        await until(world, is_live)

    follow(tmp_path, live)


def test_handshakes_that_fail_while_rest_answers_are_yellow(tmp_path: Path) -> None:
    async def live(world: Beside) -> None:
        fault = world.exchange.faults.add(RefuseConnect())
        seen = await until(world, lambda status: status.status_reason == "handshakes_fail")
        assert (seen[-1].status, market(seen[-1]).state) == ("yellow", "degraded")
        world.exchange.faults.remove(fault)
        await until(world, is_live)

    follow(tmp_path, live)

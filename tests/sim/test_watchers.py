"""Subscriptions under virtual time without faults: on-demand jobs, and a client that was offline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.market.runtime import MarketRuntime
from klinesync.ws.frames import payload_of
from klinesync.ws.hub import Client
from sim import service as services
from sim.exchange import SimulatedExchange
from sim.scenario import Faults, Scenario, draw_scenario
from sim.world import World

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
IDLE_TTL_S = 60.0
HOUR_S = 3600.0


class Notebook:
    """A client's connection, which records every message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, object]] = []

    def write(self, frames: Sequence[bytes]) -> None:
        self.messages += [msgspec.json.decode(payload_of(frame)) for frame in frames]

    def ending(self) -> None:
        """Nothing to wait for."""

    def close(self, code: int) -> None:
        """Nothing to close."""

    def closed(self) -> list[Candle]:
        """All closed candles in the order of their messages."""
        found: list[Candle] = []
        for message in self.messages:
            assert message["type"] != "gap", message
            if message["type"] in ("candle_closed", "candles_batch"):
                rows = message["candles"] if message["type"] == "candles_batch" else [message["candle"]]
                assert isinstance(rows, list)
                found += [Candle(*row.values()) for row in rows]
        return found


class Watcher:
    """A client and its messages."""

    def __init__(self, runtime: MarketRuntime) -> None:
        self._runtime = runtime
        self.notes = Notebook()
        self._client = Client(self.notes)
        runtime.market_data.subscriptions.connected(self._client)

    async def say(self, kind: str, series: SeriesId, since: int | None = None) -> None:
        message = {"type": kind, "series_id": str(series), "since": since, "supports_batch": True}
        await self._runtime.market_data.subscriptions.handle(self._client, msgspec.json.encode(message))

    def leave(self) -> None:
        self._runtime.market_data.subscriptions.disconnected(self._client)


Story = Callable[[MarketRuntime, SimulatedExchange], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Runs a test with a service whose whitelist is only BTC, on an exchange without faults."""
    flags_of = services.flags_of

    def flags(scenario: Scenario, path: Path) -> object:
        changed = {"whitelist": (BTC,), "ondemand_idle_ttl_s": IDLE_TTL_S, "audit_interval_s": 0.0}
        return flags_of(scenario, path).model_copy(update=changed)

    monkeypatch.setattr(services, "flags_of", flags)
    scenario = replace(
        draw_scenario(1), speed=1.0, storm_minutes=200, series=(BTC, ETH), watched=(), faults=Faults(), outages=0,
        quiet=0.0, fast_clients=0, slow_clients=0, flapping_clients=0, writer_from_outside=False, rest_page=499,
        first_history_candles=200, forming_per_minute=2, catch_up_max_candles=2000,
    )  # fmt: skip

    def run(story: Story) -> None:
        world = World(scenario, tmp_path / "store.sqlite")

        async def live() -> None:
            world.exchange.begin()
            world._start_service()
            service = world._services[-1]
            while service.runtime is None:
                await asyncio.sleep(1.0)
            await service.do(story(service.runtime, world.exchange), "story")  # type: ignore[arg-type]  # a coroutine
            world._ending = True
            service.stop()
            await service.main

        try:
            world.loop.run_until_complete(live())
        finally:
            world.loop.bury()
            for service in world._services:
                service.close_files()

    return run


def test_the_first_subscriber_starts_a_job_and_it_stops_a_while_after_the_last_has_left(
    tell: Callable[[Story], None],
) -> None:
    async def story(runtime: MarketRuntime, exchange: SimulatedExchange) -> None:
        followed = runtime.supervisors.followed
        await asyncio.sleep(30)
        assert followed() == [BTC]
        first, second = Watcher(runtime), Watcher(runtime)
        await first.say("subscribe", ETH)
        await second.say("subscribe", ETH)
        await asyncio.sleep(3 * IDLE_TTL_S)
        assert followed() == [BTC, ETH]
        assert len(first.notes.closed()) >= 2
        await first.say("unsubscribe", ETH)
        await asyncio.sleep(3 * IDLE_TTL_S)
        assert followed() == [BTC, ETH], "somebody watches still"
        second.leave()
        await asyncio.sleep(IDLE_TTL_S - 2)
        assert followed() == [BTC, ETH], "in case somebody comes back"
        await asyncio.sleep(4)
        assert followed() == [BTC]
        await asyncio.sleep(2 * HOUR_S)
        assert followed() == [BTC], "the whitelist never stops"

    tell(story)


def test_a_client_that_comes_back_within_the_idle_time_keeps_the_job(tell: Callable[[Story], None]) -> None:
    async def story(runtime: MarketRuntime, exchange: SimulatedExchange) -> None:
        await asyncio.sleep(5)
        for _ in range(5):
            watcher = Watcher(runtime)
            await watcher.say("subscribe", ETH)
            await asyncio.sleep(5)
            watcher.leave()
            await asyncio.sleep(IDLE_TTL_S - 5)
            assert runtime.supervisors.followed() == [BTC, ETH]

    tell(story)


@pytest.mark.parametrize("series", [BTC, ETH], ids=["whitelist", "on demand"])
def test_a_client_that_was_away_for_two_hours_gets_exactly_the_missed_candles(
    series: SeriesId, tell: Callable[[Story], None]
) -> None:
    async def story(runtime: MarketRuntime, exchange: SimulatedExchange) -> None:
        first = Watcher(runtime)
        await first.say("subscribe", series, 0)
        await asyncio.sleep(600)
        first.leave()
        had = first.notes.closed()
        assert len(had) >= 9
        await asyncio.sleep(2 * HOUR_S)
        again = Watcher(runtime)
        await again.say("subscribe", series, had[-1].time)
        await asyncio.sleep(300)
        missed = again.notes.closed()
        whole = exchange.truth(series, had[0].time, missed[-1].time + 60)
        assert had + missed == [Candle(*row.ohlcv) for row in whole.values()]
        assert len(missed) >= 120
        again.leave()

    tell(story)

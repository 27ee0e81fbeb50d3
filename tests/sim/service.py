"""The service as one process under virtual time: it starts, is killed between two steps or stopped in order, and
restarts on the same store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar

import apsw
from fastapi import WebSocket

from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import MarketRoutes
from klinesync.exchanges.binance.streams import HEALTHY_S
from klinesync.exchanges.binance.timings import USUAL_STREAMS, StreamTimings
from klinesync.exchanges.binance.weight import WEIGHTS, MarketWeights
from klinesync.history.pending import USUAL_RETRIES
from klinesync.ingest.timings import FRUITLESS, RESUBSCRIBE, AuditLimits, FollowTimings
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.market.ws_routes import market_socket
from klinesync.pipelines.ledger_step import RETRY
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.candles import CandleStore
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.ws.outbox import ClientLimits
from sim.exchange import MINUTE_S
from sim.network import CALM, Network, Session
from sim.plugins import INDICATORS
from sim.scenario import EPOCH_S, Scenario
from sim.virtual_loop import Process, VirtualClock, VirtualLoop

R = TypeVar("R")
SOCKETS_END_S = 10.0
# The longest backoff of the service.
MOST_WAIT_S = 30.0
RETRIES = replace(USUAL_RETRIES, backoff=replace(USUAL_RETRIES.backoff, most_s=MOST_WAIT_S))


class Disk:
    """The disk of the store: pauses, and periods in which it is full."""

    def __init__(self, scenario: Scenario, loop: VirtualLoop) -> None:
        self.faults = scenario.faults
        self.minute_s = 60.0 / scenario.speed
        self._loop = loop
        self._rng = Random(f"disk {scenario.seed}")
        self._full_until_s = 0.0
        self.failed_commits = 0
        # Time of its last pause or failure.
        self.troubled_at_s = float("-inf")

    def calm(self) -> None:
        self.faults = CALM
        self._full_until_s = 0.0

    def strike(self) -> None:
        """Once per exchange minute: perhaps the disk is full for a while."""
        if self.faults.disk_full and self._rng.random() < 0.1:
            self._full_until_s = self._loop.time() + self._rng.uniform(0.02, 4) * min(self.minute_s, 20.0)

    @property
    def _full(self) -> bool:
        return self._loop.time() < self._full_until_s

    async def pause(self) -> None:
        """Where threads would let other threads run: no pause, some steps, or a while."""
        rng = self._rng
        # A full disk is slow as well, so that a backlog builds up behind a failing write.
        if rng.random() < (0.5 if self._full else self.faults.slow_disk):
            await asyncio.sleep(rng.uniform(0.001, 2) * min(self.minute_s, 2.0))
            self.troubled_at_s = self._loop.time()
        else:
            for _ in range(rng.choice((0, 0, 1, 2))):
                await asyncio.sleep(0)

    def before_commit(self) -> None:
        if self._full and self._rng.random() < self.faults.disk_full:
            self.failed_commits += 1
            self.troubled_at_s = self._loop.time()
            raise apsw.FullError("database or disk is full")

    def before_read(self, path: Path) -> None:
        if self._rng.random() < self.faults.disk_read:
            self.troubled_at_s = self._loop.time()
            raise StoreError(f"the store {path} cannot be read: disk I/O error")


class Store(InThreadSqliteDatabase):
    """The service's store on that disk."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, pause=disk.pause, before_commit=disk.before_commit)
        self.disk = disk
        self.reads_fail = False

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        if self.reads_fail:
            self.disk.before_read(self.path)
        return await super().read(look)

    def rot(self, rng: Random) -> SeriesId | None:
        """Flip a bit of packed candles. Returns whose they are; None where there are none."""
        writer = self._file._writer
        if writer is None or self._file.replaced is not None:
            return None
        chunks = writer.execute(
            "SELECT chunk_id, candles, series_id FROM candle_chunk JOIN series ON series_no = chunk_id >> 32"
        ).fetchall()
        if not chunks:
            return None
        chunk, packed, name = rng.choice(chunks)
        assert isinstance(packed, bytes)
        bit = rng.randrange(len(packed) * 8)
        raw = bytearray(packed)
        raw[bit // 8] ^= 1 << bit % 8
        writer.execute("UPDATE candle_chunk SET candles = ? WHERE chunk_id = ?", (bytes(raw), chunk))
        return SeriesId.parse(str(name))


class Service:
    """One process of the service. `ended` is done when the process has ended, with its result."""

    def __init__(self, scenario: Scenario, loop: VirtualLoop, network: Network, disk: Disk, path: Path, number: int):
        self.process = Process(f"service {number}")
        self.path = path
        self._scenario = scenario
        self._loop = loop
        self._network = network
        self._disk = disk
        self._number = number
        self._stop = loop.create_future()
        self.runtime: MarketRuntime | None = None
        self.thrown = 0  # unexpected exceptions, into its tasks
        self.clocks: Mapping[str, ExchangeClock] = {}
        self.store: Store | None = None
        self.main = loop.start(self.process, self._run(), f"service {number}")

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.done()

    @property
    def serving(self) -> bool:
        """Whether it accepts clients."""
        return self.process.alive and self.runtime is not None and not self._stop.done()

    async def _run(self) -> None:
        store = self.store = Store(self.path, self._disk)
        bulkheads = Bulkheads(self._loop.time)
        runtime = build_market_runtime(
            flags_of(self._scenario, self.path),
            Surroundings(
                VirtualClock(self._loop, EPOCH_S),
                Random(f"service {self._scenario.seed} {self._number}"),
                bulkheads,
                tuning_of(self._scenario),
            ),
            database=store,
            entries=[self._entry()],
        )
        self.clocks = runtime.registry.exchange("binance").clocks
        async with runtime:
            self.runtime = runtime
            store.reads_fail = True
            await self._stop
            await runtime.hub.end(SOCKETS_END_S)
        self.runtime = None

    def _entry(self) -> BinanceEntry:
        page = self._scenario.rest_page
        routes = {
            "spot": MarketRoutes("http://exchange", "/api/v3", page),
            "futures": MarketRoutes("http://exchange", "/fapi/v1", page),
        }
        urls = {"spot": "ws://exchange", "futures": "ws://exchange"}
        return BinanceEntry(
            routes,
            urls,
            http=lambda: Session(self._network, self.process),
            streams=streams_of(self._scenario),
            weights=weights_of(self._scenario),
        )

    def accept(self, websocket: WebSocket, name: str) -> asyncio.Task[None]:
        """Serve a client's connection, as the web server would."""
        return self._loop.start(self.process, market_socket(websocket), name)

    def do(self, work: Coroutine[object, object, R], name: str) -> asyncio.Task[R]:
        """Handle an HTTP request."""
        return self._loop.start(self.process, work, name)

    def scrub(self, stored: Iterable[SeriesId]) -> None:
        """Have it read these series, to find out what has rotted."""
        if self.runtime is not None:
            for series in stored:
                self.runtime._scrub.ask(series)

    def kill(self) -> None:
        """kill -9."""
        self._loop.kill(self.process)
        self._network.process_died(self.process)

    def stop(self) -> None:
        """SIGTERM."""
        if not self._stop.done():
            self._stop.set_result(None)

    def close_files(self) -> None:
        """Close the connections and files of a killed process, finally also its memory, which is part of this
        process."""
        if self.store is not None:
            if self.store._reader is not None:
                self.store._reader.close()
            self.store._file.close()


def tuning_of(scenario: Scenario) -> Tuning:
    """The service's limits and timings in that scenario: small, so that they are reached."""
    follow = FollowTimings(
        # Fruitless needs are requested once more before the calm is over. (More often, and a connection would never
        # live long enough to deliver anything.)
        resubscribe=replace(RESUBSCRIBE, most_s=1.5 * HEALTHY_S),
        fruitless=replace(FRUITLESS, most_s=MOST_WAIT_S),
    )
    if scenario.speed == 1.0:
        # A stream of a real exchange brings something every second, these a few times a minute.
        follow = replace(follow, clock_age_s=15.0)
    return Tuning(
        follow=follow,
        audit=AuditLimits(candles=scenario.audit_candles),
        retries=RETRIES,
        ledger_retry=replace(RETRY, most_s=MOST_WAIT_S),
        clients=ClientLimits(max_messages=scenario.outbox_max_messages, catch_up_candles=scenario.catch_up_max_candles),
    )


def streams_of(scenario: Scenario) -> StreamTimings:
    """When stream connections are replaced in that scenario: before the exchange ends them."""
    if not scenario.faults.lifetime:
        return USUAL_STREAMS
    lifetime_s = scenario.faults.lifetime * MINUTE_S
    return StreamTimings(rotate_after_s=(0.4 * lifetime_s, 0.6 * lifetime_s))


def weights_of(scenario: Scenario) -> Mapping[str, MarketWeights]:
    """What each market allows in that scenario."""
    if not scenario.faults.weight:
        return WEIGHTS
    return {market: replace(weights, limit=scenario.faults.weight) for market, weights in WEIGHTS.items()}


def flags_of(scenario: Scenario, path: Path) -> RuntimeFlags:
    """The service's configuration in that scenario."""
    return RuntimeFlags(
        database_url=f"sqlite:///{path}",
        whitelist=",".join(map(str, scenario.series)),
        derived_timeframes=",".join(scenario.derived),
        derived_native_candles=scenario.native_candles,
        derived_backfill_base_candles=scenario.derived_base_candles,
        indicators=INDICATORS,
        factor_pivot_window_major=3,
        factor_pivot_window_minor=1,
        ledger_advance_max_candles=scenario.advance_max_candles,
        startup_kline_sync_target_candles=scenario.first_history_candles,
        audit_interval_s=scenario.audit_interval_s,
    )

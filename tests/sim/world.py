"""One seed's world: exchange, network, disk, service and clients in one thread, from a storm of faults to calm.

`python -m sim.world SEED` (with `tests` on the path) prints the transcript of a seed.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from klinesync.core.candle import Candle
from klinesync.core.errors import KlinesyncError
from klinesync.core.series_id import SeriesId
from klinesync.ingest.liveness import STALE
from klinesync.runtime import clock
from klinesync.runtime.exchange_clock import DIFFER_MS
from sim import checkers
from sim.checkers import Witness
from sim.clients import Habits, Link, SimulatedClient, candle_of, series_of
from sim.exchange import MINUTE_S, Listing, SimulatedExchange, kline_frame
from sim.ledgers import LedgerWatch, check_ledgers
from sim.network import ExchangeSocket, Network
from sim.plugins import Trouble, factors_with, overlays_with
from sim.scenario import SETTLING_SPEED, Scenario, draw_scenario
from sim.service import Disk, Service
from sim.virtual_loop import PROCESS, Deadlock, Process, Runaway, VirtualLoop
from support.defects import throw_into
from support.memory_folder import memory_folder

# Time limit of the service, after the last fault and the last candle, for reaching the final state.
SETTLE_S = 300.0
TAIL_LINES = 150


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a seed. `wrong`: sentences; none when all promises held."""

    scenario: Scenario
    wrong: tuple[str, ...]
    transcript: str
    tail: tuple[str, ...]
    facts: dict[str, int]

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {count}" for name, count in self.facts.items())
        if not self.wrong:
            return f"{self.scenario}\npassed: {facts}; transcript {self.transcript}"
        lines = "\n".join((*self.tail, f"{self.scenario}", facts, *self.wrong))
        return f"{lines}\nagain: PYTHONPATH=tests python -m sim.world {self.scenario.seed}"


class Violated(Exception):
    """A promise was broken: the run ends."""


class World:
    """Runs one scenario on the store file `path`."""

    def __init__(self, scenario: Scenario, path: Path, *, echo: bool = False) -> None:
        self.scenario = scenario
        self.path = path
        self.loop = VirtualLoop()
        self.exchange = SimulatedExchange(scenario, self.loop, self._knows_rest)
        self.network = Network(
            self.exchange,
            self.loop,
            self.note,
            violate=self.violate,
            left=self._may_leave,
            clock_ms=self._clock_ms,
            closed_told=self._closed_told,
        )
        self.disk = Disk(scenario, self.loop)
        self.trouble = Trouble(scenario)
        self._ledgers = LedgerWatch()
        self._heads_at_start: dict[SeriesId, int] = {}
        self.wrong: list[str] = []
        self._rng = Random(f"world {scenario.seed}")
        self._lies = Random(f"lies {scenario.seed}")
        self._parts_rng = Random(f"parts of {scenario.seed}")
        self._rot_rng = Random(f"rot of {scenario.seed}")
        self._rotten = 0
        self._rotten_series: set[SeriesId] = set()
        self._echo = echo
        self._folder = str(path.parent)
        self._hash = hashlib.blake2b(digest_size=12)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._services: list[Service] = []
        self._links: list[Link] = []
        self._witness: Witness | None = None
        self._main: asyncio.Task[None] | None = None
        self._ending = False
        self._calmed = False
        self._down: asyncio.TimerHandle | None = None
        self._crashes_left = scenario.faults.crashes
        self._restarts_left = scenario.faults.restarts
        self._lines = 0
        self._crashes = 0
        self.clients = [self._client(number, habits) for number, habits in enumerate(self._habits())]

    def run(self) -> Outcome:
        """Run the scenario. Faults of the service are returned in the outcome, not raised."""
        self.loop.set_exception_handler(self._unhandled)
        self._main = self.loop.create_task(self._live(), name="world")
        try:
            self.loop.run_until_complete(self._main)
        except Violated as error:
            if not self.wrong:
                raise AssertionError("a violation without a sentence") from error
        except (Deadlock, Runaway) as error:
            self.wrong.append(str(error))
        finally:
            for service in self._services:
                if service.process.alive:
                    self.loop.kill(service.process)
            self._end_clients()
            self.loop.bury()
            for service in self._services:
                service.close_files()
            if self._witness is not None:
                self._witness.close()
        facts = {
            "crashes": self._crashes,
            "services": len(self._services),
            "requests": self.network.requests,
            "failed commits": self.disk.failed_commits,
            "rotten chunks": self._rotten,
            "faults of plugins": self.trouble.faulted,
            "rewinds": self._ledgers.rewinds,
            "lines": self._lines,
        }
        return Outcome(self.scenario, tuple(self.wrong), self._hash.hexdigest(), tuple(self._tail), facts)

    def note(self, line: str) -> None:
        """One line of the transcript."""
        text = f"{self.loop.time():.4f} {line}".replace(self._folder, "")
        self._lines += 1
        self._hash.update(text.encode())
        self._tail.append(text)
        if self._echo:
            print(text)  # stopped on request

    def violate(self, sentence: str) -> None:
        """A promise was broken."""
        self.wrong.append(sentence)
        self.note(f"WRONG {sentence}")
        if self._main is not None and len(self.wrong) == 1:
            self.loop.call_soon(self._main.cancel, context=self.loop.outside)

    # The phases of a run.

    async def _live(self) -> None:
        try:
            await self._storm_and_settle()
        except asyncio.CancelledError:
            if self.wrong:
                raise Violated from None
            raise

    async def _storm_and_settle(self) -> None:
        loop = self.loop
        self.exchange.begin()
        self._start_service()
        self._tasks = [loop.create_task(client.run(), name=client.name) for client in self.clients]
        if self.scenario.writer_from_outside:
            self._tasks.append(loop.create_task(self._write_from_outside(), name="writer from outside"))
        minute = self.exchange.start_s
        while minute < self.exchange.storm_end_s:
            minute += MINUTE_S
            await self._until(self.exchange.mono_s(minute))
            self.network.strike()
            self.exchange.strike_clocks()
            self.disk.strike()
            self._rot()
            self._break_a_part()
            self._plan_end()
            if minute // MINUTE_S % 20 == 0:
                self._check_stored()
            elif minute // MINUTE_S % 4 == 0:
                self._look_at_ledgers()
        self._calm()
        await self._until(self.exchange.mono_s(self.exchange.end_s))
        self.exchange.slow_down(1.0)
        await self._settle()
        await self._stop_in_order()

    def _break_a_part(self) -> None:
        """Perhaps raise a defect in a task of the service; other tasks must not have any."""
        service = self._services[-1]
        runtime = service.runtime
        if runtime is None or not service.process.alive:
            return
        self._check_defects(service)
        if self._parts_rng.random() >= self.scenario.faults.defect:
            return
        tasks = {
            task.get_name(): task
            for task in runtime.bulkheads.tasks
            # A client's own tasks end the client. The sweep waits in its task group, where no exception can be raised
            # from here.
            if not task.done() and not task.get_name().startswith(("socket", "start-up sweep"))
        }
        if not tasks:
            return  # stopped, except for the last write
        name = self._parts_rng.choice(sorted(tasks))
        if throw_into(tasks[name]):
            service.thrown += 1
            self.network.disturb()
            self.note(f"defect in {name}")

    def _rot(self) -> None:
        """Perhaps a bit of packed candles flips in the store."""
        store = self._services[-1].store
        if self._rot_rng.random() >= self.scenario.faults.rot or store is None or not self._has_store():
            return
        if not self._services[-1].process.alive or self._witness is None:
            return
        self._witness.remember()
        series = store.rot(self._rot_rng)
        if series is not None:
            self._rotten += 1
            self._rotten_series.add(series)
            self.note(f"packed candles of {series} rot")

    def _check_defects(self, service: Service) -> None:
        if service.runtime is not None:
            counts = service.runtime.bulkheads.counts
            if counts and not service.thrown:
                self.violate(f"defects that nobody threw: {dict(counts)}")

    async def _until(self, time_s: float) -> None:
        await asyncio.sleep(max(0.0, time_s - self.loop.time()))

    def _calm(self) -> None:
        """Stop the faults."""
        self.note("calm")
        self.exchange.slow_down(SETTLING_SPEED)
        self.network.calm()
        self.exchange.wrong_clocks.clear()
        self.disk.calm()
        self.trouble.calm()
        self._crashes_left = self._restarts_left = 0
        self._calmed = True
        if self._down is not None:
            self._down.cancel()
            self._start_service()
        self._services[-1].process.light_fuse(1 << 60, lambda: None)
        self._services[-1].scrub(self._witness.series() if self._witness is not None else ())
        for client in self.clients:
            client.settle()

    async def _settle(self) -> None:
        """Wait, with a time limit, until all candles have arrived; then all promises must hold."""
        until_s = self.loop.time() + SETTLE_S
        pause_s = 1.0
        while (unsettled := self._unsettled()) and self.loop.time() < until_s:
            await asyncio.sleep(pause_s)
            pause_s = min(1.2 * pause_s, 10.0)
        self._check_stored()
        for sentence in unsettled:
            self.violate(f"after {SETTLE_S:g} s of calm: {sentence}")

    def _unsettled(self) -> list[str]:
        witness = self._witness
        if witness is None:
            return ["there is no store"]
        return (
            checkers.check_heads(witness, self.exchange, self.clients)
            or checkers.check_store_is_truth(witness, self.exchange)
            or checkers.check_gap_ledger(witness, self.exchange)
            or checkers.check_derived(witness, self.exchange)
            or check_ledgers(witness, self._services[-1])
            or checkers.check_clients(
                witness, self.exchange, self.clients, self.scenario.catch_up_max_candles, self._rotten_series
            )
            or checkers.check_streams(self._services[-1], self.exchange, self.network)
            or checkers.check_idle(self._services[-1], self.exchange, len(self.clients))
        )

    async def _stop_in_order(self) -> None:
        """The last service stops in order: every client is notified, and stored candles remain."""
        self._ending = True
        self._check_defects(self._services[-1])
        codes = [len(client.ended_codes) for client in self.clients]
        before = {series: self._witness.candles(series) for series in self.scenario.series} if self._witness else {}
        self._services[-1].stop()
        try:
            async with asyncio.timeout(60):
                await self._services[-1].main
        except TimeoutError:
            self.violate("the service did not stop within 60 s")
        await asyncio.sleep(1)
        for client, count in zip(self.clients, codes, strict=True):
            if client.ended_codes[count:] != [1001]:
                self.violate(f"{client.name}: the stop was told with {client.ended_codes[count:]}, not 1001")
        if self._witness and before != {series: self._witness.candles(series) for series in self.scenario.series}:
            self.violate("the orderly stop changed the store")

    def _end_clients(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            if not task.done() and task.get_coro() is not None:
                task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))

    # The service.

    def _start_service(self) -> None:
        self._down = None
        number = len(self._services) + 1
        self.note(f"service {number} starts")
        witness = self._witness
        self._heads_at_start = {} if witness is None else {one: witness.head(one) or -1 for one in witness.series()}
        service = Service(self.scenario, self.loop, self.network, self.disk, self.path, number)
        self._services.append(service)
        service.main.add_done_callback(self._service_ended, context=self.loop.outside)
        self._plan_end()

    def _plan_end(self) -> None:
        """Perhaps kill the service before one of its next steps, or ask it to stop."""
        service = self._services[-1]
        if not service.process.alive or self._ending:
            return
        if self._crashes_left and self._rng.random() < 4 * self.scenario.faults.crashes / self.scenario.storm_minutes:
            self._crashes_left -= 1
            service.process.light_fuse(self._rng.randint(1, 600), lambda: self._crash(service))
        elif self._restarts_left and self._rng.random() < 2 / self.scenario.storm_minutes:
            self._restarts_left -= 1
            self.note("restart")
            service.stop()

    def _crash(self, service: Service) -> None:
        if not service.process.alive or service.main.done() or self._ending:
            return
        self._crashes += 1
        self.note("crash")
        service.kill()
        for link in self._links:
            link.lose()
        self._links.clear()
        self._check_stored()
        self._start_later()

    def _start_later(self) -> None:
        down_s = self._rng.choice((0.0, 0.5, 5.0)) * self._rng.uniform(0.5, 1.5)
        down_s += self._rng.choice((0, 0, 1, 10)) * self._rng.random() * 60 / self.scenario.speed
        if self._calmed:
            down_s = 0.0
        self._down = self.loop.call_later(down_s, self._start_service, context=self.loop.outside)

    def _service_ended(self, main: asyncio.Task[None]) -> None:
        service = self._services[-1]
        error = None if main.cancelled() else main.exception()
        if error is not None or service._stop.done() is False:
            self.violate(f"the service ended by itself: {error!r}")
        elif not self._ending:
            for link in self._links:
                link.lose()
            self._links.clear()
            self._start_later()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.loop.is_closed():
            return  # the remains of killed processes are freed
        process = PROCESS.get()
        if process is None or process.alive:
            self.violate(f"nobody handles: {context.get('message')} {context.get('exception')!r}")

    def _may_leave(self, socket: ExchangeSocket, streams: list[str]) -> bool:
        """Whether the service may close a connection to the exchange that alone carries these streams: it is stopping,
        or all are stale, so that it reconnects."""
        service = self._services[-1]
        if service.process is not socket.owner or service.stopping or service.runtime is None:
            return True
        if service.thrown:
            return True  # a defect ends the task that it is raised in
        status = service.runtime.supervisors.status
        followed = {one.stream: one.series for one in self.exchange.of_market(socket.market)}
        return all(status(followed[stream]).state in STALE for stream in streams if stream in followed)

    def _clock_ms(self, process: Process | None, market: str) -> int | None:
        """The earliest exchange time that the service may assume: it waits for the exchange by this time."""
        service = self._services[-1]
        return service.clocks[market].least_ms(self.loop.time()) if service.process is process else None

    def _knows_rest(self, market: str) -> bool:
        """Whether the service knows the time of that market's REST, and its speed."""
        clocks = self._services[-1].clocks
        return market in clocks and clocks[market]._rest.speed is not None

    def _closed_told(self, process: Process, listing: Listing, candle: Candle) -> None:
        """The service receives a final candle: it must not hold the candle longer than it may wait for the candles
        before."""
        service = self._services[-1]
        known_ms = None
        if service.process is process:
            if service.runtime is None or listing.series not in service.runtime.supervisors.followed():
                return  # the series begins again after a defect: REST has the candle, once it answers
            known_ms = service.clocks[listing.series.market].estimate_ms(self.loop.time())
        if self.scenario.faults.clocks:
            known_ms = None  # where clocks differ it may wait for two later rows
        # Otherwise it may not believe the candle.
        if known_ms is not None and abs(self.exchange.now_ms() - known_ms) <= DIFFER_MS:
            due_s = self.loop.time() + checkers.WAIT_MOST_S
            told = (process, service.thrown)
            self.loop.call_at(due_s, self._check_written, told, listing, candle, context=self.loop.outside)

    def _check_written(self, told: tuple[Process, int], listing: Listing, candle: Candle) -> None:
        service, witness, series = self._services[-1], self._witness, listing.series
        process, thrown = told
        if service.process is not process or not process.alive or service.stopping or self._ending:
            return
        if service.thrown != thrown:
            return  # a defect ends the task that held the candle; REST has the candle, once it answers
        due_s = self.disk.troubled_at_s + checkers.WAIT_MOST_S
        if due_s > self.loop.time():
            self.loop.call_at(due_s, self._check_written, told, listing, candle, context=self.loop.outside)
            return
        first = None if witness is None else witness.first(series)
        if first is not None and candle.time < first:
            return  # from before the first stored candle: the span between is never requested
        if witness is not None and any(gap.start <= candle.time < gap.end for gap in witness.gaps(series)):
            return  # superseded by history that begins later, and declared
        if witness is None or not witness.has(series, candle.time):
            waited_s = checkers.WAIT_MOST_S
            self.violate(f"{series}: the stream told the closed candle of {candle.time} {waited_s:g} s ago: not stored")
        elif not self._calmed and self._lies.random() < self.scenario.faults.other_values:
            if series in self._rotten_series:
                return  # the candle may be damaged: then nothing is stored that the lie could be compared with
            lie = candle._replace(volume=round(candle.volume + 0.0001, 4))
            stamp_ms = self.exchange.stamp_ms(series.market, "frames")
            self.network.tell(process, listing, kline_frame(listing, lie, closed=True, event_ms=stamp_ms))

    # The clients.

    def _habits(self) -> Iterator[Habits]:
        scenario = self.scenario
        yield from [Habits()] * scenario.fast_clients
        yield from [Habits(slow=True)] * scenario.slow_clients
        yield from [Habits(flapping=True)] * scenario.flapping_clients

    def _client(self, number: int, habits: Habits) -> SimulatedClient:
        kind = "slow" if habits.slow else "flapping" if habits.flapping else "fast"
        return SimulatedClient(
            f"{kind} client {number}",
            self.scenario.watched,
            habits,
            loop=self.loop,
            rng=Random(f"client {self.scenario.seed} {number}"),
            pace_s=60 / self.scenario.speed,
            connect=self._connect,
            first_stored=lambda series: None if self._witness is None else self._witness.first(series),
            may_be_unknown=self.exchange.is_unlisted_at_times,
            may_repeat=self._rotten_series.__contains__,
            violate=self.violate,
            note=self.note,
        )

    def _connect(self, client: SimulatedClient) -> Link | None:
        service = self._services[-1]
        if not service.serving:
            return None
        link = Link(self.loop, self._sent)
        self._links.append(link)
        self.note(f"{client.name} connected")
        socket = service.accept(link.websocket(service.runtime), f"socket of {client.name}")
        socket.add_done_callback(lambda done: self._socket_ended(link, done), context=self.loop.outside)
        return link

    def _socket_ended(self, link: Link, socket: asyncio.Task[None]) -> None:
        """The web server cuts the connection when the route has returned."""
        if not socket.cancelled() and socket.exception() is not None:
            self.violate(f"a client's connection broke: {socket.exception()!r}")
        link.lose()

    def _sent(self, message: dict[str, Any]) -> None:
        """The service sends a message to a client: every closed candle in the message is final, and on the disk."""
        kind = message["type"]
        if kind == "candle_forming":
            self._check_forming(message)
            return
        if kind == "candle_closed":
            shown = [message["candle"]]
        elif kind == "candles_batch":
            shown = message["candles"]
        else:
            return
        series = series_of(message["series_id"])
        for out in shown:
            candle = candle_of(out)
            if series in self.exchange.listings and not self.exchange.known_shown(series, candle):
                self.violate(f"{series}: shown as closed, and the exchange never called it final: {candle}")
            if not (self._has_store() and self._witness and self._witness.has(series, candle.time)):
                self.violate(f"{series}: {candle.time} is shown before it is stored")
        if shown:
            self._check_ledger_of(series, max(candle_of(out).time for out in shown))

    def _check_ledger_of(self, series: SeriesId, time: int) -> None:
        """Candles that this process wrote and shows are in factors and overlays as well, or these are known to lag."""
        runtime, witness = self._services[-1].runtime, self._witness
        if runtime is None or witness is None or time <= self._heads_at_start.get(series, -1):
            return
        ledger = witness.ledger(series)
        heads = (-1, -1) if ledger is None else (ledger.factor_head or -1, ledger.overlay_head or -1)
        if min(heads) < time and not runtime.market_data.factors.lagging(series):
            self.violate(f"{series}: {time} is shown, and its ledger is {ledger} without being known to lag")

    def _check_forming(self, message: dict[str, Any]) -> None:
        series, candle = series_of(message["series_id"]), candle_of(message["candle"])
        listing = self.exchange.listings.get(series)
        if listing is not None and candle not in listing.told:
            self.violate(f"{series}: shown as forming, and the exchange never told it: {candle}")

    def _has_store(self) -> bool:
        if self._witness is None and self.path.exists():
            self._witness = Witness(self.path)
        return self._witness is not None

    def _check_stored(self) -> None:
        if self._has_store() and self._witness:
            for sentence in checkers.check_stored_is_final(self._witness, self.exchange):
                self.violate(sentence)
        self._look_at_ledgers()

    def _look_at_ledgers(self) -> None:
        if self._has_store() and self._witness:
            for sentence in self._ledgers.look(self._witness):
                self.violate(sentence)

    # Other actors.

    async def _write_from_outside(self) -> None:
        """A client posts closed candles of the past over HTTP: true ones, in any order, some of them stored already."""
        rng, exchange = self._rng, self.exchange
        while True:
            await asyncio.sleep(rng.expovariate(1.0) * 600 / self.scenario.speed)
            service = self._services[-1]
            if not service.serving or service.runtime is None:
                continue
            series = rng.choice(self.scenario.series)
            now = exchange.now_ms() // 1000
            listing = exchange.listings[series]
            stored = self._witness.first(series) if self._has_store() and self._witness else None
            head = self._witness.head(series) if stored is not None and self._witness else None
            if stored is None or head is None or head >= now:
                continue
            # Between stored candles, or directly before them: any other hole would be the poster's own, and old holes
            # are not requested yet.
            times = [time for time in listing.times if time <= head]
            past = times[rng.randint(max(0, times.index(stored) - 5), len(times) - 1) :][: rng.randint(1, 8)]
            before = [time for time in past if time < stored]
            if not before or before == list(range(before[0], stored, MINUTE_S)):
                candles = [listing.final[time] for time in past]
                rng.shuffle(candles)
                service.do(self._post(service, series, candles), "post")

    async def _post(self, service: Service, series: SeriesId, candles: list[Candle]) -> None:
        assert service.runtime is not None
        try:
            await service.runtime.market_data.ingest_candles_closed(series, candles)
        except KlinesyncError as error:
            self.note(f"post refused: {error}")


class _Log(logging.Handler):
    """The service's log, into the transcript."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.note(f"log {record.levelname} {record.getMessage()}")


@contextmanager
def _quiet_surroundings(world: World) -> Iterator[None]:
    """Writes the log into the transcript; limits are small, so that they are reached; memory is freed between seeds, so
    that the order of events does not depend on it."""
    logger = logging.getLogger("klinesync")
    handler, propagate, level = _Log(world), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # whatever another test of this process has set
    gc.disable()
    try:
        with ExitStack() as stack:
            for name, value in (LIMITS | _plugins(world.trouble) | {"runtime.clock.time": NoTime(world)}).items():
                stack.enter_context(mock.patch(f"klinesync.{name}", value))
            yield
    finally:
        gc.enable()
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


# Modules that may read this machine's clock, between a reader of the clock and its replacement.
CLOCK_FILES = (__file__, clock.__file__)


class NoTime:
    """Replaces the module `time` in `runtime.clock`: a part that reads this machine's clock instead of its given clock
    would make seeds unrepeatable."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._thread = threading.get_ident()

    def monotonic(self) -> float:
        if threading.get_ident() != self._thread:
            return time.monotonic()  # a thread of an earlier test: an idle watchdog
        reader = next(frame for frame in reversed(traceback.extract_stack()) if frame.filename not in CLOCK_FILES)
        self._world.violate(f"{reader.filename}:{reader.lineno} reads the clock of this machine")
        return self._world.loop.time()

    def time(self) -> float:
        return time.time() if threading.get_ident() != self._thread else self.monotonic()


# Limits of the service that are constants of its modules: small, so that they are reached.
LIMITS: dict[str, object] = {
    # Few candles have many checkpoints, and indicators are anchored often.
    "pipelines.factor_states.CHECKPOINT_CANDLES": 8,
    "pipelines.factor_states.KEPT_CHECKPOINTS": 3,
    "factor.indicator.MIN_CHUNK": 8,
    "factor.indicator.CHUNK_PERIODS": 4,
}


def _plugins(trouble: Trouble) -> dict[str, object]:
    """The factors and overlays that the service finds. Their duration depends on this machine."""
    return {
        "market.parts_writing.load_factors": factors_with(trouble),
        "market.parts_writing.load_overlays": overlays_with(trouble),
        "market.parts_writing.Watchdog": nullcontext,
    }


def run_seed(seed: int, *, echo: bool = False) -> Outcome:
    """Run one seed."""
    return run_scenario(draw_scenario(seed), echo=echo)


def run_scenario(scenario: Scenario, *, echo: bool = False) -> Outcome:
    """Run a scenario on a store in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=memory_folder(), prefix="klinesync-sim-") as folder:
        world = World(scenario, Path(folder) / "store.sqlite", echo=echo)
        with _quiet_surroundings(world):
            return world.run()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(run_seed(int(argument), echo=True))  # run as a program

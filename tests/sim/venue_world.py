"""A venue that is followed through ccxt, under virtual time: a whole service, clients that come and go, stops, faults.

A schedule is a function of its seed. The exchange object stands in for ccxt's; its rows are those of `venues.market`,
and it has a limiter like ccxt's.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from klinesync.core.candle import Candle
from klinesync.core.errors import Transient, UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.ccxt.rows import Row
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.exchange import Errand, Urgency
from klinesync.ingest.jobs import NoCapacity
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.sqlite import InThreadSqliteDatabase
from sim.scenario import EPOCH_S
from sim.virtual_loop import Process, VirtualClock, VirtualLoop
from support.pauses import no_pause
from venues.market import Candles, Pair, Quiet

Found = TypeVar("Found")

NAME = "simex"
BASES = tuple(f"C{number}" for number in range(20))
PINNED = 3
# How long rows change after their end, in ms, within the margin.
LATE_MS = 1500
MARGIN_S = 2.0
# The shortest time between two requests to a venue, in seconds, as in ccxt's limiters.
RATE_LIMITS_S = (0.05, 0.2, 1.0)
# Faults begin and end within this time, in virtual seconds; so do the visits of clients, and stops.
TROUBLED_S = 180.0
# All series must be up to date within this time after the faults. A venue with a Retry-After of a day is asked again
# after a quarter of an hour.
CALM_S = 180.0
LEFT_ALONE_S = 960.0
UP_TO_DATE_S = 60.0
TIMEOUT_S = 10.0
# Iterations of the loop. A schedule takes some fifteen thousand; this many mean a busy loop, or one that does not end.
MAX_ITERATIONS = 100_000


class BaseError(Exception):
    """As ccxt's."""


class ExchangeNotAvailable(BaseError):
    """As ccxt's."""


class RateLimitExceeded(BaseError):
    """As ccxt's."""


class RequestTimeout(BaseError):
    """As ccxt's."""


class NetworkError(BaseError):
    """As ccxt's."""


class Fault(Enum):
    """The fate of a request."""

    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    FORBIDDEN = "403"
    UNREADABLE = "an answer that ccxt stumbles over"
    EMPTY = "an answer with nothing in it"
    TOO_MANY = "429"
    TOO_MANY_TOLD = "429 with Retry-After"
    TOO_MANY_DAY = "429 with a Retry-After of a day"
    HANG = "no answer"
    UNREACHABLE = "no connection"


@dataclass(frozen=True, slots=True)
class Spell:
    """A fault from one moment to another, of requests of one kind, or of all kinds (None)."""

    start_s: float
    end_s: float
    fault: Fault
    kind: str | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule. `rate_limit_s`: the shortest time between two requests; `streams`: whether there is a stream; `calm`:
    nothing fails; `late_ms`: rows change up to this long after their end."""

    seed: int
    rate_limit_s: float
    streams: bool
    calm: bool = False
    late_ms: int = LATE_MS

    @staticmethod
    def of(seed: int) -> Schedule:
        """The schedule of a seed."""
        rng = random.Random(f"venue {seed}")
        return Schedule(seed, rng.choice(RATE_LIMITS_S), rng.random() < 0.4)


class Exchange:
    """An exchange object like ccxt's, with a limiter like ccxt's."""

    def __init__(self, schedule: Schedule, loop: VirtualLoop, spells: Sequence[Spell], ended: Ended) -> None:
        self.has: Mapping[str, object] = {"fetchOHLCV": True, "fetchTime": True, "watchOHLCV": schedule.streams}
        self.timeframes: Mapping[str, object] | None = {"1m": "1m"}
        self.rateLimit = schedule.rate_limit_s * 1000
        self.last_response_headers: Mapping[str, str] | None = None
        self.candles = Candles(Quiet.FLAT, schedule.late_ms)
        self._loop = loop
        self._spells = spells
        self._ended = ended
        self._rng = random.Random(f"exchange {schedule.seed}")
        self._next_s = 0.0

    def now_ms(self) -> int:
        return int((EPOCH_S + self._loop.time()) * 1000)

    def _fault(self, kind: str) -> Fault | None:
        now_s = self._loop.time()
        spells = (
            spell for spell in self._spells if spell.start_s <= now_s < spell.end_s and spell.kind in (None, kind)
        )
        return next((spell.fault for spell in spells), None)

    async def _request(self, kind: str) -> bool:
        """One request; whether its answer is empty."""
        now_s = self._loop.time()
        self._next_s = max(self._next_s + self.rateLimit / 1000, now_s)
        await asyncio.sleep(self._next_s - now_s)
        fault, self.last_response_headers = self._fault(kind), {}
        self._ended.asked.append(self._loop.time())
        self._ended.failed.append(fault not in (None, Fault.EMPTY))
        if fault in (Fault.HANG, Fault.UNREACHABLE):
            await asyncio.sleep(TIMEOUT_S if fault is Fault.HANG else 0.01)
            raise (RequestTimeout if fault is Fault.HANG else ExchangeNotAvailable)("simex GET https://simex/x")
        await asyncio.sleep(self._rng.uniform(0.02, 0.4))
        match fault:
            case Fault.SERVER_ERROR | Fault.UNAVAILABLE | Fault.FORBIDDEN:
                raise ExchangeNotAvailable(f"simex GET https://simex/x {fault.value} Error")
            case Fault.TOO_MANY | Fault.TOO_MANY_TOLD | Fault.TOO_MANY_DAY:
                pause = {Fault.TOO_MANY_TOLD: "20", Fault.TOO_MANY_DAY: "86400"}.get(fault)
                self.last_response_headers = {} if pause is None else {"Retry-After": pause}
                raise RateLimitExceeded("simex GET https://simex/x 429 Too Many Requests")
            case Fault.UNREADABLE:
                raise KeyError("data")
        return fault is Fault.EMPTY

    async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
        empty = await self._request("markets")
        listed = {f"{base}/USDT": {"base": base, "quote": "USDT", "id": base, "spot": True} for base in BASES}
        return {} if empty else listed

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        return 100

    async def fetch_time(self) -> int | None:
        return None if await self._request("time") else self.now_ms()

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str, since: int | None = None, limit: int | None = None
    ) -> Sequence[Row]:
        if await self._request("rows"):
            return []
        now_ms, most = self.now_ms(), limit or 100
        start_s = now_ms // 1000 - 60 * most if since is None else since // 1000
        pair = Pair(symbol.partition("/")[0])
        rows = self.candles.rows(pair, 60, start_s, start_s + 60 * most, now_ms)
        return [[row.time * 1000, *row[1:]] for row in rows]

    async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
        return {}

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
        await asyncio.sleep(self._rng.uniform(1.0, 3.0))
        match self._fault("stream"):
            case None:
                now_ms = self.now_ms()
                row = self.candles.row(Pair(symbol.partition("/")[0]), 60, now_ms // 60_000 * 60, now_ms)
                return [] if row is None else [[row.time * 1000, *row[1:]]]
            case Fault.HANG | Fault.EMPTY:  # the stream is silent
                await asyncio.sleep(60.0)
                return []
        raise NetworkError("the handshake was refused")

    async def un_watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        raise NotImplementedError

    async def close(self) -> None:
        return


class Inline(CcxtThread):
    """The service's own loop in place of a thread. Cancelling the caller cancels the call."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: set[asyncio.Future[Any]] = set()

    async def call(self, work: Coroutine[object, object, Found]) -> Found:
        task: asyncio.Task[Found] = asyncio.get_running_loop().create_task(work, name="ccxt")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await task

    async def stop(self) -> None:
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


@dataclass
class Ended:
    """The end of a schedule: broken promises, the times of requests (virtual seconds), and the failed requests."""

    wrong: list[str] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)


def series_of(base: str) -> SeriesId:
    return SeriesId.parse(f"{NAME}:spot:{base}/USDT:1m")


class World:
    """One schedule, run."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule = schedule
        self.ended = Ended()
        self._path = folder / f"{schedule.seed}{'c' if schedule.calm else ''}.sqlite"
        self._loop = VirtualLoop(max_iterations=MAX_ITERATIONS)
        self._rng = random.Random(f"world {schedule.seed}")
        self._spells = [] if schedule.calm else self._draw_spells()
        self._exchange = Exchange(schedule, self._loop, self._spells, self.ended)
        self._runtime: MarketRuntime | None = None
        self._store: InThreadSqliteDatabase | None = None

    def run(self) -> Ended:
        """Run it."""
        try:
            self._loop.run_until_complete(self._loop.start(Process("world"), self._run(), "world"))
        finally:
            self._loop.bury()
            self._path.unlink(missing_ok=True)
        return self.ended

    def _draw_spells(self) -> list[Spell]:
        spells = []
        for _ in range(self._rng.randint(1, 5)):
            start_s = self._loop.time() + self._rng.uniform(-5.0, TROUBLED_S - 30.0)
            length_s = self._rng.choice((2.0, 20.0, 60.0, 180.0)) * self._rng.uniform(0.5, 1.0)
            kind = self._rng.choice((None, None, "time", "markets", "rows", "stream"))
            fault = self._rng.choice(tuple(Fault))
            if fault is Fault.TOO_MANY_DAY and self._rng.random() < 0.9:
                fault = Fault.TOO_MANY
            spells.append(Spell(start_s, min(start_s + length_s, self._loop.time() + TROUBLED_S), fault, kind))
        return spells

    async def _run(self) -> None:
        calm_from_s = self._loop.time() + TROUBLED_S
        clients = [asyncio.create_task(self._client(number, calm_from_s)) for number in range(3)]
        stops = [] if self._rng.random() < 0.5 else [self._rng.uniform(1.0, TROUBLED_S - 30.0)]
        for after_s in stops:
            async with self._service():
                await self._until(self._loop.time() + after_s)
            await asyncio.sleep(self._rng.choice((0.0, 1.0, 40.0)))
        async with self._service():
            await self._until(calm_from_s)
            await asyncio.wait(clients)
            day = any(spell.fault is Fault.TOO_MANY_DAY for spell in self._spells)
            await self._all_right(calm_from_s + (LEFT_ALONE_S if day else CALM_S))
        for task in clients:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.ended.wrong.append(f"a client met {error!r}")

    def _service(self) -> _Serving:
        return _Serving(self)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._loop.time()))

    async def _client(self, number: int, calm_from_s: float) -> None:
        """Watches series for a while, or reads them and may lose patience; repeatedly."""
        rng = random.Random(f"client {self.schedule.seed} {number}")
        while self._loop.time() < calm_from_s:
            await asyncio.sleep(rng.uniform(0.0, 40.0))
            runtime = self._runtime
            if runtime is None:
                continue
            many = [series_of(base) for base in rng.sample(BASES, rng.choice((1, 3, 12)))]
            if rng.random() < 0.5:
                await self._watch(runtime, many, rng.choice((0.1, 3.0, 40.0)))
                continue
            urgency = rng.choice(list(Urgency))
            asked = [asyncio.create_task(self._read(runtime, series, urgency)) for series in many]
            _, waiting = await asyncio.wait(asked, timeout=rng.choice((0.0, 0.01, 0.5, 5.0, 30.0)))
            for task in waiting:
                task.cancel()
            await asyncio.wait(asked)
            for task in asked:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.ended.wrong.append(f"a read met {error!r}")

    async def _watch(self, runtime: MarketRuntime, many: Sequence[SeriesId], watch_s: float) -> None:
        """Have these series followed for a while; all are released at once."""
        acquired: list[SeriesId] = []
        with suppress(NoCapacity, UpstreamError):
            for series in many:
                runtime.supervisors.acquire(series)
                acquired.append(series)
        await asyncio.sleep(watch_s)
        if self._runtime is runtime:
            for series in acquired:
                runtime.supervisors.release(series)

    async def _read(self, runtime: MarketRuntime, series: SeriesId, urgency: Urgency) -> None:
        with suppress(UpstreamError, UnknownSeries, Transient):
            await runtime.registry.known(series)
            start = self._exchange.now_ms() // 60_000 * 60 - 60 * 30
            async for _ in runtime.registry.history(series, start, Errand(urgency)):
                pass

    async def _all_right(self, by_s: float) -> None:
        """Every pinned series must be up to date by then, with final values."""
        wrong: list[str] = []
        while self._loop.time() < by_s:
            wrong = [text for base in BASES[:PINNED] for text in await self._faults_of(base)]
            if not wrong:
                return
            await asyncio.sleep(10.0)
        self.ended.wrong += wrong

    async def _faults_of(self, base: str) -> list[str]:
        series, store = series_of(base), self._store
        assert store is not None
        candles = await store.read(lambda one: one.between(series, 0, 2**31))
        newest = self._exchange.now_ms() // 60_000 * 60 - 60
        if not candles or candles[-1].time < newest - 60:
            return [f"{series}: the head is {candles[-1].time - newest if candles else None} s away"]
        times = range(candles[0].time, candles[-1].time + 60, 60)
        final = [Candle(*row) for at in times if (row := self._exchange.candles.final(Pair(base), 60, at)) is not None]
        differ = [at.time for at in final if at not in candles]
        return [f"{series}: other values than are final, or none, at {differ[:5]}"] if differ else []


class _Serving:
    """Run the service from its start to its orderly end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._bulkheads = Bulkheads(world._loop.time)
        self._runtime: MarketRuntime | None = None

    async def __aenter__(self) -> None:
        world, loop = self._world, self._world._loop
        entry = CcxtEntry(makers={NAME: lambda _: world._exchange}, thread=Inline())
        flags = RuntimeFlags(
            database_url=f"sqlite:///{world._path}",
            whitelist=",".join(str(series_of(base)) for base in BASES[:PINNED]),
            enable_whitelist_ingest=True,
            derived_timeframes="",
            indicators="",
            startup_kline_sync_target_candles=30,
            ondemand_idle_ttl_s=20.0,
        )
        world._store = InThreadSqliteDatabase(world._path, pause=no_pause)
        self._runtime = build_market_runtime(
            flags,
            Surroundings(VirtualClock(loop, EPOCH_S), random.Random(f"service {world.schedule.seed}"), self._bulkheads),
            database=world._store,
            entries=[entry],
        )
        await self._runtime.__aenter__()
        world._runtime = self._runtime

    async def __aexit__(self, *error: object) -> None:
        assert self._runtime is not None
        self._world._runtime = None
        await self._runtime.__aexit__(None, None, None)
        if self._bulkheads.counts:
            self._world.ended.wrong.append(f"defects: {dict(self._bulkheads.counts)}")


def peak(asked: Sequence[float], window_s: float = 60.0) -> int:
    """The most requests of any span of that length."""
    recent: deque[float] = deque()
    most = 0
    for at_s in asked:
        recent.append(at_s)
        while recent[0] <= at_s - window_s:
            recent.popleft()
        most = max(most, len(recent))
    return most


def troubled_peak(ended: Ended, known_s: float = 15.0, window_s: float = 60.0) -> int:
    """The most requests in any span of that length, to a venue that has not answered for `known_s`."""
    most = 0
    run: list[float] = []
    for at_s, failed in [*zip(ended.asked, ended.failed, strict=True), (0.0, False)]:
        if failed:
            run.append(at_s)
            continue
        most = max(most, peak([one for one in run if one > run[0] + known_s], window_s)) if run else most
        run = []
    return most

"""A whole service beside `MemoryExchange` under virtual time: what tests ask of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from klinesync.client.messages import ErrorMessage, SubscribedMessage, message_in
from klinesync.client.progress import Progress
from klinesync.client.updates import ClosedCandle, Gap, System, Update
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import market_routes
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import build_market_runtime
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import USUAL_TUNING, Tuning
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.flags import RuntimeFlags
from klinesync.sim.server import SimConfig
from klinesync.storage.sqlite import InThreadSqliteDatabase
from klinesync.ws.frames import payload_of
from klinesync.ws.hub import Client
from sim.memory_exchange import MemoryExchange
from sim.scenario import EPOCH_S
from sim.virtual_loop import VirtualClock, VirtualLoop
from support.candles import bare
from support.pauses import one_step
from support.waiting import until

# Virtual seconds: nothing takes longer.
PATIENCE_S = 600.0
POLL_S = 0.1


class Watcher:
    """A client that follows one series; `updates` are those of `klinesync.client`."""

    def __init__(self, service: MarketRuntime, series: SeriesId, since: int | None = 0) -> None:
        self.updates: list[Update] = []
        self._subscriptions = service.market_data.subscriptions
        self._progress = Progress(series, since)
        self.connect()

    def connect(self) -> None:
        """Connect, without a subscription."""
        self._client = Client(self)
        self._subscriptions.connected(self._client)

    async def begin(self) -> None:
        """Subscribe."""
        message = msgspec.json.encode(self._progress.subscription())
        await self._subscriptions.handle(self._client, message)

    def end(self) -> None:
        """Disconnect."""
        self._subscriptions.disconnected(self._client)

    @property
    def closed(self) -> list[int]:
        """Open times of the closed candles, without corrections."""
        return [one.candle.time for one in self.updates if isinstance(one, ClosedCandle) and not one.revised]

    @property
    def revised(self) -> list[Candle]:
        """The corrections."""
        return [one.candle for one in self.updates if isinstance(one, ClosedCandle) and one.revised]

    @property
    def gaps(self) -> list[Gap]:
        """The holes that were declared."""
        return [one for one in self.updates if isinstance(one, Gap)]

    @property
    def stream_events(self) -> list[str]:
        """The messages about the series' stream; reads may have caused others."""
        events = [one.event for one in self.updates if isinstance(one, System)]
        return [event for event in events if event.startswith("stream.")]

    # The client's connection (`Wire`).

    def write(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            message = message_in(payload_of(frame))
            assert message is not None, frame
            assert not isinstance(message, ErrorMessage), message
            if isinstance(message, SubscribedMessage):
                assert not self._progress.ahead(message)
            self.updates += self._progress.take(message)

    def ending(self) -> None:
        """Nothing waits."""

    def close(self, code: int) -> None:
        raise AssertionError(f"the service closes a client's connection with {code}")


@dataclass(frozen=True, slots=True)
class Beside:
    """A running service and its exchange. Seconds are the exchange's where it is said, else virtual ones."""

    service: MarketRuntime
    exchange: MemoryExchange

    def state(self, series: SeriesId) -> str:
        """The state of the series' stream."""
        return self.service.supervisors.status(series).state

    async def stored(self, series: SeriesId, since: int = -1) -> list[Candle]:
        """All closed candles after `since`, without order flow."""
        return bare(await self.service._database.read(lambda store: store.oldest(series, 1 << 30, since=since)))

    async def head(self, series: SeriesId) -> int:
        """The newest stored open time; -1 when nothing is stored."""
        head = await self.service._database.read(lambda store: store.head(series))
        return -1 if head is None else head

    def truth(self, series: SeriesId, times: Iterable[int]) -> list[Candle]:
        """What the exchange traded in these minutes."""
        listings = self.exchange.exchange.spot if series.market == "spot" else self.exchange.exchange.futures
        listing = listings[series.symbol.replace("/", "")]
        rows = (listing.minute(time) for time in times)
        return [Candle(row.time, row.open, row.high, row.low, row.close, row.volume) for row in rows if row is not None]

    async def until(self, holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until `holds`; fails with `what` after `patience_s` virtual seconds."""
        await until(holds, what, patience_s, POLL_S)

    async def passed(self, seconds: float) -> None:
        """Wait until so many of the exchange's seconds have passed."""
        end_ms = self.exchange.now_ms() + seconds * 1000
        await self.until(lambda: self.exchange.now_ms() >= end_ms, f"{seconds:g} s of the exchange", 10 * seconds)

    async def complete(self, *followed: SeriesId) -> dict[SeriesId, list[Candle]]:
        """Wait until everything that is closed by now is stored as the exchange has it, without a hole: the stored
        candles, from the first to the newest that is closed by now."""
        newest = self.exchange.now_ms() // 60_000 * 60 - 60
        whole: dict[SeriesId, list[Candle]] = {}
        for series in followed:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while series not in whole:
                        candles = [candle for candle in await self.stored(series) if candle.time <= newest]
                        if candles and candles == self.truth(series, range(candles[0].time, newest + 60, 60)):
                            whole[series] = candles
                        else:
                            await asyncio.sleep(POLL_S)
            except TimeoutError:
                candles = await self.stored(series)
                times = range(candles[0].time, newest + 60, 60) if candles else ()
                wrong = sorted(set(self.truth(series, times)) ^ {one for one in candles if one.time <= newest})
                state = self.service.supervisors.status(series)
                raise AssertionError(f"{series}: {len(wrong)} candles differ: {wrong[:6]}; {state}") from None
        return whole

    @asynccontextmanager
    async def watching(self, series: SeriesId) -> AsyncIterator[Watcher]:
        """A client that has got a first candle."""
        watcher = Watcher(self.service, series)
        await watcher.begin()
        try:
            await self.until(lambda: bool(watcher.closed), "a first candle")
            yield watcher
        finally:
            watcher.end()


Live = Callable[[Beside], Awaitable[None]]


def run_beside_exchange(
    store: Path,
    live: Live,
    config: SimConfig,
    flags: Mapping[str, object],
    *,
    tuning: Tuning = USUAL_TUNING,
    defects: bool = False,
) -> None:
    """Let `live` run beside a service that follows the exchange.

    store: path of the service's store.
    live: the test.
    config: what is simulated.
    flags: the service's.
    tuning: limits and timings of the service.
    defects: whether tasks of the service may have defects; False by default.
    """
    loop = VirtualLoop()

    async def serve() -> None:
        exchange = MemoryExchange(config, loop)
        given = RuntimeFlags.model_validate({"database_url": f"sqlite:///{store}", **flags})
        entry = BinanceEntry(
            market_routes("http://exchange", "http://exchange"),
            {"spot": "ws://exchange", "futures": "ws://exchange"},
            streams_most=given.binance_ws_streams_per_connection,
            http=lambda: exchange,
            streams=tuning.binance_streams,
            rest=tuning.binance_rest,
        )
        service = build_market_runtime(
            given,
            Surroundings(VirtualClock(loop, EPOCH_S), Random(1), Bulkheads(loop.time), tuning),
            database=InThreadSqliteDatabase(store, pause=one_step),
            entries=[entry],
        )
        pushing = asyncio.create_task(exchange.run())
        async with service:
            await live(Beside(service, exchange))
            assert defects or not service.bulkheads.counts, service.bulkheads.counts
        pushing.cancel()
        await asyncio.wait([pushing])
        assert pushing.cancelled(), pushing

    try:
        loop.run_until_complete(serve())
    finally:
        loop.bury()

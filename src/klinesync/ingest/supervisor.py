"""IngestSupervisor: follows series. It carries out what the feeds decide: connections, history, writes, broadcasts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.ingest.feed import Command, Fetch, IngestFeed, Persist, Show, ShowLater
from klinesync.pipelines.ingest_pipeline import Empty, IngestPipeline
from klinesync.runtime.clock import ExchangeClock
from klinesync.runtime.sources import Connection, Errand, KlineEvent, Source, StreamCallbacks, Urgency

log = logging.getLogger(__name__)

# After a failed write: time for the store to recover before the series is read again from REST.
STORE_RETRY_S = 1.0


@dataclass(slots=True)
class Job:
    """One followed series: its feed, where its stream stands (wire: stream.state), and its history read."""

    feed: IngestFeed
    connection: Connection
    state: str = "subscribed"
    history: asyncio.Task[None] | None = None
    beginning_again: bool = False
    later: asyncio.TimerHandle | None = field(default=None, repr=False)


class IngestSupervisor:
    """Follows series of one exchange. `run` carries the connections; nothing else restarts them."""

    def __init__(
        self,
        *,
        source: Source,
        clocks: Mapping[str, ExchangeClock],
        pipeline: IngestPipeline,
        head: Callable[[SeriesId], Awaitable[int | None]],
        show: Callable[[Forming], None],
        base_of: Callable[[SeriesId], SeriesId],
        first_history_candles: int,
        forming_interval_s: float,
        rng: random.Random,
    ) -> None:
        self._source = source
        self._clocks = clocks
        self._pipeline = pipeline
        self._head = head
        self._show = show
        self._base_of = base_of
        self._first_history_candles = first_history_candles
        self._forming_interval_s = forming_interval_s
        self._rng = rng
        self._jobs: dict[SeriesId, Job] = {}
        self._connections: dict[str, list[Connection]] = {market: [] for market in clocks}
        self._group: asyncio.TaskGroup | None = None

    def state(self, series: SeriesId) -> str:
        """Where the series' stream stands: off, subscribed, live or reconnecting."""
        job = self._jobs.get(self._base_of(series))
        return "off" if job is None else job.state

    async def run(self, series: Iterable[SeriesId]) -> None:
        """Follow `series` until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            bases = dict.fromkeys(map(self._base_of, series))
            for one in bases:
                await self._follow_until_it_works(one)
            group.create_task(self._refresh(bases), name="refresh derived")
            await loop.create_future()  # the connections' tasks never end by themselves

    async def _follow_until_it_works(self, series: SeriesId) -> None:
        while True:
            try:
                await self.follow(series)
            except StoreError as error:
                log.warning("%s: the store cannot be read: %s", series, error)
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    async def follow(self, series: SeriesId) -> None:
        """Begin to follow a base series; its history is read once its stream is attached."""
        if series in self._jobs:
            return
        head = await self._head(series)
        connection = self._connection(series.market)
        feed = IngestFeed(series, head, forming_interval_s=self._forming_interval_s)
        self._jobs[series] = Job(feed, connection)
        connection.want(series)

    async def _refresh(self, bases: Iterable[SeriesId]) -> None:
        """Bring derived series up to their bases, where a target was added since the service ran last."""
        for one in bases:
            try:
                await self._pipeline.refresh_series(one)
            except StoreError as error:
                log.warning("%s: its derived series cannot be brought up to date: %s", one, error)

    def _connection(self, market: str) -> Connection:
        """A connection of `market` with room for one more stream."""
        assert self._group is not None, "run is running"
        for connection in self._connections[market]:
            if connection.room:
                return connection
        connection = self._source.connection(
            market, StreamCallbacks(attached=self._attached, event=self._event, lost=self._lost)
        )
        self._connections[market].append(connection)
        number = len(self._connections[market])
        self._group.create_task(connection.run(), name=f"connection {market} {number}")
        return connection

    def _attached(self, series: SeriesId) -> None:
        job = self._jobs.get(series)
        if job is not None:
            job.state = "subscribed"
            self._carry_out(job, job.feed.attached())

    def _lost(self, series: Iterable[SeriesId]) -> None:
        for one in series:
            job = self._jobs.get(one)
            if job is not None:
                job.state = "reconnecting"

    def _event(self, event: KlineEvent) -> None:
        now_s = asyncio.get_running_loop().time()
        self._clocks[event.series.market].learn(event.event_ms, now_s)
        job = self._jobs.get(event.series)
        if job is None:
            return
        job.state = "live"
        if event.closed:
            self._carry_out(job, job.feed.closed(event.candle, event.event_ms))
        else:
            self._carry_out(job, job.feed.forming(event.candle, now_s))

    def _carry_out(self, job: Job, commands: Iterable[Command]) -> None:
        feed = job.feed
        for command in commands:
            match command:
                case Show(candle):
                    self._show(Forming(feed.series, candle))
                case ShowLater(at_s):
                    job.later = asyncio.get_running_loop().call_at(at_s, self._due, job)
                case Persist():
                    self._log_jumps(feed, command)
                    written = self._pipeline.offer(feed.series, command.candles)
                    if written is None:
                        self._begin_again(job, command.candles)
                    else:
                        written.add_done_callback(partial(self._settled, job, command.candles))
                case Fetch():
                    assert self._group is not None, "run is running"
                    job.history = self._group.create_task(self._read(job, command), name=f"history {feed.series}")

    def _due(self, job: Job) -> None:
        job.later = None
        self._carry_out(job, job.feed.due(asyncio.get_running_loop().time()))

    def _settled(self, job: Job, candles: Sequence[Candle], written: asyncio.Future[Applied]) -> None:
        if not written.cancelled() and written.exception() is not None:
            self._begin_again(job, candles)

    def _begin_again(self, job: Job, unwritten: Sequence[Candle] = ()) -> None:
        """What was let through is not stored (a write failed, or there was no room): live is held, and the series
        begins again from its stored head."""
        assert self._group is not None, "run is running"
        job.feed.stalled(unwritten)
        if job.beginning_again:
            return
        job.beginning_again = True
        if job.history is not None:
            job.history.cancel()
        job.history = self._group.create_task(self._read_again(job), name=f"history {job.feed.series}")

    async def _read_again(self, job: Job) -> None:
        series = job.feed.series
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            try:
                await self._pipeline.mend(series)
                head = await self._head(series)
            except StoreError as error:
                log.warning("%s: the store cannot be read: %s", series, error)
            else:
                break
        job.beginning_again = False
        self._carry_out(job, job.feed.restarted(head))

    async def _read(self, job: Job, fetch: Fetch) -> None:
        """Read history from REST into the pipeline, page by page, and let live through at its end."""
        feed, series = job.feed, job.feed.series
        if fetch.delay_s:
            await asyncio.sleep(fetch.delay_s * self._rng.uniform(1.0, 1.5))
        try:
            start = fetch.start
            if start is None:
                now_s = await self._source.now_ms(series.market) // 1000
                start = series.timeframe.shift(series.timeframe.floor(now_s), -self._first_history_candles)
            async for page in self._source.history(series, max(start, 0), Errand(Urgency.REPAIR)):
                for command in feed.history(page):
                    if isinstance(command, Persist):
                        self._log_jumps(feed, command)
                        empty = Empty(command.empty, "one REST answer has its neighbours and nothing between them")
                        await self._pipeline.submit(series, command.candles, "rest", empty)
        except UpstreamError as error:
            log.warning("%s: history cannot be read: %s", series, error)
            self._carry_out(job, feed.history_failed(error.retry_after_s))
        except StoreError:
            self._begin_again(job)
        else:
            self._carry_out(job, feed.history_ended())

    def _log_jumps(self, feed: IngestFeed, command: Persist) -> None:
        for jump in command.jumps:
            log.warning(
                "%s: %d candles are missing from %d on; the exchange does not show them",
                feed.series,
                feed.timeframe.count(jump.expected, jump.actual),
                jump.expected,
            )

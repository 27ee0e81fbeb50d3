"""IngestSupervisor: follows the series of an exchange: starts and stops jobs, and restarts streams.

The file is longer than others: half of it passes events of connections, subscriptions and markets to the job that they
concern, each in a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError, Transient
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import ExchangeTrouble, MarketContact, StreamStatus
from klinesync.exchanges.exchange import ConnectionStatus, Exchange, KlineEvent, Listing, StreamCallbacks
from klinesync.ingest.audit import Audit
from klinesync.ingest.connections import Connections
from klinesync.ingest.followed import Followed, FollowSettings, Moment, all_stale
from klinesync.ingest.job import STORE_RETRY_S, Job, head_of
from klinesync.ingest.jobs import JobCommand, JobTable, Kind, NoCapacity, Start, Stop
from klinesync.ingest.listing_watch import ListingWatch
from klinesync.ingest.market_watch import MarketWatch
from klinesync.ingest.ports import IngestPorts
from klinesync.ingest.tail_reader import TailReader
from klinesync.runtime.bulkheads import Part
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Shortest time between two log lines about an exchange at its limit of series, in seconds.
FULL_LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class JobState:
    """An ingest job. `refcount`: subscriptions that hold the job; `idle_since`: when the last of them ended. Times are
    UTC seconds of the exchange."""

    series_id: str
    kind: Kind
    refcount: int
    state: str
    idle_since: int | None
    last_frame_at: int | None
    reconnects: int


class IngestSupervisor:
    """Follows series of one exchange. `run` is its task.

    exchange: the exchange.
    ports: of ingest.
    settings: how series are followed.
    """

    def __init__(self, exchange: Exchange, ports: IngestPorts, settings: FollowSettings) -> None:
        self._exchange = exchange
        self._ports = ports
        self._monotonic = ports.clock.monotonic_s
        self._settings = settings = replace(settings, one_list_decides=exchange.one_list_decides)
        self.audit: Audit | None = None
        self._table = JobTable(settings.ondemand_idle_ttl_s, settings.ondemand_max_jobs, exchange)
        self._jobs: dict[SeriesId, Job] = {}
        callbacks = StreamCallbacks(
            attached=self._attached,
            event=self._event,
            lost=self._lost,
            failing=self._failing,
            stands_in=self._stands_in,
            quiet=self._quiet,
        )
        self._connections = Connections(exchange, exchange.clocks, callbacks, ports.bulkheads)
        self._markets = {
            market: MarketWatch(
                market,
                exchange=exchange,
                clock=market_clock,
                pipeline=ports.pipeline,
                believe=self._believed,
                final_margin_s=settings.rest_final_margin_s,
                our_clock=ports.clock,
                bulkheads=ports.bulkheads,
                timings=settings.timings,
            )
            for market, market_clock in exchange.clocks.items()
        }
        self._listings = ListingWatch(
            exchange, exchange.clocks, self._followed_of, self._judge, self._monotonic, settings.timings
        )
        self._tails = TailReader(exchange, self._markets, ports, settings)
        self._full_log_limit = LogLimit(FULL_LOG_EVERY_S)
        self._group: asyncio.TaskGroup | None = None
        self._ending = False  # queued writes are carried out, and no new work begins
        self._running = asyncio.Event()

    # State.

    def status(self, series: SeriesId) -> StreamStatus:
        """The status of the stream of the series, or of its base."""
        base = self._ports.base_of(series)
        job = self._jobs.get(base)
        if job is None:
            return StreamStatus(StreamState.RECONNECTING if base in self._table else StreamState.OFF)
        return job.followed.watch.status

    def keeps_up(self, series: SeriesId) -> bool:
        """Whether the base series is followed and caught up."""
        job = self._jobs.get(series)
        return job is not None and job.followed.feed.caught_up

    def first_history_due(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its first history has not been read yet."""
        job = self._jobs.get(series)
        return series in self._table if job is None else not job.caught_up.done()

    def contacts(self) -> list[MarketContact]:
        """The contact to each market."""
        contacts = []
        for market, watch in self._markets.items():
            connected = any(connection.status.connected for connection in self._connections.of(market))
            streams = [followed.watch.status for followed in self._followed_of(market)]
            contacts.append(watch.contact(streams, connected=connected))
        return contacts

    def trouble(self, market: str) -> ExchangeTrouble | None:
        """Why the market gives no candles; None when it does. Asked for each series: its cost must not depend on how
        many are followed."""
        return self._markets[market].trouble

    def final_margin_s(self, series: SeriesId) -> float:
        """Finality margin of the series' market, in seconds of the exchange."""
        return self._markets[series.market].margin_s

    def doubted(self) -> dict[str, int]:
        """Frames that were dropped because the exchange's time contradicts their stamps, by market."""
        return {market: watch.check.refused for market, watch in self._markets.items()}

    def questioned(self) -> dict[tuple[str, str], int]:
        """Closed candles of frames that were verified over REST, by market and reason. `early`: the candle closes after
        the time of REST; `values`: the store has other values."""
        early = {(market, "early"): watch.check.early for market, watch in self._markets.items()}
        return early | {(market, "values"): watch.questioner.questions.asked for market, watch in self._markets.items()}

    def followed(self) -> list[SeriesId]:
        """The base series that are followed."""
        return list(self._jobs)

    def jobs_state(self) -> list[JobState]:
        """All jobs, for the debug API."""
        now_s = self._monotonic()
        states = []
        for entry in self._table.entries():
            job, now_ms = self._jobs.get(entry.series), self._markets[entry.series.market].now_ms()
            idle_since = None
            if entry.idle_since_s is not None and now_ms is not None:
                idle_since = int(now_ms / 1000 - (now_s - entry.idle_since_s))
            status = self.status(entry.series)
            states.append(
                JobState(
                    str(entry.series),
                    entry.kind,
                    entry.references,
                    status.state,
                    idle_since,
                    status.last_frame_at,
                    reconnects=0 if job is None else job.connection.status.reconnects,
                )
            )
        return states

    def connections_state(self) -> list[ConnectionStatus]:
        """All connections to the exchange."""
        return self._connections.states()

    # Running.

    async def run(self) -> None:
        """Follow series until cancelled. After a defect `run` may be called again: every series is restarted."""
        begin = self._ports.bulkheads.begin
        self._ending = False
        for series in list(self._jobs):
            self._unfollow(series)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                begin(group, self._tick_forever, part=Part.STREAMS, name="streams", restart=True)
                begin(group, self._listings.run, part=Part.LISTINGS, name="listings", restart=True)
                for market in self._markets.values():
                    market.begin(group)
                if self._settings.audit_interval_s:
                    self.audit = self._make_audit()
                    begin(group, self.audit.run, part=Part.AUDIT, name="audit", restart=True)
                self._running.set()
                self._apply([Start(entry.series) for entry in self._table.entries()])
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self._ending = True
                    for job in self._jobs.values():
                        job.halt()
        finally:
            self._running.clear()
            self._group = None

    def _make_audit(self) -> Audit:
        return Audit(
            self._exchange.history,
            series=lambda: (series for series, job in self._jobs.items() if job.followed.is_idle),
            stored=self._audited,
            not_streamed_since=self._not_streamed_since,
            submit=self._ports.pipeline.submit,
            now_ms=lambda series: self._markets[series.market].now_ms(),
            interval_s=self._settings.audit_interval_s,
            monotonic=self._monotonic,
            limits=self._settings.audit,
        )

    async def _audited(self, series: SeriesId) -> Span | None:
        """The stored span that the audit may request. Raises `StoreError`."""
        stored = await self._ports.stored(series)
        return None if stored is None else self._tails.askable(series, stored)

    def _not_streamed_since(self, series: SeriesId, candles: Sequence[Candle], since_ms: int) -> Sequence[Candle]:
        job = self._jobs.get(series)
        return candles if job is None else job.followed.feed.not_streamed_since(candles, since_ms)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.timings.tick_s)
            self._apply(self._table.expire(self._monotonic()))
            for name, market in self._markets.items():
                moment, margin_s = self._moment(name), market.margin_s
                jobs = [job for series, job in self._jobs.items() if series.market == name]
                for job in jobs:
                    with self._contained(job.series):
                        job.carry_out(job.followed.tick(moment, margin_s))
                with self._ports.bulkheads.contained(Part.STREAMS, name):
                    self._check_market(market, jobs, moment)
                if jobs:
                    market.keep_time(moment.now_s)

    def _check_market(self, market: MarketWatch, jobs: Sequence[Job], moment: Moment) -> None:
        """Pass a change of the market's reachability to its jobs."""
        followed = any(not job.followed.is_delisted for job in jobs)
        change = market.look(moment.now_s, len(jobs), followed=followed)
        if jobs and change.event is not None:
            self._ports.events.market(jobs[0].series, *change.event)
        for job in jobs:
            if change.answers_again:
                job.followed.feed.answers_again()
            if change.unreachable is None:
                continue
            if change.unreachable:
                job.carry_out(job.followed.unreachable(moment, market.silence))
            else:
                job.carry_out(job.followed.reachable(moment))

    # Following.

    async def follow(self, series: SeriesId) -> None:
        """Follow a base series from now on, while `run` runs. Raises `StoreError`; then call again."""
        await self._running.wait()
        self._table.pin(series)
        await self._follow(series)

    def acquire(self, series: SeriesId) -> None:
        """Follow a series, or its base, at least until `release`. Raises `NoCapacity`, without a change."""
        base = self._ports.base_of(series)
        try:
            commands = self._table.acquire(base)
        except NoCapacity as error:
            more = self._full_log_limit.allow(base.market, self._monotonic())
            if error.detail is not None and more is not None:
                log.warning("series.no_capacity", "it is not followed: %s", error.detail, series=base, suppressed=more)
            raise
        self._apply(commands)

    def release(self, series: SeriesId) -> None:
        """Give back the reference of `acquire`. The series is followed for `ondemand_idle_ttl_s` longer."""
        self._table.release(self._ports.base_of(series), self._monotonic())

    async def caught_up(self, series: SeriesId) -> None:
        """Wait until the history of a followed series has been read up to now, or its symbol is delisted. Raises
        `Transient` when the series is restarted meanwhile: call `follow` and wait again."""
        job = self._jobs.get(series)
        if job is not None:
            await asyncio.wait([job.caught_up])
        if job is None or job.caught_up.cancelled():
            raise Transient(f"{series} is followed anew")

    def _apply(self, commands: Iterable[JobCommand]) -> None:
        for command in commands:
            match command:
                case Start(series):
                    if self._group is not None:  # else `run` will start the series
                        work = partial(self._follow_with_retries, series)
                        self._ports.bulkheads.begin(
                            self._group, work, part=Part.SERIES, name=f"follow {series}", restart=True
                        )
                case Stop(series):
                    self._ports.events.unfollowed(series)
                    self._unfollow(series)
                    self._tails.forget(series)

    async def _follow_with_retries(self, series: SeriesId) -> None:
        while series in self._table:
            try:
                await self._follow(series)
            except StoreError as error:
                log.warning("series.store_failed", "the store cannot be read", series=series, error=error)
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    async def _follow(self, series: SeriesId) -> None:
        """Subscribe; history is read once the stream is attached. Raises `StoreError`."""
        stored = await self._ports.stored(series)
        if series in self._jobs or series not in self._table:
            return
        since_ms = self._markets[series.market].utc_ms()
        assert self._group is not None, "run is running"
        connection = self._connections.with_room(series.market, self._group)
        self._jobs[series] = Job(
            Followed(series, head_of(series, stored), self._settings, self._monotonic(), since_ms),
            connection,
            self._ports,
            tails=self._tails,
            suspect=self._listings.suspect,
            group=self._group,
            market=self._markets[series.market],
            contained=self._contained,
            restart=self._restart,
            resubscribe=self._resubscribe,
        )
        self._ports.events.followed(series, head_of(series, stored))
        connection.want(series)

    def _unfollow(self, series: SeriesId) -> None:
        """Stop following a series. Queued writes are still carried out."""
        job = self._jobs.pop(series, None)
        if job is not None:
            job.end()
            self._connections.end_if_idle(series.market, job.connection)

    def _restart(self, series: SeriesId) -> None:
        """Begin a series again from its stored head, after a defect."""
        if self._ending or series not in self._jobs:
            return
        self._unfollow(series)
        if series in self._table:
            self._apply([Start(series)])

    def _contained(self, series: SeriesId) -> AbstractContextManager[None]:
        """A block that contains a defect: the series is restarted, and no other series is affected."""
        return self._ports.bulkheads.contained(Part.SERIES, str(series), partial(self._restart, series))

    # Events of streams and lists.

    def _moment(self, market: str) -> Moment:
        return Moment(self._monotonic(), self._markets[market].now_ms())

    def _event(self, event: KlineEvent) -> None:
        with self._contained(event.series):
            self._markets[event.series.market].event(event)

    def _believed(self, event: KlineEvent, now_s: float, came_s: float) -> None:
        with self._contained(event.series):
            if (job := self._jobs.get(event.series)) is not None:
                too_old = self._is_too_old(event)
                job.carry_out(job.followed.event(event, now_s, came_s, too_old=too_old))

    def _is_too_old(self, event: KlineEvent) -> bool:
        """Whether a closed candle is from before the live edge, where history over REST is off: an exchange's client
        that polls REST begins with such rows."""
        if not (self._settings.live_only and event.by_rest and event.closed):
            return False
        return event.candle.time < self._tails.live_edge(event.series, event.event_ms)

    def _attached(self, series: SeriesId) -> None:
        with self._contained(series):
            if (job := self._jobs.get(series)) is not None:
                job.carry_out(job.followed.attached(self._moment(series.market)))

    def _lost(self, lost: Iterable[SeriesId]) -> None:
        for series in lost:
            if (job := self._jobs.get(series)) is not None:
                job.carry_out(job.followed.lost(self._moment(series.market)))

    def _failing(self, failing: Iterable[SeriesId], reason: str) -> None:
        failing = list(failing)
        if failing:
            self._ports.events.failing(failing[0], reason)
        for series in failing:
            if (job := self._jobs.get(series)) is not None:
                job.followed.watch.failing(reason)

    def _stands_in(self, series: SeriesId, reason: str | None) -> None:
        if (job := self._jobs.get(series)) is not None:
            job.carry_out(job.followed.stands_in(self._moment(series.market), reason))

    def _quiet(self, series: SeriesId, span: Span) -> None:
        if (job := self._jobs.get(series)) is not None:
            job.followed.watch.quiet = span

    def _followed_of(self, market: str) -> list[Followed]:
        return [job.followed for series, job in self._jobs.items() if series.market == market]

    def _judge(self, followed: Followed, listing: Listing | None, second: bool) -> None:
        job = self._jobs.get(followed.series)
        if job is not None and job.followed is followed:
            with self._contained(followed.series):
                job.carry_out(followed.judge(listing, self._moment(followed.series.market), second=second))

    def _resubscribe(self, job: Job) -> None:
        """Subscribe a stale stream again; when all streams of its connection are stale, renew the connection."""
        connection = job.connection
        others = [
            other.followed for other in self._jobs.values() if other.connection is connection and other is not job
        ]
        if all_stale(others):
            log.warning(
                "stream.reconnect",
                "every stream of its connection is stale: the connection is renewed",
                series=job.series,
            )
            for followed in others:
                followed.watch.retried(self._monotonic())
            job.connection.reconnect()
        else:
            log.warning("stream.resubscribe", "its stale stream is subscribed again", series=job.series)
            job.connection.renew(job.series)

"""IngestSupervisor: follows series. It carries out what the feeds decide (connections, history, writes, broadcasts),
watches over each stream, and lets REST stand in for one that fails. What restarts is restarted here."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError, Transient, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.history.reading import FILES, REST, Progress, TailFiles, on_board, read_pages
from klinesync.ingest.audit import Audit
from klinesync.ingest.feed import Command, Fetch, Hurry, IngestFeed, Persist, Show, ShowLater
from klinesync.ingest.jobs import JobCommand, JobTable, NoCapacity, Room, Start, Stop
from klinesync.ingest.liveness import STALE, StreamWatch
from klinesync.ingest.questioner import Questioner
from klinesync.ingest.reach import UNREACHABLE_AFTER_S, ExchangeWatch
from klinesync.ingest.stamp_check import StampCheck
from klinesync.pipelines.ingest_pipeline import Empty, IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part, Work
from klinesync.runtime.clock import ExchangeClock
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.sources import (
    Connection,
    ConnectionStatus,
    Errand,
    HistoryPage,
    HistoryWatch,
    KlineEvent,
    Listing,
    MarketContact,
    Source,
    StreamCallbacks,
    StreamStatus,
    Urgency,
)

log = logging.getLogger(__name__)

# After a failed write: time for the store to recover before the series is read again from REST.
STORE_RETRY_S = 1.0
# How often the streams are looked after.
TICK_S = 0.5
# Where no stream has told the exchange's time for so long, the exchange is asked for it.
CLOCK_AGE_S = 5.0
# Of histories that cannot be read one in so long is logged, for each market.
FAILED_LOG_EVERY_S = 5.0
# One line about the clocks of a market in so many seconds: those of a quick exchange are set often until its speed is
# known.
CLOCK_LOG_EVERY_S = 60.0
# One line about an exchange that has no room for one more series in so many seconds.
FULL_LOG_EVERY_S = 60.0
# One line about lists of symbols that cannot be had in so many seconds, for each market.
LISTS_LOG_EVERY_S = 60.0
# History does not wait longer than this for a stream that cannot be subscribed.
ATTACH_WAIT_S = 5.0
# Exchange time that a stream gets beyond what a REST row takes to be final, before REST is asked for a candle. Futures
# bring the last of their closed candles 2 s after the close.
STREAM_FIRST_S = 1.0
# Before REST is asked again after an answer that did not have what is due.
FRUITLESS = Backoff(initial_s=1.0, most_s=300.0)
# So many fruitless answers in a row, and it is asked whether the symbol is traded at all.
FRUITLESS_SUSPECT = 2
# How often the lists of symbols are looked at: of themselves, and when a symbol is suspect or gone. Two lists without a
# symbol that are as far apart as the latter say that it is gone.
LISTINGS_AGE_S = 3600.0
SUSPECT_LISTINGS_AGE_S = 60.0
LISTINGS_PAUSE_S = 5.0
# First histories that are read at once: what is read waits in memory until it is written.
SWEEPS_AT_ONCE = 16
# The newest rows of a page that a stream may owe.
OWED_ROWS = 10
# States of a single stream that are logged when it enters or leaves them.
_NOTABLE = (*STALE, "delisted")


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as the debug page shows it. Times are UTC seconds of the exchange."""

    series_id: str
    kind: str
    refcount: int
    state: str
    idle_since: int | None
    last_frame_at: int | None
    reconnects: int


@dataclass(slots=True, eq=False)
class Job:
    """One followed series: its feed, the watch over its stream, and its history read. `begin_by_s`: when history
    begins without the stream; `due_*`: the candle that is expected next, and since when it is overdue; `by_rest`: its
    closed candles are rows of REST, whoever brings them."""

    feed: IngestFeed
    connection: Connection
    watch: StreamWatch
    caught_up: asyncio.Future[None]
    begin_by_s: float
    told_state: str = "reconnecting"  # the stream's state that was published last
    errand: Errand = field(default_factory=lambda: Errand(Urgency.SWEEP))
    history: asyncio.Task[None] | None = None
    beginning_again: bool = False
    later: asyncio.TimerHandle | None = field(default=None, repr=False)
    overdue_head: int | None = None
    overdue_seen: bool = False
    ask_after_s: float = 0.0
    lost_s: float = float("-inf")  # when the connection was lost last
    listed: bool = False  # a list had it
    absent_s: float | None = None  # since when lists do not have it; None while they do, and once it is delisted
    fruitless: int = 0
    by_rest: bool = False


@dataclass(slots=True)
class _TailReading:
    """A reading of the newest `most` candles of a series. `again`: where to go on, once it has turned out that now is
    later than was known, and more candles are missing than are read at once."""

    job: Job
    most: int
    again: int | None = None

    def is_far_behind(self) -> bool:
        return self.again is not None


class IngestSupervisor:
    """Follows series of one exchange, until `run` is cancelled.

    `notice(series, status)` tells clients of each change of a stream's state; `heal(series, span, reason)` is asked
    to fill what live could not wait for, `heal_declared(series)` to fill all declared gaps of a symbol that is listed
    again. A first history has `first_history_candles`; of what a series that was away missed the newest
    `most_tail_candles` are read at once, what is older is left to `heal`. `files` are read before a first history is
    asked of the exchange, and alone while the exchange cannot be asked. `live_only`: the exchange is asked for no
    candle that opened before its series was followed. `one_list_decides`: a symbol that no list had is not traded by
    the first whole list, as such a list comes in one piece. `room`: what the exchange has room for. `audit_interval_s`
    0: no audit. `wall_s`: UTC seconds by this machine, for times that are told while the exchange's is not known.
    """

    def __init__(
        self,
        *,
        source: Source,
        clocks: Mapping[str, ExchangeClock],
        pipeline: IngestPipeline,
        stored: Callable[[SeriesId], Awaitable[Span | None]],
        show: Callable[[Forming], None],
        base_of: Callable[[SeriesId], SeriesId],
        notice: Callable[[SeriesId, StreamStatus], None],
        heal: Callable[[SeriesId, Span, str], None] | None,
        heal_declared: Callable[[SeriesId], None] | None,
        history_watch: HistoryWatch,
        first_history_candles: int,
        most_tail_candles: int,
        forming_interval_s: float,
        stream_stale_s: float,
        rest_final_margin_s: float,
        audit_interval_s: float,
        ondemand_idle_ttl_s: float,
        ondemand_max_jobs: int,
        rng: random.Random,
        wall_s: Callable[[], float],
        one_list_decides: bool = True,
        room: Room | None = None,
        bulkheads: Bulkheads | None = None,
        files: TailFiles | None = None,
        live_only: bool = False,
    ) -> None:
        self._source = source
        self._wall_s = wall_s
        self._bulkheads = bulkheads or Bulkheads()
        self._clocks = clocks
        self._pipeline = pipeline
        self._stored = stored
        self._show = show
        self._base_of = base_of
        self._notice = notice
        self._heal = heal
        self._heal_declared = heal_declared
        self._history_watch = history_watch
        self._first_history_candles = first_history_candles
        self._most_tail_candles = most_tail_candles
        self._forming_interval_s = forming_interval_s
        self._stream_stale_s = stream_stale_s
        self._final_margin_s = rest_final_margin_s
        self._audit_interval_s = audit_interval_s
        self._rng = rng
        self._one_list_decides = one_list_decides
        self._files = files
        self._live_only = live_only
        self._live_from: dict[SeriesId, int] = {}  # the open time that a series was followed from
        self.audit: Audit | None = None
        self._table = JobTable(ondemand_idle_ttl_s, ondemand_max_jobs, room)
        self._jobs: dict[SeriesId, Job] = {}
        self._connections: dict[str, dict[Connection, asyncio.Task[None]]] = {market: {} for market in clocks}
        self._connection_numbers = count(1)
        self._checks = {
            market: StampCheck(clock, partial(source.now_ms, market), self._take_believed)
            for market, clock in clocks.items()
        }
        self._watches = {market: ExchangeWatch() for market in clocks}
        self._troubled = dict.fromkeys(clocks, False)  # whether a market gives no history, as of the newest look
        self._answers_again = {market: asyncio.Event() for market in clocks}
        self._silent_since: dict[str, int] = {}  # when nothing was heard any more of a market that became unreachable
        self._questioners = {market: Questioner(source, pipeline.submit) for market in clocks}
        self._log_limit = LogLimit(FAILED_LOG_EVERY_S)
        self._clock_log_limit = LogLimit(CLOCK_LOG_EVERY_S)
        self._lists_log_limit = LogLimit(LISTS_LOG_EVERY_S)
        self._full_log_limit = LogLimit(FULL_LOG_EVERY_S)
        self._suspected = asyncio.Event()
        self._sweeps = asyncio.Semaphore(SWEEPS_AT_ONCE)
        self._group: asyncio.TaskGroup | None = None
        self._ending = False  # what still waits is written, and nothing begins any more
        self._running = asyncio.Event()

    def status(self, series: SeriesId) -> StreamStatus:
        """Where the stream of the series, or of its base, stands."""
        base = self._base_of(series)
        job = self._jobs.get(base)
        if job is None:
            return StreamStatus(StreamState.RECONNECTING if base in self._table else StreamState.OFF)
        return job.watch.status

    def keeps_up(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its history is in."""
        job = self._jobs.get(series)
        return job is not None and job.feed.caught_up

    def first_history_due(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its first history is still to be read."""
        job = self._jobs.get(series)
        return series in self._table if job is None else not job.caught_up.done()

    def contacts(self) -> list[MarketContact]:
        """What is heard of each market."""
        now_s = asyncio.get_running_loop().time()
        return [self._contact(market, reach, now_s) for market, reach in self._watches.items()]

    def _contact(self, market: str, reach: ExchangeWatch, now_s: float) -> MarketContact:
        difference = self._clocks[market].difference(now_s)
        return MarketContact(
            market,
            streams=tuple(job.watch.status for one, job in self._jobs.items() if one.market == market),
            connected=any(connection.status.connected for connection in self._connections[market]),
            unreachable=reach.unreachable,
            unreachable_since=self._silent_since.get(market) if reach.unreachable else None,
            silent_s=None if reach.frame_s is None else now_s - reach.frame_s,
            answers=reach.answers(now_s),
            refused=reach.refused,
            failure=reach.failure,
            unanswered=reach.unanswered(now_s),
            clocks_differ=None if difference is None else str(difference),
            final_margin_s=self._margin_s(market),
            final_margin_seen=self._margin_s(market) > self._final_margin_s,
            left_alone_s=self._source.contact(market).left_alone_s,
        )

    def _margin_s(self, market: str) -> float:
        """How long after its end a row of REST may change there, in seconds of the exchange."""
        return max(self._final_margin_s, self._source.contact(market).final_margin_s or 0.0)

    def final_margin_s(self, series: SeriesId) -> float:
        """How long after its end a row of REST may change on the series' market, in seconds of the exchange."""
        return self._margin_s(series.market)

    def doubted(self) -> dict[str, int]:
        """By market: frames that were left out, as the exchange's time does not bear out their stamps."""
        return {market: check.refused for market, check in self._checks.items()}

    def questioned(self) -> dict[tuple[str, str], int]:
        """By market and reason: closed candles of frames that REST decided about. `early`: their end lay ahead of
        REST's clock; `values`: other values were stored."""
        early = {(market, "early"): check.early for market, check in self._checks.items()}
        return early | {(market, "values"): one.questions.asked for market, one in self._questioners.items()}

    def followed(self) -> list[SeriesId]:
        """The base series that are followed."""
        return list(self._jobs)

    def jobs_state(self) -> list[JobState]:
        """All jobs, as the debug page shows them."""
        now_s = asyncio.get_running_loop().time()
        states = []
        for entry in self._table.entries():
            job, now_ms = self._jobs.get(entry.series), self._now_ms(entry.series.market)
            idle_since = None
            if entry.idle_since_s is not None and now_ms is not None:
                idle_since = int(now_ms / 1000 - (now_s - entry.idle_since_s))
            status = self.status(entry.series)
            reconnects = 0 if job is None else job.connection.status.reconnects
            states.append(
                JobState(
                    str(entry.series),
                    entry.kind,
                    entry.references,
                    status.state,
                    idle_since,
                    status.last_frame_at,
                    reconnects,
                )
            )
        return states

    def connections_state(self) -> list[ConnectionStatus]:
        """All connections to the exchange."""
        return [connection.status for market in self._connections.values() for connection in market]

    async def run(self) -> None:
        """Carry everything until cancelled. After a defect it may be run again: every series is followed anew."""
        begin = self._bulkheads.begin
        self._ending = False
        for series in list(self._jobs):
            self._unfollow(series)
        for check in self._checks.values():
            check.abandon()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                begin(group, self._tick_on, part=Part.STREAMS, name="streams", restart=True)
                begin(group, self._watch_listings, part=Part.LISTINGS, name="listings", restart=True)
                for market, questioner in self._questioners.items():
                    begin(group, questioner.run, part=Part.CLOCK, name=f"questions {market}", restart=True)
                if self._audit_interval_s:
                    self.audit = self._make_audit()
                    begin(group, self.audit.run, part=Part.AUDIT, name="audit", restart=True)
                self._running.set()
                self._apply([Start(entry.series) for entry in self._table.entries()])
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self._ending = True
        finally:
            self._running.clear()
            self._group = None

    def _make_audit(self) -> Audit:
        def untold(series: SeriesId, candles: Sequence[Candle], since_ms: int) -> Sequence[Candle]:
            job = self._jobs.get(series)
            return candles if job is None else job.feed.untold_since(candles, since_ms)

        return Audit(
            self._source.history,
            series=lambda: (one for one, job in self._jobs.items() if self._at_rest(job)),
            stored=self._audited,
            untold_since=untold,
            submit=self._pipeline.submit,
            now_ms=lambda series: self._now_ms(series.market),
            interval_s=self._audit_interval_s,
        )

    async def _audited(self, series: SeriesId) -> Span | None:
        """The stored span that the audit asks the exchange about. Raises `StoreError`."""
        stored = await self._stored(series)
        if stored is None or not self._live_only:
            return stored
        return Span(max(stored.start, self._live_from.get(series, stored.end)), stored.end)

    def _at_rest(self, job: Job) -> bool:
        """Whether the series is caught up, and nothing of it is being read or recovered."""
        feed = job.feed
        return feed.caught_up and not (feed.fetching or job.beginning_again or job.watch.state == "delisted")

    # Following.

    async def follow(self, series: SeriesId) -> None:
        """Follow a base series from now on, for as long as `run` does. Raises `StoreError`; then call it again."""
        await self._running.wait()
        self._table.pin(series)
        await self._follow(series)

    def acquire(self, series: SeriesId) -> None:
        """Follow a series, or its base, at least until `release`. Raises `NoCapacity`, and then nothing has changed."""
        base = self._base_of(series)
        try:
            commands = self._table.acquire(base)
        except NoCapacity as error:
            more = self._full_log_limit.allow(base.market, asyncio.get_running_loop().time())
            if error.detail is not None and more is not None:
                log.warning("%s is not followed (%d more since the last): %s", base, more, error.detail)
            raise
        self._apply(commands)

    def release(self, series: SeriesId) -> None:
        """Give back what `acquire` took. The series is followed a while longer, in case somebody comes back."""
        self._table.release(self._base_of(series), asyncio.get_running_loop().time())

    def _apply(self, commands: Iterable[JobCommand]) -> None:
        for command in commands:
            match command:
                case Start(series):
                    if self._group is not None:  # else `run` begins with it
                        work = partial(self._follow_until_it_works, series)
                        self._bulkheads.begin(
                            self._group, work, part=Part.SERIES, name=f"follow {series}", restart=True
                        )
                case Stop(series):
                    self._live_from.pop(series, None)
                    self._unfollow(series)

    async def _follow_until_it_works(self, series: SeriesId) -> None:
        while series in self._table:
            try:
                await self._follow(series)
            except StoreError as error:
                log.warning("%s: the store cannot be read: %s", series, error)
                await asyncio.sleep(STORE_RETRY_S)
            else:
                return

    async def _follow(self, series: SeriesId) -> None:
        """Subscribe; history is read once the stream is attached. Raises `StoreError`."""
        stored = await self._stored(series)
        if series in self._jobs or series not in self._table:
            return
        loop = asyncio.get_running_loop()
        feed = IngestFeed(series, _head(series, stored), forming_interval_s=self._forming_interval_s)
        connection = self._connection(series.market)
        self._jobs[series] = Job(
            feed,
            connection,
            StreamWatch(series.timeframe, self._stream_stale_s, self._utc_ms(series.market)),
            loop.create_future(),
            loop.time() + ATTACH_WAIT_S,
        )
        connection.want(series)

    def _unfollow(self, series: SeriesId) -> None:
        """Follow the series no more. What is queued is written all the same."""
        job = self._jobs.pop(series, None)
        if job is None:
            return
        if job.history is not None:
            job.history.cancel()
            self._history_watch.ended(series)
        if job.later is not None:
            job.later.cancel()
        job.caught_up.cancel()
        self._questioners[series.market].questions.forget(series)
        job.connection.unwant(series)
        if job.connection.idle:
            self._connections[series.market].pop(job.connection).cancel()

    def _follow_anew(self, series: SeriesId) -> None:
        """After a defect in what is done for the series: begin with it from its stored head."""
        if self._ending or series not in self._jobs:
            return
        self._unfollow(series)
        if series in self._table:
            self._apply([Start(series)])

    def _contained(self, series: SeriesId) -> AbstractContextManager[None]:
        """A defect within the block has the series followed anew, and disturbs no other."""
        return self._bulkheads.contained(Part.SERIES, str(series), partial(self._follow_anew, series))

    async def caught_up(self, series: SeriesId) -> None:
        """Returns once the followed series' history has been read up to now, or cannot be as it is not traded. Raises
        `Transient` when the series is followed anew meanwhile: `follow` and wait again."""
        job = self._jobs.get(series)
        if job is not None:
            await asyncio.wait([job.caught_up])
        if job is None or job.caught_up.cancelled():
            raise Transient(f"{series} is followed anew")

    def _connection(self, market: str) -> Connection:
        """A connection of `market` with room for one more stream."""
        assert self._group is not None, "run is running"
        for connection in self._connections[market]:
            if connection.room:
                return connection
        connection = self._source.connection(
            market,
            StreamCallbacks(
                attached=self._take_attached,
                event=self._take_event,
                lost=self._lost,
                failing=self._failing,
                stands_in=self._stands_in,
                quiet=self._quiet,
            ),
        )
        name = f"connection {next(self._connection_numbers)} {market}"
        task = self._bulkheads.begin(self._group, connection.run, part=Part.CONNECTION, name=name, restart=True)
        self._connections[market][connection] = task
        return connection

    # What the streams say.

    def _now_ms(self, market: str) -> int | None:
        return self._clocks[market].estimate_ms(asyncio.get_running_loop().time())

    def _utc_ms(self, market: str) -> int:
        """The exchange's time, or ours where nothing is known of it: to tell since when something is the case."""
        now_ms = self._now_ms(market)
        return int(self._wall_s() * 1000) if now_ms is None else now_ms

    def _take_event(self, event: KlineEvent) -> None:
        with self._contained(event.series):
            self._event(event)

    def _take_attached(self, series: SeriesId) -> None:
        with self._contained(series):
            self._attached(series)

    def _attached(self, series: SeriesId) -> None:
        job = self._jobs.get(series)
        if job is not None:
            job.watch.attached(self._now_ms(series.market))
            self._tell(job)
            if job.watch.state != "delisted":
                self._carry_out(job, job.feed.attached())

    def _lost(self, series: Iterable[SeriesId]) -> None:
        for one in series:
            job = self._jobs.get(one)
            if job is not None:
                job.lost_s = asyncio.get_running_loop().time()
                job.watch.lost(self._now_ms(one.market))
                self._tell(job)

    def _failing(self, series: Iterable[SeriesId], reason: str) -> None:
        for one in series:
            job = self._jobs.get(one)
            if job is not None:
                job.watch.failing(reason)

    def _stands_in(self, series: SeriesId, reason: str | None) -> None:
        job = self._jobs.get(series)
        if job is not None:
            job.watch.stood_in(self._now_ms(series.market), reason)
            self._tell(job)

    def _quiet(self, series: SeriesId, span: Span) -> None:
        job = self._jobs.get(series)
        if job is not None:
            job.watch.quiet = span

    def _event(self, event: KlineEvent) -> None:
        market, now_s = event.series.market, asyncio.get_running_loop().time()
        self._watches[market].frame_s = now_s
        if not self._checks[market].check(event, now_s):
            self._ask_time(market)

    def _take_believed(self, event: KlineEvent, now_s: float, came_s: float) -> None:
        with self._contained(event.series):
            self._believe(event, now_s, came_s)

    def _believe(self, event: KlineEvent, now_s: float, came_s: float) -> None:
        job = self._jobs.get(event.series)
        if job is None:
            return
        candle, job.by_rest = event.candle, event.by_rest
        if job.watch.state == "delisted":
            self._suspected.set()  # or is it traded again?
        job.watch.frame(candle, event.event_ms, closed=event.closed, connected=came_s >= job.lost_s)
        self._tell(job)
        if event.closed:
            # A source without frames begins with the rows of some candles that closed before.
            if self._live_only and event.by_rest and candle.time < self._live_edge(event.series, event.event_ms):
                return
            self._carry_out(job, job.feed.closed(candle, event.event_ms))
        else:
            self._carry_out(job, job.feed.forming(candle, now_s))

    # Looking after the streams.

    async def _tick_on(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = loop.time()
            self._apply(self._table.expire(now_s))
            for market, clock in self._clocks.items():
                now_ms = clock.estimate_ms(now_s)
                jobs = [job for one, job in self._jobs.items() if one.market == market]
                for job in jobs:
                    with self._contained(job.feed.series):
                        self._tick(job, now_s, now_ms)
                with self._bulkheads.contained(Part.STREAMS, market):
                    self._look_at(market, jobs, now_s, now_ms)
                for sentence in clock.take_news():
                    if (more := self._clock_log_limit.allow(market, now_s)) is not None:
                        log.warning("event=exchange.clock market=%s more=%d: %s", market, more, sentence)
                if jobs and self._wants_time(market, clock, now_s):
                    self._ask_time(market)

    def _wants_time(self, market: str, clock: ExchangeClock, now_s: float) -> bool:
        """Whether the exchange is to be asked for its time, though no candle needs it."""
        if clock.age_s(now_s) > CLOCK_AGE_S or self._watches[market].ask_due(now_s):
            return True
        every_s = CLOCK_AGE_S if clock.difference(now_s) is not None else 0.0
        return clock.wants_answer(now_s) and clock.answer_age_s(now_s) > every_s

    def _look_at(self, market: str, jobs: Sequence[Job], now_s: float, now_ms: int | None) -> None:
        """Whether the market is heard at all. Its streams serve nobody while it is not."""
        reach = self._watches[market]
        followed = any(job.watch.state != "delisted" for job in jobs)
        changed = reach.check(now_s, self._source.contact(market), followed=followed)
        troubled = reach.refused is not None or reach.unreachable or reach.unanswered(now_s)
        if self._troubled[market] and not troubled:
            answers_again, self._answers_again[market] = self._answers_again[market], asyncio.Event()
            answers_again.set()
            for job in jobs:
                job.feed.answers_again()
        self._troubled[market] = troubled
        if not changed:
            return
        if reach.unreachable and (silent_from_s := reach.silent_from_s) is not None:
            self._silent_since[market] = int(self._utc_ms(market) / 1000 - (now_s - silent_from_s))
        detail = f"the exchange has given neither frames nor answers for {UNREACHABLE_AFTER_S:g} s"
        if reach.unreachable:
            log.warning("event=exchange.unreachable market=%s streams=%d: %s", market, len(jobs), detail)
        elif followed:
            log.warning("event=exchange.reachable market=%s streams=%d: it is heard again", market, len(jobs))
        for job in jobs:
            if reach.unreachable:
                job.watch.unreachable(now_ms, detail)
            else:
                job.watch.reachable(now_ms)
            self._tell(job)

    def _ask_time(self, market: str) -> None:
        assert self._group is not None, "run is running"
        if (check := self._checks[market]).begin():
            name = f"exchange time {market}"
            self._bulkheads.begin(self._group, check.resolve, part=Part.CLOCK, name=name, mend=check.abandon)

    def _tick(self, job: Job, now_s: float, now_ms: int | None) -> None:
        feed, watch = job.feed, job.watch
        head = feed.head
        if feed.holding and (commands := feed.tick(now_s)):
            if head is None:
                self._give_up_first(job, commands)
            self._carry_out(job, commands)
        if watch.state == "delisted" or job.beginning_again:
            return
        if not feed.caught_up and not feed.fetching:
            if now_s >= max(job.begin_by_s, job.ask_after_s):
                self._carry_out(job, feed.attached())
            return
        if now_ms is None:
            return
        if watch.check(now_ms, now_s):
            self._tell(job)
        if watch.retry(now_s):
            self._retry(job, now_s)
        if not feed.fetching and now_s >= job.ask_after_s and self._overdue(job, now_ms):
            self._carry_out(job, feed.overdue(Urgency.FILL if watch.serves else Urgency.REPAIR))

    def _overdue(self, job: Job, now_ms: int) -> bool:
        """Whether the candle behind the head is due, and was at the last look: what is on its way has arrived by
        now."""
        feed = job.feed
        head, frame = feed.head, feed.timeframe
        if head is not None:
            brings = job.watch.serves or job.watch.is_polled
            margin_s = self._margin_s(feed.series.market) + (STREAM_FIRST_S if brings else 0.0)
            if now_ms < frame.next(frame.next(head)) * 1000 + int(margin_s * 1000):
                return False
        if job.overdue_seen and job.overdue_head == head:
            return True
        job.overdue_seen = True
        job.overdue_head = head
        return False

    def _retry(self, job: Job, now_s: float) -> None:
        """Subscribe a stale stream anew; when no stream of its connection brings anything, connect anew."""
        others = [one for one in self._jobs.values() if one.connection is job.connection and one is not job]
        if all(one.watch.is_stale for one in others):
            log.warning("%s: no stream of its connection brings what it owes: connecting anew", job.feed.series)
            for one in others:
                one.watch.retried(now_s)
            job.connection.reconnect()
        else:
            log.warning("%s: subscribing the stale stream anew", job.feed.series)
            job.connection.renew(job.feed.series)

    def _tell(self, job: Job) -> None:
        """Publish the stream's state, if it has changed since it was published last."""
        state, before = job.watch.state, job.told_state
        if state == before:
            return
        job.told_state = state
        status, series = job.watch.status, job.feed.series
        # What a whole connection goes through is logged by the connection, once for all of its streams.
        if state in _NOTABLE or before in _NOTABLE:
            log.warning("event=stream.%s series=%s before=%s: %s", state, series, before, status.detail or "")
        self._notice(series, status)

    # Symbols that come and go.

    async def _watch_listings(self) -> None:
        """Look at the exchange's lists of symbols: now and then, and soon where one is suspect or gone."""
        loop = asyncio.get_running_loop()
        while True:
            gone = any(job.watch.state == "delisted" for job in self._jobs.values())
            wait_s = SUSPECT_LISTINGS_AGE_S if gone else LISTINGS_AGE_S
            for absent_s in (job.absent_s for job in self._jobs.values()):
                if absent_s is not None:
                    wait_s = min(wait_s, max(0.0, absent_s + SUSPECT_LISTINGS_AGE_S - loop.time()))
            try:
                async with asyncio.timeout(wait_s):
                    await self._suspected.wait()
            except TimeoutError:
                pass  # it is time anyway
            self._suspected.clear()
            for market in self._clocks:
                jobs = [job for one, job in self._jobs.items() if one.market == market]
                if not jobs:
                    continue
                second = [job for job in jobs if _needs_second_list(job, loop.time())]
                try:
                    listings = await self._source.listings(market, 0.0 if second else SUSPECT_LISTINGS_AGE_S)
                except UpstreamError as error:
                    if (more := self._lists_log_limit.allow(market, loop.time())) is not None:
                        log.warning("the %s market cannot be asked for its symbols (%d more): %s", market, more, error)
                    continue
                for job in jobs:
                    if self._jobs.get(job.feed.series) is job:
                        with self._contained(job.feed.series):
                            self._judge(job, listings.get(job.feed.series.symbol), second=job in second)
            await asyncio.sleep(LISTINGS_PAUSE_S)

    def _judge(self, job: Job, listing: Listing | None, *, second: bool) -> None:
        """Whether the symbol is traded, by a whole list. It is gone by two lists, the `second` a minute after the first
        one: a list may be wrong for a moment."""
        gone = job.watch.state == "delisted"
        if listing is not None and listing.trading:
            job.listed, job.absent_s = True, None
            if gone:
                since = "" if listing.onboard_s is None else f", since {date_text(listing.onboard_s)} by its own word"
                self._listed(job, f"the exchange trades it (again){since}")
        elif not gone:
            decided = self._one_list_decides and not job.listed
            if not decided and not second:
                if job.absent_s is None:
                    job.absent_s = asyncio.get_running_loop().time()
                return
            job.absent_s = None
            detail = "the exchange does not list it" if listing is None else f"its status is {listing.status}"
            job.watch.delisted(self._now_ms(job.feed.series.market), detail)
            if not job.caught_up.done():
                job.caught_up.set_result(None)
            self._tell(job)

    def _listed(self, job: Job, why: str) -> None:
        """The symbol is traded: read what there is between the head and now, and declare what there is not."""
        series, head = job.feed.series, job.feed.head
        behind = "" if head is None else f"; the last candle before is of {date_text(head)}"
        job.watch.listed(self._now_ms(series.market), f"{why}{behind}")
        self._tell(job)
        job.fruitless = 0
        job.ask_after_s = 0.0
        self._carry_out(job, job.feed.attached())
        if self._heal_declared is not None:
            self._heal_declared(series)  # what was left, as nobody had anything of an unlisted symbol

    # Carrying out.

    def _carry_out(self, job: Job, commands: Iterable[Command]) -> None:
        feed = job.feed
        for command in commands:
            match command:
                case Show(candle):
                    self._show(Forming(feed.series, candle))
                case ShowLater(at_s):
                    job.later = asyncio.get_running_loop().call_at(at_s, self._due, job)
                case Persist():
                    written = self._pipeline.offer(feed.series, command.candles, by_frames=not job.by_rest)
                    if written is None:
                        self._begin_again(job, command.candles)
                    else:
                        written.add_done_callback(partial(self._settled, job, command))
                case Fetch():
                    if not job.beginning_again:  # a write before it in the line may have found no room
                        self._read_soon(job, command)
                case Hurry(urgency):
                    job.errand.urgency = urgency  # it counts where it waits, and from its next page on

    def _due(self, job: Job) -> None:
        job.later = None
        with self._contained(job.feed.series):
            self._carry_out(job, job.feed.due(asyncio.get_running_loop().time()))

    def _settled(self, job: Job, command: Persist, written: asyncio.Future[Applied]) -> None:
        if written.cancelled():
            return
        with self._contained(job.feed.series):
            if written.exception() is None:
                self._declare(job, command)
                if questioned := written.result().questioned:
                    self._questioners[job.feed.series.market].ask(job.feed.series, questioned)
            else:
                self._begin_again(job, command.candles)

    def _begin_again(self, job: Job, unwritten: Sequence[Candle] = ()) -> None:
        """What was let through is not stored (a write failed, or there was no room): live is held, and the series
        begins again from its stored head."""
        job.feed.stalled(unwritten)
        if self._ending or job.beginning_again or self._jobs.get(job.feed.series) is not job:
            return
        job.beginning_again = True
        if job.history is not None:
            job.history.cancel()
            self._history_watch.ended(job.feed.series, "the store cannot be written")
        job.history = self._begin_history(job, partial(self._read_again, job))

    async def _read_again(self, job: Job) -> None:
        series = job.feed.series
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            try:
                await self._pipeline.mend(series)
                stored = await self._stored(series)
            except StoreError as error:
                log.warning("%s: the store cannot be read: %s", series, error)
            else:
                break
        job.beginning_again = False
        self._carry_out(job, job.feed.restarted(_head(series, stored)))

    # History.

    def _read_soon(self, job: Job, fetch: Fetch) -> None:
        job.errand = Errand(fetch.urgency)
        job.history = self._begin_history(job, partial(self._read, job, fetch, job.errand))

    def _begin_history(self, job: Job, work: Work) -> asyncio.Task[None]:
        assert self._group is not None, "run is running"
        series = job.feed.series

        def mend() -> None:
            self._history_watch.ended(series, "a defect, see the log")
            if self._jobs.get(series) is job:
                self._follow_anew(series)

        return self._bulkheads.begin(self._group, work, part=Part.HISTORY, name=f"history {series}", mend=mend)

    async def _read(self, job: Job, fetch: Fetch, errand: Errand) -> None:
        """Read history from REST into the pipeline, page by page, and let live through at its end."""
        feed, series = job.feed, job.feed.series
        if fetch.delay_s:
            # No longer than until the market answers again.
            with suppress(TimeoutError):
                async with asyncio.timeout(fetch.delay_s * self._rng.uniform(1.0, 1.5)):
                    await self._answers_again[series.market].wait()
        before = feed.head
        try:
            if feed.caught_up and fetch.start is not None:
                await self._read_tail(job, fetch.start, errand, self._most_tail_candles)
            else:
                async with self._sweeps:
                    if self._files is not None:
                        await self._read_files(job, self._files)
                    await self._read_tail(job, feed.head or 0, errand, self._first_history_candles)
        except UpstreamError as error:
            self._history_watch.ended(series, str(error))
            self._failed(job, error)
        except StoreError as error:
            self._history_watch.ended(series, str(error))
            self._begin_again(job)
        else:
            self._history_watch.ended(series)
            self._ended(job, before)

    async def _read_tail(self, job: Job, start: int, errand: Errand, most: int) -> None:
        """Read what there is from `start` on, but only the newest `most` candles. Raises `UpstreamError`,
        `StoreError`."""
        series = job.feed.series
        start = max(start, await self._reach(series, most))
        if self._live_only:
            now_ms = await self._known_ms(series.market)
            start = max(start, self._live_edge(series, now_ms))
            if start >= series.timeframe.floor(now_ms // 1000):
                return  # nothing that may be asked for has closed
        again: int | None = start
        while again is not None:
            again = await self._read_pages(job, again, errand, most)

    def _live_edge(self, series: SeriesId, now_ms: int) -> int:
        """The open time of the candle that was in progress when the series was first seen to be followed."""
        return self._live_from.setdefault(series, series.timeframe.floor(now_ms // 1000))

    async def _reach(self, series: SeriesId, candles: int) -> int:
        """Where a history begins that reaches so many candles back from now. Raises `UpstreamError`."""
        now_ms = await self._known_ms(series.market)
        frame = series.timeframe
        return max(0, frame.shift(frame.floor(now_ms // 1000), -candles))

    async def _known_ms(self, market: str) -> int:
        """The exchange's time, asked where nothing is known of it. Raises `UpstreamError`."""
        now_ms = self._now_ms(market)
        return await self._source.now_ms(market) if now_ms is None else now_ms

    async def _read_files(self, job: Job, files: TailFiles) -> None:
        """Read from files what they have of a first history, by this machine's clock where the exchange cannot be asked
        for its time: then the newest candles that they have, however long ago that was. Raises `StoreError`."""
        feed, series, frame = job.feed, job.feed.series, job.feed.timeframe
        upto: int | None = None
        with suppress(UpstreamError):  # the exchange is asked again for what the files do not have
            upto = frame.floor(await self._known_ms(series.market) // 1000)
        end = await files.end(series, int(self._wall_s()) if upto is None else upto)
        if end is None:
            return
        start = max(0, frame.shift(end if upto is None else upto, -self._first_history_candles))
        if feed.head is not None:
            start = max(start, frame.next(feed.head))
        if start < end:
            with on_board(self._history_watch, series, Span(start, end), FILES) as progress:
                pages = files.pages(series, Span(start, end))
                await read_pages(pages, partial(self._let_through, job, files.name), progress)

    async def _read_pages(self, job: Job, start: int, errand: Errand, most: int) -> int | None:
        """Where to go on, when meanwhile it has turned out that now is later, and too much is missing; else None."""
        feed, series, frame = job.feed, job.feed.series, job.feed.timeframe
        now_ms = self._now_ms(series.market)
        if now_ms is not None:
            span = Span(start, max(frame.next(start), frame.floor(now_ms // 1000)))
            self._history_watch.began(series, span, "tail" if feed.caught_up else "startup")
        progress = Progress(series, start, partial(self._history_watch.advanced, series))
        reading = _TailReading(job, most)
        pages = self._source.history(series, start, errand)
        await read_pages(pages, partial(self._take_page, reading), progress, enough=reading.is_far_behind)
        return reading.again

    async def _take_page(self, reading: _TailReading, page: HistoryPage) -> None:
        """Write a page of a followed series. Raises `UpstreamError`, `StoreError`."""
        job, feed = reading.job, reading.job.feed
        job.watch.shown(page.candles[-OWED_ROWS:], self._now_ms(feed.series.market), asyncio.get_running_loop().time())
        self._tell(job)
        await self._let_through(job, REST, page)
        if page.candles:
            reach = await self._reach(feed.series, reading.most)
            if feed.timeframe.next(page.candles[-1].time) < reach:
                reading.again = reach

    async def _let_through(self, job: Job, source: str, page: HistoryPage) -> None:
        """Write the part of a page that its feed lets through. Raises `StoreError`."""
        feed = job.feed
        for command in feed.history(page):
            if isinstance(command, Persist):
                empty = Empty(command.empty, command.proof)
                await self._pipeline.submit(feed.series, command.candles, source, empty)
                self._declare(job, command)
        self._carry_out(job, feed.page_written())

    def _ended(self, job: Job, before: int | None) -> None:
        """History was read. REST that had nothing new is asked less often; or is the symbol not traded?"""
        now_s = asyncio.get_running_loop().time()
        job.overdue_seen = False
        if job.feed.head != before:
            job.fruitless = 0
            job.ask_after_s = 0.0
        else:
            job.ask_after_s = now_s + FRUITLESS.delay_s(job.fruitless)
            job.fruitless += 1
            if job.fruitless >= FRUITLESS_SUSPECT:
                self._suspected.set()
        self._carry_out(job, job.feed.history_ended())
        if not job.caught_up.done() and not job.feed.fetching:
            job.caught_up.set_result(None)

    def _failed(self, job: Job, error: UpstreamError) -> None:
        market = job.feed.series.market
        suppressed = self._log_limit.allow(market, asyncio.get_running_loop().time())
        if suppressed is not None:
            log.warning("%s: history cannot be read (%d more since the last): %s", job.feed.series, suppressed, error)
        if error.status == 400 or job.watch.state == "delisted":
            # It is the question that is wrong: asking again is of no use before the symbol is traded.
            self._suspected.set()
            job.ask_after_s = asyncio.get_running_loop().time() + SUSPECT_LISTINGS_AGE_S
            job.feed.abandoned()
            return
        self._carry_out(job, job.feed.history_failed())

    def _declare(self, job: Job, command: Persist) -> None:
        """It is written: say which holes it has passed that nobody has shown to be empty, and have them healed. (Before
        it is, they lie behind the stored head, and are none.)"""
        feed = job.feed
        for hole in command.unproven():
            missing = counted(feed.timeframe.count(hole.start, hole.end), "candle")
            log.warning("%s: %s missing from %s on: declared", feed.series, missing, date_text(hole.start))
            if self._heal is not None:
                self._heal(feed.series, hole, "gap")

    def _give_up_first(self, job: Job, commands: Sequence[Command]) -> None:
        """Live did not wait any longer for a first history: it is left to the healing of gaps."""
        now_ms = self._now_ms(job.feed.series.market)
        for command in commands:
            if isinstance(command, Persist) and self._heal is not None and now_ms is not None:
                frame, first = job.feed.timeframe, command.candles[0].time
                reach = frame.shift(frame.floor(now_ms // 1000), -self._first_history_candles)
                if reach < first:
                    self._heal(job.feed.series, Span(max(0, reach), first), "startup")
                return


def _head(series: SeriesId, stored: Span | None) -> int | None:
    """The newest open time of the stored span."""
    return None if stored is None else series.timeframe.shift(stored.end, -1)


def _needs_second_list(job: Job, now_s: float) -> bool:
    """Whether the first list without the job's symbol is so old that the next one decides."""
    return job.absent_s is not None and now_s - job.absent_s >= SUSPECT_LISTINGS_AGE_S

"""Job: carries out the commands of one followed series."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial

from klinesync.core.candle import Applied, Candle, Forming
from klinesync.core.counted import counted
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.exchanges.exchange import Connection, Errand, Urgency
from klinesync.history.missing import Need, Reason
from klinesync.history.series_events import SeriesEvents
from klinesync.ingest.followed import (
    CaughtUp,
    Command,
    Declare,
    Fetch,
    Followed,
    Hurry,
    Persist,
    Publish,
    Recover,
    Request,
    RequestDeclared,
    Resubscribe,
    Show,
    ShowLater,
    Suspect,
)
from klinesync.ingest.liveness import STALE
from klinesync.ingest.market_watch import MarketWatch
from klinesync.ingest.tail_reader import TailReader
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part, Work
from klinesync.runtime.clock import Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Pause after a failed write, before the stored head is read again, in seconds.
STORE_RETRY_S = 1.0
# Shortest time between two log lines about failed readings of a market, in seconds.
FAILED_LOG_EVERY_S = 5.0
# States of a single stream that are logged when they begin or end; the connection logs its own.
_LOGGED_STATES = (*STALE, StreamState.DELISTED)


@dataclass(frozen=True, slots=True)
class JobPorts:
    """The ports that the jobs of an exchange share.

    pipeline: writes candles.
    tails: reads history.
    stored: the stored span of a series; None when nothing is stored.
    show: publishes forming candles.
    notice: publishes each change of a stream's state.
    heal: queues the need of a gap or an older span, if gaps are healed.
    heal_declared: queues the declared gaps of a symbol that is listed again, if gaps are healed.
    suspect: has the exchange's lists of symbols polled soon.
    events: notes events of the series.
    rng: jitter.
    bulkheads: contains defects.
    log_limit: rate limit of log lines about failed readings.
    monotonic: monotonic seconds.
    """

    pipeline: IngestPipeline
    tails: TailReader
    stored: Callable[[SeriesId], Awaitable[Span | None]]
    show: Callable[[Forming], None]
    notice: Callable[[SeriesId, StreamStatus], None]
    heal: Callable[[Need], None]
    heal_declared: Callable[[SeriesId], None]
    suspect: Callable[[], None]
    events: SeriesEvents
    rng: random.Random
    bulkheads: Bulkheads
    log_limit: LogLimit
    monotonic: Monotonic


class Job:
    """The job of one followed series. Its future `caught_up` is done when the first history has been read, or the
    symbol is delisted.

    followed: decides.
    connection: has the stream.
    ports: shared with other jobs.
    group: the tasks of the series run in it.
    market: of the series.
    contained: a block that contains a defect: the series is restarted, and no other series is affected.
    restart: begins the series again from its stored head, after a defect.
    resubscribe: subscribes the job's stale stream again, or renews its connection.
    """

    def __init__(
        self,
        followed: Followed,
        connection: Connection,
        ports: JobPorts,
        *,
        group: asyncio.TaskGroup,
        market: MarketWatch,
        contained: Callable[[SeriesId], AbstractContextManager[None]],
        restart: Callable[[SeriesId], None],
        resubscribe: Callable[[Job], None],
    ) -> None:
        self.followed = followed
        self.series = followed.series
        self.connection = connection
        self.caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ports = ports
        self._group = group
        self._market = market
        self._contained = contained
        self._restart = restart
        self._resubscribe = resubscribe
        self._errand = Errand(Urgency.SWEEP)
        self._history: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._ended = False

    def halt(self) -> None:
        """Begin no further work. Queued writes are still carried out."""
        self._ended = True

    def end(self) -> None:
        """Stop following the series."""
        self.halt()
        if self._history is not None:
            self._history.cancel()
            self._ports.tails.ended(self.series)
        if self._later is not None:
            self._later.cancel()
        self.caught_up.cancel()
        self._market.questioner.questions.forget(self.series)
        self.connection.unwant(self.series)

    def carry_out(self, commands: Iterable[Command]) -> None:
        """Carry out the commands in their order."""
        for command in commands:
            match command:
                case Show(candle):
                    self._ports.show(Forming(self.series, candle))
                case ShowLater(at_s):
                    self._later = asyncio.get_running_loop().call_at(at_s, self._due)
                case Persist():
                    self._write(command)
                case Fetch():
                    # An earlier command, a write, may have found no room.
                    if not (self._ended or self.followed.is_recovering):
                        self._read_soon(command)
                case Hurry(urgency):
                    self._errand.urgency = urgency  # for the waiting request, or the next page
                case Publish(before, status):
                    self._publish(before, status)
                case Declare(hole):
                    missing = counted(self.series.timeframe.count(*hole), "candle")
                    log.warning(
                        "gap.declared",
                        "%s missing from %s on: declared",
                        missing,
                        date_text(hole.start),
                        series=self.series,
                        span=hole,
                    )
                    self._ports.heal(Need(self.series, hole, Reason.GAP, "gap"))
                case Request(span, reason):
                    self._ports.heal(Need(self.series, span, Reason.OLDER, reason))
                case RequestDeclared():
                    self._ports.heal_declared(self.series)
                case Suspect():
                    self._ports.suspect()
                case CaughtUp():
                    if not self.caught_up.done():
                        self.caught_up.set_result(None)
                case Resubscribe():
                    self._resubscribe(self)
                case Recover():
                    self._recover()

    def _due(self) -> None:
        self._later = None
        with self._contained(self.series):
            self.carry_out(self.followed.due(self._ports.monotonic()))

    def _publish(self, before: StreamState, status: StreamStatus) -> None:
        if status.state in _LOGGED_STATES or before in _LOGGED_STATES:
            log.warning(
                "stream.state",
                "%s",
                status.detail or "no reason is known",
                series=self.series,
                state=status.state,
                before=before,
            )
        self._ports.events.stream(self.series, before, status)
        self._ports.notice(self.series, status)

    def _write(self, command: Persist) -> None:
        written = self._ports.pipeline.offer(self.series, command.candles, by_frames=not self.followed.by_rest)
        if written is None:
            self._begin_again(command.candles)
        else:
            written.add_done_callback(partial(self._settled, command))

    def _settled(self, command: Persist, written: asyncio.Future[Applied]) -> None:
        if written.cancelled():
            return
        with self._contained(self.series):
            if written.exception() is not None:
                self._begin_again(command.candles)
                return
            self.carry_out(self.followed.written(command))
            if questioned := written.result().questioned:
                self._market.questioner.ask(self.series, questioned)

    def _begin_again(self, unwritten: Sequence[Candle] = ()) -> None:
        """Hold live candles and begin again from the stored head, because a write failed or found no room."""
        self.carry_out(self.followed.unwritten(unwritten))

    def _recover(self) -> None:
        if self._ended:
            return
        self._ports.events.unwritten(self.series)
        if self._history is not None:
            self._history.cancel()
            self._ports.tails.ended(self.series, "the store cannot be written")
        self._history = self._begin_history(self._read_again)

    async def _read_again(self) -> None:
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            try:
                await self._ports.pipeline.mend(self.series)
                stored = await self._ports.stored(self.series)
            except StoreError as error:
                log.warning("series.store_failed", "the store cannot be read", series=self.series, error=error)
            else:
                break
        self.carry_out(self.followed.restarted(head_of(self.series, stored)))

    # History.

    def _read_soon(self, fetch: Fetch) -> None:
        self._errand = Errand(fetch.urgency)
        self._history = self._begin_history(partial(self._read, fetch, self._errand))

    def _begin_history(self, work: Work) -> asyncio.Task[None]:
        name, mend = f"history {self.series}", self._history_broke
        return self._ports.bulkheads.begin(self._group, work, part=Part.HISTORY, name=name, mend=mend)

    def _history_broke(self) -> None:
        self._ports.tails.ended(self.series, "a defect, see the log")
        if not self._ended:
            self._restart(self.series)

    async def _read(self, fetch: Fetch, errand: Errand) -> None:
        """Read history into the pipeline, page by page, and release live candles at its end."""
        followed, series = self.followed, self.series
        if fetch.delay_s:  # the backoff ends early when the market answers again
            with suppress(TimeoutError):
                async with asyncio.timeout(fetch.delay_s * self._ports.rng.uniform(1.0, 1.5)):
                    await self._market.answers_again.wait()
        followed.history_begins()
        try:
            await self._ports.tails.read(followed, fetch, errand, self.carry_out)
        except UpstreamError as error:
            self._ports.tails.ended(series, str(error))
            if (more := self._ports.log_limit.allow(series.market, self._ports.monotonic())) is not None:
                log.warning(
                    "series.history_failed", "history cannot be read", series=series, suppressed=more, error=error
                )
            self.carry_out(followed.history_failed(error.status, self._ports.monotonic()))
        except StoreError as error:
            self._ports.tails.ended(series, str(error))
            self._begin_again()
        else:
            self._ports.tails.ended(series)
            self.carry_out(followed.history_ended(self._ports.monotonic()))


def head_of(series: SeriesId, stored: Span | None) -> int | None:
    """The stored head; None when nothing is stored."""
    return None if stored is None else series.timeframe.shift(stored.end, -1)

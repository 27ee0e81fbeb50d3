"""Job: carries one followed series: it does what the series' `Followed` decides."""

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

# After a failed write: time for the store to recover before the series is read again from REST, in seconds.
STORE_RETRY_S = 1.0
# Shortest time between two log lines about histories that cannot be read, in seconds, for each market.
FAILED_LOG_EVERY_S = 5.0
# States of a single stream that are logged when it enters or leaves them.
_NOTABLE = (*STALE, StreamState.DELISTED)


@dataclass(frozen=True, slots=True)
class JobPorts:
    """What the jobs of one exchange share.

    pipeline: where candles are written.
    tails: reads history.
    stored: the stored span of a series.
    show: takes forming candles.
    notice: tells clients of each change of a stream's state.
    heal: is asked to read gaps and older spans; None where gaps are not healed.
    heal_declared: is asked to read all declared gaps of a symbol that is listed again; None likewise.
    suspect: has the exchange's lists of symbols looked at soon.
    events: keeps what happens to the series.
    rng: jitter.
    bulkheads: contains defects.
    log_limit: of histories that cannot be read.
    monotonic: our clock.
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
    """One job. `caught_up` is done once the first history is in, or there is none to be had.

    followed: decides.
    connection: carries the stream.
    ports: what is shared with other jobs.
    group: where the tasks of the series run.
    market: of the series.
    contained: a block in which a defect has the series followed anew, and disturbs no other.
    follow_anew: begins with the series from its stored head, after a defect.
    resubscribe: subscribes the job's stale stream anew, or its whole connection.
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
        follow_anew: Callable[[SeriesId], None],
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
        self._follow_anew = follow_anew
        self._resubscribe = resubscribe
        self._errand = Errand(Urgency.SWEEP)
        self._history: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._ended = False

    def halt(self) -> None:
        """Begin nothing any more. What is queued is written all the same."""
        self._ended = True

    def end(self) -> None:
        """Follow the series no more."""
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
        """Carry the commands out, in their order."""
        for command in commands:
            match command:
                case Show(candle):
                    self._ports.show(Forming(self.series, candle))
                case ShowLater(at_s):
                    self._later = asyncio.get_running_loop().call_at(at_s, self._due)
                case Persist():
                    self._write(command)
                case Fetch():
                    if not (
                        self._ended or self.followed.is_recovering
                    ):  # a write before it in the line may have found no room
                        self._read_soon(command)
                case Hurry(urgency):
                    self._errand.urgency = urgency  # it counts where it waits, and from its next page on
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
        # What a whole connection goes through is logged by the connection, once for all of its streams.
        if status.state in _NOTABLE or before in _NOTABLE:
            detail = status.detail or ""
            log.warning(
                "stream.state",
                "%s",
                detail or "no reason is known",
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
        """What was let through is not stored: a write failed, or there was no room."""
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
            self._follow_anew(self.series)

    async def _read(self, fetch: Fetch, errand: Errand) -> None:
        """Read history into the pipeline, page by page, and let live through at its end."""
        followed, series = self.followed, self.series
        if fetch.delay_s:
            # No longer than until the market answers again.
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
    """The newest open time of the stored span."""
    return None if stored is None else series.timeframe.shift(stored.end, -1)

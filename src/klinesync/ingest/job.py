"""Job: carries out the commands of one followed series."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
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
from klinesync.ingest.ports import IngestPorts
from klinesync.ingest.tail_reader import TailReader
from klinesync.runtime.bulkheads import Part, Work
from klinesync.runtime.log_events import Log

log = Log(__name__)

# Pause after a failed write, before the stored head is read again, in seconds.
STORE_RETRY_S = 1.0
# States of a single stream that are logged when they begin or end; the connection logs its own.
_LOGGED_STATES = (*STALE, StreamState.DELISTED)


class Job:
    """The job of one followed series. Its future `caught_up` is done when the first history has been read, or the
    symbol is delisted.

    followed: decides.
    connection: has the stream.
    ports: of ingest.
    tails: reads history.
    suspect: has the exchange's lists of symbols polled soon.
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
        ports: IngestPorts,
        *,
        tails: TailReader,
        suspect: Callable[[], None],
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
        self._tails = tails
        self._suspect = suspect
        self._monotonic = ports.clock.monotonic_s
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
            self._tails.ended(self.series)
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
                    self._suspect()
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
            self.carry_out(self.followed.feed.due(self._monotonic()))

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
            self._tails.ended(self.series, "the store cannot be written")
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
        self._tails.ended(self.series, "a defect, see the log")
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
            await self._tails.read(followed, fetch, errand, self.carry_out)
        except UpstreamError as error:
            self._tails.ended(series, str(error))
            if (more := self._tails.log_limit.allow(series.market, self._monotonic())) is not None:
                log.warning(
                    "series.history_failed", "history cannot be read", series=series, suppressed=more, error=error
                )
            self.carry_out(followed.history_failed(error.status, self._monotonic()))
        except StoreError as error:
            self._tails.ended(series, str(error))
            self._begin_again()
        else:
            self._tails.ended(series)
            self.carry_out(followed.history_ended(self._monotonic()))


def head_of(series: SeriesId, stored: Span | None) -> int | None:
    """The stored head; None when nothing is stored."""
    return None if stored is None else series.timeframe.shift(stored.end, -1)

"""CcxtConnection: live candles of some series, by streams where ccxt has them, by polls elsewhere.

A push shows the forming candle. A candle is published as closed when REST has shown it some time after its end, because
the last push of a stream may differ from the candle that the exchange keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from klinesync.core.candle import Candle
from klinesync.core.errors import WRONG_REQUEST, BadCandle, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt.client import Abilities
from klinesync.exchanges.ccxt.rest import CcxtRest
from klinesync.exchanges.ccxt.rows import (
    LIVE_BACK,
    LiveCandles,
    Page,
    Row,
)
from klinesync.exchanges.exchange import (
    ConnectionStatus,
    Errand,
    KlineEvent,
    StreamCallbacks,
    StreamCounts,
    Urgency,
)
from klinesync.runtime.bulkheads import Part
from klinesync.runtime.log_events import Log, LogEvent
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Most series of one connection, which is only a group of series here.
SERIES_PER_CONNECTION = 200
# Traded candles that REST shows while a stream pushes nothing, after which the series is polled.
SILENT_CANDLES = 2
# Candles before the open one that are requested when a series starts without a row, to see since when it is quiet.
QUIET_BACK = 99
SILENT_REASON = "the stream brings nothing new, while REST shows candles with trades"
# Shortest time between two log lines about a series that is not available, in seconds: this rarely changes.
REFUSAL_LOG_EVERY_S = 3600.0
# Shortest time between two log lines about one series, in seconds.
LOG_EVERY_S = 60.0


class _StreamFailed(Exception):
    """A stream failed: its handshake was refused, or its connection was cut. The message says why."""


class CcxtConnection:
    """Live candles of some series of one market, each followed by a task of its own."""

    def __init__(self, source: CcxtRest, market: str, callbacks: StreamCallbacks, counts: StreamCounts) -> None:
        self._source = source
        self._timings = source.timings
        self._counts = counts
        self._market = market
        self._clock = source.clocks[market]
        self._callbacks = callbacks
        self._wanted: dict[SeriesId, None] = {}
        self._tasks: dict[SeriesId, asyncio.Task[None]] = {}
        self._restart: set[SeriesId] = set()
        self._attached: set[SeriesId] = set()
        self._live: dict[SeriesId, LiveCandles] = {}
        self._changed = asyncio.Event()
        self._log_limit = LogLimit(LOG_EVERY_S)
        self._refusal_log_limit = LogLimit(REFUSAL_LOG_EVERY_S)
        self._order_ms = 0
        self.reconnects = 0

    @property
    def status(self) -> ConnectionStatus:
        """The state and counters; connected while at least one series is attached."""
        return ConnectionStatus(
            self._source.name,
            self._market,
            len(self._wanted),
            bool(self._attached),
            self.reconnects,
            0,
            self._counts.quarantined,
        )

    @property
    def room(self) -> int:
        """The number of further series that fit."""
        return SERIES_PER_CONNECTION - len(self._wanted)

    @property
    def idle(self) -> bool:
        """Whether no series is wanted."""
        return not self._wanted

    def want(self, series: SeriesId) -> None:
        """Follow the series from now on."""
        self._wanted[series] = None
        self._changed.set()

    def unwant(self, series: SeriesId) -> None:
        """Stop following the series."""
        self._wanted.pop(series, None)
        self._live.pop(series, None)
        self._changed.set()

    def renew(self, series: SeriesId) -> None:
        """Restart the series."""
        self._restart.add(series)
        self._changed.set()

    def reconnect(self) -> None:
        """Restart all series."""
        self._restart.update(self._wanted)
        self._count_reconnect()
        self._changed.set()

    async def run(self) -> None:
        """Follow the wanted series until cancelled."""
        self._tasks.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                restart, self._restart = self._restart, set()
                ended = [series for series in self._tasks if series not in self._wanted or series in restart]
                for one in ended:
                    self._tasks.pop(one).cancel()
                for one in self._wanted:
                    if one not in self._tasks:
                        self._tasks[one] = self._source.bulkheads.begin(
                            group, partial(self._carry, one), part=Part.CONNECTION, name=f"live {one}", restart=True
                        )
                await self._changed.wait()
                self._changed.clear()

    async def _carry(self, series: SeriesId) -> None:
        failures = 0
        while True:
            began_s, reason = self._source.monotonic(), None
            try:
                await self._follow(series)
            except UpstreamError as error:
                reason = str(error)
                self._say_unfollowed(series, error)
            finally:
                if series in self._attached:
                    self._attached.discard(series)
                    self._callbacks.lost([series])
            if reason is not None:
                self._callbacks.failing([series], reason)
            self._count_reconnect()
            failures = 0 if self._source.monotonic() - began_s > self._timings.begin_again.most_s else failures + 1
            await asyncio.sleep(self._timings.begin_again.delay_s(failures, self._source.rng))

    def _say_unfollowed(self, series: SeriesId, error: UpstreamError) -> None:
        if error.status != WRONG_REQUEST:
            self._log(series.market, "series.not_followed", "it cannot be followed", series=series, error=error)
        elif self._refusal_log_limit.allow((series, str(error)), self._source.monotonic()) is not None:
            log.warning("series.not_followed", "it cannot be followed", series=series, error=error)

    async def _follow(self, series: SeriesId) -> None:
        """Raises `UpstreamError`; does not return."""
        source = self._source
        can = await source.abilities()
        if self._clock.rest_ms is None:
            await source.now_ms(series.market)
        # Kept over a restart, because a published candle may have changed since.
        live = self._live.setdefault(series, LiveCandles(series.timeframe, source.margin))
        asked_ms = self._now_ms()
        page = await self._ask(series, live, Urgency.SWEEP)
        if live.newest_final is None and page.newest is None:  # quiet: find the last traded candle
            page = await self._ask(series, live, Urgency.SWEEP, back=QUIET_BACK)
            page = replace(page, candles=page.candles[-LIVE_BACK:])
        self._attached.add(series)
        self._callbacks.attached(series)
        news = self._take(series, live, page, asked_ms)
        confirms = any(closed for _, closed in news)
        if not can.watch:
            await self._poll(series, live, can, float("inf"), confirms=confirms)
        failures = 0
        while True:
            began_s = source.monotonic()
            try:
                await self._watch(series, live, can, confirms=confirms)
                reason, pause_s = SILENT_REASON, self._timings.silent_pause_s
            except _StreamFailed as failed:
                failures = 0 if source.monotonic() - began_s > self._timings.begin_again.most_s else failures + 1
                reason, pause_s = str(failed), self._timings.begin_again.delay_s(failures, source.rng)
            self._log("stream", "stream.polled", f"REST is polled in place of its stream: {reason}", series=series)
            self._callbacks.stands_in(series, reason)
            confirms = await self._poll(series, live, can, source.monotonic() + pause_s)

    async def _poll(
        self, series: SeriesId, live: LiveCandles, can: Abilities, until_s: float, *, confirms: bool = False
    ) -> bool:
        """Poll REST. Raises `UpstreamError`.

        series: the series.
        live: its candles.
        can: the features of the exchange.
        until_s: end of the polling, monotonic seconds.
        confirms: whether a candle was just published as closed, which the venue may still change.

        Returns `confirms` for the last poll.
        """
        source = self._source
        source.polled += 1
        try:
            while source.monotonic() < until_s:
                pause_s, due_s = source.pause_s(series, can, confirms=confirms), self._due_s(live)
                await asyncio.sleep(min(pause_s, max(due_s, self._timings.poll_again_s)) if due_s > 0.0 else pause_s)
                before = live.newest_final
                await self._look(series, live)
                confirms = live.newest_final != before
        finally:
            source.polled -= 1
        return confirms

    async def _watch(self, series: SeriesId, live: LiveCandles, can: Abilities, *, confirms: bool) -> None:
        """Take the pushes of the stream, and request due candles from REST. Returns when REST shows new candles with
        trades and the stream pushes nothing new. Raises `UpstreamError` for failures of REST, `_StreamFailed` for those
        of the stream.

        series: the series.
        live: its candles.
        can: the features of the exchange.
        confirms: whether a candle was just published as closed, which the venue may still change.
        """
        source, silent, asked_s = self._source, 0, float("-inf")
        looked_s = source.monotonic()
        confirm_s = source.monotonic() + self._timings.confirm_s if confirms else None
        pushes: asyncio.Task[list[Row]] | None = None
        subscribed = True
        try:
            while silent < SILENT_CANDLES:
                if pushes is None:
                    pushes = asyncio.create_task(source.client.watch(series), name=f"watch {series}")
                due_s, next_s = self._due_s(live), asked_s + source.pause_s(series, can)
                now_s = source.monotonic()
                wait_s = min(due_s, self._timings.look_most_s) if due_s > 0.0 else max(0.0, next_s - now_s)
                if confirm_s is not None:
                    wait_s = min(wait_s, max(0.0, confirm_s - now_s))
                done, _ = await asyncio.wait([pushes], timeout=wait_s)
                if done:
                    try:
                        rows, pushes = pushes.result(), None
                    except UpstreamError as error:
                        subscribed = False
                        raise _StreamFailed(str(error)) from error
                    if self._take_pushed(series, live, rows):
                        silent = 0
                        self._callbacks.stands_in(series, None)
                now_s, before = source.monotonic(), live.newest_final
                confirms = confirm_s is not None and now_s >= confirm_s
                quiet = now_s - looked_s >= series.timeframe.seconds + source.margin.ms / 1000
                if confirms or quiet or (self._due_s(live) <= 0.0 and now_s >= next_s):
                    asked_s, looked_s, confirm_s = now_s, now_s, None if confirms else confirm_s
                    silent += await self._look(series, live)
                    if live.newest_final != before:  # the venue may still change the candle: confirm it
                        confirm_s = source.monotonic() + self._timings.confirm_s
        finally:
            if pushes is not None:
                pushes.cancel()
                await asyncio.wait([pushes])
            if subscribed:
                source.leave(series, can)

    async def _look(self, series: SeriesId, live: LiveCandles) -> bool:
        """Request rows and publish new candles. Returns whether a candle with trades was published as closed. Raises
        `UpstreamError`."""
        due, asked_ms = self._due_s(live) <= 0.0, self._now_ms()
        # A stamp proves the newest candle that has ended: one later row shows its end, not its values.
        page = await self._ask(series, live, Urgency.REPAIR if due else Urgency.FILL, prove=due)
        news = self._take(series, live, page, asked_ms)
        return any(closed and candle.volume for candle, closed in news)

    def _take(self, series: SeriesId, live: LiveCandles, page: Page, asked_ms: int) -> list[tuple[Candle, bool]]:
        """Publish and return the new candles of a page. `asked_ms`: the exchange's time at the request, in UTC ms."""
        news = live.take(page)
        self._publish(series, news)
        quiet = live.quiet(page, asked_ms)
        if quiet is not None:
            self._callbacks.quiet(series, quiet)
        return news

    async def _ask(
        self, series: SeriesId, live: LiveCandles, urgency: Urgency, *, prove: bool = False, back: int = LIVE_BACK
    ) -> Page:
        start = live.since(self._now_ms(), back)
        limit = await self._source.limit(series, start, None)
        errand, not_empty = Errand(urgency), live.newest_final is not None
        return await self._source.page(series, start, None, limit, errand, prove=prove, not_empty=not_empty)

    def _take_pushed(self, series: SeriesId, live: LiveCandles, rows: Sequence[Row]) -> bool:
        """Publish the candle of a push; False without news: a frozen stream repeats the same push."""
        try:
            news = live.pushed(rows, self._now_ms())
        except BadCandle as bad:
            self._counts.quarantined += 1
            self._source.quarantine(series, bad)
            return False
        self._publish(series, news)
        return bool(news)

    def _publish(self, series: SeriesId, news: Iterable[tuple[Candle, bool]]) -> None:
        """Publish new candles. ccxt's rows have no stamp of the exchange; each gets one that shows the order."""
        for candle, closed in news:
            self._order_ms = max(self._order_ms + 1, self._now_ms())
            self._counts.frames += 1
            self._callbacks.event(KlineEvent(series, candle, closed, self._order_ms, by_rest=True))

    def _now_ms(self) -> int:
        now_ms = self._clock.estimate_ms(self._source.monotonic())
        assert now_ms is not None, "the time was asked before"
        return now_ms

    def _due_s(self, live: LiveCandles) -> float:
        """Seconds until the next candle can be published as closed; negative when it is overdue."""
        now_ms = self._now_ms()
        return (live.due_ms(now_ms) - now_ms) / 1000

    def _count_reconnect(self) -> None:
        self.reconnects += 1
        self._counts.reconnects += 1

    def _log(self, key: object, event: LogEvent, sentence: str, **fields: object) -> None:
        suppressed = self._log_limit.allow(key, self._source.monotonic())
        if suppressed is not None:
            log.warning(event, sentence, **fields, suppressed=suppressed)

"""StampCheck: holds back frames with doubtful stamps until the exchange has answered a request for its time.

Two kinds of frames are held back. The stamp of the first kind differs from the known time by more than the elapsed time
explains: a clock has jumped (that of a simulated exchange, or this host slept), or the stamp is wrong. The second kind
closes a candle whose end lies clearly ahead of REST's clock, whatever its stamp says. All waiting frames share one
request for the time. A frame that the answer does not confirm is dropped; REST shows the candle once it is final.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from klinesync.core.dates import date_text
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import KlineEvent
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Most frames that wait for the answer; beyond that the oldest are dropped, and REST brings their candles.
MAX_WAITING = 10_000
# Shortest time between two requests for the time, in our seconds.
ASK_EVERY_S = 1.0
# Longest wait for the answer, in seconds: a banned REST must not stop live candles.
ASK_TIMEOUT_S = 3.0
# Shortest time between two log lines of one kind, in seconds.
LOG_EVERY_S = 10.0


class StampCheck:
    """The check of one market.

    clock: the exchange's time; stamps and answers set this clock.
    ask: requests the exchange's time.
    believe: receives a confirmed event, the present time and the arrival of the event (both monotonic seconds).
    monotonic: our clock, in seconds.
    ask_every_s: shortest time between two requests for the time.
    max_waiting: most frames that wait for the answer.

    `refused` counts frames that were dropped for their stamps, `early` closed candles that were dropped because their
    end lies ahead of REST's clock.
    """

    def __init__(
        self,
        clock: ExchangeClock,
        ask: Callable[[], Awaitable[int]],
        believe: Callable[[KlineEvent, float, float], None],
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        *,
        ask_every_s: float = ASK_EVERY_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._ask_every_s = ask_every_s
        self._monotonic = monotonic
        self._clock = clock
        self._ask = ask
        self._believe = believe
        self._waiting: deque[tuple[KlineEvent, float]] = deque(maxlen=max_waiting)  # with its arrival
        self._series: set[SeriesId] = set()  # those that have an event waiting: what follows it waits too
        self._resolving = False
        self._log_limit = LogLimit(LOG_EVERY_S)
        self.refused = 0
        self.early = 0

    def check(self, event: KlineEvent, now_s: float) -> bool:
        """Check one event. Returns False when the event waits; then `resolve` must run."""
        if event.by_rest:
            self._believe(event, now_s, now_s)
            return True
        # The clock gets each stamp, also of frames that wait behind another, because several stamps may confirm a jump.
        believed = self._clock.heard(event.event_ms, now_s)
        if believed and event.series not in self._series and not self._early(event, now_s):
            self._take(event, now_s, now_s)
            return True
        self._waiting.append((event, now_s))
        self._series.add(event.series)
        return False

    def begin(self) -> bool:
        """Whether the caller must run `resolve`; False when it is running already."""
        begun, self._resolving = self._resolving, True
        return not begun

    def abandon(self) -> None:
        """The task of `resolve` has ended, perhaps before its first step."""
        self._resolving = False

    async def resolve(self) -> None:
        """Request the exchange's time, then publish or drop each waiting frame. While the time is unknown, frames keep
        waiting."""
        try:
            await asyncio.sleep(max(0.0, self._ask_every_s - self._clock.answer_age_s(self._monotonic())))
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await self._ask()
        except (UpstreamError, TimeoutError) as error:
            if self._log_limit.allow("time", self._monotonic()) is not None:
                log.warning(
                    "exchange.time_failed",
                    "the exchange does not tell its time: %s",
                    error if str(error) else "no answer in time",
                )
        finally:
            self._resolving = False
        if self._clock.estimate_ms(self._monotonic()) is None:
            return
        waiting = list(self._waiting)
        self._waiting.clear()
        self._series.clear()
        for event, came_s in waiting:
            now_s = self._monotonic()
            if not self._clock.trusts(event.event_ms, came_s):
                self._refuse(event, now_s)
            elif self._early(event, came_s):
                self._leave(event, now_s)
            else:
                self._take(event, now_s, came_s)

    def _take(self, event: KlineEvent, now_s: float, came_s: float) -> None:
        if not event.closed:
            self._clock.formed(event.event_ms, event.series.timeframe.next(event.candle.time) * 1000)
        self._believe(event, now_s, came_s)

    def _early(self, event: KlineEvent, came_s: float) -> bool:
        """Whether the event, which came at `came_s`, closed a candle clearly before its end."""
        if not event.closed:
            return False
        return self._clock.is_ahead(event.series.timeframe.next(event.candle.time) * 1000, came_s)

    def _leave(self, event: KlineEvent, now_s: float) -> None:
        self.early += 1
        suppressed = self._log_limit.allow("early", now_s)
        if suppressed is not None:
            log.warning(
                "stream.closed_early",
                "a frame closes the candle of %s before its end by the exchange's clock; REST is asked for it",
                date_text(event.candle.time),
                series=event.series,
                suppressed=suppressed,
            )

    def _refuse(self, event: KlineEvent, now_s: float) -> None:
        self.refused += 1
        suppressed = self._log_limit.allow("future", now_s)
        if suppressed is not None:
            log.warning(
                "stream.stamp_doubted",
                "a frame is quarantined: its stamp is far from the exchange's time",
                series=event.series,
                stamp_ms=event.event_ms,
                suppressed=suppressed,
            )

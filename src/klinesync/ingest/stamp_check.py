"""StampCheck: events whose time stamps cannot be right wait until the exchange was asked what time it is.

What time it is on the exchange is learned from its stamps, and a stamp proves that candles are over. One bad frame
from the future would make every open candle look closed. So a stamp that runs ahead of the known time is doubted: a
clock may have jumped (a simulated exchange's does; our host may have slept), or the frame lies.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.runtime.clock import MAX_AHEAD_MS, ExchangeClock
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.sources import KlineEvent

log = logging.getLogger(__name__)

# Events that wait for the answer; past that the oldest are given up, and REST makes up for them.
MAX_WAITING = 10_000
# A stream that lies all the time makes us ask no more often than this.
ASK_EVERY_S = 0.2
# Live does not wait longer for the answer. It may take long where REST is banned, and live goes on then.
ASK_TIMEOUT_S = 3.0
LOG_EVERY_S = 10.0


class StampCheck:
    """The check of one market. `ask` asks the exchange's time, which `clock` learns from the answer; `believe` takes
    an event whose stamp is right. `refused` counts the others."""

    def __init__(
        self, clock: ExchangeClock, ask: Callable[[], Awaitable[int]], believe: Callable[[KlineEvent, float], None]
    ) -> None:
        self._clock = clock
        self._ask = ask
        self._believe = believe
        self._waiting: deque[tuple[KlineEvent, float]] = deque(maxlen=MAX_WAITING)  # with its arrival
        self._series: set[SeriesId] = set()  # those that have an event waiting: what follows it waits too
        self._asked_at_s = float("-inf")
        self._resolving = False
        self._log_limit = LogLimit(LOG_EVERY_S)
        self.refused = 0

    def check(self, event: KlineEvent, now_s: float) -> bool:
        """Take one event. False when it is doubted: then somebody must `resolve`."""
        if event.series not in self._series and self._clock.plausible(event.event_ms, now_s):
            self._clock.learn(event.event_ms, now_s)
            self._believe(event, now_s)
            return True
        self._waiting.append((event, now_s))
        self._series.add(event.series)
        return False

    def begin(self) -> bool:
        """Whether the caller shall see to it that `resolve` runs: nobody does yet."""
        begun, self._resolving = self._resolving, True
        return not begun

    async def resolve(self) -> None:
        """Ask the exchange, and settle what waits. When it cannot be asked, and nothing was ever known of its time,
        stamps that agree are believed; while no two do, they wait for more."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._asked_at_s + ASK_EVERY_S - loop.time()))
        self._asked_at_s = loop.time()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await self._ask()
        except (UpstreamError, TimeoutError) as error:
            if self._log_limit.allow("time", loop.time()) is not None:
                log.warning("the exchange cannot be asked for its time: %s", str(error) or "no answer in time")
        finally:
            self._resolving = False
        if self._clock.proven_ms is None and not self._learn_from_agreement():
            return
        waiting = [event for event, _ in self._waiting]
        self._waiting.clear()
        self._series.clear()
        for event in waiting:
            now_s = loop.time()
            if self._clock.plausible(event.event_ms, now_s):
                self._clock.learn(event.event_ms, now_s)
                self._believe(event, now_s)
            else:
                self._refuse(event, now_s)

    def _learn_from_agreement(self) -> bool:
        """Learn the time from those that wait, when the stamps of several are as far apart as their arrivals, or
        nearly: one alone may lie."""
        # What the exchange's clock shows when ours shows 0, by each of them.
        zeros = sorted((event.event_ms - int(came_s * 1000), event.event_ms, came_s) for event, came_s in self._waiting)
        agreeing: list[tuple[int, int, float]] = []
        first = 0
        for last, (zero_ms, _, _) in enumerate(zeros):
            while zero_ms - zeros[first][0] > MAX_AHEAD_MS:
                first += 1
            if last + 1 - first > len(agreeing):
                agreeing = zeros[first : last + 1]
        if len({stamp_ms for _, stamp_ms, _ in agreeing}) < 2:
            return False
        _, stamp_ms, came_s = agreeing[0]
        self._clock.learn(stamp_ms, came_s)
        return True

    def _refuse(self, event: KlineEvent, now_s: float) -> None:
        self.refused += 1
        suppressed = self._log_limit.allow("future", now_s)
        if suppressed is not None:
            log.warning(
                "%s: a frame is quarantined (%d more since the last): it is stamped %d, far in the future",
                event.series,
                suppressed,
                event.event_ms,
            )

"""ListingWatch: polls the exchange's lists of symbols, to find followed series that are delisted or listed again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.exchange import Exchange, Listing
from klinesync.ingest.followed import Followed
from klinesync.ingest.timings import USUAL_TIMINGS, FollowTimings
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Shortest time between two log lines about failed polls of a market, in seconds.
LOG_EVERY_S = 60.0


class ListingWatch:
    """Polls the lists of symbols. `run` is its task.

    exchange: the exchange.
    markets: names of its markets; a market without a followed series is not polled.
    followed: the followed series of a market.
    judge: takes a followed series, the listing of its symbol (None: not listed), and whether the list is a second list
        that decides.
    monotonic: monotonic seconds.
    timings: when lists are polled.
    """

    def __init__(
        self,
        exchange: Exchange,
        markets: Iterable[str],
        followed: Callable[[str], Sequence[Followed]],
        judge: Callable[[Followed, Listing | None, bool], None],
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        timings: FollowTimings = USUAL_TIMINGS,
    ) -> None:
        self._monotonic = monotonic
        self._timings = timings
        self._exchange = exchange
        self._markets = tuple(markets)
        self._followed = followed
        self._judge = judge
        self._suspected = asyncio.Event()
        # By market with delisted symbols: when a new list was last requested for them, monotonic seconds.
        self._requested_s: dict[str, float] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)

    def suspect(self) -> None:
        """Poll soon, because a symbol may be delisted, or traded again."""
        self._suspected.set()

    async def run(self) -> None:
        """Poll until cancelled; more often while a symbol is suspect or delisted."""
        while True:
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._suspected.wait()
            except TimeoutError:
                pass  # the regular poll
            self._suspected.clear()
            for market in self._markets:
                await self._poll(market)
            await asyncio.sleep(self._timings.listings_pause_s)

    def _wait_s(self) -> float:
        now_s, due = self._monotonic(), [self._timings.listings_age_s]
        for market in self._markets:
            followed = self._followed(market)
            due += [due_s for series in followed if (due_s := series.list_due_s(now_s)) is not None]
            if any(series.is_delisted for series in followed):
                due.append(max(0.0, self._delisted_due_s(market) - now_s))
        return min(due)

    def _delisted_due_s(self, market: str) -> float:
        """When a new list of a market with delisted symbols is due, monotonic seconds. A poll for another reason may
        get a cached list, and does not move this time."""
        return self._requested_s.get(market, float("-inf")) + self._timings.suspect_listings_age_s

    async def _poll(self, market: str) -> None:
        followed, now_s = self._followed(market), self._monotonic()
        if not followed:
            return
        second = [series for series in followed if series.list_due_s(now_s) == 0.0]
        delisted = any(series.is_delisted for series in followed)
        fresh = bool(second) or (delisted and now_s >= self._delisted_due_s(market))
        if not delisted:
            self._requested_s.pop(market, None)
        elif fresh:
            self._requested_s[market] = now_s
        try:
            listings = await self._exchange.listings(market, 0.0 if fresh else self._timings.suspect_listings_age_s)
        except UpstreamError as error:
            if (more := self._log_limit.allow(market, self._monotonic())) is not None:
                log.warning(
                    "symbols.failed",
                    "the market cannot be asked for its symbols",
                    market=market,
                    suppressed=more,
                    error=error,
                )
            return
        for series in followed:
            self._judge(series, listings.get(series.series.symbol), series in second)

"""ListingWatch: looks at the exchange's lists of symbols, and tells what they say of each followed series."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.exchange import Exchange, Listing
from klinesync.ingest import followed as rules
from klinesync.ingest.followed import Followed
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# How often the lists are looked at when no symbol is suspect or gone, in seconds.
LISTINGS_AGE_S = 3600.0
# Shortest time between two looks, in seconds.
LISTINGS_PAUSE_S = 5.0
# Shortest time between two log lines about lists that cannot be had, in seconds, for each market.
LOG_EVERY_S = 60.0


class ListingWatch:
    """`run` is its one task.

    exchange: the exchange.
    markets: those whose lists are looked at, as far as a series of them is followed.
    followed: the followed series of a market.
    judge: takes a followed series, its symbol as it is listed (None: it is not), and whether a first list without the
        symbol is old enough for a second one to decide.
    """

    def __init__(
        self,
        exchange: Exchange,
        markets: Iterable[str],
        followed: Callable[[str], Sequence[Followed]],
        judge: Callable[[Followed, Listing | None, bool], None],
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self._monotonic = monotonic
        self._exchange = exchange
        self._markets = tuple(markets)
        self._followed = followed
        self._judge = judge
        self._suspected = asyncio.Event()
        # When a new list was requested for the gone symbols of a market (monotonic); none for a market without any.
        self._requested_s: dict[str, float] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)

    def suspect(self) -> None:
        """Look soon: a symbol may be gone, or traded again."""
        self._suspected.set()

    async def run(self) -> None:
        """Look now and then, and soon where a symbol is suspect or gone, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._suspected.wait()
            except TimeoutError:
                pass  # it is time anyway
            self._suspected.clear()
            for market in self._markets:
                await self._look(market)
            await asyncio.sleep(LISTINGS_PAUSE_S)

    def _wait_s(self) -> float:
        now_s, due = self._monotonic(), [LISTINGS_AGE_S]
        for market in self._markets:
            followed = self._followed(market)
            due += [due_s for series in followed if (due_s := series.list_due_s(now_s)) is not None]
            if any(series.is_delisted for series in followed):
                due.append(max(0.0, self._gone_due_s(market) - now_s))
        return min(due)

    def _gone_due_s(self, market: str) -> float:
        """When a new list of a market with gone symbols is due (monotonic). A look for another reason may be content
        with an older list, and does not move this time."""
        return self._requested_s.get(market, float("-inf")) + rules.SUSPECT_LISTINGS_AGE_S

    async def _look(self, market: str) -> None:
        followed, now_s = self._followed(market), self._monotonic()
        if not followed:
            return
        second = [series for series in followed if series.list_due_s(now_s) == 0.0]
        gone = any(series.is_delisted for series in followed)
        anew = bool(second) or (gone and now_s >= self._gone_due_s(market))
        if not gone:
            self._requested_s.pop(market, None)
        elif anew:
            self._requested_s[market] = now_s
        try:
            listings = await self._exchange.listings(market, 0.0 if anew else rules.SUSPECT_LISTINGS_AGE_S)
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

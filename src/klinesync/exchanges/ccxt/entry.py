"""CcxtEntry: the exchanges that the installed ccxt has, on one thread, as an entry of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from klinesync.exchanges.ccxt.client import CcxtClient
from klinesync.exchanges.ccxt.exchange import CcxtExchange
from klinesync.exchanges.ccxt.installed import NOT_INSTALLED, Maker, ccxt_exchange, offers_exchange, offers_history
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.ccxt.timings import USUAL_CCXT, CcxtTimings
from klinesync.exchanges.registry import ExchangeContext
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.proxies import Proxies

MARKETS = ("spot", "futures")


class CcxtEntry:
    """Makes exchanges by ccxt's names.

    makers: makers of exchange objects by name, in place of ccxt's own classes: for tests, or where ccxt lacks an
        exchange.
    timings: waits and intervals of each exchange.
    proxies: the proxies of all requests; by default none.
    thread: runs the exchange objects; by default a new one.
    """

    names: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        makers: Mapping[str, Maker] | None = None,
        timings: CcxtTimings = USUAL_CCXT,
        proxies: Proxies | None = None,
        thread: CcxtThread | None = None,
    ) -> None:
        self._make: Maker = partial(ccxt_exchange, proxies=proxies)
        self._makers = makers or {}
        self._timings = timings
        self._thread = thread or CcxtThread()
        self._found: set[str] = set()  # bounded by the exchanges of ccxt

    def refusal(self, name: str) -> str | None:
        """See `ExchangeEntry`. Imports nothing."""
        if name in self._makers or name in self._found:
            return None
        offered = offers_exchange(name)
        if offered is None:
            return NOT_INSTALLED
        if not offered:
            return f"ccxt has no exchange {name}"
        if offers_history(name) is False:
            return f"ccxt has no OHLCV of {name}"
        self._found.add(name)
        return None

    def make(self, name: str, context: ExchangeContext) -> CcxtExchange:
        """See `ExchangeEntry`."""
        client = CcxtClient(
            name,
            self._thread,
            monotonic=context.clock.monotonic_s,
            make=self._makers.get(name, self._make),
            turns=self._timings.turns,
        )
        return CcxtExchange(
            client,
            clocks={market: ExchangeClock() for market in MARKETS},
            final_margin_s=context.final_margin_s,
            monotonic=context.clock.monotonic_s,
            rng=context.rng,
            timings=self._timings,
            bulkheads=context.bulkheads,
        )

    async def close(self) -> None:
        """See `ExchangeEntry`: ends the thread."""
        await self._thread.stop()

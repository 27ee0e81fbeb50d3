"""CcxtExchanges: the exchanges that the installed ccxt has, on one thread."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

from klinesync.exchanges.ccxt.client import (
    NOT_INSTALLED,
    CcxtClient,
    CcxtThread,
    Maker,
    ccxt_exchange,
    offers_exchange,
    offers_history,
)
from klinesync.exchanges.ccxt.source import POLL_LEAST_S, CcxtSource
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.proxies import Proxies


class CcxtExchanges:
    """Makes sources by ccxt's names. `makers` make exchange objects in place of ccxt's
    own classes, by name: a test's, or one that ccxt does not have. `proxies`: the proxies of their
    requests. `thread`: where their objects live, by default a thread of its own; the simulation brings another
    place."""

    def __init__(
        self,
        *,
        final_margin_s: float,
        monotonic: Callable[[], float],
        rng: random.Random,
        makers: Mapping[str, Maker] | None = None,
        poll_least_s: float = POLL_LEAST_S,
        proxies: Proxies | None = None,
        bulkheads: Bulkheads | None = None,
        thread: CcxtThread | None = None,
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._make: Maker = partial(ccxt_exchange, proxies=proxies)
        self._final_margin_s = final_margin_s
        self._monotonic = monotonic
        self._rng = rng
        self._makers = makers or {}
        self._poll_least_s = poll_least_s
        self._thread = thread or CcxtThread()
        self._found: set[str] = set()  # no more than ccxt has

    def refusal(self, name: str) -> str | None:
        """Why there is no exchange of that name; None when there is one. Imports nothing."""
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

    def source(self, name: str, clocks: Mapping[str, ExchangeClock]) -> CcxtSource:
        """A new source of that exchange."""
        client = CcxtClient(name, self._thread, monotonic=self._monotonic, make=self._makers.get(name, self._make))
        return CcxtSource(
            client,
            clocks=clocks,
            final_margin_s=self._final_margin_s,
            monotonic=self._monotonic,
            rng=self._rng,
            poll_least_s=self._poll_least_s,
            bulkheads=self._bulkheads,
        )

    async def stop(self) -> None:
        """End the thread. The sources are closed before."""
        await self._thread.stop()

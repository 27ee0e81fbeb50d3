"""Exchanges made by a test, behind the registry like any other."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import Connection, Errand, Exchange, HistoryPage, Listing, StreamCallbacks
from klinesync.exchanges.registry import ExchangeContext, ExchangeRegistry
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock
from klinesync.runtime.exchange_clock import ExchangeClock


class FakeExchange(Exchange):
    """An exchange that answers nothing: a test overrides the methods that it needs."""

    name = "binance"

    def __init__(self) -> None:
        self.clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
        self.closed = False

    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        raise NotImplementedError

    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        raise NotImplementedError

    async def refusal(self, series: SeriesId) -> str | None:
        raise NotImplementedError

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        raise NotImplementedError

    async def now_ms(self, market: str) -> int:
        raise NotImplementedError

    def contact(self, market: str) -> RestContact:
        return RestContact()

    async def close(self) -> None:
        self.closed = True


class Given:
    """An entry of the registry with one existing exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.names = frozenset({exchange.name})
        self._exchange = exchange

    def refusal(self, name: str) -> str | None:
        return None if name in self.names else f"it is {self._exchange.name}"

    def make(self, name: str, context: ExchangeContext) -> Exchange:
        return self._exchange

    async def close(self) -> None:
        """Nothing shared to close."""


def context(clock: Clock = SYSTEM_CLOCK) -> ExchangeContext:
    """The arguments with which exchanges are made."""
    return ExchangeContext(clock, random.Random(1), final_margin_s=2.0)


def registry_of(*exchanges: Exchange, clock: Clock = SYSTEM_CLOCK) -> ExchangeRegistry:
    """A registry with these exchanges alone."""
    return ExchangeRegistry([Given(exchange) for exchange in exchanges], context(clock))

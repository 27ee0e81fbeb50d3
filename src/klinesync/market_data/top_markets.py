"""TopMarkets: the most traded symbols of a market, by the quote volume of the last 24 hours.

A request for the tickers of all symbols has a high weight, so that answers are cached for some seconds. While the
exchange cannot be asked, the last answer is served, and marked as stale.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from klinesync.core.errors import Rejected, UpstreamError
from klinesync.core.series_id import is_exchange_name, names_series
from klinesync.exchanges.exchange import LISTINGS_TTL_S, Listing, Ticker
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.market_data.event_streams import EventStreams, RateLimited
from klinesync.runtime.clock import Clock
from klinesync.runtime.single_flight import SingleFlight

DEFAULT_LIMIT = 20
MAX_LIMIT = 500
# Oldest answer that is served while the exchange cannot be asked, in seconds.
STALE_MOST_S = 3600.0
# Most requests with `force` in `FORCED_PER_S` seconds. All symbols of spot weigh 80 of 6000 a minute.
FORCED_MOST = 6
FORCED_PER_S = 60.0


@dataclass(frozen=True, slots=True)
class TopLimits:
    """The limits and timings of tickers, in seconds.

    tickers_ttl_s: time to live of tickers.
    ask_timeout_s: timeout of a request to the exchange.
    failed_pause_s: cooldown after a failed request.
    streams: most open event streams.
    keep_alive_s: interval of keep-alives of a stream without changes, so that proxies keep it open.
    """

    tickers_ttl_s: float = 10.0
    ask_timeout_s: float = 10.0
    failed_pause_s: float = 5.0
    streams: int = 100
    keep_alive_s: float = 15.0


USUAL_TOP = TopLimits()


# Exchange and market.
_Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TopQuery:
    """A request for the first `limit` symbols of a market with a quote asset."""

    exchange: str
    market: str
    quote_asset: str
    limit: int

    @property
    def place(self) -> _Place:
        """The exchange and market."""
        return self.exchange, self.market


@dataclass(frozen=True, slots=True)
class TopMarket:
    """One symbol, over the last 24 hours; `last_price` and `quote_volume` in the quote asset."""

    exchange: str
    market: str
    symbol: str
    symbol_id: str
    base_asset: str
    quote_asset: str
    last_price: float
    quote_volume: float
    price_change_percent: float


@dataclass(frozen=True, slots=True)
class TopAnswer:
    """The symbols with the highest quote volume, as the exchange told at `generated_at_ms` (our clock). `cached`: from
    the cache; `stale`: from the cache although expired, because the exchange cannot be reached."""

    exchange: str
    market: str
    quote_asset: str
    limit: int
    generated_at_ms: int
    cached: bool
    stale: bool
    items: tuple[TopMarket, ...]


def ranked(
    exchange: str, market: str, listings: Mapping[str, Listing], tickers: Sequence[Ticker]
) -> dict[str, tuple[TopMarket, ...]]:
    """The traded symbols by quote asset, the greatest quote volume first. Symbols without a ticker, and symbols that no
    series id can name, are left out.

    exchange, market: where the symbols are traded.
    listings: of all symbols.
    tickers: of all symbols.
    """
    tickers_by_id = {ticker.symbol_id: ticker for ticker in tickers}
    by_quote: dict[str, list[TopMarket]] = {}
    for listing in listings.values():
        ticker = tickers_by_id.get(listing.symbol_id)
        if ticker is not None and listing.trading and names_series(exchange, market, listing.symbol):
            by_quote.setdefault(listing.quote_asset, []).append(
                TopMarket(
                    exchange,
                    market,
                    listing.symbol,
                    listing.symbol_id,
                    listing.base_asset,
                    listing.quote_asset,
                    ticker.last_price,
                    ticker.quote_volume,
                    ticker.price_change_percent,
                )
            )
    return {quote: tuple(sorted(items, key=_rank)) for quote, items in by_quote.items()}


def _rank(item: TopMarket) -> tuple[float, str]:
    return -item.quote_volume, item.symbol


@dataclass(frozen=True, slots=True)
class _Board:
    """The ranked tickers of a market. `at_s`: monotonic seconds of the answer; `at_ms`: the same by the wall clock."""

    at_s: float
    at_ms: int
    by_quote: Mapping[str, tuple[TopMarket, ...]]


class TopMarkets:
    """Requests, caches and streams the most traded symbols.

    registry: the exchanges.
    clock: of this machine.
    limits: of requests and streams.
    """

    def __init__(self, registry: ExchangeRegistry, *, clock: Clock, limits: TopLimits = USUAL_TOP) -> None:
        self._limits = limits
        self._registry = registry
        self._clock = clock
        # By exchange and market, so at most as many as the registry has.
        self._boards: dict[_Place, _Board] = {}
        self._failures: dict[_Place, tuple[float, UpstreamError]] = {}
        self._flights: dict[_Place, SingleFlight[_Board]] = {}
        self._asking: set[asyncio.Timeout] = set()
        self._forced_at_s: deque[float] = deque(maxlen=FORCED_MOST)
        self.streams = EventStreams("top markets", limits.streams, limits.keep_alive_s)

    def check(self, query: TopQuery) -> None:
        """Raises `Rejected` for an unknown exchange or market."""
        if not is_exchange_name(query.exchange):
            raise Rejected(f"exchange {query.exchange[:40]!r} is not known: it is no name of an exchange")
        if (why := self._registry.refusal(query.exchange)) is not None:
            raise Rejected(f"exchange {query.exchange[:40]!r} is not known: {why}")
        markets = self._registry.exchange(query.exchange).clocks
        if query.market not in markets:
            raise Rejected(f"market {query.market[:40]!r} is not known; use one of {' '.join(markets)}")

    async def top(self, query: TopQuery, *, force: bool = False) -> TopAnswer:
        """The cached answer, or a new answer when it has expired, or a stale answer while the exchange cannot be asked.

        query: the request.
        force: request a new answer in any case; False by default.

        Raises `Rejected`, `RateLimited` (of `force`), and `UpstreamError` when there is no answer.
        """
        self.check(query)
        if force:
            self._count_forced()
        else:
            board = self._cached(query.place, self._limits.tickers_ttl_s)
            if board is not None:
                return _answer(query, board, cached=True, stale=False)
        try:
            flight = self._flights.setdefault(query.place, SingleFlight())
            board = await flight.get(partial(self._ask, query.place, force=force))
        except UpstreamError:
            board = self._cached(query.place, STALE_MOST_S)
            if board is None:
                raise
            return _answer(query, board, cached=True, stale=True)
        return _answer(query, board, cached=False, stale=False)

    async def follow(
        self, query: TopQuery, interval_s: float, max_events: int | None = None
    ) -> AsyncGenerator[TopAnswer | UpstreamError | None, None]:
        """A stream of answers.

        query: the request.
        interval_s: poll interval in seconds.
        max_events: answers after which the stream ends; None (the default): no limit.

        Yields an answer when its items have changed, an error when requests begin to fail, and None as a keep-alive.
        Ends with `end`. Raises `Rejected`.
        """
        items: tuple[TopMarket, ...] | None = None
        trouble: UpstreamError | None = None
        events = 0
        while not self.streams.ended:
            before = trouble
            try:
                answer = await self.top(query)
            except UpstreamError as error:
                trouble = error
            else:
                trouble = self._failures.get(query.place, (0.0, None))[1] if answer.stale else None
                if answer.items != items:
                    items = answer.items
                    yield answer
                    events += 1
                    if events == max_events:
                        return
            if trouble is not None and before is None and not self.streams.ended:
                yield trouble
            until_s = self._clock.monotonic_s() + interval_s
            while (pause_s := until_s - self._clock.monotonic_s()) > 0 and not self.streams.ended:
                await self.streams.pause(min(pause_s, self._limits.keep_alive_s))
                if pause_s > self._limits.keep_alive_s and not self.streams.ended:
                    yield None

    def end(self) -> None:
        """End every stream and every request in flight, because the service stops."""
        self.streams.end()
        for timeout in self._asking:
            if not timeout.expired():
                timeout.reschedule(0.0)

    def _cached(self, place: _Place, most_s: float) -> _Board | None:
        board = self._boards.get(place)
        return None if board is None or self._clock.monotonic_s() - board.at_s > most_s else board

    async def _ask(self, place: _Place, *, force: bool) -> _Board:
        failed_at_s, failure = self._failures.get(place, (float("-inf"), None))
        age_s = self._clock.monotonic_s() - failed_at_s
        if failure is not None and not force and age_s < self._limits.failed_pause_s:
            raise UpstreamError(str(failure), failure.status, failure.retry_after_s)
        try:
            listings, tickers = await self._ask_in_time(*place)
        except UpstreamError as error:
            self._failures[place] = (self._clock.monotonic_s(), error)
            raise
        by_quote = ranked(*place, listings, tickers)
        board = self._boards[place] = _Board(self._clock.monotonic_s(), int(self._clock.wall_s() * 1000), by_quote)
        self._failures.pop(place, None)
        return board

    async def _ask_in_time(self, name: str, market: str) -> tuple[Mapping[str, Listing], Sequence[Ticker]]:
        timeout_s = self._limits.ask_timeout_s
        timeout = asyncio.timeout(0.0 if self.streams.ended else timeout_s)
        try:
            async with timeout:
                self._asking.add(timeout)
                exchange = self._registry.exchange(name)
                return await exchange.listings(market, LISTINGS_TTL_S), await exchange.tickers(market)
        except TimeoutError:
            reason = "the service stops" if self.streams.ended else f"no answer within {timeout_s:g} s"
            raise UpstreamError(f"{name} {market} cannot be asked for its tickers: {reason}") from None
        finally:
            self._asking.discard(timeout)

    def _count_forced(self) -> None:
        now_s, forced = self._clock.monotonic_s(), self._forced_at_s
        if len(forced) == FORCED_MOST and now_s - forced[0] < FORCED_PER_S:
            raise RateLimited(
                f"force is for {FORCED_MOST} requests in {FORCED_PER_S:g} s; without it tickers are at most "
                f"{self._limits.tickers_ttl_s:g} s old",
                FORCED_PER_S - (now_s - forced[0]),
            )
        forced.append(now_s)


def _answer(query: TopQuery, board: _Board, *, cached: bool, stale: bool) -> TopAnswer:
    items = board.by_quote.get(query.quote_asset, ())[: query.limit]
    return TopAnswer(query.exchange, query.market, query.quote_asset, query.limit, board.at_ms, cached, stale, items)

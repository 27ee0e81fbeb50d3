"""BinanceExchange: Binance's REST and stream clients as one Exchange."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping, Sequence

from klinesync.core.errors import NotListed
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import EMPTINESS, BinanceRest
from klinesync.exchanges.binance.streams import PATHS, STREAMS_PER_CONNECTION, BinanceConnection
from klinesync.exchanges.binance.timings import USUAL_STREAMS, StreamTimings
from klinesync.exchanges.comeback import Comeback
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import (
    Errand,
    Exchange,
    HistoryPage,
    Listing,
    RestStatus,
    StreamCallbacks,
    StreamCounts,
    Ticker,
)
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http


class BinanceExchange(Exchange):
    """Spot and USD-M futures.

    http: the HTTP client of streams; closed with the exchange.
    rest: the REST client of both markets.
    ws_urls: the address of the streams of each market, without path.
    rng: jitter.
    clocks: the exchange's time by market; `rest` sets the same clocks.
    streams_most: most streams of one connection.
    bulkheads: contain defects.
    monotonic: our clock, in seconds.
    timings: waits and intervals of stream connections.
    """

    name = EXCHANGE
    emptiness = EMPTINESS
    one_list_decides = True

    def __init__(
        self,
        http: Http,
        rest: BinanceRest,
        ws_urls: Mapping[str, str],
        rng: random.Random,
        *,
        clocks: Mapping[str, ExchangeClock],
        streams_most: int = STREAMS_PER_CONNECTION,
        bulkheads: Bulkheads | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        timings: StreamTimings = USUAL_STREAMS,
    ) -> None:
        self._monotonic = monotonic
        self._timings = timings
        self._bulkheads = bulkheads
        self._http = http
        self._rest = rest
        self._ws_urls = ws_urls
        self._rng = rng
        self.clocks = clocks
        self._streams_most = streams_most
        self._comebacks = {market: Comeback(rng) for market in ws_urls}
        self._counts = {market: StreamCounts() for market in ws_urls}

    def timeframe_refusal(self, timeframe: Timeframe) -> str | None:
        """See `Exchange`. Binance has the fifteen timeframes of exchanges, on both markets."""
        if timeframe.code in Timeframe.known:
            return None
        return f"{EXCHANGE} has no {timeframe} candles; it has {' '.join(Timeframe.known)}"

    def streams(self) -> Mapping[str, StreamCounts]:
        """See `Exchange`."""
        return self._counts

    def rest(self) -> Mapping[str, RestStatus]:
        """See `Exchange`."""
        return self._rest.status()

    async def close(self) -> None:
        """See `Exchange`."""
        await self._http.close()

    def connection(self, market: str, callbacks: StreamCallbacks) -> BinanceConnection:
        """A new connection of that market."""
        return BinanceConnection(
            self._http,
            self._ws_urls[market] + PATHS[market],
            callbacks,
            rng=self._rng,
            symbols=self._rest,
            market=market,
            clock=self.clocks[market],
            counts=self._counts[market],
            comeback=self._comebacks[market],
            access=self._rest.access(market),
            streams_most=self._streams_most,
            bulkheads=self._bulkheads,
            monotonic=self._monotonic,
            timings=self._timings,
        )

    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles from `start` on, page by page. Raises `UpstreamError`."""
        return self._rest.history(series, start, errand, end)

    async def now_ms(self, market: str) -> int:
        """The exchange's time, requested now, in UTC ms. Raises `UpstreamError`."""
        return await self._rest.now_ms(market)

    def contact(self, market: str) -> RestContact:
        """The newest contact with that market over REST."""
        return self._rest.contact(market)

    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series is not available; None when the exchange lists its symbol. Raises `UpstreamError`."""
        return await self._rest.refusal(series)

    def left_out(self) -> Mapping[tuple[str, str], int]:
        """Items of answers that could not be used, by market and kind."""
        return self._rest.left_out

    async def symbol_id(self, series: SeriesId) -> str | None:
        """The exchange's symbol of the series; None when it is not listed. Raises `UpstreamError`."""
        try:
            return await self._rest.symbol_id(series)
        except NotListed:
            return None

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """The listed symbols of that market by our name. Raises `UpstreamError`."""
        return await self._rest.listings(market, max_age_s)

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol of that market. Raises `UpstreamError`."""
        return await self._rest.tickers(market)

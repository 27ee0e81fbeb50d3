"""BinanceEntry: Binance as an entry of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import aiohttp

from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.exchange import BinanceExchange
from klinesync.exchanges.binance.requests import TIMEOUT_S, MarketRoutes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.binance.streams import STREAMS_PER_CONNECTION
from klinesync.exchanges.binance.timings import USUAL_REST, USUAL_STREAMS, RestTimings, StreamTimings
from klinesync.exchanges.binance.weight import SHARE, WEIGHTS, MarketWeights
from klinesync.exchanges.registry import ExchangeContext
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http, HttpClient
from klinesync.runtime.proxies import Proxies


class BinanceEntry:
    """Makes `binance`.

    routes: the REST address of each market.
    ws_urls: the address of the streams of each market, without path.
    share: largest share of an address's weight limit that the service uses.
    streams_most: most streams of one connection.
    http: makes the client of all requests; by default an `HttpClient` with `proxies`.
    proxies: the proxies of all requests; by default none.
    streams, rest: timings of stream connections and of requests.
    weights: weight limit of each market, and the weights of its requests.
    """

    names = frozenset({EXCHANGE})

    def __init__(
        self,
        routes: Mapping[str, MarketRoutes],
        ws_urls: Mapping[str, str],
        *,
        share: float = SHARE,
        streams_most: int = STREAMS_PER_CONNECTION,
        http: Callable[[], Http] | None = None,
        proxies: Proxies | None = None,
        streams: StreamTimings = USUAL_STREAMS,
        rest: RestTimings = USUAL_REST,
        weights: Mapping[str, MarketWeights] = WEIGHTS,
    ) -> None:
        self._streams = streams
        self._rest = rest
        self._weights = weights
        self._routes = routes
        self._ws_urls = ws_urls
        self._share = share
        self._streams_most = streams_most
        self._http = http or (lambda: HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), proxies))

    def refusal(self, name: str) -> str | None:
        """See `ExchangeEntry`."""
        return None if name in self.names else f"{name} is not {EXCHANGE}"

    def make(self, name: str, context: ExchangeContext) -> BinanceExchange:
        """See `ExchangeEntry`."""
        http, clocks = self._http(), {market: ExchangeClock() for market in self._routes}
        rest = BinanceRest(
            http,
            self._routes,
            clocks,
            final_margin_s=context.final_margin_s,
            monotonic=context.clock.monotonic_s,
            share=self._share,
            rng=context.rng,
            shelf=context.shelf(name),
            timings=self._rest,
            weights=self._weights,
        )
        return BinanceExchange(
            http,
            rest,
            self._ws_urls,
            context.rng,
            clocks=clocks,
            streams_most=self._streams_most,
            bulkheads=context.bulkheads,
            monotonic=context.clock.monotonic_s,
            timings=self._streams,
        )

    async def close(self) -> None:
        """See `ExchangeEntry`: nothing is shared between exchanges."""

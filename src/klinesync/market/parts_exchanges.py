"""The parts that speak with exchanges: Binance's client, those of ccxt, and the time that they tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import aiohttp

from klinesync.core.errors import BadFlag
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import TIMEOUT_S, BinanceRest, market_routes
from klinesync.exchanges.binance.source import BinanceSource
from klinesync.exchanges.ccxt.offers import CcxtExchanges
from klinesync.exchanges.ccxt.venues import VENUES, excess
from klinesync.exchanges.exchange import ListingShelf
from klinesync.ingest.exchanges import Exchanges, ListedSource, Offers
from klinesync.market.settings import ExchangeSettings
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.market_data.listings import StoredListings
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import HttpClient
from klinesync.storage.database import Database


@dataclass(frozen=True, slots=True)
class ExchangeParts:
    """`resources` are entered before anything runs; `source`: of our own exchange."""

    resources: tuple[AbstractAsyncContextManager[object], ...]
    source: ListedSource
    exchanges: Exchanges
    time: ExchangeTime
    markets: tuple[str, ...]


def build_exchanges(
    settings: ExchangeSettings,
    around: Surroundings,
    database: Database,
    source: ListedSource | None = None,
    others: Offers | None = None,
) -> ExchangeParts:
    """The exchanges, of which nobody supervises series yet.

    settings: addresses and limits.
    around: clock, jitter, bulkheads.
    database: keeps the lists of symbols.
    source: of Binance; None: made by the settings.
    others: the exchanges without a client of our own; None: those of ccxt.
    """
    clocks = {market: ExchangeClock() for market in settings.rest_urls}
    resources: list[AbstractAsyncContextManager[object]] = []
    if source is None:
        session = HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), settings.proxies)
        resources.append(session)
        rest = binance_rest(settings, around, session, clocks, StoredListings(database, EXCHANGE))
        source = BinanceSource(
            session,
            rest,
            settings.ws_urls,
            around.rng,
            clocks=clocks,
            streams_most=settings.streams_per_connection,
            bulkheads=around.bulkheads,
        )
    exchanges = Exchanges(
        EXCHANGE,
        source,
        clocks,
        others or ccxt_exchanges(settings, around),
        monotonic=around.clock.monotonic_s,
        bulkheads=around.bulkheads,
    )
    time = ExchangeTime(exchanges.clocks, around.clock, EXCHANGE)
    return ExchangeParts(tuple(resources), source, exchanges, time, tuple(clocks))


def binance_rest(
    settings: ExchangeSettings,
    around: Surroundings,
    session: HttpClient,
    clocks: Mapping[str, ExchangeClock],
    listings: ListingShelf | None,
) -> BinanceRest:
    """The REST of Binance.

    settings: addresses and limits.
    around: clock and jitter.
    session: sends the requests; entered and left by the caller.
    clocks: by market; answers teach them the exchange's time.
    listings: where lists of symbols are kept; None: nowhere.
    """
    return BinanceRest(
        session,
        market_routes(settings.rest_urls["spot"], settings.rest_urls["futures"]),
        clocks,
        final_margin_s=settings.final_margin_s,
        monotonic=around.clock.monotonic_s,
        share=settings.weight_share,
        rng=around.rng,
        shelf=listings,
    )


def ccxt_exchanges(settings: ExchangeSettings, around: Surroundings) -> CcxtExchanges:
    """The exchanges of the installed ccxt."""
    return CcxtExchanges(
        final_margin_s=settings.final_margin_s,
        monotonic=around.clock.monotonic_s,
        rng=around.rng,
        proxies=settings.proxies,
        bulkheads=around.bulkheads,
    )


def check_whitelist(exchanges: Exchanges, listed: Iterable[SeriesId], followed: Iterable[SeriesId]) -> None:
    """Raises `BadFlag` for series of an exchange that there is not, and for more series than an exchange has room for.

    exchanges: say which there are.
    listed: the whitelist.
    followed: base series of it, as far as they are followed.
    """
    for series in listed:
        if series.exchange != EXCHANGE and (why := exchanges.refusal(series)) is not None:
            raise BadFlag("whitelist", f"{series}: {why}")
    if too_many := excess(VENUES, dict.fromkeys(followed)):
        raise BadFlag("whitelist", "; ".join(too_many))

"""The exchange that a command reads history and listings from."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp

from klinesync.core.errors import UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import TIMEOUT_S, BinanceRest
from klinesync.exchanges.ccxt.source import CcxtSource
from klinesync.exchanges.exchange import ListingShelf
from klinesync.market.parts_exchanges import binance_rest, ccxt_exchanges
from klinesync.market.settings import exchange_settings
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags
from klinesync.runtime.http_client import HttpClient


@contextlib.asynccontextmanager
async def exchange_of(
    flags: RuntimeFlags,
    series: SeriesId,
    clocks: Mapping[str, ExchangeClock],
    listings: ListingShelf | None = None,
) -> AsyncIterator[BinanceRest | CcxtSource]:
    """The REST of the exchange of `series`.

    flags: the configuration of the command.
    series: only its exchange counts.
    clocks: by market; answers teach them the exchange's time.
    listings: where Binance's lists of symbols are kept; None: nowhere.

    Raises `UnknownSeries` when there is no such exchange.
    """
    if series.exchange != EXCHANGE:
        others = ccxt_exchanges(exchange_settings(flags), Surroundings())
        if (why := others.refusal(series.exchange)) is not None:
            raise UnknownSeries(str(series), why)
        source = others.source(series.exchange, clocks)
        try:
            yield source
        finally:
            await source.close()
            await others.stop()
        return
    async with open_binance(flags, clocks, listings) as rest:
        yield rest


@contextlib.asynccontextmanager
async def open_binance(
    flags: RuntimeFlags, clocks: Mapping[str, ExchangeClock], listings: ListingShelf | None = None
) -> AsyncIterator[BinanceRest]:
    """The REST of Binance; the arguments are those of `exchange_of`."""
    settings = exchange_settings(flags)
    async with HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), settings.proxies) as session:
        yield binance_rest(settings, Surroundings(), session, clocks, listings)

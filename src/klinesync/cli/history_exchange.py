"""The exchange that a command reads history and listings from."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping

import aiohttp

from klinesync.core.errors import UnknownSeries
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import EXCHANGE
from klinesync.exchanges.binance.rest import TIMEOUT_S, BinanceRest, market_routes
from klinesync.exchanges.ccxt.offers import CcxtExchanges
from klinesync.exchanges.ccxt.source import CcxtSource
from klinesync.exchanges.exchange import ListingShelf
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.flags import RuntimeFlags, proxies_of
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
        others = CcxtExchanges(
            final_margin_s=flags.rest_final_margin_s,
            monotonic=asyncio.get_running_loop().time,
            rng=random.Random(),  # noqa: S311  # jitter, not a secret
            proxies=proxies_of(flags),
        )
        if (why := others.refusal(series.exchange)) is not None:
            raise UnknownSeries(str(series), why)
        source = others.source(series.exchange, clocks)
        try:
            yield source
        finally:
            await source.close()
            await others.stop()
        return
    async with binance_rest(flags, clocks, listings) as rest:
        yield rest


@contextlib.asynccontextmanager
async def binance_rest(
    flags: RuntimeFlags, clocks: Mapping[str, ExchangeClock], listings: ListingShelf | None = None
) -> AsyncIterator[BinanceRest]:
    """The REST of Binance; the arguments are those of `exchange_of`."""
    async with HttpClient(aiohttp.ClientTimeout(total=TIMEOUT_S), proxies_of(flags)) as session:
        yield BinanceRest(
            session,
            market_routes(flags.binance_spot_rest_url, flags.binance_futures_rest_url),
            clocks,
            final_margin_s=flags.rest_final_margin_s,
            monotonic=asyncio.get_running_loop().time,
            share=flags.binance_rest_weight_share,
            rng=random.Random(),  # noqa: S311  # jitter, not a secret
            shelf=listings,
        )

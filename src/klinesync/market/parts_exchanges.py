"""The parts that talk to exchanges: registry, supervisors and exchange time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from klinesync.core.errors import BadFlag
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.entry import BinanceEntry
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.ccxt.entry import CcxtEntry
from klinesync.exchanges.registry import ExchangeContext, ExchangeEntry, ExchangeRegistry, load_entries
from klinesync.ingest.supervisors import Supervisors
from klinesync.market.settings import ExchangeSettings
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.exchange_time import ExchangeTime
from klinesync.market_data.listings import StoredListings
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.storage.database import Database


@dataclass(frozen=True, slots=True)
class ExchangeParts:
    """`supervisors`: follow series once they are bound."""

    registry: ExchangeRegistry
    supervisors: Supervisors
    time: ExchangeTime


def build_exchanges(
    settings: ExchangeSettings, around: Surroundings, database: Database, entries: Sequence[ExchangeEntry] = ()
) -> ExchangeParts:
    """The exchanges, with supervisors that are not bound yet.

    settings: addresses and limits.
    around: clock, jitter, bulkheads.
    database: stores the lists of symbols.
    entries: exchanges that take precedence over those of the settings; none by default.
    """
    registry = exchange_registry(settings, around, database, entries)
    supervisors = Supervisors(registry, around.bulkheads)
    return ExchangeParts(registry, supervisors, ExchangeTime(registry.clocks, around.clock, around.tuning.clock_age_s))


def exchange_registry(
    settings: ExchangeSettings,
    around: Surroundings,
    database: Database | None,
    entries: Sequence[ExchangeEntry] = (),
) -> ExchangeRegistry:
    """The exchanges of the settings and of installed packages. Raises `BadExchange`.

    settings, around, entries: see `build_exchanges`.
    database: stores the lists of symbols; None: they are not stored.
    """
    binance = BinanceEntry(
        market_routes(settings.rest_urls["spot"], settings.rest_urls["futures"]),
        settings.ws_urls,
        share=settings.weight_share,
        streams_most=settings.streams_per_connection,
        proxies=settings.proxies,
        streams=around.tuning.binance_streams,
        rest=around.tuning.binance_rest,
    )
    context = ExchangeContext(around.clock, around.rng, settings.final_margin_s, around.bulkheads)
    if database is not None:
        context = replace(context, shelf=partial(StoredListings, database))
    return ExchangeRegistry([*entries, binance, *load_entries(), CcxtEntry(proxies=settings.proxies)], context)


def check_whitelist(
    registry: ExchangeRegistry, derived: DerivedStep, listed: Iterable[SeriesId], followed: Iterable[SeriesId]
) -> None:
    """Raises `BadFlag` for series of an exchange that there is not, of a timeframe that an exchange lacks and that is
    not derived, and for more series than an exchange has room for.

    registry: the exchanges.
    derived: the derived timeframes.
    listed: the whitelist.
    followed: base series of the whitelist that are followed.
    """
    for series in listed:
        if (why := registry.series_refusal(derived.base_of(series))) is not None:
            computed = registry.covers(series.with_timeframe(derived.base))
            raise BadFlag("whitelist", f"{series}: {why}{derived.hint(series) if computed else ''}")
    if too_many := registry.excess(dict.fromkeys(followed)):
        raise BadFlag("whitelist", "; ".join(too_many))

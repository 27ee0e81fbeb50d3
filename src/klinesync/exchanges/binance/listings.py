"""Listings: the lists of symbols of Binance's markets, cached and kept over a restart, and the names of symbols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from klinesync.core.errors import NotListed, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import (
    EXCHANGE,
    decode_listings,
)
from klinesync.exchanges.binance.requests import Requests
from klinesync.exchanges.binance.symbols import SymbolTable, coin_margined
from klinesync.exchanges.exchange import (
    LISTINGS_TTL_S,
    Listing,
    ListingShelf,
)
from klinesync.exchanges.whole_lists import WholeLists
from klinesync.runtime.single_flight import SingleFlight

# Oldest list of symbols, in seconds, that is used when it lacks a symbol, or when the history of a symbol begins later
# than expected.
UNLISTED_TTL_S = 60.0
# Cooldown after a failed request for the list, in seconds; callers get the same error meanwhile.
LISTINGS_PAUSE_S = 5.0
# Longest list that is read, in bytes. Spot's list of symbols has grown past 10 MB.
MAX_LIST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Listed:
    """A list of symbols. `at_s`: when it arrived, monotonic seconds; minus infinity for one kept over a restart."""

    at_s: float
    table: SymbolTable


class Listings:
    """The lists of symbols of both markets.

    requests: sends the requests.
    markets: names of the markets.
    monotonic: our clock, in seconds.
    shelf: keeps the lists over a restart; None: they are not kept.
    """

    def __init__(
        self,
        requests: Requests,
        markets: Iterable[str],
        monotonic: Callable[[], float],
        shelf: ListingShelf | None,
    ) -> None:
        self._requests = requests
        self._monotonic = monotonic
        self._shelf = shelf
        self._shelf_read: set[str] = set()
        self._listed: dict[str, _Listed] = {}
        self._listing: dict[str, SingleFlight[_Listed]] = {market: SingleFlight() for market in markets}
        self._not_listed: dict[str, tuple[float, UpstreamError]] = {}
        self._whole: dict[str, WholeLists] = {}

    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series is not available, as a sentence; None when the exchange lists its symbol.

        A list is used for `LISTINGS_TTL_S`, one without the symbol for `UNLISTED_TTL_S`, and an older one while the
        exchange does not answer. Raises `UpstreamError` when there is no list.
        """
        market = series.market
        if series.exchange != EXCHANGE or market not in self._listing:
            return f"{series.exchange} has no market {market}"
        if (why := coin_margined(series)) is not None:
            return why
        table = await self._kept(market)
        try:
            table = await self._table(market, LISTINGS_TTL_S)
            if table.symbol_id(series.symbol) is None:
                table = await self._table(market, UNLISTED_TTL_S)
        except UpstreamError as error:
            if table is None:
                raise
            self._requests.warn(
                market, "symbols.outdated", "no new list of symbols, an older one is used", market=market, error=error
            )
        if table.symbol_id(series.symbol) is None:
            return f"{EXCHANGE} lists no such symbol on its {market} market"
        return None

    async def symbol_id(self, series: SeriesId) -> str:
        """The exchange's symbol of the series. Raises `NotListed`, and `UpstreamError` when there is no list."""
        table = await self._kept(series.market)
        found = None if table is None else table.symbol_id(series.symbol)
        if found is None:
            why = await self.refusal(series)
            found = self.symbol_id_now(series)
            if why is not None or found is None:
                raise NotListed(f"{series}: {why or 'the exchange lists it no more'}")
        return found

    def symbol_id_now(self, series: SeriesId) -> str | None:
        """The exchange's symbol of the series by the newest list; None when the list lacks it, or there is no list."""
        listed = self._listed.get(series.market)
        return None if listed is None else listed.table.symbol_id(series.symbol)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """The listed symbols by our name, from a list at most `max_age_s` old. Raises `UpstreamError`."""
        return (await self._table(market, max_age_s)).by_name

    async def _table(self, market: str, max_age_s: float) -> SymbolTable:
        listed = self._listed.get(market)
        if listed is None or self._monotonic() - listed.at_s > max_age_s:
            listed = await self._listing[market].get(partial(self._fetch, market))
        return listed.table

    async def _kept(self, market: str) -> SymbolTable | None:
        """The newest list, however old, also one kept over a restart; None without one. Makes no request."""
        if market not in self._listed and self._shelf is not None and market not in self._shelf_read:
            self._shelf_read.add(market)
            listings = await self._shelf.load(market)
            if listings and market not in self._listed:
                self._listed[market] = _Listed(float("-inf"), SymbolTable(listings))
        listed = self._listed.get(market)
        return None if listed is None else listed.table

    async def _fetch(self, market: str) -> _Listed:
        failed_at_s, failure = self._not_listed.get(market, (float("-inf"), None))
        now_s, whole = self._monotonic(), self._whole.setdefault(market, WholeLists())
        if failure is not None and (now_s - failed_at_s < LISTINGS_PAUSE_S or whole.pause_s(now_s) > 0.0):
            raise UpstreamError(str(failure), failure.status, failure.retry_after_s)
        kept = await self._kept(market)
        if kept is not None:
            whole.kept(kept.by_name.keys())
        try:
            weight = self._requests.weights[market].exchange_info
            body = await self._requests.ask(market, "exchangeInfo", weight, MAX_LIST_BYTES)
            listings, left_out = self._requests.decoded(market, partial(decode_listings, market), body, "exchangeInfo")
            table = SymbolTable(listings)
            # An empty list is believed where the market never had symbols: an exchange may have only one market.
            why = whole.refusal(table.by_name.keys(), self._monotonic(), expected=False)
            if why is not None:
                raise self._requests.nonsense(
                    market, "exchangeInfo", f"the answer to exchangeInfo {why}: it is no whole list"
                )
        except UpstreamError as error:
            self._not_listed[market] = (self._monotonic(), error)
            raise
        for listing in table.ambiguous:
            left_out.add(f"{listing.symbol_id}: more than one symbol is named {listing.symbol}, or like it")
        self._requests.leave_out(market, "symbol", left_out)
        listed = self._listed[market] = _Listed(self._monotonic(), table)
        if self._shelf is not None:
            await self._shelf.keep(market, list(table.by_name.values()))
        return listed

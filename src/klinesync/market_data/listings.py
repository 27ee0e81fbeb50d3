"""StoredListings: the newest list of symbols of each market of an exchange, in the store. SymbolNames: the names of
symbols by such lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from klinesync.core.decoding import Undecodable, decoded
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.exchanges.exchange import Listing
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database

log = Log(__name__)

_decoder = msgspec.json.Decoder(list[Listing])


class StoredListings:
    """A `ListingShelf` in the store, so that the names of symbols are known after a restart before the exchange is
    asked.

    database: the store.
    exchange: name of the exchange.
    """

    def __init__(self, database: Database, exchange: str) -> None:
        self._database = database
        self._exchange = exchange

    async def load(self, market: str) -> Sequence[Listing]:
        """See `ListingShelf`."""
        try:
            return await self._database.read(lambda store: stored_listings(store, self._exchange, market))
        except StoreError as error:
            log.warning(
                "symbols.unreadable",
                "the stored list of symbols cannot be read",
                exchange=self._exchange,
                market=market,
                error=error,
            )
            return []

    async def keep(self, market: str, listings: Sequence[Listing]) -> None:
        """See `ListingShelf`. An unchanged list is not written again."""
        body = msgspec.json.encode(listings)

        def write(store: CandleStore) -> None:
            store.keep_listing(self._exchange, market, body)

        try:
            if await self._database.read(lambda store: store.listing(self._exchange, market)) != body:
                await self._database.write(write)
        except StoreError as error:
            log.warning(
                "symbols.unwritten",
                "the list of symbols cannot be stored",
                exchange=self._exchange,
                market=market,
                error=error,
            )


class SymbolNames:
    """Symbols by the exchange's names: from stored lists, else from the exchange's list, which is requested at most
    once for each market.

    kept: the stored list of a market; empty when there is none.
    ask: requests the list of a market. Raises `UpstreamError`.
    """

    def __init__(self, kept: Callable[[str], Sequence[Listing]], ask: Callable[[str], Awaitable[Sequence[Listing]]]):
        self._kept = kept
        self._ask = ask
        self._names: dict[str, dict[str, str]] = {}
        self._failures: dict[str, UpstreamError] = {}
        self.asked: dict[str, Sequence[Listing]] = {}  # lists of the exchange, by market

    async def name(self, market: str, symbol_id: str) -> str | None:
        """The symbol of a market by the exchange's name; None when unlisted. Raises `UpstreamError` when the stored
        list lacks the symbol and the exchange cannot be asked."""
        if market not in self._names:
            self._names[market] = _by_id(self._kept(market))
        if symbol_id not in self._names[market] and market not in self.asked:
            if market in self._failures:
                raise self._failures[market]
            try:
                self.asked[market] = await self._ask(market)
            except UpstreamError as error:
                self._failures[market] = error
                raise
            self._names[market] = _by_id(self.asked[market])
        return self._names[market].get(symbol_id)


def _by_id(listings: Sequence[Listing]) -> dict[str, str]:
    return {listing.symbol_id: listing.symbol for listing in listings}


def stored_listings(store: CandleStore, exchange: str, market: str) -> list[Listing]:
    """The stored list of a market; empty when there is none, or it cannot be decoded.

    store: has the list.
    exchange, market: of the list.
    """
    body = store.listing(exchange, market)
    if body is None:
        return []
    try:
        return decoded(_decoder, body)
    except Undecodable as error:
        log.warning(
            "symbols.damaged", "the stored list of symbols is left out", exchange=exchange, market=market, error=error
        )
        return []

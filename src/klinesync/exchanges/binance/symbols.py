"""SymbolTable: maps our names of one market's symbols to the exchange's, and back. Pure.

A name is made from the assets that the exchange lists, never by joining or splitting symbols: `BTCUSDT_250328` is
`BTC/USDT:USDT-250328` because the listing names its assets and its delivery date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import Listing


class SymbolTable:
    """One list of symbols. Each name has exactly one symbol of the exchange, and the other way round.

    listings: the exchange's list. Where several symbols have one name, only the symbol that is written as its pair
        counts. Symbols that differ only in capitals do not count, because they would share a stream name.
    """

    def __init__(self, listings: Iterable[Listing] = ()) -> None:
        listings = list(listings)
        names = Counter(listing.symbol for listing in listings)
        ids = Counter(listing.symbol_id.lower() for listing in listings)
        self.ambiguous = [
            listing
            for listing in listings
            if ids[listing.symbol_id.lower()] > 1
            or (names[listing.symbol] > 1 and listing.symbol_id != _plain_id(listing))
        ]
        unclear = {id(listing) for listing in self.ambiguous}
        self._by_name = {listing.symbol: listing for listing in listings if id(listing) not in unclear}
        self._by_id = {listing.symbol_id: listing for listing in self._by_name.values()}

    @property
    def by_name(self) -> Mapping[str, Listing]:
        """The listings by our names."""
        return self._by_name

    def symbol_id(self, symbol: str) -> str | None:
        """The exchange's name of `symbol` (`BTC/USDT` is `BTCUSDT`); None when it is not listed."""
        listing = self._by_name.get(symbol)
        return None if listing is None else listing.symbol_id

    def symbol(self, symbol_id: str) -> str | None:
        """Our name of the exchange's `symbol_id`; None when it is not listed."""
        listing = self._by_id.get(symbol_id)
        return None if listing is None else listing.symbol


def _plain_id(listing: Listing) -> str:
    """The exchange's usual spelling of such a symbol."""
    day = listing.symbol.rpartition("-")[2]
    return listing.base_asset + listing.quote_asset + (f"_{day}" if listing.kind == "delivery" else "")


def coin_margined(series: SeriesId) -> str | None:
    """Why a coin-margined contract is not available, as a sentence; None for any other series.

    Such a contract is settled in its base asset: `BTC/USD:BTC`, `BTC/USD:BTC-250328`.
    """
    pair, _, settle = series.symbol.partition(":")
    asset = settle.partition("-")[0]
    if not asset or asset != pair.partition("/")[0]:
        return None
    return (
        f"{series.symbol} is settled in {asset}, a coin-margined contract; only spot and USD-margined futures of "
        f"{series.exchange} are built"
    )

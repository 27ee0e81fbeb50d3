"""SymbolTable: the names of one market's symbols, ours and the exchange's, there and back. Pure.

A name is taken from what the exchange lists, never made by joining or splitting texts: `BTCUSDT_250328` is
`BTC/USDT:USDT-250328` because the exchange says of what it consists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import Listing


class SymbolTable:
    """One list of symbols. Each name stands for exactly one symbol of the exchange, and each of those has one name.

    listings: what the exchange lists. Of several symbols under one name the one counts that is written as its pair;
    where there is none, and of symbols that differ in capitals alone (their streams would be one), none counts.
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
        self._by_id = {one.symbol_id: one for one in self._by_name.values()}

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
    """How the exchange usually writes such a symbol."""
    day = listing.symbol.rpartition("-")[2]
    return listing.base_asset + listing.quote_asset + (f"_{day}" if listing.kind == "delivery" else "")


def coin_margined(series: SeriesId) -> str | None:
    """Why a coin-margined contract cannot be had, as a sentence; None for any other series.

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

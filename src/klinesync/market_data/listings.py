"""StoredListings: the newest list of symbols of each market of one exchange, in the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from klinesync.core.decoding import Undecodable, decoded
from klinesync.core.errors import StoreError
from klinesync.runtime.sources import Listing
from klinesync.storage.database import CandleStore, Database

log = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(list[Listing])


class StoredListings:
    """A `ListingShelf` in a store. The names that an exchange gave are known after a restart before it is asked."""

    def __init__(self, database: Database, exchange: str) -> None:
        self._database = database
        self._exchange = exchange

    async def load(self, market: str) -> Sequence[Listing]:
        """See `ListingShelf`."""
        try:
            return await self._database.read(lambda store: stored_listings(store, self._exchange, market))
        except StoreError as error:
            log.warning("%s %s: the stored list of symbols cannot be read: %s", self._exchange, market, error)
            return []

    async def keep(self, market: str, listings: Sequence[Listing]) -> None:
        """See `ListingShelf`. A list that is stored already is not written again."""
        body = msgspec.json.encode(listings)

        def write(store: CandleStore) -> None:
            store.keep_listing(self._exchange, market, body)

        try:
            if await self._database.read(lambda store: store.listing(self._exchange, market)) != body:
                await self._database.write(write)
        except StoreError as error:
            log.warning("%s %s: the list of symbols cannot be stored: %s", self._exchange, market, error)


def stored_listings(store: CandleStore, exchange: str, market: str) -> list[Listing]:
    """The list of that market in a store; empty when there is none, or one of another version."""
    body = store.listing(exchange, market)
    if body is None:
        return []
    try:
        return decoded(_decoder, body)
    except Undecodable as error:
        log.warning("%s %s: the stored list of symbols is left out: %s", exchange, market, error)
        return []

"""CcxtExchange: any exchange that ccxt knows. REST proves live candles, also those that a stream has pushed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from klinesync.exchanges.ccxt.rest import CcxtRest
from klinesync.exchanges.ccxt.streams import CcxtConnection
from klinesync.exchanges.exchange import (
    ALL_MARKETS,
    Exchange,
    RestStatus,
    StreamCallbacks,
    StreamCounts,
)


class CcxtExchange(CcxtRest, Exchange):
    """One exchange: its REST, and connections that use the same REST. Its owner must call `close`."""

    async def close(self) -> None:
        """Close its connections."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self.client.close()

    def connection(self, market: str, callbacks: StreamCallbacks) -> CcxtConnection:
        """See `Exchange`."""
        return CcxtConnection(self, market, callbacks, self._counts[market])

    def streams(self) -> Mapping[str, StreamCounts]:
        """See `Exchange`. Polled candles count as streamed."""
        return self._counts

    def rest(self) -> Mapping[str, RestStatus]:
        """See `Exchange`. All markets share one client."""
        status = self.client.status()
        return {ALL_MARKETS: status} if status.requests else {}

    def left_out(self) -> Mapping[tuple[str, str], int]:
        """See `Exchange`."""
        return self._left_out

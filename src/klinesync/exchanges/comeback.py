"""Comeback: when the connections of one market try again after the exchange was away.

While no connection of a market is carried, one of them probes: it tries again every `PROBE_MOST_S` at most. The others
keep to their own backoff, and follow as soon as the probe is carried, a little apart from each other.
"""

from __future__ import annotations

import asyncio
import random

# While the exchange is away it is tried once in so many seconds at most, by one connection of a market.
PROBE_MOST_S = 5.0
# Within so many seconds the others follow once it is back.
FOLLOW_WITHIN_S = 1.0


class Comeback:
    """The connections of one market, by name: those that are carried, and the one that probes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._carried: set[object] = set()
        self._probe: object = None
        self._back = asyncio.Event()

    def carried(self, connection: object) -> None:
        """The exchange has acknowledged streams of that connection."""
        if not self._carried:
            self._wake()
        self._carried.add(connection)
        self._probe = None

    def lost(self, connection: object) -> None:
        """Nothing of that connection is carried any more."""
        self._carried.discard(connection)

    def gone(self, connection: object) -> None:
        """The connection tries no more."""
        self.lost(connection)
        if self._probe is connection:
            self._probe = None
            self._wake()  # one of them probes from now on

    def _wake(self) -> None:
        back, self._back = self._back, asyncio.Event()
        back.set()

    async def pause(self, connection: object, backoff_s: float) -> None:
        """Returns when the connection, which failed or was lost, shall try again."""
        self.lost(connection)
        if not self._carried and self._probe is None:
            self._probe = connection
        if self._probe is connection:
            await asyncio.sleep(min(backoff_s, PROBE_MOST_S))
            return
        try:
            async with asyncio.timeout(backoff_s):
                await self._back.wait()
        except TimeoutError:
            return
        await asyncio.sleep(self._rng.uniform(0.0, FOLLOW_WITHIN_S))

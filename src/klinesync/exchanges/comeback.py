"""Comeback: the reconnects of one market after an outage of the exchange.

While no connection of a market has acknowledged streams, one of them probes, every `probe_most_s` at most. The others
keep to their own backoff, and reconnect as soon as the probe succeeds, a little apart from each other.
"""

from __future__ import annotations

import asyncio
import random

# Longest backoff of the probing connection of a market during an outage, in seconds.
PROBE_MOST_S = 5.0
# Seconds within which the other connections reconnect after the probe succeeded.
FOLLOW_WITHIN_S = 1.0


class Comeback:
    """The connections of one market: those with acknowledged streams, and the probing one.

    rng: jitter.
    probe_most_s: longest backoff of the probing connection during an outage, in seconds.
    follow_within_s: seconds within which the other connections reconnect after the probe succeeded.
    """

    def __init__(
        self, rng: random.Random, probe_most_s: float = PROBE_MOST_S, follow_within_s: float = FOLLOW_WITHIN_S
    ) -> None:
        self._rng = rng
        self._probe_most_s = probe_most_s
        self._follow_within_s = follow_within_s
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
        """The streams of that connection have ended."""
        self._carried.discard(connection)

    def gone(self, connection: object) -> None:
        """The connection has ended for good."""
        self.lost(connection)
        if self._probe is connection:
            self._probe = None
            self._wake()  # one of them probes from now on

    def _wake(self) -> None:
        back, self._back = self._back, asyncio.Event()
        back.set()

    async def pause(self, connection: object, backoff_s: float) -> None:
        """Wait until the connection, which failed or was lost, should reconnect."""
        self.lost(connection)
        if not self._carried and self._probe is None:
            self._probe = connection
        if self._probe is connection:
            await asyncio.sleep(min(backoff_s, self._probe_most_s))
            return
        try:
            async with asyncio.timeout(backoff_s):
                await self._back.wait()
        except TimeoutError:
            return
        await asyncio.sleep(self._rng.uniform(0.0, self._follow_within_s))

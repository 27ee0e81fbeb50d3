"""Connections: the connections to an exchange, as many for each market as its streams need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count

from klinesync.exchanges.exchange import Connection, ConnectionStatus, Exchange, StreamCallbacks
from klinesync.runtime.bulkheads import Bulkheads, Part


class Connections:
    """Opens a connection when no other has room, and closes it when it has no stream left.

    exchange: the exchange.
    markets: names of its markets.
    callbacks: called by the connections.
    bulkheads: contains defects; a connection with a defect is restarted.
    """

    def __init__(
        self, exchange: Exchange, markets: Iterable[str], callbacks: StreamCallbacks, bulkheads: Bulkheads
    ) -> None:
        self._exchange = exchange
        self._callbacks = callbacks
        self._bulkheads = bulkheads
        self._tasks: dict[str, dict[Connection, asyncio.Task[None]]] = {market: {} for market in markets}
        self._numbers = count(1)

    def with_room(self, market: str, group: asyncio.TaskGroup) -> Connection:
        """A connection of `market` with room for another stream. A new connection runs in `group`."""
        for connection in self._tasks[market]:
            if connection.room:
                return connection
        connection = self._exchange.connection(market, self._callbacks)
        name = f"connection {next(self._numbers)} {market}"
        task = self._bulkheads.begin(group, connection.run, part=Part.CONNECTION, name=name, restart=True)
        self._tasks[market][connection] = task
        return connection

    def end_if_idle(self, market: str, connection: Connection) -> None:
        """Close the connection unless it has a stream."""
        if connection.idle:
            self._tasks[market].pop(connection).cancel()

    def of(self, market: str) -> list[Connection]:
        """The connections of a market."""
        return list(self._tasks[market])

    def states(self) -> list[ConnectionStatus]:
        """The status of each connection."""
        return [connection.status for tasks in self._tasks.values() for connection in tasks]

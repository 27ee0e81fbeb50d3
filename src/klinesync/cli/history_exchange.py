"""The exchanges from which a command reads history and listings."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.market.parts_exchanges import exchange_registry
from klinesync.market.settings import exchange_settings
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.database import Database


@contextlib.asynccontextmanager
async def exchanges_of(flags: RuntimeFlags, database: Database | None = None) -> AsyncIterator[ExchangeRegistry]:
    """The exchanges of a command, closed at the end.

    flags: the configuration of the command.
    database: stores lists of symbols; None: they are not stored.

    Raises `BadExchange`, `BadFlag`.
    """
    registry = exchange_registry(exchange_settings(flags), Surroundings(), database)
    try:
        yield registry
    finally:
        await registry.close()

"""build_market_runtime: flags -> settings -> parts, each made before the parts that need it."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.series_id import SeriesId
from klinesync.exchanges.registry import ExchangeEntry
from klinesync.market.parts_exchanges import build_exchanges, check_whitelist
from klinesync.market.parts_history import GapReading, build_history
from klinesync.market.parts_ingest import build_ingest
from klinesync.market.parts_services import ServedParts, build_front, build_market_data
from klinesync.market.parts_writing import build_writing
from klinesync.market.runtime import MarketRuntime
from klinesync.market.settings import (
    exchange_settings,
    history_settings,
    ingest_settings,
    service_settings,
    writing_settings,
)
from klinesync.market.surroundings import Surroundings
from klinesync.market_data.orchestrator import MarketDataOrchestrator
from klinesync.pipelines.publishing import Subscriber
from klinesync.runtime.flags import RuntimeFlags, sqlite_path
from klinesync.storage.database import Database
from klinesync.storage.sqlite import SqliteDatabase


def build_market_runtime(
    flags: RuntimeFlags,
    around: Surroundings | None = None,
    *,
    database: Database | None = None,
    entries: Sequence[ExchangeEntry] = (),
    command: str = "serve",
) -> MarketRuntime:
    """The parts of the service, connected but not started. Called inside the event loop.

    flags: the configuration.
    around: clock, jitter and bulkheads; those of this machine by default.
    database: the store; the file of the flags by default.
    entries: exchanges that take precedence over those of the flags; none by default.
    command: name of this process, which the lock of the store shows to others.

    Raises `BadFlag`, `BadFactor`, `BadOverlay`, `BadExchange`.
    """
    services = service_settings(flags)
    database = database or SqliteDatabase(sqlite_path(flags), command, serves=True)
    parts = build_parts(flags, services.listed, around or Surroundings(), database, entries)
    market_data = build_market_data(services, parts)
    bind_subscribers(parts, market_data)
    return MarketRuntime(parts, market_data, build_front(services, parts))


def build_parts(
    flags: RuntimeFlags,
    listed: tuple[SeriesId, ...],
    around: Surroundings,
    database: Database,
    entries: Sequence[ExchangeEntry] = (),
) -> ServedParts:
    """All parts below the services, in the order of their dependencies; `bind_subscribers` is called later.

    listed: the whitelist. The other arguments and the errors are those of `build_market_runtime`.
    """
    following = ingest_settings(flags, listed)
    exchange = build_exchanges(exchange_settings(flags), around, database, entries)
    writing = build_writing(writing_settings(flags), around, database, exchange.registry.clocks)
    followed = tuple(dict.fromkeys(map(writing.derived.base_of, following.whitelist)))
    check_whitelist(exchange.registry, writing.derived, listed, followed)
    history = build_history(history_settings(flags), around, writing, exchange)
    ingest = build_ingest(following, around, writing, exchange, history, followed)
    return ServedParts(around, writing, exchange, history, ingest)


def bind_subscribers(parts: ServedParts, market_data: MarketDataOrchestrator) -> None:
    """Bind the subscribers of commits and of declared gaps, in the order of notification.

    Cached pages are dropped before clients get new candles, so that no read after a message is older than the message.
    Clients come before derived histories, which only request more candles.
    """
    writing, history, status = parts.writing, parts.history, market_data.status
    writing.publisher.bind(
        (
            Subscriber("page cache", history.reader.changed, history.reader.forget_pages),
            Subscriber("status", status.published),
            Subscriber("clients", writing.forming.publish, writing.hub.resync),
            Subscriber("derived histories", history.derived_history.published),
        )
    )
    gaps = GapReading(writing.derived, history.derived_history, history.backfill)
    history.scrub.bind((writing.events.damaged, status.changed, gaps.declared, history.healer.holes))
    history.healer.bind((status.changed, gaps.declared))

"""Supervisors: an `IngestSupervisor` for each exchange, so that trouble with an exchange does not affect the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import ExchangeTrouble, MarketContact, StreamStatus
from klinesync.exchanges.exchange import ConnectionStatus, Exchange
from klinesync.exchanges.registry import ExchangeRegistry
from klinesync.ingest.supervisor import IngestSupervisor, JobState
from klinesync.runtime.bulkheads import Bulkheads, Part

Supervise = Callable[[Exchange], IngestSupervisor]


class Supervisors:
    """Follows series of all exchanges, each by the supervisor of its exchange.

    registry: the exchanges. After `bind`, each exchange gets a supervisor when the exchange is made.
    bulkheads: contains defects; a supervisor with a defect is restarted.
    """

    def __init__(self, registry: ExchangeRegistry, bulkheads: Bulkheads | None = None) -> None:
        self._registry = registry
        self._bulkheads = bulkheads or Bulkheads()
        self._supervisors: dict[str, IngestSupervisor] = {}
        self._group: asyncio.TaskGroup | None = None

    def bind(self, supervise: Supervise) -> None:
        """Set the factory of supervisors, before any series is followed."""
        self._registry.on_made(partial(self._begin, supervise))

    def _begin(self, supervise: Supervise, exchange: Exchange) -> None:
        supervisor = self._supervisors[exchange.name] = supervise(exchange)
        if self._group is not None:
            self._run(self._group, exchange.name, supervisor)

    def _run(self, group: asyncio.TaskGroup, name: str, supervisor: IngestSupervisor) -> None:
        self._bulkheads.begin(group, supervisor.run, part=Part.STREAMS, name=f"supervisor {name}", restart=True)

    async def run(self) -> None:
        """Follow series until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for name, supervisor in self._supervisors.items():
                    self._run(group, name, supervisor)
                await asyncio.Event().wait()
        finally:
            self._group = None

    def of(self, series: SeriesId) -> IngestSupervisor:
        """The supervisor of the series' exchange. Raises `UpstreamError` when there is no such exchange."""
        return self._supervisors[self._registry.exchange(series.exchange).name]

    def by_name(self) -> Mapping[str, IngestSupervisor]:
        """The supervisors, by the exchange's name."""
        return self._supervisors

    # Following.

    def covers(self, series: SeriesId) -> bool:
        """Whether the registry has the exchange and the market of the series."""
        return self._registry.covers(series)

    async def follow(self, series: SeriesId) -> None:
        """Follow a base series from now on. Raises `StoreError`."""
        await self.of(series).follow(series)

    async def caught_up(self, series: SeriesId) -> None:
        """Wait until the history of a followed series has been read up to now. Raises as
        `IngestSupervisor.caught_up`."""
        await self.of(series).caught_up(series)

    def acquire(self, series: SeriesId) -> None:
        """Follow a series, or its base, at least until `release`. Raises `NoCapacity`."""
        self.of(series).acquire(series)

    def release(self, series: SeriesId) -> None:
        """Give back the reference of `acquire`."""
        self.of(series).release(series)

    # State of a series. An exchange without a followed series has no supervisor.

    def status(self, series: SeriesId) -> StreamStatus:
        """The status of the stream of the series, or of its base."""
        supervisor = self._supervisors.get(series.exchange)
        return StreamStatus(StreamState.OFF) if supervisor is None else supervisor.status(series)

    def keeps_up(self, series: SeriesId) -> bool:
        """Whether the base series is followed and caught up."""
        supervisor = self._supervisors.get(series.exchange)
        return supervisor is not None and supervisor.keeps_up(series)

    def first_history_due(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its first history has not been read yet."""
        supervisor = self._supervisors.get(series.exchange)
        return supervisor is not None and supervisor.first_history_due(series)

    def final_margin_s(self, series: SeriesId) -> float | None:
        """Finality margin of the series' market, in seconds of the exchange; None when no series of the exchange is
        followed."""
        supervisor = self._supervisors.get(series.exchange)
        return None if supervisor is None else supervisor.final_margin_s(series)

    def trouble(self, series: SeriesId) -> ExchangeTrouble | None:
        """Why the market of the series gives no candles; None when it does, or has no supervisor."""
        supervisor = self._supervisors.get(series.exchange)
        return None if supervisor is None else supervisor.trouble(series.market)

    # State of all.

    def contacts(self) -> list[tuple[str, MarketContact]]:
        """The contact to each market of each supervised exchange, with the exchange's name."""
        return [(name, contact) for name, supervisor in self._supervisors.items() for contact in supervisor.contacts()]

    def final_margins_s(self) -> Mapping[str, float]:
        """Finality margin in seconds of the exchange, by exchange."""
        return {exchange: contact.final_margin_s for exchange, contact in self.contacts()}

    def followed(self) -> list[SeriesId]:
        """The base series that are followed, of all exchanges."""
        return [series for supervisor in self._supervisors.values() for series in supervisor.followed()]

    def jobs_state(self) -> list[JobState]:
        """All jobs."""
        return [job for supervisor in self._supervisors.values() for job in supervisor.jobs_state()]

    def connections_state(self) -> list[ConnectionStatus]:
        """All connections."""
        return [status for supervisor in self._supervisors.values() for status in supervisor.connections_state()]

"""Exchanges: our own, which is followed from the start, and any other, begun when the first series of it is asked for.

Each has a Source, clocks and a supervisor of its own, so that trouble with one is no trouble of another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from klinesync.core.errors import UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.exchange import (
    Connection,
    ConnectionStatus,
    Errand,
    ExchangeTrouble,
    HistoryPage,
    Listing,
    MarketContact,
    Reach,
    RestContact,
    Source,
    StreamCallbacks,
    StreamStatus,
    Ticker,
)
from klinesync.ingest.supervisor import IngestSupervisor, JobState
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock

log = logging.getLogger(__name__)

Clocks = Mapping[str, ExchangeClock]
Supervise = Callable[[Source, Clocks], IngestSupervisor]

# A stamp that is older says too little of what time it is: the exchange is asked.
CLOCK_FRESH_S = 5.0


class ListedSource(Source, Protocol):
    """A Source that says why it does not have a series."""

    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series cannot be had; None when it can. Raises `UpstreamError`."""
        ...


class OtherSource(ListedSource, Protocol):
    """A Source that is closed at the end."""

    def reach(self, series: SeriesId) -> Reach | None:
        """How far back its history goes; None where all of it can be had, or that is not known yet."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class Offers(Protocol):
    """Where other exchanges come from."""

    def refusal(self, name: str) -> str | None:
        """Why there is no exchange of that name; None when there is one. Returns at once."""
        ...

    def source(self, name: str, clocks: Clocks) -> OtherSource:
        """A new source of it."""
        ...

    async def stop(self) -> None:
        """All sources are closed."""
        ...


@dataclass(frozen=True, slots=True)
class _Other:
    source: OtherSource
    supervisor: IngestSupervisor


class Exchanges:
    """All exchanges as one Source, and as what follows series: each series goes to its exchange.

    `name`, `source` and `clocks` are our own's, for which the methods that name a market alone are meant, too; `offers`
    has the others. `clocks` by (exchange, market) are those that are known so far.
    """

    def __init__(
        self,
        name: str,
        source: ListedSource,
        clocks: Clocks,
        offers: Offers,
        monotonic: Callable[[], float],
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._name = name
        self._source = source
        self._markets = tuple(clocks)
        self.clocks = {(name, market): clock for market, clock in clocks.items()}
        self._offers = offers
        self._monotonic = monotonic
        self._supervise: Supervise | None = None
        self._own: IngestSupervisor | None = None
        self._others: dict[str, _Other] = {}
        self._group: asyncio.TaskGroup | None = None

    def supervised(self, supervise: Supervise) -> IngestSupervisor:
        """Our own exchange's supervisor, which the caller runs; `supervise` makes one for each exchange."""
        self._supervise = supervise
        own = {market: self.clocks[self._name, market] for market in self._markets}
        self._own = supervise(self._source, own)
        return self._own

    async def run(self) -> None:
        """Follow series of other exchanges until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for name, other in self._others.items():
                    self._begin(group, name, other.supervisor)
                await asyncio.Event().wait()
        finally:
            self._group = None

    async def close(self) -> None:
        """Close the connections of the other exchanges, after `run`."""
        for name, other in self._others.items():
            with self._bulkheads.contained(Part.EXCHANGE, f"closing {name}"):
                await other.source.close()
        await self._offers.stop()

    def _begin(self, group: asyncio.TaskGroup, name: str, supervisor: IngestSupervisor) -> None:
        self._bulkheads.begin(group, supervisor.run, part=Part.EXCHANGE, name=f"supervisor {name}", restart=True)

    def refusal(self, series: SeriesId) -> str | None:
        """Why the series' exchange and market cannot be asked; None when they can."""
        if series.market not in self._markets:
            return f"{series.exchange} has no market {series.market}"
        return None if series.exchange == self._name else self._offers.refusal(series.exchange)

    def covers(self, series: SeriesId) -> bool:
        """Whether the series' exchange can be asked."""
        return self.refusal(series) is None

    def exchange_s(self, series: SeriesId) -> float | None:
        """What time it is on the series' exchange, in UTC seconds, as far as is known."""
        clock = self.clocks.get((series.exchange, series.market))
        now_ms = None if clock is None else clock.estimate_ms(self._monotonic())
        return None if now_ms is None else now_ms / 1000

    # As a Source.

    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles from `start` on. Raises `UpstreamError`."""
        source = self._source if series.exchange == self._name else self._other(series).source
        return source.history(series, start, errand, end)

    def reach(self, series: SeriesId) -> Reach | None:
        """How far back the exchange's history goes; None where all of it can be had, or that is not known yet."""
        other = self._others.get(series.exchange)
        return None if other is None else other.source.reach(series)

    async def knows(self, series: SeriesId) -> bool:
        """Whether the series can be had. Of another exchange the time is asked as well, where it is not known. Raises
        `UpstreamError`."""
        if series.exchange == self._name:
            return await self._source.knows(series)
        if self.refusal(series) is not None:
            return False
        source = self._other(series).source
        if not await source.knows(series):
            return False
        if self.clocks[series.exchange, series.market].age_s(self._monotonic()) > CLOCK_FRESH_S:
            await source.now_ms(series.market)
        return True

    async def known(self, series: SeriesId) -> bool:
        """True for a series that its exchange lists. Raises `UpstreamError`, and `UnknownSeries` with the reason for
        any other."""
        if series.exchange == self._name:
            why = await self._source.refusal(series)
        else:
            why = self.refusal(series) or await self._other(series).source.refusal(series)
        if why is not None:
            raise UnknownSeries(str(series), why)
        return True

    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        """A connection to our own exchange."""
        return self._source.connection(market, callbacks)

    async def now_ms(self, market: str) -> int:
        """Our own exchange's time. Raises `UpstreamError`."""
        return await self._source.now_ms(market)

    def contact(self, market: str) -> RestContact:
        """The newest contact with our own exchange over REST."""
        return self._source.contact(market)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """What our own exchange lists. Raises `UpstreamError`."""
        return await self._source.listings(market, max_age_s)

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours on our own exchange. Raises `UpstreamError`."""
        return await self._source.tickers(market)

    # As what follows series.

    async def follow(self, series: SeriesId) -> None:
        """Follow a base series from now on. Raises `StoreError`."""
        await self._supervisor(series).follow(series)

    async def caught_up(self, series: SeriesId) -> None:
        """Returns once the followed series' history is in."""
        await self._supervisor(series).caught_up(series)

    def acquire(self, series: SeriesId) -> None:
        """Follow a series, or its base, at least until `release`. Raises `NoCapacity`."""
        self._supervisor(series).acquire(series)

    def release(self, series: SeriesId) -> None:
        """Give back what `acquire` took."""
        self._supervisor(series).release(series)

    def status(self, series: SeriesId) -> StreamStatus:
        """Where the stream of the series, or of its base, stands."""
        if series.exchange != self._name and series.exchange not in self._others:
            return StreamStatus(StreamState.OFF)
        return self._supervisor(series).status(series)

    def keeps_up(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its history is in."""
        begun = series.exchange == self._name or series.exchange in self._others
        return begun and self._supervisor(series).keeps_up(series)

    def first_history_due(self, series: SeriesId) -> bool:
        """Whether the base series is followed, and its first history is still to be read."""
        begun = series.exchange == self._name or series.exchange in self._others
        return begun and self._supervisor(series).first_history_due(series)

    def final_margin_s(self, series: SeriesId) -> float | None:
        """How long after its end a row of the series' exchange may change, in seconds; None where nobody follows it."""
        begun = series.exchange == self._name or series.exchange in self._others
        return self._supervisor(series).final_margin_s(series) if begun else None

    def final_margins_s(self) -> dict[str, float]:
        """The same, by exchange, of those that are asked."""
        return {exchange: contact.final_margin_s for exchange, contact in self.contacts()}

    def contacts(self) -> list[tuple[str, MarketContact]]:
        """What is heard of each market of each exchange that is asked, with the exchange's name."""
        assert self._own is not None, "it is supervised"
        supervisors = [(self._name, self._own), *((name, other.supervisor) for name, other in self._others.items())]
        return [(name, contact) for name, supervisor in supervisors for contact in supervisor.contacts()]

    def trouble(self, series: SeriesId) -> ExchangeTrouble | None:
        """Why the series' exchange gives no candles at present; None while it does, or is not asked."""
        begun = series.exchange == self._name or series.exchange in self._others
        contacts = self._supervisor(series).contacts() if begun else []
        return next((contact.trouble for contact in contacts if contact.market == series.market), None)

    def followed(self) -> list[SeriesId]:
        """The base series that are followed, of all exchanges."""
        return [series for supervisor in self._supervisors() for series in supervisor.followed()]

    def jobs_state(self) -> list[JobState]:
        """All jobs."""
        return [job for supervisor in self._supervisors() for job in supervisor.jobs_state()]

    def connections_state(self) -> list[ConnectionStatus]:
        """All connections."""
        return [one for supervisor in self._supervisors() for one in supervisor.connections_state()]

    def _supervisors(self) -> Iterator[IngestSupervisor]:
        if self._own is not None:
            yield self._own
        for other in self._others.values():
            yield other.supervisor

    def _supervisor(self, series: SeriesId) -> IngestSupervisor:
        if series.exchange != self._name:
            return self._other(series).supervisor
        assert self._own is not None, "it is supervised"
        return self._own

    def _other(self, series: SeriesId) -> _Other:
        """The series' exchange, which is begun when it is the first series of it. Raises `UpstreamError` when there is
        none."""
        name = series.exchange
        other = self._others.get(name)
        if other is None:
            why = self._offers.refusal(name)
            if why is not None:
                raise UpstreamError(why, 400)
            assert self._supervise is not None, "our own is supervised before"
            clocks = {market: ExchangeClock() for market in self._markets}
            source = self._offers.source(name, clocks)
            other = self._others[name] = _Other(source, self._supervise(source, clocks))
            self.clocks.update({(name, market): clock for market, clock in clocks.items()})
            log.info("%s is asked through ccxt from now on", name)
            if self._group is not None:
                self._begin(self._group, name, other.supervisor)
        return other

"""ExchangeRegistry: the exchanges by name. An exchange is made at its first use."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Protocol, runtime_checkable

from klinesync.core.errors import Rejected, UnknownSeries, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.exchange import Errand, Exchange, HistoryPage, Listing, ListingShelf, Reach
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.clock import Clock
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.plugin_points import points_of

# Entry points of installed distributions, each of which gives an `ExchangeEntry`.
GROUP = "klinesync.exchanges"


class BadExchange(Rejected):
    """An entry point of `klinesync.exchanges` that cannot be used."""

    code = "bad_exchange"

    def __init__(self, point: str, why: str) -> None:
        super().__init__(f"exchange {point}: {why}")


class _NoShelf:
    """A shelf that keeps no list of symbols over a restart."""

    async def load(self, _market: str) -> Sequence[Listing]:
        return []

    async def keep(self, _market: str, _listings: Sequence[Listing]) -> None:
        return


def _nothing_kept(_exchange: str) -> ListingShelf:
    return _NoShelf()


@dataclass(frozen=True, slots=True)
class ExchangeContext:
    """The surroundings of every exchange.

    clock: times requests and backoff.
    rng: jitter.
    final_margin_s: how long after its end a REST row may still change, in seconds of the exchange, as configured.
    bulkheads: contains defects of tasks that the exchange begins.
    shelf: by the name of an exchange, keeps its lists of symbols over a restart; by default none are kept.
    """

    clock: Clock
    rng: random.Random
    final_margin_s: float
    bulkheads: Bulkheads = field(default_factory=Bulkheads)
    shelf: Callable[[str], ListingShelf] = _nothing_kept


@runtime_checkable
class ExchangeEntry(Protocol):
    """One entry of the registry: makes an exchange, or any of several, by name."""

    @property
    def names(self) -> frozenset[str]:
        """The exchanges that this entry makes in preference to other entries; empty where the entry has no list."""
        ...

    def refusal(self, name: str) -> str | None:
        """Why this entry has no exchange of that name, as a sentence; None when it has one. Makes no request."""
        ...

    def make(self, name: str, context: ExchangeContext) -> Exchange:
        """The exchange of that name. No connection or request is made before its first use."""
        ...

    async def close(self) -> None:
        """Release what the entry shares among its exchanges, after all of these are closed."""
        ...


def load_entries(found: Iterable[EntryPoint] | None = None) -> list[ExchangeEntry]:
    """The entries of all entry points `klinesync.exchanges`, by the entry points' names.

    An entry point names a callable `() -> ExchangeEntry`. Raises `BadExchange` when one cannot be imported or called,
    or gives something else.
    """
    points = points_of(GROUP) if found is None else found
    return [_loaded(point) for point in sorted(points, key=lambda point: (point.name, point.value))]


def _loaded(point: EntryPoint) -> ExchangeEntry:
    origin = f"{point.value} of {'an unknown distribution' if point.dist is None else point.dist.name}"
    try:
        entry: object = point.load()()
    except Exception as error:  # whatever a foreign distribution raises
        raise BadExchange(point.name, f"{origin} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(entry, ExchangeEntry):
        raise BadExchange(point.name, f"{origin} gives a {type(entry).__name__}, which is no ExchangeEntry")
    return entry


class ExchangeRegistry:
    """All exchanges by name. A request about a series goes to the exchange of the series.

    entries: make exchanges. An entry that lists a name comes before entries without a list; of those the first that
        has the exchange makes it.
    context: the surroundings of the exchanges.
    """

    def __init__(self, entries: Sequence[ExchangeEntry], context: ExchangeContext) -> None:
        self._entries = tuple(entries)
        self._context = context
        self._made: dict[str, Exchange] = {}
        self._followers: list[Callable[[Exchange], None]] = []
        # The clocks of the exchanges that were made, by exchange and market.
        self.clocks: dict[tuple[str, str], ExchangeClock] = {}

    # Exchanges.

    def refusal(self, name: str) -> str | None:
        """Why there is no exchange of that name; None when there is one. Makes no request."""
        entry = self._entry(name)
        return entry if isinstance(entry, str) else None

    def exchange(self, name: str) -> Exchange:
        """The exchange of that name. Raises `UpstreamError` when there is none."""
        if (exchange := self._made.get(name)) is not None:
            return exchange
        entry = self._entry(name)
        if isinstance(entry, str):
            raise UpstreamError(entry, 400)
        exchange = self._made[name] = entry.make(name, self._context)
        self.clocks.update({(name, market): clock for market, clock in exchange.clocks.items()})
        for follower in self._followers:
            follower(exchange)
        return exchange

    def made(self) -> Mapping[str, Exchange]:
        """The exchanges that were used so far, by name."""
        return self._made

    def on_made(self, follower: Callable[[Exchange], None]) -> None:
        """Call `follower` with every exchange that was made, now, and with each later one when it is made."""
        self._followers.append(follower)
        for exchange in tuple(self._made.values()):
            follower(exchange)

    def _entry(self, name: str) -> ExchangeEntry | str:
        """The entry that makes that exchange; a sentence why none does."""
        for entry in self._entries:
            if name in entry.names:
                return entry
        why: str | None = f"there is no exchange {name}"
        for entry in self._entries:
            if not entry.names and (why := entry.refusal(name)) is None:
                return entry
        return why or f"there is no exchange {name}"

    async def close(self) -> None:
        """Close all exchanges; a defect while one closes does not keep the others from being closed."""
        for name, exchange in self._made.items():
            with self._context.bulkheads.contained(Part.EXCHANGE, f"closing {name}"):
                await exchange.close()
        for entry in self._entries:
            await entry.close()

    # Series.

    def series_refusal(self, series: SeriesId) -> str | None:
        """Why the exchange has no candles of the series' market and timeframe; None when it may have. Makes no
        request."""
        if (why := self.refusal(series.exchange)) is not None:
            return why
        exchange = self.exchange(series.exchange)
        if series.market not in exchange.clocks:
            return f"{series.exchange} has no market {series.market}"
        return exchange.timeframe_refusal(series.timeframe)

    def timeframe_refusal(self, series: SeriesId) -> str | None:
        """See `Exchange.timeframe_refusal`; None for an exchange that was not used yet."""
        exchange = self._made.get(series.exchange)
        return None if exchange is None else exchange.timeframe_refusal(series.timeframe)

    def covers(self, series: SeriesId) -> bool:
        """Whether the exchange can be asked for candles of the series' market and timeframe."""
        return self.series_refusal(series) is None

    async def now_ms(self, series: SeriesId) -> int:
        """The time of the series' exchange and market, asked now, in UTC ms. Raises `UpstreamError`."""
        return await self.exchange(series.exchange).now_ms(series.market)

    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """See `Exchange.history`. Raises `UpstreamError`."""
        return self.exchange(series.exchange).history(series, start, errand, end)

    def reach(self, series: SeriesId) -> Reach | None:
        """See `Exchange.reach`."""
        exchange = self._made.get(series.exchange)
        return None if exchange is None else exchange.reach(series)

    async def knows(self, series: SeriesId) -> bool:
        """Whether the exchange has the series. Raises `UpstreamError`."""
        return self.series_refusal(series) is None and await self.exchange(series.exchange).refusal(series) is None

    async def known(self, series: SeriesId) -> bool:
        """True for a series that its exchange has. Raises `UpstreamError`, and `UnknownSeries` with the reason for any
        other."""
        why = self.series_refusal(series) or await self.exchange(series.exchange).refusal(series)
        if why is not None:
            raise UnknownSeries(str(series), why)
        return True

    async def symbol_id(self, series: SeriesId) -> str | None:
        """See `Exchange.symbol_id`. Raises `UpstreamError`."""
        return await self.exchange(series.exchange).symbol_id(series)

    def excess(self, series: Iterable[SeriesId]) -> list[str]:
        """A sentence about each exchange on which these series do not fit."""
        by_exchange: dict[str, list[SeriesId]] = {}
        for one in series:
            by_exchange.setdefault(one.exchange, []).append(one)
        sentences = []
        for name, those in by_exchange.items():
            exchange = self.exchange(name)
            if sum(map(exchange.load, those)) > 1.0:
                sentences.append(exchange.too_many(those[0], len(those)))
        return sentences

"""The Source port: what the service needs of an exchange. Implemented by Binance's clients, and by the simulation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from klinesync.core.candle import Candle
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId


@dataclass(frozen=True, slots=True)
class KlineEvent:
    """One push: the candle as it stands, and whether the exchange calls it final. `event_ms`: the exchange's time."""

    series: SeriesId
    candle: Candle
    closed: bool
    event_ms: int


@dataclass(frozen=True, slots=True)
class StreamCallbacks:
    """Whom a connection tells: each runs on the event loop and returns at once."""

    attached: Callable[[SeriesId], None]
    event: Callable[[KlineEvent], None]
    lost: Callable[[Iterable[SeriesId]], None]


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One answer of the exchange: closed candles, ascending, and the spans between its rows in which it has nothing."""

    candles: list[Candle]
    empty: list[Span]


class Connection(Protocol):
    """Carries the live streams of several series of one market."""

    @property
    def room(self) -> int:
        """How many more streams it takes."""
        ...

    def want(self, series: SeriesId) -> None:
        """Carry the series' stream from now on: `attached` is told once the exchange has been, after every connect."""
        ...

    def unwant(self, series: SeriesId) -> None:
        """Drop the series' stream."""
        ...

    async def run(self) -> None:
        """Stay connected until cancelled."""
        ...


class Source(Protocol):
    """One exchange. Its methods raise `UpstreamError` when it does not answer, or not with sense."""

    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        """A new connection of that market; it does nothing until it runs."""
        ...

    def history(self, series: SeriesId, start: int) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles from the open time `start` to the newest that is proven final, page by page, ascending.

        Pages overlap by a row, so that every hole lies within one answer, which proves it.
        """
        ...

    async def now_ms(self, market: str) -> int:
        """The exchange's time, asked now."""
        ...

    async def knows(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series' symbol."""
        ...

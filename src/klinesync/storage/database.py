"""The Database port: closed candles behind `read` and `write`; on SQLite, in threads or in the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId

R = TypeVar("R")


class CandleStore(Protocol):
    """Closed candles of all series, within one `read` or `write`; must not be kept beyond it."""

    def head(self, series: SeriesId) -> int | None:
        """The newest stored open time; None when nothing is stored."""
        ...

    def first(self, series: SeriesId) -> int | None:
        """The oldest stored open time; None when nothing is stored."""
        ...

    def newest(
        self, series: SeriesId, limit: int, *, before: int | None = None, after: int | None = None
    ) -> list[Candle]:
        """The newest `limit` candles between `after` and `before` (both exclusive), ascending."""
        ...

    def oldest(self, series: SeriesId, limit: int, *, since: int) -> list[Candle]:
        """The oldest `limit` candles after `since` (exclusive), ascending."""
        ...

    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        """How many candles follow `since`, counted up to `most`."""
        ...

    def write(self, series: SeriesId, candles: Sequence[Candle]) -> Applied:
        """Store closed candles, in any order; of two with one time the later one in `candles` counts.

        Writing what is stored already changes nothing and is not reported. Only within `Database.write`.
        """
        ...


class Database(Protocol):
    """A store. `async with` opens it, brings its schema up to date, and closes it; that may raise `StoreError`."""

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """What `change` returns, after its transaction was committed durably.

        When `change` raises, or the commit fails (`StoreError`), nothing was changed. One write at a time.
        """
        ...

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """What `look` returns, of one consistent state. Raises `StoreError`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

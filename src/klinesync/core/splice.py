"""Splice: history joined to live, strictly increasing, each jump declared.

Every stream of candles has two such edges: exchange -> us (REST tail, then stream) and us -> client (store
catch-up, then hub). Live is attached *before* history is read, so nothing can fall between; while history is
read, live items are held, and `release` lets both through, merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from klinesync.core.timeframe import Timeframe


class Timed(Protocol):
    """Anything named by an open time."""

    @property
    def time(self) -> int: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True, slots=True)
class Jump:
    """A hole in front of the next item: `expected` is the first missing open time, `actual` the next item's."""

    expected: int
    actual: int


class Splice(Generic[T]):
    """Joins history and live of one series.

    after: items at or before this time are dropped; None: all items pass.
    last: open time of the predecessor of the next item, for the detection of jumps; None: the first item has no
        predecessor.
    max_held: most live items that are held. When live outruns a slow history, the oldest held items are dropped, and
        history or a declared jump makes up for them.
    """

    __slots__ = ("_held", "after", "holding", "last", "max_held", "timeframe")

    def __init__(
        self, timeframe: Timeframe, *, after: int | None = None, last: int | None = None, max_held: int = 2000
    ) -> None:
        self.timeframe = timeframe
        self.after = last if after is None else after if last is None else max(after, last)
        self.last = last
        self.max_held = max_held
        self.holding = False
        self._held: dict[int, T] = {}

    @property
    def waiting(self) -> bool:
        """Whether any live item is held."""
        return bool(self._held)

    def hold(self) -> None:
        """Keep live items from now on, until `release`."""
        self.holding = True

    def follows(self, item: T) -> bool:
        """Whether `item` directly follows the last item that passed."""
        return self.last is None or item.time <= self.timeframe.next(self.last)

    def live(self, item: T) -> list[T | Jump]:
        """The items that pass with a live one: none while holding, or for a late item or a duplicate."""
        if self.after is not None and item.time <= self.after:
            return []
        if not self.holding:
            return self._let_through(item)
        self._held[item.time] = item
        if len(self._held) > self.max_held:
            del self._held[min(self._held)]
        return []

    def history(self, items: Iterable[T]) -> list[T | Jump]:
        """The items of a piece of history, in any order, that pass. Live items stay held."""
        through: list[T | Jump] = []
        for item in sorted(items, key=_time):
            if self.after is None or item.time > self.after:
                through += self._let_through(item)
        return through

    def release(self, items: Iterable[T] = ()) -> list[T | Jump]:
        """End holding: `items` of history and the held ones, merged. Of two items with one time the live one wins."""
        merged = {item.time: item for item in items} | self._held
        self._held = {}
        self.holding = False
        return self.history(merged.values())

    def release_run(self, *, past_hole: bool = False) -> list[T | Jump]:
        """The held items up to the first hole; with `past_hole` that hole and the items up to the next hole.

        Holding ends when nothing is held any more.
        """
        through: list[T | Jump] = []
        for item in self.held():
            if not self.follows(item):
                if not past_hole:
                    return through
                past_hole = False
            del self._held[item.time]
            through += self._let_through(item)
        self._held = {}
        self.holding = False
        return through

    def held(self) -> list[T]:
        """The held live items that may still pass, ascending."""
        return [self._held[time] for time in sorted(self._held) if self.after is None or time > self.after]

    def _let_through(self, item: T) -> list[T | Jump]:
        last = self.last
        self.last = self.after = item.time
        if last is not None:
            expected = self.timeframe.next(last)
            if expected != item.time:
                return [Jump(expected, item.time), item]
        return [item]


def _time(item: Timed) -> int:
    return item.time

"""The Database port: closed candles behind `read` and `write`. Implemented over SQLite, in threads of its own or in the
caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from klinesync.core.errors import StoreError
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import DamageBoard

R = TypeVar("R")


class Reading(Protocol):
    """A store that can be read, from a thread of its own."""

    def read(self, look: Callable[[CandleStore], R]) -> R:
        """The result of `look` over one consistent state."""
        ...


class Database(Protocol):
    """A store. `async with` opens it, brings its schema up to date, and closes it; that may raise `StoreError`."""

    async def write(self, change: Callable[[CandleStore], R]) -> R:
        """The result of `change`, after its transaction was committed durably.

        When `change` raises, or the commit fails (`StoreError`), nothing was changed. One write at a time.
        """
        ...

    async def read(self, look: Callable[[CandleStore], R]) -> R:
        """The result of `look` over one consistent state. Raises `StoreError`."""
        ...

    @property
    def write_error(self) -> StoreError | None:
        """Why the last write failed (a full disk, for example); None after a commit, and before the first write."""
        ...

    @property
    def damage(self) -> DamageBoard:
        """The parts of the store that were found to be unreadable."""
        ...

    async def check(self) -> None:
        """Check that the files of the store are still those that were opened. Raises `StoreError` when they were
        removed or replaced; nothing is written any more then."""
        ...

    async def check_pages(self, first: int, most: int) -> tuple[list[int], int]:
        """Compare the checksums of the next `most` pages of the store's file, from number `first` on; pages count from
        1. A page that is being written may fail: look again before you believe it.

        Returns the pages that fail, and how many were checked: 0 at the end, and of a store without checksums of its
        own. Raises `StoreError`.
        """
        ...

    async def probe(self) -> None:
        """Write and remove a value, to find out whether the store can be written again. Raises `StoreError`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

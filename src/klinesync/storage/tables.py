"""The Tables port: the statements of an engine, one a method, in numbers, texts and bytes.

The code above is shared by all engines: which candle is a row and which is packed (`candles`, `chunk_table`), the
writer's cache (`memory`), the buffer until `save`, and the meaning of damaged values (`damage`). Results are rows as
the engine returns them; only the store's own writer is trusted, and every reader checks the type of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from klinesync.core.errors import StoreError

# A row as it is read, and one as it is written.
Row: TypeAlias = Sequence[object]
Values: TypeAlias = tuple[int | float | str | bytes | None, ...]


class TransactionLost(StoreError):
    """The engine refused a write inside a savepoint (its disk is full, or failing). The transaction must end, because
    the engine may have rolled all of it back. The cause is the engine's error."""


class Tables(Protocol):
    """The statements of one connection, in one transaction. `number` is a stored series' number; spans are
    `[start, end)` in UTC seconds; writing is only for a connection that writes."""

    @property
    def unreadable(self) -> tuple[type[Exception], ...]:
        """The exceptions of a statement that meets damaged parts of the store."""
        ...

    @property
    def contradicted(self) -> tuple[type[Exception], ...]:
        """The exceptions of a statement that contradicts stored rows: a duplicate number."""
        ...

    def savepoint(self) -> AbstractContextManager[object]:
        """Undo the writes of the block when the block raises. Raises `TransactionLost`."""
        ...

    # --- series

    def commits(self) -> object:
        """The number of the newest transaction that is seen."""
        ...

    def series(self) -> Sequence[Row]:
        """(name,) of every series, in the order of their numbers."""
        ...

    def facts(self) -> Sequence[Row]:
        """(number, name, 1 or None: whether it has a gap, its edges as `edges` gives them) of every series."""
        ...

    def names(self) -> Sequence[Row]:
        """(number, name) of every series."""
        ...

    def number(self, name: str) -> object:
        """The number of a series; None when it is not stored."""
        ...

    def add_series(self, name: str, base: int | None) -> int:
        """Store a series, and give it a number."""
        ...

    def edges(self, number: int) -> Row | None:
        """(oldest row's time, newest row's time, first 8 bytes of the first chunk, recorded first open time), None
        where there is none."""
        ...

    def without_first(self) -> Sequence[Row]:
        """(number, name) of the series whose first open time is not recorded."""
        ...

    def put_firsts(self, rows: Sequence[Values]) -> None:
        """Record (first open time or None, number)."""
        ...

    def derived_of(self, number: int | None) -> Sequence[Row]:
        """(name,) of the series that are derived from it."""
        ...

    def derivation(self, name: str) -> Row | None:
        """(name of the base or None, origin); None when the series is not stored."""
        ...

    def set_derivation(self, name: str, base: int | None, origin: int) -> None:
        """Store how a stored series came about."""
        ...

    # --- candles: rows of (number, a candle's fields), and packed chunks of (chunk, bytes)

    def candles(self, number: int, start: int, end: int, limit: int, *, newest: bool) -> Sequence[Row]:
        """(a candle's fields): the oldest `limit` in the span, or the newest, newest first. -1: no limit."""
        ...

    def count_candles(self, number: int, after: int, most: int) -> object:
        """How many rows have a time after `after`, counted up to `most`."""
        ...

    def oldest_candle(self, number: int) -> object:
        """The time of the oldest row; None when there is none."""
        ...

    def put_candles(self, rows: Sequence[Values]) -> None:
        """Store rows, in place of those of the same series and time."""
        ...

    def delete_candles(self, number: int, before: int) -> None:
        """Delete the rows of a time before `before`."""
        ...

    def chunks(self, number: int, first: int, last: int, limit: int, *, newest: bool) -> list[tuple[int, object]]:
        """(chunk, bytes): the first `limit` of the chunks `first` … `last` (inclusive), or the newest, newest
        first."""
        ...

    def next_chunk(self, number: int, first: int, last: int, *, newest: bool) -> object:
        """The first (or last) stored chunk of `first` … `last`, without a look at its bytes; None: there is none."""
        ...

    def headers_of_chunks(self, number: int, first: int, limit: int) -> Sequence[Row]:
        """(chunk, its first `HEADER_BYTES`, its length in bytes): the first `limit` chunks from `first` on."""
        ...

    def repacking(self) -> Sequence[Row]:
        """(name,) of every series with chunks of an earlier format that are not packed anew yet."""
        ...

    def end_repacking(self, number: int) -> None:
        """The chunks of a series are packed anew."""
        ...

    def put_chunks(self, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Store (number, chunk, bytes), in place of what is there."""
        ...

    def delete_chunks(self, number: int, first: int, end: int) -> None:
        """Delete the chunks of `[first, end)`."""
        ...

    def revisions(self, number: int | None) -> Sequence[Row]:
        """(a candle's fields, revised at, source), in the order in which they were stored."""
        ...

    def add_revisions(self, rows: Sequence[Values]) -> None:
        """Store (number, a candle's fields, revised at, source)."""
        ...

    def delete_revisions(self, number: int, before: int) -> None:
        """Delete those of candles of a time before `before`."""
        ...

    def put_raw(self, table: str, columns: str, rows: Sequence[Values]) -> None:
        """Put rows of another store into a table, as they are."""
        ...

    # --- the quarantine

    def quarantined(self) -> Sequence[Row]:
        """(name, start, end, found at, why, 1 while it is being healed) of all that is in quarantine, the newest
        first."""
        ...

    def quarantined_bytes(self, name: str, start: int, end: int) -> Sequence[Row]:
        """(bytes,) of the series in that span, the newest first."""
        ...

    def put_quarantined(self, row: Values) -> None:
        """Store (name, start, end, found at, why, bytes, 1)."""
        ...

    def evict_quarantined(self, most: int) -> None:
        """Delete all but the newest `most`."""
        ...

    def end_quarantine(self, name: str, start: int, end: int) -> None:
        """What the series has in quarantine in that span is not being healed any more."""
        ...

    # --- gaps

    def gaps(self, number: int, start: int, end: int) -> Sequence[Row]:
        """(start, end, state, proof, confirmed at) of the gaps that touch the span, ascending."""
        ...

    def has_gap(self, number: int) -> bool:
        """Whether the series has any."""
        ...

    def delete_gaps(self, rows: Sequence[Values]) -> None:
        """Delete the gaps (number, start)."""
        ...

    def add_gaps(self, rows: Sequence[Values]) -> None:
        """Store (number, start, end, state, proof, confirmed at)."""
        ...

    # --- the ledger

    def ledgers(self) -> Sequence[Row]:
        """(name, and the six values of a ledger) of every series that has one."""
        ...

    def ledger(self, number: int) -> Row | None:
        """(fingerprint, epoch, record, factor head, overlay head, version)."""
        ...

    def put_ledgers(self, rows: Sequence[Values]) -> None:
        """Store (number, and the six values), in place of those that are there."""
        ...

    def events(self, number: int, start: int, end: int) -> Sequence[Row]:
        """(visible time, factor, event as JSON), in order."""
        ...

    def add_events(self, rows: Sequence[Values]) -> None:
        """Store (number, visible time, number within the candle, factor, event as JSON)."""
        ...

    def drawings(self, number: int, start: int, end: int) -> Sequence[Row]:
        """(visible time, instruction as JSON), by version."""
        ...

    def newest_version(self, number: int, before: int) -> object:
        """The version of the newest drawing that became visible before `before`; None when there is none."""
        ...

    def add_drawings(self, rows: Sequence[Values]) -> None:
        """Store (number, version, visible time, instruction as JSON)."""
        ...

    def checkpoint(self, number: int, before: int) -> Row | None:
        """(time, states) of the newest one of a time before `before`."""
        ...

    def put_checkpoints(self, rows: Sequence[Values]) -> None:
        """Store (number, time, kept, states), in place of earlier ones of the series that are not kept."""
        ...

    def delete_events(self, number: int, start: int, end: int) -> None:
        """Delete what became visible in the span."""
        ...

    def delete_drawings(self, number: int, start: int, end: int) -> None:
        """Delete what became visible in the span."""
        ...

    def delete_checkpoints(self, number: int, start: int, end: int) -> None:
        """Delete those of a time in the span."""
        ...

    # --- what is kept beside series

    def series_events(self) -> Sequence[Row]:
        """(scope, number, event, detail, at, since, times) of all, by number; times in milliseconds."""
        ...

    def delete_all_series_events(self) -> None:
        """Delete all of them."""
        ...

    def delete_series_events(self, rows: Sequence[Values]) -> None:
        """(scope, first, end): delete the scope's events whose numbers lie outside of `[first, end)`."""
        ...

    def add_series_events(self, rows: Sequence[Values]) -> None:
        """Store such rows."""
        ...

    def derived_settings(self) -> Row | None:
        """(base, targets joined by commas)."""
        ...

    def set_derived_settings(self, base: str, targets: str) -> None:
        """Store them in place of those that are there."""
        ...

    def listing(self, exchange: str, market: str) -> object:
        """The bytes of a market's list; None when none is kept."""
        ...

    def put_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        """Store a list in place of the one before."""
        ...

    def backfills(self) -> Sequence[Row]:
        """(name, start, end), by name and start."""
        ...

    def add_backfill(self, name: str, start: int, end: int) -> None:
        """Store it, if it is not there."""
        ...

    def delete_backfill(self, name: str, start: int, end: int) -> None:
        """Delete it."""
        ...

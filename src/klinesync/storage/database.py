"""The Database port: closed candles behind `read` and `write`. Implemented over SQLite, in threads of its own or in the
caller's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from math import isclose
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.events import EventBatch, NumberedEvent
from klinesync.core.gaps import Gap, GapChange
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.factor.graph import Said
from klinesync.overlay.instruction import Instruction
from klinesync.storage.chunks import Maker, T
from klinesync.storage.damage import Damage, DamageBoard

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where candles come from: the source (`stream`, `rest`, `http`, `derived` …), and when (UTC seconds).

    `base`: the series that derived candles were computed from; None for ingested candles. Candles that differ from the
    stored ones by at most `tolerance` (relative) are written, and are no revision."""

    source: str
    at: int
    base: SeriesId | None = None
    tolerance: float = 0.0

    def revises(self, was: Candle | None, now: Candle) -> bool:
        """Whether replacing the stored `was` (None: nothing was stored) by `now` counts as a revision."""
        if was is None or was == now:
            return False
        pairs = zip(was[1:], now[1:], strict=True)
        return not self.tolerance or not all(isclose(*pair, rel_tol=self.tolerance) for pair in pairs)


class DerivationOrigin(IntEnum):
    """The origin of the candles of a derived series."""

    COMPUTED = 0  # computed from its base, and native ones
    MIXED = 1  # others too, which have yet to be computed from the base
    RECOMPUTED = 2  # others remain in buckets that are incomplete in the base


class Derivation(NamedTuple):
    """The derivation of a series: computed from `base`; None: ingested."""

    base: SeriesId | None
    origin: DerivationOrigin = DerivationOrigin.COMPUTED


class Revision(NamedTuple):
    """A closed candle with its old values, before candles of `source` replaced it at `revised_at` (UTC seconds)."""

    was: Candle
    revised_at: int
    source: str


class Ledger(NamedTuple):
    """The progress of factors and overlays of a series: open times, None before the first candle.

    fingerprint: of the factors and overlays that have computed it.
    epoch: rises with every rewind.
    record_id: rises with every change.
    version_id: number of the newest stored drawing; 0 before the first one.
    """

    fingerprint: str
    epoch: int = 0
    record_id: int = 0
    factor_head: int | None = None
    overlay_head: int | None = None
    version_id: int = 0


class LedgerStore(Protocol):
    """The stored results of factors and overlays, within one `read` or `write`; must not be kept beyond it. Writing is
    only for `Database.write`, and for series with stored candles."""

    def get(self, series: SeriesId) -> Ledger | None:
        """The series' ledger; None when nothing was ever computed."""
        ...

    def put(self, series: SeriesId, ledger: Ledger) -> None:
        """Store the progress of the ledger."""
        ...

    def all(self) -> dict[SeriesId, Ledger]:
        """All ledgers."""
        ...

    def add_events(self, series: SeriesId, said: Sequence[Said]) -> None:
        """Append events, in order; all events of one candle in one call."""
        ...

    def events(self, series: SeriesId, start: int, end: int) -> list[Said]:
        """The events that became visible in `[start, end)`, in order."""
        ...

    def add_drawings(self, series: SeriesId, drawings: Sequence[Instruction]) -> None:
        """Store drawings under their numbers."""
        ...

    def drawings(self, series: SeriesId, start: int, end: int) -> list[Instruction]:
        """The stored drawings that became visible in `[start, end)`, by number."""
        ...

    def newest_version(self, series: SeriesId, before: int) -> int:
        """The number of the newest drawing that became visible before `before`; 0 when there is none."""
        ...

    def add_checkpoint(self, series: SeriesId, time: int, states: bytes, *, kept: bool) -> None:
        """Store the factors' states after the candle of `time`, in place of earlier ones that are not `kept`."""
        ...

    def checkpoint(self, series: SeriesId, before: int) -> tuple[int, bytes] | None:
        """The newest checkpoint of a time before `before`, and its time."""
        ...

    def rewind(self, series: SeriesId, time: int) -> None:
        """Delete what became visible at `time` or later, and the checkpoints since then."""
        ...

    def trim(self, series: SeriesId, before: int) -> None:
        """Delete what became visible before `before`, and the checkpoints until then."""
        ...


class EventStore(Protocol):
    """The newest events of series and markets, within one `read` or `write`; must not be kept beyond it. Raises
    `StoreError` where they are damaged, which is no damage of candles."""

    def all(self) -> list[tuple[str, NumberedEvent]]:
        """All events with their scopes, by number."""
        ...

    def apply(self, batch: EventBatch) -> None:
        """Change what is stored. Only within `Database.write`."""
        ...


class Corrected(NamedTuple):
    """`candles` stored candles of a series got other values from `source`; the open times are those of the oldest and
    the newest of them."""

    first: int
    last: int
    candles: int
    source: str


# What a transaction changes of a series beside new candles: its gap ledger, or values that were stored.
SeriesChange = tuple[SeriesId, GapChange | Corrected]


class CandleStore(Protocol):
    """Closed candles of all series, within one `read` or `write`; must not be kept beyond it."""

    @property
    def ledger(self) -> LedgerStore:
        """The ledgers of factors and overlays."""
        ...

    @property
    def events(self) -> EventStore:
        """The newest events of series and markets."""
        ...

    @property
    def changes(self) -> Sequence[SeriesChange]:
        """The changes of this transaction so far beside new candles, in order."""
        ...

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

    def newest_rows(
        self, series: SeriesId, limit: int, make: Maker[T], *, before: int | None = None, after: int | None = None
    ) -> list[T]:
        """The results of `make` for the rows of these candles: for pages, which need no `Candle` objects. Damaged
        candles are left out, and noted as damage; other methods raise `StoreDamaged`."""
        ...

    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int) -> list[T]:
        """The results of `make` for the rows of these candles; otherwise as `newest_rows`."""
        ...

    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        """The number of candles after `since`, counted up to `most`."""
        ...

    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        """The candles that open in `[start, end)`, ascending."""
        ...

    def span(self, series: SeriesId) -> Span | None:
        """From the first stored open time to the close of the head; None when nothing is stored."""
        ...

    def commit(self) -> int:
        """The number of the transaction: in a `write` the current one, in a `read` the newest visible one."""
        ...

    def series(self) -> list[SeriesId]:
        """Every series that was ever written."""
        ...

    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        """The stored series that are derived from `series`."""
        ...

    def derivation(self, series: SeriesId) -> Derivation:
        """The derivation of the series."""
        ...

    def set_derivation(self, series: SeriesId, derivation: Derivation) -> None:
        """Store the derivation of a stored series. Only within `Database.write`."""
        ...

    def derived_settings(self) -> tuple[Timeframe, tuple[Timeframe, ...]] | None:
        """The base and the derived timeframes with which the store was brought up to date last; None before that."""
        ...

    def set_derived_settings(self, base: Timeframe, targets: Sequence[Timeframe]) -> None:
        """Remember them. Only within `Database.write`."""
        ...

    def gaps(self, series: SeriesId, window: Span | None = None) -> list[Gap]:
        """The rows of the gap ledger that touch `window` (None: all), whole, ascending."""
        ...

    def damaged(self, series: SeriesId) -> list[Span]:
        """The spans of the series whose candles were found to be unreadable, here or by others, ascending."""
        ...

    def recheck(self, damage: Damage) -> None:
        """Read a damaged part again; readable parts leave the board. Raises `StoreDamaged` for unreadable ones."""
        ...

    def revisions(self, series: SeriesId) -> list[Revision]:
        """The revisions of the series' candles, in the order in which they happened."""
        ...

    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        """Store closed candles. Only within `Database.write`.

        series: of the candles.
        candles: in any order; of two with one open time the later one in the sequence counts.
        origin: source and time.

        Candles that are stored with the same values change nothing and are not reported; a candle that had other values
        leaves a revision.
        """
        ...

    def trim(self, series: SeriesId, before: int) -> None:
        """Delete the candles that open before `before`, and their revisions; the gap ledger is the caller's. Only
        within `Database.write`."""
        ...

    def savepoint(self) -> AbstractContextManager[object]:
        """Undo the writes of the block when the block raises. The transaction goes on, except after a `StoreError` that
        is no damage. Only within `Database.write`."""
        ...

    def save(self) -> None:
        """Write the buffered changes, so that a later error is not theirs. Only within `Database.write`."""
        ...

    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        """Write a change of the gap ledger. Only within `Database.write`."""
        ...

    def listing(self, exchange: str, market: str) -> bytes | None:
        """The stored list of symbols of a market; None when none is stored."""
        ...

    def keep_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        """Store a list of symbols in place of the previous one. Only within `Database.write`."""
        ...

    def backfills(self) -> list[tuple[SeriesId, Span]]:
        """The explicit backfills that are not over yet, by series, ascending."""
        ...

    def add_backfill(self, series: SeriesId, span: Span) -> None:
        """Store an explicit backfill of `span`; storing it again changes nothing. Only within `Database.write`."""
        ...

    def end_backfill(self, series: SeriesId, span: Span) -> None:
        """Remove an explicit backfill that is over. Only within `Database.write`."""
        ...


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

    async def probe(self) -> None:
        """Write and remove a value, to find out whether the store can be written again. Raises `StoreError`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

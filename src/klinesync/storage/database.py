"""The Database port: closed candles behind `read` and `write`; on SQLite, in threads or in the caller's."""

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
    """Where candles come from: what brought them (`stream`, `rest`, `http`, `derived` …), and when (UTC seconds).

    `base` is the series that they were computed from, None for those that were ingested. Candles whose values differ
    from the stored ones by no more than `tolerance` (relative) are written, and are no revision."""

    source: str
    at: int
    base: SeriesId | None = None
    tolerance: float = 0.0

    def revises(self, was: Candle | None, now: Candle) -> bool:
        """Whether `now` in place of the stored `was` (None: there was none) counts as a revision."""
        if was is None or was == now:
            return False
        pairs = zip(was[1:], now[1:], strict=True)
        return not self.tolerance or not all(isclose(*pair, rel_tol=self.tolerance) for pair in pairs)


class DerivationOrigin(IntEnum):
    """Whose candles a derived series holds."""

    COMPUTED = 0  # what its base gives, and native ones
    MIXED = 1  # others too, which are to be computed from the base
    RECOMPUTED = 2  # others remain where the base gives none


class Derivation(NamedTuple):
    """How a series came about: computed from `base` (None: it was ingested)."""

    base: SeriesId | None
    origin: DerivationOrigin = DerivationOrigin.COMPUTED


class Revision(NamedTuple):
    """A closed candle as it was, before what `source` brought at `revised_at` (UTC seconds) took its place."""

    was: Candle
    revised_at: int
    source: str


class Ledger(NamedTuple):
    """How far factors and overlays have come with a series; open times, None before the first candle.

    `fingerprint` tells what computed it. `epoch` rises with every rewind, `record_id` with every change; `version_id`
    is the number of the newest stored drawing, 0 before the first one.
    """

    fingerprint: str
    epoch: int = 0
    record_id: int = 0
    factor_head: int | None = None
    overlay_head: int | None = None
    version_id: int = 0


class LedgerStore(Protocol):
    """What factors and overlays have stored, within one `read` or `write`; must not be kept beyond it. Writing is only
    for `Database.write`, and for series of which candles are stored."""

    def get(self, series: SeriesId) -> Ledger | None:
        """The series' ledger; None when nothing was ever computed."""
        ...

    def put(self, series: SeriesId, ledger: Ledger) -> None:
        """Write how far the ledger is."""
        ...

    def all(self) -> dict[SeriesId, Ledger]:
        """All ledgers."""
        ...

    def add_events(self, series: SeriesId, said: Sequence[Said]) -> None:
        """Store events behind those that are stored, in order; all that were said at one candle in one call."""
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
    """So many stored `candles` of a series got other values, the oldest and the newest of them at these open times;
    `source` brought the new values."""

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
        """What factors and overlays have stored."""
        ...

    @property
    def events(self) -> EventStore:
        """The newest events of series and markets."""
        ...

    @property
    def changes(self) -> Sequence[SeriesChange]:
        """What this transaction has changed so far beside new candles, in order."""
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
        """What `make` makes of the rows of these candles: for pages, which need no candles in between. Damaged candles
        are left out, and noted as damage; elsewhere they raise `StoreDamaged`."""
        ...

    def oldest_rows(self, series: SeriesId, limit: int, make: Maker[T], *, since: int) -> list[T]:
        """What `make` makes of the rows of these candles."""
        ...

    def count_after(self, series: SeriesId, since: int, most: int) -> int:
        """How many candles follow `since`, counted up to `most`."""
        ...

    def between(self, series: SeriesId, start: int, end: int) -> list[Candle]:
        """The candles that open in `[start, end)`, ascending."""
        ...

    def span(self, series: SeriesId) -> Span | None:
        """From the first stored open time to the close of the head; None when nothing is stored."""
        ...

    def commit(self) -> int:
        """The number of the transaction: in a `write` the one under way, in a `read` the newest that is seen."""
        ...

    def series(self) -> list[SeriesId]:
        """Every series that ever was written to."""
        ...

    def derived_of(self, series: SeriesId) -> list[SeriesId]:
        """The stored series that are derived from `series`."""
        ...

    def derivation(self, series: SeriesId) -> Derivation:
        """How the series came about."""
        ...

    def set_derivation(self, series: SeriesId, derivation: Derivation) -> None:
        """Remember how a stored series came about. Only within `Database.write`."""
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
        """Read again what was damaged; the board forgets what can be read. Raises `StoreDamaged` when it cannot."""
        ...

    def revisions(self, series: SeriesId) -> list[Revision]:
        """The revisions of the series' candles, in the order in which they happened."""
        ...

    def write(self, series: SeriesId, candles: Sequence[Candle], origin: Origin) -> Applied:
        """Store closed candles, in any order; of two with one time the later one in `candles` counts.

        Writing what is stored already changes nothing and is not reported; a candle that had other values leaves a
        revision. Only within `Database.write`.
        """
        ...

    def trim(self, series: SeriesId, before: int) -> None:
        """Delete the candles that open before `before`, and their revisions; the gap ledger is the caller's. Only
        within `Database.write`."""
        ...

    def savepoint(self) -> AbstractContextManager[object]:
        """What is written inside is undone when the block raises; the transaction goes on, but for a `StoreError` that
        is no damage. Only within `Database.write`."""
        ...

    def save(self) -> None:
        """Write what was kept back so far, so that a later error is not of that. Only within `Database.write`."""
        ...

    def change_gaps(self, series: SeriesId, change: GapChange) -> None:
        """Write a change of the gap ledger. Only within `Database.write`."""
        ...

    def listing(self, exchange: str, market: str) -> bytes | None:
        """The list of a market's symbols that was kept last; None when none was."""
        ...

    def keep_listing(self, exchange: str, market: str, symbols: bytes) -> None:
        """Keep a list in place of the one before. Only within `Database.write`."""
        ...

    def backfills(self) -> list[tuple[SeriesId, Span]]:
        """What history was asked for at length and is not read yet, by series, ascending."""
        ...

    def add_backfill(self, series: SeriesId, span: Span) -> None:
        """Remember that `span` was asked for; the same again is nothing. Only within `Database.write`."""
        ...

    def end_backfill(self, series: SeriesId, span: Span) -> None:
        """Forget it. Only within `Database.write`."""
        ...


class Reading(Protocol):
    """A store that can be read, from a thread of its own."""

    def read(self, look: Callable[[CandleStore], R]) -> R:
        """What `look` returns, of one consistent state."""
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

    @property
    def write_error(self) -> StoreError | None:
        """Why the last write failed (a full disk, say); None when it was committed, or there was none yet."""
        ...

    @property
    def damage(self) -> DamageBoard:
        """The parts of the store that were found to be unreadable."""
        ...

    async def check(self) -> None:
        """Look whether the store is still the one that was opened. Raises `StoreError` when its files were removed or
        replaced; then nothing is written any more."""
        ...

    async def probe(self) -> None:
        """Write something and remove it, to find out whether the store can be written again. Raises `StoreError`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

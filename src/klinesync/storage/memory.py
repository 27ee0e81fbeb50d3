"""Memory: a connection's cache of facts about stored series, which would otherwise be read a thousand times a
minute."""

from __future__ import annotations

from enum import Enum
from itertools import islice
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.storage.chunks import T, first_time
from klinesync.storage.damage import Damage, DamageBoard, Kept, OddValue, StoreDamaged
from klinesync.storage.records import Ledger
from klinesync.storage.tables import Row, Tables


class Unknown(Enum):
    """Marks a fact that must be read from the store; None means that there is none."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
_Unknown: TypeAlias = Literal[Unknown.UNKNOWN]


class Edges(NamedTuple):
    """The oldest and the newest stored open time of a series. Not a `Span`, which ends behind the newest candle. The
    oldest candle itself may be missing: then its time is in a gap."""

    oldest: int
    newest: int


class Facts(NamedTuple):
    """The cached facts of a stored series.

    number: its number in the tables; it never changes.
    edges: None: no candle is stored.
    first_row: from this open time on its candles are rows, before it they are packed; None: not known.
    tail: its newest candles, ascending; empty: not known.
    has_gaps: False: its gap ledger is empty.
    ledger: None: it has none, and no events, drawings or checkpoints either.
    """

    number: int
    edges: Edges | _Unknown | None = UNKNOWN
    first_row: int | None = None
    tail: tuple[Candle, ...] = ()
    has_gaps: bool = True
    ledger: Ledger | _Unknown | None = UNKNOWN

    def with_ledger(self, ledger: Ledger) -> Facts:
        """The facts with another ledger. (`_replace` takes three times as long.)"""
        return Facts(self.number, self.edges, self.first_row, self.tail, self.has_gaps, ledger)


class Memory:
    """The facts of the series that were read so far, or of all series.

    Numbers never change, and every connection caches them. All other facts change with each write, and only the writing
    connection may cache them. A rollback of a transaction or a savepoint undoes the changes of its facts; the facts of
    other series stay.
    """

    def __init__(self, *, writes: bool, damage: DamageBoard | None = None) -> None:
        self.writes = writes
        self.damage = DamageBoard() if damage is None else damage
        self._facts: dict[SeriesId, Facts] = {}
        self._complete = False  # a series without facts is not stored
        self._undo: list[tuple[SeriesId, Facts | None]] = []
        # Series with rows that can be packed, and those that this transaction has packed.
        self.to_pack: dict[SeriesId, None] = {}
        self._packed: list[SeriesId] = []

    def learn(self, tables: Tables) -> None:
        """Read the facts of all series at once: one query a series would delay the first candle of every series."""
        assert self.writes, "only the connection that writes may remember"
        try:
            for number, name, gap, *edges in tables.facts():
                series = series_of(name)
                known = edges_of(edges)
                first_row = None if known is None else integer(edges[0])
                self._facts[series] = Facts(integer(number), known, first_row, has_gaps=gap is not None)
        except tables.unreadable:
            # A damaged page costs its series alone: the facts of each are read when they are needed.
            self._facts = {series_of(name): Facts(integer(number)) for number, name in tables.names()}
        self._learn_ledgers(tables)
        self._complete = True

    def _learn_ledgers(self, tables: Tables) -> None:
        """Read the ledgers of all series. A damaged ledger does not fail the others: it is read, and reported,
        later."""
        try:
            found = {series_of(name): ledger_of(values) for name, *values in tables.ledgers()}
        except tables.unreadable:
            return
        for series, facts in self._facts.items():
            self._facts[series] = facts._replace(ledger=found.get(series))

    def of(self, series: SeriesId, tables: Tables) -> Facts | None:
        """The facts of a series; None when it is not stored."""
        facts = self._facts.get(series)
        if facts is None and not self._complete:
            number = tables.number(str(series))
            if number is not None:
                facts = self._facts[series] = Facts(integer(number))
        return facts

    def put(self, series: SeriesId, facts: Facts) -> None:
        """Cache facts that the current transaction has written or read."""
        self._undo.append((series, self._facts.get(series)))
        self._facts[series] = facts

    def take_to_pack(self, most: int) -> list[SeriesId]:
        """Up to `most` series with rows that can be packed. They are noted again when the transaction is rolled
        back."""
        series = list(islice(self.to_pack, most))
        for one in series:
            del self.to_pack[one]
        self._packed += series
        return series

    def leave_out(self, series: SeriesId) -> None:
        """Do not note a series again that this transaction could not pack."""
        self._packed.remove(series)

    def named(self, number: int) -> SeriesId | None:
        """The series of that number, where it is cached. Slow: for messages."""
        return next((series for series, facts in self._facts.items() if facts.number == number), None)

    def unreadable(self, series: SeriesId, error: Exception) -> StoreDamaged:
        """Note damage of a series; the exception to raise."""
        damage = Damage(series, None, f"the store's file cannot be read there: {error}", Kept.ANY)
        self.damage.note(damage)
        return StoreDamaged(damage)

    def mark(self) -> int:
        """A mark of the transaction's present state, for `undo`."""
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Undo the changes since `mark`, after a rollback."""
        while len(self._undo) > mark:
            series, facts = self._undo.pop()
            if facts is None:
                del self._facts[series]
            else:
                self._facts[series] = facts
        if not mark:
            self.to_pack |= dict.fromkeys(self._packed)
            self._packed.clear()

    def keep(self) -> None:
        """Keep the changes, after a commit."""
        self._undo.clear()
        self._packed.clear()

    def forget(self) -> None:
        """Drop all facts."""
        self._facts.clear()
        self._undo.clear()
        self.to_pack.clear()
        self._packed.clear()
        self._complete = False


def edges_of(row: Row) -> Edges | None:
    """The edges behind what `Tables.edges` answers. The recorded first open time counts: the first candle may be
    damaged, or gone. Raises `OddValue`."""
    oldest_row, newest, packed, recorded = row
    if oldest_row is None:
        return None
    oldest = integer(oldest_row)
    if recorded is not None:
        return Edges(min(integer(recorded), oldest), integer(newest))
    if packed is None:
        return Edges(oldest, integer(newest))
    if not isinstance(packed, bytes):
        raise OddValue("a chunk is no bytes")
    return Edges(min(first_time(packed), oldest), integer(newest))


def ledger_of(row: Row) -> Ledger:
    """The ledger behind its six values. Raises `OddValue`."""
    return checked(row, Ledger)


def checked(row: Row, kind: type[T]) -> T:
    """A stored row as a tuple of that kind. Raises `OddValue`."""
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        raise OddValue(str(error)) from error


def series_of(name: object) -> SeriesId:
    """The series of a stored name. Raises `OddValue`."""
    try:
        return SeriesId.parse(str(name))
    except Rejected as error:
        raise OddValue(str(error)) from error


def integer(value: object) -> int:
    """A stored integer. Raises `OddValue`."""
    if not isinstance(value, int):
        raise OddValue(f"{str(value)[:40]!r} is no integer")
    return value

"""The ledgers of factors and overlays, over the tables of any engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from klinesync.core.candle import MAX_TIME
from klinesync.core.decoding import reason_of
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.factor.graph import Said
from klinesync.overlay.instruction import Instruction
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.memory import Facts, Memory, Unknown, checked, integer, ledger_of, series_of
from klinesync.storage.records import Ledger
from klinesync.storage.tables import Tables, Values

# Before and behind every time that a damaged row may have.
_BEFORE_ALL, _BEHIND_ALL = -(1 << 63), (1 << 63) - 1
_event = msgspec.json.Decoder(dict[str, object])
_instruction = msgspec.json.Decoder(Instruction)
_encoder = msgspec.json.Encoder()

_Buffer: TypeAlias = dict[SeriesId, list[Values]]


class LedgerStore:
    """The stored results of factors and overlays, within one `read` or `write`; must not be kept beyond it. Writing is
    only for `Database.write`, and for series with stored candles. Unreadable data is noted as damage, and raises
    `StoreDamaged`.

    Writes are buffered until the data is read or `save` is called: one statement a table, whatever the number of
    series.
    """

    def __init__(self, tables: Tables, memory: Memory) -> None:
        self._tables = tables
        self._memory = memory
        self._ledgers: _Buffer = {}
        self._events: _Buffer = {}
        self._drawings: _Buffer = {}
        self._checkpoints: _Buffer = {}

    def get(self, series: SeriesId) -> Ledger | None:
        """The series' ledger; None when nothing was ever computed."""
        facts = self._facts(series)
        if facts is None:
            return None
        if facts.ledger is not Unknown.UNKNOWN:
            return facts.ledger
        try:
            found = self._tables.ledger(facts.number)
            ledger = None if found is None else ledger_of(found)
        except self._tables.unreadable as error:
            raise self._damaged(series, Kept.LEDGER, None, error) from error
        self._readable(series, Kept.LEDGER, None)
        if self._memory.writes:
            # Without a row nothing is known of events and the like: another program may have deleted it.
            self._memory.put(series, facts._replace(ledger=ledger))
        return ledger

    def put(self, series: SeriesId, ledger: Ledger) -> None:
        """Store the progress of the ledger."""
        facts = self._stored(series)
        self._memory.put(series, facts.with_ledger(ledger))
        self._ledgers[series] = [(facts.number, *ledger)]

    def all(self) -> dict[SeriesId, Ledger]:
        """All ledgers."""
        self._save(self._ledgers, Kept.LEDGER, self._tables.put_ledgers)
        try:
            return {series_of(name): ledger_of(values) for name, *values in self._tables.ledgers()}
        except self._tables.unreadable as error:
            raise self._damaged(None, Kept.LEDGER, None, error) from error

    def add_events(self, series: SeriesId, said: Sequence[Said]) -> None:
        """Append events, in order; all events of one candle in one call."""
        if not said:
            return
        number = self._stored(series).number
        rows = self._events.setdefault(series, [])
        time, event_no = -1, 0
        for factor, event in said:
            event_no = event_no + 1 if event["visible_time"] == time else 0
            time = event["visible_time"]  # type: ignore[assignment]  # the graph has checked it
            rows.append((number, time, event_no, factor, _encoder.encode(event).decode()))

    def events(self, series: SeriesId, start: int, end: int) -> list[Said]:
        """The events that became visible in `[start, end)`, in order."""
        number = self._number_of_ledger(series)
        if number is None:
            return []
        self._save_if_buffered(series)
        said: list[Said] = []
        span, time = Span(start, end), None
        try:
            for time, factor, event in self._tables.events(number, start, end):  # noqa: B007  # of the one that is told
                said.append(Said(str(factor), _event.decode(str(event))))  # type: ignore[arg-type]
        except self._tables.unreadable as error:
            raise self._damaged(series, Kept.EVENTS, span, error) from error
        except msgspec.DecodeError as error:
            raise self._damaged(series, Kept.EVENTS, _at(time), error) from error
        self._readable(series, Kept.EVENTS, span)
        return said

    def add_drawings(self, series: SeriesId, drawings: Sequence[Instruction]) -> None:
        """Store drawings under their numbers."""
        if drawings:
            number = self._stored(series).number
            self._drawings.setdefault(series, []).extend(
                (number, one.version_id, one.visible_time, _encoder.encode(one).decode()) for one in drawings
            )

    def drawings(self, series: SeriesId, start: int, end: int) -> list[Instruction]:
        """The stored drawings that became visible in `[start, end)`, by number."""
        number = self._number_of_ledger(series)
        if number is None:
            return []
        self._save_if_buffered(series)
        drawings: list[Instruction] = []
        span, time = Span(start, end), None
        try:
            for time, text in self._tables.drawings(number, start, end):  # noqa: B007  # of the one that is told
                drawings.append(_instruction.decode(str(text)))
        except self._tables.unreadable as error:
            raise self._damaged(series, Kept.DRAWINGS, span, error) from error
        except msgspec.DecodeError as error:
            raise self._damaged(series, Kept.DRAWINGS, _at(time), error) from error
        self._readable(series, Kept.DRAWINGS, span)
        return drawings

    def newest_version(self, series: SeriesId, before: int) -> int:
        """The number of the newest drawing that became visible before `before`; 0 when there is none."""
        number = self._number_of_ledger(series)
        if number is None:
            return 0
        self._save_if_buffered(series)
        try:
            found = self._tables.newest_version(number, before)
            return 0 if found is None else integer(found)
        except self._tables.unreadable as error:
            raise self._damaged(series, Kept.DRAWINGS, None, error) from error

    def add_checkpoint(self, series: SeriesId, time: int, states: bytes, *, kept: bool) -> None:
        """Store the factors' states after the candle of `time`, in place of earlier ones that are not `kept`."""
        number = self._stored(series).number
        buffered = self._checkpoints.get(series, ())
        self._checkpoints[series] = [
            *(row for row in buffered if row[2] or (row[1] != time and not _is_before(row, time))),
            (number, time, kept, states),
        ]

    def checkpoint(self, series: SeriesId, before: int) -> tuple[int, bytes] | None:
        """The newest checkpoint of a time before `before`, and its time."""
        number = self._number_of_ledger(series)
        if number is None:
            return None
        self._save_if_buffered(series)
        try:
            found = self._tables.checkpoint(number, before)
            checkpoint = None if found is None else checked(found, tuple[int, bytes])
        except self._tables.unreadable as error:
            raise self._damaged(series, Kept.CHECKPOINTS, None, error) from error
        self._readable(series, Kept.CHECKPOINTS, None)
        return checkpoint

    def rewind(self, series: SeriesId, time: int) -> None:
        """Delete what became visible at `time` or later, and the checkpoints since then."""
        self._delete(series, time if time > 0 else _BEFORE_ALL, _BEHIND_ALL)

    def trim(self, series: SeriesId, before: int) -> None:
        """Delete what became visible before `before`, and the checkpoints until then."""
        self._delete(series, _BEFORE_ALL, before)

    def _delete(self, series: SeriesId, start: int, end: int) -> None:
        number = self._number_of_ledger(series)
        if number is None:
            return
        self._save_if_buffered(series)
        for kept, delete in (
            (Kept.EVENTS, self._tables.delete_events),
            (Kept.DRAWINGS, self._tables.delete_drawings),
            (Kept.CHECKPOINTS, self._tables.delete_checkpoints),
        ):
            try:
                delete(number, start, end)
            except self._tables.unreadable as error:
                raise self._damaged(series, kept, None, error) from error

    def recheck(self, damage: Damage) -> None:
        """Read a damaged ledger again; a readable one leaves the board. Raises `StoreDamaged` for an unreadable one."""
        if damage.series is None:
            return
        span = damage.span or Span(0, MAX_TIME + 1)
        match damage.kept:
            case Kept.EVENTS:
                self.events(damage.series, *span)
                self._readable(damage.series, Kept.EVENTS, damage.span)
            case Kept.DRAWINGS:
                self.drawings(damage.series, *span)
                self._readable(damage.series, Kept.DRAWINGS, damage.span)
            case Kept.CHECKPOINTS:
                self.checkpoint(damage.series, MAX_TIME + 1)
            case Kept.LEDGER:
                self.get(damage.series)

    def save(self) -> None:
        """Write the buffered changes."""
        self._save(self._ledgers, Kept.LEDGER, self._tables.put_ledgers)
        self._save(self._events, Kept.EVENTS, self._tables.add_events)
        self._save(self._drawings, Kept.DRAWINGS, self._tables.add_drawings)
        self._save(self._checkpoints, Kept.CHECKPOINTS, self._tables.put_checkpoints)

    def drop(self) -> None:
        """Drop the buffered changes, after a rollback."""
        for buffer in (self._ledgers, self._events, self._drawings, self._checkpoints):
            buffer.clear()

    def _save(self, buffer: _Buffer, kept: Kept, put: Callable[[Sequence[Values]], None]) -> None:
        if not buffer:
            return
        by_series = dict(buffer)
        buffer.clear()
        failures = (*self._tables.unreadable, *self._tables.contradicted)
        try:
            if len(by_series) == 1:
                put(next(iter(by_series.values())))
            else:
                with self._tables.savepoint():
                    put([row for rows in by_series.values() for row in rows])
        except failures as error:
            raise self._damaged(self._culprit(by_series, put), kept, None, error) from error

    def _culprit(self, by_series: _Buffer, put: Callable[[Sequence[Values]], None]) -> SeriesId | None:
        """The series whose rows cannot be written; None when each can be. The transaction is lost in any case."""
        if len(by_series) == 1:
            return next(iter(by_series))
        for series, rows in by_series.items():
            try:
                put(rows)
            except (*self._tables.unreadable, *self._tables.contradicted):
                return series
        return None

    def _save_if_buffered(self, series: SeriesId) -> None:
        if series in self._events or series in self._drawings or series in self._checkpoints:
            self.save()

    def _facts(self, series: SeriesId) -> Facts | None:
        return self._memory.of(series, self._tables)

    def _stored(self, series: SeriesId) -> Facts:
        facts = self._facts(series)
        assert facts is not None, "a ledger is that of stored candles"
        return facts

    def _number_of_ledger(self, series: SeriesId) -> int | None:
        """The number of a series that may have events, drawings and checkpoints; None when it has none."""
        facts = self._facts(series)
        return None if facts is None or facts.ledger is None else facts.number

    def _readable(self, series: SeriesId, kept: Kept, span: Span | None) -> None:
        if self._memory.damage:
            self._memory.damage.clear(series, kept, span)

    def _damaged(self, series: SeriesId | None, kept: Kept, span: Span | None, error: Exception) -> StoreDamaged:
        damage = Damage(series, span, f"the stored {kept} cannot be read: {reason_of(error)}", kept)
        self._memory.damage.note(damage)
        return StoreDamaged(damage)


def _is_before(row: Values, time: int) -> bool:
    at = row[1]
    return isinstance(at, int) and at < time


def _at(time: object) -> Span | None:
    return Span(time, time + 1) if isinstance(time, int) else None

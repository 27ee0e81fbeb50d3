"""The ledger in SQLite: `LedgerStore` on one connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw
import msgspec

from klinesync.core.candle import MAX_TIME
from klinesync.core.decoding import reason_of
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.factor.graph import Said
from klinesync.overlay.instruction import Instruction
from klinesync.storage.damage import Damage, DamageBoard, Kept, StoreDamaged
from klinesync.storage.database import Ledger
from klinesync.storage.disk import UNREADABLE

_event = msgspec.json.Decoder(dict[str, object])
_instruction = msgspec.json.Decoder(Instruction)
_encoder = msgspec.json.Encoder()
# Also what contradicts itself: a drawing that is there already has a number that the ledger says is not given yet.
_DAMAGED = (*UNREADABLE, apsw.ConstraintError)


class SqliteLedgerStore:
    """`LedgerStore` on one connection, in one transaction. `number` gives a stored series' number, None of another;
    `damage` is told of what cannot be read, which raises `StoreDamaged`.

    A writing one has `known`: the rows that the one writer remembers. What is put goes there, and to the store with
    `save`, all at once.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        number: Callable[[SeriesId], int | None],
        known: dict[SeriesId, Ledger] | None = None,
        damage: DamageBoard | None = None,
    ) -> None:
        self._board = DamageBoard() if damage is None else damage
        self._connection = connection
        self._number = number
        self._known = known
        self._unsaved: dict[SeriesId, Ledger] = {}

    def get(self, series: SeriesId) -> Ledger | None:
        if self._known is None:
            return self._read(series)
        ledger = self._known.get(series)
        if ledger is None:
            ledger = self._read(series)
            if ledger is not None:
                self._known[series] = ledger
        return ledger

    def _read(self, series: SeriesId) -> Ledger | None:
        number = self._number(series)
        if number is None:
            return None
        found = self._run(
            series,
            Kept.LEDGER,
            "SELECT fingerprint, epoch, record_id, factor_head, overlay_head, version_id FROM ledger"
            " WHERE series_no = ?",
            (number,),
        )
        try:
            ledger = msgspec.convert(found[0], Ledger) if found else None
        except msgspec.ValidationError as error:
            raise self._damaged(series, Kept.LEDGER, None, error) from error
        if self._board:
            self._board.clear(series, Kept.LEDGER, None)
        return ledger

    def put(self, series: SeriesId, ledger: Ledger) -> None:
        assert self._known is not None, "this store only reads"
        self._known[series] = self._unsaved[series] = ledger

    def save(self) -> None:
        """Write what was put."""
        if self._unsaved:
            only = next(iter(self._unsaved)) if len(self._unsaved) == 1 else None
            self._run_many(
                only,
                Kept.LEDGER,
                "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(self._number(series), *ledger) for series, ledger in self._unsaved.items()],
            )
            self._unsaved.clear()

    def forget(self) -> None:
        """What was put since the last `save` is rolled back."""
        self._unsaved.clear()

    def all(self) -> dict[SeriesId, Ledger]:
        self.save()
        found = self._run(
            None,
            Kept.LEDGER,
            "SELECT series_id, fingerprint, epoch, record_id, factor_head, overlay_head, version_id"
            " FROM ledger JOIN series USING (series_no)",
            (),
        )
        try:
            return {SeriesId.parse(str(row[0])): msgspec.convert(row[1:], Ledger) for row in found}
        except (Rejected, msgspec.ValidationError) as error:
            raise self._damaged(None, Kept.LEDGER, None, error) from error

    def add_events(self, series: SeriesId, said: Sequence[Said]) -> None:
        if not said:
            return
        number = self._number(series)
        rows = []
        time, event_no = -1, 0
        for factor, event in said:
            event_no = event_no + 1 if event["visible_time"] == time else 0
            time = event["visible_time"]  # type: ignore[assignment]  # the graph has checked it
            rows.append((number, time, event_no, factor, _encoder.encode(event).decode()))
        self._run_many(series, Kept.EVENTS, "INSERT INTO factor_event VALUES (?, ?, ?, ?, ?)", rows)

    def events(self, series: SeriesId, start: int, end: int) -> list[Said]:
        span = Span(start, end)
        found = self._run(
            series,
            Kept.EVENTS,
            "SELECT visible_time, factor, event FROM factor_event"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY visible_time, event_no",
            (self._number(series), start, end),
            span,
        )
        said: list[Said] = []
        for time, factor, event in found:
            try:
                said.append(Said(str(factor), _event.decode(str(event))))  # type: ignore[arg-type]
            except msgspec.DecodeError as error:
                raise self._damaged(series, Kept.EVENTS, _at(time), error) from error
        if self._board:
            self._board.clear(series, Kept.EVENTS, span)
        return said

    def add_drawings(self, series: SeriesId, drawings: Sequence[Instruction]) -> None:
        if not drawings:
            return
        number = self._number(series)
        self._run_many(
            series,
            Kept.DRAWINGS,
            "INSERT INTO drawing VALUES (?, ?, ?, ?)",
            [(number, one.version_id, one.visible_time, _encoder.encode(one).decode()) for one in drawings],
        )

    def drawings(self, series: SeriesId, start: int, end: int) -> list[Instruction]:
        span = Span(start, end)
        found = self._run(
            series,
            Kept.DRAWINGS,
            "SELECT visible_time, instruction FROM drawing"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY version_id",
            (self._number(series), start, end),
            span,
        )
        drawings: list[Instruction] = []
        for time, text in found:
            try:
                drawings.append(_instruction.decode(str(text)))
            except msgspec.DecodeError as error:
                raise self._damaged(series, Kept.DRAWINGS, _at(time), error) from error
        if self._board:
            self._board.clear(series, Kept.DRAWINGS, span)
        return drawings

    def newest_version(self, series: SeriesId, before: int) -> int:
        found = self._run(
            series,
            Kept.DRAWINGS,
            "SELECT version_id FROM drawing WHERE series_no = ? AND visible_time < ?"
            " ORDER BY visible_time DESC, version_id DESC LIMIT 1",
            (self._number(series), before),
        )
        if not found:
            return 0
        (newest,) = found[0]
        assert isinstance(newest, int)
        return newest

    def add_checkpoint(self, series: SeriesId, time: int, states: bytes, *, kept: bool) -> None:
        number = self._number(series)
        for statement, values in (
            ("DELETE FROM checkpoint WHERE series_no = ? AND time < ? AND kept = 0", (number, time)),
            ("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?)", (number, time, kept, states)),
        ):
            self._run(series, Kept.CHECKPOINTS, statement, values)

    def checkpoint(self, series: SeriesId, before: int) -> tuple[int, bytes] | None:
        found = self._run(
            series,
            Kept.CHECKPOINTS,
            "SELECT time, states FROM checkpoint WHERE series_no = ? AND time < ? ORDER BY time DESC LIMIT 1",
            (self._number(series), before),
        )
        try:
            checkpoint = msgspec.convert(found[0], tuple[int, bytes]) if found else None
        except msgspec.ValidationError as error:
            raise self._damaged(series, Kept.CHECKPOINTS, None, error) from error
        if self._board:
            self._board.clear(series, Kept.CHECKPOINTS, None)
        return checkpoint

    def rewind(self, series: SeriesId, time: int) -> None:
        self._delete(series, ">=", time)

    def trim(self, series: SeriesId, before: int) -> None:
        self._delete(series, "<", before)

    def _delete(self, series: SeriesId, operator: str, time: int) -> None:
        number = self._number(series)
        for kept, table, column in (
            (Kept.EVENTS, "factor_event", "visible_time"),
            (Kept.DRAWINGS, "drawing", "visible_time"),
            (Kept.CHECKPOINTS, "checkpoint", "time"),
        ):
            statement = f"DELETE FROM {table} WHERE series_no = ? AND {column} {operator} ?"  # noqa: S608  # our own words
            self._run(series, kept, statement, (number, time))

    def recheck(self, damage: Damage) -> None:
        """Read again what was damaged: the board learns whether it is over. Raises `StoreDamaged` when it is not."""
        if damage.series is None:
            return
        match damage.kept:
            case Kept.EVENTS if damage.span is not None:
                self.events(damage.series, *damage.span)
            case Kept.DRAWINGS if damage.span is not None:
                self.drawings(damage.series, *damage.span)
            case Kept.EVENTS:
                self.events(damage.series, 0, MAX_TIME + 1)
                self._board.clear(damage.series, Kept.EVENTS, None)
            case Kept.DRAWINGS:
                self.drawings(damage.series, 0, MAX_TIME + 1)
                self._board.clear(damage.series, Kept.DRAWINGS, None)
            case Kept.CHECKPOINTS:
                self.checkpoint(damage.series, MAX_TIME + 1)
            case Kept.LEDGER:
                self.get(damage.series)

    def _run(
        self,
        series: SeriesId | None,
        kept: Kept,
        statement: str,
        values: tuple[int | str | bytes | None, ...],
        span: Span | None = None,
    ) -> list[tuple[object, ...]]:
        """The rows of a statement. `series`, `kept` and `span` say whose they are, should the file be damaged there."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except _DAMAGED as error:
            raise self._damaged(series, kept, span, error) from error

    def _run_many(
        self,
        series: SeriesId | None,
        kept: Kept,
        statement: str,
        rows: Sequence[tuple[int | str | bytes | None, ...]],
    ) -> None:
        try:
            self._connection.executemany(statement, rows)
        except _DAMAGED as error:
            raise self._damaged(series, kept, None, error) from error

    def _damaged(self, series: SeriesId | None, kept: Kept, span: Span | None, error: Exception) -> StoreDamaged:
        damage = Damage(series, span, f"the stored {kept} cannot be read: {reason_of(error)}", kept)
        self._board.note(damage)
        return StoreDamaged(damage)


def _at(time: object) -> Span | None:
    return Span(time, time + 1) if isinstance(time, int) else None

"""The ledger in SQLite: `LedgerStore` on one connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw
import msgspec

from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import Said
from klinesync.overlay.instruction import Instruction
from klinesync.storage.damage import Damage, DamageBoard, StoreDamaged
from klinesync.storage.database import Ledger

_event = msgspec.json.Decoder(dict[str, object])
_instruction = msgspec.json.Decoder(Instruction)
_encoder = msgspec.json.Encoder()


class SqliteLedgerStore:
    """`LedgerStore` on one connection, in one transaction. `number` gives a stored series' number, None of another;
    `damage` is told of what cannot be read.

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
        found = self._connection.execute(
            "SELECT fingerprint, epoch, record_id, factor_head, overlay_head, version_id FROM ledger"
            " WHERE series_no = ?",
            (number,),
        ).get
        return None if found is None else Ledger(*found)

    def put(self, series: SeriesId, ledger: Ledger) -> None:
        assert self._known is not None, "this store only reads"
        self._known[series] = self._unsaved[series] = ledger

    def save(self) -> None:
        """Write what was put."""
        if self._unsaved:
            self._connection.executemany(
                "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(self._number(series), *ledger) for series, ledger in self._unsaved.items()],
            )
            self._unsaved.clear()

    def forget(self) -> None:
        """What was put since the last `save` is rolled back."""
        self._unsaved.clear()

    def all(self) -> dict[SeriesId, Ledger]:
        self.save()
        found = self._connection.execute(
            "SELECT series_id, fingerprint, epoch, record_id, factor_head, overlay_head, version_id"
            " FROM ledger JOIN series USING (series_no)"
        )
        return {SeriesId.parse(str(row[0])): Ledger(*row[1:]) for row in found}

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
        self._connection.executemany("INSERT INTO factor_event VALUES (?, ?, ?, ?, ?)", rows)

    def events(self, series: SeriesId, start: int, end: int) -> list[Said]:
        found = self._connection.execute(
            "SELECT visible_time, factor, event FROM factor_event"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY visible_time, event_no",
            (self._number(series), start, end),
        )
        said: list[Said] = []
        for time, factor, event in found:
            try:
                said.append(Said(str(factor), _event.decode(str(event))))  # type: ignore[arg-type]
            except msgspec.DecodeError as error:
                raise self._damaged(series, int(time), "factor events", error) from error
        return said

    def add_drawings(self, series: SeriesId, drawings: Sequence[Instruction]) -> None:
        if not drawings:
            return
        number = self._number(series)
        self._connection.executemany(
            "INSERT INTO drawing VALUES (?, ?, ?, ?)",
            [(number, one.version_id, one.visible_time, _encoder.encode(one).decode()) for one in drawings],
        )

    def drawings(self, series: SeriesId, start: int, end: int) -> list[Instruction]:
        found = self._connection.execute(
            "SELECT visible_time, instruction FROM drawing"
            " WHERE series_no = ? AND visible_time >= ? AND visible_time < ? ORDER BY version_id",
            (self._number(series), start, end),
        )
        drawings: list[Instruction] = []
        for time, text in found:
            try:
                drawings.append(_instruction.decode(str(text)))
            except msgspec.DecodeError as error:
                raise self._damaged(series, int(time), "drawings", error) from error
        return drawings

    def _damaged(self, series: SeriesId, time: int, what: str, error: msgspec.DecodeError) -> StoreDamaged:
        damage = Damage(series, Span(time, time + 1), f"stored {what} cannot be read: {error}")
        self._board.note(damage)
        return StoreDamaged(damage)

    def newest_version(self, series: SeriesId, before: int) -> int:
        found = self._connection.execute(
            "SELECT version_id FROM drawing WHERE series_no = ? AND visible_time < ?"
            " ORDER BY visible_time DESC, version_id DESC LIMIT 1",
            (self._number(series), before),
        ).get
        assert found is None or isinstance(found, int)
        return found or 0

    def add_checkpoint(self, series: SeriesId, time: int, states: bytes, *, kept: bool) -> None:
        number = self._number(series)
        self._connection.execute("DELETE FROM checkpoint WHERE series_no = ? AND time < ? AND kept = 0", (number, time))
        self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?)", (number, time, kept, states))

    def checkpoint(self, series: SeriesId, before: int) -> tuple[int, bytes] | None:
        found = self._connection.execute(
            "SELECT time, states FROM checkpoint WHERE series_no = ? AND time < ? ORDER BY time DESC LIMIT 1",
            (self._number(series), before),
        ).get
        if found is None:
            return None
        time, states = found
        return int(time), bytes(states)

    def rewind(self, series: SeriesId, time: int) -> None:
        number = self._number(series)
        for table, column in (("factor_event", "visible_time"), ("drawing", "visible_time"), ("checkpoint", "time")):
            self._connection.execute(
                f"DELETE FROM {table} WHERE series_no = ? AND {column} >= ?",  # noqa: S608  # only our own words
                (number, time),
            )

    def trim(self, series: SeriesId, before: int) -> None:
        number = self._number(series)
        for table, column in (("factor_event", "visible_time"), ("drawing", "visible_time"), ("checkpoint", "time")):
            self._connection.execute(
                f"DELETE FROM {table} WHERE series_no = ? AND {column} < ?",  # noqa: S608  # only our own words
                (number, before),
            )

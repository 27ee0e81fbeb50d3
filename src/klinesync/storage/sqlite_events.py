"""The events of series in SQLite: `EventStore` on one connection, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from klinesync.core.errors import StoreError
from klinesync.core.events import EventBatch, NumberedEvent, SeriesEvent
from klinesync.storage.disk import UNREADABLE, OddValue


class SqliteEventStore:
    """See `EventStore`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def all(self) -> list[tuple[str, NumberedEvent]]:
        with _no_damage_of_candles():
            found = self._connection.execute(
                "SELECT scope, event_no, event, detail, at_ms, since_ms, times FROM series_event ORDER BY event_no"
            )
            return [_as_event(row) for row in found]

    def apply(self, batch: EventBatch) -> None:
        with _no_damage_of_candles():
            if batch.clear:
                self._connection.execute("DELETE FROM series_event")
            self._connection.executemany(
                "DELETE FROM series_event WHERE scope = ? AND (event_no < ? OR event_no >= ?)",
                [(change.scope, change.first, change.start) for change in batch.changes],
            )
            self._connection.executemany(
                "INSERT INTO series_event VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(change.scope, number, *event) for change in batch.changes for number, event in change.events],
            )


@contextmanager
def _no_damage_of_candles() -> Iterator[None]:
    """A damaged page of this table is no reason to take the store for damaged: nothing but events is lost."""
    try:
        yield
    except UNREADABLE as error:
        raise StoreError(f"the stored events of series are damaged: {error}") from error


def _as_event(row: tuple[object, ...]) -> tuple[str, NumberedEvent]:
    match row:
        case str(scope), int(number), str(event), str(detail), int(at_ms), int(since_ms), int(times):
            return scope, NumberedEvent(number, SeriesEvent(event, detail, at_ms, since_ms, times))
        case _:
            raise OddValue(f"{str(row)[:80]} is no event of a series")

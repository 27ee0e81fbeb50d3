"""The newest events of series and markets, over the tables of any engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from klinesync.core.errors import StoreError
from klinesync.core.events import EventBatch, NumberedEvent, SeriesEvent
from klinesync.storage.damage import OddValue
from klinesync.storage.tables import Row, Tables


class EventStore:
    """The newest events of series and markets, within one `read` or `write`; must not be kept beyond it.
    Raises `StoreError` where they are damaged, which is no damage of candles."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def all(self) -> list[tuple[str, NumberedEvent]]:
        """All events with their scopes, by number."""
        with self._no_damage_of_candles():
            return [_as_event(row) for row in self._tables.series_events()]

    def apply(self, batch: EventBatch) -> None:
        """Change what is stored. Only within `Database.write`."""
        with self._no_damage_of_candles():
            if batch.clear:
                self._tables.delete_all_series_events()
            self._tables.delete_series_events([(change.scope, change.first, change.start) for change in batch.changes])
            self._tables.add_series_events(
                [(change.scope, number, *event) for change in batch.changes for number, event in change.events]
            )

    @contextmanager
    def _no_damage_of_candles(self) -> Iterator[None]:
        """A damaged page of this table is no reason to take the store for damaged: nothing but events is lost."""
        try:
            yield
        except self._tables.unreadable as error:
            raise StoreError(f"the stored events of series are damaged: {error}") from error


# Greatest number of an event: the numbers that follow must fit into the table, too.
MAX_NUMBER = 1 << 62


def _as_event(row: Row) -> tuple[str, NumberedEvent]:
    match row:
        case str(scope), int(number), str(event), str(detail), int(at_ms), int(since_ms), int(times) if (
            0 < number <= MAX_NUMBER
        ):
            return scope, NumberedEvent(number, SeriesEvent(event, detail, at_ms, since_ms, times))
        case _:
            raise OddValue(f"{str(row)[:80]} is no event of a series")

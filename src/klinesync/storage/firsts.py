"""Records the first open time of series of a store from before it was recorded."""

from __future__ import annotations

from klinesync.core.series_id import SeriesId
from klinesync.storage.chunks import chunk_start, first_time
from klinesync.storage.memory import integer, series_of
from klinesync.storage.tables import Tables


def record_firsts(tables: Tables) -> None:
    """Record the first open times that are not recorded yet. A series that cannot be read is left for the next start.
    Only for a connection that writes, outside of a transaction."""
    firsts = []
    for number, name in tables.without_first():
        first = _first(tables, series_of(name), integer(number))
        if first is not None:
            firsts.append((first, integer(number)))
    if firsts:
        with tables.savepoint():
            tables.put_firsts(firsts)


def _first(tables: Tables, series: SeriesId, number: int) -> int | None:
    """The first open time; None when nothing is stored, or that cannot be read. Of a damaged first chunk the first
    open time that it may have."""
    try:
        row, frame = tables.edges(number), series.timeframe
        if row is None or row[0] is None:
            return None
        chunk = tables.next_chunk(number, 0, (1 << 32) - 1, newest=False)
    except tables.unreadable:
        return None
    oldest_row, packed = integer(row[0]), row[2]
    if chunk is None:
        return oldest_row
    start = frame.ceil(max(chunk_start(number, frame, integer(chunk)), 0))
    end = chunk_start(number, frame, integer(chunk) + 1)
    found = first_time(packed) if isinstance(packed, bytes) else start
    return found if start <= found < end and frame.is_open(found) else min(start, oldest_row)

"""The quarantine: damaged candles that were taken out of their series, over the tables of any engine."""

from __future__ import annotations

from typing import NamedTuple

from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.storage.damage import OddValue
from klinesync.storage.memory import integer, series_of
from klinesync.storage.tables import Tables

# Most damaged chunks that are kept aside; the oldest are evicted. A disk that spoils more has failed as a whole.
MAX_QUARANTINED = 1000
# Most bytes that are kept of one of them. A chunk has some 10 KB; other bytes are no candles at all.
MAX_QUARANTINED_BYTES = 64 << 10


class Taken(NamedTuple):
    """Damaged candles that were taken out.

    span: their open times.
    found: the bytes, as they were found.
    why: why they are no candles, a clause.
    """

    span: Span
    found: bytes
    why: str


class Quarantined(NamedTuple):
    """Damaged candles in quarantine. `healing`: not every candle of the span is stored again, or settled as a gap."""

    series: SeriesId
    span: Span
    found_at: int
    why: str
    healing: bool


class QuarantineStore:
    """The quarantine, within one `read` or `write`; must not be kept beyond it."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def all(self) -> list[Quarantined]:
        """All that is kept aside, the newest first."""
        return [
            Quarantined(series_of(name), Span(integer(start), integer(end)), integer(at), str(why), healing != 0)
            for name, start, end, at, why, healing in self._tables.quarantined()
        ]

    def found(self, series: SeriesId, span: Span) -> list[bytes]:
        """The bytes that were found in place of the candles of `span`, the newest first."""
        rows = [found for (found,) in self._tables.quarantined_bytes(str(series), *span)]
        if not all(isinstance(found, bytes) for found in rows):
            raise OddValue("what is in quarantine is no bytes")
        return [found for found in rows if isinstance(found, bytes)]

    def keep(self, series: SeriesId, taken: Taken, at: int) -> None:
        """Keep damaged candles aside since `at`, in UTC seconds. Only within `Database.write`."""
        found = taken.found[:MAX_QUARANTINED_BYTES]
        self._tables.put_quarantined((str(series), *taken.span, at, taken.why, found, 1))
        self._tables.evict_quarantined(MAX_QUARANTINED)

    def end(self, series: SeriesId, span: Span) -> None:
        """Every candle of `span` is stored again, or settled as a gap. Only within `Database.write`."""
        self._tables.end_quarantine(str(series), *span)

"""DamageBoard: the parts of a store that were found to be unreadable, and are not mended yet."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from klinesync.core.errors import StoreError
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId

log = logging.getLogger(__name__)

# Damaged parts that are remembered and logged one by one. A disk that loses more has failed as a whole.
MAX_DAMAGED_PARTS = 1000


class Damage(NamedTuple):
    """An unreadable part: open times `span` of `series`, and what is wrong with them. None: of the whole store."""

    series: SeriesId | None
    span: Span | None
    what: str

    def sentence(self) -> str:
        """The damage in words."""
        if self.series is None or self.span is None:
            return f"the store is damaged: {self.what}"
        start, end = self.span
        return f"the store is damaged: series {self.series}, candles from {start} to {end}: {self.what}"


class StoreDamaged(StoreError):
    """Stored candles cannot be read."""

    code = "store_damaged"

    def __init__(self, damage: Damage) -> None:
        self.damage = damage
        super().__init__(f"{damage.sentence()}; `klinesync verify` lists all damage; restore a backup")


class DamageBoard:
    """What is damaged. Reader threads and the writer thread note damage; the event loop reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[tuple[SeriesId | None, int], Damage] = {}
        self._full = False

    def note(self, damage: Damage) -> None:
        """Remember a damaged part; the first time it is logged."""
        key = damage.series, -1 if damage.span is None else damage.span.start
        with self._lock:
            known = key in self._parts
            full = len(self._parts) >= MAX_DAMAGED_PARTS
            say_full = full and not known and not self._full
            if not known and not full:
                self._parts[key] = damage
            self._full = full
        if say_full:
            log.error(
                "store_damaged more than %d parts of the store are damaged; the rest is not listed", len(self._parts)
            )
        elif not known and not full:
            span = "" if damage.span is None else f"{damage.span.start}..{damage.span.end}"
            log.error("store_damaged series=%s span=%s: %s", damage.series or "", span, damage.what)

    def clear(self, series: SeriesId, span: Span) -> None:
        """`span` of `series` was read without trouble: damage that begins in it is over."""
        with self._lock:
            over = [key for key in self._parts if key[0] == series and span.start <= key[1] < span.end]
            for key in over:
                del self._parts[key]
        for _, start in over:
            log.warning("store_mended series=%s span=%d..%d: the candles can be read again", series, start, span.end)

    def spans(self, series: SeriesId) -> list[Span]:
        """The damaged spans of `series`, ascending."""
        if not self._parts:
            return []
        with self._lock:
            return sorted(part.span for part in self._parts.values() if part.series == series and part.span is not None)

    def parts(self) -> list[Damage]:
        """All damaged parts that are remembered."""
        with self._lock:
            return list(self._parts.values())

    def sentence(self) -> str | None:
        """All of it in a sentence; None when nothing is damaged."""
        parts = self.parts()
        if not parts:
            return None
        more = f" (and {len(parts) - 1} more damaged parts)" if len(parts) > 1 else ""
        return f"{parts[0].sentence()}{more}; `klinesync verify` lists all damage; restore a backup"

    def __bool__(self) -> bool:
        return bool(self._parts)

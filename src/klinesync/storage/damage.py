"""DamageBoard: the unreadable parts of a store that are not repaired yet."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import NamedTuple

from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined
from klinesync.runtime.log_events import Log

log = Log(__name__)

# Most damaged parts that are listed and logged one by one. A disk that loses more has failed as a whole.
MAX_DAMAGED_PARTS = 1000
# The end of a sentence about damage.
WHAT_TO_DO = "`klinesync verify` lists all damage; stop the service, and `klinesync verify --repair` mends it"


class Kept(StrEnum):
    """A kind of data that the store keeps of a series."""

    CANDLES = "candles"
    EVENTS = "factor events"
    DRAWINGS = "drawings"
    CHECKPOINTS = "checkpoints"
    LEDGER = "ledger"
    ANY = "what is stored of it"
    # Damaged candles that were taken out, and are not stored again yet. They are missing, and no longer unreadable.
    QUARANTINE = "candles in quarantine"
    PAGES = "pages of the file"


class Damage(NamedTuple):
    """An unreadable part of the store.

    series: the damaged series; None: the whole store.
    span: the open times that cannot be read; None: not known.
    what: a sentence for people.
    kept: the kind of data that cannot be read.
    """

    series: SeriesId | None
    span: Span | None
    what: str
    kept: Kept = Kept.CANDLES

    def sentence(self) -> str:
        """The damage in words."""
        if self.series is None:
            return f"the store is damaged: {self.what}"
        span = "" if self.span is None else f" from {self.span.start} to {self.span.end}"
        return f"the store is damaged: series {self.series}, {self.kept}{span}: {self.what}"

    @property
    def start(self) -> int:
        """The first unreadable open time; -1 where the span is not known."""
        return -1 if self.span is None else self.span.start


class OddValue(ValueError):
    """A stored value that this program cannot have written."""


class StoreDamaged(StoreError):
    """A part of the store cannot be read."""

    code = "store_damaged"

    def __init__(self, damage: Damage) -> None:
        self.damage = damage
        super().__init__(f"{damage.sentence()}; {WHAT_TO_DO}")


class DoAgain(StoreDamaged):
    """The transaction met an unreadable page and cannot be committed. The damage is noted; the repeated transaction
    does without the damaged part."""


class DamageBoard:
    """The damaged parts. Reader threads and the writer thread note damage; the event loop reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[tuple[SeriesId | None, Kept, int], Damage] = {}
        self._full = False
        self._overflowed = False
        # By series, spans of candles that were damaged and can be read again, since `take_readable`.
        self._readable: dict[SeriesId, list[Span]] = {}

    def note(self, damage: Damage) -> None:
        """Add a damaged part, and log it the first time. A part in quarantine is logged when it is taken there."""
        key = damage.series, damage.kept, damage.start
        with self._lock:
            known = key in self._parts
            full = len(self._parts) >= MAX_DAMAGED_PARTS
            say_full = full and not known and not self._full
            if not known and not full:
                self._parts[key] = damage
            self._full = full
            self._overflowed = self._overflowed or (full and not known)
        if say_full:
            log.error(
                "store.damaged", "more than %d parts of the store are damaged; the rest is not listed", len(self._parts)
            )
        elif not known and not full and damage.kept is not Kept.QUARANTINE:
            log.error("store.damaged", "%s", damage.what, series=damage.series, span=damage.span)

    def clear(self, series: SeriesId | None, kept: Kept, span: Span | None) -> None:
        """Remove the damage that begins in a span which was read without an error.

        series: the series; None: the store itself.
        kept: the kind of data that was read.
        span: the span; None: all of it was read, and damage of unknown span is over too.
        """
        for part in self.drop(series, kept, span):
            if series is not None and kept is Kept.CANDLES and part.span is not None:
                with self._lock:
                    self._readable[series] = joined([*self._readable.get(series, ()), part.span])
            log.warning("store.mended", "the %s can be read again", kept, series=series, span=part.span)

    def drop(self, series: SeriesId | None, kept: Kept, span: Span | None) -> list[Damage]:
        """Remove the same damage, without a log line. Returns what was removed."""
        least, end = (-1, 0) if span is None else span
        with self._lock:
            over = [
                part
                for (whose, what, start), part in self._parts.items()
                if whose == series and what is kept and least <= start < end
            ]
            for part in over:
                del self._parts[series, kept, part.start]
        return over

    @property
    def has_readable(self) -> bool:
        """Whether `take_readable` has anything."""
        return bool(self._readable)

    def take_readable(self) -> list[tuple[SeriesId, Span]]:
        """The spans of candles whose damage was cleared since the last call, by any reader. Derived candles in
        them may be stale: while the damage was on the board, corrections beside it did not reach them."""
        with self._lock:
            readable, self._readable = self._readable, {}
        return [(series, span) for series, spans in readable.items() for span in spans]

    def take_overflow(self) -> bool:
        """Whether damage was left out for want of room, and there is room again. Asked once for each overflow: all of
        the store is then read again, to find the rest."""
        with self._lock:
            if not self._overflowed or len(self._parts) > MAX_DAMAGED_PARTS // 2:
                return False
            self._overflowed = False
            return True

    def of(self, series: SeriesId) -> list[Damage]:
        """All damage of `series`, of any kind of data."""
        if not self._parts:
            return []
        with self._lock:
            return [part for part in self._parts.values() if part.series == series]

    def spans(self, series: SeriesId) -> list[Span]:
        """The spans of `series` whose candles are damaged, ascending."""
        return sorted(part.span for part in self.of(series) if part.kept is Kept.CANDLES and part.span is not None)

    def parts(self) -> list[Damage]:
        """All listed damaged parts."""
        with self._lock:
            return list(self._parts.values())

    def sentence(self) -> str | None:
        """The damage of the store in a sentence; None when nothing is damaged."""
        parts = self.parts()
        if not parts:
            return None
        more = f" (and {len(parts) - 1} more damaged parts)" if len(parts) > 1 else ""
        return f"{parts[0].sentence()}{more}; {WHAT_TO_DO}"

    def __bool__(self) -> bool:
        return bool(self._parts)

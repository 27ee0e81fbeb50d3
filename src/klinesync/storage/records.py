"""Records of a series beside its candles: origins, derivations, revisions, ledgers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from klinesync.core.candle import ROUNDING, Candle, agree, replacing
from klinesync.core.gaps import GapChange
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span


@dataclass(frozen=True, slots=True)
class Origin:
    """Where candles come from: the source (`stream`, `rest`, `http`, `derived` …), and when (UTC seconds).

    base: the series that derived candles are derived from; None for ingested candles.
    computed: the candles were computed from it: they replace the stored ones as they are, and a difference of a
        rounding is no revision.
    """

    source: str
    at: int
    base: SeriesId | None = None
    computed: bool = False

    def replacing(self, was: Candle, now: Candle) -> Candle:
        """The candle to store when `now` arrives for the open time of the stored `was`."""
        return now if self.computed else replacing(was, now)

    def revises(self, was: Candle | None, now: Candle) -> bool:
        """Whether replacing the stored `was` (None: nothing was stored) by `now` counts as a revision."""
        return was is not None and not agree(was, now, ROUNDING if self.computed else 0.0)

    def revises_ohlcv(self, was: Candle, now: Candle) -> bool:
        """Whether replacing the stored `was` by `now` counts as a revision for followers without order flow."""
        return self.revises(Candle(*was.ohlcv), Candle(*now.ohlcv))


class DerivationOrigin(IntEnum):
    """The origin of the candles of a derived series."""

    COMPUTED = 0  # computed from its base, and native ones
    MIXED = 1  # others too, which have yet to be computed from the base
    RECOMPUTED = 2  # others remain in buckets that are incomplete in the base


class Derivation(NamedTuple):
    """The derivation of a series: computed from `base`; None: ingested."""

    base: SeriesId | None
    origin: DerivationOrigin = DerivationOrigin.COMPUTED


class Revision(NamedTuple):
    """A closed candle with its old values, before candles of `source` replaced it at `revised_at` (UTC seconds)."""

    was: Candle
    revised_at: int
    source: str


class Ledger(NamedTuple):
    """The progress of factors and overlays of a series: open times, None before the first candle.

    fingerprint: of the factors and overlays that have computed it.
    epoch: rises with every rewind.
    record_id: rises with every change.
    version_id: number of the newest stored drawing; 0 before the first one.
    """

    fingerprint: str
    epoch: int = 0
    record_id: int = 0
    factor_head: int | None = None
    overlay_head: int | None = None
    version_id: int = 0


class Corrected(NamedTuple):
    """`candles` stored candles of a series got other values from `source`; the open times are those of the oldest and
    the newest of them."""

    first: int
    last: int
    candles: int
    source: str


class TakenOut(NamedTuple):
    """Damaged candles of a series were taken out of it, and are kept in quarantine. `span`: their open times; `why`:
    why they are no candles, a clause."""

    span: Span
    why: str


# What a transaction changes of a series beside new candles: its gap ledger, stored values, or damaged candles.
SeriesChange = tuple[SeriesId, GapChange | Corrected | TakenOut]

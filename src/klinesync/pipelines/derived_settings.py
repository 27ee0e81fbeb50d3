"""Changes of a store when the base or the derived timeframes have changed since the last start.

The store keeps the base of each derived series, and whether the series has candles from elsewhere (posted or streamed
while its timeframe was not derived). `settle` compares these with the settings of this start, and marks series in one
short transaction. Series that are marked `MIXED` are computed anew afterwards, piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Derivation, DerivationOrigin


class Settled(NamedTuple):
    """`redo`: the derived series to compute anew, the shorter ones first. `refresh`: the base series whose targets may
    lag. `dormant`: the stored derived series that are no targets now, and their bases. `changed`: the store was brought
    up to date with other settings."""

    redo: list[SeriesId]
    refresh: list[SeriesId]
    dormant: dict[SeriesId, SeriesId]
    changed: bool


def settle(store: CandleStore, base: Timeframe, targets: Sequence[Timeframe]) -> Settled:
    """Mark the series whose candles do not follow from the settings. Only within `Database.write`.

    store: the store, within its transaction.
    base: the base timeframe from now on.
    targets: the derived timeframes from now on; none when derived timeframes are off.
    """
    stored = store.series()
    known = set(stored)
    settled = Settled([], [], {}, store.derived_settings() != (base, tuple(targets)))
    for series in sorted(stored, key=lambda one: one.timeframe.seconds):
        was = store.derivation(series)
        if series.timeframe in targets:
            now = _of_target(was, series.with_timeframe(base), known)
        elif series.timeframe == base and targets:
            now = Derivation(None)  # it is ingested from now on
        elif was.base is not None and was.base.timeframe != base:
            now = was._replace(origin=DerivationOrigin.MIXED)  # nobody keeps it in step with its base
        else:
            now = was
        if now != was:
            store.set_derivation(series, now)
        if now.base is not None and series.timeframe not in targets:
            settled.dormant[series] = now.base
        elif now.origin is DerivationOrigin.MIXED:
            settled.redo.append(series)
    if settled.changed:
        settled.refresh.extend(series for series in stored if series.timeframe == base and targets)
    return settled


def _of_target(was: Derivation, base: SeriesId, known: set[SeriesId]) -> Derivation:
    if base not in known:
        # Nothing to compute it from. Once the base is there, what is stored of it remains where the base gives none.
        return Derivation(None)
    if was.base != base:
        return Derivation(base, DerivationOrigin.MIXED)
    return was

"""Changes of a store when the base or the derived timeframes have changed since the last start.

The store keeps the base of each derived series, and whether the series has candles of other sources (posted or
streamed while its timeframe was not derived). `settle` compares these with the settings of this start, and marks series
in one short transaction. Series that are marked `MIXED` are recomputed afterwards, in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Derivation, DerivationOrigin


class Settled(NamedTuple):
    """What follows from a change of the settings.

    redo: the derived series to recompute, shorter timeframes first.
    refresh: the base series whose targets may lag.
    dormant: by stored series that is no target now, its former base.
    changed: whether the store was last completed with other settings.
    """

    redo: list[SeriesId]
    refresh: list[SeriesId]
    dormant: dict[SeriesId, SeriesId]
    changed: bool


def settle(store: CandleStore, base: Timeframe, targets: Sequence[Timeframe]) -> Settled:
    """Mark the series whose candles do not follow from the settings. Only within `Database.write`.

    store: the store, within its transaction.
    base: the base timeframe from now on.
    targets: the derived timeframes from now on; empty when derived timeframes are off.
    """
    stored = store.series()
    known = set(stored)
    settled = Settled([], [], {}, store.derived_settings() != (base, tuple(targets)))
    for series in sorted(stored, key=lambda series: series.timeframe.seconds):
        before = store.derivation(series)
        if series.timeframe in targets:
            after = _of_target(before, series.with_timeframe(base), known)
        elif series.timeframe == base and targets:
            after = Derivation(None)  # ingested from now on
        elif before.base is not None and before.base.timeframe != base:
            after = before._replace(origin=DerivationOrigin.MIXED)  # its candles no longer follow those of its base
        else:
            after = before
        if after != before:
            store.set_derivation(series, after)
        if after.base is not None and series.timeframe not in targets:
            settled.dormant[series] = after.base
        elif after.origin is DerivationOrigin.MIXED:
            settled.redo.append(series)
    if settled.changed:
        settled.refresh.extend(series for series in stored if series.timeframe == base and targets)
    return settled


def _of_target(before: Derivation, base: SeriesId, stored_series: set[SeriesId]) -> Derivation:
    if base not in stored_series:
        # Without a base nothing can be computed. When base candles arrive, buckets that they leave incomplete keep the
        # stored candles.
        return Derivation(None)
    if before.base != base:
        return Derivation(base, DerivationOrigin.MIXED)
    return before

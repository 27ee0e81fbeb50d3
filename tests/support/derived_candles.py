"""Derived candles, computed at once from all base candles: the reference for the incremental computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from klinesync.core.candle import Candle
from klinesync.core.derived import complete, fold, links_to, parent_of
from klinesync.core.spans import Span, candle_count, missing_spans, without
from klinesync.core.timeframe import Timeframe


class Bucket(NamedTuple):
    """The expected state of one derived candle.

    `missing` counts the base candles that are neither stored nor confirmed empty: 0 means complete. `candle` is the
    closed derived candle; None while the bucket is incomplete, and always None when the bucket is wholly empty.
    """

    time: int
    missing: int
    candle: Candle | None


def roll_up(candles: Sequence[Candle], base: Timeframe, targets: Sequence[Timeframe]) -> dict[Timeframe, list[Candle]]:
    """Ascending base candles, folded in memory into each of `targets`: one pass per timeframe, shared by all targets.

    The result ignores completeness: it has every bucket with a candle. Raises `Rejected`.
    """
    rolled: dict[Timeframe, Sequence[Candle]] = {base: candles}
    folded: dict[Timeframe, list[Candle]] = {}
    for link in links_to(tuple(targets), base):
        rolled[link] = folded[link] = fold(link, rolled[parent_of(link, base)])
    return {target: folded[target] for target in targets}


def derive(
    target: Timeframe, base: Timeframe, time: int, candles: Sequence[Candle], empty: Sequence[Span] = ()
) -> Bucket:
    """The bucket of `target` at `time`, from its base `candles` and the confirmed `empty` spans; both ascending.

    Raises `Rejected` when `target` cannot be computed from `base`.
    """
    stored = [candle.time for candle in candles]
    unproven = without(missing_spans(base, time, target.next(time), stored), empty)
    missing = candle_count(base, unproven)
    whole = complete(target, roll_up(candles, base, (target,))[target], unproven)
    return Bucket(time, missing, whole[0] if whole else None)

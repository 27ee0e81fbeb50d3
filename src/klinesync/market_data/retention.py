"""Retention: trims closed candles that are older than a number of days, oldest first.

Age is counted back from a series' head. A base series and its derived series are trimmed in the same transaction, so
that every remaining derived candle has all of its base candles: `verify` finds no difference, and corrections reach the
derived candle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from klinesync.core import gaps
from klinesync.core.candle import MAX_TIME
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Database

log = Log(__name__)

_DAY = Timeframe.parse("1d")


@dataclass(frozen=True, slots=True)
class Trimming:
    """How old candles are trimmed.

    period_s: pause between two searches for old candles, in seconds.
    candles: most base candles of a transaction; their derived candles are fewer.
    pause_s: pause between two transactions, in seconds, for live batches.
    """

    period_s: float = 60.0
    candles: int = 2000
    pause_s: float = 0.01


USUAL_TRIMMING = Trimming()


@dataclass(frozen=True, slots=True)
class Old:
    """Old candles: those of `series` and of the series `derived` from it that open before `cut`."""

    series: SeriesId
    derived: tuple[SeriesId, ...]
    cut: int


def cut_of(head: int, days: int, derived: Iterable[Timeframe]) -> int:
    """The open time before which a series is trimmed: whole days at a time.

    head: of the series.
    days: of the retention.
    derived: derived timeframes; a bucket that is not wholly older is kept with its base, so that a month's candle can
        be computed even if fewer days are kept.
    """
    horizon = head - days * DAY_S
    return min(timeframe.floor(horizon) for timeframe in (_DAY, *derived))


def old(store: CandleStore, base: Timeframe, targets: Sequence[Timeframe], days: int) -> Iterator[Old]:
    """The old candles of all series.

    store: has the series.
    base: timeframe of the ingested series.
    targets: timeframes that are derived from it.
    days: of the retention.
    """
    groups: dict[SeriesId, set[SeriesId]] = {series: set(store.derived_of(series)) for series in store.series()}
    for series, derived in groups.items():
        if series.timeframe == base:
            derived.update(series.with_timeframe(target) for target in targets)
    followers = {follower for derived in groups.values() for follower in derived}
    for series, derived in groups.items():
        try:
            first, head = store.first(series), store.head(series)
        except StoreDamaged:  # other series can still be trimmed
            continue
        if series in followers or first is None or head is None:
            continue
        cut = cut_of(head, days, (follower.timeframe for follower in derived))
        if first < cut:
            yield Old(series, tuple(sorted(derived, key=lambda member: member.timeframe.seconds)), cut)


def trim(store: CandleStore, ledger: LedgerStep, old: Old, most: int) -> bool:
    """Trim the oldest old candles of a base series, and the candles derived from them, in one transaction.

    store: to write to.
    ledger: trims the ledgers of factors and overlays.
    old: the old candles.
    most: most base candles.

    Returns whether old candles remain.
    """
    series = old.series
    oldest = store.oldest(series, most + 1, since=-1, strict=False)  # damaged candles go with their neighbours
    more = len(oldest) > most and oldest[most].time < old.cut
    _trim(store, ledger, series, oldest[most].time if more else old.cut)
    first = store.first(series)
    for derived in old.derived:
        # A bucket that begins before the first base candle cannot be computed any more.
        _trim(store, ledger, derived, old.cut if first is None else first)
    return more


def _trim(store: CandleStore, ledger: LedgerStep, series: SeriesId, before: int) -> None:
    ledger.trim(store, series, before)
    store.trim(series, before)
    first = store.first(series)
    trimmed = Span(0, MAX_TIME + 1 if first is None else first)
    store.change_gaps(series, gaps.fill(store.gaps(series, trimmed), [trimmed]))


class Retention:
    """Trims candles that are older than `days`. `run` is its task.

    database: the store.
    ledger: trims the ledgers of factors and overlays.
    base: timeframe of the ingested series.
    targets: timeframes that are derived from it.
    days: days that are kept, at least 1.
    trimming: period, and size of transactions.
    """

    def __init__(
        self,
        database: Database,
        ledger: LedgerStep,
        base: Timeframe,
        targets: Sequence[Timeframe],
        days: int,
        trimming: Trimming = USUAL_TRIMMING,
    ) -> None:
        assert days > 0, "a service that keeps everything has no retention"
        self._database = database
        self._ledger = ledger
        self._base = base
        self._targets = tuple(targets)
        self._days = days
        self._trimming = trimming

    async def run(self) -> None:
        """Trim every `period_s` until cancelled. After an error of the store the next period tries again."""
        while True:
            try:
                await self.trim()
            except StoreError as error:
                log.warning("retention.failed", "old candles cannot be trimmed", error=error)
            await asyncio.sleep(self._trimming.period_s)

    async def trim(self) -> None:
        """Trim all old candles, in small transactions between live batches. Raises `StoreError`."""
        for item in await self._database.read(lambda store: list(old(store, self._base, self._targets, self._days))):
            try:
                await self._trim(item)
            except StoreDamaged as error:  # other series can still be trimmed
                log.warning("retention.failed", "its old candles cannot be trimmed", series=item.series, error=error)
            else:
                log.info(
                    "retention.trimmed",
                    "candles before %s are trimmed",
                    date_text(item.cut),
                    series=item.series,
                    before=item.cut,
                )

    async def _trim(self, item: Old) -> None:
        more, most = True, self._trimming.candles
        while more:
            more = await self._database.write(lambda store: trim(store, self._ledger, item, most))
            await asyncio.sleep(self._trimming.pause_s)

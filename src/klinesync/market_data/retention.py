"""Retention: closed candles that are older than a number of days are trimmed, oldest first.

Age is counted back from a series' head, the newest time that is known of its exchange. A base series and what is
derived from it are trimmed together, in one transaction, so that every derived candle that stays has all of its base
candles: `verify` finds nothing, and corrections go on flowing down.
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
from klinesync.storage.chunks import as_candles
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Database

log = Log(__name__)

# How often it is looked for what has grown old.
PERIOD_S = 60.0
# Base candles of one transaction; what is derived from them comes to less than as many again.
MAX_TRIMMED_CANDLES = 2000
# Between two transactions, for the live batches that wait.
PAUSE_S = 0.01

_DAY = Timeframe.parse("1d")


@dataclass(frozen=True, slots=True)
class Old:
    """What is to be trimmed: candles of `series`, and of what is `derived` from it, that open before `cut`."""

    series: SeriesId
    derived: tuple[SeriesId, ...]
    cut: int


def cut_of(head: int, days: int, derived: Iterable[Timeframe]) -> int:
    """The open time before which a series with that head is trimmed.

    Whole days at a time. The bucket of each `derived` timeframe that is not wholly older stays, with its base: a
    month's candle comes to be, however few days are kept.
    """
    horizon = head - days * DAY_S
    return min(timeframe.floor(horizon) for timeframe in (_DAY, *derived))


def old(store: CandleStore, base: Timeframe, targets: Sequence[Timeframe], days: int) -> Iterator[Old]:
    """What has grown old, series by series; `targets` are computed from the ingested series of timeframe `base`."""
    groups: dict[SeriesId, set[SeriesId]] = {series: set(store.derived_of(series)) for series in store.series()}
    for series, derived in groups.items():
        if series.timeframe == base:
            derived.update(series.with_timeframe(target) for target in targets)
    followers = {follower for derived in groups.values() for follower in derived}
    for series, derived in groups.items():
        first, head = store.first(series), store.head(series)
        if series in followers or first is None or head is None:
            continue
        cut = cut_of(head, days, (follower.timeframe for follower in derived))
        if first < cut:
            yield Old(series, tuple(sorted(derived, key=lambda one: one.timeframe.seconds)), cut)


def trim(store: CandleStore, ledger: LedgerStep, old: Old, most: int) -> bool:
    """One transaction's share: the oldest `most` base candles, and what is derived from them. Whether more is left."""
    series = old.series
    oldest = store.oldest_rows(series, most + 1, as_candles, since=-1)  # damaged ones go with their neighbours
    more = len(oldest) > most and oldest[most].time < old.cut
    _trim(store, ledger, series, oldest[most].time if more else old.cut)
    first = store.first(series)
    for derived in old.derived:
        # A bucket that began before the first base candle cannot be computed any more.
        _trim(store, ledger, derived, old.cut if first is None else first)
    return more


def _trim(store: CandleStore, ledger: LedgerStep, series: SeriesId, before: int) -> None:
    ledger.trim(store, series, before)
    store.trim(series, before)
    first = store.first(series)
    gone = Span(0, MAX_TIME + 1 if first is None else first)
    store.change_gaps(series, gaps.fill(store.gaps(series, gone), [gone]))


class Retention:
    """Trims what has grown older than `days`. `run` is its one task."""

    def __init__(
        self, database: Database, ledger: LedgerStep, base: Timeframe, targets: Sequence[Timeframe], days: int
    ) -> None:
        assert days > 0, "a service that keeps everything has no retention"
        self._database = database
        self._ledger = ledger
        self._base = base
        self._targets = tuple(targets)
        self._days = days

    async def run(self) -> None:
        """Trim now and then, until cancelled. A store that cannot be written is tried again the next time."""
        while True:
            try:
                await self.trim()
            except StoreError as error:
                log.warning("retention.failed", "old candles cannot be trimmed", error=error)
            await asyncio.sleep(PERIOD_S)

    async def trim(self) -> None:
        """Trim all that has grown old, in small transactions between the live batches. Raises `StoreError`."""
        found = await self._database.read(lambda store: list(old(store, self._base, self._targets, self._days)))
        for one in found:
            try:
                await self._trim(one)
            except StoreDamaged as error:  # the other series are trimmed all the same
                log.warning("retention.failed", "its old candles cannot be trimmed", series=one.series, error=error)
            else:
                log.info(
                    "retention.trimmed",
                    "candles before %s are trimmed",
                    date_text(one.cut),
                    series=one.series,
                    before=one.cut,
                )

    async def _trim(self, one: Old) -> None:
        more = True
        while more:
            more = await self._database.write(lambda store: trim(store, self._ledger, one, MAX_TRIMMED_CANDLES))
            await asyncio.sleep(PAUSE_S)

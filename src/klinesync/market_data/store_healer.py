"""StoreHealer: takes damaged candles and ledgers out of the store, and has them stored again.

A damaged chunk goes into quarantine, and its span becomes a gap: candles of an ingested series are fetched again from
files or the exchange, derived ones are computed again from their base. A damaged ledger is computed again. The notice
of damage stays until every candle is stored again, or its absence is settled: confirmed empty, or lost. What SQLite
itself cannot read stays where it is, until `verify --repair` makes a new file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from klinesync.core import gaps
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Gap
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull
from klinesync.market_data.store_scrub import GapsDeclared
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.database import Database

log = Log(__name__)

# Most parts of one look.
HEALED_AT_ONCE = 100
# Most derived series that wait to be computed again; the next start computes the others.
MAX_TO_COMPUTE = 1000
# The source of the candles that are declared lost, as metrics label it.
SOURCE = "quarantine"
# Why the candles of a series without any source are lost.
NO_SOURCE = "they were damaged in the store, and no source gives candles of this series"

_LEDGERS = frozenset({Kept.EVENTS, Kept.DRAWINGS, Kept.CHECKPOINTS, Kept.LEDGER})
_Part: TypeAlias = tuple[SeriesId | None, Kept, int]


@dataclass(frozen=True, slots=True)
class HealTimings:
    """Pauses of the healer, in seconds.

    look_s: between two looks at the board of damage.
    retry_s: before a part that could not be healed is tried again.
    settle_s: before candles in quarantine are looked for in the store again.
    """

    look_s: float = 1.0
    retry_s: float = 30.0
    settle_s: float = 2.0


USUAL_HEALING = HealTimings()


class Sources(NamedTuple):
    """Where candles come from.

    base_of: the base of a derived series; another series itself.
    covers: whether any source may have an ingested series.
    """

    base_of: Callable[[SeriesId], SeriesId]
    covers: Callable[[SeriesId], bool]


@dataclass(slots=True)
class Healed:
    """Since the start: damaged chunks that were taken out, and spans in quarantine whose candles are stored again, or
    settled as gaps."""

    taken_out: int = 0
    settled: int = 0


class StoreHealer:
    """Heals the damage on the board of a store. `run` is its task.

    database: the store.
    pipeline: writes candles, and computes derived ones.
    sources: where candles come from.
    clock: our clock.
    timings: its pauses.
    """

    def __init__(
        self,
        database: Database,
        pipeline: IngestPipeline,
        sources: Sources,
        clock: Clock = SYSTEM_CLOCK,
        timings: HealTimings = USUAL_HEALING,
    ) -> None:
        self._database = database
        self._pipeline = pipeline
        self._sources = sources
        self._clock = clock
        self._timings = timings
        self._subscribers: tuple[GapsDeclared, ...] | None = None
        self._again_at_s: dict[_Part, float] = {}
        self._unreadable = False
        # Spans that can be read again, whose derived candles may be stale; when to compute these, in monotonic seconds;
        # minus infinity: they were not tried yet.
        self._to_refresh: dict[tuple[SeriesId, Span], float] = {}
        self._to_compute: dict[SeriesId, None] = {}
        self.healed = Healed()

    def bind(self, subscribers: tuple[GapsDeclared, ...]) -> None:
        """Set the subscribers to new gaps, in the order of their calls; once."""
        assert self._subscribers is None, "the subscribers are bound once"
        self._subscribers = subscribers

    def holes(self, series: SeriesId) -> None:
        """See `GapsDeclared`: a derived series that has lost candles without a trace is computed again; returns at
        once."""
        if self._sources.base_of(series) != series and len(self._to_compute) < MAX_TO_COMPUTE:
            self._to_compute[series] = None

    async def run(self) -> None:
        """Heal until cancelled. An earlier start may have left candles in quarantine."""
        resumed = False
        while True:
            resumed = resumed or await self._resume()
            await asyncio.sleep(self._timings.look_s)
            if self._database.damage or self._database.damage.has_readable or self._to_refresh:
                await self.heal()
            while self._to_compute:
                series = next(iter(self._to_compute))
                del self._to_compute[series]
                await self._compute(series)

    async def heal(self) -> None:
        """Heal what is damaged now, as far as it is due, then compute what may be stale since damage was cleared."""
        await self._heal_damage()
        await self._refresh_readable()

    async def _heal_damage(self) -> None:
        now_s, parts = self._clock.monotonic_s(), self._database.damage.parts()
        keys = {_key(damage) for damage in parts}
        self._again_at_s = {key: at_s for key, at_s in self._again_at_s.items() if key in keys}
        due = sorted(parts, key=lambda damage: self._again_at_s.get(_key(damage), float("-inf")))[:HEALED_AT_ONCE]
        for damage in due:
            key = _key(damage)
            if self._again_at_s.get(key, now_s) > now_s:
                return
            try:
                healed = await self._heal(damage)
            except StoreError as error:
                healed = False
                if isinstance(error, StoreDamaged) and key not in self._again_at_s:
                    log.warning(
                        "store.not_healed",
                        "the %s cannot be healed while the service runs",
                        damage.kept,
                        series=damage.series,
                        span=damage.span,
                        error=error,
                    )
            if not healed:
                settles = damage.kept is Kept.QUARANTINE
                self._again_at_s[key] = now_s + (self._timings.settle_s if settles else self._timings.retry_s)

    async def _refresh_readable(self) -> None:
        """Compute derived candles anew in the spans that can be read again; a failure is retried."""
        now_s = self._clock.monotonic_s()
        for part in self._database.damage.take_readable():
            self._to_refresh.setdefault(part, float("-inf"))  # a part that waits for its retry goes on waiting
        for part, at_s in list(self._to_refresh.items()):
            if at_s > now_s:
                continue
            series, span = part
            try:
                await self._pipeline.refresh_span(series, span)
            except StoreError as error:
                self._to_refresh[part] = now_s + self._timings.retry_s
                if at_s == float("-inf"):
                    log.warning(
                        "store.not_healed", "candles cannot be computed again", series=series, span=span, error=error
                    )
            else:
                del self._to_refresh[part]

    async def _resume(self) -> bool:
        """Put what is in quarantine since an earlier start on the board. Returns False when the store cannot be
        read."""
        try:
            kept = await self._database.read(lambda store: store.quarantine.all())
        except StoreError as error:
            if not self._unreadable:
                log.warning("store.quarantine_unreadable", "what is in quarantine cannot be read", error=error)
            self._unreadable = True
            return False
        healing = [part for part in kept if part.healing]
        for part in healing:
            self._database.damage.note(_in_quarantine(part.series, part.span, part.why))
        for series in dict.fromkeys(part.series for part in healing):
            await self._fill(series)
        return True

    async def _heal(self, damage: Damage) -> bool:
        """Heal one part. Returns whether there is nothing more to do for it; otherwise it is tried again later."""
        series, span = damage.series, damage.span
        if series is None:
            return False
        if damage.kept is Kept.QUARANTINE and span is not None:
            return await self._settle(series, span)
        if damage.kept is Kept.CANDLES and span is not None:
            return await self._take_out(series, span)
        if damage.kept in _LEDGERS:
            await self._pipeline.redo_ledger(series)
            await self._database.read(lambda store: store.recheck(damage))
            return True
        return False

    async def _take_out(self, series: SeriesId, span: Span) -> bool:
        for part in (taken := await self._pipeline.take_out_damaged(series, span)):
            self.healed.taken_out += 1
            log.error("store.quarantined", "damaged candles are kept in quarantine", series=series, span=part)
            self._database.damage.note(_in_quarantine(series, part, "they were damaged"))
        if taken:
            self._database.damage.drop(series, Kept.CANDLES, span)
            await self._fill(series)
        else:  # the candles can be read again; buckets beside known damage are not computed, so that is cleared first
            self._database.damage.clear(series, Kept.CANDLES, span)
        return True

    async def _fill(self, series: SeriesId) -> None:
        """Have the gaps of a series filled: computed from its base, fetched, or declared lost where no source is."""
        await self._compute(series)
        if not self._sources.covers(self._sources.base_of(series)):
            try:
                await self._lose(series)
            except StoreError as error:
                log.warning("store.not_healed", "lost candles cannot be declared", series=series, error=error)
        assert self._subscribers is not None, "subscribers are bound before the first look"
        for subscriber in self._subscribers:
            subscriber(series)

    async def _compute(self, series: SeriesId) -> None:
        """Compute what a derived series lacks from its base; nothing for another series."""
        base = self._sources.base_of(series)
        if base == series:
            return
        try:
            await self._pipeline.refresh_series(base)
        except StoreError as error:
            log.warning("store.not_healed", "candles cannot be computed again", series=series, error=error)

    async def _lose(self, series: SeriesId) -> None:
        """Declare lost what no source can give. Raises `StoreError`."""
        kept = await self._database.read(lambda store: store.quarantine.all())
        spans = sorted({part.span for part in kept if part.series == series and part.healing})
        _, ledger = await self._stored(series)
        missing = [gap.span for gap in ledger if gap.state not in gaps.SETTLED]
        holes = [hole for span in spans for hole in clipped(missing, span)]
        if not holes:
            return
        if self._sources.base_of(series) == series:
            await self._pipeline.submit(series, [], SOURCE, Empty(holes, NO_SOURCE, lost=True))
            return
        at = int(self._clock.wall_s())

        def lose(store: CandleStore) -> None:
            store.change_gaps(series, gaps.lose(store.gaps(series, hull(holes)), holes, NO_SOURCE, at))

        await self._database.write(lose)

    async def _settle(self, series: SeriesId, span: Span) -> bool:
        """End the notice of candles in quarantine once each is stored again, or settled as a gap. Returns False while
        some are missing, or the series is trimmed to nothing meanwhile."""
        stored, ledger = await self._stored(series)
        if stored is not None and gaps.unsettled(ledger, stored, span.clipped(stored)):
            return False
        await self._pipeline.refresh_span(series, span)
        await self._database.write(lambda store: store.quarantine.end(series, span))
        self._database.damage.drop(series, Kept.QUARANTINE, span)
        log.warning("store.healed", "damaged candles are stored again, or settled as a gap", series=series, span=span)
        self.healed.settled += 1
        return True

    async def _stored(self, series: SeriesId) -> tuple[Span | None, list[Gap]]:
        return await self._database.read(lambda store: (store.span(series), store.gaps(series)))


def _in_quarantine(series: SeriesId, span: Span, why: str) -> Damage:
    what = f"stored candles were damaged, and are not stored again yet ({why})"
    return Damage(series, span, what, Kept.QUARANTINE)


def _key(damage: Damage) -> _Part:
    return damage.series, damage.kept, damage.start

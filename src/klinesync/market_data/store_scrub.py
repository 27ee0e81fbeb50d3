"""StoreScrub: reads all stored candles once after the start, slowly, to find damage before the candles are needed.

The store itself notes candles that it cannot read. Candles that are lost without a trace (a missing row of the file)
leave missing candles that are in no gap of the ledger: the scrub declares them, so that they are healed. Damaged
candles are read again from time to time, so that the notice of damage ends when the damage does. Chunks of an earlier
format are packed anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from klinesync.core import gaps
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, hull, missing_spans, without
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, StoreDamaged
from klinesync.storage.database import Database

log = Log(__name__)

# Pause before the scrub begins, in seconds, for the reads of the start.
SCRUB_BEGINS_S = 1.0
# Candles of a read, which takes some 2 ms.
SCRUB_CANDLES = 5000
# Pause between two reads, in seconds: the scrub takes at most a tenth of a core.
SCRUB_PAUSE_S = 0.02
# Pause after a failed read, in seconds.
SCRUB_RETRY_S = 5.0
# Chunks that one transaction looks at while those of an earlier format are packed anew: some 3 ms of the writer.
REPACKED_CHUNKS = 8
# Pause between two checks of damaged parts, in seconds.
RECHECK_S = 30.0
# Damaged parts of a check.
RECHECK_PARTS = 100
# Most series that wait for a scrub because a reader found missing candles; further series are found again.
MAX_ASKED = 1000


# Takes a series that has new gaps in the ledger; returns at once.
GapsDeclared = Callable[[SeriesId], None]


class Slice(NamedTuple):
    """A read of consecutive candles. `last`: their last open time; `undeclared`: missing spans between them that are in
    no gap of the ledger."""

    last: int
    undeclared: list[Span]


class StoreScrub:
    """Reads every series once, and a series again after `ask`. `run` is its task.

    Its subscribers are called with a series that has new gaps. They are bound before `run`, after the reader is made,
    because the reader needs the scrub.

    database: the store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: tuple[GapsDeclared, ...] | None = None
        self._asked: dict[SeriesId, None] = {}
        self._arrived = asyncio.Event()
        self._rechecked = 0

    def bind(self, subscribers: tuple[GapsDeclared, ...]) -> None:
        """Set the subscribers, in the order of their calls; once."""
        assert self._subscribers is None, "the subscribers are bound once"
        self._subscribers = subscribers

    def _declared(self, series: SeriesId) -> None:
        assert self._subscribers is not None, "subscribers are bound before the first read"
        for subscriber in self._subscribers:
            subscriber(series)

    def ask(self, series: SeriesId) -> None:
        """Have a series read again, because a reader found missing candles that are in no gap; returns at once."""
        if len(self._asked) < MAX_ASKED:
            self._asked[series] = None
            self._arrived.set()

    async def run(self) -> None:
        """Read all series, then series after `ask`, and damaged parts, until cancelled."""
        await asyncio.sleep(SCRUB_BEGINS_S)
        await self._read_all()
        await self._repack_all()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._arrived.wait()
            self._arrived.clear()
            while self._asked:
                series = next(iter(self._asked))
                del self._asked[series]
                await self._read(series)
            await self._recheck()

    async def _recheck(self) -> None:
        """Read damaged parts again; the store drops the notice of a part that can be read."""
        for damage in self._parts_in_turn():
            await asyncio.sleep(SCRUB_PAUSE_S)
            with contextlib.suppress(StoreError):  # still damaged, as reported
                await self._database.read(lambda store, damage=damage: store.recheck(damage))  # type: ignore[misc]

    def _parts_in_turn(self) -> list[Damage]:
        """The next `RECHECK_PARTS` damaged parts, in turns."""
        parts = self._database.damage.parts()
        first = self._rechecked % len(parts) if parts else 0
        turn = [*parts[first:], *parts[:first]][:RECHECK_PARTS]
        self._rechecked = first + len(turn)
        return turn

    async def _read_all(self) -> None:
        while True:
            try:
                stored = await self._database.read(lambda store: store.series())
            except StoreError:  # readers report the error
                await asyncio.sleep(SCRUB_RETRY_S)
            else:
                break
        for series in stored:
            await self._read(series)

    async def _repack_all(self) -> None:
        """Pack the chunks of an earlier format anew, a few at a time. A restart goes on with the series that remain."""
        try:
            remaining = await self._database.read(lambda store: store.repacking())
            if not remaining:
                return
            log.info("store.repacking", "%d series have candles of an earlier format", len(remaining))
            for series in remaining:
                await self._repack(series)
            remaining = await self._database.read(lambda store: store.repacking())
            log.info("store.repacked", "candles of an earlier format are left in %d series", len(remaining))
        except StoreError as error:
            log.warning("store.repack_failed", "candles of an earlier format stay as they are", error=error)

    async def _repack(self, series: SeriesId) -> None:
        first: int | None = 0
        with contextlib.suppress(StoreDamaged):  # noted where it was met; the next start tries again
            while first is not None:
                await asyncio.sleep(SCRUB_PAUSE_S)
                first = await self._database.write(
                    lambda store, first=first: store.repack(series, first, REPACKED_CHUNKS)  # type: ignore[misc]
                )

    async def _read(self, series: SeriesId) -> None:
        since = -1
        while True:
            await asyncio.sleep(SCRUB_PAUSE_S)
            try:
                read = await self._database.read(lambda store, since=since: look_for_holes(store, series, since))  # type: ignore[misc]
                if read is None:
                    return
                if read.undeclared:
                    await self._declare(series, read.undeclared)
            except StoreDamaged:
                return  # the store reports the damage
            except StoreError as error:
                log.warning("store.scrub_failed", "its stored candles cannot be checked", series=series, error=error)
                return
            since = read.last

    async def _declare(self, series: SeriesId, undeclared: list[Span]) -> None:
        """Declare the spans as gaps, as far as they are still missing."""
        holes: list[Span] = []

        def change(store: CandleStore) -> None:
            for span in undeclared:
                times = [candle.time for candle in store.between(series, *span)]
                missing = missing_spans(series.timeframe, *span, times)
                holes.extend(without(missing, [gap.span for gap in store.gaps(series, span)]))
            if holes:
                store.change_gaps(series, gaps.note(store.gaps(series, hull(holes)), holes))

        await self._database.write(change)
        for span in holes:
            log.error(
                "store.hole",
                "%d stored candles are gone, and the gap ledger did not have them",
                series.timeframe.count(*span),
                series=series,
                span=span,
            )
        if holes:
            self._declared(series)


def look_for_holes(store: CandleStore, series: SeriesId, since: int) -> Slice | None:
    """Read the next candles of a series. Damaged candles do not count as missing: they are stored.

    store: has the series.
    series: to read.
    since: open time, exclusive.

    Returns None when there are no candles.
    """
    times = store.oldest_rows(series, SCRUB_CANDLES, _times, since=since)
    if not times:
        return None
    frame = series.timeframe
    first = store.first(series)
    start = times[0] if first is None or since < first else frame.next(frame.floor(since))
    window = Span(start, frame.next(times[-1]))
    holes = missing_spans(frame, *window, times)
    if holes:
        declared = [gap.span for gap in store.gaps(series, window)]
        holes = without(without(holes, declared), store.damaged(series))
    return Slice(times[-1], holes)


def _times(rows: Iterable[Sequence[object]]) -> list[int]:
    return [row[0] for row in rows]  # type: ignore[misc]  # the first column of a row is its open time

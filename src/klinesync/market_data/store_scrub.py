"""StoreScrub: reads the stored candles once after the start, slowly, so that damage is told before somebody needs them.

Unreadable candles are noted by the store itself while they are read. Candles that are gone without a trace (a row of
the file that is missing) leave a hole that no gap accounts for: it is declared, and so can be healed. Damage that is
known is read again from time to time, so that the notice ends when the damage does, though nobody asks for the candles.
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

# Seconds after the start, which has better things to read.
SCRUB_BEGINS_S = 1.0
# Candles of one look, some 2 ms of work, and the pause between two looks, in seconds: a tenth of a core at most.
SCRUB_CANDLES = 5000
SCRUB_PAUSE_S = 0.02
# Pause after a look that failed, in seconds.
SCRUB_RETRY_S = 5.0
# Damage is read again this often, in seconds; and so many parts each time.
RECHECK_S = 30.0
RECHECK_PARTS = 100
# Series that wait for a scrub because a reader met a hole. More are met again.
MAX_ASKED = 1000


# Is told of a series that has new gaps in the ledger; returns at once.
GapsDeclared = Callable[[SeriesId], None]


class Slice(NamedTuple):
    """A look at some candles: the last open time of them, and the holes between them that no gap accounts for."""

    last: int
    undeclared: list[Span]


class StoreScrub:
    """Reads every series once; `ask` has one read again. `run` is its one task.

    Its subscribers are told of a series that has new gaps. They need the reader, which needs the scrub: so they are
    bound after all are made, before `run`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: tuple[GapsDeclared, ...] | None = None
        self._asked: dict[SeriesId, None] = {}
        self._arrived = asyncio.Event()
        self._rechecked = 0

    def bind(self, subscribers: tuple[GapsDeclared, ...]) -> None:
        """Set who is told, in this order; once."""
        assert self._subscribers is None, "the subscribers are bound once"
        self._subscribers = subscribers

    def _declared(self, series: SeriesId) -> None:
        assert self._subscribers is not None, "subscribers are bound before the first look"
        for subscriber in self._subscribers:
            subscriber(series)

    def ask(self, series: SeriesId) -> None:
        """A reader has met a hole of `series` that no gap accounts for; returns at once."""
        if len(self._asked) < MAX_ASKED:
            self._asked[series] = None
            self._arrived.set()

    async def run(self) -> None:
        """Read all series, then those that are asked for, and what is damaged, until cancelled."""
        await asyncio.sleep(SCRUB_BEGINS_S)
        await self._read_all()
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
        """Read some of the damaged parts again; the board forgets those that can be read."""
        for damage in self._parts_in_turn():
            await asyncio.sleep(SCRUB_PAUSE_S)
            with contextlib.suppress(StoreError):  # still damaged, and told
                await self._database.read(lambda store, damage=damage: store.recheck(damage))  # type: ignore[misc]

    def _parts_in_turn(self) -> list[Damage]:
        """The next `RECHECK_PARTS` damaged parts: each comes in its turn."""
        parts = self._database.damage.parts()
        first = self._rechecked % len(parts) if parts else 0
        some = [*parts[first:], *parts[:first]][:RECHECK_PARTS]
        self._rechecked = first + len(some)
        return some

    async def _read_all(self) -> None:
        while True:
            try:
                stored = await self._database.read(lambda store: store.series())
            except StoreError:  # told by whoever reads for somebody
                await asyncio.sleep(SCRUB_RETRY_S)
            else:
                break
        for series in stored:
            await self._read(series)

    async def _read(self, series: SeriesId) -> None:
        since = -1
        while True:
            await asyncio.sleep(SCRUB_PAUSE_S)
            try:
                found = await self._database.read(lambda store, since=since: look_for_holes(store, series, since))  # type: ignore[misc]
                if found is None:
                    return
                if found.undeclared:
                    await self._declare(series, found.undeclared)
            except StoreDamaged:
                return  # told where it was met
            except StoreError as error:
                log.warning("store.scrub_failed", "its stored candles cannot be checked", series=series, error=error)
                return
            since = found.last

    async def _declare(self, series: SeriesId, found: list[Span]) -> None:
        """Declare what of the holes that were found is one still."""
        holes: list[Span] = []

        def change(store: CandleStore) -> None:
            for span in found:
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
    """The next candles after `since` (exclusive); None when there are none. Damaged candles are no hole: they are
    stored, and noted as damage."""
    times = store.oldest_rows(series, SCRUB_CANDLES, _times, since=since)
    if not times:
        return None
    frame = series.timeframe
    first = store.first(series)
    start = times[0] if first is None or since < first else frame.next(frame.floor(since))
    window = Span(start, frame.next(times[-1]))
    holes = missing_spans(frame, *window, times)
    if holes:
        accounted = [gap.span for gap in store.gaps(series, window)]
        holes = without(without(holes, accounted), store.damaged(series))
    return Slice(times[-1], holes)


def _times(rows: Iterable[Sequence[object]]) -> list[int]:
    return [row[0] for row in rows]  # type: ignore[misc]  # the first column of a row is its open time

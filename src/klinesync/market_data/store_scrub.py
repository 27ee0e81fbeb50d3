"""StoreScrub: reads all of the store after the start, and every few days, slowly, to find damage before it is needed.

First the pages of the file, where they have checksums; then, series by series, candles and ledgers. The store itself
notes what it cannot read. Candles that are lost without a trace (a missing row of the file) leave missing candles that
are in no gap of the ledger: the scrub declares them, so that they are healed. Damaged parts are read again from time to
time, so that the notice of damage ends when the damage does. Chunks of an earlier format are packed anew.

Each read is a snapshot of some milliseconds, so that the write-ahead log can be brought into the file in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from klinesync.core import gaps
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, hull, missing_spans, without
from klinesync.core.timeframe import DAY_S
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, Kept, StoreDamaged
from klinesync.storage.database import Database

log = Log(__name__)

# Candles of a read, which takes some 2 ms.
SCRUB_CANDLES = 5000
# Pages of a read, which takes some 1 ms.
SCRUB_PAGES = 64
# How often a page that fails its checksum is looked at again before it counts as damaged: it may be half written.
PAGE_REPEATS = 3
# Most numbers of damaged pages that are listed.
MAX_PAGES_TOLD = 20
# Share of a scrub's progress that the pages of the file stand for.
PAGES_PCT = 20.0
# Damaged parts of a check.
RECHECK_PARTS = 100
# Most series that wait for a scrub because a reader found missing candles; further series are found again.
MAX_ASKED = 1000


@dataclass(frozen=True, slots=True)
class ScrubLimits:
    """How fast the store is read.

    begins_s: pause before the scrub begins, in seconds, for the reads of the start.
    pause_s: pause between two reads, in seconds: the scrub takes at most a tenth of a core.
    retry_s: pause after a failed read, in seconds.
    page_repeat_s: pause before a page that fails its checksum is looked at again, in seconds.
    recheck_s: pause between two checks of damaged parts, in seconds.
    repacked_chunks: chunks that one transaction looks at while those of an earlier format are packed anew; the default
        takes some 3 ms of the writer.
    """

    begins_s: float = 1.0
    pause_s: float = 0.02
    retry_s: float = 5.0
    page_repeat_s: float = 1.0
    recheck_s: float = 30.0
    repacked_chunks: int = 8


USUAL_SCRUB = ScrubLimits()

# Takes a series that has new gaps in the ledger; returns at once.
GapsDeclared = Callable[[SeriesId], None]


class Slice(NamedTuple):
    """A read of consecutive candles. `last`: their last open time; `undeclared`: missing spans between them that are in
    no gap of the ledger; `window`: from the first to the close of the last."""

    last: int
    undeclared: list[Span]
    window: Span


@dataclass(slots=True)
class ScrubProgress:
    """The progress of the scrub.

    progress_pct: of the reading in progress, 0 … 100; None: none is.
    started_time: UTC seconds of its start, or of that of the newest one; None before the first.
    finished_time: UTC seconds of the end of the newest reading that ended; None before the first.
    readings: readings that have ended since the start.
    """

    progress_pct: float | None = None
    started_time: int | None = None
    finished_time: int | None = None
    readings: int = 0


class StoreScrub:
    """Reads all of the store every `days`, and a series again after `ask`. `run` is its task.

    Its subscribers are called with a series that has new gaps. They are bound before `run`, after the reader is made,
    because the reader needs the scrub.

    database: the store.
    days: days from the start of one reading to that of the next; 0: the store is not read. 7 by default.
    clock: our clock.
    limits: how fast it is read.
    """

    def __init__(
        self,
        database: Database,
        days: float = 7.0,
        clock: Clock = SYSTEM_CLOCK,
        limits: ScrubLimits = USUAL_SCRUB,
    ) -> None:
        self._database = database
        self._days = days
        self._clock = clock
        self._limits = limits
        self._bad_pages: list[int] = []
        self.progress = ScrubProgress()
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
        """Read all of the store, then series after `ask`, and damaged parts, until cancelled."""
        await asyncio.sleep(self._limits.begins_s)
        repacked = False
        while True:
            due_s = self._clock.monotonic_s() + self._days * DAY_S if self._days else float("inf")
            if self._days:
                await self._scrub()
            if not repacked:
                await self._repack_all()
                repacked = True
            await self._serve_until(due_s)

    async def _serve_until(self, due_s: float) -> None:
        """Read series after `ask`, and damaged parts, until `due_s` (monotonic seconds), or until there is room for
        damage that was left out."""
        while self._clock.monotonic_s() < due_s and not (self._days and self._database.damage.take_overflow()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.recheck_s):
                    await self._arrived.wait()
            self._arrived.clear()
            while self._asked:
                series = next(iter(self._asked))
                del self._asked[series]
                await self._read(series)
            await self._recheck()

    async def _scrub(self) -> None:
        """Read all of the store once."""
        progress = self.progress
        progress.progress_pct, progress.started_time = 0.0, int(self._clock.wall_s())
        await self._check_pages()
        stored = await self._series()
        for done, series in enumerate(stored):
            progress.progress_pct = PAGES_PCT + (100.0 - PAGES_PCT) * done / len(stored)
            await self._read(series)
        progress.progress_pct, progress.finished_time = None, int(self._clock.wall_s())
        progress.readings += 1

    async def _check_pages(self) -> None:
        """Compare the checksums of all pages of the file."""
        first, bad = 1, []
        try:
            while True:
                await asyncio.sleep(self._limits.pause_s)
                wrong, count = await self._database.check_pages(first, SCRUB_PAGES)
                if not count:
                    break
                bad += wrong
                first += count
            for _ in range(PAGE_REPEATS):
                if bad:
                    await asyncio.sleep(self._limits.page_repeat_s)
                    bad = [page for page in bad if (await self._database.check_pages(page, 1))[0]]
        except StoreError as error:
            log.warning("store.scrub_failed", "the pages of its file cannot be checked", error=error)
            return
        self._note_pages(bad)

    def _note_pages(self, bad: list[int]) -> None:
        if bad == self._bad_pages:
            return
        self._database.damage.clear(None, Kept.PAGES, None)
        self._bad_pages = bad
        if bad:
            more = f" and {len(bad) - MAX_PAGES_TOLD} more" if len(bad) > MAX_PAGES_TOLD else ""
            what = f"pages of its file fail their checksum: {', '.join(map(str, bad[:MAX_PAGES_TOLD]))}{more}"
            self._database.damage.note(Damage(None, None, what, Kept.PAGES))

    async def _recheck(self) -> None:
        """Read damaged parts again; the store drops the notice of a part that can be read."""
        with contextlib.suppress(StoreError):  # still damaged, as reported
            self._note_pages([page for page in self._bad_pages if (await self._database.check_pages(page, 1))[0]])
        for damage in self._parts_in_turn():
            await asyncio.sleep(self._limits.pause_s)
            with contextlib.suppress(StoreError):  # still damaged, as reported
                await self._database.read(lambda store, damage=damage: store.recheck(damage))  # type: ignore[misc]

    def _parts_in_turn(self) -> list[Damage]:
        """The next `RECHECK_PARTS` damaged parts, in turns."""
        parts = self._database.damage.parts()
        first = self._rechecked % len(parts) if parts else 0
        turn = [*parts[first:], *parts[:first]][:RECHECK_PARTS]
        self._rechecked = first + len(turn)
        return turn

    async def _series(self) -> list[SeriesId]:
        while True:
            try:
                return await self._database.read(lambda store: store.series())
            except StoreError:  # readers report the error
                await asyncio.sleep(self._limits.retry_s)

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
        most = self._limits.repacked_chunks
        with contextlib.suppress(StoreDamaged):  # noted where it was met; the next start tries again
            while first is not None:
                await asyncio.sleep(self._limits.pause_s)
                first = await self._database.write(
                    lambda store, first=first: store.repack(series, first, most)  # type: ignore[misc]
                )

    async def _read(self, series: SeriesId) -> None:
        since = -1
        while True:
            await asyncio.sleep(self._limits.pause_s)
            try:
                read = await self._database.read(lambda store, since=since: look_for_holes(store, series, since))  # type: ignore[misc]
                if read is None:
                    return
                if read.undeclared:
                    await self._declare(series, read.undeclared)
                with contextlib.suppress(StoreDamaged):  # the store reports the damage
                    await self._database.read(lambda store, of=read: read_ledger(store, series, of.window))  # type: ignore[misc]
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
                # As they are stored: the writer remembers the newest candles, also those that are gone.
                found = store.oldest_columns(series, series.timeframe.count(*span), span)
                missing = missing_spans(series.timeframe, *span, found.time.tolist())
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
    # The first candles of the series may be gone.
    if first is None or since < first:
        start = times[0] if first is None else min(first, times[0])
    else:
        start = frame.next(frame.floor(since))
    window = Span(start, frame.next(times[-1]))
    holes = missing_spans(frame, *window, times)
    if holes:
        declared = [gap.span for gap in store.gaps(series, window)]
        holes = without(without(holes, declared), store.damaged(series))
    return Slice(times[-1], holes, window)


def read_ledger(store: CandleStore, series: SeriesId, window: Span) -> None:
    """Read what factors and overlays have stored of a window, to find damage. Raises `StoreDamaged`."""
    store.ledger.events(series, *window)
    store.ledger.drawings(series, *window)
    store.ledger.checkpoint(series, window.end)


def _times(rows: Iterable[Sequence[object]]) -> list[int]:
    return [row[0] for row in rows]  # type: ignore[misc]  # the first column of a row is its open time

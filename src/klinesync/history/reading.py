"""Reading history: the loop over pages of files and exchanges."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from klinesync.core.counted import counted
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryPage, HistoryWatch
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.submissions import Empty

# Source of candles from an exchange's REST, in revisions.
REST = "rest"
# Reason of a reading of files, in health.
FILES = "files"
# Trouble of a reading that a cancellation or a defect ended, in health.
BROKEN_OFF = "the reading was broken off"

Pages = AsyncGenerator[HistoryPage, None]
WritePage = Callable[[HistoryPage], Awaitable[object]]


class HistoryFiles(Protocol):
    """Files with candles of many series."""

    def pages(self, series: SeriesId, span: Span) -> Pages:
        """The valid candles that open in `span`, strictly ascending, in pages that are not empty; no page where there
        is no file. Pages prove nothing about missing candles. Blocking work runs in a thread. Candles in the future are
        not left out: the caller's span must end before.

        Raises `UpstreamError` when a server does not answer.
        """
        ...


class TailFiles(HistoryFiles, Protocol):
    """Files that are read before the exchange is asked for a tail, and alone while the exchange cannot be asked."""

    @property
    def name(self) -> str:
        """Source of their candles, in revisions."""
        ...

    async def end(self, series: SeriesId, before: int) -> int | None:
        """The close of the newest candle of the files, at most `before`, in UTC seconds; None when there is no
        candle."""
        ...


@dataclass(frozen=True, slots=True)
class Shelf:
    """Files that are searched before the exchange is asked. They prove nothing about missing candles.

    name: source of their candles, in revisions.
    files: where the pages come from.
    least_candles: shortest span for which the files are searched; 1 by default.
    gap_most: most candles that are read of a gap outside explicit backfills, the newest first; None: all.
    """

    name: str
    files: HistoryFiles
    least_candles: int = 1
    gap_most: int | None = None


@dataclass(slots=True)
class Progress:
    """The progress of a reading.

    series: whose history is read.
    reached: every open time before this one has been read, UTC seconds.
    advanced: called with `reached` and `candles` after each page that made progress.
    candles: candles of all pages so far. Pages of an exchange overlap by one candle.
    came: the span of the candles so far; None before the first.
    trouble: why the reading fails, a sentence; None when it does not.
    """

    series: SeriesId
    reached: int
    advanced: Callable[[int, int], None]
    candles: int = 0
    came: Span | None = None
    trouble: str | None = BROKEN_OFF

    def take(self, page: HistoryPage) -> None:
        """Count a page that was read."""
        before, candles = self.reached, page.candles
        self.candles += len(candles)
        if candles:
            first = candles[0].time if self.came is None else self.came.start
            self.came = Span(first, self.series.timeframe.next(candles[-1].time))
            self.reached = max(self.reached, self.came.end)
        if page.empty:
            self.reached = max(self.reached, page.empty[-1].end)
        if candles or self.reached > before:
            self.advanced(self.reached, self.candles)

    def part(self, start: int) -> Progress:
        """The progress of a part of the reading from `start` on; its candles are added to the whole."""
        return Progress(self.series, start, partial(self._part_advanced, self.candles))

    def _part_advanced(self, before: int, reached: int, candles: int) -> None:
        self.candles = before + candles
        self.advanced(reached, self.candles)


async def read_pages(
    pages: Pages,
    write: WritePage,
    progress: Progress,
    *,
    newest_first: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> bool:
    """Read pages of history.

    pages: ascending; closed at the end of the reading, also after an error.
    write: stores a page; the next page is requested afterwards.
    progress: advanced with each page.
    newest_first: hold all pages in memory and write the newest first; False by default. For a span that ends with the
        first stored candle: each page then joins the stored candles, and no reader sees a gap.
    enough: asked after each page whether to end the reading; pages in memory are dropped then.

    Returns whether all pages were read. Raises what `pages` and `write` raise: `UpstreamError`, `StoreError`,
    `Rejected` (a file).
    """
    waiting: list[HistoryPage] = []
    async with aclosing(pages):
        async for page in pages:
            if newest_first:
                waiting.append(page)
            else:
                await write(page)
            progress.take(page)
            if enough():
                return False
    for page in reversed(waiting):
        await write(page)
    return True


def candles_came(candles: int) -> str:
    """A sentence with the number of candles that came."""
    return f"{counted(candles, 'candle')} came" if candles else "no candle came"


def into(pipeline: IngestPipeline, series: SeriesId, source: str) -> WritePage:
    """A `WritePage` that writes candles, and spans that are proved empty, into the store.

    pipeline: writes candles.
    series: whose candles.
    source: of the candles, in revisions.
    """

    def write(page: HistoryPage) -> Awaitable[object]:
        return pipeline.submit(series, page.candles, source, Empty(page.empty, page.proof))

    return write


def unreported(series: SeriesId, start: int) -> Progress:
    """The progress, from `start` on, of a reading that health does not show."""
    return Progress(series, start, lambda _reached, _candles: None)


@contextmanager
def on_board(watch: HistoryWatch, series: SeriesId, span: Span, reason: str) -> Iterator[Progress]:
    """Show a reading in health while the block runs, and its result afterwards.

    watch: the reader's watch; a reader reads a series once at a time.
    series: whose history is read.
    span: open times that are read.
    reason: of the reading, in health.

    Yields the progress. Its `trouble` may be set by the block; an `UpstreamError` or `StoreError` sets it too.
    """
    progress = Progress(series, span.start, partial(watch.advanced, series))
    watch.began(series, span, reason)
    try:
        yield progress
        if progress.trouble is BROKEN_OFF:
            progress.trouble = None
    except (UpstreamError, StoreError) as error:
        progress.trouble = str(error)
        raise
    finally:
        watch.ended(series, progress.trouble)

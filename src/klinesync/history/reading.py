"""Reading history: the one loop over pages, whether a file or an exchange brings them."""

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

# Source of rows that an exchange's REST brought, as revisions name it.
REST = "rest"
# Why a span is read from files before the exchange is asked, as health names it.
FILES = "files"
# What health says of a reading that a cancellation or a defect ended.
BROKEN_OFF = "the reading was broken off"

Pages = AsyncGenerator[HistoryPage, None]
WritePage = Callable[[HistoryPage], Awaitable[object]]


class HistoryFiles(Protocol):
    """Files with candles of many series."""

    def pages(self, series: SeriesId, span: Span) -> Pages:
        """The sound candles that open in `span`, strictly ascending, in pages that are never empty and prove nothing.
        No page at all where there is no file. Raises `UpstreamError` when a server does not answer; blocking work is in
        a thread.

        Whether a candle lies in the future is not judged: the caller's span ends before that.
        """
        ...


class TailFiles(HistoryFiles, Protocol):
    """Files that are read before the exchange is asked for the newest candles, and alone while the exchange cannot be
    asked. `name` is the source of their candles, as revisions name it."""

    @property
    def name(self) -> str:
        """The source."""
        ...

    async def end(self, series: SeriesId, before: int) -> int | None:
        """Where the files end: the close of their newest candle, `before` at most, in UTC seconds; None when they have
        none."""
        ...


@dataclass(frozen=True, slots=True)
class Shelf:
    """Files that are read before the exchange is asked. Candles that they lack are not shown to be empty.

    name: source of their candles, as revisions name it.
    files: where the pages come from.
    least_candles: shorter spans are not looked for in the files.
    gap_most: of a gap that no user asked for, only its newest candles, up to so many, are looked for; None: all.
    """

    name: str
    files: HistoryFiles
    least_candles: int = 1
    gap_most: int | None = None


@dataclass(slots=True)
class Progress:
    """How far a reading is.

    series: whose history is read.
    reached: every open time before this one is read, UTC seconds.
    advanced: is told `reached` and `candles` after each page that moved it.
    candles: candles of all pages so far. Pages of an exchange overlap by one.
    came: from the first candle to behind the newest one; None before a candle came.
    trouble: a sentence about what is in the way; None when nothing is.
    """

    series: SeriesId
    reached: int
    advanced: Callable[[int, int], None]
    candles: int = 0
    came: Span | None = None
    trouble: str | None = BROKEN_OFF

    def take(self, page: HistoryPage) -> None:
        """A page was read."""
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
        """The progress of a part of the reading, from `start` on; its candles count in the whole."""
        return Progress(self.series, start, partial(self._part_advanced, self.candles))

    def _part_advanced(self, before: int, reached: int, candles: int) -> None:
        self.candles = before + candles
        self.advanced(reached, self.candles)


def _enough_never() -> bool:
    return False


async def read_pages(
    pages: Pages,
    write: WritePage,
    progress: Progress,
    *,
    newest_first: bool = False,
    enough: Callable[[], bool] = _enough_never,
) -> bool:
    """Read `pages` to their end; whether that was reached.

    pages: ascending; closed here, however the reading ends.
    write: stores one page. The next page is not asked for before.
    progress: is moved on with each page.
    newest_first: pages wait in memory until all are read, and the newest is written first. For a span that ends with
        the first stored candle: each page joins the stored candles then, and no reader ever sees a hole.
    enough: asked after each page, whether the reading ends with it. Pages that wait in memory are dropped then.

    Raises what `pages` and `write` raise: `UpstreamError`, `StoreError`, `Rejected` (a file).
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


def came(candles: int) -> str:
    """A sentence about the candles that a reading brought."""
    return f"{counted(candles, 'candle')} came" if candles else "no candle came"


def into(pipeline: IngestPipeline, series: SeriesId, source: str) -> WritePage:
    """Write pages of `series` that `source` brought, with what they show to be empty."""

    def write(page: HistoryPage) -> Awaitable[object]:
        return pipeline.submit(series, page.candles, source, Empty(page.empty, page.proof))

    return write


def unreported(series: SeriesId, start: int) -> Progress:
    """The progress of a reading from `start` on that health does not show."""
    return Progress(series, start, _nobody)


def _nobody(_reached: int, _candles: int) -> None:
    """Health does not show the reading."""


@contextmanager
def on_board(watch: HistoryWatch, series: SeriesId, span: Span, reason: str) -> Iterator[Progress]:
    """Health shows a reading of `span` for as long as the block runs, and afterwards how it ended.

    watch: of the reader, which reads a series once at a time.
    reason: why the span is read, as health names it.

    The block may set `trouble` of the progress it gets; an `UpstreamError` or `StoreError` that ends the block is told
    by its sentence.
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

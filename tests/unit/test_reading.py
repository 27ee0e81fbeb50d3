"""The loop over pages of history: the order of writes, the reported progress, and the end of a reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import HistoryPage
from klinesync.history.reading import BROKEN_OFF, Progress, on_board, read_pages, unreported

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


def page(minutes: Sequence[int], empty: Span | None = None) -> HistoryPage:
    candles = [Candle(60 * minute, 1.0, 1.0, 1.0, 1.0, 1.0) for minute in minutes]
    return HistoryPage(candles, [] if empty is None else [empty])


@dataclass
class Reader:
    """Returns pages, records the order in which they are written, and whether it was closed."""

    pages: Sequence[HistoryPage]
    trouble: Exception | None = None
    written: list[HistoryPage] = field(default_factory=list)
    closed: bool = False

    async def read(self) -> AsyncGenerator[HistoryPage, None]:
        try:
            for one in self.pages:
                yield one
            if self.trouble is not None:
                raise self.trouble
        finally:
            self.closed = True

    async def write(self, one: HistoryPage) -> None:
        await asyncio.sleep(0)
        self.written.append(one)


@dataclass
class Board:
    """Records the reports to health."""

    told: list[object] = field(default_factory=list)

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        self.told.append((series, span, reason))

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        self.told.append((upto // 60, candles))

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        self.told.append(error)


@given(st.lists(st.integers(0, 200), unique=True).map(sorted), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_every_page_is_written_once_and_the_reading_ends_with_the_page_that_is_enough(
    minutes: list[int], size: int, most: int, newest_first: bool
) -> None:
    pages = [page(minutes[at : at + size]) for at in range(0, len(minutes), size)]
    reader, progress = Reader(pages), unreported(BTC, 0)
    whole = asyncio.run(
        read_pages(
            reader.read(),
            reader.write,
            progress,
            newest_first=newest_first,
            enough=lambda: progress.candles >= most * size,
        )
    )
    assert reader.closed or not pages
    assert whole == (len(minutes) < most * size)
    read = pages[: -(-len(minutes) // size) if whole else most]
    assert reader.written == ((read[::-1] if whole else []) if newest_first else read)
    candles = [candle.time for one in read for candle in one.candles]
    assert progress.candles == len(candles)
    assert progress.came == (Span(candles[0], candles[-1] + 60) if candles else None)
    assert progress.reached == (candles[-1] + 60 if candles else 0)


async def test_health_shows_a_reading_from_its_beginning_to_its_end() -> None:
    board, reader = Board(), Reader([page([1, 2]), page([2], Span(180, 600)), page([10])])
    with on_board(board, BTC, Span(60, 900), "a test") as progress:
        await read_pages(reader.read(), reader.write, progress)
    assert board.told == [(BTC, Span(60, 900), "a test"), (3, 2), (10, 3), (11, 4), None]


async def test_a_part_of_a_reading_counts_in_the_whole() -> None:
    board = Board()
    with on_board(board, BTC, Span(0, 900), "a test") as progress:
        for pages in ([page([1, 2])], [page([5])]):
            reader = Reader(pages)
            part = progress.part(0)
            await read_pages(reader.read(), reader.write, part)
        assert (part.candles, progress.candles) == (1, 3)
    assert board.told[1:] == [(3, 2), (6, 3), None]


@pytest.mark.parametrize("trouble", [UpstreamError("it is away"), StoreError("the disk is full")])
async def test_an_error_is_reported_and_the_pages_are_closed(trouble: Exception) -> None:
    board, reader = Board(), Reader([page([1])], trouble)
    with pytest.raises(type(trouble)), on_board(board, BTC, Span(0, 900), "a test") as progress:
        await read_pages(reader.read(), reader.write, progress)
    assert (reader.closed, board.told[-1]) == (True, str(trouble))


async def test_a_write_that_fails_closes_the_pages_at_once() -> None:
    reader = Reader([page([1]), page([2])])

    async def write(_: HistoryPage) -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):
        await read_pages(reader.read(), write, unreported(BTC, 0))
    assert reader.closed


async def test_a_cancelled_reading_is_reported_as_broken_off_unless_it_has_set_its_trouble() -> None:
    board = Board()
    with pytest.raises(asyncio.CancelledError), on_board(board, BTC, Span(0, 60), "a test"):
        raise asyncio.CancelledError
    with on_board(board, BTC, Span(0, 60), "a test") as progress:
        progress.trouble = "one candle is hidden"
    assert [board.told[1], board.told[3]] == [BROKEN_OFF, "one candle is hidden"]


def test_progress_never_goes_back_and_is_reported_only_when_it_advances() -> None:
    told: list[tuple[int, int]] = []
    progress = Progress(BTC, 600, lambda reached, candles: told.append((reached, candles)))
    for one in (page([9]), page([]), page([], Span(300, 540)), page([11])):
        progress.take(one)
    assert told == [(600, 1), (720, 2)]

"""TailReader: reads the tail and the first history of followed series, from files and the exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Errand, Exchange, HistoryPage
from klinesync.history.reading import FILES, REST, Progress, TailFiles, on_board, read_pages
from klinesync.ingest.followed import Command, Fetch, Followed, FollowSettings, Moment, Persist
from klinesync.ingest.market_watch import MarketWatch
from klinesync.ingest.ports import IngestPorts
from klinesync.pipelines.submissions import Empty
from klinesync.runtime.log_limit import LogLimit

# Shortest time between two log lines about failed readings of a market, in seconds.
FAILED_LOG_EVERY_S = 5.0
# Most first histories that are read concurrently: their pages wait in memory until they are written.
SWEEPS_AT_ONCE = 16

CarryOut = Callable[[Iterable[Command]], None]


@dataclass(slots=True)
class _Reading:
    """A reading of the newest candles of a series.

    followed: the series.
    carry_out: carries out its commands.
    most: most candles.
    resume_at: where to continue the reading, when the exchange's clock turned out to be so far ahead that more than
        `most` candles are missing; None: the reading is not that far behind.
    """

    followed: Followed
    carry_out: CarryOut
    most: int
    resume_at: int | None = None

    def is_far_behind(self) -> bool:
        return self.resume_at is not None


class TailReader:
    """Reads history for the followed series of one exchange.

    exchange: the exchange.
    markets: its markets, which have its clocks.
    ports: of ingest.
    settings: how much is read.
    """

    def __init__(
        self, exchange: Exchange, markets: Mapping[str, MarketWatch], ports: IngestPorts, settings: FollowSettings
    ) -> None:
        self._exchange = exchange
        self._markets = markets
        self._ports = ports
        self._watch = ports.watch()
        self._settings = settings
        self.log_limit = LogLimit(FAILED_LOG_EVERY_S)
        self._sweeps = asyncio.Semaphore(SWEEPS_AT_ONCE)
        self._live_from: dict[SeriesId, int] = {}  # the live edge of each series

    async def read(self, followed: Followed, fetch: Fetch, errand: Errand, carry_out: CarryOut) -> None:
        """Read history, page by page, into the pipeline.

        followed: the series.
        fetch: the command to carry out.
        errand: urgency of the requests, which may rise meanwhile.
        carry_out: carries out the commands that follow from the pages, except for writes.

        Raises `UpstreamError`, `StoreError`.
        """
        feed = followed.feed
        if feed.caught_up and fetch.start is not None:
            reading = _Reading(followed, carry_out, self._settings.most_tail_candles)
            await self._read_tail(reading, fetch.start, errand)
            return
        async with self._sweeps:
            reading = _Reading(followed, carry_out, self._settings.first_history_candles)
            if self._ports.files is not None:
                await self._read_files(reading, self._ports.files)
            await self._read_tail(reading, feed.head or 0, errand)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        """Report the end of a reading of the series."""
        self._watch.ended(series, error)

    def live_edge(self, series: SeriesId, now_ms: int) -> int:
        """The open time of the candle that was forming when the series began to be followed."""
        return self._live_from.setdefault(series, series.timeframe.floor(now_ms // 1000))

    def forget(self, series: SeriesId) -> None:
        """Forget the live edge of a series that is not followed any more."""
        self._live_from.pop(series, None)

    def askable(self, series: SeriesId, stored: Span) -> Span:
        """The part of the stored span that may be requested from REST."""
        if not self._settings.live_only:
            return stored
        return Span(max(stored.start, self._live_from.get(series, stored.end)), stored.end)

    async def _read_tail(self, reading: _Reading, start: int, errand: Errand) -> None:
        """Read the newest candles from `start` on."""
        series = reading.followed.series
        now_ms = await self._markets[series.market].fresh_ms()
        start = max(start, _reach(reading, now_ms))
        if self._settings.live_only:
            start = max(start, self.live_edge(series, now_ms))
            if start >= series.timeframe.floor(now_ms // 1000):
                return  # no candle that may be requested has closed
        resume_at: int | None = start
        while resume_at is not None:
            resume_at = await self._read_pages(reading, resume_at, errand)

    async def _read_files(self, reading: _Reading, files: TailFiles) -> None:
        """Read a first history from files. While the exchange cannot be asked for its time, this machine's clock
        counts, and the newest candles of the files are read, of any age. Raises `StoreError`."""
        feed, series, frame = reading.followed.feed, reading.followed.series, reading.followed.series.timeframe
        upto: int | None = None
        with suppress(UpstreamError):  # `_read_tail` asks again
            upto = frame.floor(await self._markets[series.market].known_ms() // 1000)
        end = await files.end(series, int(self._ports.clock.wall_s()) if upto is None else upto)
        if end is None:
            return
        start = max(0, frame.shift(end if upto is None else upto, -reading.most))
        if feed.head is not None:
            start = max(start, frame.next(feed.head))
        if start < end:
            with on_board(self._watch, series, Span(start, end), FILES) as progress:
                pages = files.pages(series, Span(start, end))
                await read_pages(pages, partial(self._write, reading, files.name), progress)

    async def _read_pages(self, reading: _Reading, start: int, errand: Errand) -> int | None:
        """Read the pages from `start` on. Returns where to continue, when the reading turned out to be far behind."""
        followed = reading.followed
        series, frame = followed.series, followed.series.timeframe
        now_ms = self._markets[series.market].now_ms()
        if now_ms is not None:
            span = Span(start, max(frame.next(start), frame.floor(now_ms // 1000)))
            self._watch.began(series, span, "tail" if followed.feed.caught_up else "startup")
        progress = Progress(series, start, partial(self._watch.advanced, series))
        reading.resume_at = None
        pages = self._exchange.history(series, start, errand)
        await read_pages(pages, partial(self._take_page, reading), progress, enough=reading.is_far_behind)
        return reading.resume_at

    async def _take_page(self, reading: _Reading, page: HistoryPage) -> None:
        followed = reading.followed
        now_ms = self._markets[followed.series.market].now_ms()
        reading.carry_out(followed.shown(page, Moment(self._ports.clock.monotonic_s(), now_ms)))
        await self._write(reading, REST, page)
        if page.candles:
            reach = _reach(reading, await self._markets[followed.series.market].known_ms())
            if followed.series.timeframe.next(page.candles[-1].time) < reach:
                reading.resume_at = reach

    async def _write(self, reading: _Reading, source: str, page: HistoryPage) -> None:
        """Write the part of a page that the feed releases. Raises `StoreError`."""
        followed = reading.followed
        for command in followed.feed.history(page):
            if isinstance(command, Persist):
                empty = Empty(command.empty, command.proof)
                await self._ports.pipeline.submit(followed.series, command.candles, source, empty)
                reading.carry_out(followed.written(command))
        reading.carry_out(followed.feed.page_written())


def _reach(reading: _Reading, now_ms: int) -> int:
    """The open time `reading.most` candles before now."""
    frame = reading.followed.series.timeframe
    return max(0, frame.shift(frame.floor(now_ms // 1000), -reading.most))

"""Coverage: what a read of candles lacks is fetched, so that a later one has it. The read itself waits for nothing.

Two things may be lacking: the tail of a series that nobody follows, and history before the first stored candle. What of
them is to be fetched, and when again, is decided by plain functions and tables; `Coverage` carries it out: tails by
itself, older history through the `HistoryService`, which keeps it from tearing holes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.core.candle import MAX_TIME
from klinesync.core.errors import Rejected, StoreError, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Errand, HistoryWatch, Source, Urgency
from klinesync.history.reading import FILES, REST, TailFiles, into, on_board, read_pages
from klinesync.history.service import HistoryService
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.log_limit import LogLimit
from klinesync.storage.database import Database

log = logging.getLogger(__name__)

# What health calls it.
REASON = "read"
# Tails that are read at once; the exchange's budget rations them further.
TAILS_AT_ONCE = 4
# Series whose tails wait to be read. What finds no room is asked for by a later read.
MAX_WAITING = 1000
# Before the tail of a series is attempted again: the initial delay after one that brought something, longer after each
# one in a row that brought nothing.
COOL_DOWN = Backoff(initial_s=15.0, most_s=300.0)
# Series of which such is remembered; the ones that were attempted longest ago are forgotten first.
MAX_COOLING = 10_000
# Older history is asked for in spans of at least a page, so that the next few reads that scroll back find theirs.
LEAST_OLDER_CANDLES = 1000
# About one series the same trouble is logged this often at most.
LOG_EVERY_S = 600.0


def full_page_start(
    frame: Timeframe, count: int, first: int | None, before: int | None, limit: int, stored: Span
) -> int | None:
    """Where a page of the newest `limit` candles of `frame` (before `before`) would begin, were it full; None when it
    is. It has `count` candles from `first` on; `stored`: what is stored of the ingested series."""
    if count >= limit:
        return None
    end = frame.floor(stored.end)
    if first is not None:
        end = first
    elif before is not None:
        end = min(end, frame.ceil(before))
    return back(frame, end, limit - count)


def missing_tail(frame: Timeframe, stored: Span | None, now_s: float, most: int, kept_from: int = 0) -> Span | None:
    """What is missing behind the stored head up to `now_s` (the exchange's time), but only the newest `most` candles,
    and none that opens before `kept_from`. None when there is nothing to fetch."""
    end = frame.floor(int(now_s))
    start = max(back(frame, end, most), frame.ceil(kept_from), 0 if stored is None else stored.end)
    return Span(start, end) if start < end else None


def missing_older(
    frame: Timeframe,
    base: Timeframe,
    stored: Span,
    page_start: int,
    most: int,
    kept_from: int = 0,
    nothing: Span | None = None,
) -> Span | None:
    """What of the ingested series (timeframe `base`, of which `stored` is stored) is to be fetched, so that a page of
    `frame` that would begin at `page_start` is full.

    It ends with the first stored candle, so that no hole comes to be; is at least a page and at most `most` candles;
    begins with a whole bucket of `frame` if it can; and not before `kept_from`. None when there is nothing to fetch:
    in `nothing`, which lies right before the first stored candle, the exchange has nothing.
    """
    start = min(page_start, back(base, stored.start, LEAST_OLDER_CANDLES))
    start = max(start, back(base, stored.start, most), base.ceil(kept_from))
    whole = frame.ceil(start)
    if whole < stored.start:
        start = whole
    if start >= stored.start or (nothing is not None and nothing.end == stored.start and nothing.start <= start):
        return None
    return Span(start, stored.start)


def back(frame: Timeframe, open_time: int, count: int) -> int:
    """The open time `count` candles earlier, or the first one since 1970."""
    first = frame.ceil(0)
    return first if count * frame.seconds >= open_time - first else max(first, frame.shift(open_time, -count))


class CoolDowns:
    """When a series may be attempted again. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._until: OrderedDict[SeriesId, tuple[float, int]] = OrderedDict()  # and how often it was in vain

    def over(self, series: SeriesId, now_s: float) -> bool:
        """Whether it may be attempted now."""
        until_s, _ = self._until.get(series, (now_s, 0))
        return until_s <= now_s

    def in_vain(self, series: SeriesId) -> int:
        """How many attempts in a row were in vain."""
        return self._until.get(series, (0.0, 0))[1]

    def begin(self, series: SeriesId, now_s: float, *, in_vain: bool, at_least_s: float = 0.0) -> None:
        """An attempt is over. `in_vain`: it failed, or brought nothing that was expected; `at_least_s`: how long the
        exchange wants to be left alone."""
        vain = self._until.get(series, (0.0, 0))[1] + 1 if in_vain else 0
        self._until[series] = (now_s + max(COOL_DOWN.delay_s(vain), at_least_s), vain)
        self._until.move_to_end(series)
        if len(self._until) > MAX_COOLING:
            self._until.popitem(last=False)


class OlderAsked:
    """How far back older history was asked for not long ago, series by series. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._asked: OrderedDict[SeriesId, tuple[int, float]] = OrderedDict()

    def admits(self, series: SeriesId, start: int, now_s: float) -> bool:
        """Whether what begins at `start` may be asked for; then it counts as asked."""
        asked = self._asked.get(series)
        if asked is not None and asked[0] <= start and now_s - asked[1] < COOL_DOWN.initial_s:
            return False
        self._asked[series] = (start, now_s)
        self._asked.move_to_end(series)
        if len(self._asked) > MAX_COOLING:
            self._asked.popitem(last=False)
        return True


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the reading of a tail went. `again_s`: how long the exchange wants to be left alone."""

    in_vain: bool
    again_s: float = 0.0


class Coverage:
    """Fetches what reads lack, once however many they are. `run` is its one task.

    `covers`: whether a base series is of an exchange that can be asked; `followed`: whether somebody else keeps it up
    to date; `exchange_s`: what time it is on its exchange, in UTC seconds, None where that is not known (then it is
    asked for); `final_margin_s`: how long after its close a candle is final there; `kept_from`: before what open time a
    series with that head is trimmed (0: never); `heal` looks after the declared gaps of a series, where that is wanted.
    `max_candles`: most that one read may fetch. `derived` is told of derived series that are read, and where the page
    would begin, were it full; it says whether older history is its affair. `files` are read for a tail before the
    exchange is asked, and alone where it cannot be asked: then `now_s` tells the time. `asks`: whether the exchange of
    a series may be asked for history at all; by default each is. `watch` is told of the tails that are read.
    """

    def __init__(
        self,
        *,
        source: Source,
        pipeline: IngestPipeline,
        database: Database,
        backfill: HistoryService,
        heal: Callable[[SeriesId], None] | None,
        base_of: Callable[[SeriesId], SeriesId],
        covers: Callable[[SeriesId], bool],
        followed: Callable[[SeriesId], bool],
        exchange_s: Callable[[SeriesId], float | None],
        final_margin_s: float,
        kept_from: Callable[[SeriesId, int], int],
        max_candles: int,
        watch: HistoryWatch,
        derived: Callable[[SeriesId, int | None], bool] = lambda _series, _start: False,
        files: TailFiles | None = None,
        now_s: Callable[[SeriesId], float] = lambda _: float(MAX_TIME),
        asks: Callable[[SeriesId], bool] = lambda _: True,
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self._bulkheads = bulkheads or Bulkheads()
        self._source = source
        self._pipeline = pipeline
        self._database = database
        self._backfill = backfill
        self._heal = heal
        self._base_of = base_of
        self._covers = covers
        self._followed = followed
        self._exchange_s = exchange_s
        self._final_margin_s = final_margin_s
        self._kept_from = kept_from
        self._max_candles = max_candles
        self._watch = watch
        self._derived = derived
        self._files = files
        self._now_s = now_s
        self._asks = asks
        self._waiting: asyncio.Queue[SeriesId] = asyncio.Queue(MAX_WAITING)
        self._asked: set[SeriesId] = set()  # waits, or is being read
        self._cool_downs = CoolDowns()
        self._older_asked = OlderAsked()
        self._logged = LogLimit(LOG_EVERY_S)

    def base_of(self, series: SeriesId) -> SeriesId | None:
        """The series whose candles are fetched for a read of `series`; None when none are."""
        base = self._base_of(series)
        return base if self._covers(base) else None

    def ensure(
        self, series: SeriesId, base: SeriesId, stored: Span | None, page_start: int | None, *, newest: bool
    ) -> None:
        """Have fetched what a read of `series` lacks; returns at once.

        `stored` is what was stored of its `base`; `page_start` where the page would begin, were it full (None: it is).
        `newest`: the page goes up to the head.
        """
        now_s = _now_s()
        if not self._followed(base) and base not in self._asked and self._cool_downs.over(base, now_s):
            self._ensure_tail(base, stored)
        filling = newest and base in self._asked  # what it lacks may come with the tail
        if series != base and self._derived(series, None if filling else page_start):
            return
        if page_start is not None and stored is not None and not filling:
            self._ensure_older(series, base, stored, page_start, now_s)

    def _ensure_tail(self, base: SeriesId, stored: Span | None) -> None:
        exchange_s = self._exchange_s(base)
        if exchange_s is not None and self._tail(base, stored, exchange_s - self._final_margin_s) is None:
            return
        if self._waiting.full():
            self._warn(base, "%s: %d series wait for their tails; a later read asks again", base, MAX_WAITING)
            return
        self._asked.add(base)
        self._waiting.put_nowait(base)

    def _ensure_older(self, series: SeriesId, base: SeriesId, stored: Span, page_start: int, now_s: float) -> None:
        kept_from = self._kept_from(base, base.timeframe.shift(stored.end, -1))
        nothing = self._backfill.nothing_before(base)
        span = missing_older(
            series.timeframe, base.timeframe, stored, page_start, self._max_candles, kept_from, nothing
        )
        if span is not None and self._older_asked.admits(base, span.start, now_s):
            self._backfill.request(base, span, REASON, Urgency.READ)

    def _tail(self, series: SeriesId, stored: Span | None, final_s: float) -> Span | None:
        """What is missing behind the stored head; `final_s`: by when a candle must have closed, in UTC seconds."""
        newest = series.timeframe.latest_closed(int(final_s))
        return missing_tail(series.timeframe, stored, final_s, self._max_candles, self._kept_from(series, newest))

    async def run(self) -> None:
        """Read the tails that are asked for, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(1, TAILS_AT_ONCE + 1):
                self._bulkheads.begin(group, self._work, part=Part.COVERAGE, name=f"tail {number}", restart=True)
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while True:
            series = await self._waiting.get()
            attempt = Attempt(in_vain=True)
            try:
                with self._bulkheads.contained(Part.COVERAGE, f"tail of {series}"):
                    attempt = await self._try(series)
            finally:
                self._asked.remove(series)
            self._cool_downs.begin(series, _now_s(), in_vain=attempt.in_vain, at_least_s=attempt.again_s)

    async def _try(self, series: SeriesId) -> Attempt:
        try:
            return await self._attempt(series)
        except UpstreamError as error:
            self._warn(series, "%s: its tail cannot be read: %s", series, error)
            return Attempt(in_vain=True, again_s=error.retry_after_s or 0.0)
        except StoreError as error:
            self._warn(series, "%s: its tail cannot be stored: %s", series, error)
            return Attempt(in_vain=True)

    async def _attempt(self, series: SeriesId) -> Attempt:
        """Raises `UpstreamError`, `StoreError`."""
        trouble: UpstreamError | None = None  # why the exchange is not asked
        now_s: float | None = None
        if self._asks(series):
            try:
                if not await self._source.knows(series):
                    return Attempt(in_vain=True, again_s=COOL_DOWN.most_s)
                now_s = self._exchange_s(series)
                if now_s is None:
                    now_s = await self._source.now_ms(series.market) / 1000
            except UpstreamError as error:
                if self._files is None:
                    raise
                trouble = error
        asked = now_s is not None
        final_s = (self._now_s(series) if now_s is None else now_s) - self._final_margin_s
        stored = before = await self._stored(series)
        span = self._tail(series, stored, final_s)
        if span is None or self._followed(series):
            return Attempt(in_vain=False)
        if self._files is not None:
            end = await self._files.end(series, int(final_s))
            if end is None or (asked and end <= span.start):
                span = None
            elif not asked:  # the newest candles that the files have, however long ago that was
                span = self._tail(series, stored, end)
            if span is not None and await self._read_files(self._files, series, span):
                stored = await self._stored(series)
        if asked and (span := self._tail(series, stored, final_s)) is not None:
            await self._read(series, stored, span)
            stored = await self._stored(series)
        if trouble is not None and stored == before:
            raise trouble
        return Attempt(in_vain=stored == before)

    async def _read(self, series: SeriesId, stored: Span | None, span: Span) -> None:
        """Read a tail into the pipeline, page by page. Raises `UpstreamError`, `StoreError`."""
        frame, start = series.timeframe, span.start
        if stored is not None and stored.end == start:
            start = frame.shift(start, -1)  # with the head, so that one answer shows a hole behind it
        with on_board(self._watch, series, span, REASON) as progress:
            try:
                pages = self._source.history(series, start, Errand(Urgency.READ))
                await read_pages(pages, into(self._pipeline, series, REST), progress)
            finally:
                if progress.candles and self._heal is not None:
                    self._heal(series)  # what was out of reach is a hole now, and so may be what was broken off

    async def _read_files(self, files: TailFiles, series: SeriesId, span: Span) -> bool:
        """Read what the files have of a tail; whether that is anything. Raises `StoreError`."""
        with on_board(self._watch, series, span, FILES) as progress:
            try:
                await read_pages(files.pages(series, span), into(self._pipeline, series, files.name), progress)
            except (UpstreamError, Rejected) as error:
                progress.trouble = str(error)
                self._warn(series, "%s: files (%s) are left out: %s", series, files.name, error)
        if progress.candles and self._heal is not None:
            self._heal(series)  # what they lack in between
        return progress.candles > 0

    async def _stored(self, series: SeriesId) -> Span | None:
        return await self._database.read(lambda store: store.span(series))

    def _warn(self, series: SeriesId, text: str, *values: object) -> None:
        if self._logged.allow((series, text), _now_s()) is not None:
            log.warning(text, *values)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

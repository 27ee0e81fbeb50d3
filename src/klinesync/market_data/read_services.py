"""CandleReader: pages of closed candles for HTTP, and catch-ups for WebSocket."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import attrgetter
from typing import NamedTuple

import msgspec

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import Rejected, UnknownSeries, UpstreamError
from klinesync.core.gaps import Gap, GapState, declared
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, without
from klinesync.core.timeframe import Timeframe
from klinesync.history.missing import full_page_start
from klinesync.market_data.coverage import Coverage
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database
from klinesync.ws.messages import CandleOut, FullCandleOut
from klinesync.ws.session import CATCH_UP_MAX_CANDLES

_time_of = attrgetter("candle_time")
_encode = msgspec.json.Encoder().encode


def _out(rows: Iterable[Sequence[object]]) -> list[CandleOut]:
    return list(starmap(CandleOut, rows))


def _full_out(rows: Iterable[Sequence[object]]) -> list[CandleOut]:
    return list(starmap(FullCandleOut, rows))


# Size of the cache of encoded pages, in bytes: some hundred pages of 2,000 candles.
MAX_PAGES_BYTES = 32 << 20
# Most series of which the newest transaction is remembered; the oldest are evicted.
MAX_CHANGED_SERIES = 50_000


class GapOut(msgspec.Struct, gc=False):
    """A gap for clients: open times in `[start_time, end_time)`, and its state."""

    start_time: int
    end_time: int
    state: str


class CandlesOut(msgspec.Struct):
    """A page for clients: its closed candles and gaps, ascending, and the series' head, read in one transaction."""

    series_id: str
    server_head_time: int | None
    candles: list[CandleOut]
    gaps: list[GapOut]


def page_window(
    timeframe: Timeframe, first: int | None, last: int | None, since: int | None, before: int | None
) -> Span | None:
    """The open times that a page covers, so that no gap falls between two pages; None when the page has no candle.

    A page after `since` covers all times from `since` to its newest candle. Another page covers all times from its
    oldest candle to `before`, or to its newest candle.

    timeframe: of the series.
    first, last: open times of the page's oldest and newest candle.
    since, before: of the request, exclusive.
    """
    if first is None or last is None:
        return None
    start = first if since is None else min(first, timeframe.next(timeframe.floor(since)))
    end = timeframe.next(last)
    return Span(start, end if before is None else max(end, before))


class Page(NamedTuple):
    """An encoded page.

    body: as sent.
    commit: number of the newest transaction that it shows.
    head: of the series; None when nothing is stored.
    base_stored: the stored span of its base.
    start: where the page would begin if it were full; None: it is full.
    settled: only a write of candles can change its gaps; True by default.
    undeclared: missing candles of the page are in no gap of the ledger; False by default.
    """

    body: bytes
    commit: int
    head: int | None
    base_stored: Span | None
    start: int | None
    settled: bool = True
    undeclared: bool = False


class PageKey(NamedTuple):
    """The key of a page in the cache. `base`: the base of a derived series, or the series itself. `full`: its candles
    have their order flow."""

    series: SeriesId
    base: SeriesId
    since: int | None
    before: int | None
    limit: int
    full: bool = False


class PageCache:
    """A cache of encoded pages, until their series or its base changes. The least recently used are evicted.

    max_bytes: of all pages together.
    max_changed: most series whose last change is remembered.
    """

    def __init__(self, max_bytes: int = MAX_PAGES_BYTES, max_changed: int = MAX_CHANGED_SERIES) -> None:
        self._max_bytes = max_bytes
        self._max_changed = max_changed
        self._pages: OrderedDict[PageKey, Page] = OrderedDict()
        self._changed: OrderedDict[SeriesId, int] = OrderedDict()
        self._oldest = 0  # pages of series that `_changed` has evicted must not be older than this commit
        self.size = 0  # bytes

    def changed(self, series: SeriesId, commit: int) -> None:
        """The transaction `commit` has changed the series."""
        self._changed[series] = commit
        self._changed.move_to_end(series)
        if len(self._changed) > self._max_changed:
            _, self._oldest = self._changed.popitem(last=False)

    def clear(self) -> None:
        """Drop every page."""
        self._pages.clear()
        self.size = 0

    def get(self, key: PageKey) -> Page | None:
        """The page; None when it is missing, or its series has changed."""
        page = self._pages.get(key)
        if page is None:
            return None
        if page.commit < max(self._changed.get(series, self._oldest) for series in (key.series, key.base)):
            self._drop(key)
            return None
        self._pages.move_to_end(key)
        return page

    def put(self, key: PageKey, page: Page) -> None:
        """Add a page, unless it exceeds `max_bytes` alone."""
        self._drop(key)
        self._pages[key] = page
        self.size += len(page.body)
        while self.size > self._max_bytes:
            self._drop(next(iter(self._pages)))

    def _drop(self, key: PageKey) -> None:
        page = self._pages.pop(key, None)
        if page is not None:
            self.size -= len(page.body)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """The arguments of `Subscription.caught_up`, read in one transaction; and the head of the series."""

    rows: list[Candle]
    first: int | None
    newer: int
    commit: int
    gaps: list[Gap]
    head: int | None


def holes_of_page(
    store: CandleStore, series: SeriesId, times: Sequence[int], window: Span | None
) -> tuple[list[Gap], bool]:
    """The gaps of a page, whether the gap ledger has them or not; and whether some are not in the ledger.

    store: has the series.
    series: of the page.
    times: open times of its candles.
    window: the open times that it covers; None: no candle.
    """
    stored, frame = store.span(series), series.timeframe
    if window is None or stored is None:
        return [], False
    # Times outside the stored span are no gap. The end of the window may be off the grid.
    window = Span(window.start, frame.ceil(window.end)).clipped(stored)
    if len(times) == frame.count(*window):
        return [], False
    ledger = store.gaps(series, window)
    holes = declared(frame, window, times, ledger)
    undeclared = without([gap.span for gap in holes], [gap.span for gap in ledger])
    return holes, bool(without(undeclared, store.damaged(series)))


class CandleReader:
    """Reads candles.

    database: the store.
    knows: whether the exchange lists a series; may raise `UpstreamError`.
    coverage: requests candles that pages lack; None (the default): nothing is requested.
    undeclared: takes a series with missing candles that are in no gap of the ledger.
    catch_up_candles: most candles of one catch-up; older ones are paged over HTTP.
    """

    def __init__(
        self,
        database: Database,
        knows: Callable[[SeriesId], Awaitable[bool]],
        coverage: Coverage | None = None,
        undeclared: Callable[[SeriesId], None] = lambda _: None,
        catch_up_candles: int = CATCH_UP_MAX_CANDLES,
    ) -> None:
        self._database = database
        self._catch_up_candles = catch_up_candles
        self._knows = knows
        self._coverage = coverage
        self._undeclared = undeclared
        self._pages = PageCache()

    def changed(self, applied: Applied) -> None:
        """A write has changed a series; to be called after its commit, and before its caller is answered."""
        self._pages.changed(applied.series, applied.commit)

    def forget_pages(self, _series: SeriesId) -> None:
        """Drop all cached pages, because a commit may have been missed."""
        self._pages.clear()

    async def page(
        self, series: SeriesId, since: int | None, before: int | None, limit: int, *, full: bool = False
    ) -> bytes:
        """A page of stored candles, encoded. Candles that it lacks may be requested, for a later read.

        series: whose candles.
        since: the oldest candles after this open time; None: the newest candles.
        before: the newest candles before this open time; None: up to the head.
        limit: most candles.
        full: whether candles have their order flow; False by default.

        Raises `Rejected` when both times are given, `UnknownSeries` when nothing is stored and the exchange does not
        list the series, `StoreError`.
        """
        if since is not None and before is not None:
            raise Rejected("since and before exclude each other; give one of them")
        coverage = self._coverage
        base = None if coverage is None else coverage.base_of(series)

        make = _full_out if full else _out

        def look(store: CandleStore) -> Page:
            if since is not None:
                candles = store.oldest_rows(series, limit, make, since=since, full=full)
            else:
                candles = store.newest_rows(series, limit, make, before=before, full=full)
            head = store.head(series)
            stored = None if base is None else store.span(base)
            start = None
            if since is None and stored is not None:
                first = candles[0].candle_time if candles else None
                start = full_page_start(series.timeframe, len(candles), first, before, limit, stored)
            times = list(map(_time_of, candles))
            first_time, last_time = (times[0], times[-1]) if times else (None, None)
            if first_time is not None and since is None and len(times) < limit:
                first_time = min(first_time, store.first(series) or 0)  # the first candles may be missing
            window = page_window(series.timeframe, first_time, last_time, since, before)
            holes, undeclared = holes_of_page(store, series, times, window)
            gaps = [GapOut(gap.start, gap.end, gap.state.value) for gap in holes]
            settled = all(gap.state is GapState.CONFIRMED_EMPTY for gap in holes)
            body = _encode(CandlesOut(str(series), head, candles, gaps))
            return Page(body, store.commit(), head, stored, start, settled, undeclared)

        key = PageKey(series, base or series, since, before, limit, full)
        page = self._pages.get(key)
        if page is None:
            page = await self._database.read(look)
            if page.head is None:
                await self.check_known(series)
            elif page.settled:
                self._pages.put(key, page)
            if page.undeclared:
                self._undeclared(series)
        if coverage is not None and base is not None:
            coverage.ensure(series, base, page.base_stored, page.start, newest=before is None)
        return page.body

    async def catch_up(self, series: SeriesId, since: int | None) -> CatchUp:
        """The catch-up of a subscription: the newest candles after `since`; no candle when `since` is None."""

        def look(store: CandleStore) -> CatchUp:
            head = store.head(series)
            if since is None:
                return CatchUp([], store.first(series), 0, store.commit(), [], head)
            # One more tells whether there are older ones. Damaged candles are not counted: they cannot be paged.
            found = store.newest(series, self._catch_up_candles + 1, after=since, strict=False)
            rows, newer = found[-self._catch_up_candles :], len(found)
            gaps = store.gaps(series, Span(rows[0].time, rows[-1].time)) if rows else []
            return CatchUp(rows, store.first(series), newer, store.commit(), gaps, head)

        return await self._database.read(look)

    async def head(self, series: SeriesId) -> int | None:
        """The stored head; None when nothing is stored."""
        return await self._database.read(lambda store: store.head(series))

    async def stored(self, series: SeriesId) -> Span | None:
        """The stored span; None when nothing is stored."""
        return await self._database.read(lambda store: store.span(series))

    async def check_known_or_stored(self, series: SeriesId) -> None:
        """Raises `UnknownSeries` when nothing is stored of the series, and the exchange does not list it."""
        if await self._database.read(lambda store: store.head(series)) is None:
            await self.check_known(series)

    async def check_known(self, series: SeriesId) -> None:
        """Raises `UnknownSeries` when the exchange can be asked, and does not list the series."""
        try:
            known = await self._knows(series)
        except UpstreamError:
            return  # stored candles are served
        if not known:
            raise UnknownSeries(str(series), f"{series.exchange} lists no such symbol on its {series.market} market")

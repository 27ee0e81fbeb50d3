"""Reading: pages of closed candles for HTTP, and catch-ups for WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from klinesync.core.candle import Candle
from klinesync.core.errors import Rejected, UnknownSeries, UpstreamError
from klinesync.core.gaps import Gap, Span
from klinesync.core.series_id import SeriesId
from klinesync.market_data.coverage import Coverage, full_page_start
from klinesync.storage.database import CandleStore, Database
from klinesync.ws.session import CATCH_UP_MAX_CANDLES


@dataclass(frozen=True, slots=True)
class CandlePage:
    """Closed candles, ascending, and the series' head, of one state of the store."""

    series: SeriesId
    head: int | None
    candles: list[Candle]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """What `Subscription.caught_up` takes, of one state of the store."""

    rows: list[Candle]
    first: int | None
    newer: int
    commit: int
    gaps: list[Gap]
    head: int | None


class CandleReader:
    """Reads candles. `knows` asks the exchange whether it lists a series; it may raise `UpstreamError`. `coverage`
    fetches what pages lack; without one nothing is fetched."""

    def __init__(
        self, database: Database, knows: Callable[[SeriesId], Awaitable[bool]], coverage: Coverage | None = None
    ) -> None:
        self._database = database
        self._knows = knows
        self._coverage = coverage

    async def page(self, series: SeriesId, since: int | None, before: int | None, limit: int) -> CandlePage:
        """The oldest `limit` candles after `since`, or the newest `limit` (before `before`), as far as they are stored.
        What is not may be fetched, for a later read.

        Raises `Rejected` when both are given, `UnknownSeries` when nothing is stored and the exchange does not
        list the series.
        """
        if since is not None and before is not None:
            raise Rejected("since and before exclude each other; give one of them")

        coverage = self._coverage
        base = None if coverage is None else coverage.base_of(series)

        def look(store: CandleStore) -> tuple[CandlePage, Span | None]:
            if since is not None:
                candles = store.oldest(series, limit, since=since)
            else:
                candles = store.newest(series, limit, before=before)
            page = CandlePage(series, store.head(series), candles)
            return page, None if base is None else store.span(base)

        page, base_stored = await self._database.read(look)
        if page.head is None:
            await self.check_known(series)
        if coverage is not None and base is not None:
            page_start = None
            if since is None and base_stored is not None:
                page_start = full_page_start(series.timeframe, page.candles, before, limit, base_stored)
            coverage.ensure(series, base, base_stored, page_start, newest=before is None)
        return page

    async def catch_up(self, series: SeriesId, since: int | None) -> CatchUp:
        """The newest candles after `since` that one catch-up takes; none without `since`."""

        def look(store: CandleStore) -> CatchUp:
            head = store.head(series)
            if since is None:
                return CatchUp([], None, 0, store.commit(), [], head)
            rows = store.newest(series, CATCH_UP_MAX_CANDLES, after=since)
            newer = store.count_after(series, since, CATCH_UP_MAX_CANDLES + 1)
            gaps = store.gaps(series, Span(rows[0].time, rows[-1].time)) if rows else []
            return CatchUp(rows, store.first(series), newer, store.commit(), gaps, head)

        return await self._database.read(look)

    async def stored(self, series: SeriesId) -> Span | None:
        """The first and the newest stored open time; None when nothing is stored."""

        def look(store: CandleStore) -> Span | None:
            first, head = store.first(series), store.head(series)
            return None if first is None or head is None else Span(first, head)

        return await self._database.read(look)

    async def check_known_or_stored(self, series: SeriesId) -> None:
        """Raises `UnknownSeries` when nothing is stored of the series, and the exchange does not list it."""
        if await self._database.read(lambda store: store.head(series)) is None:
            await self.check_known(series)

    async def check_known(self, series: SeriesId) -> None:
        """Raises `UnknownSeries` when the exchange can be asked, and does not list the series."""
        try:
            known = await self._knows(series)
        except UpstreamError:
            return  # it cannot be asked: what is stored is served
        if not known:
            raise UnknownSeries(str(series), f"{series.exchange} lists no such symbol on its {series.market} market")

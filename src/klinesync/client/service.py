"""Reads a running service for strategies: candles, factor slices, frames, drawings, and live updates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import numpy as np

from klinesync.client import tables
from klinesync.client.asking import ANSWER_TIMEOUT_S, ServiceError, answer_in, get, refusal_in, service_url, unreachable
from klinesync.client.follow import PAGE_CANDLES, follow
from klinesync.client.merge import merged
from klinesync.client.progress import EVERYTHING, What
from klinesync.client.session import open_session
from klinesync.client.tables import Cursor, Drawings, Frame, Json, Slices, Table
from klinesync.client.updates import ClosedCandle, Connected, System, Update
from klinesync.core.backoff import Backoff
from klinesync.core.dates import date_text
from klinesync.core.errors import Rejected
from klinesync.core.series_id import SeriesId
from klinesync.core.times import Time, unix_seconds

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_CANDLES = 500
# Default window of drawings and frames, in candles; the page uses the same.
DEFAULT_WINDOW = 2000
# Most series that one `follow` takes; each has a connection of its own.
MAX_FOLLOWED = 1000
# Candles whose factors one request asks for during catch-up.
CATCH_UP_SLICES = 200
# Backoff while the factors of a closed candle are not computed yet.
FACTORS_LAG = Backoff(initial_s=0.1, most_s=2.0)
# Seconds of waiting for factors before the update `factor.lagging`.
LAGGING_AFTER_S = 5.0


class AsyncKlinesync:
    """A running service, for programs in an event loop. Only reads.

    Connections are opened by the first request and closed by `async with` or `close`. Times are unix seconds, a
    `datetime` or ISO 8601 text, UTC where no zone is given.

    A request without an answer raises `ServiceError`. Its `code` is the service's (`unknown_series`,
    `ledger_out_of_sync:factor` …), or `unreachable`. Requests to a service that is `busy` or `shutting_down` are
    retried for about a minute. A malformed time raises `BadTime`.

    url: address of the service, http://host:port. Raises `BadUrl`
    """

    def __init__(self, url: str) -> None:
        self._url = service_url(url)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the session

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def candles(
        self,
        series: SeriesId | str,
        *,
        since: Time | None = None,
        before: Time | None = None,
        limit: int = DEFAULT_CANDLES,
        full: bool = False,
    ) -> Table:
        """Closed candles, ascending; the newest ones without `since` and `before`.

        series: the series
        since: the oldest candles that open after this time
        before: the newest candles that open before this time; not together with `since`
        limit: most candles, 1 to 5000, 500 by default
        full: whether candles have their order flow; False by default

        Returns a structured array of `tables.CANDLE`; when `full`, of `tables.FULL_CANDLE`. Raises
        `ServiceError`, `BadTime`.
        """
        query: dict[str, object] = {
            "series_id": series,
            "since": _seconds(since),
            "before": _seconds(before),
            "limit": limit,
        }
        table = tables.WirePage.table
        if full:
            query["fields"], table = "full", tables.WirePage.full_table
        return await self._get("/api/market/candles", query, tables.WirePage, table)

    async def history(
        self, series: SeriesId | str, start: Time, end: Time | None = None, *, full: bool = False
    ) -> Table:
        """All stored candles of a span, read page by page.

        series: the series
        start: the first open time
        end: open times before this one; None: up to the newest candle
        full: whether candles have their order flow; False by default

        Returns a structured array of `tables.CANDLE`; when `full`, of `tables.FULL_CANDLE`. Raises
        `ServiceError`, `BadTime`.
        """
        pages = [np.empty(0, tables.FULL_CANDLE if full else tables.CANDLE)]
        until = _seconds(end)
        since = max(unix_seconds(start) - 1, 0)  # exclusive
        while True:
            page = await self.candles(series, since=since, limit=PAGE_CANDLES, full=full)
            pages.append(page if until is None else page[page["candle_time"] < until])
            if len(page) < PAGE_CANDLES or len(pages[-1]) < len(page):
                return np.concatenate(pages)
            since = int(page["candle_time"][-1])

    async def slices(self, series: SeriesId | str, at_time: Time | None = None, *, window: int = 1) -> Slices:
        """The values of all factors when a candle closed.

        series: the series
        at_time: the newest candle that opens then or before; None: the newest candle
        window: candles, up to that one, whose events and points are returned; 1 by default

        Raises `ServiceError`, `BadTime`.
        """
        query = {"series_id": series, "at_time": _seconds(at_time), "window_candles": window}
        return await self._get("/api/factor/slices", query, tables.WireSlices, tables.WireSlices.read)

    async def slices_after(self, series: SeriesId | str, since: Time, *, limit: int = CATCH_UP_SLICES) -> list[Slices]:
        """The values of all factors when each of several candles closed, each with a window of that candle alone.

        series: the series
        since: the oldest candles that open after this time
        limit: most candles, 1 to 500, 200 by default

        Raises `ServiceError`, `BadTime`.
        """
        query = {"series_id": series, "since": unix_seconds(since), "limit": limit}
        return await self._get("/api/factor/slices_after", query, tables.WireSlicesAfter, tables.WireSlicesAfter.read)

    async def drawings(
        self,
        series: SeriesId | str,
        cursor: Cursor | None = None,
        *,
        at_time: Time | None = None,
        window: int = DEFAULT_WINDOW,
    ) -> Drawings:
        """The drawings of a window, or their changes since a cursor.

        series: the series
        cursor: of the reader's last answer, for the changes since then; None: all drawings
        at_time: the window ends with the newest candle that opens then or before; None: the newest candle
        window: candles of the window, 2000 by default

        Raises `ServiceError`, `BadTime`.
        """
        query: dict[str, object] = {
            "series_id": series,
            "at_time": _seconds(at_time),
            "window_candles": window,
        }
        if cursor is not None:
            query |= {
                "cursor_version_id": cursor.version_id,
                "cursor_point_time": cursor.point_time,
                "epoch": cursor.epoch,
            }
        return await self._get("/api/draw/delta", query, tables.WireDrawings, tables.WireDrawings.read)

    async def frame(
        self, series: SeriesId | str, at_time: Time | None = None, *, window: int = DEFAULT_WINDOW
    ) -> Frame:
        """Slices and drawings of one candle.

        series: the series
        at_time: the newest candle that opens then or before; None: the newest candle
        window: candles of the drawings' window, 2000 by default

        Raises `ServiceError`, `BadTime`.
        """
        path = "/api/frame/live" if at_time is None else "/api/frame/at_time"
        query = {"series_id": series, "at_time": _seconds(at_time), "window_candles": window}
        return await self._get(path, query, tables.WireFrame, tables.WireFrame.read)

    async def catalogue(self) -> list[dict[str, Json]]:
        """The factors and indicators that the service computes: `key`, `label` and `sub_features` of each. Raises
        `ServiceError`."""
        return await self._get("/api/factor/catalog", {}, tables.WireCatalogue, lambda answer: answer.factors)

    async def follow(
        self,
        series: SeriesId | str | Iterable[SeriesId | str],
        since: Time | None = None,
        *,
        factors: bool = False,
        what: Collection[What] = EVERYTHING,
        full: bool = False,
    ) -> AsyncGenerator[Update]:
        """Updates of a series, or of several, without end: history after `since`, then live, over reconnects.

        Closed candles of a series come once and in order; a correction of one that was delivered is marked `revised`.
        Of several series, history comes in the order of open times, then live candles as they arrive. The other series
        wait up to 10 seconds (`merge.MERGE_WAIT_S`) for the history of a slow one. `update.series` names the series.

        series: a series, or up to 1000 (`MAX_FOLLOWED`) of them
        since: only candles that open after this time; in the future it counts as the newest candle. None: live only
        factors: whether each `ClosedCandle` has the `slices` of that very candle; False by default. Lagging
            factors delay the candle; after 5 seconds a `System` update `factor.lagging` says so
        what: the kinds of candles to deliver: `closed`, `forming`, `corrections`; all of them by default
        full: whether candles have their order flow, None where the source does not tell; False by default: always None

        Raises `ServiceError` when the service refuses, `BadSeriesId`, `BadTime`, `Rejected`.
        """
        requested = [series] if isinstance(series, (SeriesId, str)) else series
        followed = list(dict.fromkeys(_series_of(name) for name in requested))
        if len(followed) > MAX_FOLLOWED:
            text = f"one follow takes {MAX_FOLLOWED} series, not {len(followed)}; begin several"
            raise ServiceError("too_many_subscriptions", text)
        if not followed:
            raise Rejected("follow needs a series")
        unknown = [kind for kind in ([what] if isinstance(what, str) else what) if kind not in EVERYTHING]
        if unknown or isinstance(what, str):
            raise Rejected(f"follow knows no {unknown or what!r}; `what` is a list of {', '.join(EVERYTHING)}")
        after = _seconds(since)
        sources = {source: self._follow(source, after, what, factors=factors, full=full) for source in followed}
        async with aclosing(sources[followed[0]] if len(followed) == 1 else merged(sources)) as updates:
            async for update in updates:
                yield update

    async def _follow(
        self, series: SeriesId, since: int | None, what: Collection[What], *, factors: bool, full: bool
    ) -> AsyncGenerator[Update]:
        async with aclosing(follow(self._url, series, since, what=what, full=full)) as updates:
            slices: dict[int, Slices] = {}  # of candles of the catch-up that come next
            head: int | None = None
            async for update in updates:
                match update:
                    case ClosedCandle(candle, revised) if factors:
                        if revised:
                            slices.clear()  # the correction may have changed them
                        catching_up = head is not None and candle.time < head and not revised
                        limit = CATCH_UP_SLICES if catching_up else 1
                        async with aclosing(self._slices_at(series, candle.time, limit, slices)) as lagging:
                            async for lag in lagging:
                                yield lag
                        yield replace(update, slices=slices.pop(candle.time, None))
                    case Connected(head, _):
                        yield update
                    case _:
                        yield update

    async def _slices_at(
        self, series: SeriesId, at_time: int, limit: int, slices: dict[int, Slices]
    ) -> AsyncGenerator[System]:
        """Read the slices of a candle, and of up to `limit` candles from there on, into `slices`. Retries until the
        candle's factors are computed; returns without them when the candle was trimmed meanwhile."""
        retry = 0
        began_s, announced = time.monotonic(), False
        while at_time not in slices:
            slices.clear()
            try:
                answer = await self.slices_after(series, max(at_time - 1, 0), limit=limit)
            except ServiceError as error:
                if error.code not in _TEMPORARY and not error.code.startswith("ledger_out_of_sync"):
                    raise
                answer, reason = [], str(error)
            else:
                reason = "the service does not have the candle"
            slices.update((item.at_time, item) for item in answer if item.at_time is not None)
            if slices:
                return
            if not announced and time.monotonic() - began_s > LAGGING_AFTER_S:
                announced = True
                message = f"factors of the closed candle at {date_text(at_time)} are not computed yet: {reason}"
                yield System("factor.lagging", message, {"candle_time": at_time}, series=series)
            await asyncio.sleep(FACTORS_LAG.delay_s(retry))
            retry += 1

    async def _get(self, path: str, query: Mapping[str, object], kind: type[T], read: Callable[[T], R]) -> R:
        params = {name: str(value) for name, value in query.items() if value is not None}
        try:
            status, body = await get(self._open(), self._url + path, params)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServiceError("unreachable", unreachable(self._url, error)) from error
        if status != 200:
            refusal = refusal_in(body)
            if refusal is None:
                text = f"{self._url}{path} answers {status}, but not as klinesync does"
                raise ServiceError("bad_message", text)
            raise ServiceError(refusal.code, refusal.detail)
        return answer_in(body, kind, read, self._url + path)

    def _open(self) -> aiohttp.ClientSession:
        """The session of this event loop."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            # The session of a loop that has ended cannot be closed any more.
            self._session = open_session(ANSWER_TIMEOUT_S)
            self._loop = loop
        return self._session


# Temporary refusals, which are retried.
_TEMPORARY = frozenset({"unreachable", "rate_limited", "store_error", "too_many_connections", "busy", "shutting_down"})


def _series_of(series: SeriesId | str) -> SeriesId:
    return series if isinstance(series, SeriesId) else SeriesId.parse(series)


def _seconds(value: Time | None) -> int | None:
    return None if value is None else unix_seconds(value)

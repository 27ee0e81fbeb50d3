"""What a strategy reads from a running service: candles, factor slices, frames and drawings, and what comes live.

`AsyncKlinesync` inside an event loop, `Klinesync` elsewhere. Both only read.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
import numpy as np

from klinesync.client import tables
from klinesync.client.follow import (
    ANSWER_TIMEOUT_S,
    PAGE_CANDLES,
    ClosedCandle,
    Connected,
    ServiceError,
    System,
    Update,
    follow,
)
from klinesync.client.session import open_session
from klinesync.client.tables import Cursor, Drawings, Frame, Json, Slices, Table
from klinesync.core.series_id import SeriesId

T = TypeVar("T")

DEFAULT_CANDLES = 500
# The window of drawings and frames, in candles, as the page has it.
DEFAULT_WINDOW = 2000
# Of so many candles factors are asked for at once, as long as there are more to catch up with.
CATCH_UP_SLICES = 200
# Factors of a candle that has just closed are there with it. When they are not, they are asked for again.
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
# So long they are waited for without a word.
TOLD_AFTER_S = 5.0
# Updates that wait for a program that is not in an event loop; then the service waits, and disconnects in the end.
MAX_WAITING = 256


class AsyncKlinesync:
    """A running service at `url` (http://host:port). `async with` opens and closes it.

    What cannot be answered raises `ServiceError`: its `code` is the service's (`unknown_series`,
    `ledger_out_of_sync:factor` …), `unreachable` where there is none.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = open_session(ANSWER_TIMEOUT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def candles(
        self,
        series: SeriesId | str,
        *,
        since: int | None = None,
        before: int | None = None,
        limit: int = DEFAULT_CANDLES,
    ) -> Table:
        """Closed candles, ascending: the oldest `limit` after `since`, the newest `limit` before `before` (both
        exclusive), or the newest `limit`; at most 5000. A structured array of `tables.CANDLE`."""
        query = {"series_id": series, "since": since, "before": before, "limit": limit}
        return (await self._get("/api/market/candles", query, tables.WirePage)).table()

    async def history(self, series: SeriesId | str, start: int, end: int | None = None) -> Table:
        """All stored candles that open in `[start, end)`, up to the head when there is no `end`, page by page."""
        pages = [np.empty(0, tables.CANDLE)]
        since = max(start - 1, 0)
        while True:
            page = await self.candles(series, since=since, limit=PAGE_CANDLES)
            pages.append(page if end is None else page[page["candle_time"] < end])
            if len(page) < PAGE_CANDLES or len(pages[-1]) < len(page):
                return np.concatenate(pages)
            since = int(page["candle_time"][-1])

    async def slices(self, series: SeriesId | str, at_time: int | None = None, *, window: int = 1) -> Slices:
        """What factors knew when the newest candle closed that opens at `at_time` or before (default: the head). Events
        and points are those of the newest `window` candles."""
        query = {"series_id": series, "at_time": at_time, "window_candles": window}
        return (await self._get("/api/factor/slices", query, tables.WireSlices)).read()

    async def slices_after(self, series: SeriesId | str, since: int, *, limit: int = CATCH_UP_SLICES) -> list[Slices]:
        """Those of the oldest `limit` candles after `since`, each of its candle alone; at most 500."""
        query = {"series_id": series, "since": since, "limit": limit}
        answer = await self._get("/api/factor/slices_after", query, tables.WireSlicesAfter)
        return [one.read() for one in answer.slices]

    async def drawings(
        self,
        series: SeriesId | str,
        cursor: Cursor | None = None,
        *,
        at_time: int | None = None,
        window: int = DEFAULT_WINDOW,
    ) -> Drawings:
        """What a reader who has come to `cursor` has to learn to draw the window; all of it without one."""
        query: dict[str, object] = {"series_id": series, "at_time": at_time, "window_candles": window}
        if cursor is not None:
            query |= {
                "cursor_version_id": cursor.version_id,
                "cursor_point_time": cursor.point_time,
                "epoch": cursor.epoch,
            }
        return (await self._get("/api/draw/delta", query, tables.WireDrawings)).read()

    async def frame(self, series: SeriesId | str, at_time: int | None = None, *, window: int = DEFAULT_WINDOW) -> Frame:
        """Slices and drawings of one candle: the newest at `at_time` or before (default: the head)."""
        path = "/api/frame/live" if at_time is None else "/api/frame/at_time"
        query = {"series_id": series, "at_time": at_time, "window_candles": window}
        return (await self._get(path, query, tables.WireFrame)).read()

    async def catalogue(self) -> list[dict[str, Json]]:
        """The factors and indicators that the service computes."""
        return (await self._get("/api/factor/catalog", {}, tables.WireCatalogue)).factors

    async def follow(
        self, series: SeriesId | str, since: int | None = None, *, factors: bool = False
    ) -> AsyncGenerator[Update]:
        """Updates of the series after `since`, without end, each closed candle once and in order, over reconnects.

        With `factors` each `ClosedCandle` comes with the `slices` of that very candle: also those of the catch-up, and
        a revised one with what factors know now. Factors that lag are waited for; a `System` update `factor.lagging`
        says so after a few seconds. Raises `ServiceError` when the service refuses.
        """
        parsed = SeriesId.parse(str(series))
        async with aclosing(follow(self._url, parsed, since)) as updates:
            if not factors:
                async for update in updates:
                    yield update
                return
            ahead: dict[int, Slices] = {}  # of candles that are caught up with and have not come yet
            head: int | None = None
            async for update in updates:
                match update:
                    case ClosedCandle(candle, revised):
                        if revised:
                            ahead.clear()  # they may be others now
                        behind = head is not None and candle.time < head and not revised
                        limit = CATCH_UP_SLICES if behind else 1
                        async with aclosing(self._slices_at(parsed, candle.time, limit, ahead)) as lagging:
                            async for told in lagging:
                                yield told
                        yield replace(update, slices=ahead.pop(candle.time, None))
                    case Connected(head, _):
                        yield update
                    case _:
                        yield update

    async def _slices_at(
        self, series: SeriesId, at_time: int, limit: int, ahead: dict[int, Slices]
    ) -> AsyncGenerator[System]:
        """Puts what factors knew at the candle into `ahead`, however long it takes, with those of up to `limit` candles
        from there on. Nothing when the candle has been trimmed meanwhile."""
        pause_s = RETRY_FIRST_S
        began_s, told = time.monotonic(), False
        while at_time not in ahead:
            ahead.clear()
            try:
                found = await self.slices_after(series, max(at_time - 1, 0), limit=limit)
            except ServiceError as error:
                if error.code not in _PASSING and not error.code.startswith("ledger_out_of_sync"):
                    raise
                found, why = [], str(error)
            else:
                why = "the service does not have it"
            ahead.update((one.at_time, one) for one in found if one.at_time is not None)
            if ahead:
                return
            if not told and time.monotonic() - began_s > TOLD_AFTER_S:
                told = True
                yield System("factor.lagging", f"factors of the closed candle at {at_time} are waited for: {why}", {})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def _get(self, path: str, query: Mapping[str, object], kind: type[T]) -> T:
        assert self._session is not None, "it is opened with `async with`"
        params = {name: str(value) for name, value in query.items() if value is not None}
        try:
            async with self._session.get(self._url + path, params=params) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise ServiceError("unreachable", f"the service at {self._url} cannot be reached: {why}") from error
        try:
            if answer.status != 200:
                refusal = msgspec.json.decode(body, type=_Refusal)
                raise ServiceError(refusal.code, refusal.detail)
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            what = f"{self._url}{path} answers {answer.status} with what is not understood: {error}"
            raise ServiceError("bad_message", what) from None


# Refusals that pass.
_PASSING = frozenset({"unreachable", "rate_limited", "store_error", "too_many_connections"})


class _Refusal(msgspec.Struct):
    code: str
    detail: str


class Klinesync:
    """`AsyncKlinesync` for programs without an event loop: the same methods, which return when the answer is there.

    `with` opens and closes it; a thread of its own keeps connections alive between calls. Used by one thread.
    """

    def __init__(self, url: str) -> None:
        self._service = AsyncKlinesync(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="klinesync client", daemon=True)
        self._stack = AsyncExitStack()
        self._following: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._stack.enter_async_context(self._service))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop(*self._following))
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def candles(
        self,
        series: SeriesId | str,
        *,
        since: int | None = None,
        before: int | None = None,
        limit: int = DEFAULT_CANDLES,
    ) -> Table:
        """See `AsyncKlinesync.candles`."""
        return self._run(self._service.candles(series, since=since, before=before, limit=limit))

    def history(self, series: SeriesId | str, start: int, end: int | None = None) -> Table:
        """See `AsyncKlinesync.history`."""
        return self._run(self._service.history(series, start, end))

    def slices(self, series: SeriesId | str, at_time: int | None = None, *, window: int = 1) -> Slices:
        """See `AsyncKlinesync.slices`."""
        return self._run(self._service.slices(series, at_time, window=window))

    def slices_after(self, series: SeriesId | str, since: int, *, limit: int = CATCH_UP_SLICES) -> list[Slices]:
        """See `AsyncKlinesync.slices_after`."""
        return self._run(self._service.slices_after(series, since, limit=limit))

    def drawings(
        self,
        series: SeriesId | str,
        cursor: Cursor | None = None,
        *,
        at_time: int | None = None,
        window: int = DEFAULT_WINDOW,
    ) -> Drawings:
        """See `AsyncKlinesync.drawings`."""
        return self._run(self._service.drawings(series, cursor, at_time=at_time, window=window))

    def frame(self, series: SeriesId | str, at_time: int | None = None, *, window: int = DEFAULT_WINDOW) -> Frame:
        """See `AsyncKlinesync.frame`."""
        return self._run(self._service.frame(series, at_time, window=window))

    def catalogue(self) -> list[dict[str, Json]]:
        """See `AsyncKlinesync.catalogue`."""
        return self._run(self._service.catalogue())

    def follow(self, series: SeriesId | str, since: int | None = None, *, factors: bool = False) -> Generator[Update]:
        """See `AsyncKlinesync.follow`. Ends with the loop over it, or with `close`."""
        waiting: asyncio.Queue[Update | BaseException] = asyncio.Queue(MAX_WAITING)

        async def pump() -> None:
            try:
                async with aclosing(self._service.follow(series, since, factors=factors)) as updates:
                    async for update in updates:
                        await waiting.put(update)
            except Exception as error:  # noqa: BLE001  # it is raised where the updates are read
                await waiting.put(error)

        async def start() -> asyncio.Task[None]:
            task = asyncio.create_task(pump(), name=f"follow {series}")
            self._following.add(task)
            task.add_done_callback(self._following.discard)
            return task

        task = self._run(start())
        try:
            while True:
                update = self._run(waiting.get())
                if isinstance(update, BaseException):
                    raise update
                yield update
        finally:
            if not self._loop.is_closed():
                self._run(self._stop(task))

    async def _stop(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _run(self, work: Coroutine[object, object, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, most of the time
            future.cancel()
            raise

"""`Klinesync`: reads a running service for programs without an event loop, with an event loop in its own thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Collection, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar

from klinesync.client.asking import ServiceError
from klinesync.client.progress import EVERYTHING, What
from klinesync.client.service import CATCH_UP_SLICES, DEFAULT_CANDLES, DEFAULT_WINDOW, AsyncKlinesync
from klinesync.client.tables import Cursor, Drawings, Frame, Json, Slices, Table
from klinesync.client.updates import Update
from klinesync.core.series_id import SeriesId
from klinesync.core.times import Time

T = TypeVar("T")

# Most updates that wait for the program. Above it the connection is not read, and the service disconnects in the end.
MAX_WAITING = 256
# Longest wait for running tasks when the client is closed, in seconds.
CLOSE_TIMEOUT_S = 5.0


class Klinesync:
    """A running service, for programs without an event loop. Only reads; may be used by several threads.

    The first call opens connections; `with`, `close` or the end of the program closes them. Times are unix seconds, a
    `datetime` or ISO 8601 text, UTC where no zone is given.

    A request without an answer raises `ServiceError`. Its `code` is the service's (`unknown_series`,
    `ledger_out_of_sync:factor` …), `unreachable`, or `closed` after `close`. Requests to a service that is `busy` or
    `shutting_down` are retried for about a minute. A malformed time raises `BadTime`.

    url: address of the service, http://host:port. Raises `BadUrl`
    """

    def __init__(self, url: str) -> None:
        self._service = AsyncKlinesync(url)
        self._worker = _Worker(self._service)
        # Also called at the end of the program, and when this client is garbage collected.
        self._finalizer = weakref.finalize(self, self._worker.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{repr(self._service).removeprefix(type(self._service).__name__)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end every `follow`. Later calls raise `ServiceError` with the code `closed`."""
        self._finalizer()

    def candles(
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

        Returns a structured numpy array with the fields `candle_time`, `open`, `high`, `low`, `close`, `volume`; when
        `full`, also `quote_volume`, `trades`, `taker_buy_volume` and `taker_buy_quote_volume`, NaN where the source
        does not tell. Raises `ServiceError`, `BadTime`.
        """
        return self._worker.run(self._service.candles(series, since=since, before=before, limit=limit, full=full))

    def history(self, series: SeriesId | str, start: Time, end: Time | None = None, *, full: bool = False) -> Table:
        """All stored candles of a span, read page by page.

        series: the series
        start: the first open time
        end: open times before this one; None: up to the newest candle
        full: whether candles have their order flow; False by default

        Returns an array as `candles` does. Raises `ServiceError`, `BadTime`.
        """
        return self._worker.run(self._service.history(series, start, end, full=full))

    def slices(self, series: SeriesId | str, at_time: Time | None = None, *, window: int = 1) -> Slices:
        """The values of all factors when a candle closed.

        series: the series
        at_time: the newest candle that opens then or before; None: the newest candle
        window: candles, up to that one, whose events and points are returned; 1 by default

        Raises `ServiceError`, `BadTime`.
        """
        return self._worker.run(self._service.slices(series, at_time, window=window))

    def slices_after(self, series: SeriesId | str, since: Time, *, limit: int = CATCH_UP_SLICES) -> list[Slices]:
        """The values of all factors when each of several candles closed, each with a window of that candle alone.

        series: the series
        since: the oldest candles that open after this time
        limit: most candles, 1 to 500, 200 by default

        Raises `ServiceError`, `BadTime`.
        """
        return self._worker.run(self._service.slices_after(series, since, limit=limit))

    def drawings(
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
        return self._worker.run(self._service.drawings(series, cursor, at_time=at_time, window=window))

    def frame(self, series: SeriesId | str, at_time: Time | None = None, *, window: int = DEFAULT_WINDOW) -> Frame:
        """Slices and drawings of one candle.

        series: the series
        at_time: the newest candle that opens then or before; None: the newest candle
        window: candles of the drawings' window, 2000 by default

        Raises `ServiceError`, `BadTime`.
        """
        return self._worker.run(self._service.frame(series, at_time, window=window))

    def catalogue(self) -> list[dict[str, Json]]:
        """The factors and indicators that the service computes: `key`, `label` and `sub_features` of each. Raises
        `ServiceError`."""
        return self._worker.run(self._service.catalogue())

    def follow(
        self,
        series: SeriesId | str | Iterable[SeriesId | str],
        since: Time | None = None,
        *,
        factors: bool = False,
        what: Collection[What] = EVERYTHING,
        full: bool = False,
    ) -> Generator[Update]:
        """Updates of a series, or of several, without end: history after `since`, then live, over reconnects. Ends with
        the loop over the updates, or with `close`.

        Closed candles of a series come once and in order; a correction of one that was delivered is marked `revised`.
        Of several series, history comes in the order of open times, then live candles as they arrive. The other series
        wait up to 10 seconds for the history of a slow one. `update.series` names the series.

        series: a series, or up to 1000 of them
        since: only candles that open after this time; in the future it counts as the newest candle. None: live only
        factors: whether each `ClosedCandle` has the `slices` of that very candle; False by default. Lagging
            factors delay the candle; after 5 seconds a `System` update `factor.lagging` says so
        what: the kinds of candles to deliver: `closed`, `forming`, `corrections`; all of them by default
        full: whether candles have their order flow, None where the source does not tell; False by default: always None

        Raises `ServiceError` when the service refuses, `BadSeriesId`, `BadTime`.
        """
        waiting: asyncio.Queue[Update | BaseException] = asyncio.Queue(MAX_WAITING)
        service, worker = self._service, self._worker

        async def pump() -> None:
            try:
                async with aclosing(service.follow(series, since, factors=factors, what=what, full=full)) as updates:
                    async for update in updates:
                        await waiting.put(update)
            except Exception as error:  # noqa: BLE001  # raised where the updates are read
                await waiting.put(error)

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(pump(), name=f"follow {series}")

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        task = worker.run(begin())
        try:
            while True:
                update = worker.run(waiting.get())
                if isinstance(update, BaseException):
                    raise update
                yield update
        finally:
            if not worker.closed:
                worker.run(end())


class _Worker:
    """The thread with the event loop, from the first `run` on. Has no reference to the client, which may be
    collected."""

    def __init__(self, service: AsyncKlinesync) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.closed = False

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run `work` in the event loop; its result. Raises what `work` raises, and `ServiceError` when closed."""
        try:
            loop = self._begin()
        except ServiceError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except CancelledError:
            raise ServiceError("closed", "the client has been closed") from None
        except BaseException:  # usually Ctrl-C
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel all tasks, and end the thread."""
        with self._lock:
            already, self.closed = self.closed, True
            loop, thread = self._loop, self._thread
        if already or loop is None or thread is None:
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(), loop)
        if thread is threading.current_thread():
            # The garbage collector ran in this thread: the loop stops after this call returns.
            ending.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
            return
        ending.result(CLOSE_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_TIMEOUT_S)
        loop.close()

    def _begin(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self.closed:
                raise ServiceError("closed", "this client has been closed; make a new one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="klinesync client", daemon=True)
                self._thread.start()
            return self._loop

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._service.close()

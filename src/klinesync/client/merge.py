"""Several series followed together: history merged in time order, live as it arrives."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress

from klinesync.client.updates import CaughtUp, ClosedCandle, Disconnected, Gap, Update
from klinesync.core.series_id import SeriesId

# Most updates of one series that wait for the program or for the history of other series. Above it the connection
# waits.
MAX_HELD_UPDATES = 256
# Longest wait for a series whose history brings nothing, in seconds. Its later candles come as they arrive.
MERGE_WAIT_S = 10.0


class Merge:
    """Updates of several series, in the order in which a program gets them. Pure.

    The updates of one series keep their order. Closed candles (and the gaps before them) come in the order of open
    times, over all series, while any series still reads its history. A series that has caught up, is disconnected or
    has brought nothing for `MERGE_WAIT_S` is no longer waited for.

    series: all followed series; their order is that of candles with the same open time
    """

    def __init__(self, series: Sequence[SeriesId]) -> None:
        self._order = {followed: position for position, followed in enumerate(series)}
        self._held: dict[SeriesId, deque[Update]] = {followed: deque() for followed in series}
        self._history = set(series)  # reads its history
        self._missing = set(series)  # reads its history, and holds nothing
        self._idle_s = 0.0  # how long candles have waited for `_missing`
        self._dated: list[tuple[int, int, SeriesId]] = []  # heap: next update is a candle or a gap
        self._undated: deque[SeriesId] = deque()  # series whose next update is of another kind

    def put(self, update: Update) -> None:
        """Add an update that has arrived."""
        series = update.series
        held = self._held[series]
        held.append(update)
        self._missing.discard(series)
        if len(held) == 1:
            self._queue(series)
        if isinstance(update, (CaughtUp, Disconnected)):
            self._history.discard(series)

    def take(self) -> Update | None:
        """The next update for the program; None when there is none yet."""
        if self._undated:
            series = self._undated.popleft()
        elif self._dated and not self._missing:
            series = heapq.heappop(self._dated)[2]
            self._idle_s = 0.0
        else:
            return None
        held = self._held[series]
        update = held.popleft()
        if held:
            self._queue(series)
        elif series in self._history:
            self._missing.add(series)
        return update

    @property
    def patience_s(self) -> float | None:
        """How much longer to wait for series whose history brings nothing, in seconds; None when nothing waits for
        them."""
        return max(MERGE_WAIT_S - self._idle_s, 0.0) if self._dated and self._missing else None

    def waited(self, seconds: float) -> None:
        """Count a wait of `seconds` in which the program wanted an update."""
        if self.patience_s is None:
            return
        self._idle_s += seconds
        if self._idle_s >= MERGE_WAIT_S:
            self._history -= self._missing
            self._missing.clear()

    def _queue(self, series: SeriesId) -> None:
        update = self._held[series][0]
        match update:
            case ClosedCandle(candle, revised=False):
                heapq.heappush(self._dated, (candle.time, self._order[series], series))
            case Gap(_, actual):
                heapq.heappush(self._dated, (actual, self._order[series], series))
            case _:
                self._undated.append(series)


async def merged(sources: Mapping[SeriesId, AsyncGenerator[Update]]) -> AsyncGenerator[Update]:
    """The updates of all sources, each of which is one series, as `Merge` orders them. Raises what a source raises."""
    clock = asyncio.get_running_loop().time
    merge = Merge(list(sources))
    changed = asyncio.Event()
    room = {series: asyncio.Semaphore(MAX_HELD_UPDATES) for series in sources}

    async def receive(series: SeriesId, source: AsyncGenerator[Update]) -> None:
        async with aclosing(source) as updates:
            async for update in updates:
                await room[series].acquire()
                merge.put(update)
                changed.set()

    tasks = [
        asyncio.create_task(receive(series, source), name=f"follow {series}") for series, source in sources.items()
    ]
    for task in tasks:
        task.add_done_callback(lambda _: changed.set())
    try:
        while True:
            changed.clear()
            while (update := merge.take()) is not None:
                room[update.series].release()
                yield update
            for task in tasks:
                if task.done():
                    task.result()
            began_s = clock()
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), merge.patience_s)
            merge.waited(clock() - began_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

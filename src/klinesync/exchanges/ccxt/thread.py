"""CcxtThread: the one thread on which all exchange objects of ccxt live."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import TypeVar

from klinesync.core.errors import UpstreamError

Found = TypeVar("Found")


class CcxtThread:
    """The thread of all ccxt exchanges. It starts with the first call; `stop` ends it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def call(self, work: Coroutine[object, object, Found]) -> Found:
        """Run `work` on the thread's loop; it is cancelled with the caller. Raises `UpstreamError` when the thread
        ends."""
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise UpstreamError("the thread of ccxt has ended") from None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=loop.run_forever, name="ccxt", daemon=True)
            self._thread.start()
        return self._loop

    async def stop(self) -> None:
        """End the thread and cancel its running tasks; returns when the thread has ended."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._loop = self._thread = None

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(cancel_all(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


def is_cancelled() -> bool:
    """Whether the current task itself is cancelled, and not only the future that it awaits."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0

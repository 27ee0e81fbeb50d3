"""How commands run and end: event loop, signals, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator

from klinesync.core.errors import KlinesyncError

# Exit status of work that a signal interrupted, as shells have it.
INTERRUPTED = 130


def run(command: Coroutine[object, object, int]) -> int:
    """Run a command on an event loop of its own until it ends, or is interrupted."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(command)
    except* KlinesyncError as group:
        raise first(group) from None


async def until_interrupted(command: Coroutine[object, object, int], interrupted: int = 0) -> int:
    """Run a command until it ends, or SIGINT or SIGTERM do it: then the status is `interrupted`, which is 0 for one
    that is meant to be ended so. A second one acts at once."""
    task = asyncio.create_task(command, name="command")
    stopping = contextlib.ExitStack()

    def stop() -> None:
        stopping.close()
        task.cancel()

    with stopping:
        stopping.enter_context(on_signal(stop))
        await asyncio.wait([task])
    if not task.cancelled():
        return task.result()
    if interrupted:
        print("klinesync: interrupted; what is written stays, and running it again goes on", file=sys.stderr)
    return interrupted


def first(group: BaseExceptionGroup[KlinesyncError]) -> KlinesyncError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KlinesyncError)
    return error


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops as SIGINT does, with everything put away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

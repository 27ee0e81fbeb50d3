"""How commands run and end: event loop, signals, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator

from klinesync.core.errors import KlinesyncError


def run(command: Coroutine[object, object, int]) -> int:
    """Run a command on an event loop of its own until it ends, or is interrupted."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(command)
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        if all(isinstance(error, KlinesyncError | OSError) for error in errors):
            raise next((error for error in errors if isinstance(error, KlinesyncError)), errors[0]) from None
        raise


async def until_interrupted(command: Coroutine[object, object, int], interrupted: int = 0) -> int:
    """Run a command until it ends, or a signal cancels it; a second signal ends the process at once. Returns the exit
    status; after a signal `interrupted`, which is 0 for a command that always ends by a signal."""
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
        print("klinesync: interrupted; stored candles are kept, and running it again continues", file=sys.stderr)
    return interrupted


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as SIGINT does, with an exception, so that clean-up runs."""
    before = {number: signal.getsignal(number) for number in stop_signals() if number != signal.SIGINT}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at each of `stop_signals`."""
    loop = asyncio.get_running_loop()
    numbers = stop_signals()
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP; without SIGHUP where it is ignored, as under `nohup`."""
    handles_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if handles_hangup else [])]


class Stop:
    """The signal handler of a command that runs until stopped. During the start a signal cancels the command; later
    each signal calls `then`."""

    def __init__(self) -> None:
        self.then: Callable[[], None] | None = None
        self._command = asyncio.current_task()
        self._cancelled = False

    def __call__(self) -> None:
        if self.then is not None:
            self.then()
        elif self._command is not None and not self._cancelled:
            self._cancelled = True
            self._command.cancel()

    @contextlib.contextmanager
    def covers_start(self) -> Iterator[None]:
        """Handle signals within the block. A cancelled start is no error: the block ends without an exception."""
        try:
            with on_signal(self):
                yield
        except asyncio.CancelledError:
            if self._command is None or not self._cancelled:
                raise
            self._command.uncancel()

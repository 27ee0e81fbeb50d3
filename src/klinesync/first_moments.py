"""Signals before there is anything to put away: the process leaves at once, without a trace.

Python answers SIGINT with `KeyboardInterrupt`, wherever it is: in the first second that is an import, and the trace is
forty lines. Nothing but the standard library's smallest modules is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

# Commands that run until they are stopped: to be stopped is their usual end, and exit status 0.
UNTIL_STOPPED = frozenset({"serve", "demo", "sim", "watch"})
USUAL: dict[signal.Signals, signal.Handlers | Callable[[int, FrameType | None], None]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def leave_at_signals() -> None:
    """Leave at SIGINT, SIGTERM and SIGHUP, as far as they are not ignored (`nohup`, a background job of a shell)."""
    for number in USUAL:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def signals_as_usual() -> None:
    """End what `leave_at_signals` began; handlers that others have put in its place stay."""
    for number, handler in USUAL.items():
        if signal.getsignal(number) is _leave:
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> None:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    os._exit(0 if command in UNTIL_STOPPED else 128 + number)

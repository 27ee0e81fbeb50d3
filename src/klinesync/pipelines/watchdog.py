"""Watchdog: a time limit for plugins. A plugin that does not return is made to raise, so that the writer goes on.

The limit is CPU time of the plugin's thread: a busy machine, or a process that was stopped for a while, is not the
plugin's fault. A plugin that waits uses no CPU time, and has a longer limit of time in which this process runs.
"""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType
from typing import Self

from klinesync.runtime.clock import SYSTEM_CLOCK

# CPU time, in seconds, of factors and overlays for the candles of one series in one transaction: a hundred times
# what is usual.
TIME_LIMIT_S = 2.0
# Limit for a plugin that waits instead of computing, as a multiple of the limit of CPU time.
WAITING = 5.0
# Interval of the looks at the thread, as a share of the limit; a timeout is at most two of them late.
LATE = 0.25
# Seconds without use after which the watchdog's thread ends; the next use begins another one.
IDLE_S = 5.0


class TookTooLong(Exception):
    """Raised in the thread that exceeded its limit."""


class Watchdog:
    """`with watchdog:` around code that may use `limit_s` seconds of CPU time (2 by default), in one thread at a time.
    `TookTooLong` is raised at whatever statement that thread executes. A call into C that never returns cannot be
    interrupted."""

    def __init__(self, limit_s: float = TIME_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._busy = False
        self._began_cpu_s: float | None = None  # CPU time of the thread at the first look into the block
        self._passed_s = 0.0  # time since then, without pauses of the whole process
        self._strikes = 0
        self._used_s = 0.0
        self._thread_id = 0
        self._fired = False
        self._watching: threading.Thread | None = None

    def __enter__(self) -> Self:
        with self._lock:
            self._fired = False
            self._thread_id = threading.get_ident()
            self._used_s = SYSTEM_CLOCK.monotonic_s()
            self._began_cpu_s = None  # read at the first look: most blocks end before it
            self._passed_s = 0.0
            self._strikes = 0
            self._busy = True
            if self._watching is None:
                self._watching = threading.Thread(target=self._watch, name="plugin watchdog", daemon=True)
                self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._busy = False
            if not self._fired:
                return
            # The exception may be pending still, and must not be raised outside of the block.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)
        if kind is None:
            raise TookTooLong  # the block ended before the exception came, or the plugin swallowed it

    def _watch(self) -> None:
        interval_s = self._limit_s * LATE
        while True:
            before_s = SYSTEM_CLOCK.monotonic_s()
            time.sleep(interval_s)
            with self._lock:
                now_s = SYSTEM_CLOCK.monotonic_s()
                if not self._busy:
                    if now_s - self._used_s > IDLE_S:
                        self._watching = None
                        return
                    continue
                if self._began_cpu_s is None:
                    self._began_cpu_s = self._cpu_s()
                    continue
                self._passed_s += min(now_s - before_s, 2 * interval_s)
                if self._is_due():
                    self._strikes += 1  # raised again later, should the plugin swallow the exception
                    self._fired = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._thread_id), ctypes.py_object(TookTooLong)
                    )

    def _is_due(self) -> bool:
        allowed_s = self._limit_s * (self._strikes + 1)
        if self._passed_s > allowed_s * WAITING:
            return True
        if self._passed_s < self._limit_s or self._began_cpu_s is None:
            return False
        return self._cpu_s() - self._began_cpu_s > allowed_s

    def _cpu_s(self) -> float:
        """The CPU time of the thread, which is within the block, and so exists; 0 where the system does not tell."""
        if not hasattr(time, "pthread_getcpuclockid"):
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread_id))

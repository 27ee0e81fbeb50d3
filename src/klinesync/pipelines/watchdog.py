"""Watchdog: a plugin that never returns is made to raise, so that it does not hold the writer."""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType
from typing import Self

# What factors and overlays may take for the candles of one series in one transaction: a hundred times what is usual.
TIME_LIMIT_S = 2.0
# How late it may come at most, as a part of the limit.
LATE = 0.25
# Its thread ends when there was nothing to watch for so many seconds; the next use begins another one.
IDLE_S = 5.0


class TookTooLong(Exception):
    """Raised in the thread that took longer than it may."""


class Watchdog:
    """`with watchdog:` around what may take `limit_s` at most; in one thread at a time. `TookTooLong` is raised where
    that thread happens to be. A call into C that never returns is beyond its reach."""

    def __init__(self, limit_s: float = TIME_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._due_s: float | None = None
        self._used_s = 0.0
        self._thread_id = 0
        self._fired = False
        self._watching: threading.Thread | None = None

    def __enter__(self) -> Self:
        with self._lock:
            self._fired = False
            self._thread_id = threading.get_ident()
            self._used_s = time.monotonic()
            self._due_s = self._used_s + self._limit_s
            if self._watching is None:
                self._watching = threading.Thread(target=self._watch, name="plugin watchdog", daemon=True)
                self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._due_s = None
            if not self._fired:
                return
            # It may be under way still, and must not strike elsewhere.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)
        if kind is None:
            raise TookTooLong  # it came too late, or was swallowed

    def _watch(self) -> None:
        while True:
            time.sleep(self._limit_s * LATE)
            with self._lock:
                if self._due_s is None:
                    if time.monotonic() - self._used_s > IDLE_S:
                        self._watching = None
                        return
                elif time.monotonic() > self._due_s:
                    self._due_s += self._limit_s  # once more, should it be swallowed
                    self._fired = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._thread_id), ctypes.py_object(TookTooLong)
                    )

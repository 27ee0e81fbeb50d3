"""An asyncio event loop on virtual time, whose tasks belong to processes that can be killed between any two steps.

When no task is ready the loop jumps to the next timer; it never waits for a wall clock, a socket or a thread. A process
is a mark on the context in which tasks run: after a kill none of its scheduled steps is executed, as with `kill -9`; no
`finally` of the process runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

R = TypeVar("R")

START_S = 1000.0


class Deadlock(RuntimeError):
    """No task is ready and no timer is set: the loop would wait for ever."""


class Runaway(RuntimeError):
    """The loop exceeded its iterations: a task loops without letting time pass."""


class Process:
    """The owner of a group of tasks. `steps` counts the steps scheduled so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.steps = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self._fuse: tuple[int, Callable[[], None]] | None = None
        self._prune_at = 500

    def light_fuse(self, steps: int, burnt: Callable[[], None]) -> None:
        """Call `burnt` just before the step that comes `steps` steps from now."""
        self._fuse = (self.steps + steps, burnt)

    def count_step(self) -> Callable[[], None] | None:
        """Count a scheduled step; returns a callback to run before it, if any."""
        self.steps += 1
        if self._fuse is not None and self.steps >= self._fuse[0]:
            burnt = self._fuse[1]
            self._fuse = None
            return burnt
        return None

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Keep a task: after a kill no other reference exists, and its coroutine must not be collected."""
        self.tasks.append(task)
        if len(self.tasks) >= self._prune_at:
            self.tasks = [one for one in self.tasks if not one.done()]
            self._prune_at = len(self.tasks) + 500


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. `max_iterations` bounds the whole run."""

    def __init__(self, *, max_iterations: int = 5_000_000) -> None:
        super().__init__()
        self._ready: deque[asyncio.Handle]
        self._stopping: bool
        self._now_s = START_S
        # By time, and of one time in the order of setting.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._iterations = 0
        self._max_iterations = max_iterations
        self._dead: list[Process] = []
        self._tasks_made = 0
        self.outside = copy_context()
        self.outside.run(PROCESS.set, None)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # its type cannot be told

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        """One iteration: run ready callbacks; without any, advance to the next timers. (asyncio's own, without its
        selector.)"""
        self._iterations += 1
        if self._iterations > self._max_iterations:
            raise Runaway(f"more than {self._max_iterations} iterations, at {self._now_s:.3f} s")
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock(f"nothing is ready and no timer is set, at {self._now_s:.3f} s")
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def call_soon(  # type: ignore[override]  # the same, without the types of the arguments
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed():
            raise RuntimeError("the loop is closed")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        handle = asyncio.Handle(callback, args, self, context)
        if process is not None:
            if not process.alive:
                return handle
            burnt = process.count_step()
            if burnt is not None:
                self._ready.append(asyncio.Handle(burnt, (), self, self.outside))
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # likewise
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("the loop is closed")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heappush(self._timers, (when, self._timers_set, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is dropped when its time comes."""

    def number_task(self) -> int:
        self._tasks_made += 1
        return self._tasks_made

    def start(self, process: Process, work: Coroutine[Any, Any, R], name: str) -> asyncio.Task[R]:
        """A task that belongs to `process`, as do all tasks that it creates."""
        context = copy_context()
        context.run(PROCESS.set, process)
        return self.create_task(work, name=name, context=context)

    def kill(self, process: Process) -> None:
        """Drop all scheduled steps of `process`. Its objects stay as they are until `bury`."""
        process.alive = False
        self._dead.append(process)
        for handle in (*self._ready, *(timer for _, _, timer in self._timers)):
            if handle._context.get(PROCESS) is process:  # type: ignore[attr-defined]  # what marks it
                handle.cancel()

    def bury(self) -> None:
        """Close the loop, and free the remains of killed processes: their coroutines end here, when no effect matters
        any more."""
        self.close()
        for process in self._dead:
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # that it is pending is the point
                    _end(task.get_coro())
            process.tasks.clear()
        self._dead.clear()

    def run_in_executor(  # type: ignore[override]  # likewise
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        raise RuntimeError(f"{func} asks for a thread; there are none under virtual time")

    def _write_to_self(self) -> None:
        """No thread has to be woken: there is one thread. (Forgotten async generators are finalised through this
        method.)"""


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number: asyncio keeps tasks in sets, whose order must not depend on addresses."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: VirtualLoop, context: Context | None) -> None:
        self._number = loop.number_task()
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualClock:
    """A `Clock` whose monotonic time is a loop's, and whose wall clock is `wall_from_s` ahead of the loop's time."""

    def __init__(self, loop: VirtualLoop, wall_from_s: float) -> None:
        self._loop = loop
        self._wall_from_s = wall_from_s

    def monotonic_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return self._wall_from_s + self._loop.time()


def _make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, R], context: Context | None = None
) -> asyncio.Task[R]:
    assert isinstance(loop, VirtualLoop)
    task = NumberedTask(coro, loop=loop, context=context)
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.keep(task)
    return task


def _end(coroutine: Any) -> None:
    """Close a coroutine, whatever its `finally` blocks await; there is no loop left for them."""
    for _ in range(20):
        with contextlib.suppress(BaseException):
            coroutine.close()
            return

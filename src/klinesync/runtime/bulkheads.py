"""Bulkheads: a defect ends and restarts the part in which it occurs, and nothing else.

Every task of the service begins through `Bulkheads.begin`. A defect is an unexpected exception. Each defect is counted
(`klinesync_defects_total{part}`), logged with its trace once a kind and minute, and shown by the service's status for
five minutes. A part that runs for as long as the service is restarted after a backoff.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Protocol
from weakref import WeakSet

from klinesync.core.backoff import Backoff
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit

log = Log(__name__)

# Backoff before a part is restarted after a defect.
RESTART = Backoff(initial_s=0.5, most_s=30.0)
# Seconds without a defect after which the backoff of a part is reset.
HEALTHY_S = 60.0
# Seconds between two logged traces of one kind of defect.
LOG_EVERY_S = 60.0

Work = Callable[[], Coroutine[object, object, None]]


class Part(StrEnum):
    """A part of the service that a defect can end; the label of the metric."""

    AUDIT = "audit"
    BACKFILL = "backfill"
    CLIENT = "client"
    CLOCK = "clock"
    CONNECTION = "connection"
    DERIVED = "derived"
    EVENTS = "events"
    EXCHANGE = "exchange"
    HISTORY = "history"
    LISTINGS = "listings"
    LOOP = "loop"
    PUBLISH = "publish"
    REQUEST = "request"
    RETENTION = "retention"
    SERIES = "series"
    STARTUP = "startup"
    STORE = "store"
    STREAMS = "streams"


class Begins(Protocol):
    """The owner of tasks: a task group, or an event loop."""

    def create_task(self, work: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        """Begin a task."""
        ...


class Contained:
    """See `Bulkheads.contained`. A class, because a generator takes three times as long, and every frame of a stream
    passes several."""

    __slots__ = ("_bulkheads", "_mend", "_name", "_part")

    def __init__(self, bulkheads: Bulkheads, part: Part, name: str, mend: Callable[[], None] | None) -> None:
        self._bulkheads = bulkheads
        self._part = part
        self._name = name
        self._mend = mend

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._bulkheads.met(self._part, self._name, error, self._mend)
        return True


class Bulkheads:
    """Begins the tasks of one service, and counts their defects. `counts`: defects by part; `tasks`: running tasks.

    monotonic: monotonic seconds.
    restart: backoff before a part is restarted after a defect.
    """

    def __init__(self, monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s, restart: Backoff = RESTART) -> None:
        self._monotonic = monotonic
        self._restart = restart
        self.counts: Counter[Part] = Counter()
        self.tasks: WeakSet[asyncio.Task[None]] = WeakSet()
        self._last_s: dict[Part, float] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)

    def ago_s(self, now_s: float) -> dict[Part, float]:
        """By part, the seconds since its last defect. `now_s`: by our monotonic clock."""
        return {part: now_s - at_s for part, at_s in self._last_s.items()}

    def defect(self, part: Part, name: str, error: BaseException) -> None:
        """Count a defect of `part`, and log it. `name`: of the task, or of the request or series."""
        now_s = self._monotonic()
        self.counts[part] += 1
        self._last_s[part] = now_s
        suppressed = self._log_limit.allow((part, type(error)), now_s)
        if suppressed is not None:
            log.error("defect", "defect in %s (%s)", part, name, part=part, suppressed=suppressed, exc_info=error)

    def begin(
        self,
        carrier: Begins,
        work: Work,
        *,
        part: Part,
        name: str,
        restart: bool = False,
        mend: Callable[[], None] | None = None,
    ) -> asyncio.Task[None]:
        """Begin a task; a defect in it does not reach the carrier.

        carrier: the task group that owns the task, or the event loop.
        work: makes the coroutine, at each restart again.
        part: the part of which defects are counted.
        name: of the task.
        restart: whether the work is restarted after a defect, until it ends or is cancelled; False by default.
        mend: called after each defect, before a restart; repairs incomplete state. None by default.

        Returns the task. Raises `RuntimeError` when the task group is ending, or the loop is closed.
        """
        carried = self._carry(work, part, name, restart, mend)
        try:
            task = carrier.create_task(carried, name=name)
        except RuntimeError:
            carried.close()
            raise
        self.tasks.add(task)
        return task

    def contained(self, part: Part, name: str, mend: Callable[[], None] | None = None) -> Contained:
        """A block in which a defect ends the block alone; `mend` is called then."""
        return Contained(self, part, name, mend)

    def met(self, part: Part, name: str, error: Exception, mend: Callable[[], None] | None = None) -> None:
        """Count a defect, and mend what it left half done: what a `contained` block does, for a caller that catches the
        defect itself."""
        self.defect(part, name, error)
        if mend is not None:
            with self.contained(part, f"mending {name}"):
                mend()

    async def _carry(self, work: Work, part: Part, name: str, restart: bool, mend: Callable[[], None] | None) -> None:
        restarts = 0
        while True:
            # Raises without a running loop: a task that is freed after its loop closed is not restarted.
            asyncio.get_running_loop()
            began_s = self._monotonic()
            broken = True
            with self.contained(part, name, mend):
                try:
                    await work()
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    # This task is not cancelled: an awaited task was cancelled unexpectedly.
                    raise RuntimeError("an awaited task was cancelled") from error
                broken = False
            if not broken or not restart:
                return
            if self._monotonic() - began_s > HEALTHY_S:
                restarts = 0
            with self.contained(part, f"pause of {name}"):
                await asyncio.sleep(self._restart.delay_s(restarts))
            restarts += 1

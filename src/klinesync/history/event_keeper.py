"""EventKeeper: persists an `EventLog`. A store that fails loses events, and affects nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from klinesync.core.backoff import Backoff
from klinesync.core.errors import StoreError
from klinesync.core.events import EventBatch
from klinesync.history.event_log import EventLog
from klinesync.runtime.log_events import Log
from klinesync.storage.database import Database

log = Log(__name__)

# Pause between two writes of events, and its backoff after failed writes. A crash loses the events of one pause.
WRITES = Backoff(initial_s=60.0, most_s=3600.0)
# Most events of a transaction, which then takes some 20 ms.
MAX_EVENTS_A_WRITE = 5000
# Longest wait of events for candles that wait for the writer, in seconds.
GIVE_WAY_S = 5.0
# Pause between two checks whether candles still wait, in seconds.
GIVE_WAY_LOOK_S = 0.05


class EventKeeper:
    """Reads the events at the start, and writes new events periodically.

    database: the store.
    events: the events.
    busy: whether candles wait for the writer.
    """

    def __init__(self, database: Database, events: EventLog, busy: Callable[[], bool]) -> None:
        self._database = database
        self._events = events
        self._busy = busy
        self._failed = False
        self.writes = 0  # transactions since the start
        self.written = 0  # events in them

    async def load(self) -> None:
        """Read the stored events, once and before the first event is noted."""
        try:
            self._events.restore(await self._database.read(lambda store: store.events.all()))
        except StoreError as error:
            self._events.restart()
            log.warning("events.unreadable", "events of series from before this start are lost", error=error)

    async def run(self) -> None:
        """Write events until cancelled."""
        failures = 0
        while True:
            await asyncio.sleep(WRITES.delay_s(failures))
            await self._give_way()
            failures = 0 if await self._write(self._events.take(MAX_EVENTS_A_WRITE)) else failures + 1

    async def save(self) -> None:
        """Write all new events, when the service stops."""
        while batch := self._events.take(MAX_EVENTS_A_WRITE):
            if not await self._write(batch):
                return

    async def _give_way(self) -> None:
        for _ in range(int(GIVE_WAY_S / GIVE_WAY_LOOK_S)):
            if not self._busy():
                return
            await asyncio.sleep(GIVE_WAY_LOOK_S)

    async def _write(self, batch: EventBatch) -> bool:
        """Write a batch. Returns whether the store has it."""
        if not batch:
            return True
        try:
            await self._database.write(lambda store: store.events.apply(batch))
        except StoreError as error:
            self._events.put_back(batch)
            if not self._failed:
                log.warning("events.unwritten", "a restart would not know the newest events of series", error=error)
            self._failed = True
            return False
        except BaseException:
            self._events.put_back(batch)
            raise
        self._failed = False
        self.writes += 1
        self.written += sum(len(change.events) for change in batch.changes)
        return True

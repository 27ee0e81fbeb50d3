"""MarketRuntime: the running parts. `async with` starts them in order, and stops them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from klinesync.core.errors import StoreError
from klinesync.market.front import Front
from klinesync.market.parts_services import ServedParts
from klinesync.market_data.orchestrator import MarketDataOrchestrator
from klinesync.runtime.bulkheads import Part, Work
from klinesync.runtime.log_events import Log

log = Log(__name__)


class MarketRuntime:
    """Starts and stops the parts. One TaskGroup owns every long-lived task. A part with a defect is restarted; a defect
    of the writer stops the service.

    parts: the parts, made and bound.
    market_data: the services that routes and sockets call.
    front: guard, limits of requests, and inspection.
    """

    def __init__(self, parts: ServedParts, market_data: MarketDataOrchestrator, front: Front) -> None:
        writing, exchange, history, ingest = parts.writing, parts.exchange, parts.history, parts.ingest
        self.market_data = market_data
        self.front = front
        self.bulkheads = parts.around.bulkheads
        self.clock = parts.around.clock
        self._store_probe_s = parts.around.tuning.store_probe_s
        self.hub = writing.hub
        self.registry = exchange.registry
        self.supervisors = exchange.supervisors
        self.startup = ingest.startup
        self.backfill = history.backfill
        self.events = writing.event_keeper
        self._database = writing.database
        self._pipeline = writing.pipeline
        self._forming = writing.forming
        self._derived_redo = writing.derived_redo
        self._retention = writing.retention
        self._scrub = history.scrub
        self._healer = history.healer
        self._stack = AsyncExitStack()
        self._started = False

    async def __aenter__(self) -> MarketRuntime:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._database)
            await self.events.load()
            stack.push_async_exit(self._save_events)
            await self._derived_redo.settle()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._pipeline.drain)
            write = group.create_task(self._pipeline.run(), name="pipeline")
            stack.push_async_callback(_cancel, write)
            stack.push_async_callback(self.registry.close)
            for part, name, work in self._parts():
                task = self.bulkheads.begin(group, work, part=part, name=name, restart=True)
                stack.push_async_callback(_cancel, task)
            self._stack = stack.pop_all()
        self._started = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._started = False
        return await self._stack.__aexit__(kind, error, trace)

    async def _save_events(self, kind: type[BaseException] | None, *_: object) -> None:
        """Save events, unless the event loop is gone (`GeneratorExit`)."""
        if kind is not GeneratorExit:
            await self.events.save()

    def on_loop_defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Count an exception in a callback of the event loop as a defect."""
        error = context.get("exception")
        if error is None or not isinstance(error, Exception):
            loop.default_exception_handler(context)
        elif not isinstance(error, ConnectionError):
            self.bulkheads.defect(Part.LOOP, str(context.get("message", "a callback")), error)

    def _parts(self) -> Iterator[tuple[Part, str, Work]]:
        """The long-lived tasks, in the order of their start."""
        yield Part.DERIVED, "derived forming", self._forming.run
        yield Part.EXCHANGE, "supervisors", self.supervisors.run
        yield Part.STARTUP, "start-up sweep", self.startup.run
        yield Part.BACKFILL, "history", self.backfill.run
        if self._retention is not None:
            yield Part.RETENTION, "retention", self._retention.run
        yield Part.DERIVED, "derived redo", self._derived_redo.run
        yield Part.STORE, "store scrub", self._scrub.run
        yield Part.STORE, "store healer", self._healer.run
        yield Part.STORE, "store probe", self._probe_store
        yield Part.EVENTS, "events", self.events.run

    async def unready(self) -> str | None:
        """Why the service is not ready; None when it has started, and its store can be read and written."""
        if not self._started:
            return "not started"
        try:
            await self._database.read(lambda _: None)
        except StoreError:
            return "the store cannot be read"
        return None if self._database.write_error is None else "the store cannot be written"

    async def _probe_store(self) -> None:
        """Check regularly that the store is still in its place; after a failed write, probe until the store can be
        written again. A failure is logged when it begins or changes."""
        logged: str | None = None
        while True:
            await asyncio.sleep(self._store_probe_s)
            try:
                if self._database.write_error is None:
                    await self._database.check()
                    continue
                await self._database.probe()
            except StoreError as error:
                if str(error) != logged:
                    logged = str(error)
                    log.error("store.probe_failed", "the store cannot be written yet", error=error)
            else:
                logged = None
                log.warning("store.writable", "the store can be written again")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])

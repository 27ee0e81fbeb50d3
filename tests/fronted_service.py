"""A running service with metrics, debug API and a guard, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from klinesync.core.series_id import SeriesId
from klinesync.ingest.binance import BinanceSource
from klinesync.market.app import bind, create_app, create_server
from klinesync.market.front import Front, compose_front
from klinesync.market.inspection import Parts
from klinesync.market.runtime import MarketRuntime
from klinesync.market.security import LOOPBACK, Guard
from klinesync.sim.server import SimServer
from running_service import Service, running_service


@dataclass
class HubNumbers:
    clients: int = 0
    subscriptions: int = 0
    waiting_messages: int = 0
    waiting_bytes: int = 0
    messages: int = 0
    slow_clients: int = 0


def front_for(runtime: MarketRuntime, guard: Guard = LOOPBACK, *, debug: bool = True) -> Front:
    """The front of a running service, made of its parts."""
    supervisor, backfill = runtime.supervisor, runtime._backfill
    source = supervisor._source
    assert isinstance(source, BinanceSource)
    monotonic = asyncio.get_running_loop().time

    def now_s(series: SeriesId) -> float:
        estimate_ms = supervisor._clocks[series.market].estimate_ms(monotonic())
        return time.time() if estimate_ms is None else estimate_ms / 1000

    parts = Parts(
        database=runtime._database,
        pipeline=runtime._pipeline,
        jobs=supervisor.jobs_state,
        connections=supervisor.connections_state,
        stream_counts=source.stream_counts,
        doubted=lambda: {market: check.refused for market, check in supervisor._checks.items()},
        audit=lambda: None,
        rest=source.rest_status,
        healing=(lambda _: []) if backfill is None else backfill.working_on,
        sweep=runtime.startup.progress,
        hub=lambda: HubNumbers(clients=runtime.hub.clients),
        now_s=now_s,
        monotonic=monotonic,
        grace_s=5.0,
    )
    return compose_front(
        guard,
        parts,
        debug=debug,
        derived=runtime.derived,
        check_known=runtime.reader.check_known,
        show=runtime._forming.show,
    )


@asynccontextmanager
async def fronted_service(
    store: Path, exchange: SimServer | None = None, guard: Guard = LOOPBACK, *, debug: bool = True, **flags: str
) -> AsyncIterator[Service]:
    """The same service as `running_service`, behind a front."""
    async with running_service(store, exchange, **flags) as service:
        listener = bind("127.0.0.1", 0)
        app = create_app(service.runtime, front_for(service.runtime, guard, debug=debug))
        server = create_server(app, service.runtime)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", service.runtime, service.http)
        finally:
            server.stop()
            await serving

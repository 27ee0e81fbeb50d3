"""The order in which the service's parts start and stop, and in which they learn of commits and gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from klinesync.core.series_id import SeriesId
from klinesync.market.parts_services import ServedParts, build_front, build_market_data
from klinesync.market.runtime import MarketRuntime
from klinesync.market.runtime_builder import bind_subscribers, build_parts
from klinesync.market.settings import service_settings
from klinesync.market.surroundings import Surroundings
from klinesync.runtime.bulkheads import Begins, Bulkheads, Part, Work
from klinesync.runtime.flags import RuntimeFlags
from klinesync.storage.sqlite import InThreadSqliteDatabase

# Tasks that run as long as the service does, in the order in which they start.
TASKS = (
    "derived forming",
    "supervisors",
    "start-up sweep",
    "history",
    "retention",
    "derived redo",
    "store scrub",
    "store probe",
    "events",
)


class Diary:
    """The events, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def noted(self, line: str, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Runs the same work; records its start."""

        async def noting() -> None:
            self.lines.append(line)
            await work()

        return noting


class NotedBulkheads(Bulkheads):
    """Records when each of `TASKS` begins and ends."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary

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
        async def noted() -> None:
            self._diary.lines.append(f"start {name}")
            try:
                await work()
                await asyncio.Event().wait()  # the sweep and the redo would end at once
            finally:
                self._diary.lines.append(f"stop {name}")

        return super().begin(
            carrier, noted if name in TASKS else work, part=part, name=name, restart=restart, mend=mend
        )


class NotedStore(InThreadSqliteDatabase):
    """Records when the store is opened and closed."""

    def __init__(self, path: Path, diary: Diary) -> None:
        super().__init__(path, pause=lambda: asyncio.sleep(0))
        self._diary = diary

    async def __aenter__(self) -> Self:
        self._diary.lines.append("open store")
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._diary.lines.append("close store")
        await super().__aexit__(kind, error, trace)


def parts_of(store: Path, diary: Diary) -> tuple[RuntimeFlags, ServedParts]:
    """The parts of a service whose exchange is unreachable."""
    nowhere = {
        f"binance_{market}_{kind}_url": f"{scheme}://127.0.0.1:9"
        for market in ("spot", "futures")
        for kind, scheme in (("rest", "http"), ("ws", "ws"))
    }
    flags = RuntimeFlags.model_validate({"database_url": f"sqlite:///{store}", "retention_days": 30} | nowhere)
    around = Surroundings(bulkheads=NotedBulkheads(diary))
    return flags, build_parts(flags, (), around, NotedStore(store, diary))


def runtime_of(flags: RuntimeFlags, parts: ServedParts) -> MarketRuntime:
    services = service_settings(flags)
    market_data = build_market_data(services, parts)
    bind_subscribers(parts, market_data)
    return MarketRuntime(parts, market_data, build_front(services, parts))


async def test_parts_start_in_one_order_and_stop_in_its_reverse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    flags, parts = parts_of(tmp_path / "store.sqlite", diary)
    pipeline, keeper, redo = parts.writing.pipeline, parts.writing.event_keeper, parts.writing.derived_redo
    for part, name, line in (
        (pipeline, "run", "start pipeline"),
        (pipeline, "drain", "drain pipeline"),
        (keeper, "load", "load events"),
        (keeper, "save", "save events"),
        (redo, "settle", "settle derived"),
        (parts.exchange.registry, "close", "close exchanges"),
    ):
        monkeypatch.setattr(part, name, diary.noted(line, getattr(part, name)))

    async with runtime_of(flags, parts):
        async with asyncio.timeout(60):
            while f"start {TASKS[-1]}" not in diary.lines:
                await asyncio.sleep(0)
        started, diary.lines[:] = list(diary.lines), []
    assert started == [
        "open store",
        "load events",
        "settle derived",
        "start pipeline",
        *(f"start {name}" for name in TASKS),
    ]
    assert diary.lines == [
        *(f"stop {name}" for name in reversed(TASKS)),
        "close exchanges",
        "drain pipeline",
        "save events",
        "close store",
    ]


async def test_a_commit_reaches_the_page_cache_before_clients_and_derived_histories_last(tmp_path: Path) -> None:
    flags, parts = parts_of(tmp_path / "store.sqlite", Diary())
    runtime_of(flags, parts)
    assert parts.writing.publisher.order == ("page cache", "status", "clients", "derived histories")


async def test_a_declared_gap_is_noted_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diary = Diary()
    flags, parts = parts_of(tmp_path / "store.sqlite", diary)
    monkeypatch.setattr(parts.writing.events, "damaged", lambda series: diary.lines.append(f"events {series}"))
    monkeypatch.setattr(parts.history.backfill, "request_declared", lambda series: diary.lines.append(f"read {series}"))
    runtime_of(flags, parts)
    btc = SeriesId.parse("binance:spot:BTC/USDT:1m")
    parts.history.scrub._declared(btc)
    assert diary.lines == [f"events {btc}", f"read {btc}"]

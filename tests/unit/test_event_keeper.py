"""EventKeeper in virtual time: events are written together periodically; a failing store loses only events, and is
logged once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

from klinesync.core.errors import StoreError
from klinesync.core.events import SeriesEvent
from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.history.event_keeper import GIVE_WAY_S, MAX_EVENTS_A_WRITE, WRITES, EventKeeper
from klinesync.history.event_log import CROWD_LEAST, MAX_EVENTS_A_SERIES, EventLog
from klinesync.history.series_events import SeriesEvents
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.storage.sqlite import InThreadSqliteDatabase
from sim.virtual_loop import Process, VirtualLoop

MINUTE_S = WRITES.initial_s
STREAMS = 1000
MINUTES = 10


class Run:
    """One process of the service: its log of events, and the log's keeper. The disk is full while `full`."""

    def __init__(self, path: Path) -> None:
        self.full = False
        self.refused = 0
        self.busy = False
        self.log = EventLog()
        self.database = InThreadSqliteDatabase(path, pause=self._pause, before_commit=self._commit)
        self.keeper = EventKeeper(self.database, self.log, lambda: self.busy)

    async def _pause(self) -> None:
        await asyncio.sleep(0)

    def _commit(self) -> None:
        if self.full:
            self.refused += 1
            raise apsw.FullError("database or disk is full")

    def note(self, *details: str) -> None:
        for detail in details:
            self.log.note("a", "stream.stale", detail, 0)

    def told(self) -> list[str]:
        return [event.detail for event in self.log.events(["a"])]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.bury()


def stored(loop: VirtualLoop, path: Path) -> list[SeriesEvent]:
    """The events that a new process reads."""

    async def read() -> list[SeriesEvent]:
        run = Run(path)
        async with run.database:
            await run.keeper.load()
        return run.log.events(["a"])

    return loop.run_until_complete(read())


def run(loop: VirtualLoop, work: Coroutine[object, object, None]) -> None:
    loop.run_until_complete(loop.start(Process("service"), work, "work"))


def test_events_are_written_together_once_a_minute_and_only_if_there_are_new_ones(
    loop: VirtualLoop, tmp_path: Path
) -> None:
    async def work() -> None:
        service = Run(tmp_path / "store.sqlite")
        async with service.database:
            await service.keeper.load()
            keeping = asyncio.create_task(service.keeper.run())
            for minute in range(5):
                service.note(*(f"{minute}.{number}" for number in range(10)))
                await asyncio.sleep(MINUTE_S + 1)
            assert (service.keeper.writes, service.keeper.written) == (5, 50)
            await asyncio.sleep(60 * MINUTE_S)
            assert service.keeper.writes == 5
            keeping.cancel()
            await asyncio.wait([keeping])

    run(loop, work())
    assert len(stored(loop, tmp_path / "store.sqlite")) == 50


def test_a_killed_process_loses_at_most_a_minute_of_events_and_a_stopped_process_none(
    loop: VirtualLoop, tmp_path: Path
) -> None:
    path, process = tmp_path / "store.sqlite", Process("killed")

    async def service(*, seconds: int) -> None:
        service = Run(path)
        async with service.database:
            await service.keeper.load()
            keeping = asyncio.create_task(service.keeper.run())
            for second in range(seconds):
                service.note(f"{len(service.told())}")
                await asyncio.sleep(1)
                assert second < seconds
            keeping.cancel()
            await asyncio.wait([keeping])
            await service.keeper.save()

    loop.start(process, service(seconds=10_000), "service")
    loop.run_until_complete(asyncio.sleep(130.5))
    loop.kill(process)
    assert [event.detail for event in stored(loop, path)] == [str(number) for number in range(120)]
    run(loop, service(seconds=7))
    assert [event.detail for event in stored(loop, path)] == [str(number) for number in range(127)]


def test_a_failing_store_is_logged_once_and_gets_the_events_when_it_works_again(
    loop: VirtualLoop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        service = Run(tmp_path / "store.sqlite")
        async with service.database:
            await service.keeper.load()
            keeping = asyncio.create_task(service.keeper.run())
            service.full = True
            service.note("one")
            await asyncio.sleep(10 * WRITES.most_s)
            service.note("two")
            assert service.refused < 20, "a store that fails is tried less and less often"
            await service.keeper.save()
            assert service.told() == ["one", "two"]
            service.full = False
            await asyncio.sleep(WRITES.most_s)
            keeping.cancel()
            await asyncio.wait([keeping])

    run(loop, work())
    assert [record.message.split()[0] for record in caplog.records] == ["event=events.unwritten:"]
    assert [event.detail for event in stored(loop, tmp_path / "store.sqlite")] == ["one", "two"]


@pytest.mark.parametrize(
    "damage",
    ["event = CAST(x'ff' AS TEXT)", "event_no = 9223372036854775807", "event_no = 0"],
    ids=["no text", "too great a number", "no number"],
)
def test_unreadable_events_are_replaced_by_new_events(
    damage: str, loop: VirtualLoop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.sqlite"

    async def work() -> None:
        service = Run(path)
        async with service.database:
            service.note("old")
            await service.keeper.save()
        # A value written by another program, which the reader refuses.
        connection = apsw.Connection(str(path))
        connection.execute(f"UPDATE series_event SET {damage}")
        connection.close()
        again = Run(path)
        async with again.database:
            with pytest.raises(StoreError):
                await again.database.read(lambda store: store.events.all())
            await again.keeper.load()
            again.note("new")
            await again.keeper.save()

    run(loop, work())
    assert [record.message.split()[0] for record in caplog.records] == ["event=events.unreadable:"]
    assert [event.detail for event in stored(loop, path)] == ["new"]


def test_events_wait_a_limited_time_for_candles_that_wait_for_the_writer(loop: VirtualLoop, tmp_path: Path) -> None:
    async def work() -> None:
        service = Run(tmp_path / "store.sqlite")
        async with service.database:
            keeping = asyncio.create_task(service.keeper.run())
            service.busy = True
            service.note("one")
            await asyncio.sleep(MINUTE_S + GIVE_WAY_S / 2)
            assert service.keeper.writes == 0
            await asyncio.sleep(GIVE_WAY_S)
            assert service.keeper.writes == 1
            keeping.cancel()
            await asyncio.wait([keeping])

    run(loop, work())


def test_no_transaction_is_longer_than_the_limit(loop: VirtualLoop, tmp_path: Path) -> None:
    async def work() -> None:
        service = Run(tmp_path / "store.sqlite")
        async with service.database:
            for number in range(MAX_EVENTS_A_WRITE + 10):
                service.log.note(str(number // MAX_EVENTS_A_SERIES), "stream.stale", str(number), 0)
            keeping = asyncio.create_task(service.keeper.run())
            await asyncio.sleep(MINUTE_S * 1.5)
            assert (service.keeper.writes, service.keeper.written) == (1, MAX_EVENTS_A_WRITE)
            await asyncio.sleep(MINUTE_S)
            assert (service.keeper.writes, service.keeper.written) == (2, MAX_EVENTS_A_WRITE + 10)
            keeping.cancel()
            await asyncio.wait([keeping])

    run(loop, work())


def test_a_thousand_series_that_flap_are_a_bounded_number_of_writes(loop: VirtualLoop, tmp_path: Path) -> None:
    """Each connection is lost and found every 10 s, and every stream turns stale and live again every minute."""
    everybody = [SeriesId.parse(f"binance:spot:C{number}/USDT:1m") for number in range(STREAMS)]
    flap = (StreamState.LIVE, StreamState.RECONNECTING, StreamState.SUBSCRIBED, StreamState.LIVE)
    stale = (StreamState.LIVE, StreamState.STALE, StreamState.REST_FALLBACK, StreamState.LIVE)

    async def work() -> None:
        service = Run(tmp_path / "store.sqlite")
        events = SeriesEvents(
            service.log,
            clocks={},
            wall_s=asyncio.get_running_loop().time,
            monotonic=asyncio.get_running_loop().time,
            bulkheads=Bulkheads(),
        )
        async with service.database:
            keeping = asyncio.create_task(service.keeper.run())
            for turn in range(MINUTES * 6):
                for states in (flap, stale) if turn % 6 == 0 else (flap,):
                    for before, state in pairwise(states):
                        for series in everybody:
                            events.stream(series, before, StreamStatus(state, detail="why"))
                await asyncio.sleep(10)
            keeping.cancel()
            await asyncio.wait([keeping])
        assert service.keeper.writes <= MINUTES
        # At most the events of the market, and three events of each of `CROWD_LEAST` series.
        assert service.keeper.written <= MINUTES * (MAX_EVENTS_A_SERIES + 3 * CROWD_LEAST)
        assert service.keeper.written < STREAMS * MINUTES / 10
        assert len(service.log) < STREAMS

    run(loop, work())

"""Events of series behind the Database port: kept over a restart, independent of candles, also in a store of an older
version or with a damaged table."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.events import EventBatch, NumberedEvent, ScopeChange, SeriesEvent
from klinesync.core.gaps import GapChange
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.event_log import EventLog
from klinesync.pipelines.derived_step import write_closed
from klinesync.storage.backup import backup
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database
from klinesync.storage.records import Corrected, Origin, SeriesChange
from klinesync.storage.sqlite import InThreadSqliteDatabase, SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from klinesync.storage.sqlite_schema import APPLICATION_ID, migrations
from support.pauses import no_pause

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
CANDLE = Candle(60, 1.0, 2.0, 0.5, 1.0, 1.0)
# The last version of stores without events.
WITHOUT_EVENTS = 6


@pytest.fixture(
    params=[SqliteDatabase, lambda path: InThreadSqliteDatabase(path, pause=no_pause)], ids=["threads", "in_thread"]
)
def make(request: pytest.FixtureRequest) -> Callable[[Path], Database]:
    """Makes a database of a file."""
    implementation: Callable[[Path], Database] = request.param
    return implementation


def log_of(count: int) -> EventLog:
    log = EventLog()
    for number in range(count):
        log.note(("binance:spot", str(BTC))[number % 2], "stream.stale", f"sentence {number} ☃", number)
    return log


async def test_events_are_there_after_a_restart_in_their_order(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    log = log_of(5)
    log.note(str(BTC), "stream.stale", "sentence 3 ☃", 99)
    async with make(tmp_path / "store.sqlite") as database:
        assert await database.read(lambda store: store.events.all()) == []
        batch = log.take(100)
        await database.write(lambda store: store.events.apply(batch))
    async with make(tmp_path / "store.sqlite") as database:
        again = EventLog()
        again.restore(await database.read(lambda store: store.events.all()))
        for scopes in (["binance:spot"], [str(BTC)], ["binance:spot", str(BTC)]):
            assert again.events(scopes) == log.events(scopes)
        assert again.events([str(BTC)])[-1] == SeriesEvent("stream.stale", "sentence 3 ☃", 99, 3, 2)


async def test_a_store_changes_the_events_of_a_scope_from_a_number_on_and_drops_the_oldest(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    def numbered(*numbers: int) -> tuple[NumberedEvent, ...]:
        return tuple(NumberedEvent(number, SeriesEvent("e", str(number), 0, 0)) for number in numbers)

    async with make(tmp_path / "store.sqlite") as database:
        for batch, left in (
            (
                EventBatch((ScopeChange("a", 1, 1, numbered(1, 3, 4)), ScopeChange("b", 1, 1, numbered(2)))),
                [1, 2, 3, 4],
            ),
            (EventBatch((ScopeChange("a", 3, 4, numbered(6)),)), [2, 3, 6]),
            (EventBatch((ScopeChange("b", 9, 9),)), [3, 6]),
            (EventBatch(clear=True), []),
        ):
            await database.write(lambda store, batch=batch: store.events.apply(batch))  # type: ignore[misc]
            stored = await database.read(lambda store: store.events.all())
            assert [event.number for _, event in stored] == left


async def test_events_that_cannot_be_written_change_nothing(make: Callable[[Path], Database], tmp_path: Path) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        batch = log_of(3).take(100)
        await database.write(lambda store: store.events.apply(batch))
        kept = await database.read(lambda store: store.events.all())
        with pytest.raises(StoreError):  # an existing number, after a delete that affects other events
            await database.write(
                lambda store: store.events.apply(
                    EventBatch(
                        (ScopeChange(str(BTC), 9, 9), ScopeChange("binance:spot", 0, 9, batch.changes[0].events))
                    )
                )
            )
        assert await database.read(lambda store: store.events.all()) == kept


async def test_a_transaction_tells_what_it_corrected_and_which_gaps_it_changed(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    at = [CANDLE._replace(time=minute * 60) for minute in range(10)]

    def told(rows: list[Candle]) -> Callable[[CandleStore], list[SeriesChange]]:
        def change(store: CandleStore) -> list[SeriesChange]:
            write_closed(store, BTC, rows, Origin("rest", 0))
            return list(store.changes)

        return change

    async with make(tmp_path / "store.sqlite") as database:
        assert await database.write(told(at[:3])) == []
        assert await database.write(told(at[2:5])) == [], "the same again, and what follows"
        [(series, change)] = await database.write(told([at[9]]))
        assert isinstance(change, GapChange)
        assert (series, [gap.span for gap in change.insert]) == (BTC, [Span(300, 540)])
        other = [candle._replace(close=1.5) for candle in (at[1], at[3], at[6])]
        corrected, (_, filled) = await database.write(told(other))
        assert corrected == (BTC, Corrected(60, 180, 2, "rest"))
        assert isinstance(filled, GapChange)
        assert [gap.span for gap in filled.insert] == [Span(300, 360), Span(420, 540)]


def old_store(path: Path) -> None:
    """A store in the schema before events existed."""
    connection = apsw.Connection(str(path))
    for script in migrations()[:WITHOUT_EVENTS]:
        connection.execute(script.read_text())
    connection.execute(f"PRAGMA user_version = {WITHOUT_EVENTS}; PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("INSERT INTO series (series_id) VALUES (?)", (str(BTC),))
    connection.execute("INSERT INTO candle VALUES (1, ?, ?, ?, ?, ?, ?)", CANDLE.ohlcv)
    connection.close()


async def test_a_store_from_before_there_were_events_gets_them_and_keeps_its_candles(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    old_store(path)
    with pytest.raises(StoreError, match=r"schema version 6, and this klinesync reads \d+; `klinesync serve` brings"):
        SqliteReader(path).__enter__()
    async with make(path) as database:
        assert await database.read(lambda store: store.newest(BTC, 9)) == [CANDLE]
        assert await database.read(lambda store: store.events.all()) == []
        batch = log_of(2).take(9)
        await database.write(lambda store: store.events.apply(batch))
    async with make(path) as database:
        assert len(await database.read(lambda store: store.events.all())) == 2


async def test_a_backup_has_the_events(tmp_path: Path) -> None:
    batch = log_of(4).take(9)
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        await database.write(lambda store: store.events.apply(batch))
        with SqliteReader(tmp_path / "store.sqlite") as store:
            backup(store, tmp_path / "copy.sqlite")
    with SqliteReader(tmp_path / "copy.sqlite") as copy:
        assert len(copy.read(lambda store: store.events.all())) == 4


async def test_damaged_events_are_no_damage_of_the_store(make: Callable[[Path], Database], tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    batch = log_of(40).take(100)
    async with make(path) as database:
        await database.write(lambda store: store.write(BTC, [CANDLE], Origin("test", 0)))
        await database.write(lambda store: store.events.apply(batch))
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'series_event'").fetchone()[0]
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\x00\xff" * (page_bytes // 2))
    async with make(path) as database:
        with pytest.raises(StoreError, match="the stored events of series are damaged"):
            await database.read(lambda store: store.events.all())
        with pytest.raises(StoreError, match="the stored events of series are damaged"):
            await database.write(lambda store: store.events.apply(EventBatch(batch.changes, clear=True)))
        assert (database.damage.sentence(), database.write_error) == (None, None)
        assert await database.read(lambda store: store.newest(BTC, 9)) == [CANDLE]
        await database.write(lambda store: store.write(BTC, [CANDLE._replace(time=120)], Origin("test", 0)))

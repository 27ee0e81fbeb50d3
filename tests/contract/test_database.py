"""The Database port, over each implementation: written values are read back, changes are distinguished from repeats,
nothing half-written remains."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Applied, Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.rows import of_store
from klinesync.storage import candle_table, chunks
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import MAX_DAMAGED_PARTS, Damage, Kept
from klinesync.storage.database import Database
from klinesync.storage.records import Ledger, Origin
from klinesync.storage.sqlite import InThreadSqliteDatabase, SqliteDatabase
from support.pauses import no_pause
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")


def candle(minute: int, close: float = 1.0) -> Candle:
    return Candle(minute * 60, 1.0, 2.0, 0.5, close, 1.0)


def candles(*minutes: int) -> list[Candle]:
    return [candle(minute) for minute in minutes]


def in_thread(path: Path) -> Database:
    return InThreadSqliteDatabase(path, pause=no_pause)


# Add a line here for another implementation.
IMPLEMENTATIONS: list[Callable[[Path], Database]] = [SqliteDatabase, in_thread]


@pytest.fixture(params=IMPLEMENTATIONS, ids=["threads", "in_thread"])
def make(request: pytest.FixtureRequest) -> Callable[[Path], Database]:
    """Makes a database of a file."""
    implementation: Callable[[Path], Database] = request.param
    return implementation


async def write(database: Database, series: SeriesId, rows: list[Candle]) -> Applied:
    return await database.write(lambda store: store.write(series, rows, Origin("test", 1_700_000_000)))


async def all_of(database: Database, series: SeriesId) -> list[Candle]:
    return await database.read(lambda store: store.newest(series, 1_000_000))


async def test_what_was_asked_for_is_remembered_until_it_is_over(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        assert await database.read(lambda store: store.backfills()) == []
        for series, span in ((ETH, Span(60, 120)), (BTC, Span(0, 180)), (BTC, Span(0, 120)), (BTC, Span(0, 180))):
            await database.write(lambda store, one=(series, span): store.add_backfill(*one))  # type: ignore[misc]
        assert await database.read(lambda store: store.series()) == [], "nothing of them is stored"
    async with make(tmp_path / "store.sqlite") as database:
        asked = [(BTC, Span(0, 120)), (BTC, Span(0, 180)), (ETH, Span(60, 120))]
        assert await database.read(lambda store: store.backfills()) == asked
        await database.write(lambda store: store.end_backfill(BTC, Span(0, 180)))
        await database.write(lambda store: store.end_backfill(BTC, Span(0, 60)))
        assert await database.read(lambda store: store.backfills()) == [asked[0], asked[2]]


async def test_pages_are_ascending_and_exclusive_at_both_ends(make: Callable[[Path], Database], tmp_path: Path) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(5, 3, 1, 2, 4))
        await write(database, ETH, candles(9))

        def look(store: CandleStore) -> None:
            assert store.newest(BTC, 2) == candles(4, 5)
            assert store.newest(BTC, 2, before=4 * 60) == candles(2, 3)
            assert store.newest(BTC, 9, after=60, before=4 * 60) == candles(2, 3)
            assert store.oldest(BTC, 2, since=2 * 60) == candles(3, 4)
            assert store.oldest(BTC, 2, since=2 * 60 - 1) == candles(2, 3)
            assert store.oldest(BTC, 2, since=5 * 60) == []
            assert (store.first(BTC), store.head(BTC)) == (60, 300)
            assert (store.count_after(BTC, 60, 10), store.count_after(BTC, 60, 3)) == (4, 3)

        await database.read(look)


async def test_a_series_that_is_not_stored_is_empty(make: Callable[[Path], Database], tmp_path: Path) -> None:
    async with make(tmp_path / "store.sqlite") as database:

        def look(store: CandleStore) -> None:
            assert (store.first(BTC), store.head(BTC)) == (None, None)
            assert store.newest(BTC, 5) == store.oldest(BTC, 5, since=0) == []
            assert store.count_after(BTC, 0, 5) == 0

        await database.read(look)


async def test_writing_the_same_again_changes_nothing(make: Callable[[Path], Database], tmp_path: Path) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        assert await write(database, BTC, candles(1, 2)) == Applied(BTC, (candle(1), candle(2)), frozenset(), commit=1)
        assert await write(database, BTC, candles(2, 1)) == Applied(BTC, (), frozenset(), commit=2)
        assert await write(database, BTC, []) == Applied(BTC, (), frozenset(), commit=3)


async def test_other_values_and_late_fills_are_told_as_revised(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(1, 3))
        rows = [candle(4), candle(1), candle(2), candle(3, close=1.5)]
        written = await write(database, BTC, rows)
        assert written == Applied(BTC, (candle(2), candle(3, close=1.5), candle(4)), frozenset({120, 180}), commit=2)
        assert await all_of(database, BTC) == [candle(1), candle(2), candle(3, close=1.5), candle(4)]


@pytest.mark.parametrize("stored", [[], candles(1), candles(0, 2)])
async def test_candles_of_one_time_in_a_batch_are_as_if_each_were_written_by_itself(
    make: Callable[[Path], Database], tmp_path: Path, stored: list[Candle]
) -> None:
    full = candle(1)._replace(quote_volume=1.0, trades=1)
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, stored)
        written = await write(database, BTC, [full, candle(1)])
        assert written.candles == (full,)
        assert full in await all_of(database, BTC)
        await write(database, BTC, [candle(1, close=1.5)._replace(trades=2), candle(1, close=1.7)])
        assert candle(1, close=1.7) in await all_of(database, BTC)


async def test_what_differs_by_a_rounding_is_written_and_told_to_nobody(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    rounded = candle(1)._replace(volume=1.0 + 1e-12)
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(1, 2, 3))
        origin = Origin("derived", 1, computed=True)
        rows = [rounded, candle(2, close=1.5), candle(4)]
        written = await database.write(lambda store: store.write(BTC, rows, origin))
        assert (written.candles, written.told) == (tuple(rows), tuple(rows[1:]))
        assert written.revised == frozenset({120})
        assert written.rounded == frozenset({60})
        assert await all_of(database, BTC) == [rounded, candle(2, close=1.5), candle(3), candle(4)]


async def test_values_come_back_bit_for_bit_after_a_restart(make: Callable[[Path], Database], tmp_path: Path) -> None:
    odd = Candle(60, 0.1 + 0.2, 1e300, 5e-324, 1 / 3, 2**53 + 0.0)
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, [odd])
    async with make(tmp_path / "store.sqlite") as database:
        assert await all_of(database, BTC) == [odd]


async def test_a_change_that_fails_leaves_nothing_behind(make: Callable[[Path], Database], tmp_path: Path) -> None:
    async with make(tmp_path / "store.sqlite") as database:

        def change(store: CandleStore) -> None:
            store.write(BTC, candles(1), Origin("test", 0))
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            await database.write(change)
        assert await all_of(database, BTC) == []
        # The number that the series got in the failed change is not remembered.
        await write(database, BTC, candles(2))
        assert await all_of(database, BTC) == candles(2)


async def test_commits_are_counted_and_a_read_knows_what_it_has_seen(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        assert await database.read(lambda store: store.commit()) == 0
        assert (await write(database, BTC, candles(1))).commit == 1
        with pytest.raises(ZeroDivisionError):
            await database.write(lambda store: 1 // (store.commit() - 2))
        assert await database.read(lambda store: store.commit()) == 1


async def test_a_batch_of_candles_that_lie_years_apart_tells_each_change(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(*range(1, 200)))
        applied = await write(database, BTC, [candle(1, close=1.5), candle(100), candle(199, close=1.5), candle(200)])
        assert applied.candles == (candle(1, close=1.5), candle(199, close=1.5), candle(200))
        assert applied.revised == {60, 199 * 60}


async def test_a_transaction_leaves_nothing_for_the_garbage_collector(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(1))
        gc.collect()
        gc.disable()
        try:
            earlier = [one for one in gc.get_objects() if isinstance(one, CandleStore)]  # of other tests' tracebacks
            for _ in range(20):
                await write(database, BTC, candles(2, 3))
                await all_of(database, BTC)
            assert [one for one in gc.get_objects() if isinstance(one, CandleStore)] == earlier
        finally:
            gc.enable()


async def test_a_store_whose_opening_is_cancelled_is_closed_before_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the service is stopped in its first moments: nothing is written after its end."""
    path = tmp_path / "store.sqlite"
    begun, go_on = threading.Event(), threading.Event()
    opens = SqliteDatabase._open

    def slow(database: SqliteDatabase) -> None:
        begun.set()
        assert go_on.wait(30)
        opens(database)

    monkeypatch.setattr(SqliteDatabase, "_open", slow)
    opening = asyncio.create_task(SqliteDatabase(path).__aenter__())
    assert await asyncio.to_thread(begun.wait, 30)
    opening.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not opening.done(), "the thread is still at it"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with SqliteDatabase(path):
        pass  # no process holds its lock


async def test_a_store_of_a_newer_version_is_refused_with_a_sentence(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    async with make(path):
        pass
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"schema version 99.*newer klinesync"):
        await make(path).__aenter__()


async def test_a_file_that_is_no_store_is_refused_with_a_sentence(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        await make(path).__aenter__()


MINUTES = st.integers(1, 40)


@pytest.fixture(params=[(1, 1, 1), (4, 3, 8), (8, 4, 20), (256, 16, 128)], ids=lambda sizes: f"chunks_of_{sizes[0]}")
def chunk_candles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Open times of a chunk, of the newest rows, and most of the rows: with small numbers most candles are packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_CANDLES", request.param[0])
        patch.setattr(candle_table, "ROW_CANDLES", request.param[1])
        patch.setattr(candle_table, "MOST_ROW_CANDLES", request.param[2])
        yield


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    implementation=st.sampled_from(IMPLEMENTATIONS),
    steps=st.lists(
        st.lists(st.tuples(MINUTES, st.integers(1, 3)), max_size=12) | MINUTES | st.sampled_from(["pack", "next"]),
        max_size=12,
    ),
    looks=st.lists(st.tuples(MINUTES, MINUTES, st.integers(1, 12)), min_size=4, max_size=4),
)
async def test_the_store_is_a_map_from_time_to_the_last_values(
    chunk_candles: None,
    implementation: Callable[[Path], Database],
    steps: list[list[tuple[int, int]] | int | str],
    looks: list[tuple[int, int, int]],
) -> None:
    """A step writes candles, appends the next one, trims candles that are older than a minute, or packs rows."""
    model: dict[int, Candle] = {}
    with TemporaryDirectory() as folder:
        async with implementation(Path(folder) / "store.sqlite") as database:
            await write(database, ETH, candles(7))
            for step in steps:
                if isinstance(step, int):
                    before = step * 60
                    await database.write(lambda store, before=before: store.trim(BTC, before))  # type: ignore[misc]
                    model = {time: row for time, row in model.items() if time >= before}
                elif isinstance(step, str):
                    last = candle(max(model, default=0) // 60 + 1)
                    change = pack if step == "pack" else lambda store, last=last: store.append(BTC, last)
                    if await database.write(change) is not None:
                        model[last.time] = last
                else:
                    rows = [candle(minute, close=version / 2) for minute, version in step]
                    head = max(model, default=None)
                    expected = {row.time: row for row in rows}
                    changed = {time: row for time, row in expected.items() if model.get(time) != row}
                    written = await database.write(write_and_look(rows, model, model | expected, looks))
                    assert written.candles == tuple(changed[time] for time in sorted(changed))
                    assert written.revised == {time for time in changed if head is not None and time <= head}
                    model.update(expected)
                stored = [model[time] for time in sorted(model)]
                for read in (database.read, database.write):
                    await read(lambda store, stored=stored: check(store, stored, looks))  # type: ignore[misc]
            assert await all_of(database, ETH) == candles(7)


def pack(store: CandleStore) -> None:
    """Pack the rows of up to two series."""
    store.pack_rows(2)


class Abandoned(Exception):
    """Raised to roll the transaction back."""


def write_and_look(
    rows: list[Candle], before: dict[int, Candle], after: dict[int, Candle], looks: list[tuple[int, int, int]]
) -> Callable[[CandleStore], Applied]:
    """Writes, and reads in the same transaction; nothing of an earlier rolled-back savepoint remains."""

    def change(store: CandleStore) -> Applied:
        with contextlib.suppress(Abandoned), store.savepoint():
            store.write(BTC, [candle(0, 9.0), *rows, candle(500, 9.0)], Origin("test", 1))
            store.ledger.put(BTC, Ledger("abandoned"))
            raise Abandoned
        check(store, [before[time] for time in sorted(before)], looks)
        assert store.ledger.get(BTC) is None
        applied = store.write(BTC, rows, Origin("test", 1_700_000_000))
        check(store, [after[time] for time in sorted(after)], looks)
        return applied

    return change


def check(store: CandleStore, stored: list[Candle], looks: list[tuple[int, int, int]]) -> None:
    """Every read method finds the stored candles."""
    assert store.first(BTC) == (stored[0].time if stored else None)
    assert store.head(BTC) == (stored[-1].time if stored else None)
    assert store.newest(BTC, 1_000_000) == stored
    for one, other, limit in looks:
        start, end = 60 * min(one, other), 60 * max(one, other)
        within = [row for row in stored if start < row.time < end]
        after = [row for row in stored if row.time > start]
        assert store.newest(BTC, limit, after=start, before=end) == within[-limit:]
        assert store.newest(BTC, limit, before=end) == [row for row in stored if row.time < end][-limit:]
        assert store.oldest(BTC, limit, since=start) == after[:limit]
        assert store.count_after(BTC, start, limit) == min(limit, len(after))
        between = [row for row in stored if start <= row.time < end]
        assert store.between(BTC, start, end) == between
        assert of_store(store.oldest_columns(BTC, limit, Span(start, end))).candles() == between[:limit]


async def test_what_an_older_version_kept_as_rows_is_read_and_packed_when_the_head_moves_on(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    async with make(path) as database:
        await write(database, BTC, candles(1))
    rows = candles(*range(1, 700), *range(800, 1500))
    connection = apsw.Connection(str(path))
    connection.executemany(f"INSERT OR IGNORE INTO candle VALUES (1{', ?' * len(rows[0])})", rows)
    connection.close()

    async with make(path) as database:
        assert await all_of(database, BTC) == rows
        await write(database, BTC, [candle(3, close=1.5), candle(750)])
        rows = sorted({*rows, candle(3, close=1.5), candle(750)} - {candle(3)})
        assert await all_of(database, BTC) == rows
        rows += candles(*range(1500, 1800))
        await write(database, BTC, rows[-300:])
        assert await all_of(database, BTC) == rows
    connection = apsw.Connection(str(path))
    assert int(str(connection.execute("SELECT count(*) FROM candle").get)) <= candle_table.ROW_CANDLES
    connection.close()


def rows_of(store: CandleStore) -> int:
    """The rows of the first series."""
    return len(store.tables.candles(1, 0, 1 << 40, -1, newest=True))


@pytest.mark.parametrize("packs", [True, False], ids=["packing", "the writer is never idle"])
async def test_the_rows_of_a_series_are_few(make: Callable[[Path], Database], tmp_path: Path, packs: bool) -> None:
    most = 0

    def append(store: CandleStore, minute: int) -> int:
        if store.append(BTC, candle(minute)) is None:
            store.write(BTC, candles(minute), Origin("test", 1))
        if packs and store.to_pack:
            store.pack_rows(1)
        store.save()
        return rows_of(store)

    async with make(tmp_path / "store.sqlite") as database:
        await write(database, BTC, candles(0))
        for minute in range(1, 400):
            most = max(most, await database.write(lambda store, minute=minute: append(store, minute)))  # type: ignore[misc]
        assert most == (candle_table.ROW_CANDLES if packs else candle_table.MOST_ROW_CANDLES)
        assert await all_of(database, BTC) == candles(*range(400))


async def test_series_are_packed_at_different_minutes(make: Callable[[Path], Database], tmp_path: Path) -> None:
    packed: dict[SeriesId, list[int]] = {BTC: [], ETH: []}

    def append(store: CandleStore, series: SeriesId, minute: int) -> None:
        assert store.append(series, candle(minute))
        if store.to_pack:
            store.pack_rows(1)
            packed[series].append(minute)

    async with make(tmp_path / "store.sqlite") as database:
        for series in packed:
            await write(database, series, candles(0))
            for minute in range(1, 100):
                await database.write(lambda store, series=series, minute=minute: append(store, series, minute))  # type: ignore[misc]
    assert [len(minutes) for minutes in packed.values()] == [6, 6]
    assert not set(packed[BTC]) & set(packed[ETH])


@pytest.mark.parametrize("others", [0, MAX_DAMAGED_PARTS], ids=["it is on the board", "the board is full"])
async def test_damage_of_the_newest_chunk_ends_before_the_rows_and_costs_no_new_candle(
    make: Callable[[Path], Database], tmp_path: Path, others: int
) -> None:
    """The chunk reaches to times whose candles are rows; it is not packed further."""
    path = tmp_path / "store.sqlite"
    async with make(path) as database:
        await write(database, BTC, candles(*range(300)))
        first_row = (await database.read(lambda store: store.tables.candles(1, 0, 1 << 40, 1, newest=False)))[0][0]
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE candle_chunk SET candles = substr(candles, 2) WHERE chunk_id = (1 << 32) + 1")
    connection.close()

    def append(store: CandleStore, minute: int) -> None:
        if store.append(BTC, candle(minute)) is None:
            store.write(BTC, candles(minute), Origin("test", 1))
        store.pack_rows(1)

    async with make(path) as database:
        for number in range(others):
            database.damage.note(Damage(ETH, Span(60 * number, 60 * number + 60), "of another series"))
        stored, damaged = await database.read(lambda store: (store.newest(BTC, 1000, strict=False), store.damaged(BTC)))
        assert [row.time // 60 for row in stored] == [*range(255), *range(int(str(first_row)) // 60, 300)]
        assert damaged == [Span(255 * 60, int(str(first_row)))]
        # Rows can be read by those who must have every candle.
        start, rows = int(str(first_row)), [row for row in stored if row.time >= int(str(first_row))]
        assert await database.read(lambda store: store.between(BTC, start, 1 << 30)) == rows
        assert await database.read(lambda store: store.oldest(BTC, 100, since=start - 1)) == rows
        for minute in range(300, 300 + 2 * candle_table.MOST_ROW_CANDLES):
            await database.write(lambda store, minute=minute: append(store, minute))  # type: ignore[misc]
        taken = await database.write(lambda store: store.take_out_damaged(BTC, Span(255 * 60, 256 * 60), 1))
        assert [part.span for part in taken] == [Span(255 * 60, int(str(first_row)))]
        assert [(gap.start, gap.end) for gap in await database.read(lambda store: store.gaps(BTC))] == [taken[0].span]
        database.damage.drop(BTC, Kept.CANDLES, taken[0].span)  # as whoever has taken it out does
        await database.write(lambda store: append(store, 300 + 2 * candle_table.MOST_ROW_CANDLES))
        assert await database.read(rows_of) <= candle_table.ROW_CANDLES
        assert (
            len(await all_of(database, BTC))
            == 301 + 2 * candle_table.MOST_ROW_CANDLES - (taken[0].span.end - taken[0].span.start) // 60
        )


async def test_a_damaged_chunk_is_told_and_not_read(make: Callable[[Path], Database], tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with make(path) as database:
        await write(database, BTC, candles(*range(1, 600)))
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE candle_chunk SET candles = substr(candles, 2)")
    connection.close()
    async with make(path) as database:
        with pytest.raises(StoreError, match="damaged"):
            await all_of(database, BTC)


@pytest.mark.parametrize("code", ["1m", "1w", "1M"])
async def test_damage_is_told_on_the_grid_of_the_timeframe_and_covers_what_may_be_missing(
    make: Callable[[Path], Database], tmp_path: Path, code: str
) -> None:
    """Also where a chunk lies behind the first row, as no sound store has it: what is stored as rows is not missing."""
    path, series = tmp_path / "store.sqlite", BTC.with_timeframe(Timeframe.parse(code))
    frame = series.timeframe
    times = [frame.shift(frame.ceil(0), number) for number in range(600)]
    rows = [candle(0)._replace(time=time) for time in times]
    async with make(path) as database:
        await write(database, series, rows)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE candle_chunk SET candles = substr(candles, 2)")
    connection.execute("INSERT INTO candle_chunk SELECT chunk_id + 10, candles FROM candle_chunk ORDER BY 1 LIMIT 1")
    connection.execute("INSERT INTO candle_chunk SELECT max(chunk_id) + 10, x'00' FROM candle_chunk")
    connection.close()
    async with make(path) as database:
        await database.read(lambda store: store.oldest(series, 1000, since=-1, strict=False))
        damaged = await database.read(lambda store: store.damaged(series))
        [first_row, *_] = await database.read(lambda store: [row.time for row in rows_from(store)])
        assert all(frame.is_open(time) for span in damaged for time in span)
        assert damaged[0] == (times[0], first_row)
        assert all(frame.count(*span) > 200 for span in damaged), "chunks behind the rows may hold anything"
        for span in damaged:
            assert await database.write(lambda store, of=span: store.take_out_damaged(series, of, 1))  # type: ignore[misc]
        gaps = await database.read(lambda store: store.gaps(series))
        assert [(gap.start, gap.end) for gap in gaps] == [(times[0], first_row)]
        assert await all_of(database, series) == [row for row in rows if row.time >= first_row]


def rows_from(store: CandleStore) -> list[Candle]:
    return [Candle(*row) for row in store.tables.candles(1, 0, 1 << 40, -1, newest=False)]  # type: ignore[arg-type]


async def test_a_full_disk_is_told_until_a_write_or_a_probe_succeeds(
    make: Callable[[Path], Database], tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    async with make(path) as database:
        await write(database, BTC, candles(1))
        assert database.write_error is None
        await limit(database, 1)
        with pytest.raises(StoreError, match=r"cannot be written: .*full"):
            await write(database, BTC, candles(*range(2, 9000)))
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot be written"):
                await database.probe()
            assert database.write_error is not None
        assert await all_of(database, BTC) == candles(1)

        await limit(database, 1 << 30)
        await database.probe()
        assert database.write_error is None
        await limit(database, 1)
        with pytest.raises(StoreError):
            await write(database, BTC, [candle(minute, close=1 / minute) for minute in range(2, 9000)])
        await limit(database, 1 << 30)
        await write(database, BTC, candles(2))
        assert database.write_error is None
        assert await all_of(database, BTC) == candles(1, 2)

        def broken(store: CandleStore) -> None:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await database.write(broken)
        assert database.write_error is None  # a defect in our code is no evidence of a full disk
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'probe'").get == 0
    connection.close()


async def limit(database: Database, pages: int) -> None:
    """Limit the store to that many pages; when it already has more, it cannot grow at all."""
    assert isinstance(database, SqliteDatabase | InThreadSqliteDatabase)
    writer = database._file._writer
    assert writer is not None
    if isinstance(database, SqliteDatabase):
        await asyncio.wrap_future(database._writer_thread.submit(_limit, writer, pages))
    else:
        _limit(writer, pages)


def _limit(writer: apsw.Connection, pages: int) -> None:
    writer.execute(f"PRAGMA max_page_count = {pages}").get  # noqa: B018  # a property that runs it

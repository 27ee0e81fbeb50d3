"""The files of a store: another program's file is left alone; a store that is removed or replaced while it is open is
noticed before any write is acknowledged; a closed store is read without writing anything."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.storage.backup import backup
from klinesync.storage.candles import CandleStore
from klinesync.storage.lock import StoreLock, StoreLocked, lock_path
from klinesync.storage.records import Origin
from klinesync.storage.repair import repair
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_file import StoreReplaced
from klinesync.storage.sqlite_reader import SqliteReader, open_closed, open_reader
from klinesync.storage.sqlite_schema import APPLICATION_ID, ForeignFile
from klinesync.storage.sqlite_tables import refusal_of_disk

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


def candles(first: int, end: int) -> list[Candle]:
    return [Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in range(first, end)]


def put(first: int, end: int) -> Callable[[CandleStore], object]:
    return lambda store: store.write(BTC, candles(first, end), Origin("test", 1_700_000_000))


async def filled(path: Path, count: int) -> None:
    async with SqliteDatabase(path) as database:
        await database.write(put(0, count))


def times(path: Path) -> list[int]:
    with SqliteReader(path) as store:
        return [candle.time // 60 for candle in store.read(lambda look: look.newest(BTC, 1_000_000))]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


# --- the owner of a file


@pytest.mark.parametrize("wal", [False, True])
@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE orders (id INTEGER)",
        "CREATE TABLE series (id INTEGER); CREATE TABLE candle (id INTEGER)",
        "PRAGMA application_id = 7; PRAGMA user_version = 4",
        "CREATE VIEW prices AS SELECT 1",
        "PRAGMA user_version = 3",
    ],
)
async def test_another_programs_file_is_refused_by_name_and_untouched(
    tmp_path: Path, statements: str, wal: bool
) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
        theirs.executescript(statements)
    theirs.close()
    before = files(tmp_path)
    with pytest.raises(ForeignFile, match=r"theirs\.db is another program's SQLite file"):
        await SqliteDatabase(path).__aenter__()
    with pytest.raises(ForeignFile), SqliteReader(path):
        pass
    after = files(tmp_path)
    assert after["theirs.db"] == before["theirs.db"]
    assert not {name for name in after.keys() - before.keys() if not name.endswith(("-shm", "-wal"))}


async def test_our_tables_beside_those_of_another_program_are_no_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 3)
    mixed = apsw.Connection(str(path))  # with the checksums of pages
    mixed.execute("PRAGMA application_id = 0")
    mixed.execute("CREATE TABLE orders (id INTEGER)")
    mixed.close()
    with pytest.raises(ForeignFile, match="tables orders"):
        await SqliteDatabase(path).__aenter__()


async def test_a_store_from_before_the_application_id_is_one_and_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 3)
    old = apsw.Connection(str(path))  # with the checksums of pages
    assert old.execute("PRAGMA application_id").get == APPLICATION_ID
    old.execute("PRAGMA application_id = 0")
    old.close()
    assert times(path) == [0, 1, 2]
    async with SqliteDatabase(path) as database:
        await database.write(put(3, 4))
    with sqlite3.connect(path) as known:
        assert known.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    known.close()
    assert times(path) == [0, 1, 2, 3]


async def test_a_folder_or_a_text_file_in_place_of_the_store_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no store " * 100)
    for name, words in (("folder", "is a folder"), ("text", "is no SQLite file")):
        with pytest.raises(StoreError, match=words):
            await SqliteDatabase(tmp_path / name).__aenter__()
    assert (tmp_path / "text").read_text() == "no store " * 100
    assert {file.name for file in tmp_path.iterdir()} == {"folder", "text"}


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("text", [b"no store " * 100, bytes(range(256)) * 64])
async def test_a_repair_changes_no_file_of_another_kind(text: bytes, locked: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    if locked:  # as by a start with a wrong name, of an earlier version
        lock_path(path).write_text("{}")
    for _ in range(2):
        with pytest.raises(StoreError, match="nothing of a store was found in"):
            repair(path, 0)
    assert path.read_bytes() == text
    assert {file.name for file in tmp_path.iterdir()} == {"file", *(["file.lock"] if locked else [])}


# --- removed or replaced while it is open


def remove_file(path: Path) -> None:
    path.unlink()


def remove_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def remove_shm(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.mkdir()


def replace_file(path: Path) -> None:
    shutil.copy(path, f"{path}.new")
    Path(f"{path}.new").replace(path)


def replace_wal(path: Path) -> None:
    shutil.copy(f"{path}-wal", f"{path}.new")
    Path(f"{path}.new").replace(f"{path}-wal")


def write_over(path: Path) -> None:
    path.write_bytes(path.with_name("other.sqlite").read_bytes())


def commit_beside(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("DELETE FROM candle WHERE time = 0")
    other.close()


ACCIDENTS = [
    remove_file,
    remove_wal,
    remove_shm,
    remove_folder,
    move_folder,
    replace_file,
    replace_wal,
    write_over,
    commit_beside,
]


@pytest.mark.parametrize("accident", ACCIDENTS)
async def test_a_store_that_is_removed_or_replaced_while_it_is_open_takes_no_write_any_more(
    tmp_path: Path, accident: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "store.sqlite"
    await filled(folder / "other.sqlite", 20_000)
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        assert database.write_error is None
        accident(path)
        for _ in range(3):
            with pytest.raises(StoreReplaced, match="start klinesync again"):
                await database.write(put(10, 20))
            with pytest.raises(StoreReplaced):
                await database.probe()
            with pytest.raises(StoreReplaced):
                await database.check()
        assert isinstance(database.write_error, StoreReplaced)
    assert [record.message for record in caplog.records if "store.replaced" in record.message] == [
        f"event=store.replaced: {database.write_error}"
    ]


def copy_over(path: Path, backup_file: Path) -> None:
    path.write_bytes(backup_file.read_bytes())


def move_in(path: Path, backup_file: Path) -> None:
    path.rename(path.with_name("former.sqlite"))
    shutil.copyfile(backup_file, path)


@pytest.mark.parametrize("put_in_place", [copy_over, move_in])
async def test_a_backup_put_in_place_of_an_open_store_gets_nothing_of_that_stores_log(
    tmp_path: Path, put_in_place: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, kept = tmp_path / "k.sqlite", tmp_path / "backup.sqlite"
    await filled(path, 3000)
    with SqliteReader(path) as reader:
        backup(reader, kept)
    await filled(path, 5000)
    async with SqliteDatabase(path) as database:
        await database.write(put(5000, 8000))
        put_in_place(path, kept)
        with pytest.raises(StoreReplaced):
            await database.write(put(8000, 8001))
    assert path.read_bytes() == kept.read_bytes()
    assert times(path) == list(range(3000))
    aside = tmp_path / "k.sqlite-wal.aside1"
    assert [str(aside) in record.message for record in caplog.records if "store.log_moved" in record.message] == [True]
    async with SqliteDatabase(path) as database:
        await database.write(put(3000, 3010))
    assert times(path) == list(range(3010))
    if put_in_place is move_in:  # the former store is whole again together with its log
        former = tmp_path / "former.sqlite"
        aside.rename(tmp_path / "former.sqlite-wal")
        assert times(former)[:8000] == list(range(8000))


async def test_a_removed_store_is_noticed_though_nobody_writes(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        await database.check()
        path.unlink()
        with pytest.raises(StoreReplaced, match="was removed"):
            await database.check()


async def test_a_reader_that_is_opened_late_does_not_read_another_file(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(tmp_path / "other.sqlite", 5)
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        (tmp_path / "other.sqlite").replace(path)
        with pytest.raises(StoreReplaced):
            await database.read(lambda store: store.head(BTC))


async def test_ordinary_writing_failures_and_checkpoints_are_no_replacement(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        writer = database._file._writer
        assert isinstance(writer, apsw.Connection)
        for round_ in range(60):
            await database.write(put(round_ * 400, round_ * 400 + 400))

            def fails(store: CandleStore, at: int = round_) -> None:
                store.write(BTC, candles(at * 400, at * 400 + 4000), Origin("test", 1))
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await database.write(fails)
            if round_ % 7 == 0:
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if round_ % 5 == 0:
                os.utime(path)
            if round_ % 11 == 0:
                assert len(times(path)) == round_ * 400 + 400
                beside = apsw.Connection(str(path))
                beside.execute("SELECT count(*) FROM candle").fetchall()
                beside.execute("PRAGMA wal_checkpoint").fetchall()
                beside.close()
        assert database.write_error is None


async def test_a_lock_file_that_alone_is_removed_is_taken_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        Path(f"{path}.lock").unlink()
        await database.write(put(10, 20))
        assert "event=store.lock_retaken" in caplog.text
        with pytest.raises(StoreLocked):
            await SqliteDatabase(path).__aenter__()


async def test_a_lock_file_that_another_process_took_ends_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        Path(f"{path}.lock").unlink()
        other = StoreLock(path, "import")
        other.acquire()
        with pytest.raises(StoreReplaced, match="in use by process"):
            await database.write(put(10, 20))
        other.release()


# --- a log that is cut or overwritten while the store is open


def empty_log(path: Path) -> None:
    os.truncate(f"{path}-wal", 0)


def cut_log(path: Path) -> None:
    os.truncate(f"{path}-wal", Path(f"{path}-wal").stat().st_size // 2)


def write_over_log(path: Path) -> None:
    wal = Path(f"{path}-wal")
    wal.write_bytes(b"\xa5" * wal.stat().st_size)


def write_over_end_of_log(path: Path) -> None:
    with Path(f"{path}-wal").open("r+b") as wal:
        wal.seek(-5000, os.SEEK_END)
        wal.write(b"\xa5" * 5000)


def older_log(path: Path) -> None:
    shutil.copyfile(path.with_name("older-wal"), f"{path}-wal")


@pytest.mark.parametrize("damage", [empty_log, cut_log, write_over_log, write_over_end_of_log, older_log])
@pytest.mark.parametrize("noticed_by", ["write", "check"])
async def test_a_log_that_is_cut_or_written_over_takes_no_write_and_never_reaches_the_store(
    tmp_path: Path, damage: Callable[[Path], None], noticed_by: str
) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 3000)
    async with SqliteDatabase(path) as database:
        await database.write(put(3000, 3010))
        shutil.copyfile(f"{path}-wal", tmp_path / "older-wal")
        await database.write(put(3010, 6000))
        damage(path)
        if noticed_by == "check":
            with pytest.raises(StoreReplaced, match=r"write-ahead log .* was cut or written over"):
                await database.check()
        for _ in range(2):
            with pytest.raises(StoreReplaced, match=r"write-ahead log .* was cut or written over"):
                await database.write(put(6000, 6010))
    with SqliteReader(path) as reader:
        assert reader.file_problems() == []
    assert times(path)[:3000] == list(range(3000))
    async with SqliteDatabase(path) as database:
        await database.write(put(6000, 6010))


async def test_a_reader_that_fails_after_the_log_was_cut_says_that_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 3000))
        empty_log(path)
        with pytest.raises(StoreReplaced):
            await database.check()
        with pytest.raises(StoreReplaced, match=r"write-ahead log .* was cut or written over"):
            await database.read(head_of)
        assert not database.damage.parts()


async def test_what_sqlite_puts_aside_needs_no_room_on_another_disk(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 10))
        writer = database._file._writer
        assert isinstance(writer, apsw.Connection)
        assert writer.execute("PRAGMA temp_store").get == 2
        reader = open_reader(path)
        assert reader.execute("PRAGMA temp_store").get == 2
        reader.close()
    closed = open_closed(path)
    assert closed.execute("PRAGMA temp_store").get == 2
    closed.close()


def test_the_disks_refusal_is_found_though_sqlite_then_misses_its_savepoint() -> None:
    try:
        try:
            raise apsw.FullError("database or disk is full")
        except apsw.FullError:
            raise apsw.SQLError("no such savepoint: _apsw-0")  # noqa: B904  # as apsw does
    except apsw.SQLError as error:
        found = refusal_of_disk(error)
    assert isinstance(found, apsw.FullError)
    assert refusal_of_disk(apsw.SQLError("no such table")) is None


def head_of(store: CandleStore) -> object:
    return store.head(BTC)


@pytest.mark.parametrize("noticed_by", ["write", "read"])
async def test_a_shared_memory_file_that_is_cut_ends_the_writing_and_not_the_process(
    tmp_path: Path, noticed_by: str
) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await database.write(put(0, 3000))
        await database.read(lambda store: store.head(BTC))
        os.truncate(f"{path}-shm", 0)
        noticed = database.write(put(3000, 3010)) if noticed_by == "write" else database.read(head_of)
        with pytest.raises(StoreReplaced, match=r"shared-memory file .* was cut"):
            await noticed
        with pytest.raises(StoreReplaced):
            await database.write(put(3000, 3010))
        assert await database.read(lambda store: store.head(BTC)) == 2999 * 60
    assert times(path) == list(range(3000))


async def test_a_store_is_not_written_by_two_processes_through_two_names_of_its_file(tmp_path: Path) -> None:
    path, other = tmp_path / "store.sqlite", tmp_path / "other.sqlite"
    await filled(path, 10)
    other.hardlink_to(path)
    async with SqliteDatabase(path) as database:
        with pytest.raises(StoreLocked, match="hard link"):
            await SqliteDatabase(other).__aenter__()
        await database.write(put(10, 20))
    async with SqliteDatabase(other) as database:
        await database.write(put(20, 30))
    assert times(path) == list(range(30))


# --- a closed store


CRASH = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store_files import put
from klinesync.storage.sqlite import SqliteDatabase
async def crash():
    database = SqliteDatabase(Path({path!r}))
    await database.__aenter__()
    await database.write(put(0, 500))
    await database.write(put(500, 700))
    os._exit(9)
asyncio.run(crash())
"""


def crashed(path: Path) -> None:
    """A store whose writer was killed: all its commits are in the write-ahead log."""
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", CRASH.format(tests=tests, path=str(path))], check=False)


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("shm", [True, False])
async def test_reading_a_closed_store_writes_nothing_whatever_a_crash_left(
    tmp_path: Path, lock: bool, shm: bool
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "store.sqlite"
    crashed(path)
    assert Path(f"{path}-wal").stat().st_size > 0
    if not shm:
        Path(f"{path}-shm").unlink()
    if not lock:
        Path(f"{path}.lock").unlink()
    before = files(folder)
    assert times(path) == list(range(700))
    if lock or not shm:  # a process of another kind may still have it open, as far as the reader can tell
        assert files(folder) == before
    with SqliteReader(path) as store:
        backup(store, tmp_path / "copy.sqlite")
    assert times(tmp_path / "copy.sqlite") == list(range(700))
    async with SqliteDatabase(path) as database:
        await database.write(put(700, 701))
    assert times(path) == list(range(701))


async def test_reading_a_store_that_was_closed_well_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 700)
    before = files(tmp_path)
    assert sorted(before) == ["store.sqlite", "store.sqlite.lock"]
    assert times(path) == list(range(700))
    assert files(tmp_path) == before


async def test_a_reader_of_a_closed_store_sees_what_a_writer_brings_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 10)
    with SqliteReader(path) as store:
        assert store.read(lambda look: look.head(BTC)) == 9 * 60
        await filled(path, 20)
        assert store.read(lambda look: look.head(BTC)) == 19 * 60
        async with SqliteDatabase(path) as database:
            await database.write(put(20, 30))
            assert store.read(lambda look: look.head(BTC)) == 29 * 60
            await database.write(put(30, 40))
            assert store.read(lambda look: look.head(BTC)) == 39 * 60
        assert store.read(lambda look: look.head(BTC)) == 39 * 60


async def test_a_reading_command_keeps_a_writer_out_only_while_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await filled(path, 10)
    with SqliteReader(path) as store:
        store.read(lambda look: look.head(BTC))
        lock = StoreLock(path, "serve")
        lock.acquire()  # no wait: no reader checks it
        lock.release()

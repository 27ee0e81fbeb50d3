"""A write-ahead log that a killed process left is applied to its own store, and to no other store that is put in its
place."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.storage.backup import backup
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from klinesync.storage.wal_origin import ForeignLog, refuse_foreign_log
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


def put(first: int, end: int) -> Callable[[CandleStore], object]:
    rows = [Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in range(first, end)]
    return lambda store: store.write(BTC, rows, Origin("test", 1_700_000_000))


async def written(path: Path, *ends: int) -> None:
    """Candles up to each of these minutes, one transaction each; closed in order."""
    async with SqliteDatabase(path) as database:
        first = 0
        for end in ends:
            await database.write(put(first, end))
            first = end


async def killed(path: Path, *ends: int, into: Path) -> None:
    """Like `written`, but `into` gets the files in the state in which a killed process leaves them."""
    async with SqliteDatabase(path) as database:
        first = 0
        for end in ends:
            await database.write(put(first, end))
            first = end
        copy(path, into)


def copy(path: Path, into: Path) -> None:
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            shutil.copyfile(f"{path}{suffix}", f"{into}{suffix}")


def times(path: Path) -> list[int]:
    with SqliteReader(path) as store:
        return [candle.time // 60 for candle in store.read(lambda look: look.newest(BTC, 1_000_000))]


@pytest.fixture
async def crashed(tmp_path: Path) -> tuple[Path, Path]:
    """A store whose process was killed, with four candles in its log; and an older backup of the store with three
    candles."""
    path, old, crashed = (tmp_path / name for name in ("grown.sqlite", "old.sqlite", "crashed.sqlite"))
    await written(path, 1, 2, 3)
    with SqliteReader(path) as store:
        backup(store, old)
    await written(path, 5, 6, 7)
    await killed(path, 8, 9, into=crashed)
    Path(f"{crashed}.lock").touch()
    assert Path(f"{crashed}-wal").stat().st_size > 0
    return crashed, old


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_backup_in_place_of_a_killed_store_gets_nothing_of_its_log(
    crashed: tuple[Path, Path], tmp_path: Path, in_place: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old = crashed
    if in_place:
        path.write_bytes(old.read_bytes())  # the file keeps its inode
    else:
        shutil.copyfile(old, tmp_path / "new")
        (tmp_path / "new").replace(path)
    before = contents(tmp_path)
    for serves in (True, False):
        with pytest.raises(ForeignLog, match="Move the log away"):
            await SqliteDatabase(path, serves=serves).__aenter__()
    with pytest.raises(ForeignLog):
        times(path)
    assert await asyncio.to_thread(main, ["verify", f"--database-url=sqlite:///{path}"]) == 1
    told = capsys.readouterr().err
    assert f"{path}-wal is not of the store {path}" in told
    assert "Traceback" not in told
    after = contents(tmp_path)
    after[f"{path.name}.lock"] = before[f"{path.name}.lock"]  # names the process that asked
    after.pop(f"{path.name}-shm", None)  # an index, made by a reader
    assert after == before
    Path(f"{path}-wal").unlink()
    await written(path, 3)
    assert times(path) == [0, 1, 2]


async def test_a_store_that_is_ahead_of_the_log_gets_nothing_of_it(crashed: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = crashed
    other = tmp_path / "other.sqlite"
    await written(other, *range(1, 40))
    shutil.copyfile(other, path)
    with pytest.raises(ForeignLog, match="the store ends with 39"):
        await SqliteDatabase(path).__aenter__()


async def test_a_killed_store_that_is_copied_with_its_log_is_whole(crashed: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = crashed
    copy(path, tmp_path / "restored.sqlite")
    assert times(tmp_path / "restored.sqlite") == list(range(9))
    await written(tmp_path / "restored.sqlite", 10)
    assert times(tmp_path / "restored.sqlite") == list(range(10))


async def test_a_backup_from_within_the_log_becomes_what_the_log_ends_with(tmp_path: Path) -> None:
    path, newer, left = (tmp_path / name for name in ("store.sqlite", "newer.sqlite", "left.sqlite"))
    async with SqliteDatabase(path) as database:
        for end in range(1, 8):
            await database.write(put(0, end))
            if end == 4:
                with SqliteReader(path) as store:
                    backup(store, newer)
        copy(path, left)
    shutil.copyfile(newer, left)
    assert times(left) == list(range(7))
    await written(left, 8)
    assert times(left) == list(range(8))


STEPS = st.lists(
    st.sampled_from(["write", "write much", "fail", "probe", "PASSIVE", "RESTART", "TRUNCATE", "reopen", "look"]),
    max_size=15,
)


@settings(max_examples=examples(6), deadline=None)
@given(STEPS, st.lists(st.floats(0, 1), max_size=3))
def test_the_log_of_a_store_is_its_own_whenever_it_is_killed(steps: Sequence[str], cuts: Sequence[float]) -> None:
    """Also when a loss of power leaves less of the log, or bytes of it that were never written."""
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_live(Path(name), steps, cuts))


async def _live(folder: Path, steps: Sequence[str], cuts: Sequence[float]) -> None:
    path, left = folder / "store.sqlite", folder / "left.sqlite"
    database = SqliteDatabase(path)
    await database.__aenter__()
    reader: apsw.Connection | None = None
    count = 0
    try:
        for step in steps:
            writer = database._file._writer
            assert writer is not None
            match step:
                case "write" | "write much":
                    more = 1 if step == "write" else 3000
                    await database.write(put(count, count + more))
                    count += more
                case "fail":
                    with pytest.raises(ZeroDivisionError):
                        await database.write(lambda store: (put(0, 5000)(store), 1 // 0))
                case "probe":
                    await database.probe()
                case "reopen":
                    if reader is not None:
                        reader.close()
                        reader = None
                    await database.__aexit__(None, None, None)
                    database = SqliteDatabase(path)
                    await database.__aenter__()
                case "look":  # a reader of an old state limits how far checkpoints get
                    if reader is not None:
                        reader.close()
                    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM candle").fetchall()
                case checkpoint:
                    with contextlib.suppress(apsw.BusyError):
                        writer.execute(f"PRAGMA wal_checkpoint({checkpoint})").fetchall()
            for suffix in ("", "-wal"):
                Path(f"{left}{suffix}").unlink(missing_ok=True)
            copy(path, left)
            refuse_foreign_log(left)
        log = Path(f"{left}-wal")
        # Pages in the file were synced to the log before: no loss of power loses them.
        only_in_log = set(steps) <= {"write", "fail", "probe"}
        if log.exists() and only_in_log:
            whole = log.read_bytes()
            for cut in cuts:
                log.write_bytes(whole[: int(cut * len(whole))])
                refuse_foreign_log(left)
                log.write_bytes(whole[: int(cut * len(whole))].ljust(len(whole), b"\xa5"))
                refuse_foreign_log(left)
    finally:
        if reader is not None:
            reader.close()
        await database.__aexit__(None, None, None)

"""A backup is the whole store as of one moment, made while a writer goes on; and all of it or nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import apsw
import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import Rejected, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.storage import backup as backup_module
from klinesync.storage.backup import backup
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
PER_WRITE = 500


def candles(first: int) -> list[Candle]:
    return [Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, float(minute)) for minute in range(first, first + PER_WRITE)]


async def write(database: SqliteDatabase, first: int) -> None:
    await database.write(lambda store: store.write(BTC, candles(first), Origin("test", 0)))


async def test_a_copy_made_while_a_writer_goes_on_is_one_whole_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "PAGES_A_STEP", 2)
    path, target = tmp_path / "store.sqlite", tmp_path / "copy.sqlite"
    async with SqliteDatabase(path) as database:
        for number in range(20):
            await write(database, number * PER_WRITE)
        loop = asyncio.get_running_loop()
        written = 20
        steps: list[tuple[int, int]] = []

        def progress(done: int, total: int) -> None:
            """Between two steps of the copy the writer commits."""
            nonlocal written
            assert not steps or done > steps[-1][0], "the copy began anew"
            asyncio.run_coroutine_threadsafe(write(database, written * PER_WRITE), loop).result(30)
            written += 1
            steps.append((done, total))

        def copy() -> None:
            with SqliteReader(path) as store:
                backup(store, target, progress)

        await asyncio.to_thread(copy)
        assert await database.read(lambda store: store.count_after(BTC, -1, 1 << 30)) == written * PER_WRITE
    assert len(steps) > 10
    assert steps[-1][0] == steps[-1][1]
    assert sorted(file.name for file in tmp_path.iterdir() if "copy" in file.name) == ["copy.sqlite"]

    connection = apsw.Connection(str(target))
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()
    async with SqliteDatabase(target) as copied:  # the same schema version, in a store that can be continued
        stored = await copied.read(lambda store: store.newest(BTC, 1 << 30))
        assert stored == [candle for number in range(20) for candle in candles(number * PER_WRITE)]
        await write(copied, 20 * PER_WRITE)


async def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await write(database, 0)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for target in (tmp_path / "file", tmp_path, tmp_path / "dangling", path):
        with SqliteReader(path) as store, pytest.raises(Rejected, match=r"exists already|belongs to the store"):
            backup(store, target)
    late = tmp_path / "late"
    with SqliteReader(path) as store, pytest.raises(Rejected, match="meanwhile"):
        backup(store, late, lambda done, total: late.touch())
    assert (tmp_path / "file").read_text() == "mine"
    assert late.read_bytes() == b""
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]


async def test_a_copy_that_fails_or_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    async with SqliteDatabase(path) as database:
        await write(database, 0)
    before = sorted(tmp_path.iterdir())

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with SqliteReader(path) as store:
        with pytest.raises(KeyboardInterrupt):
            backup(store, tmp_path / "copy", stop)
        with pytest.raises(StoreError, match="cannot be copied to"):
            backup(store, tmp_path / "no folder" / "copy")

        def no_space(handle: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(StoreError, match=r"cannot be copied to .*disk full: make room"):
            backup(store, tmp_path / "copy")
    assert [file for file in sorted(tmp_path.iterdir()) if not file.name.endswith(("-wal", "-shm"))] == before

"""One process writes to a store at a time; a second writer is told which process holds the lock, and readers are not
affected."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest

from klinesync.storage.lock import StoreLock, StoreLocked
from klinesync.storage.sqlite import SqliteDatabase
from support.processes import klinesync, running

IDLE = ("--port=0", "--enable-whitelist-ingest=off")


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    first, second = StoreLock(store, "serve"), StoreLock(store, "import")
    first.acquire()
    with pytest.raises(StoreLocked, match=r"in use by process \d+ \(klinesync serve\), since \d{4}-.*Z; one process"):
        second.acquire()
    first.release()
    second.acquire()
    with pytest.raises(StoreLocked, match="klinesync import"):
        first.acquire()
    second.release()
    second.release()


def test_links_to_one_store_share_its_lock(tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "store.sqlite")
    (tmp_path / "store.sqlite").touch()
    lock = StoreLock(tmp_path / "store.sqlite", "serve")
    lock.acquire()
    with pytest.raises(StoreLocked):
        StoreLock(tmp_path / "link.sqlite", "serve").acquire()
    lock.release()


@pytest.mark.parametrize(
    "left_behind", ["", "{", '{"pid":1,"command":"serve","since":"2026-01-01T00:00:00Z"}', "x" * 999]
)
def test_a_lock_file_that_was_left_behind_is_no_obstacle(left_behind: str, tmp_path: Path) -> None:
    (tmp_path / "store.sqlite.lock").write_text(left_behind)
    one, other = StoreLock(tmp_path / "store.sqlite", "serve"), StoreLock(tmp_path / "store.sqlite", "serve")
    one.acquire()
    with pytest.raises(StoreLocked, match="klinesync serve"):
        other.acquire()
    one.release()


def test_a_holder_that_has_not_written_its_name_is_another_process(tmp_path: Path) -> None:
    one, other = StoreLock(tmp_path / "store.sqlite", "serve"), StoreLock(tmp_path / "store.sqlite", "serve")
    one.acquire()
    one.path.write_text("")
    with pytest.raises(StoreLocked, match="another process"):
        other.acquire()
    one.release()


async def test_a_store_that_cannot_be_opened_is_not_locked(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    store.write_bytes(b"no database at all" * 100)
    with pytest.raises(Exception, match="cannot be opened"):
        await SqliteDatabase(store).__aenter__()
    store.unlink()
    async with SqliteDatabase(store):
        with pytest.raises(StoreLocked):
            await SqliteDatabase(store).__aenter__()


async def test_a_second_service_is_told_who_has_the_store_until_that_is_killed(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    url = f"--database-url=sqlite:///{store}"
    async with running("serve", url, *IDLE, log=log) as service:
        await service.address("serves")
        for command in (("serve", url, *IDLE), ("demo", url, "--no-browser", "--symbols=2")):
            status, _, errors = await asyncio.to_thread(klinesync, *command, cwd=tmp_path)
            assert status == 1
            (sentence,) = [line for line in errors.splitlines() if line.startswith("klinesync: ")]
            assert re.search(rf"in use by process {service.process.pid} \(klinesync serve\), since 20..-", sentence)
            assert len(errors.splitlines()) == 1, errors
        status, out, _ = await asyncio.to_thread(klinesync, "verify", url, cwd=tmp_path)
        assert (status, out) == (0, "file: SQLite's integrity check found no problem\n0 series, 0 candles\n")
        service.process.send_signal(signal.SIGKILL)
        await service.process.wait()
        assert (tmp_path / "store.sqlite.lock").read_text()
        async with running("serve", url, *IDLE, log=log) as second:
            await second.address("serves")

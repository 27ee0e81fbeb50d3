"""Checksums of pages: those of new stores, the pages that fail, and installations without them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import apsw
import pytest

from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.market_data.store_scrub import ScrubLimits, StoreScrub
from klinesync.storage import damage, page_checksums
from klinesync.storage.backup import backup
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, DamageBoard, Kept
from klinesync.storage.records import Origin
from klinesync.storage.repair import repair
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
COUNT = 2000
PAGE_BYTES = 4096


def put(store: CandleStore) -> None:
    candles = [Candle(number * 60, 1.0 + number / 7, 9e9, 0.5, 1.0, number / 3) for number in range(COUNT)]
    store.write(BTC, candles, Origin("test", 1))


async def make(path: Path) -> None:
    async with SqliteDatabase(path) as database:
        await database.write(put)


def bad_pages(path: Path) -> list[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        size = page_checksums.checked_page_size(file)
        assert size == PAGE_BYTES
        bad, count = page_checksums.bad_pages(file, size, 1, 1 << 16)
        assert count == path.stat().st_size // PAGE_BYTES
        assert page_checksums.bad_pages(file, size, count + 1, 10) == ([], 0)
        return bad
    finally:
        os.close(file)


def flip(path: Path, page: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * PAGE_BYTES + 1234] ^= 1
    path.write_bytes(raw)


async def test_a_flipped_bit_of_any_page_is_found_and_no_other_page(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await make(path)
    assert bad_pages(path) == []
    pages = path.stat().st_size // PAGE_BYTES
    wrong = [2, pages // 2, pages]
    for page in wrong:
        flip(path, page)
    assert bad_pages(path) == wrong
    with SqliteReader(path) as store:
        assert f"pages that fail their checksum: {', '.join(map(str, wrong))}" in store.file_problems()


def test_an_apsw_without_extensions_has_no_vfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apsw.sqlite_extra", None)
    monkeypatch.delattr(apsw, "sqlite_extra", raising=False)
    assert not page_checksums._register()


async def test_an_installation_without_the_vfs_makes_stores_without_and_refuses_those_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(tmp_path / "with.sqlite")
    monkeypatch.setattr(page_checksums, "_loaded", False)
    await make(tmp_path / "without.sqlite")
    assert not page_checksums.is_checked(tmp_path / "without.sqlite")
    with pytest.raises(StoreError, match="lacks SQLite's checksum VFS"):
        await SqliteDatabase(tmp_path / "with.sqlite").__aenter__()


async def test_a_store_without_checksums_goes_on_without_and_a_repair_makes_one_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(page_checksums, "_loaded", False)
        await make(path)
    async with SqliteDatabase(path) as database:
        before = await database.read(lambda store: store.between(BTC, 0, COUNT * 60))
        assert await database.check_pages(1, 10) == ([], 0)
    assert len(before) == COUNT
    assert not page_checksums.is_checked(path)
    done = repair(path, 2_000_000_000)
    assert (done.errors, done.lost, done.candles) == ([], {}, COUNT)
    assert done.aside is not None
    assert page_checksums.is_checked(path)
    async with SqliteDatabase(path) as database:
        assert await database.read(lambda store: store.between(BTC, 0, COUNT * 60)) == before


async def test_a_repair_takes_a_damaged_newest_chunk_out_up_to_the_first_row(tmp_path: Path) -> None:
    """The chunk reaches to times whose candles are rows, and to times that are still to come."""
    path = tmp_path / "store.sqlite"
    await make(path)
    connection = apsw.Connection(str(path))
    first_row = connection.execute("SELECT min(time) FROM candle").get
    connection.execute(
        "UPDATE candle_chunk SET candles = substr(candles, 2) WHERE chunk_id = (SELECT max(chunk_id) FROM candle_chunk)"
    )
    connection.close()
    done = repair(path, 2_000_000_000)
    async with SqliteDatabase(path) as database:
        [kept] = await database.read(lambda store: store.quarantine.all())
    assert kept.span.end == first_row
    assert done.lost == {BTC: [kept.span]}


async def test_the_scrub_tells_bad_pages_until_they_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await make(path)
    last = path.stat().st_size // PAGE_BYTES
    async with SqliteDatabase(path) as database:
        scrub = StoreScrub(database, limits=ScrubLimits(pause_s=0.0, page_repeat_s=0.0))
        scrub.bind(())
        await scrub._scrub()
        assert not database.damage
        flip(path, last)
        await scrub._scrub()
        (told,) = [part for part in database.damage.parts() if part.kept is Kept.PAGES]
        assert str(last) in told.what
        assert told.series is None
        flip(path, last)
        await scrub._recheck()
        assert Kept.PAGES not in {part.kept for part in database.damage.parts()}
        assert scrub.progress.readings == 2
        assert scrub.progress.progress_pct is None
        assert scrub.progress.finished_time is not None


@pytest.mark.parametrize(("days", "readings"), [(0.0, 0), (1e-9, 3)])
async def test_the_store_is_read_every_so_many_days(tmp_path: Path, days: float, readings: int) -> None:
    await make(tmp_path / "store.sqlite")
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        scrub = StoreScrub(database, days, limits=ScrubLimits(begins_s=0.0, pause_s=0.0, recheck_s=0.0))
        scrub.bind(())
        task = asyncio.create_task(scrub.run())
        async with asyncio.timeout(60):
            while scrub.progress.readings < readings:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert (scrub.progress.readings > 0) == (readings > 0)


async def test_a_backup_of_a_damaged_store_names_the_store_and_leaves_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "store.sqlite", tmp_path / "copy.sqlite"
    await make(path)
    flip(path, path.stat().st_size // PAGE_BYTES)
    with SqliteReader(path) as store, pytest.raises(StoreError, match=r"store\.sqlite is damaged .*verify --repair"):
        backup(store, target)
    assert not target.exists()


async def test_a_copy_of_a_store_with_checksums_has_them(tmp_path: Path) -> None:
    path, target = tmp_path / "store.sqlite", tmp_path / "copy.sqlite"
    await make(path)
    with SqliteReader(path) as store:
        backup(store, target)
    assert bad_pages(target) == []


def test_damage_that_found_no_room_is_looked_for_again_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "MAX_DAMAGED_PARTS", 4)
    board = DamageBoard()
    for number in range(4):
        board.note(Damage(BTC, Span(number, number + 1), "cut"))
    assert not board.take_overflow()
    board.note(Damage(BTC, Span(9, 10), "cut"))
    assert not board.take_overflow()
    board.drop(BTC, Kept.CANDLES, Span(0, 2))
    assert board.take_overflow()
    assert not board.take_overflow()

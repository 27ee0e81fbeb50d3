"""A store of an earlier release: its content stays as it is, and it can be continued.

`stores/version-7.sqlite.gz`: two series of minutes with their 5m and 1h candles, a hole, a correction, factors and
drawings, and chunks of format 0.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import apsw
import pytest

from klinesync.cli.history_store import stored_derived_step
from klinesync.core.candle import MAX_TIME, NO_FLOW, Candle
from klinesync.core.series_id import SeriesId
from klinesync.market_data.store_scrub import ScrubLimits, StoreScrub
from klinesync.runtime.flags import load_flags
from klinesync.storage.candles import CandleStore
from klinesync.storage.chunks import FORMAT, format_of
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_file import SqliteFile

STORES = Path(__file__).parent.parent / "stores"
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the store of version 7."""
    path = tmp_path / "store.sqlite"
    path.write_bytes(gzip.decompress((STORES / "version-7.sqlite.gz").read_bytes()))
    return path


def rows_of_version_7(path: Path) -> dict[str, list[tuple[float, ...]]]:
    """By series, the six values of each candle, ascending: read without our code."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    names = dict(connection.execute("SELECT series_no, series_id FROM series"))
    candles: dict[str, list[tuple[float, ...]]] = {name: [] for name in names.values()}
    for chunk_id, packed in connection.execute("SELECT chunk_id, candles FROM candle_chunk"):
        count = len(packed) // 48
        columns = struct.unpack(f"<{count}q{5 * count}d", packed)
        candles[names[chunk_id >> 32]] += zip(
            *(columns[at : at + count] for at in range(0, 6 * count, count)), strict=True
        )
    for number, *values in connection.execute("SELECT series_no, time, open, high, low, close, volume FROM candle"):
        candles[names[number]].append(tuple(values))
    connection.close()
    return {name: sorted(rows) for name, rows in candles.items()}


def formats_of(connection: apsw.Connection) -> dict[object, int]:
    """By chunk, its format."""
    formats: dict[object, int] = {}
    for chunk, packed in connection.execute("SELECT chunk_id, candles FROM candle_chunk ORDER BY chunk_id"):
        assert isinstance(packed, bytes)
        formats[chunk] = format_of(packed)
    return formats


def content(store: CandleStore) -> dict[str, list[Candle]]:
    return {str(series): store.between(series, 0, MAX_TIME) for series in store.series()}


def test_a_store_of_version_7_has_the_same_candles_without_order_flow(old: Path) -> None:
    before = rows_of_version_7(old)
    assert sum(map(len, before.values())) > 2000
    file = SqliteFile(old)
    file.open()
    after = file.write(content)
    assert {name: [row.ohlcv for row in rows] for name, rows in after.items()} == before
    assert {row.flow for rows in after.values() for row in rows} == {NO_FLOW}
    old_revisions = file.write(lambda store: store.revisions(BTC))
    assert [revision.was.flow for revision in old_revisions] == [NO_FLOW]
    assert file.write(lambda store: store.ledger.get(BTC)) is not None
    assert file.write(lambda store: len(store.ledger.events(BTC, 0, MAX_TIME))) > 0
    file.close()


def test_candles_of_an_old_chunk_are_corrected_and_enriched_in_the_new_format(old: Path) -> None:
    file = SqliteFile(old)
    file.open()
    rows = file.write(lambda store: store.between(BTC, 0, MAX_TIME))
    whole = [row._replace(quote_volume=2.5, trades=7, taker_buy_volume=0.0, taker_buy_quote_volume=1.0) for row in rows]
    applied = file.write(lambda store: store.write(BTC, whole, Origin("test", 0)))
    assert applied.enriched == applied.rounded == {row.time for row in rows}
    assert not applied.revised
    assert not applied.told
    file.close()
    file = SqliteFile(old)
    file.open()
    assert file.write(lambda store: store.between(BTC, 0, MAX_TIME)) == whole
    file.close()
    connection = apsw.Connection(str(old), flags=apsw.SQLITE_OPEN_READONLY)
    formats = {int(str(chunk)) >> 32: number for chunk, number in formats_of(connection).items()}
    assert formats[1] != 0
    assert 0 in formats.values()  # chunks of other series are read in their old format
    connection.close()


async def test_chunks_of_an_earlier_format_are_packed_anew_beside_the_service(old: Path) -> None:
    """Chunks are repacked a few at a time; a restart in between continues with the remaining series, and the candles
    stay as they were."""
    before = rows_of_version_7(old)
    few = ScrubLimits(repacked_chunks=2)
    async with SqliteDatabase(old) as database:
        remaining = await database.read(lambda store: store.repacking())
        assert len(remaining) == 6
        await StoreScrub(database, limits=few)._repack(remaining[0])
        assert await database.read(lambda store: store.repacking()) == remaining[1:]
    async with SqliteDatabase(old) as database:
        await StoreScrub(database, limits=few)._repack_all()
        assert await database.read(lambda store: store.repacking()) == []
        after = await database.read(content)
    assert {name: [row.ohlcv for row in rows] for name, rows in after.items()} == before
    connection = apsw.Connection(str(old), flags=apsw.SQLITE_OPEN_READONLY)
    assert set(formats_of(connection).values()) == {FORMAT}
    connection.close()


async def test_a_damaged_chunk_of_an_earlier_format_stays_and_the_others_are_packed_anew(old: Path) -> None:
    connection = apsw.Connection(str(old))
    first = connection.execute("SELECT min(chunk_id) FROM candle_chunk").get
    connection.execute("UPDATE candle_chunk SET candles = substr(candles, 1, 100) WHERE chunk_id = ?", (first,))
    connection.close()
    async with SqliteDatabase(old) as database:
        await StoreScrub(database)._repack_all()
        assert [damage.series for damage in database.damage.parts()] == [BTC]
    connection = apsw.Connection(str(old), flags=apsw.SQLITE_OPEN_READONLY)
    assert [chunk for chunk, number in formats_of(connection).items() if number == 0] == [first]
    connection.close()


def test_a_command_computes_the_derived_timeframes_of_a_store_that_it_will_migrate(old: Path) -> None:
    """The flags describe a new store."""
    bytes_before = old.read_bytes()
    step = stored_derived_step(load_flags({"database_url": f"sqlite:///{old}", "derived_timeframes": "15m"}))
    assert [target.code for target in step.targets] == ["5m", "1h"]
    assert old.read_bytes() == bytes_before
    assert list(old.parent.iterdir()) == [old]

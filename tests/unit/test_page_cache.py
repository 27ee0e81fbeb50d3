"""PageCache: pages are served until their series changes, and evicted beyond the size limit."""

import asyncio
from pathlib import Path

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.market_data.read_services import CandleReader, Page, PageCache, PageKey
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")
FIVE = SeriesId.parse("binance:spot:BTC/USDT:5m")


def page(commit: int, size: int = 10) -> Page:
    return Page(b"x" * size, commit, 60, Span(60, 120), None)


def key(series: SeriesId = BTC, limit: int = 1) -> PageKey:
    return PageKey(series, BTC if series == FIVE else series, None, None, limit)


def test_a_page_is_kept_until_its_series_changes() -> None:
    pages = PageCache()
    pages.put(key(), page(commit=5))
    pages.changed(ETH, 6)
    pages.changed(BTC, 5)
    assert pages.get(key()) == page(commit=5)
    pages.changed(BTC, 7)
    assert pages.get(key()) is None
    assert pages.size == 0


def test_a_derived_page_is_kept_until_its_base_changes() -> None:
    pages = PageCache()
    pages.put(key(FIVE), page(commit=5))
    pages.changed(BTC, 6)
    assert pages.get(key(FIVE)) is None


def test_a_page_that_was_read_before_a_change_and_arrives_after_it_is_not_served() -> None:
    pages = PageCache()
    pages.changed(BTC, 6)
    pages.put(key(), page(commit=5))
    assert pages.get(key()) is None


def test_the_least_recently_used_pages_are_evicted() -> None:
    pages = PageCache(max_bytes=100)
    for limit in (1, 2, 3):
        pages.put(key(limit=limit), page(5, size=30))
    assert pages.get(key(limit=1)) is not None
    pages.put(key(limit=4), page(5, size=30))
    assert [limit for limit in (1, 2, 3, 4) if pages.get(key(limit=limit)) is not None] == [1, 3, 4]
    pages.put(key(limit=5), page(5, size=101))
    assert pages.get(key(limit=5)) is None
    assert pages.size <= 100


def test_no_page_is_served_that_is_older_than_an_evicted_change() -> None:
    pages = PageCache(max_changed=1)
    pages.put(key(), page(commit=5))
    pages.changed(BTC, 6)
    pages.changed(ETH, 7)
    assert pages.get(key()) is None


async def test_reads_return_stored_candles_for_any_interleaving_of_reads_and_writes(tmp_path: Path) -> None:
    async def knows(_: SeriesId) -> bool:
        return True

    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        reader = CandleReader(database, knows)

        def write(store: CandleStore, minute: int) -> None:
            applied = store.write(BTC, [Candle(60 * minute, 1.0, 2.0, 0.5, 1.5, float(minute))], Origin("test", 0))
            loop.call_soon_threadsafe(reader.changed, applied)

        async def look() -> None:
            told = sent[0]
            body = msgspec.json.decode(await reader.page(BTC, None, None, 500))
            assert body["server_head_time"] >= told * 60
            assert [row["candle_time"] for row in body["candles"]][-1] == body["server_head_time"]

        loop, sent = asyncio.get_running_loop(), [1]
        await database.write(lambda store: write(store, 1))
        for minute in range(2, 120):
            written = asyncio.create_task(database.write(lambda store, minute=minute: write(store, minute)))  # type: ignore[misc]
            await asyncio.gather(*(look() for _ in range(5)))
            await written
            await asyncio.sleep(0)
            sent[0] = minute
            await look()

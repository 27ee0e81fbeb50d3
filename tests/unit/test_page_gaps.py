"""The gaps of pages: when paging forward or back, each gap is in exactly one page."""

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.gaps import confirm_empty
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.market_data.read_services import CandleReader
from klinesync.pipelines.derived_step import write_closed
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


async def knows(_: SeriesId) -> bool:
    return True


async def page(reader: CandleReader, limit: int, since: int | None = None, before: int | None = None) -> Any:
    return msgspec.json.decode(await reader.page(BTC, since, before, limit))


def holes(pages: list[Any]) -> list[tuple[int, int, str]]:
    return [(gap["start_time"], gap["end_time"], gap["state"]) for one in pages for gap in one["gaps"]]


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    minutes=st.sets(st.integers(1, 40), min_size=1, max_size=25),
    empty=st.sets(st.integers(1, 40), max_size=10),
    limit=st.integers(1, 8),
)
async def test_each_gap_is_in_exactly_one_page(
    tmp_path_factory: Any, minutes: set[int], empty: set[int], limit: int
) -> None:
    path: Path = tmp_path_factory.mktemp("store") / "store.sqlite"

    def write(store: CandleStore) -> None:
        write_closed(
            store, BTC, [Candle(60 * minute, 1.0, 2.0, 0.5, 1.5, 1.0) for minute in sorted(minutes)], Origin("http", 0)
        )
        spans = [Span(60 * one, 60 * one + 60) for one in sorted(empty - minutes)]
        store.change_gaps(BTC, confirm_empty(store.gaps(BTC), spans, "it said so", 0))

    async with SqliteDatabase(path) as database:
        await database.write(write)
        reader = CandleReader(database, knows)
        ledger = [(gap.start, gap.end, gap.state.value) for gap in await database.read(lambda store: store.gaps(BTC))]
        forward: list[Any] = [await page(reader, limit, since=0)]
        while forward[-1]["candles"]:
            forward.append(await page(reader, limit, since=forward[-1]["candles"][-1]["candle_time"]))
        assert holes(forward) == ledger
        back: list[Any] = [await page(reader, limit)]
        while back[0]["candles"]:
            back.insert(0, await page(reader, limit, before=back[0]["candles"][0]["candle_time"]))
        assert holes(back) == ledger


async def test_a_hole_that_is_confirmed_empty_without_a_candle_shows_as_such_in_the_next_read(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        reader = CandleReader(database, knows)
        rows = [Candle(60 * one, 1.0, 2.0, 0.5, 1.5, 1.0) for one in (1, 2, 5)]
        await database.write(lambda store: write_closed(store, BTC, rows, Origin("http", 0)))
        assert holes([await page(reader, 500)]) == [(180, 300, "unknown")]
        span = [Span(180, 300)]
        await database.write(
            lambda store: store.change_gaps(BTC, confirm_empty(store.gaps(BTC), span, "it said so", 0))
        )
        assert holes([await page(reader, 500)]) == [(180, 300, "confirmed_empty")]


async def test_the_stored_span_ends_after_the_newest_candle(tmp_path: Path) -> None:
    async with SqliteDatabase(tmp_path / "store.sqlite") as database:
        reader = CandleReader(database, knows)
        assert await reader.stored(BTC) is None
        rows = [Candle(60 * one, 1.0, 2.0, 0.5, 1.5, 1.0) for one in (1, 2, 5)]
        await database.write(lambda store: write_closed(store, BTC, rows, Origin("http", 0)))
        assert await reader.stored(BTC) == Span(60, 360) == await database.read(lambda store: store.span(BTC))

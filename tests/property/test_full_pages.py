"""Pages with and without order flow have the same candles, gaps and head, and the values that were written."""

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klinesync.core.candle import MAX_TRADES, Candle
from klinesync.core.series_id import SeriesId
from klinesync.market_data.read_services import CandleReader
from klinesync.storage.records import Origin
from klinesync.storage.sqlite import SqliteDatabase
from support.thorough import examples

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
NAMES = ("candle_time", *Candle._fields[1:])
FLOW = st.tuples(
    st.none() | st.floats(0, 1e9),
    st.none() | st.integers(0, MAX_TRADES),
    st.none() | st.floats(0, 1.0),
    st.none() | st.just(0.0),
)


async def knows(_: SeriesId) -> bool:
    return True


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flows=st.dictionaries(st.integers(1, 600), FLOW, min_size=1, max_size=40),
    limit=st.integers(1, 50),
    since=st.none() | st.integers(0, 600),
    before=st.none() | st.integers(0, 600),
)
async def test_full_and_short_pages_are_the_same_candles(
    tmp_path_factory: Any,
    flows: dict[int, tuple[float | None, int | None, float | None, float | None]],
    limit: int,
    since: int | None,
    before: int | None,
) -> None:
    path: Path = tmp_path_factory.mktemp("store") / "store.sqlite"
    candles = [Candle(60 * minute, 1.0, 2.0, 0.5, 1.5, 1.0, *flow) for minute, flow in sorted(flows.items())]
    after = None if since is None else 60 * since
    until = None if before is None or since is not None else 60 * before
    async with SqliteDatabase(path) as database:
        await database.write(lambda store: store.write(BTC, candles, Origin("test", 0)))
        reader = CandleReader(database, knows)
        for _ in range(2):  # the second pages come from the cache
            short = msgspec.json.decode(await reader.page(BTC, after, until, limit))
            full = msgspec.json.decode(await reader.page(BTC, after, until, limit, full=True))
            shown = [Candle(**{"time": row.pop("candle_time")} | row) for row in full["candles"]]
            assert [dict(zip(NAMES, candle.ohlcv, strict=False)) for candle in shown] == short.pop("candles")
            full.pop("candles")
            assert full == short
            if after is None:
                expected = [candle for candle in candles if until is None or candle.time < until][-limit:]
            else:
                expected = [candle for candle in candles if candle.time > after][:limit]
            assert shown == expected

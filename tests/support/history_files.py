"""History files for tests, written by hand in each format."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.exchange import Listing
from klinesync.history.reading import HistoryFiles
from klinesync.market_data.listings import StoredListings
from klinesync.storage.sqlite import SqliteDatabase

EVER = Span(0, 2_000_000_000)
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore\n"
)  # fmt: skip


def minute(time: int) -> Candle:
    """A candle with digits that any rounding would change."""
    price = 100.0 + time // 60 * 7919 % 101 / 7
    return Candle(time, price, price + 1 / 3, price - 0.7, price + 0.1, 0.1 * (time // 60 % 13))


def traded(candle: Candle) -> Candle:
    """The candle with order flow, which has digits that any rounding would change."""
    volume, price = candle.volume, candle.close
    return candle._replace(
        quote_volume=volume * price,
        trades=candle.time // 60 % 997,
        taker_buy_volume=volume / 3,
        taker_buy_quote_volume=volume / 3 * price,
    )


def minutes(start: int, count: int) -> list[Candle]:
    return [minute(start + 60 * at) for at in range(count)]


def write_archive(
    path: Path, candles: Sequence[Candle], *, unit: int = 1000, header: bool = False, checksum: bool = True
) -> Path:
    """A zip in the layout of the exchange's archive, with its checksum beside it. Missing values are empty cells."""
    rows = "".join(
        ",".join(
            (
                str(candle.time * unit),
                *map(repr, candle.ohlcv[1:]),
                str((candle.time + 60) * unit - 1),
                *("" if value is None else repr(value) for value in candle.flow),
                "0\n",
            )
        )
        for candle in candles
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path.stem + ".csv", (HEADER if header else "") + rows)
    if checksum:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(path.name + ".CHECKSUM").write_text(f"{digest}  {path.name}\n")
    return path


def write_freqtrade(path: Path, candles: Sequence[Candle], unit: str = "ms") -> Path:
    """A freqtrade file, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".json", ".gz"):
        text = json.dumps([[candle.time * 1000, *candle.ohlcv[1:]] for candle in candles]).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return path
    date = pa.array([candle.time for candle in candles], pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, "UTC"))
    columns = {
        name: [getattr(candle, name) for candle in candles] for name in ("open", "high", "low", "close", "volume")
    }
    table = pa.table({"date": date, **columns})
    if path.suffix == ".feather":
        pa_feather.write_feather(table, str(path), compression="lz4")
    else:
        pa_parquet.write_table(table, path)
    return path


async def all_of(files: HistoryFiles, series: SeriesId, span: Span = EVER) -> list[Candle]:
    """The rows of a span that files have, in order and each once."""
    found: list[Candle] = []
    async with aclosing(files.pages(series, span)) as pages:
        async for page in pages:
            assert page.candles
            assert not page.empty
            found += page.candles
    assert [candle.time for candle in found] == sorted({candle.time for candle in found})
    return found


LISTED = {
    "spot": [Listing(f"{base}/USDT", f"{base}USDT", base, "USDT", "TRADING") for base in ("BTC", "ETH", "LINK")],
    "futures": [
        *(
            Listing(f"{base}/USDT", f"{base}USDT", base, "USDT", "TRADING", None, "perpetual")
            for base in ("BTC", "LINK")
        ),
        Listing("BTC/USDT:USDT-250328", "BTCUSDT_250328", "BTC", "USDT", "TRADING", None, "delivery"),
    ],
}


async def keep_listings(store: Path, listings: Mapping[str, Sequence[Listing]] = LISTED) -> None:
    """Make a store with the exchange's lists of symbols."""
    async with SqliteDatabase(store, "test") as database:
        for market, listed in listings.items():
            await StoredListings(database, "binance").keep(market, listed)

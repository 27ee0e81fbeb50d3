"""freqtrade's files: names, formats, damage; and the data folder as a source of history."""

from __future__ import annotations

import gzip
import json
import logging
from contextlib import aclosing
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as pa_feather
import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.history.files import sources
from klinesync.history.files.names import freqtrade_path, freqtrade_series
from klinesync.history.files.readers import BadFile, batches
from klinesync.history.files.sources import FreqtradeFiles
from support.candles import ohlcv
from support.history_files import EVER, all_of, minute, minutes, write_freqtrade

START = 1_747_699_200
SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
ENDINGS = (".feather", ".parquet", ".json", ".json.gz")


def read(path: Path) -> tuple[list[Candle], list[str]]:
    """Every valid row, and the reports about invalid ones."""
    broken: list[str] = []
    return [candle for batch in batches(path, broken.append) for candle in batch.candles()], broken


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("BTC_USDT-1m.feather", "binance:spot:BTC/USDT:1m"),
        ("BTC_USDT-1Mo.json.gz", "binance:spot:BTC/USDT:1M"),
        ("1000SHIB_USDT_USDT-5m-futures.parquet", "binance:futures:1000SHIB/USDT:5m"),
        ("BTC_USD_BTC-1h-futures.json", "binance:futures:BTC/USD:BTC:1h"),
        ("BTC_USDT_USDT-250328-1h-futures.feather", "binance:futures:BTC/USDT:USDT-250328:1h"),
        ("A_B_USDT_USDT-1h-futures.feather", None),
        ("BTC_USDT_USDT-8h-funding_rate.feather", None),
        ("BTC_USDT_USDT-1h-mark.feather", None),
        ("BTC_USDT-trades.feather", None),
        ("BTC_USDT-7m.feather", None),
        ("BTC_USDT_USDT-1m.feather", None),
        ("BTC_USDT-1m.h5", None),
    ],
)
def test_the_series_of_a_file_follows_from_its_name(name: str, series: str | None) -> None:
    found = freqtrade_series(name, "binance")
    assert (None if found is None else str(found)) == series
    if found is not None:
        ending = next(ending for ending in ENDINGS if name.endswith(ending))
        assert freqtrade_path(found, ending).name == name
        assert (freqtrade_path(found, ending).parent.name == "futures") == (found.market == "futures")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_brings_every_number_as_it_was_written(ending: str, tmp_path: Path) -> None:
    candles = minutes(START, 3000)
    assert read(write_freqtrade(tmp_path / f"BTC_USDT-1m{ending}", candles)) == (candles, [])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_dates_of_any_precision_are_read(unit: str, tmp_path: Path) -> None:
    candles = minutes(START, 3)
    ending = ".parquet" if unit == "ns" else ".feather"
    assert read(write_freqtrade(tmp_path / f"BTC_USDT-1m{ending}", candles, unit))[0] == candles


def test_json_is_read_in_blocks_with_any_boundaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candles = minutes(START, 40)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.json", candles)
    for size in (7, 64, 100, 1000):
        monkeypatch.setattr("klinesync.history.files.json_files.BLOCK_BYTES", size)
        assert read(path) == (candles, [])


def test_an_invalid_row_of_json_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "BTC_USDT-1m.json"
    good = [START * 1000, 1.0, 2.0, 0.5, 1.5, 3.0]
    path.write_text(json.dumps([good, [START * 1000 + 60_000, None, 2.0, 0.5, 1.5, 3.0], [1, 2], ["x", *good[1:]]]))
    rows, broken = read(path)
    assert rows[0] == ohlcv(START, good[1:])
    assert rows[1].open != rows[1].open
    assert rows[2].time == -1
    assert broken == ["a row has 2 values instead of 6: '[1, 2]'"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_file_is_refused(ending: str, tmp_path: Path) -> None:
    path = write_freqtrade(tmp_path / f"BTC_USDT-1m{ending}", minutes(START, 3000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadFile, match="is refused: it cannot be read"):
        read(path)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 3))
    table = pa_feather.read_table(path)
    for column, said in (("volume", "no column volume"), ("date", "no column with the open time")):
        pa_feather.write_feather(table.drop_columns([column]), str(path))
        with pytest.raises(BadFile, match=said):
            read(path)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_only_candles_of_the_span_are_read(ending: str, tmp_path: Path) -> None:
    spot, futures = minutes(START, 5000), minutes(START + 600, 20)
    for series, candles in ((SPOT, spot), (FUTURES, futures)):
        write_freqtrade(tmp_path / freqtrade_path(series, ending), candles)
    files = FreqtradeFiles(tmp_path)
    assert await all_of(files, SPOT, Span(START + 60, START + 4500 * 60)) == spot[1:4500]
    assert await all_of(files, FUTURES) == futures
    assert await all_of(files, SPOT.with_timeframe(SPOT.timeframe.known["5m"])) == []
    assert await all_of(files, SPOT, Span(START - 600, START)) == []


async def test_candles_that_a_file_lacks_stay_missing(tmp_path: Path) -> None:
    candles = [*minutes(START, 3), *minutes(START + 600, 3)]
    write_freqtrade(tmp_path / "BTC_USDT-1m.feather", candles)
    assert await all_of(FreqtradeFiles(tmp_path), SPOT) == candles


@pytest.mark.parametrize("ending", ENDINGS)
async def test_rows_out_of_order_are_sorted(ending: str, tmp_path: Path) -> None:
    candles = minutes(START, 500)
    write_freqtrade(tmp_path / f"BTC_USDT-1m{ending}", candles[::-1])
    files = FreqtradeFiles(tmp_path)
    assert await all_of(files, SPOT) == candles
    assert await all_of(files, SPOT, Span(START + 600, START + 1200)) == candles[10:20]


async def test_older_rows_in_the_middle_of_a_long_file_are_read_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klinesync.history.files.readers.BATCH_ROWS", 100)
    candles = minutes(START, 500)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.parquet", [*candles[200:], *candles[:200]])
    files = FreqtradeFiles(tmp_path)
    assert await all_of(files, SPOT) == candles[200:]
    assert await all_of(files, SPOT) == candles
    monkeypatch.setattr(sources, "MAX_SORTED_ROWS", 99)
    assert await all_of(files, SPOT) == []
    assert await all_of(files, SPOT, Span(START, START + 99 * 60)) == candles[:99]
    write_freqtrade(path, candles[:400])
    assert await all_of(files, SPOT) == candles[:400], "another file now, and in order"


async def test_each_exchange_has_its_folder(tmp_path: Path) -> None:
    kraken = SeriesId.parse("kraken:spot:BTC/USDT:1m")
    write_freqtrade(tmp_path / "kraken" / "BTC_USDT-1m.feather", minutes(START, 2))
    write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 5))
    files = FreqtradeFiles(tmp_path)
    assert (len(await all_of(files, kraken)), len(await all_of(files, SPOT))) == (2, 5)
    assert await all_of(files, SeriesId.parse("okx:spot:BTC/USDT:1m")) == []


async def test_bad_rows_are_left_out_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    candles = minutes(START, 6)
    bad = [*candles[:2], candles[2]._replace(high=0.0), candles[3]._replace(time=START + 181), *candles[4:]]
    write_freqtrade(tmp_path / "BTC_USDT-1m.feather", bad)
    files = FreqtradeFiles(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert await all_of(files, SPOT) == [*candles[:2], *candles[4:]]
        await all_of(files, SPOT)
    (line,) = [record.message for record in caplog.records]
    assert "2 bad rows of binance:spot:BTC/USDT:1m are left out; row 3: candle at" in line


async def test_an_unreadable_file_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "BTC_USDT-1m.json.gz").write_bytes(gzip.compress(b"[[1,2"))
    with caplog.at_level(logging.WARNING):
        assert await all_of(FreqtradeFiles(tmp_path), SPOT) == []
    assert "is refused: it cannot be read" in caplog.text


async def test_an_unreadable_folder_has_no_files_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = FreqtradeFiles(tmp_path / ("x" * 300))  # the system refuses the name, as it does folders of other users
    with caplog.at_level(logging.WARNING):
        assert await files.end(SPOT, START) is None
        assert not await files.has(SPOT)
        assert await all_of(files, SPOT) == []
    assert "cannot be read" in caplog.text


async def test_a_cancelled_reader_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PAGE_CANDLES", 10)
    write_freqtrade(tmp_path / "BTC_USDT-1m.json", minutes(START, 100))
    async with aclosing(FreqtradeFiles(tmp_path).pages(SPOT, EVER)) as pages:
        assert (await anext(pages)).candles == [minute(START + 60 * at) for at in range(10)]


async def test_recorded_files_are_read_row_by_row(real_data: Path) -> None:
    spot = await all_of(FreqtradeFiles(real_data / "spot"), SPOT)
    table = pa_feather.read_table(real_data / "spot" / "BTC_USDT-1m.feather")
    columns = [table.column(name).to_pylist() for name in ("date", "open", "high", "low", "close", "volume")]
    columns[0] = (table.column("date").cast(pa.int64()).to_numpy() // 10**9).tolist()
    assert spot == list(map(Candle, *columns))
    rows = json.loads(gzip.decompress((real_data / "gaps" / "BTC_USDT-1m.json.gz").read_bytes()))
    holes = await all_of(FreqtradeFiles(real_data / "gaps"), SPOT)
    assert holes == [ohlcv(row[0] // 1000, map(float, row[1:])) for row in rows]
    assert len(await all_of(FreqtradeFiles(real_data / "futures_um"), FUTURES)) == 43_199

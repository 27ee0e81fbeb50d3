"""Exchange archives: names, header and unit, checksums, missing days; from a folder, and over HTTP."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from datetime import UTC, datetime
from pathlib import Path, PurePath

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S
from klinesync.history.files import archive_location
from klinesync.history.files.names import ArchiveFile, archive_name, months
from klinesync.history.files.readers import BadFile, batches, verify_checksum
from klinesync.history.files.sources import ExchangeArchive
from klinesync.sim.server import SimConfig, SimServer
from support.candles import of_row
from support.history_files import all_of, minutes, write_archive
from support.upstream import plain, plain_id

SPOT = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:LINK/USDT:1m")
DAY = datetime(2024, 5, 1, tzinfo=UTC)
START = int(DAY.timestamp())


def day_file(series: SeriesId, day: int) -> ArchiveFile:
    return ArchiveFile(series, plain(series), datetime.fromtimestamp(START + day * DAY_S, UTC).date(), daily=True)


def write_day(folder: Path, day: int, series: SeriesId = SPOT, **how: bool) -> list[Candle]:
    candles = minutes(START + day * DAY_S, 1440)
    write_archive(folder / day_file(series, day).path, candles, **how)
    return candles


def read(path: Path) -> list[Candle]:
    return [candle for batch in batches(path, print) for candle in batch.candles()]


@pytest.mark.parametrize(
    ("path", "symbol", "series", "span"),
    [
        ("data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02-29.zip", "BTC/USDT", "binance:spot:BTC/USDT:1m", DAY_S),
        ("data/futures/um/monthly/klines/LTCUSDT/4h/LTCUSDT-4h-2024-02.zip", "LTC/USDT",
         "binance:futures:LTC/USDT:4h", 29 * DAY_S),
        ("data/futures/um/monthly/klines/BTCUSDT_250328/1m/BTCUSDT_250328-1m-2025-03.zip", "BTC/USDT:USDT-250328",
         "binance:futures:BTC/USDT:USDT-250328:1m", 31 * DAY_S),
        ("data/spot/monthly/klines/ETHBTC/1mo/ETHBTC-1mo-2023-12.zip", "ETH/BTC",
         "binance:spot:ETH/BTC:1M", 31 * DAY_S),
    ],
)  # fmt: skip
def test_the_symbol_and_the_time_of_a_file_follow_from_its_path(path: str, symbol: str, series: str, span: int) -> None:
    name = archive_name(PurePath(path))
    assert name is not None
    assert len(name.markets) == 1
    assert name.symbol_id == PurePath(path).name.partition("-")[0]
    found = name.file(name.markets[0], symbol)
    assert (str(found.series), found.span.end - found.span.start, found.path) == (series, span, path)


def test_a_zip_outside_an_archives_folders_is_of_spot_else_of_futures() -> None:
    name = archive_name(PurePath("BTCUSDT-1m-2024-02-29.zip"))
    assert name is not None
    assert name.markets == ("spot", "futures")


@pytest.mark.parametrize(
    "path",
    [
        "data/spot/daily/klines/BTCUSDT/1s/BTCUSDT-1s-2024-02-29.zip",
        "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02-30.zip",
        "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02-29.zip.CHECKSUM",
        "data/futures/cm/daily/klines/BTCUSD_PERP/1m/BTCUSD_PERP-1m-2024-02-29.zip",
        "data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-02-29.zip",
    ],
)
def test_other_files_are_no_archive_files(path: str) -> None:
    assert archive_name(PurePath(path)) is None


def test_the_months_of_a_span_are_those_that_it_touches() -> None:
    span = Span(START - 60, START + 62 * DAY_S)
    assert [month.path[-11:-4] for month in months(SPOT, "BTCUSDT", span)] == [
        "2024-04",
        "2024-05",
        "2024-06",
        "2024-07",
    ]


@pytest.mark.parametrize("unit", [1000, 1_000_000], ids=["ms", "us"])
@pytest.mark.parametrize("header", [False, True], ids=["bare", "header"])
def test_header_and_unit_of_time_are_detected(unit: int, header: bool, tmp_path: Path) -> None:
    candles = minutes(START, 1440)
    path = write_archive(tmp_path / "BTCUSDT-1m-2024-05-01.zip", candles, unit=unit, header=header)
    assert verify_checksum(path)
    assert read(path) == candles


def test_a_zip_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "BTCUSDT-1m-2024-05-01.zip", minutes(START, 1440))
    whole = path.read_bytes()
    for damaged in (whole[:-7], whole[:500] + b"x" + whole[501:], b""):
        path.write_bytes(damaged)
        with pytest.raises(BadFile, match=r"its SHA-256 is [0-9a-f]{12}…, and its checksum file says"):
            verify_checksum(path)
    path.with_name(path.name + ".CHECKSUM").write_text("nothing of the kind")
    with pytest.raises(BadFile, match="holds no SHA-256"):
        verify_checksum(path)


def test_a_damaged_zip_without_a_checksum_is_refused_too(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "BTCUSDT-1m-2024-05-01.zip", minutes(START, 1440), checksum=False)
    assert not verify_checksum(path)
    whole = path.read_bytes()
    at = len(whole) // 2
    for damaged in (whole[:-7], whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :], b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(BadFile, match="it cannot be read"):
            read(path)


def test_a_zip_with_two_files_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "BTCUSDT-1m-2024-05-01.zip", minutes(START, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", "1,2,3")
    with pytest.raises(BadFile, match="holds 2 files instead of one"):
        read(path)


async def test_monthly_files_are_preferred_where_they_exist(tmp_path: Path) -> None:
    days = [candle for day in (31, 32, 33) for candle in write_day(tmp_path, day)]
    may = minutes(START, 31 * 1440)
    (month,) = months(SPOT, "BTCUSDT", Span(START, START + 1))
    write_archive(tmp_path / month.path, may)
    # The daily file is wrong on purpose: it must not be read, because the month has all candles.
    write_archive(tmp_path / day_file(SPOT, 0).path, [candle._replace(volume=7.0) for candle in may[:1440]])
    archive = ExchangeArchive(tmp_path, plain_id)
    assert await all_of(archive, SPOT) == may + days
    assert archive.quarantined == {}


async def test_a_short_part_of_a_month_is_read_from_daily_files(tmp_path: Path) -> None:
    (month,) = months(SPOT, "BTCUSDT", Span(START, START + 1))
    write_archive(tmp_path / month.path, [candle._replace(volume=7.0) for candle in minutes(START, 31 * 1440)])
    candles = write_day(tmp_path, 4)
    assert (
        await all_of(ExchangeArchive(tmp_path, plain_id), SPOT, Span(START + 4 * DAY_S, START + 5 * DAY_S)) == candles
    )


async def test_missing_daily_files_are_skipped(tmp_path: Path) -> None:
    first, third = write_day(tmp_path, 5), write_day(tmp_path, 7)
    assert await all_of(ExchangeArchive(tmp_path, plain_id), SPOT) == first + third
    assert await all_of(ExchangeArchive(tmp_path / "nowhere", plain_id), SPOT) == []


async def test_a_bad_file_is_quarantined_and_its_daily_files_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (month,) = months(SPOT, "BTCUSDT", Span(START, START + 1))
    path = write_archive(tmp_path / month.path, minutes(START, 31 * 1440))
    path.write_bytes(path.read_bytes()[:-1])
    candles = write_day(tmp_path, 0)
    write_day(tmp_path, 1, checksum=False)
    archive = ExchangeArchive(tmp_path, plain_id)
    with caplog.at_level(logging.WARNING):
        assert await all_of(archive, SPOT, Span(START, START + 31 * DAY_S)) == candles
    assert set(archive.quarantined) == {month.path, day_file(SPOT, 1).path}
    assert "its SHA-256 is" in archive.quarantined[month.path]
    assert f"archive file {month.path} is left out: its SHA-256 is" in caplog.text
    write_archive(tmp_path / month.path, minutes(START, 31 * 1440))
    assert await all_of(archive, SPOT, Span(START, START + 31 * DAY_S)) == candles, "it is left alone for hours"


async def test_an_archive_serves_its_own_exchange_alone(tmp_path: Path) -> None:
    write_day(tmp_path, 0)
    assert await all_of(ExchangeArchive(tmp_path, plain_id), SeriesId.parse("okx:spot:BTC/USDT:1m")) == []


async def test_recorded_archives_are_read_row_by_row(real_data: Path) -> None:
    archive = ExchangeArchive(real_data / "archive", plain_id)
    for series, count in ((SPOT, 3 * 1440), (FUTURES, 40_320)):
        expected: list[Candle] = []
        for path in sorted((real_data / "archive").rglob(f"{series.symbol.replace('/', '')}*.zip")):
            with zipfile.ZipFile(path) as zipped:
                text = zipped.read(zipped.namelist()[0]).decode()
            rows = [row for row in csv.reader(io.StringIO(text)) if row[0].isdigit()]
            expected += map(of_row, rows)
        assert len(expected) == count
        assert await all_of(archive, series) == expected


# --- over HTTP


class Served:
    """Serve a folder over HTTP on the loopback: its address, and the requested paths."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[str] = []
        self.answer: web.Response | None = None

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path[1:])
        path = self._folder / request.path[1:]
        if self.answer is not None:
            return web.Response(status=self.answer.status, headers=self.answer.headers)
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def __aenter__(self) -> Served:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()


async def test_an_archive_over_http_gives_the_same_as_a_folder(tmp_path: Path) -> None:
    (month,) = months(SPOT, "BTCUSDT", Span(START, START + 1))
    write_archive(tmp_path / month.path, minutes(START, 31 * 1440), unit=1_000_000)
    write_day(tmp_path, 31)
    write_day(tmp_path, 33)
    bad = tmp_path / day_file(SPOT, 34).path
    write_day(tmp_path, 34)
    bad.write_bytes(bad.read_bytes()[:-1])
    span = Span(START - 3600, START + 36 * DAY_S)
    async with Served(tmp_path) as served:
        archive = ExchangeArchive(served.url, plain_id)
        found = await all_of(archive, SPOT, span)
        assert found == await all_of(ExchangeArchive(tmp_path, plain_id), SPOT, span)
        assert len(found) == 33 * 1440
        assert list(archive.quarantined) == [day_file(SPOT, 34).path]


async def test_months_without_files_cost_few_requests(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        assert await all_of(ExchangeArchive(served.url, plain_id), SPOT, Span(START, START + 360 * DAY_S)) == []
        assert len(served.asked) <= 4 * 13


async def test_a_failing_server_raises_an_upstream_error(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        served.answer = web.Response(status=503, headers={"Retry-After": "7"})
        with pytest.raises(UpstreamError, match="the archive answered 503") as failure:
            await all_of(ExchangeArchive(served.url, plain_id), SPOT, Span(START, START + DAY_S))
        assert (failure.value.status, failure.value.retry_after_s) == (503, 7.0)
        url = served.url
    with pytest.raises(UpstreamError, match="the archive does not send"):
        await all_of(ExchangeArchive(url, plain_id), SPOT, Span(START, START + DAY_S))


async def test_an_endless_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_location, "MAX_ZIP_BYTES", 1000)
    write_day(tmp_path, 0)
    async with Served(tmp_path) as served:
        archive = ExchangeArchive(served.url, plain_id)
        assert await all_of(archive, SPOT, Span(START, START + DAY_S)) == []
        assert archive.quarantined == {day_file(SPOT, 0).path: "it is larger than 1000 bytes"}


@pytest.mark.parametrize(
    "name", ["binance:spot:BTC/USDT:1m", "binance:spot:ETH/USDT:4h", "binance:futures:BTC/USDT:1m"]
)
async def test_the_simulated_exchanges_archive_has_its_rest_rows(name: str) -> None:
    series = SeriesId.parse(name)
    now = START + 40 * DAY_S + 17  # a Monday morning, in June
    prefix = "fapi/v1" if series.market == "futures" else "api/v3"
    symbol = series.symbol.replace("/", "")
    async with SimServer(SimConfig(symbols=2, start=now)) as exchange, aiohttp.ClientSession() as http:
        archive = ExchangeArchive(exchange.http_url, plain_id)
        found = await all_of(archive, series, Span(START + 38 * DAY_S, now))
        assert archive.quarantined == {}
        assert found[-1].time == series.timeframe.shift(now // DAY_S * DAY_S, -1), "today's file is not there yet"
        assert len(found) == series.timeframe.count(START + 38 * DAY_S, START + 40 * DAY_S)
        params = {
            "symbol": symbol, "interval": str(series.timeframe), "limit": "1000", "startTime": str(found[0].time * 1000)
        }  # fmt: skip
        async with http.get(f"{exchange.http_url}/{prefix}/klines", params=params) as answer:
            rows = [of_row(row) for row in await answer.json()]
        assert found[:1000] == rows[: len(found)]
        for path, status in (
            (day_file(series, 39).path, 200),
            (day_file(series, 40).path, 404),
            (day_file(series, -400).path, 404),
            ("data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-13.zip", 404),
        ):
            async with http.get(f"{exchange.http_url}/{path}") as answer:
                assert answer.status == status, path


async def test_a_month_of_the_simulated_exchange_appears_on_the_first_monday_after_it() -> None:
    hour = SeriesId.parse("binance:futures:BTC/USDT:1h")
    (month,) = months(hour, "BTCUSDT", Span(START, START + 1))
    monday = int(datetime(2024, 6, 3, tzinfo=UTC).timestamp())
    for now, there in ((monday - 10, False), (monday + 10, True)):
        async with SimServer(SimConfig(symbols=2, start=now)) as exchange, aiohttp.ClientSession() as http:
            async with http.get(f"{exchange.http_url}/{month.path}") as answer:
                assert (answer.status == 200) == there
            found = await all_of(ExchangeArchive(exchange.http_url, plain_id), hour, Span(START, START + 31 * DAY_S))
            assert len(found) == 31 * 24, "its days are there before"

"""`klinesync import`, `export` and `backfill`: valid data survives the round trip, invalid data is refused."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest
from pyarrow import feather as pa_feather

from klinesync.cli import main
from klinesync.core.candle import NO_FLOW, Candle
from klinesync.core.dates import date_text
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import DAY_S, Timeframe
from klinesync.history.files import importing
from klinesync.history.files.sources import ExchangeArchive, FreqtradeFiles
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ingest_pipeline import IngestPipeline
from klinesync.pipelines.ledger_step import no_ledger
from klinesync.runtime.clock import SYSTEM_CLOCK
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite import SqliteDatabase
from klinesync.storage.sqlite_reader import SqliteReader
from support.candles import bare, of_minute
from support.history_files import all_of, keep_listings, minutes, traded, write_archive, write_freqtrade
from support.processes import klinesync, running
from support.running_service import running_service
from support.upstream import plain_id

START = 1_714_521_600  # a midnight
SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
DAY = "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-05-01.zip"


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def files(self) -> list[dict[str, object]]:
        files = json.loads(self.out)["files"]
        assert isinstance(files, list)
        return files


Run = Callable[..., Ended]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def lists(store: Path) -> None:
    """The store has seen the exchange's lists of symbols."""
    asyncio.run(keep_listings(store))


@pytest.fixture
def run(store: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the store in this process. The exchange is unreachable."""

    def run(*arguments: object) -> Ended:
        nowhere = ("--binance-spot-rest-url=http://127.0.0.1:9", "--binance-futures-rest-url=http://127.0.0.1:9")
        asks = nowhere if arguments[0] == "import" else ()
        status = main([*map(str, arguments), f"--database-url=sqlite:///{store}", *asks])
        return Ended(status, *capsys.readouterr())

    return run


def stored(store: Path, series: SeriesId = SERIES) -> list[Candle]:
    with SqliteReader(store) as reader:
        return reader.read(lambda look: look.between(series, 0, 2_000_000_000))


def revised(store: Path, series: SeriesId = SERIES) -> int:
    with SqliteReader(store) as reader:
        return len(reader.read(lambda look: look.revisions(series)))


# --- accepted


def test_a_freqtrade_file_gives_exactly_its_rows_and_their_derived_candles(
    tmp_path: Path, store: Path, run: Run
) -> None:
    candles = minutes(START, 3 * 1440)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", candles)
    done = run("import", path)
    assert (done.status, done.err) == (0, "")
    assert "4320 candles of binance:spot:BTC/USDT:1m from 2024-05-01T00:00:00Z to 2024-05-03T23:59:00Z" in done.out
    assert stored(store) == candles
    assert len(stored(store, SERIES.with_timeframe(SERIES.timeframe.known["1d"]))) == 3
    assert run("verify").status == 0


def test_importing_again_changes_nothing(tmp_path: Path, store: Path, run: Run) -> None:
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 100))
    assert run("import", path, "--json").files[0]["new"] == 100
    assert run("import", path, "--json").files[0] | {"candles": 100, "new": 0} == run("import", path, "--json").files[0]
    assert revised(store) == 0


@pytest.mark.usefixtures("lists")
def test_a_tree_of_an_archive_is_imported_in_order_whatever_header_and_unit(
    tmp_path: Path, store: Path, run: Run
) -> None:
    three = [minutes(START + day * DAY_S, 1440) for day in range(3)]
    for day, (candles, how) in enumerate(zip(three, ({}, {"header": True}, {"unit": 1_000_000}), strict=True), 1):
        path = tmp_path / "tree" / DAY.replace("-01.zip", f"-0{day}.zip")
        write_archive(path, candles, **how)  # type: ignore[arg-type]
    futures = "data/futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-05-01.zip"
    write_archive(tmp_path / "tree" / futures, three[0])
    done = run("import", tmp_path / "tree")
    assert (done.status, done.err) == (0, "")
    assert stored(store) == [candle for day in three for candle in day]
    assert stored(store, FUTURES) == three[0]
    assert revised(store) == 0


DATED = SeriesId.parse("binance:futures:BTC/USDT:USDT-250328:1m")
DATED_DAY = "data/futures/um/daily/klines/BTCUSDT_250328/1m/BTCUSDT_250328-1m-2024-05-01.zip"


@pytest.mark.usefixtures("lists")
def test_a_dated_contracts_archive_is_the_dated_contracts_series(tmp_path: Path, store: Path, run: Run) -> None:
    write_archive(tmp_path / "tree" / DATED_DAY, minutes(START, 1440))
    done = run("import", tmp_path / "tree")
    assert (done.status, done.err) == (0, "")
    assert stored(store, DATED) == minutes(START, 1440)
    assert stored(store, FUTURES) == stored(store) == []


def test_an_archive_for_a_store_that_knows_no_symbols_is_refused_with_the_command_that_imports_it(
    tmp_path: Path, store: Path, run: Run
) -> None:
    for day in (1, 2):
        name = DATED_DAY.replace("-01.zip", f"-0{day}.zip")
        write_archive(tmp_path / "tree" / name, minutes(START + (day - 1) * DAY_S, 1440))
    write_freqtrade(tmp_path / "tree" / "ETH_USDT-1m.feather", minutes(START, 3))
    done = run("import", tmp_path / "tree")
    folder = (tmp_path / "tree" / DATED_DAY).parent
    assert done.status == 1
    assert f"{folder} is refused: the symbol BTCUSDT_250328 is unknown: the store has no list" in done.err
    assert "(127.0.0.1:9 cannot be reached: connection refused); import where binance is reachable, or" in done.err
    command = f"klinesync import {folder}/BTCUSDT_250328-1m-*.zip --series binance:futures:BASE/QUOTE:1m"
    assert f"name the series of its 2 files: {command} (BASE/QUOTE is what BTCUSDT_250328 stands for" in done.err
    assert (stored(store, DATED), len(stored(store, SeriesId.parse("binance:spot:ETH/USDT:1m")))) == ([], 3)
    assert run("import", *sorted(folder.glob("BTCUSDT_250328-1m-*.zip")), "--series", DATED).status == 0
    assert stored(store, DATED) == minutes(START, 2 * 1440)


@pytest.mark.usefixtures("lists")
def test_a_symbol_that_neither_list_nor_exchange_names_is_never_split(tmp_path: Path, store: Path, run: Run) -> None:
    path = write_archive(tmp_path / "data/spot/LUNAUSDT-1m-2024-05-01.zip", minutes(START, 1440))
    done = run("import", path)
    assert done.status == 1
    assert f"{path} is refused: the symbol LUNAUSDT is unknown" in done.err
    assert f"klinesync import {path} --series binance:spot:BASE/QUOTE:1m (" in done.err


async def test_symbols_of_archives_are_requested_once_and_stored(tmp_path: Path, store: Path) -> None:
    async with SimServer(SimConfig(symbols=2, contracts=True, start=START + 40 * DAY_S)) as exchange:
        quarterly = next(name for name in exchange.exchange.futures if "_" in name)
        dated = SeriesId.parse(f"binance:futures:BTC/USDT:USDT-{quarterly.rpartition('_')[2]}:1m")
        for name in (quarterly, "BTCUSDT", "NOSUCHUSDT"):
            for day in (1, 2):
                place = tmp_path / f"futures/um/{name}-1m-2024-05-0{day}.zip"
                write_archive(place, minutes(START + (day - 1) * DAY_S, 1440))
        bare = write_archive(tmp_path / f"{quarterly}-1m-2024-05-03.zip", minutes(START + 2 * DAY_S, 1440))
        database = f"--database-url=sqlite:///{store}"
        asked = await asyncio.to_thread(
            klinesync, "import", str(tmp_path / "futures"), str(bare), database, *endpoints(exchange), "--json"
        )
    assert asked[0] == 1
    assert "binance does not list NOSUCHUSDT on futures; name the series of its 2 files: klinesync import" in asked[2]
    assert stored(store, dated) == minutes(START, 3 * 1440)
    assert stored(store, FUTURES) == minutes(START, 2 * 1440)
    again = [str(path) for path in sorted((tmp_path / "futures/um").glob(f"{quarterly}*.zip"))]
    nowhere = "--binance-futures-rest-url=http://127.0.0.1:9"
    status, _, err = await asyncio.to_thread(klinesync, "import", *again, database, nowhere)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("header", "time"),
    [
        ("candle_time,open,high,low,close,volume", str),
        ("Date,Open,High,Low,Close,Volume", lambda time: f"2024-05-01 00:{time // 60 % 60:02}:00"),
        ("timestamp,volume,x,low,high,close,open", lambda time: str(time * 1000)),
        ("date,open,high,low,close,volume", lambda time: f"2024-05-01T02:{time // 60 % 60:02}:00+02:00"),
        (None, lambda time: str(time * 1_000_000)),
    ],
)
def test_csv_is_read_by_its_column_names(
    header: str | None, time: Callable[[int], str], tmp_path: Path, store: Path, run: Run
) -> None:
    candles = minutes(START, 30)
    names = "date,open,high,low,close,volume" if header is None else header.lower()
    lines = [header] if header else []
    for candle in candles:
        values = {name: repr(value) for name, value in candle._asdict().items()} | {"x": "no number"}
        lines.append(",".join([values.get(name, time(candle.time)) for name in names.split(",")]))
    (tmp_path / "any.csv").write_text("\n".join(lines) + "\n")
    done = run("import", tmp_path / "any.csv", "--series", SERIES)
    assert (done.status, stored(store)) == (0, candles), done


def test_bad_rows_are_left_out_counted_and_shown(tmp_path: Path, store: Path, run: Run) -> None:
    good = minutes(START, 10)
    lines = ["candle_time,open,high,low,close,volume"]
    lines += [",".join(map(repr, candle.ohlcv)) for candle in good]
    lines[2:2] = ["nan,1,2,0.5,1.5,3", f"{START + 61},1,2,0.5,1.5,3", f"{START + 120},1,0,0.5,1.5,3", "1,2,3"]
    lines.append(f"{START + 600},1,2,0.5,oops,3")
    lines.append("9999999960,1,2,0.5,1.5,3")
    path = tmp_path / "some.csv"
    path.write_text("\n".join(lines) + "\n")
    done = run("import", path, "--series", SERIES, "--json")
    assert done.status == 0
    (file,) = done.files
    assert (file["rows"], file["candles"], file["quarantined"]) == (16, 10, 6)
    told = "\n".join(map(str, file["first_bad_rows"]))  # type: ignore[call-overload]
    for what in ("no whole second", "not on the 1m grid", "high is 0.0; a price is", "has 3 columns instead of 6"):
        assert what in told
    assert stored(store) == good
    strict = run("import", path, "--series", FUTURES, "--strict")
    assert strict.status == 1
    assert "6 of its 16 rows are bad" in strict.err
    assert stored(store, FUTURES) == []


def test_candles_that_have_not_closed_are_left_out(
    tmp_path: Path, store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    candles = minutes(START, 10)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.json", candles)
    monkeypatch.setattr("time.time", lambda: START + 8 * 60 + 59.9)
    assert run("import", path).status == 0
    assert stored(store) == candles[:8]


# --- refused


@pytest.mark.usefixtures("lists")
def test_a_file_that_fails_its_checksum_is_refused_as_a_whole_and_others_are_not(
    tmp_path: Path, store: Path, run: Run
) -> None:
    wrong = write_archive(tmp_path / DAY, minutes(START, 1440))
    wrong.with_name(wrong.name + ".CHECKSUM").write_text(f"{'0' * 64}  {wrong.name}\n")
    right = write_archive(tmp_path / DAY.replace("-01.zip", "-02.zip"), minutes(START + DAY_S, 1440))
    done = run("import", wrong, right)
    assert done.status == 1
    assert "klinesync: 1 of 2 files refused: " in done.err
    assert "and its checksum file says 000000000000…" in done.err
    assert stored(store) == minutes(START + DAY_S, 1440)


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [DAY, "BTC_USDT-1m.feather", "BTC_USDT-1m.json", "BTC_USDT-1m.json.gz"])
def test_a_truncated_file_is_refused_as_a_whole(name: str, kept: float, tmp_path: Path, store: Path, run: Run) -> None:
    write = write_archive if name == DAY else write_freqtrade
    path = write(tmp_path / name, minutes(START, 20_000))
    if name == DAY:
        path.with_name(path.name + ".CHECKSUM").unlink()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    done = run("import", path)
    assert done.status == 1
    assert f"{path} is refused: it cannot be read" in done.err
    assert stored(store) == []


@pytest.mark.usefixtures("lists")
def test_a_zip_without_a_checksum_is_accepted_with_a_note(tmp_path: Path, store: Path, run: Run) -> None:
    path = write_archive(tmp_path / DAY, minutes(START, 1440), checksum=False)
    done = run("import", path)
    assert (done.status, len(stored(store))) == (0, 1440)
    assert "no .CHECKSUM file lies beside it" in done.out


def test_a_file_of_another_format_is_refused_as_a_whole(tmp_path: Path, store: Path, run: Run) -> None:
    path = write_freqtrade(
        tmp_path / "BTC_USDT-1m.feather", [Candle(START, 1.0, 1.0, 1.0, 1.0, 1.0 + at) for at in range(9)]
    )
    done = run("import", path)
    assert done.status == 1
    assert "8 of its 9 rows are bad; row 2: candle at 2024-05-01 00:00 UTC refused: it is given twice" in done.err
    assert stored(store) == []


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("name", ["any.csv", "BTC_USDT-1m.feather", "BTC_USDT-1m.json.gz", DAY])
def test_rows_in_any_order_are_imported(name: str, tmp_path: Path, store: Path, run: Run) -> None:
    candles = minutes(START, 1440)
    shuffled = random.Random(7).sample(candles, len(candles))
    path = tmp_path / name
    if name == "any.csv":
        path.write_text("".join(",".join(map(repr, candle.ohlcv)) + "\n" for candle in shuffled))
    else:
        (write_archive if name == DAY else write_freqtrade)(path, shuffled)
    done = run("import", path, *(("--series", SERIES) if name == "any.csv" else ()))
    assert (done.status, stored(store)) == (0, candles), done


def test_a_file_too_long_to_be_sorted_here_is_refused_with_that_sentence(
    tmp_path: Path, store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MAX_SORTED_ROWS", 99)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 100)[::-1])
    done = run("import", path)
    assert done.status == 1
    assert "its rows are not in the order of time, and more than the 99 that are sorted here" in done.err
    assert stored(store) == []


def test_a_derived_series_is_refused_and_passed_over_in_a_folder(tmp_path: Path, store: Path, run: Run) -> None:
    folder = tmp_path / "data"
    write_freqtrade(folder / "BTC_USDT-1m.feather", minutes(START, 10))
    derived = write_freqtrade(folder / "BTC_USDT-5m.feather", [Candle(START, 1.0, 1.0, 1.0, 1.0, 1.0)])
    done = run("import", derived)
    assert done.status == 1
    assert "binance:spot:BTC/USDT:5m is derived from 1m: import the 1m candles instead" in done.err
    done = run("import", folder)
    assert (done.status, len(stored(store))) == (0, 10)
    assert "passed over: binance:spot:BTC/USDT:5m is derived from 1m" in done.out


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "no file in this folder has a name that says which series it holds"),
        (lambda path: path.write_text("1,2"), "its name ends in none of .feather"),
        (os.mkfifo, "it is a named pipe; only regular files are read"),
    ],
)
def test_a_missing_path_is_refused(make: Callable[[Path], object], why: str, tmp_path: Path, run: Run) -> None:
    make(tmp_path / "what")
    done = run("import", tmp_path / "what")
    assert done.status == 1
    assert why in done.err


@pytest.mark.parametrize("text", ["", "\n", "open,high\n1,2\n", "candle_time,open,high,low,close,volume\n", "1,2,3\n"])
def test_a_csv_that_is_no_table_of_candles_is_refused(text: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "some.csv").write_text(text)
    done = run("import", tmp_path / "some.csv", "--series", SERIES)
    assert done.status == 1
    assert "some.csv is refused: it" in done.err


# --- exported


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("kind", ["parquet", "feather", "csv"])
def test_an_export_imports_again_unchanged(
    kind: str, tmp_path: Path, store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klinesync.history.files.exporting.WINDOW_CANDLES", 700)
    monkeypatch.setattr("klinesync.history.files.exporting.GROUP_CANDLES", 1000)
    archived = [traded(minute) for minute in minutes(START + 5 * DAY_S, 500)]
    archived[7] = archived[7]._replace(taker_buy_volume=None, trades=None)
    candles = [*minutes(START, 3000), *archived]
    assert run("import", write_freqtrade(tmp_path / "BTC_USDT-1m.feather", candles[:3000])).status == 0
    archive = tmp_path / "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-05-06.zip"
    assert run("import", write_archive(archive, archived)).status == 0
    assert stored(store) == candles
    out = tmp_path / f"out.{kind}"
    done = run("export", SERIES, "--format", kind, "--output", out)
    assert (done.status, done.err) == (0, "")
    assert run("import", out, "--series", FUTURES).status == 0
    assert stored(store, FUTURES) == candles
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_an_export_for_freqtrade_has_its_names_and_columns(kind: str, tmp_path: Path, store: Path, run: Run) -> None:
    candles = minutes(START, 100)
    for name in ("BTC_USDT-1m.json", "futures/BTC_USDT_USDT-1m-futures.json"):
        assert run("import", write_freqtrade(tmp_path / name, candles)).status == 0
    folder = tmp_path / "user_data" / "binance"
    for series in (SERIES, FUTURES):
        assert run("export", series, "--format", kind, "--output", folder, "--freqtrade").status == 0
        assert asyncio.run(all_of(FreqtradeFiles(folder), series)) == candles
    assert (folder / f"futures/BTC_USDT_USDT-1m-futures.{kind}").is_file()
    if kind == "feather":
        schema = pa_feather.read_table(folder / "BTC_USDT-1m.feather").schema
        assert schema.names == ["date", "open", "high", "low", "close", "volume"]
        assert str(schema.field("date").type) == "timestamp[ms, tz=UTC]"


def test_a_part_of_a_derived_series_is_exported(tmp_path: Path, run: Run) -> None:
    assert run("import", write_freqtrade(tmp_path / "BTC_USDT-1m.json", minutes(START, 600))).status == 0
    out = tmp_path / "out.csv"
    hour = SERIES.with_timeframe(SERIES.timeframe.known["1h"])
    part = ("--from", "2024-05-01T01:00", "--to", START + 3 * 3600)
    done = run("export", hour, "--format", "csv", "--output", out, *part, "--json")
    assert json.loads(done.out)["candles"] == 2
    lines = out.read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(START + 3600), str(START + 7200)]


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("binance:spot:ETH/USDT:1m", "--format=csv", "--output=x.csv"), 1, "the store has no candles of it"),
        (("binance:spot:BTC/USDT:45m", "--format=csv", "--output=x.csv"), 1, "add 45m to the flag derived_timeframes"),
        (("binance:spot:ETH/USDT:45m", "--format=csv", "--output=x.csv"), 1, "has no candles of it\n"),
        (("binance:spot:BTC/USDT:4h", "--format=csv", "--output=x.csv"), 1, "a running service computes it from 1m"),
        ((SERIES, "--format=csv", "--output=x.csv", "--from=2030-01-01"), 1, "only from 2024-05-01T00:00:00Z to"),
        ((SERIES, "--format=csv", "--output=no/where/x.csv"), 1, "cannot be written: No such file or directory"),
        ((SERIES, "--format=csv", "--output=x.csv", "--factors"), 1, "its factors have not been computed"),
        ((SERIES, "--format=feather", "--output=x.csv", "--factors", "--freqtrade"), 2, "use either --factors or"),
        ((SERIES, "--format=csv", "--output=x", "--freqtrade"), 2, "freqtrade reads no CSV"),
        ((SERIES, "--format=csv", "--output=x.csv", "--from=7200", "--to=3600"), 2, "is not before --to"),
    ],
)
def test_an_impossible_export_is_refused_with_the_reason(
    arguments: tuple[object, ...], status: int, why: str, tmp_path: Path, run: Run
) -> None:
    assert run("import", write_freqtrade(tmp_path / "BTC_USDT-1m.json", minutes(START, 10))).status == 0
    done = run("export", *arguments)
    assert (done.status, why in done.err) == (status, True), done.err
    assert not (tmp_path / "x.csv").exists()


# --- beside a running service


async def test_a_locked_store_is_imported_into_only_through_its_service(tmp_path: Path, store: Path) -> None:
    candles = minutes(START, 12_000)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", candles)
    url = f"--database-url=sqlite:///{store}"
    async with running_service(store) as service:
        for command in (("import", str(path)), ("backfill", str(SERIES), "--from=0")):
            status, _, err = await asyncio.to_thread(klinesync, *command, url)
            assert status == 1
            assert "in use by process" in err
            assert "--url sends the candles through the running service" in err
        status, out, err = await asyncio.to_thread(klinesync, "import", str(path), "--url", service.url, "--json")
        assert (status, err) == (0, "")
        (file,) = json.loads(out)["files"]
        assert (file["candles"], file["new"]) == (12_000, None)
        assert stored(store) == candles
        status, out, _ = await asyncio.to_thread(
            klinesync, "export", str(SERIES), "--format=csv", f"--output={tmp_path}/out.csv", url
        )
        assert (status, "12000 candles" in out) == (0, True)


async def test_a_refusal_of_the_service_refuses_the_file(tmp_path: Path, store: Path) -> None:
    path = write_freqtrade(tmp_path / "BTC_USDT-4h.feather", [Candle(START, 1.0, 1.0, 1.0, 1.0, 1.0)])
    async with running_service(store) as service:
        status, _, err = await asyncio.to_thread(
            klinesync, "import", str(path), "--url", service.url, "--derived-timeframes=5m"
        )
    assert status == 1
    assert "is derived from 1m" in err


async def test_an_unreachable_service_or_a_missing_token_ends_the_import(tmp_path: Path, store: Path) -> None:
    path = str(write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 10)))
    token = "0123456789abcdef"
    async with running_service(store, api_token=token) as service:
        status, _, err = await asyncio.to_thread(klinesync, "import", path, "--url", service.url)
        assert (status, "answers 401" in err) == (1, True), err
        status, _, err = await asyncio.to_thread(klinesync, "import", path, "--url", service.url, "--api-token", token)
        assert (status, err) == (0, "")
    status, _, err = await asyncio.to_thread(klinesync, "import", path, "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "the service at http://127.0.0.1:9 does not answer" in err


# --- interrupted


async def test_an_interrupted_import_leaves_complete_batches_and_continues_when_run_again(
    tmp_path: Path, store: Path
) -> None:
    candles = minutes(START, 200_000)
    path = write_freqtrade(tmp_path / "BTC_USDT-1m.parquet", candles)
    log = tmp_path / "log"
    arguments = ("import", str(path), f"--database-url=sqlite:///{store}")
    async with running(*arguments, log=log) as process:
        async with asyncio.timeout(60):
            while not (store.exists() and _some(store)):
                assert process.process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        process.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.process.wait(), 60) == 130
    assert "interrupted; stored candles are kept" in log.read_text()
    part = stored(store)
    assert 0 < len(part) < len(candles)
    assert len(part) % importing.BATCH_CANDLES == 0
    assert part == candles[: len(part)]
    status, out, err = await asyncio.to_thread(klinesync, *arguments, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["files"][0]["new"] == len(candles) - len(part)
    assert stored(store) == candles


def _some(store: Path) -> bool:
    try:
        with SqliteReader(store) as reader:
            return reader.read(lambda look: look.head(SERIES)) is not None
    except StoreError:  # it is about to be made
        return False


# --- backfill


def endpoints(exchange: SimServer) -> list[str]:
    return [f"--binance-{market}-rest-url={exchange.http_url}" for market in ("spot", "futures")]


async def test_a_backfill_reads_missing_candles_and_a_second_one_none(tmp_path: Path, store: Path) -> None:
    now = START + 40 * DAY_S + 17
    span = (f"--from={START + 36 * DAY_S}", f"--to={START + 38 * DAY_S}", "--json", f"--database-url=sqlite:///{store}")
    async with SimServer(SimConfig(symbols=2, start=now)) as exchange:
        brought = []
        for _ in range(2):
            status, out, err = await asyncio.to_thread(klinesync, "backfill", str(SERIES), *span, *endpoints(exchange))
            assert (status, err) == (0, ""), err
            facts = json.loads(out)
            assert facts["missing"] == 0
            brought.append(facts["candles"])
        assert brought[1] == 0 < 2 * 1440 <= brought[0]
        archive = await all_of(ExchangeArchive(exchange.http_url, plain_id), SERIES, days(36, 38))
        assert stored(store) == archive
        other = tmp_path / "other.sqlite"
        status, _, err = await asyncio.to_thread(
            klinesync, "backfill", str(SERIES), *span[:2], f"--database-url=sqlite:///{other}", "--source=archive",
            f"--archive-url={exchange.http_url}", *endpoints(exchange),
        )  # fmt: skip
        assert (status, err) == (0, ""), err
        assert stored(other) == archive


async def test_a_backfill_that_begins_before_a_listing_succeeds_when_all_existing_candles_are_stored(
    tmp_path: Path, store: Path
) -> None:
    first_s = 1_748_736_000
    (tmp_path / "recorded").mkdir()
    rows = [[(first_s + 60 * at) * 1000, 1.0, 2.0, 0.5, 1.5, 3.25] for at in range(120)]
    (tmp_path / "recorded" / "BTC_USDT-1m.json").write_text(json.dumps(rows))
    async with SimServer(SimConfig(data=tmp_path / "recorded", start=first_s + 7140)) as exchange:
        begin = first_s + (exchange.now_ms() // 1000 - first_s) // DAY_S * DAY_S
        span = (f"--from={begin - 1000 * 60}", f"--to={begin + 100 * 60}", f"--database-url=sqlite:///{store}")
        ask = ("backfill", str(SERIES), *span, *endpoints(exchange))
        status, out, err = await asyncio.to_thread(klinesync, *ask)
        assert (status, err) == (0, "")
        assert "100 candles read, 0 still missing" in out
        assert f"{SERIES}: binance has no candles before {date_text(begin)}" in out
        assert [candle.time for candle in stored(store)] == list(range(begin, begin + 6000, 60))
        status, out, err = await asyncio.to_thread(klinesync, *ask, "--json")
        facts = json.loads(out)
        assert (status, err, facts["missing"], facts["lost"], facts["nothing_before"]) == (0, "", 0, 0, begin)


def days(first: int, end: int) -> Span:
    return Span(START + first * DAY_S, START + end * DAY_S)


async def test_rows_that_the_command_reads_go_through_a_service(store: Path) -> None:
    now = START + 40 * DAY_S + 17
    async with SimServer(SimConfig(symbols=2, start=now)) as exchange, running_service(store) as service:
        span = (f"--from={START + 39 * DAY_S}", f"--to={START + 39 * DAY_S + 7200 * 60}")
        status, out, err = await asyncio.to_thread(
            klinesync, "backfill", str(SERIES), "--url", service.url, "--source=rest", *span, *endpoints(exchange)
        )
        assert status == 1, "the last three and a half days have not been yet"
        assert "are still missing" in err
        assert "1440 candles read" in out
        assert stored(store) == await all_of(ExchangeArchive(exchange.http_url, plain_id), SERIES, days(39, 40))


async def fill_without_flow(store: Path, exchange: SimServer, first: int, count: int) -> list[Candle]:
    """Store minutes of the simulated exchange without order flow, and return them with it."""
    listing = exchange.exchange.spot["BTCUSDT"]
    whole = [of_minute(row) for at in range(count) if (row := listing.minute(first + 60 * at)) is not None]
    step = DerivedStep(Timeframe.parse("1m"), [Timeframe.parse("5m")])
    async with SqliteDatabase(store, "test") as database, asyncio.TaskGroup() as group:
        pipeline = IngestPipeline(database, step, no_ledger(), lambda _: None, SYSTEM_CLOCK.wall_s)
        running = group.create_task(pipeline.run())
        await pipeline.submit(SERIES, bare(whole[:-1]), "file")
        await pipeline.submit(SERIES, [Candle(*whole[-1].ohlcv)._replace(high=whole[-1].high * 2)], "file")
        running.cancel()
    return whole


@pytest.mark.parametrize("through_service", [False, True])
async def test_a_pass_fills_in_the_order_flow_that_stored_candles_lack(store: Path, through_service: bool) -> None:
    now = START + 40 * DAY_S + 17
    async with SimServer(SimConfig(symbols=2, start=now)) as exchange:
        whole = await fill_without_flow(store, exchange, now // 60 * 60 - 3000 * 60, 2000)
        five = SERIES.with_timeframe(Timeframe.parse("5m"))
        ask = ("backfill", "--enrich", "--json", *endpoints(exchange))

        async def enriched(*more: str) -> dict[str, int]:
            if not through_service:
                url = f"--database-url=sqlite:///{store}"
                status, out, err = await asyncio.to_thread(klinesync, *ask, *more, url)
            else:
                flags = {"enable_market_gap_backfill": "off", "enable_ondemand_ingest": "off"}
                async with running_service(store, **flags) as service:
                    status, out, err = await asyncio.to_thread(
                        klinesync, *ask, *more, str(SERIES), "--url", service.url
                    )
            assert (status, err) == (0, "")
            (facts,) = json.loads(out)
            assert facts.pop("series_id") == str(SERIES)
            return dict(facts)

        # A part first, as an interrupted pass leaves it; the pass resumes where values are null.
        part = await enriched(f"--to={whole[500].time}")
        assert part == {"enriched": 500, "different": 0, "remaining": 0}
        assert [candle.flow for candle in stored(store)[499:501]] == [whole[499].flow, NO_FLOW]
        assert await enriched() == {"enriched": 1499, "different": 1, "remaining": 1}
        assert await enriched() == {"enriched": 0, "different": 1, "remaining": 1}
    assert stored(store)[:-1] == whole[:-1]
    assert stored(store)[-1] == Candle(*whole[-1].ohlcv)._replace(high=whole[-1].high * 2), "other prices: left alone"
    assert revised(store) == 0
    assert all(None not in candle for candle in stored(store, five)[:-1]), "derived candles are summed again"
    status, out, _ = await asyncio.to_thread(klinesync, "verify", f"--database-url=sqlite:///{store}")
    assert status == 0, out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["backfill", "--from=0"], "required: SERIES_ID"),
        (["backfill", str(SERIES)], "required: --from"),
        (["backfill", "--enrich", "--source=rest"], "without --source"),
        (["backfill", "--enrich", "--url=http://127.0.0.1:9"], "takes a series"),
    ],
)
def test_a_backfill_that_says_too_little_or_too_much_is_wrong_use(arguments: list[str], why: str, run: Run) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert why in done.err


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("unit", [1000, 1_000_000])
def test_an_archive_brings_all_nine_values(unit: int, header: bool, tmp_path: Path, store: Path, run: Run) -> None:
    candles = [traded(minute) for minute in minutes(START, 100)]
    candles[1] = candles[1]._replace(trades=None)
    spoilt = [*candles, traded(minutes(START + 6000, 1)[0])._replace(taker_buy_volume=1e9)]
    write_archive(tmp_path / DAY, spoilt, unit=unit, header=header)
    assert "order flow; row 101: taker_buy_volume" in run("import", tmp_path / DAY, "--strict").err
    done = run("import", tmp_path / DAY)
    assert done.status == 0
    assert ", 1 candle without order flow" in done.out
    assert stored(store) == [*candles, minutes(START + 6000, 1)[0]]


@pytest.mark.parametrize(
    ("names", "cells", "flow"),
    [
        ("quote_volume,trades,taker_buy_volume,taker_buy_quote_volume", "15.5,3,0.5,7.75", (15.5, 3, 0.5, 7.75)),
        ("quote_volume,trades,taker_buy_volume,taker_buy_quote_volume", ",,,", NO_FLOW),
        ("quote_volume,trades,taker_buy_volume,taker_buy_quote_volume", " , 3.0 ,NaN,null", (None, 3, None, None)),
        ("quote_volume,trades,taker_buy_volume,taker_buy_quote_volume", "15.5,many,0.5,7.75", NO_FLOW),
        ("Taker Buy Volume,quote-volume", "0.5,15.5", (15.5, None, 0.5, None)),
        ("quote_asset_volume,number_of_trades", "15.5,3", (15.5, 3, None, None)),
        ("other,count", "x,3", (None, 3, None, None)),
        ("other,another", "1,2", NO_FLOW),
    ],
)
def test_order_flow_is_read_by_the_names_of_its_columns_and_empty_cells_are_null(
    names: str, cells: str, flow: tuple[float | None, ...], tmp_path: Path, store: Path, run: Run
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"candle_time,open,high,low,close,volume,{names}\n{START},1,2,0.5,1.5,1,{cells}\n")
    assert run("import", path, "--series", SERIES).status == 0
    assert [candle.flow for candle in stored(store)] == [flow]


@pytest.mark.usefixtures("lists")
def test_recorded_archives_go_in_and_out_with_the_text_of_all_nine_values(
    real_data: Path, tmp_path: Path, store: Path, run: Run
) -> None:
    archive = real_data / "archive"
    assert run("import", archive).status == 0
    for series, name in ((SERIES, "BTCUSDT"), (SeriesId.parse("binance:futures:LINK/USDT:1m"), "LINKUSDT")):
        out = tmp_path / f"{name}.csv"
        assert run("export", series, "--format=csv", "--output", out).status == 0
        exported = [line.split(",") for line in out.read_text().splitlines()[1:]]
        texts = [line for path in sorted(archive.rglob(f"{name}-1m-*.zip")) for line in lines_of(path)]
        assert len(exported) == len(texts)
        for row, text in zip(exported, texts, strict=True):
            values = [*text[1:6], *text[7:11]]
            assert int(row[0]) == int(text[0]) // 1000
            for ours, theirs in zip(row[1:], values, strict=True):
                if len(theirs.replace(".", "").strip("0")) <= SAFE_DIGITS:
                    assert Decimal(ours) == Decimal(theirs)
                assert float(ours) == float(theirs)


# Decimals up to which a double round-trips as text.
SAFE_DIGITS = 15


def lines_of(path: Path) -> list[list[str]]:
    """The cells of an archive's rows."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    return [line.split(",") for line in lines if line[0].isdecimal()]


@pytest.mark.usefixtures("lists")
def test_recorded_files_are_imported_exactly(real_data: Path, store: Path, run: Run) -> None:
    paths = [real_data / "spot" / "BTC_USDT-1m.feather", real_data / "archive"]
    done = run("import", *paths, "--json")
    assert done.status == 0
    assert sum(int(str(file["new"])) for file in done.files) == 130_708 + 3 * 1440 + 40_320
    archive = ExchangeArchive(real_data / "archive", plain_id)
    expected = asyncio.run(all_of(archive, SERIES)) + asyncio.run(all_of(FreqtradeFiles(real_data / "spot"), SERIES))
    assert stored(store) == expected
    link = SeriesId.parse("binance:futures:LINK/USDT:1m")
    assert stored(store, link) == asyncio.run(all_of(archive, link))
    assert run("verify").status == 0

"""`klinesync import` of files from elsewhere: not files at all, ignored files, harmful names, an import that fails or
is interrupted midway."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.core.errors import StoreError
from klinesync.core.series_id import SeriesId
from klinesync.history.files import importing
from klinesync.history.files.importing import ReadOptions, import_files, stoppable
from klinesync.history.files.planning import MAX_PASSED_OVER, Imported, ImportFile
from klinesync.history.files.readers import BadFile, verify_checksum
from klinesync.history.files.sources import FreqtradeFiles
from klinesync.storage.sqlite_reader import SqliteReader
from support.candles import ohlcv
from support.history_files import all_of, keep_listings, minutes, write_archive, write_freqtrade
from support.processes import environment, running

START = 1_714_521_600  # a midnight
SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
ZIP = "BTCUSDT-1m-2024-05-01.zip"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def run(store: Path, *arguments: object) -> int:
    return main(["import", *map(str, arguments), f"--database-url=sqlite:///{store}"])


def stored(store: Path) -> list[Candle]:
    with SqliteReader(store) as reader:
        return reader.read(lambda look: look.between(SERIES, 0, 2_000_000_000))


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_without_a_limit_of_memory_is_refused(
    packing: int, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x.csv", "candle_time,open,high,low,close,volume\n" + "\n" * 10_000_000)
    assert run(store, path, f"--series={SERIES}") == 1
    assert "its file is not packed by deflate, as zip does; pack it anew" in capsys.readouterr().err


# --- regular files only


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # a path must be short


@pytest.mark.parametrize(
    ("make", "what"),
    [(os.mkfifo, "a named pipe"), (listen, "a socket"), (lambda path: path.symlink_to("/dev/zero"), "a device")],
)
def test_files_that_are_not_regular_are_refused_at_once(
    make: Callable[[Path], object], what: str, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "candles.csv"
    make(path)
    assert run(store, path, "--series", SERIES) == 1
    assert f"candles.csv is refused: it is {what}; only regular files are read" in capsys.readouterr().err


def test_a_named_pipe_in_a_folder_or_as_a_checksum_hangs_nobody(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    write_freqtrade(folder / "ETH_USDT-1m.feather", minutes(START, 3))
    os.mkfifo(folder / "BTC_USDT-1m.feather")
    assert run(store, folder) == 0
    assert "passed over: it is a named pipe; only regular files are read" in capsys.readouterr().out
    path = write_archive(tmp_path / ZIP, minutes(START, 3), checksum=False)
    os.mkfifo(tmp_path / f"{ZIP}.CHECKSUM")
    with pytest.raises(BadFile, match="CHECKSUM is refused: it is a named pipe"):
        verify_checksum(path)
    assert asyncio.run(all_of(FreqtradeFiles(folder), SERIES)) == []


# --- ignored files


def test_files_that_are_passed_over_in_a_folder_are_named_with_the_reason(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    write_freqtrade(folder / "BTC_USDT-1m.feather", minutes(START, 3))
    write_archive(folder / ZIP.replace("BTC", "ETH"), minutes(START, 3))
    for name in (
        "BTC_USDT_USDT-1h-mark.feather", "BTC_USDT_USDT-8h-funding_rate.feather", "BTC_USDT-trades.feather",
        "notes.txt", "candles.csv", "deep/BTC-1m.json", ".hidden", "BTC_USDT-5m.feather",
    ):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    asyncio.run(keep_listings(store))
    assert run(store, folder, "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    notes = {Path(file["path"]).name: file["note"] for file in files if file["note"] is not None}
    assert notes == {
        "BTC_USDT_USDT-1h-mark.feather": "passed over: by its name it holds mark prices, not candles",
        "BTC_USDT_USDT-8h-funding_rate.feather": "passed over: by its name it holds funding rates, not candles",
        "BTC_USDT-trades.feather": "passed over: by its name it holds trades, not candles",
        "notes.txt": "passed over: its name ends in none of .feather .parquet .json .json.gz .csv .zip",
        "candles.csv": "passed over: its name does not say which series it holds",
        "BTC-1m.json": "passed over: its name does not say which series it holds",
        "BTC_USDT-5m.feather": "passed over: binance:spot:BTC/USDT:5m is derived from 1m: "
        "import the 1m candles instead",
    }


def test_of_many_passed_over_files_further_ones_are_counted(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_freqtrade(tmp_path / "data" / "BTC_USDT-1m.feather", minutes(START, 3))
    for number in range(MAX_PASSED_OVER + 7):
        (tmp_path / "data" / f"{number}.txt").touch()
    assert run(store, tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert out.count("passed over: its name ends in none of") == MAX_PASSED_OVER
    assert "data: passed over: 7 more files" in out


# --- harmful names and texts


@pytest.mark.parametrize("as_json", [False, True])
def test_names_of_files_and_texts_in_them_forge_no_lines_and_reach_no_terminal(as_json: bool, tmp_path: Path) -> None:
    folder = tmp_path / "da\nta\x1b[2J"
    folder.mkdir()
    write_freqtrade(folder / "\x1b]0;x\x07[red]_USDT-1m.json", minutes(START, 2))
    (folder / "\nklinesync: all is well\u202e.csv").write_text("\x1b[31m,open,high,low,close,volume\n1,1,1,1,1,1\n")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x9b.csv")).write_text("")
    write_freqtrade(folder / "BTC_USDT-1m.json", [minutes(START, 1)[0], ohlcv(START + 60, [float("nan")] * 5)])
    paths = [folder, *sorted(folder.glob("*.csv"))]
    done = subprocess.run(
        [sys.executable, "-m", "klinesync", "import", *paths, f"--database-url=sqlite:///{tmp_path}/store.sqlite",
         *(["--json"] if as_json else [])],
        capture_output=True, env=environment(),
    )  # fmt: skip
    assert done.returncode == 1
    for text in (done.stdout.decode(), done.stderr.decode()):
        assert all(line.isprintable() for line in text.split("\n")), text
        assert not any(line.startswith("klinesync: all") for line in text.split("\n"))
    assert b"da\\nta\\x1b[2J" in (done.stdout.replace(b"\\\\", b"\\") if as_json else done.stdout)


# --- interrupted midway


async def test_an_import_that_fails_midway_reports_the_stored_candles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_CANDLES", 10)
    files = [
        ImportFile(write_freqtrade(tmp_path / f"{name}_USDT-1m.json", minutes(START, 25)), SERIES) for name in "AB"
    ]
    room = iter([10, 10, 5, 10])

    async def put(_series: SeriesId, candles: list[Candle]) -> int:
        if next(room, 0) < len(candles):
            raise StoreError("the disk is full")
        return len(candles)

    async def now(_series: SeriesId) -> int:
        return START + 86_400

    done: list[Imported] = []
    with pytest.raises(StoreError, match="the disk is full"):
        await import_files(files, put, now, ReadOptions(), done)
    assert [(one.stored, one.failed) for one in done] == [(25, None), (10, "the disk is full")]
    assert importing.sentence(done[1]).endswith("B_USDT-1m.json: the disk is full; 10 of its candles are stored")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the size of files can be limited on POSIX alone")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_ends_an_import_and_keeps_stored_candles(as_json: bool, tmp_path: Path, store: Path) -> None:
    one = write_freqtrade(tmp_path / "BTC_USDT-1m.feather", minutes(START, 150_000))
    other = write_freqtrade(tmp_path / "ETH_USDT-1m.feather", minutes(START, 10))

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-m", "klinesync", "import", one, other, f"--database-url=sqlite:///{store}",
         *(["--json"] if as_json else [])],
        capture_output=True, text=True, env=environment(), preexec_fn=full,
    )  # fmt: skip
    count = len(stored(store))
    assert done.returncode == 1, done
    assert 0 < count < 150_000
    last = done.stderr.splitlines()[-1]
    assert last.startswith("klinesync: the store ")
    assert str(store) in last
    assert last.endswith(f"; {count} candles are stored; run it again to continue")
    if as_json:
        facts = json.loads(done.stdout)
        assert (facts["candles"], facts["not_begun"], len(facts["files"])) == (count, 1, 1)
        assert facts["files"][0]["candles"] == count
        assert str(store) in facts["files"][0]["failed"]
    else:
        assert f"; {count} of its candles are stored" in done.stdout
    assert run(store, one) == 0
    assert stored(store) == minutes(START, 150_000)


# --- one signal


async def test_work_in_a_thread_stops_when_it_is_cancelled() -> None:
    begun, over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(stopped: Callable[[], bool]) -> None:
        loop.call_soon_threadsafe(begun.set)
        while not stopped():
            pass
        loop.call_soon_threadsafe(over.set)

    task = asyncio.create_task(stoppable(work), name="work")
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(60):
        await over.wait()


async def test_a_reading_ends_between_two_batches(tmp_path: Path) -> None:
    asked: Iterator[bool] = iter([False, False, True])
    file = ImportFile(write_freqtrade(tmp_path / "BTC_USDT-1m.parquet", minutes(START, 200_000)), SERIES)
    with pytest.raises(importing.Stopped):
        importing.survey(file, START * 2, ReadOptions(), lambda: next(asked))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_one_signal_ends_the_reading_of_a_long_file(number: signal.Signals, tmp_path: Path, store: Path) -> None:
    path = tmp_path / "long.csv"
    line = b"1714521600,1,2,1,2,10.5\n"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(line * 40_000)
    log = tmp_path / "log"
    async with running(
        "import", str(path), f"--series={SERIES}", f"--database-url=sqlite:///{store}", log=log
    ) as process:
        await until(lambda: process.process.returncode is not None or store.exists())
        process.process.send_signal(number)
        assert await asyncio.wait_for(process.process.wait(), 60) == 130
        assert process.process.stdout is not None
        said = (await process.process.stdout.read()).decode()
    assert "0 candles in " in said
    assert log.read_text() == "klinesync: interrupted; stored candles are kept, and running it again continues\n"
    assert stored(store) == []


async def until(there: Callable[[], bool], pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    async with asyncio.timeout(60):
        while not there():
            await pause(0.02)

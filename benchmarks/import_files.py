"""The speed of an import: months of minutes from archive zips and from freqtrade's feather into a durable store.

    python benchmarks/import_files.py --months 6

Runs `klinesync import` in a process of its own, derived candles on (5m 15m 1h 4h 1d), and prints its candles per
second. Measured too: reading and checking the files alone, importing them again (nothing changes), and exports. The
minutes are synthetic; the best of a few rounds is printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.feather as pa_feather
from bench_output import parser_of, write_figures
from bench_table import Figure
from derived import minutes

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.readers import batches, verify_checksum
from klinesync.history.files.rows import Judge

ROUNDS = 3
SERIES = "binance:spot:BTC/USDT:1m"


def write_archive(folder: Path, candles: Sequence[Candle]) -> Path:
    """Monthly zips in the exchange's layout, with their checksums."""
    months: dict[str, list[str]] = {}
    for at, open_, high, low, close, volume in (candle.ohlcv for candle in candles):
        month = datetime.fromtimestamp(at, UTC).strftime("%Y-%m")
        months.setdefault(month, []).append(
            f"{at * 1_000_000},{open_:.8f},{high:.8f},{low:.8f},{close:.8f},{volume:.8f},{(at + 60) * 1_000_000 - 1},"
            f"{volume * close:.8f},493,{volume / 2:.8f},{volume * close / 2:.8f},0\n"
        )
    place = folder / "data/spot/monthly/klines/BTCUSDT/1m"
    place.mkdir(parents=True)
    for month, rows in months.items():
        path = place / f"BTCUSDT-1m-{month}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem + ".csv", "".join(rows))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(path.name + ".CHECKSUM").write_text(f"{digest}  {path.name}\n")
    return place


def write_feather(folder: Path, candles: Sequence[Candle]) -> Path:
    time_s, *values = zip(*(candle.ohlcv for candle in candles), strict=True)
    date = pa.array(time_s, pa.timestamp("s", "UTC")).cast(pa.timestamp("ms", "UTC"))
    names = ("open", "high", "low", "close", "volume")
    path = folder / "BTC_USDT-1m.feather"
    pa_feather.write_feather(pa.table({"date": date, **dict(zip(names, values, strict=True))}), str(path))
    return path


def klinesync(folder: Path, *arguments: str | Path) -> dict[str, object]:
    """The JSON output of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KLINESYNC_")}
    done = subprocess.run(
        [sys.executable, "-m", "klinesync", *arguments, "--json", f"--database-url=sqlite:///{folder}/store.sqlite"],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def imported(path: Path, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Candles per second of first imports, and of second ones."""
    first, again = [], []
    files = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    for _ in range(rounds):
        with TemporaryDirectory(prefix="klinesync-bench-") as name:
            for rates in (first, again):
                answer = klinesync(Path(name), "import", *files, "--series", SERIES)
                assert answer["candles"] == count
                rates.append(count / float(str(answer["seconds"])))
    return first, again


def read(path: Path, count: int, rounds: int) -> list[float]:
    """Candles per second of reading and checking alone."""
    rates = []
    for _ in range(rounds):
        begin = time.perf_counter()
        good = 0
        for file in sorted(path.glob("*.zip")) if path.is_dir() else [path]:
            judge = Judge(Timeframe.parse("1m"), int(time.time()))
            verify_checksum(file)
            for batch in batches(file, judge.broken):
                judge.sound(batch).candles()
            good += judge.good
        rates.append(count / (time.perf_counter() - begin))
        assert good == count
    return rates


def run(months: int, rounds: int) -> list[Figure]:
    candles = minutes(months * 30, 0.0)
    figures = []
    with TemporaryDirectory(prefix="klinesync-bench-") as name:
        folder = Path(name)
        for what, path in (
            ("archive zips", write_archive(folder, candles)),
            ("freqtrade's feather", write_feather(folder, candles)),
        ):
            first, again = imported(path, len(candles), rounds)
            reading = read(path, len(candles), rounds)
            print(f"{f'import of {what}':<58} {max(first):>14,.0f}/s")
            print(f"{'... again, nothing is new':<58} {max(again):>14,.0f}/s")
            print(f"{'... of that, reading and checking the files alone':<58} {max(reading):>14,.0f}/s")
            if path.is_dir():
                figures.append(Figure("import.archive", in_thousands(first), in_thousands(reading)))
        klinesync(folder, "import", folder / "BTC_USDT-1m.feather")
        for kind in ("feather", "parquet", "csv"):
            whole, work, bare = exported(folder, kind, len(candles), rounds)
            print(f"{f'export as {kind}, start of the process included':<58} {max(whole):>14,.0f}/s")
            if work:
                print(f"{'... of that, without the start of the process':<58} {max(work):>14,.0f}/s")
            if kind == "feather":
                figures.append(Figure("export", in_thousands(whole), in_thousands(bare)))
    return figures


def in_thousands(rates: Sequence[float]) -> list[float]:
    return [rate / 1000 for rate in rates]


def exported(folder: Path, kind: str, count: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Candles per second of exports, of exports without the start of the process, which an export of one hour takes,
    and of writing the same columns bare, as feather.
    """
    whole, work, bare = [], [], []
    columns = pa_feather.read_table(str(folder / "BTC_USDT-1m.feather"))
    for _ in range(rounds):
        begin = time.perf_counter()
        klinesync(folder, "export", SERIES, f"--format={kind}", f"--output={folder / 'out'}")
        middle = time.perf_counter()
        span = "--from", "2025-06-01", "--to", "2025-06-01T01:00"
        klinesync(folder, "export", SERIES, f"--format={kind}", f"--output={folder / 'hour'}", *span)
        took_s, start_s = middle - begin, time.perf_counter() - middle
        whole.append(count / took_s)
        if took_s > 1.1 * start_s:  # less would be noise
            work.append(count / (took_s - start_s))
        begin = time.perf_counter()
        pa_feather.write_feather(columns, str(folder / "bare.feather"))
        bare.append(count / (time.perf_counter() - begin))
    return whole, work, bare


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--months", type=int, default=4, help="of 30 days, of one series")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    write_figures(chosen.json, run(chosen.months, chosen.rounds))


if __name__ == "__main__":
    main()

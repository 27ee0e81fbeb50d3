"""The speed of an import: months of minutes from archive zips and from freqtrade's feather into a durable store.

    python benchmarks/import_files.py --months 6

Runs `klinesync import` in a process of its own, derived candles on (5m 15m 1h 4h 1d), and prints its candles per second
beside the limit. Measured too: reading and checking the files alone, importing them again (nothing changes), and an
export. The minutes are synthetic; the best of a few rounds counts.
"""

from __future__ import annotations

import argparse
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
from derived import minutes

from klinesync.core.candle import Candle
from klinesync.core.timeframe import Timeframe
from klinesync.history.files.readers import batches, verify_checksum
from klinesync.history.files.rows import Judge

MUST_PER_S = 250_000
AIM_PER_S = 500_000
EXPORT_MUST_PER_S = 140_000
EXPORT_AIM_PER_S = 500_000
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


def imported(path: Path, count: int) -> tuple[float, float]:
    """Candles per second of a first import, and of a second one."""
    first, again = [], []
    files = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    for _ in range(ROUNDS):
        with TemporaryDirectory(prefix="klinesync-bench-") as name:
            for rates in (first, again):
                answer = klinesync(Path(name), "import", *files, "--series", SERIES)
                assert answer["candles"] == count
                rates.append(count / float(str(answer["seconds"])))
    return max(first), max(again)


def read(path: Path, count: int) -> float:
    """Candles per second of reading and checking alone."""
    rates = []
    for _ in range(ROUNDS):
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
    return max(rates)


def run(months: int) -> None:
    candles = minutes(months * 30, 0.0)
    with TemporaryDirectory(prefix="klinesync-bench-") as name:
        folder = Path(name)
        print(f"{'':<58} {'klinesync':>16} {'limit: must':>14} {'aim':>12}")
        for what, path in (
            ("archive zips", write_archive(folder, candles)),
            ("freqtrade's feather", write_feather(folder, candles)),
        ):
            first, again = imported(path, len(candles))
            print(f"{f'import of {what}':<58} {first:>14,.0f}/s {MUST_PER_S:>12,}/s {AIM_PER_S:>10,}/s")
            print(f"{'... again, nothing is new':<58} {again:>14,.0f}/s")
            print(f"{'... of that, reading and checking the files alone':<58} {read(path, len(candles)):>14,.0f}/s")
        klinesync(folder, "import", folder / "BTC_USDT-1m.feather")
        for kind in ("feather", "parquet", "csv"):
            begin = time.perf_counter()
            klinesync(folder, "export", SERIES, f"--format={kind}", f"--output={folder / 'out'}")
            took_s = time.perf_counter() - begin
            what = f"export as {kind}, start of the process included"
            print(f"{what:<58} {len(candles) / took_s:>14,.0f}/s {EXPORT_MUST_PER_S:>12,}/s {EXPORT_AIM_PER_S:>10,}/s")
            if kind == "feather":
                _print_without_start(folder, len(candles), took_s)


def _print_without_start(folder: Path, count: int, took_s: float) -> None:
    """The rate of an export without the start of its process, which an export of one hour takes."""
    begin = time.perf_counter()
    span = "--from", "2025-06-01", "--to", "2025-06-01T01:00"
    klinesync(folder, "export", SERIES, "--format=feather", f"--output={folder / 'hour'}", *span)
    work_s = took_s - (time.perf_counter() - begin)
    print(f"{'... of that, without the start of the process':<58} {count / max(work_s, 1e-3):>14,.0f}/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=4, help="of 30 days, of one series")
    run(parser.parse_args().months)


if __name__ == "__main__":
    main()

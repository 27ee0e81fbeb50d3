"""Formats of chunks: bytes a candle, and the time to pack and unpack.

    KLINESYNC_REAL_DATA=folder python benchmarks/chunks.py

Recorded archives in runs of `CHUNK_CANDLES`, packed plain, with zstd, and as the store packs them. Each result is
compared with what was packed. Times are the shortest of the rounds, in microseconds a chunk. Then the same candles are
stored, with all that the store keeps beside chunks, and the file's size is divided by the candles.
"""

from __future__ import annotations

import asyncio
import csv
import io
import os
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from bench_output import parser_of, write_figures
from bench_table import Figure
from pcodec import ChunkConfig, standalone
from write_path import open_store

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.storage import chunks

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ARCHIVES = {
    "BTC spot": "archive/data/spot/daily/klines/BTCUSDT/1m",
    "LINK futures": "archive/data/futures/um/monthly/klines/LINKUSDT/1m",
}
MAX_CHUNKS = 60
FIELDS = len(Candle._fields)


def recorded(folder: Path) -> list[Candle]:
    """The candles of the archives in a folder, ascending, with all their values."""
    candles: list[Candle] = []
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
            for row in csv.reader(io.TextIOWrapper(file)):
                if row[0].isdigit():
                    values = map(float, (*row[1:6], row[7]))
                    # Milliseconds until the end of 2024, microseconds since then.
                    time = int(row[0][:10])
                    candles.append(Candle(time, *values, int(row[8]), float(row[9]), float(row[10])))
    return candles


def plain(candles: Sequence[Candle]) -> bytes:
    """Column by column, 8 bytes a value."""
    count = len(candles)
    return b"".join(np.array(column, np.float64).tobytes() for column in zip(*candles, strict=True)) + struct.pack(
        "<H", count
    )


def of_plain(packed: bytes) -> list[Candle]:
    """The candles of `plain`."""
    (count,) = struct.unpack("<H", packed[-2:])
    columns: list[list[float]] = np.frombuffer(packed, np.float64, FIELDS * count).reshape(FIELDS, count).tolist()
    columns[0], columns[7] = list(map(int, columns[0])), list(map(int, columns[7]))
    return chunks.as_candles(zip(*columns, strict=True))


def searched(candles: Sequence[Candle]) -> bytes:
    """pcodec with the transforms that it finds itself."""
    config = ChunkConfig(compression_level=1)
    return b"".join(
        standalone.simple_compress(np.array(column, np.float64), config) for column in zip(*candles, strict=True)
    )


def measure(
    name: str,
    runs: Sequence[Sequence[Candle]],
    pack: Callable[[Sequence[Candle]], bytes],
    unpack: Callable[[bytes], Sequence[Sequence[object]]] | None,
    rounds: int,
) -> None:
    """Print one line of the table."""
    packing: list[float] = []
    unpacking: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        packed = [pack(run) for run in runs]
        packing.append(time.perf_counter() - began)
        if unpack is not None:
            began = time.perf_counter()
            rows = [unpack(each) for each in packed]
            unpacking.append(time.perf_counter() - began)
            for run, found in zip(runs, rows, strict=True):
                width = len(found[0])
                assert [tuple(row) for row in found] == [candle[:width] for candle in run], name
    size = sum(map(len, packed)) / sum(map(len, runs))
    shown = f"{1e6 * min(unpacking) / len(runs):8.0f}" if unpacking else "       -"
    print(f"  {name:36}{size:6.1f} B{1e6 * min(packing) / len(runs):9.0f} us{shown} us")


async def stored(candles: dict[str, list[Candle]]) -> float:
    """Bytes of a closed store a candle, the derived ones included.

    candles: by symbol.
    """
    with TemporaryDirectory(prefix="klinesync-bench-") as folder:
        path = Path(folder) / "store.sqlite"
        rows = 0
        async with open_store(path) as store:
            for symbol, minutes in candles.items():
                series = SeriesId.parse(f"binance:spot:{symbol}/USDT:1m")
                for at in range(0, len(minutes), 20_000):
                    await store.pipeline.submit(series, minutes[at : at + 20_000], "file")
                    rows += len(store.rows())
            await store.caught_up()
        return path.stat().st_size / rows


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    rounds = chosen.rounds
    data = os.environ.get("KLINESYNC_REAL_DATA")
    if data is None:
        print("skipped: KLINESYNC_REAL_DATA names no folder of recorded market data")
        write_figures(chosen.json, ())
        return
    archives = {}
    for name, folder in ARCHIVES.items():
        candles = archives[name.split()[0]] = recorded(Path(data) / folder)
        size = chunks.CHUNK_CANDLES
        runs = [candles[at : at + size] for at in range(0, len(candles) - size, size)][:MAX_CHUNKS]
        print(f"{name}: {len(runs)} chunks; a candle, packing, unpacking")
        measure("plain", runs, plain, of_plain, rounds)
        for level in (1, 3, 9):
            compress = partial(zstd.compress, level=level)
            measure(
                f"zstd {level}",
                runs,
                lambda run, compress=compress: compress(plain(run)),  # type: ignore[misc]
                lambda packed: of_plain(zstd.decompress(packed)),
                rounds,
            )
        measure("pcodec, transforms searched", runs, searched, None, rounds)
        measure(
            "the store's, all values",
            runs,
            lambda run: chunks.pack(run, 7),
            lambda packed: chunks.unpack(packed, 7),
            rounds,
        )
        measure(
            "the store's, six values of a page",
            runs,
            lambda run: chunks.pack(run, 7),
            lambda packed: chunks.unpack_between(packed, 0, 1 << 40, list, 7, full=False),
            rounds,
        )
    size = asyncio.run(stored(archives))
    print(f"in a store, with 5m 15m 1h 4h 1d, ledgers and indexes: {size:.1f} B a candle")
    write_figures(chosen.json, [Figure("disk.candle", [size], [8.0 * FIELDS])])


if __name__ == "__main__":
    main()

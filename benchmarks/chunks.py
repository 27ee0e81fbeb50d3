"""Formats of chunks: bytes a candle, and the time to pack and unpack.

    KLINESYNC_REAL_DATA=folder python benchmarks/chunks.py

Recorded archives in runs of `CHUNK_CANDLES`, packed plain, with zstd, and as the store packs them. Each result is
compared with what was packed. Times are the shortest of the rounds, in microseconds a chunk.
"""

from __future__ import annotations

import argparse
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

import numpy as np
from pcodec import ChunkConfig, standalone

from klinesync.core.candle import Candle
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
                    candles.append(Candle(int(row[0]) // 1000, *values, int(row[8]), float(row[9]), float(row[10])))
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    data = os.environ.get("KLINESYNC_REAL_DATA")
    if data is None:
        print("skipped: KLINESYNC_REAL_DATA names no folder of recorded market data")
        return
    for name, folder in ARCHIVES.items():
        candles = recorded(Path(data) / folder)
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


if __name__ == "__main__":
    main()

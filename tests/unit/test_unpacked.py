"""The size of a table is known before it is unpacked, for any metadata."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.ipc as pa_ipc
import pyarrow.parquet as pa_parquet
import pytest

from klinesync.history.files import unpacked
from klinesync.history.files.readers import BadFile, batches
from klinesync.history.files.unpacked import check_feather

ROWS = 200_000
NAMES = ["candle_time", "open", "high", "low", "close", "volume"]


def table(rows: int = ROWS) -> pa.Table:
    """Minutes at one price, which compress best."""
    price = pa.array(np.full(rows, 1.0))
    return pa.table([pa.array(np.arange(rows) * 60), *[price] * 5], names=NAMES)


def feather(path: Path, compression: Literal["lz4", "zstd"] | None, rows_a_batch: int = ROWS) -> None:
    with pa_ipc.new_file(str(path), table().schema, options=pa_ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table(), rows_a_batch)


def parquet(path: Path, rows_a_group: int = ROWS) -> None:
    pa_parquet.write_table(table(), path, row_group_size=rows_a_group, use_dictionary=False, compression="zstd")


def read(path: Path) -> int:
    return sum(len(batch) for batch in batches(path, lambda why: None))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "plain.feather": lambda path, rows: feather(path, None, rows),
    "lz4.feather": lambda path, rows: feather(path, "lz4", rows),
    "zstd.feather": lambda path, rows: feather(path, "zstd", rows),
    "zstd.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_with_too_large_pieces_is_refused_before_unpacking(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "MAX_UNPACKED_BYTES", 1_000_000)
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    before = pa.total_allocated_bytes()
    with pytest.raises(BadFile, match=r"would take \d{7} bytes of memory, and at most 1000000 are taken"):
        read(path)
    assert pa.total_allocated_bytes() - before < 1_000_000
    WRITERS[name](path, 10_000)
    assert read(path) == ROWS


def test_a_dictionary_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.feather"
    words = pa.array([f"{number:0>100}" for number in range(5000)]).dictionary_encode()
    pa_feather.write_feather(pa.table({"word": words}), path, compression="zstd")
    check_feather(path)
    monkeypatch.setattr(unpacked, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(ValueError, match="its dictionaries would take 5"):
        check_feather(path)


def test_damaged_metadata_raises_its_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.feather"
    whole = io.BytesIO()
    with pa_ipc.new_file(whole, table(3).schema, options=pa_ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table(3), 2)
    text = whole.getvalue()
    dice = random.Random(7)
    for _ in range(3000):
        spoiled = bytearray(text[: dice.randrange(len(text))] if dice.random() < 0.1 else text)
        for _ in range(dice.randint(1, 4)):
            if spoiled:
                spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
        path.write_bytes(spoiled)
        with contextlib.suppress(ValueError, OSError):
            check_feather(path)

"""`klinesync export --factors`: each row has the factor values at the close of its candle, equal to the slices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from klinesync.cli import main
from klinesync.core.candle import Candle
from klinesync.history.files import exporting
from support.processes import klinesync
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
# Columns of values, not of factors.
VALUES = {"candle_time", *Candle._fields}
FLAGS = {
    "factor_pivot_window_major": "3",
    "factor_pivot_window_minor": "1",
    "indicators": "SMA(20),MACD(12,26,9),CVD,VWAP,TAKER_RATIO",
    "enable_derived_timeframes": "off",
}
FIRST = 1_700_000_040
COUNT = 900
HOLE = range(400, 440)


def walk() -> list[dict[str, float]]:
    """Coarse steps, so that there are ties, and candles that are a pivot in both directions."""
    rng, price, rows = random.Random(3), 100.0, []
    for minute in range(COUNT):
        close = price + rng.randint(-2, 2) / 2
        high, low = max(price, close) + rng.randint(0, 3) / 2, min(price, close) - rng.randint(0, 3) / 2
        if minute not in HOLE:
            time = FIRST + 60 * minute
            values = {"open": price, "high": high, "low": low, "close": close, "volume": 1.0 + minute}
            rows.append({"candle_time": time} | values | {"taker_buy_volume": float(minute // 2)})
        price = close
    return rows


ROWS = walk()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as running:
        yield running


async def ingest(service: Service, rows: list[dict[str, float]]) -> None:
    status, answer = await service.post("/api/market/ingest/candles_closed", {"series_id": BTC, "candles": rows})
    assert (status, answer.get("ledger")) == (200, None), answer


def exported(tmp_path: Path, *more: str, kind: str = "parquet") -> int:
    """Beside the running service."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    store = f"--database-url=sqlite:///{tmp_path / 'store.sqlite'}"
    out = f"--output={tmp_path / 'out'}"
    return main(["export", BTC, f"--format={kind}", out, "--factors", store, *options, *more])


def row_of(slices: Any) -> dict[str, Any]:
    """The row of a candle, from its slice, by the reference."""
    time, found = slices["at_time"], slices["snapshots"]
    row: dict[str, Any] = dict.fromkeys(("pivot_major_time", "pivot_major_resistance", "pivot_major_support"))
    for event in found["pivot"]["history"]["major"]:
        if event["visible_time"] == time:
            row["pivot_major_time"] = event["pivot_time"]
            row[f"pivot_major_{event['direction']}"] = event["pivot_price"]
    pen = found["pen"]["head"]["extending"] or {}
    row |= {
        f"pen_{name}": pen.get(name) for name in ("direction", "start_time", "start_price", "end_time", "end_price")
    }
    zone = (found["zhongshu"]["head"]["alive"] or [{}])[0]
    row |= {f"zhongshu_{name}": zone.get(name) for name in ("zg", "zd", "start_time")}
    anchor = found["anchor"]["head"]["current_anchor_ref"] or {}
    row |= {f"anchor_{name}": anchor.get(name) for name in ("kind", "direction", "start_time", "end_time")}
    for name in ("sma_20", "macd_12_26_9", "cvd", "vwap", "taker_ratio"):
        row |= found[name]["head"]
    return row


@pytest.mark.parametrize("window", [20_000, 64])
async def test_each_row_equals_the_slice_of_its_candle(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(exporting, "WINDOW_CANDLES", window)
    monkeypatch.setattr(exporting, "GROUP_CANDLES", 200)
    await ingest(service, ROWS)
    assert exported(tmp_path) == 0
    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    samples = [0, 1, 19, 20, 33, 34, 399, 400, 401, *range(500, 600), len(ROWS) - 1]
    for number in samples:
        row = rows[number]
        _, slices = await service.get(
            "/api/factor/slices", series_id=BTC, at_time=int(row["candle_time"]), window_candles=1
        )
        assert {name: value for name, value in row.items() if name not in VALUES} == row_of(slices)
    # The samples are not empty, and pivots are in the row where they became visible.
    for name in rows[0].keys() - VALUES:
        assert any(rows[number][name] is not None for number in samples), name
    assert all(row["candle_time"] > row["pivot_major_time"] for row in rows if row["pivot_major_time"] is not None)


async def test_a_part_of_an_export_has_the_same_rows(service: Service, tmp_path: Path) -> None:
    await ingest(service, ROWS)
    assert exported(tmp_path, kind="feather") == 0
    whole = pyarrow.feather.read_table(tmp_path / "out").to_pylist()
    start, end = FIRST + 60 * 300, FIRST + 60 * 700
    assert exported(tmp_path, f"--from={start}", f"--to={end}", "--overwrite", kind="feather") == 0
    part = pyarrow.feather.read_table(tmp_path / "out").to_pylist()
    assert part == [row for row in whole if start <= row["candle_time"] < end]
    assert exported(tmp_path, f"--from={start}", f"--to={end}", "--overwrite", kind="csv") == 0
    assert pyarrow.csv.read_csv(tmp_path / "out").to_pylist() == part


async def test_a_lagging_or_foreign_ledger_is_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_service(tmp_path / "store.sqlite", **FLAGS) as service:
        await ingest(service, ROWS[:100])
    assert exported(tmp_path, "--factor-pivot-window-major=9") == 1
    assert "its factors were computed with other settings than the flags of this command" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    lines = [",".join(map(str, row.values())) for row in ROWS[:120]]
    (tmp_path / "more.csv").write_text("\n".join([",".join(ROWS[0]), *lines]) + "\n")
    store = f"--database-url=sqlite:///{tmp_path / 'store.sqlite'}"
    command = ("import", store, f"--series={BTC}", str(tmp_path / "more.csv"))
    assert (await asyncio.to_thread(klinesync, *command))[0] == 0
    assert exported(tmp_path) == 1
    assert "its factors lag behind its candles" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert exported(tmp_path, f"--to={FIRST + 60 * 100}") == 0

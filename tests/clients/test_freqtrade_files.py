"""freqtrade's own data handlers read what `klinesync export --freqtrade` wrote; `import` reads what they wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from freqtrade.data.history.datahandlers import get_datahandler
from freqtrade.enums import CandleType
from simulated_exchange import klinesync

EACH_MARKET = pytest.mark.parametrize(
    ("pair", "kind", "series"),
    [
        ("BTC/USDT", CandleType.SPOT, "binance:spot:BTC/USDT"),
        ("BTC/USDT:USDT", CandleType.FUTURES, "binance:futures:BTC/USDT"),
    ],
    ids=["spot", "futures"],
)


def run(folder: Path, *arguments: str | Path) -> str:
    """A command of klinesync on a store in `folder`; what it printed."""
    done = subprocess.run(
        [klinesync(), *arguments, f"--database-url=sqlite:///{folder}/store.sqlite"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def frame(opens: pd.DatetimeIndex) -> pd.DataFrame:
    """Candles as freqtrade has them in memory."""
    # Eight decimals, as prices have: of more, freqtrade writes only ten into JSON.
    walk = (100 + np.random.default_rng(7).normal(size=len(opens)).cumsum() / 7).round(8)
    close = np.roll(walk, -1)
    high, low = np.maximum(walk, close) + 0.12345678, np.minimum(walk, close) - 0.1
    volume = np.arange(len(opens)) / 10
    return pd.DataFrame(
        {"date": opens, "open": walk, "high": high.round(8), "low": low.round(8), "close": close, "volume": volume}
    )


@EACH_MARKET
@pytest.mark.parametrize(
    ("written", "exported"),
    [("feather", "feather"), ("parquet", "parquet"), ("json", "feather"), ("jsongz", "parquet")],
)
def test_candles_of_freqtrade_come_back_to_it_unchanged(
    pair: str, kind: CandleType, series: str, written: str, exported: str, tmp_path: Path
) -> None:
    opens = pd.date_range("2025-05-20", periods=3000, freq="1min", tz="UTC").delete(slice(1000, 1100))
    candles = frame(opens)
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "futures").mkdir(parents=True)
    get_datahandler(before, written).ohlcv_store(pair, "1m", candles, kind)
    assert "2900 candles" in run(tmp_path, "import", before)
    run(tmp_path, "export", f"{series}:1m", "--format", exported, "--output", after, "--freqtrade")
    handler = get_datahandler(after, exported)
    loaded = handler.ohlcv_load(pair, "1m", kind, fill_missing=False, drop_incomplete=False)
    # Compared with what was written and not with what freqtrade reads: of JSON it loses the last bit of some numbers.
    assert list(loaded.columns) == list(candles.columns)
    assert list(loaded["date"]) == list(opens)
    for name in ("open", "high", "low", "close", "volume"):
        assert np.array_equal(loaded[name], candles[name]), name
    assert handler.ohlcv_get_available_data(after, "spot" if kind is CandleType.SPOT else "futures") == [
        (pair, "1m", kind)
    ]


@EACH_MARKET
def test_a_month_has_freqtrades_name(pair: str, kind: CandleType, series: str, tmp_path: Path) -> None:
    opens = pd.date_range("2024-01-01", periods=12, freq="MS", tz="UTC")
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "futures").mkdir(parents=True)
    get_datahandler(before, "feather").ohlcv_store(pair, "1M", frame(opens), kind)
    run(tmp_path, "import", before)
    run(tmp_path, "export", f"{series}:1M", "--format", "feather", "--output", after, "--freqtrade")
    loaded = get_datahandler(after, "feather").ohlcv_load(pair, "1M", kind, fill_missing=False, drop_incomplete=False)
    assert list(loaded["date"]) == list(opens)

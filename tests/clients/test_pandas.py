"""What `klinesync.client` reads becomes frames of pandas, which the package itself does without."""

from __future__ import annotations

import numpy as np
import pandas as pd

from klinesync.client import SeriesId, Slices, Snapshot, to_pandas
from klinesync.client.tables import CANDLE, FULL_CANDLE, POINT

FIRST = 1_700_000_040
INDEX = pd.DatetimeIndex(["2023-11-14 22:14:00", "2023-11-14 22:15:00"], tz="UTC")


def test_candles_become_a_frame_by_time_with_every_bit() -> None:
    candles = np.array([(FIRST, 1.0, 2.0, 0.5, 0.1 + 0.2, 7.0), (FIRST + 60, 1.5, 2.5, 1.0, 2.0, 0.0)], CANDLE)
    frame = to_pandas(candles)
    assert list(frame.columns) == ["open", "high", "low", "close", "volume"]
    assert frame.index.equals(INDEX)
    assert frame.index.name == "time"
    assert frame["close"].tolist() == [0.1 + 0.2, 2.0]
    assert to_pandas(candles[:0]).empty


def test_order_flow_becomes_columns_and_trades_nullable_whole_numbers() -> None:
    nan = float("nan")
    told, silent = (15.0, 3.0, 4.0, nan), (nan, nan, nan, nan)
    candles = np.array(
        [(FIRST, 1.0, 2.0, 0.5, 1.5, 7.0, *told), (FIRST + 60, 1.5, 2.5, 1.0, 2.0, 0.0, *silent)], FULL_CANDLE
    )
    frame = to_pandas(candles)
    assert list(frame.columns)[5:] == ["quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume"]
    assert frame["trades"].dtype == "Int64"
    assert frame["trades"].isna().tolist() == [False, True]
    assert frame["trades"].iloc[0] == 3
    assert frame["quote_volume"].isna().tolist() == [False, True]
    assert frame["taker_buy_quote_volume"].isna().all()
    assert str(to_pandas(candles[:0])["trades"].dtype) == "Int64"


def test_indicators_join_their_candles() -> None:
    points = {
        "ema_2": np.array([(FIRST, 1.25), (FIRST + 60, 1.75)], POINT),
        "rsi_2": np.array([(FIRST + 60, 60.0)], POINT),
    }
    snapshots = {name: Snapshot(name, 0, {}, {name: some}, {}) for name, some in points.items()}
    slices = Slices(SeriesId.parse("binance:spot:BTC/USDT:1m"), FIRST + 60, 0, snapshots)
    candles = np.array([(FIRST + 60, 1.5, 2.5, 1.0, 2.0, 0.0)], CANDLE)
    frame = to_pandas(slices.columns())
    assert frame.index.equals(INDEX)
    assert frame["ema_2"].tolist() == [1.25, 1.75]
    assert frame["rsi_2"].isna().tolist() == [True, False]
    joined = to_pandas(candles).join(frame)
    assert joined.iloc[0][["close", "ema_2", "rsi_2"]].tolist() == [2.0, 1.75, 60.0]
    assert to_pandas(points["rsi_2"])["value"].tolist() == [60.0]

"""Columns: candles as arrays, for computations over many candles at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import OHLCV, Candle

Price = Literal["open", "high", "low", "close", "volume"]
Floats = NDArray[np.float64]
Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Prices and volumes of one series as arrays of one length, strictly ascending in `time` (UTC seconds of the
    open)."""

    time: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    @classmethod
    def of(cls, candles: Sequence[Candle]) -> Columns:
        """The candles as columns, without order flow; their values are unchanged."""
        if not candles:
            nothing = np.empty(0)
            return cls(np.empty(0, np.int64), nothing, nothing, nothing, nothing, nothing)
        time, *values = zip(*candles, strict=True)
        return cls(np.array(time, np.int64), *(np.array(column, np.float64) for column in values[: OHLCV - 1]))

    def __len__(self) -> int:
        return len(self.time)

    def part(self, first: int, end: int | None = None) -> Columns:
        """The candles with positions in `[first, end)`: views, nothing is copied."""
        cut = slice(first, end)
        return Columns(self.time[cut], self.open[cut], self.high[cut], self.low[cut], self.close[cut], self.volume[cut])

    def prices(self, names: Sequence[Price]) -> list[Floats]:
        """The columns of those names, in that order."""
        return [getattr(self, name) for name in names]

    def candles(self) -> list[Candle]:
        """The candles again, their values unchanged."""
        columns = (self.time, self.open, self.high, self.low, self.close, self.volume)
        return [Candle(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

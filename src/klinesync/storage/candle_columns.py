"""CandleColumns: closed candles as arrays, a column for each field, for readers of many candles. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import NO_FLOW, OHLCV, Candle

Floats: TypeAlias = NDArray[np.float64]
Times: TypeAlias = NDArray[np.int64]


class CandleColumns(NamedTuple):
    """Candles as columns of one length.

    time: open times in UTC seconds.
    values: open, high, low, close and volume.
    flow: quote volume, trades, taker-buy volume and taker-buy quote volume, NaN where the source does not tell; None
        when no candle has any. The number of trades is exact: it is far below 2**53.
    """

    time: Times
    values: tuple[Floats, ...]
    flow: tuple[Floats, ...] | None

    def part(self, first: int, end: int | None) -> CandleColumns:
        """The candles at the positions in `[first, end)`: views, nothing is copied."""
        cut = slice(first, end)
        flow = None if self.flow is None else tuple(column[cut] for column in self.flow)
        return CandleColumns(self.time[cut], tuple(column[cut] for column in self.values), flow)


def columns_of(candles: Sequence[Candle]) -> CandleColumns:
    """Candles as columns."""
    # None becomes NaN.
    matrix = np.array([candle[1:] for candle in candles], np.float64).reshape(len(candles), len(Candle._fields) - 1).T
    time = np.array([candle.time for candle in candles], np.int64)
    has_flow = any(candle.flow != NO_FLOW for candle in candles)
    return CandleColumns(time, tuple(matrix[: OHLCV - 1]), tuple(matrix[OHLCV - 1 :]) if has_flow else None)


def joined(parts: Sequence[CandleColumns]) -> CandleColumns:
    """The candles of all parts, one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    time = np.concatenate([part.time for part in parts])
    values = _concatenated([part.values for part in parts])
    if all(part.flow is None for part in parts):
        return CandleColumns(time, values, None)
    flows = [part.flow or (np.full(len(part.time), np.nan),) * len(NO_FLOW) for part in parts]
    return CandleColumns(time, values, _concatenated(flows))


def _concatenated(parts: Sequence[tuple[Floats, ...]]) -> tuple[Floats, ...]:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

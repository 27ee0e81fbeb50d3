"""Indicator: a TA-Lib function with parameters, computed from an anchor.

The value at a candle is a function of the stored candles up to it alone: page sizes, restarts and rewinds have no
effect. The cost is bounded, because time is cut into chunks of `chunk` candles (`ChunkGrid`), and all values of a chunk
are computed from the chunk's anchor: a candle so far back that older candles have no effect any more, and the same one
for every computation. In bulk that is one C call a chunk (`compute`), live a TA-Lib handle that began at the anchor
(`Handle`); both give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from klinesync.core.timeframe import Timeframe
from klinesync.factor.columns import Columns, Floats, Price
from klinesync.factor.indicator_grid import ChunkGrid
from klinesync.factor.indicator_handle import Handle
from klinesync.factor.indicator_talib import VERSION, Function, Number, Style
from klinesync.factor.plugin import Pane

# Least length of a chunk, in periods of the function. Wilder's averages decay slowest of the admitted functions: after
# 24 periods the weight of an old candle is e**-24, 4e-11.
CHUNK_PERIODS = 24
# Least length of a chunk, in candles. Shorter chunks make short periods cheaper to start, and bulk computation dearer:
# one call a chunk.
MIN_CHUNK = 256
# Largest chunk, in candles. Opening a handle reads three chunks: at most 98,304 candles, 4.7 MB. Periods up to 1,365
# fit.
MAX_CHUNK = 32_768


@dataclass(frozen=True, slots=True)
class Output:
    """One line of an indicator. `key` names it in `series_points` and in exports: `macd_12_26_9.macdsignal`."""

    key: str
    label: str
    style: Style


@dataclass(frozen=True, slots=True)
class Indicator:
    """A TA-Lib function with its parameters. Made by `parse_indicators`.

    name: `macd_12_26_9`, with the given parameters.
    label: `MACD(12,26,9)`.
    title: name of the function in words.
    parameters: all parameters of the function, in its order, with defaults filled in.
    pane: `price` where the outputs share the scale of prices.
    lookback: candles before the first value.
    chunk: length of a chunk, in candles.
    """

    name: str
    label: str
    title: str
    function: Function
    inputs: tuple[Price, ...]
    parameters: tuple[Number, ...]
    outputs: tuple[Output, ...]
    pane: Pane
    lookback: int
    chunk: int

    @property
    def warm_up(self) -> int:
        """The number of stored candles to read before the first candle of interest; fewer only when no more exist."""
        return 3 * self.chunk

    @property
    def fingerprint(self) -> str:
        """Everything but the candles that the values depend on, as text."""
        return f"{self.function.name}({','.join(map(repr, self.parameters))})/{self.chunk}@ta-lib-{VERSION}"

    def compute(self, timeframe: Timeframe, columns: Columns, start: int = 0) -> dict[str, Floats]:
        """Each output, by its key, at the candles from the position `start` on.

        Before `start` there have to be `warm_up` candles, or all that are stored. NaN where there is no value: in the
        lookback behind the first candle, and where the function gives none or an infinite one.
        """
        count = max(len(columns) - start, 0)
        filled = [np.full(count, np.nan) for _ in self.outputs]
        prices = columns.prices(self.inputs)
        for anchor, first, end in ChunkGrid(timeframe, self.chunk).stretches(columns.time, start):
            values = self.function.over([column[anchor:end] for column in prices], self.parameters)
            from_lookback = max(first, anchor + self.lookback)
            for array, given in zip(filled, values, strict=True):
                array[from_lookback - start : end - start] = given[from_lookback - anchor :]
        for array in filled:
            array[~np.isfinite(array)] = np.nan
        return {output.key: array for output, array in zip(self.outputs, filled, strict=True)}

    def open(self, timeframe: Timeframe, columns: Columns) -> Handle:
        """A handle behind the last of the candles: the newest `warm_up` ones, or all that are stored; none is fine."""
        return Handle(
            self.function, self.inputs, self.parameters, self.lookback, ChunkGrid(timeframe, self.chunk), columns
        )


def chunk_for(longest: int) -> int | None:
    """The chunk of a function that looks at `longest` candles; None when it would be above `MAX_CHUNK`."""
    chunk = MIN_CHUNK
    while chunk < CHUNK_PERIODS * longest:
        chunk *= 2
    return chunk if chunk <= MAX_CHUNK else None

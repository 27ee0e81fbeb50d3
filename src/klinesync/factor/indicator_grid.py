"""Chunks of time on an absolute grid, and where the computation of a chunk begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klinesync.core.candle import MAX_TIME
from klinesync.core.timeframe import Timeframe
from klinesync.factor.columns import Times

# December 9999, in months since January 1970.
LAST_MONTH = (9999 - 1970) * 12 + 11


class Stretch(NamedTuple):
    """Candles `[first, end)` of one chunk, computed from the candle `anchor` on; all are positions in columns."""

    anchor: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """Time cut into chunks of `size` open times, stored or not, counted from the first open time since 1970.

    The anchor of a chunk is the newest chunk start with at least `size` *stored* candles between it and the chunk;
    without such a start, the first candle. Fewer than `2 * size` candles lie between, because otherwise a later start
    would do. So the newest `3 * size` candles up to any candle include all candles that its value is computed from.
    """

    timeframe: Timeframe
    size: int

    def number(self, time: int) -> int:
        """The number of the chunk that `time` (an open time) lies in."""
        timeframe = self.timeframe
        if timeframe.step_s:
            return (time - timeframe.offset_s) // (timeframe.step_s * self.size)
        return timeframe.count(0, time) // self.size

    def numbers(self, times: Times) -> NDArray[np.int64]:
        """`number` of each."""
        timeframe = self.timeframe
        if timeframe.step_s:
            return (times - timeframe.offset_s) // (timeframe.step_s * self.size)
        return times.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64) // self.size

    def start(self, number: int) -> int:
        """The open time at which the chunk begins; behind every candle for a chunk after the end of the calendar."""
        if not self.timeframe.step_s and number * self.size > LAST_MONTH:
            return MAX_TIME + 1
        return self.timeframe.shift(self.timeframe.offset_s, number * self.size)

    def starts(self, times: Times) -> NDArray[np.intp]:
        """The positions at which a chunk begins, 0 included; empty without candles."""
        if not len(times):
            return np.empty(0, np.intp)
        return np.concatenate(([0], np.flatnonzero(np.diff(self.numbers(times))) + 1))

    def anchors(self, starts: NDArray[np.intp]) -> NDArray[np.intp]:
        """The anchor of each chunk, as an index into `starts`, where they begin."""
        return np.maximum(np.searchsorted(starts, starts - self.size, side="right") - 1, 0)

    def stretches(self, times: Times, start: int) -> list[Stretch]:
        """The computations for the candles from the position `start` on, chunk by chunk."""
        starts = self.starts(times)
        if start >= len(times):
            return []
        present = int(np.searchsorted(starts, start, side="right")) - 1
        anchors = starts[self.anchors(starts)[present:]].tolist()
        firsts = [start, *starts[present + 1 :].tolist()]
        return [Stretch(*one) for one in zip(anchors, firsts, [*firsts[1:], len(times)], strict=True)]

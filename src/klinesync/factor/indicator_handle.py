"""Handle: an indicator advanced one closed candle at a time, with the same bits as the bulk computation.

The anchor moves at the start of a chunk. Beside the TA-Lib handle that began at the present anchor, one more handle
runs
for each chunk start that may be the next anchor: one, without missing candles. Moving the anchor costs nothing then,
also when a thousand series begin a chunk in the same minute, and nothing but the handles is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite, nan
from operator import itemgetter

from klinesync.core.candle import Candle
from klinesync.factor.columns import Columns, Price
from klinesync.factor.indicator_grid import ChunkGrid
from klinesync.factor.indicator_talib import Answer, Function, InsufficientHistory, Number, Stream

# Most TA-Lib handles at once. Two are enough without missing candles; an outage needs one more for a while. A series
# with nearly all candles missing would need one for each candle: further chunk starts wait, and the candles since the
# oldest waiting start are kept, at most two chunks.
MAX_RUNNING = 4


class _Run:
    """A computation that began at the candle with the ordinal `start`, the first one of the chunk `number`."""

    __slots__ = ("number", "start", "stream")

    def __init__(self, start: int, number: int) -> None:
        self.start = start
        self.number = number
        # None while there are too few candles, or too many other runs.
        self.stream: Stream | None = None


class Handle:
    """Made by `Indicator.open`. After an exception a handle must not be used any more: open a new one.

    `time` is the open time of the last candle (UTC seconds), None before the first.
    """

    __slots__ = (
        "_behind", "_end", "_function", "_grid", "_inputs", "_kept", "_kept_from", "_lookback",
        "_parameters", "_pick", "_present", "_runs", "_seen", "time",
    )  # fmt: skip

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Price],
        parameters: Sequence[Number],
        lookback: int,
        grid: ChunkGrid,
        columns: Columns,
    ) -> None:
        self._function = function
        self._inputs = tuple(inputs)
        self._parameters = tuple(parameters)
        self._lookback = lookback
        self._grid = grid
        self._pick = _picker(inputs)
        self.time: int | None = None
        # Candles are counted from the first one that the handle was opened on.
        self._seen = 0
        # The time at which the chunk of the last candle ends.
        self._end = 0
        # The oldest time that the values depend on.
        # Ascending in `start`: the first is the present anchor's, the others may be the next anchors'.
        self._runs: list[_Run] = []
        # The candles from the start of the oldest run without a stream on; none when all have one.
        self._kept: list[Candle] = []
        self._kept_from = 0
        # The calls for a candle: `update` of the present anchor's stream (None while a run has no stream), and those of
        # the other streams.
        self._present: Callable[..., Answer] | None = None
        self._behind: tuple[Callable[..., Answer], ...] = ()
        if len(columns):
            self._begin_behind(columns)

    def update(self, candle: Candle) -> tuple[float, ...]:
        """The values at the next closed candle, in the order of the indicator's outputs; NaN where there is none."""
        time = candle.time
        assert self.time is None or time > self.time, f"{time} does not come after {self.time}"
        if time >= self._end:
            self._turn(self._grid.number(time))
        self.time = time
        self._seen += 1
        prices = self._pick(candle)
        if self._present is None:
            return self._update_waiting(candle, prices)
        for update in self._behind:
            update(*prices)
        return _finite(self._present(*prices))

    def peek(self, candle: Candle) -> tuple[float, ...]:
        """The values that `update` would return, without advancing: for a forming candle."""
        assert self.time is None or candle.time > self.time, f"{candle.time} does not come after {self.time}"
        if not self._runs:
            return self._over([candle])
        run = self._runs[0 if candle.time < self._end else self._next_anchor()]
        if run.stream is not None:
            return _finite(run.stream.peek(*self._pick(candle)))
        return self._over([*self._kept[run.start - self._kept_from :], candle])

    def _begin_behind(self, columns: Columns) -> None:
        """Begin each run whose first candle is among the candles, from the present anchor's on."""
        starts = self._grid.starts(columns.time)
        anchor = int(self._grid.anchors(starts)[-1])
        numbers = self._grid.numbers(columns.time[starts])
        self._runs = [
            _Run(start, number)
            for start, number in zip(starts[anchor:].tolist(), numbers[anchor:].tolist(), strict=True)
        ]
        self._seen = len(columns)
        self._begin_chunk(self._runs[-1].number)
        self.time = int(columns.time[-1])
        for run in self._runs[:MAX_RUNNING]:
            run.stream = self._opened(columns.part(run.start))
        self._kept_from = self._oldest_waiting()
        self._kept = columns.part(self._kept_from).candles()
        self._set_calls()

    def _turn(self, number: int) -> None:
        """Move the anchor for a chunk whose first candle comes next, and begin a run there."""
        if self._runs:
            del self._runs[: self._next_anchor()]
        self._runs.append(_Run(self._seen, number))
        self._begin_chunk(number)
        self._forget()

    def _begin_chunk(self, number: int) -> None:
        """Note where the chunk ends. Of the runs, the first one is its anchor's, the last one begins with it."""
        self._end = self._grid.start(number + 1)

    def _next_anchor(self) -> int:
        """The anchor of a chunk that begins now, as a position in `_runs`: the newest with enough candles behind it."""
        for position in range(len(self._runs) - 1, 0, -1):
            if self._seen - self._runs[position].start >= self._grid.size:
                return position
        return 0

    def _update_waiting(self, candle: Candle, prices: tuple[float, ...]) -> tuple[float, ...]:
        """The values at the candle while some runs have no stream: keep the candle, and open the streams that may
        be."""
        self._kept.append(candle)
        running = sum(run.stream is not None for run in self._runs)
        answers: list[Answer | None] = []
        for run in self._runs:  # the oldest are opened first, so that the present anchor's is never behind others
            if run.stream is not None:
                answers.append(run.stream.update(*prices))
                continue
            opened: Stream | None = None
            if running < MAX_RUNNING and self._seen - run.start > self._lookback:
                opened = self._opened(Columns.of(self._kept[run.start - self._kept_from :]))
                running += opened is not None
            run.stream = opened
            answers.append(None if opened is None else opened.value)
        present = answers[0]
        values = (
            self._over(self._kept[self._runs[0].start - self._kept_from :]) if present is None else _finite(present)
        )
        self._forget()
        return values

    def _forget(self) -> None:
        """Drop the kept candles that no waiting run needs."""
        oldest = self._oldest_waiting()
        del self._kept[: oldest - self._kept_from]
        self._kept_from = oldest
        self._set_calls()

    def _oldest_waiting(self) -> int:
        """The start of the oldest run without a stream; behind the last candle when every run has one."""
        return next((run.start for run in self._runs if run.stream is None), self._seen)

    def _set_calls(self) -> None:
        streams = [run.stream for run in self._runs if run.stream is not None]
        waits = len(streams) < len(self._runs)
        self._present = None if waits else streams[0].update
        self._behind = () if waits else tuple(one.update for one in streams[1:])

    def _opened(self, columns: Columns) -> Stream | None:
        """A stream behind the last of the candles; None when they are too few."""
        if len(columns) > self._lookback:
            # Some functions want a few candles more than their lookback.
            with suppress(InsufficientHistory):
                return self._function.open(columns.prices(self._inputs), self._parameters)
        return None

    def _over(self, candles: Sequence[Candle]) -> tuple[float, ...]:
        """The values at the last candle of a computation that begins with the first."""
        if len(candles) <= self._lookback:
            return (nan,) * len(self._function.outputs)
        arrays = self._function.over(Columns.of(candles).prices(self._inputs), self._parameters)
        return _finite(tuple(array[-1].item() for array in arrays))


def _finite(answer: Answer) -> tuple[float, ...]:
    """The values as floats; what is infinite or no number is NaN."""
    if isinstance(answer, tuple):
        return tuple([float(value) if isfinite(value) else nan for value in answer])
    return (float(answer),) if isfinite(answer) else (nan,)


def _picker(inputs: Sequence[Price]) -> Callable[[Candle], tuple[float, ...]]:
    """The prices of a candle that the function takes, in its order."""
    positions = [Candle._fields.index(price) for price in inputs]
    if len(positions) == 1:
        return itemgetter(slice(positions[0], positions[0] + 1))
    return itemgetter(*positions)

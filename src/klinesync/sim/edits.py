"""A tape with edits: minutes that never happened, candles that were changed, a listing that began later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import NO_ROWS, Row, Rows, Tape, concat

TRADING = "TRADING"
_MOST_TICKS = 40  # how far a revision moves the close, at most


@dataclass(eq=False, slots=True)
class Halt:
    """No minute that opens in `[start_s, end_s)` exists; `end_s` None: none from `start_s` on. `status` is what
    exchangeInfo says meanwhile; without `listed` it does not know the symbol."""

    start_s: int
    end_s: int | None
    status: str = TRADING
    listed: bool = True

    def holds(self, time_s: int) -> bool:
        return self.start_s <= time_s and (self.end_s is None or time_s < self.end_s)


class EditedTape:
    """`tape` as it looks after the edits: still a function of time, for everybody who asks."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self.first_s = tape.first_s
        self.halts: list[Halt] = []
        self._revised: dict[int, Row] = {}

    @property
    def end_s(self) -> int | None:
        return self._tape.end_s

    def minutes(self, start_s: int, end_s: int) -> Rows:
        start_s = max(start_s, self.first_s)
        if end_s <= start_s:
            return NO_ROWS
        rows = self._tape.minutes(start_s, end_s)
        revised = [row for time, row in self._revised.items() if start_s <= time < end_s]
        if revised:
            rows = _replaced(rows, revised)
        for halt in self.halts:
            if halt.start_s < end_s and (halt.end_s is None or halt.end_s > start_s):
                before = rows.between(start_s, max(start_s, halt.start_s))
                after = NO_ROWS if halt.end_s is None else rows.between(halt.end_s, max(halt.end_s, end_s))
                rows = concat((before, after)) if len(before) and len(after) else before if len(before) else after
        return rows

    def revise(self, row: Row) -> None:
        """The minute at `row.time` has other values from now on."""
        self._revised[row.time] = row


def revised(row: Row, symbol: Symbol, chance: float) -> Row:
    """Other values for a closed candle, never twice the same: a higher close, more volume. `chance` is in [0, 1)."""
    ticks = 1 + int(chance * _MOST_TICKS)
    close = round(row.close + ticks * 10.0**-symbol.price_digits, symbol.price_digits)
    volume = round(row.volume + ticks * 10.0**-symbol.volume_digits, symbol.volume_digits)
    quote = round(row.quote + (volume - row.volume) * close, min(8, symbol.price_digits + symbol.volume_digits))
    high = max(row.high, close)
    return row._replace(high=high, close=close, volume=volume, quote=quote, trades=max(1, row.trades))


def _replaced(rows: Rows, changed: Sequence[Row]) -> Rows:
    """`rows` with those of the same time in place of them."""
    columns = {name: getattr(rows, name).copy() for name in Row._fields}
    for row in changed:
        at = int(np.searchsorted(rows.time, row.time))
        if at < len(rows) and rows.time[at] == row.time:
            for name, value in row._asdict().items():
                columns[name][at] = value
    return replace(rows, **columns)

"""The exchange's candles at any moment: a function of the tapes and the time that is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from klinesync.core.timeframe import Timeframe
from klinesync.sim.edits import TRADING, EditedTape
from klinesync.sim.path import MinutePath, PathKey, first_trade_ms
from klinesync.sim.symbol import Symbol, number_text
from klinesync.sim.tape import MINUTE_S, NO_ROWS, Ints, Market, Row, Rows, Tape, concat, fold, join, rows_of

_HOUR_S = 3600
_TICKER_HOURS = 23
_HOLE_CANDLES = 1000
_MINUTE = Timeframe.parse("1m")


@dataclass(frozen=True, slots=True)
class Grid:
    """The open times of an interval, in a time zone `zone_s` seconds ahead of UTC."""

    timeframe: Timeframe
    zone_s: int = 0

    def floor(self, time_s: int) -> int:
        return self.timeframe.floor(time_s + self.zone_s) - self.zone_s

    def next(self, open_s: int) -> int:
        return self.timeframe.next(open_s + self.zone_s) - self.zone_s

    def shift(self, open_s: int, count: int) -> int:
        return self.timeframe.shift(open_s + self.zone_s, count) - self.zone_s

    def floors(self, time_s: Ints) -> Ints:
        """`floor` of each."""
        step = self.timeframe.step_s
        if step:
            return time_s - (time_s + self.zone_s - self.timeframe.offset_s) % step
        month = (time_s + self.zone_s).astype("datetime64[s]").astype("datetime64[M]")
        return month.astype("datetime64[s]").astype(np.int64) - self.zone_s

    @property
    def is_minute(self) -> bool:
        return self.timeframe is _MINUTE


class Listing:
    """One symbol on one market: its tape, and its candles at a moment. `onboard_s` is when trading began, as
    exchangeInfo tells it."""

    def __init__(self, symbol: Symbol, tape: Tape, seed: int) -> None:
        self.symbol = symbol
        self.tape = tape
        self.price_text = number_text(symbol.price_text_digits)
        self.volume_text = number_text(symbol.volume_text_digits)
        self.quote_text = number_text(symbol.quote_text_digits)
        self.onboard_s = tape.first_s
        self.edits: EditedTape | None = None
        self._key = PathKey(seed, symbol)
        self._path: tuple[int, MinutePath | None] = (-1, None)
        self._day = _NO_DAY

    def edit(self) -> EditedTape:
        """The tape, to be edited; what was worked out from it before is forgotten."""
        if self.edits is None:
            self.tape = self.edits = EditedTape(self.tape)
        self._path = (-1, None)
        self._day = _NO_DAY
        return self.edits

    def is_listed(self, now_s: int) -> bool:
        """Whether the exchange knows the symbol at that time."""
        return self.edits is None or all(halt.listed for halt in self.edits.halts if halt.holds(now_s))

    def status(self, now_s: int) -> str:
        """What exchangeInfo calls the symbol at that time."""
        halts = () if self.edits is None else self.edits.halts
        return next((halt.status for halt in halts if halt.holds(now_s) and halt.status != TRADING), TRADING)

    def minute(self, open_s: int) -> Row | None:
        """The finished minute that opens at `open_s`, as it will be, whatever time it is; None when it is missing."""
        rows = self.tape.minutes(open_s, open_s + MINUTE_S)
        return rows.row(0) if len(rows) else None

    def path(self, open_s: int) -> MinutePath | None:
        """How that minute is traded; None when it is missing."""
        if self._path[0] != open_s:
            row = self.minute(open_s)
            made = (
                None if row is None else MinutePath(row, self._key, self.symbol.price_digits, self.symbol.volume_digits)
            )
            self._path = (open_s, made)
        return self._path[1]

    def first_trade_ms(self, open_s: int) -> int | None:
        """When that minute's first trade happens, in ms after its open; None when it is missing or not traded."""
        row = self.minute(open_s)
        return None if row is None else first_trade_ms(self._key, row)

    def running(self, now_ms: int) -> Row | None:
        """The minute in progress. Before its first trade it is flat at its open, with nothing traded (`trades` 0).

        None when the minute is missing."""
        open_s = now_ms // 60_000 * MINUTE_S
        path = self.path(open_s)
        if path is None:
            return None
        state = path.at(now_ms - open_s * 1000)
        if state is not None:
            return state
        price = path.row.open
        return Row(open_s, price, price, price, price, 0.0, 0.0, 0, 0.0, 0.0, path.row.first_id)

    def candles(self, grid: Grid, from_s: int, to_s: int, now_ms: int) -> Rows:
        """The candles that open in `[from_s, to_s)` (both on the grid), as they are at `now_ms`: the closed ones, and
        the open one when the range has it. Missing ones are missing.

        On futures the open candle exists from its first trade on, on spot at once."""
        now_minute_s = now_ms // 60_000 * MINUTE_S
        minutes = self.tape.minutes(from_s, min(to_s, now_minute_s))
        rows = minutes if grid.is_minute else fold(minutes, grid.floors(minutes.time))
        if not from_s <= now_minute_s < to_s:
            return rows
        open_s = grid.floor(now_minute_s)
        last = rows.row(len(rows) - 1) if len(rows) and rows.time[-1] == open_s else None
        running = self.running(now_ms)
        if running is not None and running.trades == 0 and last is not None:
            running = None
        current = last if running is None else join(last, running._replace(time=open_s))
        closed = rows if last is None else rows.cut(0, len(rows) - 1)
        if current is None or (current.trades == 0 and self.symbol.market == "futures"):
            return closed
        return concat((closed, rows_of((current,)))) if len(closed) else rows_of((current,))

    def klines(self, grid: Grid, start_ms: int | None, end_ms: int | None, limit: int, now_ms: int) -> Rows:
        """What REST answers: with a start the oldest `limit` candles from it on, else the newest up to the end; both
        bounds inclusive and compared with open times."""
        first = grid.floor(self.tape.first_s)
        last = grid.floor(now_ms // 1000)
        if self.tape.end_s is not None:
            last = min(last, grid.floor(self.tape.end_s - 1))
        if end_ms is not None:
            last = min(last, grid.floor(end_ms // 1000))
        if start_ms is not None:
            start_s = -(-start_ms // 1000)
            floor = grid.floor(max(start_s, first))
            first = floor if floor >= start_s else grid.next(floor)
        parts: list[Rows] = []
        have = 0
        while first <= last and have < limit:
            # A hole in the tape costs another turn of the loop, which then looks at many candles at once.
            wanted = limit - have
            reach = max(wanted, _HOLE_CANDLES) if parts else wanted
            if start_ms is not None:
                part_end = min(grid.shift(first, reach), grid.next(last))
                parts.append(self.candles(grid, first, part_end, now_ms).head(wanted))
                first = part_end
            else:
                part_start = max(first, grid.shift(last, 1 - reach))
                parts.insert(0, self.candles(grid, part_start, grid.next(last), now_ms).tail(wanted))
                last = grid.shift(part_start, -1)
            have = sum(len(part) for part in parts)
        return concat(parts) if parts else NO_ROWS

    def day(self, now_ms: int) -> Row | None:
        """The last 24 hours in one candle, the first hour of them left out as it is passing: it opens on the hour, 23
        hours before the present one. None when nothing was traded that could be told."""
        now_minute_s = now_ms // 60_000 * MINUTE_S
        self._day = self._day.at(self.tape, now_minute_s)
        running = self.running(now_ms)
        if running is None or (running.trades == 0 and self._day.total is not None):
            return self._day.total
        return join(self._day.total, running)


@dataclass(frozen=True, slots=True)
class _Day:
    """Whole hours before `hour_s`, and the sum of them and the minutes up to `upto_s`."""

    hour_s: int
    hours: tuple[Row, ...]
    total: Row | None
    upto_s: int

    def at(self, tape: Tape, minute_s: int) -> _Day:
        hour_s = minute_s - minute_s % _HOUR_S
        day = self
        if hour_s != day.hour_s or minute_s < day.upto_s:
            start_s = hour_s - _TICKER_HOURS * _HOUR_S
            kept = tuple(hour for hour in day.hours if start_s <= hour.time < hour_s)
            missing_s = max(start_s, kept[-1].time + _HOUR_S if kept else start_s)
            minutes = tape.minutes(missing_s, hour_s)
            hours = kept + tuple(fold(minutes, minutes.time - minutes.time % _HOUR_S).rows())
            total: Row | None = None
            for hour in hours:
                total = join(total, hour)
            day = _Day(hour_s, hours, total, hour_s)
        if minute_s > day.upto_s:
            minutes = tape.minutes(day.upto_s, minute_s)
            total = day.total
            for row in fold(minutes, np.zeros_like(minutes.time)).rows():
                total = join(total, row._replace(time=int(minutes.time[0])))
            day = _Day(day.hour_s, day.hours, total, minute_s)
        return day


_NO_DAY = _Day(0, (), None, 0)


@dataclass(frozen=True, slots=True)
class SimExchange:
    """All listings of both markets. `shift_s` is what was added to recorded times (0 for the generator)."""

    spot: dict[str, Listing]
    futures: dict[str, Listing]
    seed: int
    shift_s: int
    source: Literal["generator", "recorded"]

    def listings(self, market: Market) -> dict[str, Listing]:
        """By exchange name, `BTCUSDT`."""
        return self.spot if market == "spot" else self.futures


def make_exchange(
    tapes: Iterable[tuple[Symbol, Tape]], seed: int, shift_s: int, source: Literal["generator", "recorded"]
) -> SimExchange:
    """The exchange on which those symbols are listed."""
    exchange = SimExchange({}, {}, seed, shift_s, source)
    for symbol, tape in tapes:
        exchange.listings(symbol.market)[symbol.name] = Listing(symbol, tape, seed)
    return exchange

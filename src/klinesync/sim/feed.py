"""Which kline events are due: the streams' calendar, without sockets and without a clock."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from klinesync.core.timeframe import Timeframe
from klinesync.sim.dice import dice_key, unit
from klinesync.sim.exchange import Grid, Listing, SimExchange
from klinesync.sim.spoil import Spoilt
from klinesync.sim.tape import MINUTE_S, Market, Row, fold, join
from klinesync.sim.wire import KlineTemplate

SPOT_CADENCE_MS = 2000
FUTURES_CADENCE_MS = 250
FUTURES_IDLE_CLOSE_MS = 2004
_SPOT_CLOSE_MS = (2, 120)
_FUTURES_CLOSE_MS = (200, 800)

_ZONE = re.compile(r"([+-])(\d\d?):(\d\d)")
_KLINE = re.compile(r"(?P<symbol>[^@A-Z]+)@kline_(?P<interval>\w+)(?:@(?P<zone>[+-]\d\d:\d\d))?")
_CONTINUOUS = re.compile(r"(?P<symbol>[^@A-Z]+)_perpetual@continuousKline_(?P<interval>\w+)")


class StreamKey(NamedTuple):
    """A stream's name on its market."""

    market: Market
    name: str


@dataclass(slots=True)
class KlineStream:
    """One subscribed stream, and its position.

    `open_s` is the candle that it is in. `sent` is the number of trades that the last event of this candle showed,
    -1 when an event is wanted even without a trade. `done` sums the finished minutes of the candle before `done_s`.
    """

    key: StreamKey
    listing: Listing
    grid: Grid
    template: KlineTemplate
    dice: int
    cadence_ms: int
    phase_ms: int
    open_s: int = 0
    end_s: int = 0
    sent: int = 0
    done: Row | None = None
    done_s: int = 0
    due_ms: int | None = None
    turn: int = 0


class Event(NamedTuple):
    """One kline event that is to be sent now; `spoilt` when a fault has made something else of it."""

    stream: KlineStream
    row: Row
    closed: bool
    sent_ms: int
    spoilt: Spoilt | None = None


def parse_zone(text: str) -> int | None:
    """Seconds ahead of UTC of `+08:00`; None when it is no zone between -12:00 and +14:00."""
    match = _ZONE.fullmatch(text)
    if match is None:
        return None
    seconds = int(match[2]) * 3600 + int(match[3]) * 60
    seconds = -seconds if match[1] == "-" else seconds
    return seconds if -12 * 3600 <= seconds <= 14 * 3600 and int(match[3]) < 60 else None


def symbol_of(name: str) -> str:
    """The symbol that a stream's name is about, whether or not there is such a stream."""
    return name.partition("@")[0].removesuffix("_perpetual").upper()


class KlineFeed:
    """The calendar of all streams that have a listener.

    `quiet_futures`: a futures candle without any trade is not sent at all, as far as is known of the real exchange.
    `spot_cadence_ms`: least time between two updates of a spot stream's candle, in exchange milliseconds.
    """

    def __init__(
        self, exchange: SimExchange, *, quiet_futures: bool = True, spot_cadence_ms: int = SPOT_CADENCE_MS
    ) -> None:
        self.exchange = exchange
        self._spot_cadence_ms = spot_cadence_ms
        self._quiet_futures = quiet_futures
        self._streams: dict[StreamKey, KlineStream] = {}
        self._calendar: list[tuple[int, int, KlineStream]] = []
        self._turns = 0

    def subscribe(self, key: StreamKey, now_ms: int) -> KlineStream | None:
        """The running stream of that name; None when no such stream exists, which the exchange does not tell."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._make(key)
            if stream is not None:
                self._streams[key] = stream
                self._start(stream, now_ms)
        return stream

    def unsubscribe(self, key: StreamKey) -> None:
        """Nobody listens any more."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.due_ms = None

    def next_due_ms(self) -> int | None:
        """When the next event may be due; None when no stream will ever have one."""
        calendar = self._calendar
        while calendar and calendar[0][1] != calendar[0][2].turn:
            heappop(calendar)
        return calendar[0][0] if calendar else None

    def collect(self, now_ms: int, limit: int) -> list[Event]:
        """The events due at `now_ms`, in order, about `limit` of them; ask again while `next_due_ms()` has passed.

        However much time has gone by, every close is among them, each stream's in order. Of the updates between
        them only the present one is: it shows all trades so far.
        """
        events: list[Event] = []
        calendar = self._calendar
        steps = 0
        while calendar and calendar[0][0] <= now_ms and steps < limit:
            steps += 1
            _, turn, stream = heappop(calendar)
            if turn != stream.turn or stream.due_ms is None:
                continue
            event = self._step(stream, now_ms)
            if event is not None:
                events.append(event)
            self._schedule(stream, now_ms)
        return events

    def refresh(self, listings: Collection[Listing], now_ms: int) -> None:
        """Look at those listings anew: their tapes have been edited."""
        for stream in self._streams.values():
            if stream.listing in listings:
                stream.done, stream.done_s = None, stream.open_s
                self._schedule(stream, now_ms)

    def closed_again(self, listing: Listing, minute_s: int, now_ms: int) -> list[Event]:
        """The final events of the candles, already closed, that the minute is part of, as they are now."""
        events: list[Event] = []
        for stream in self._streams.values():
            open_s = stream.grid.floor(minute_s)
            if stream.listing is listing and open_s < stream.open_s:
                row = _closed(stream, open_s, stream.grid.next(open_s))
                if row is not None:
                    events.append(Event(stream, row, True, now_ms))
        return events

    def _make(self, key: StreamKey) -> KlineStream | None:
        match = _KLINE.fullmatch(key.name)
        continuous = False
        if match is None and key.market == "futures":
            match = _CONTINUOUS.fullmatch(key.name)
            continuous = True
        if match is None:
            return None
        listing = self.exchange.listings(key.market).get(match["symbol"].upper())
        timeframe = Timeframe.known.get(match["interval"])
        zone_text = None if continuous else match["zone"]
        zone_s = 0 if zone_text is None else parse_zone(zone_text)
        if listing is None or timeframe is None or zone_s is None:
            return None
        if zone_text is not None and key.market == "futures":
            return None
        grid = Grid(timeframe, zone_s)
        dice = dice_key(self.exchange.seed, key.market, key.name, "stream")
        cadence_ms = self._spot_cadence_ms if key.market == "spot" else FUTURES_CADENCE_MS
        template = KlineTemplate(listing, grid, continuous=continuous)
        return KlineStream(key, listing, grid, template, dice, cadence_ms, int(unit(dice, 0) * cadence_ms))

    def _start(self, stream: KlineStream, now_ms: int) -> None:
        open_s = stream.grid.floor(now_ms // 1000)
        before_s = stream.grid.shift(open_s, -1)
        self._enter(stream, before_s)
        if self._close_due_ms(stream) <= now_ms:
            self._enter(stream, open_s)
            # No picture of the present candle for a newcomer: the next trade is the first that it hears of.
            state = self._state(stream, now_ms)
            stream.sent = 0 if state is None else state.trades
        self._schedule(stream, now_ms)

    def _enter(self, stream: KlineStream, open_s: int) -> None:
        stream.open_s = open_s
        stream.end_s = stream.grid.next(open_s)
        stream.done = None
        stream.done_s = open_s
        stream.sent = -1 if stream.key.market == "spot" else 0

    def _step(self, stream: KlineStream, now_ms: int) -> Event | None:
        if now_ms >= stream.end_s * 1000:
            if now_ms < self._close_due_ms(stream):
                return None
            row = _closed(stream, stream.open_s, stream.end_s)
            self._enter(stream, stream.end_s)
            if row is None or (row.trades == 0 and self._quiet_futures and stream.key.market == "futures"):
                return None
            return Event(stream, row, True, now_ms)
        state = self._state(stream, now_ms)
        if state is None or state.trades == stream.sent:
            return None
        stream.sent = state.trades
        return Event(stream, state, False, now_ms)

    def _state(self, stream: KlineStream, now_ms: int) -> Row | None:
        """The stream's candle as it is now."""
        minute_s = now_ms // 60_000 * MINUTE_S
        if minute_s > stream.done_s:
            rows = stream.listing.tape.minutes(stream.done_s, minute_s)
            if len(rows):
                part = fold(rows, rows.time * 0 + stream.open_s).row(0)
                stream.done = join(stream.done, part)
            stream.done_s = minute_s
        running = stream.listing.running(now_ms)
        if running is None or (running.trades == 0 and stream.done is not None):
            return stream.done
        return join(stream.done, running if stream.grid.is_minute else running._replace(time=stream.open_s))

    def _schedule(self, stream: KlineStream, now_ms: int) -> None:
        end_s = stream.listing.tape.end_s
        if end_s is not None and stream.open_s >= end_s:
            stream.due_ms = None  # the tape has ended: the stream is quiet from here on
            return
        end_ms = stream.end_s * 1000
        due_ms = end_ms if now_ms >= end_ms else self._push_due_ms(stream, now_ms)
        if due_ms >= end_ms:
            due_ms = self._close_due_ms(stream)
        self._turns += 1
        stream.turn = self._turns
        stream.due_ms = due_ms
        heappush(self._calendar, (due_ms, stream.turn, stream))

    def _push_due_ms(self, stream: KlineStream, now_ms: int) -> int:
        """When the next update is due: the first beat of the stream's cadence after the next trade."""
        wanted_ms = now_ms + 1
        if stream.sent >= 0:
            minute_s = now_ms // 60_000 * MINUTE_S
            path = stream.listing.path(minute_s)
            next_ms = None if path is None else path.next_ms(now_ms - minute_s * 1000)
            if next_ms is None:
                minute_s += MINUTE_S
                if minute_s >= stream.end_s:
                    return stream.end_s * 1000
                next_ms = stream.listing.first_trade_ms(minute_s)
                if next_ms is None:
                    next_ms = 60_000 - 1
            wanted_ms = max(wanted_ms, minute_s * 1000 + next_ms)
        beat = -((stream.phase_ms - wanted_ms) // stream.cadence_ms)
        return beat * stream.cadence_ms + stream.phase_ms

    def _close_due_ms(self, stream: KlineStream) -> int:
        """When the final event of the stream's candle is sent."""
        chance = unit(stream.dice, stream.open_s // MINUTE_S + 1)
        if stream.key.market == "spot":
            low, high = _SPOT_CLOSE_MS
            return stream.end_s * 1000 + low + int(chance * (high - low))
        low, high = _FUTURES_CLOSE_MS
        delay_ms = low + int(chance * (high - low))
        traded_ms = stream.listing.first_trade_ms(stream.end_s)
        idle_ms = FUTURES_IDLE_CLOSE_MS + (chance < 0.5)
        delay_ms = idle_ms if traded_ms is None else min(idle_ms, max(delay_ms, traded_ms + 4))
        return stream.end_s * 1000 + delay_ms


def _closed(stream: KlineStream, open_s: int, end_s: int) -> Row | None:
    """The stream's candle that reaches from `open_s` to `end_s`."""
    rows = stream.listing.tape.minutes(open_s, end_s)
    if not len(rows):
        return None
    return rows.row(0) if stream.grid.is_minute else fold(rows, rows.time * 0 + open_s).row(0)

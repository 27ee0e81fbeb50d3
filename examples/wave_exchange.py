"""An exchange: one symbol whose price is a wave, by this machine's clock, so that nothing needs a network."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from math import sin

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import (
    ConnectionStatus,
    Errand,
    Exchange,
    HistoryPage,
    KlineEvent,
    Listing,
    StreamCallbacks,
)
from klinesync.exchanges.registry import ExchangeContext
from klinesync.runtime.exchange_clock import ExchangeClock

BEGINNING = 1_600_000_020
PAGE_CANDLES = 500
STREAMS_PER_CONNECTION = 100


def price(at_s: int) -> float:
    return round(100 + 10 * sin(at_s / 3600), 2)


def candle(open_time: int, now_s: float) -> Candle:
    """The candle as it stands: of one that is still open the part that has passed."""
    start, end = price(open_time), price(min(open_time + 60, int(now_s)))
    return Candle(open_time, start, max(start, end), min(start, end), end, 1.0)


class WaveExchange(Exchange):
    name = "wave"

    def __init__(self, context: ExchangeContext) -> None:
        self.clocks = {"spot": ExchangeClock()}
        self.context = context
        self.answered_s: float | None = None

    async def now_ms(self, market: str) -> int:
        stamp_ms = int(self.context.clock.wall_s() * 1000)
        self.answered_s = self.context.clock.monotonic_s()
        self.clocks[market].learn(stamp_ms, self.answered_s)
        return stamp_ms

    def contact(self, market: str) -> RestContact:
        return RestContact(self.answered_s)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        return {"WAVE/USDT": Listing("WAVE/USDT", "WAVEUSDT", "WAVE", "USDT", "TRADING")}

    async def refusal(self, series: SeriesId) -> str | None:
        if series.symbol not in await self.listings(series.market, 0.0):
            return f"{self.name} lists no {series.symbol}"
        return None if series.timeframe.code == "1m" else f"{self.name} has no {series.timeframe}; it has 1m"

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        now_s = await self.now_ms(series.market) / 1000
        closed_before = int(now_s - self.context.final_margin_s) // 60 * 60
        end = closed_before if end is None else min(end, closed_before)
        times = range(max(BEGINNING, -(-start // 60) * 60), end, 60)
        for first in range(0, len(times), PAGE_CANDLES):
            yield HistoryPage([candle(time, now_s) for time in times[first : first + PAGE_CANDLES]], [])

    def connection(self, market: str, callbacks: StreamCallbacks) -> "WaveConnection":
        return WaveConnection(self, market, callbacks)

    async def close(self) -> None:
        """Nothing is open."""


class WaveConnection:
    def __init__(self, exchange: WaveExchange, market: str, callbacks: StreamCallbacks) -> None:
        self.exchange = exchange
        self.market = market
        self.callbacks = callbacks
        self.wanted: dict[SeriesId, int | None] = {}  # the newest closed candle that was pushed; None: not attached

    @property
    def status(self) -> ConnectionStatus:
        return ConnectionStatus(self.exchange.name, self.market, len(self.wanted), True, 0, 0, 0)

    @property
    def room(self) -> int:
        return STREAMS_PER_CONNECTION - len(self.wanted)

    @property
    def idle(self) -> bool:
        return not self.wanted

    def want(self, series: SeriesId) -> None:
        self.wanted.setdefault(series, None)

    def unwant(self, series: SeriesId) -> None:
        self.wanted.pop(series, None)

    def renew(self, series: SeriesId) -> None:
        self.wanted[series] = None

    def reconnect(self) -> None:
        self.wanted = dict.fromkeys(self.wanted)

    async def run(self) -> None:
        while True:
            now_ms = await self.exchange.now_ms(self.market)
            for series in tuple(self.wanted):
                self.push(series, now_ms)
            await asyncio.sleep(1.0)

    def push(self, series: SeriesId, now_ms: int) -> None:
        now_s, open_time = now_ms / 1000, now_ms // 60_000 * 60
        if self.wanted[series] is None:
            self.callbacks.attached(series)
        elif self.wanted[series] != open_time - 60:
            self.callbacks.event(KlineEvent(series, candle(open_time - 60, now_s), closed=True, event_ms=now_ms))
        self.wanted[series] = open_time - 60
        self.callbacks.event(KlineEvent(series, candle(open_time, now_s), closed=False, event_ms=now_ms))


class WaveEntry:
    """The entry point."""

    names = frozenset({"wave"})

    def refusal(self, name: str) -> str | None:
        return None if name in self.names else f"{name} is no wave"

    def make(self, name: str, context: ExchangeContext) -> WaveExchange:
        return WaveExchange(context)

    async def close(self) -> None:
        """Exchanges of this entry share nothing."""

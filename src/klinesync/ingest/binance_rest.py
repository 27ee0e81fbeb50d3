"""Binance's REST market data: klines, the exchange's time, the list of symbols. Spot and USD-M futures.

Only a time stamp *received* from the exchange before a row was asked for, or a later row in the same answer, proves
that the row is final; the still-open last row is never taken as closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import aiohttp
import msgspec

from klinesync.core.candle import Candle, check_candle
from klinesync.core.errors import BadCandle, UpstreamError
from klinesync.core.gaps import missing_spans
from klinesync.core.series_id import SeriesId
from klinesync.runtime.clock import ExchangeClock
from klinesync.runtime.sources import Errand, HistoryPage, Listing, Ticker

Decoded = TypeVar("Decoded")
log = logging.getLogger(__name__)

EXCHANGE = "binance"
TIMEOUT_S = 10.0
SYMBOLS_TTL_S = 3600.0
MAX_REQUESTS_AT_ONCE = 4
DEFAULT_RETRY_AFTER_S = 60.0

# [open time, open, high, low, close, volume, close time, quote volume, trades, taker base, taker quote, ignored]
Row = tuple[int, float, float, float, float, float, int, float, int, float, float, str]
_rows = msgspec.json.Decoder(list[Row], strict=False)


class _Time(msgspec.Struct):
    serverTime: int  # noqa: N815  # the exchange's name


class _Symbol(msgspec.Struct):
    symbol: str
    status: str
    baseAsset: str  # noqa: N815  # the exchange's name
    quoteAsset: str  # noqa: N815  # the exchange's name
    contractType: str = ""  # noqa: N815  # the exchange's name


class _Info(msgspec.Struct):
    symbols: list[_Symbol]


class _Problem(msgspec.Struct):
    code: int = 0
    msg: str = ""


_time = msgspec.json.Decoder(_Time)
_info = msgspec.json.Decoder(_Info)
_problem = msgspec.json.Decoder(_Problem)


@dataclass(frozen=True, slots=True)
class MarketRoutes:
    """Where one market's REST lives, and the page size with the least weight per candle."""

    base_url: str
    prefix: str
    page: int

    def url(self, name: str) -> str:
        return f"{self.base_url}{self.prefix}/{name}"


def market_routes(spot_url: str, futures_url: str) -> dict[str, MarketRoutes]:
    """The routes of both markets. Spot pages cost 2 whatever their size; futures pages under 500 rows cost 2."""
    return {
        "spot": MarketRoutes(spot_url, "/api/v3", 1000),
        "futures": MarketRoutes(futures_url, "/fapi/v1", 499),
    }


def symbol_name(series: SeriesId) -> str:
    """The exchange's name of the series' symbol: `BTC/USDT` is `BTCUSDT`."""
    return series.symbol.partition(":")[0].replace("/", "")


class BinanceRest:
    """The REST client of both markets. `clocks` learns the exchange's time from it."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        routes: Mapping[str, MarketRoutes],
        clocks: Mapping[str, ExchangeClock],
        *,
        final_margin_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._session = session
        self._routes = routes
        self._clocks = clocks
        self._final_margin_ms = int(final_margin_s * 1000)
        self._monotonic = monotonic
        self._at_once = asyncio.Semaphore(MAX_REQUESTS_AT_ONCE)
        self._symbols: dict[str, tuple[float, frozenset[str]]] = {}
        self._symbols_lock = asyncio.Lock()
        self.quarantined = 0

    async def now_ms(self, market: str) -> int:
        """The exchange's time, asked now. Raises `UpstreamError`."""
        body = await self._get(market, "time", {})
        stamp_ms = _decode(_time, body, "time").serverTime
        self._clocks[market].learn(stamp_ms, self._monotonic())
        return stamp_ms

    async def knows(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series' symbol. The list is kept for an hour. Raises `UpstreamError`."""
        if series.exchange != EXCHANGE or series.market not in self._routes:
            return False
        async with self._symbols_lock:
            kept_at_s, symbols = self._symbols.get(series.market, (float("-inf"), frozenset()))
            if self._monotonic() - kept_at_s > SYMBOLS_TTL_S:
                info = _decode(_info, await self._get(series.market, "exchangeInfo", {}), "exchangeInfo")
                symbols = frozenset(
                    f"{item.baseAsset}/{item.quoteAsset}"
                    for item in info.symbols
                    if item.contractType in ("", "PERPETUAL")
                )
                self._symbols[series.market] = (self._monotonic(), symbols)
        return series.symbol in symbols

    async def history(
        self, series: SeriesId, start: int, errand: Errand, until: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles from the open time `start` to the newest that is proven final, a page at a time, ascending.

        Bad rows are quarantined: left out, counted and logged. Raises `UpstreamError`.
        """
        routes = self._routes[series.market]
        floor = series.timeframe.floor
        while True:
            # The stamp is taken before the request: a row that is read after it, and ended before it, is final.
            proven_ms = await self.now_ms(series.market)
            body = await self._get(
                series.market,
                "klines",
                {
                    "symbol": symbol_name(series),
                    "interval": series.timeframe.code,
                    "startTime": str(start * 1000),
                    "limit": str(routes.page),
                },
            )
            rows = _decode(_rows, body, "klines")
            if not rows:
                return
            if rows[0][0] < start * 1000 or not _ascending(rows):
                raise UpstreamError(f"{series}: a page of klines from {start} on is not in order")
            candles = self._sound(series, rows)
            last = rows[-1][0] // 1000
            # A row that is no candle still says that there is something; one off the grid leaves its minute uncovered.
            shown = [row[0] // 1000 for row in rows if row[0] % 1000 == 0 and floor(row[0] // 1000) == row[0] // 1000]
            still_open = bool(candles) and self._is_open(series, candles[-1], rows[-1], proven_ms)
            if still_open:
                del candles[-1], shown[-1]  # nor does it prove a hole before it yet: it is not stored
            empty = missing_spans(series.timeframe, shown[0], shown[-1], shown) if shown else []
            if candles or empty:
                yield HistoryPage(candles, empty)
            if still_open or len(rows) < routes.page or floor(last) <= start:
                return
            start = floor(last)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """What the market lists, by our symbol."""
        raise NotImplementedError

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol."""
        raise NotImplementedError

    def _sound(self, series: SeriesId, rows: list[Row]) -> list[Candle]:
        """The rows that are candles; the others are quarantined."""
        candles = []
        for row in rows:
            try:
                if row[0] % 1000:
                    raise BadCandle(row[0] / 1000, "its time is no whole second")
                candles.append(check_candle(Candle(row[0] // 1000, *row[1:6]), series.timeframe))
            except BadCandle as error:
                self.quarantined += 1
                log.warning("%s: a REST row is quarantined: %s", series, error)
        return candles

    def _is_open(self, series: SeriesId, candle: Candle, last_row: Row, proven_ms: int) -> bool:
        """Whether the newest candle of an answer may still change: it is the last row, and no stamp says otherwise."""
        close_ms = series.timeframe.next(candle.time) * 1000
        return candle.time * 1000 == last_row[0] and close_ms + self._final_margin_ms > proven_ms

    async def _get(self, market: str, name: str, params: Mapping[str, str]) -> bytes:
        url = self._routes[market].url(name)
        try:
            async with self._at_once, self._session.get(url, params=params) as response:
                body = await response.read()
                if response.status == 200:
                    return body
                raise UpstreamError(
                    f"{url} answered {response.status}: {_problem_text(body)}",
                    response.status,
                    _retry_after_s(response),
                )
        except TimeoutError as error:
            raise UpstreamError(f"{url} did not answer within {TIMEOUT_S:g} s") from error
        except aiohttp.ClientError as error:
            raise UpstreamError(f"{url} cannot be reached: {error!r}") from error


def _ascending(rows: list[Row]) -> bool:
    return all(one[0] < other[0] for one, other in pairwise(rows))


def _decode(decoder: msgspec.json.Decoder[Decoded], body: bytes, name: str) -> Decoded:
    try:
        return decoder.decode(body)
    except ValueError as error:  # msgspec's errors, and bytes that are no UTF-8
        raise UpstreamError(f"the answer to {name} cannot be understood: {error}") from error


def _problem_text(body: bytes) -> str:
    try:
        problem = _problem.decode(body)
    except ValueError:
        return repr(body[:200])
    return f"{problem.code} {problem.msg}"


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    if response.status not in (418, 429):
        return None
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else DEFAULT_RETRY_AFTER_S

"""CcxtClient: one exchange through ccxt, on a thread of its own; its answers become plain values.

ccxt takes seconds and 100 MB to import, and parses lists of thousands of symbols in one step. This would block the
event loop of the service, so all exchanges of ccxt run on the event loop of one separate thread. ccxt is imported with
the first request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol, TypeVar, runtime_checkable

from klinesync.core.candle import MAX_TIME
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId, names_series
from klinesync.exchanges.access import CALLED_WRONG
from klinesync.exchanges.ccxt.installed import NOT_INSTALLED, Ccxt, Maker, ccxt_exchange, offers_exchange
from klinesync.exchanges.ccxt.rows import (
    MAX_BITS,
    Row,
    ccxt_symbol,
    date_ms,
    header,
    own_symbol,
    plain_row,
    upstream_error,
)
from klinesync.exchanges.ccxt.thread import CcxtThread, is_cancelled
from klinesync.exchanges.ccxt.timings import USUAL_TURNS, TurnTimings
from klinesync.exchanges.ccxt.turn_queue import Kind, Outcome
from klinesync.exchanges.ccxt.turns import Turns
from klinesync.exchanges.ccxt.venues import PACED_SHARE, venue
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import Errand, Listing, RestStatus, Ticker
from klinesync.runtime.log_events import Log

Found = TypeVar("Found")
log = Log(__name__)

# Most requests in flight to one exchange; ccxt's own limiter sets their pace.
AT_ONCE = 8
# Longest wait for ccxt to close its connections, in seconds.
CLOSE_TIMEOUT_S = 5.0


@runtime_checkable
class KeepsMarkets(Protocol):
    """An exchange object with a list of symbols, by which ccxt names them in requests. A reload replaces the list with
    any answer, also with an incomplete one."""

    markets: Mapping[str, Mapping[str, object]] | None

    def set_markets(self, markets: Mapping[str, Mapping[str, object]]) -> object:
        """Replace the list."""
        ...


# Judges whether an answer is a complete list of a market: (market, listings by our names, whether symbols are expected)
# -> the reason why it is not, or None.
JudgeList = Callable[[str, Mapping[str, Listing], bool], str | None]
# ccxt's names of our markets.
KINDS = {"spot": "spot", "futures": "swap"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows, and the newest `Date` header of the exchange, in UTC ms."""

    rows: list[Row]
    date_ms: int | None


@dataclass(frozen=True, slots=True)
class Abilities:
    """The features of an exchange by ccxt.

    history, time, watch, unwatch, tickers: whether it has rows, its time, streams, unsubscribing and tickers.
    timeframes: codes of its timeframes; None: ccxt does not say.
    rate_limit_s: shortest time between two requests, in seconds.
    """

    history: bool
    time: bool
    watch: bool
    unwatch: bool
    tickers: bool
    timeframes: frozenset[str] | None
    rate_limit_s: float


class CcxtClient:
    """One exchange of ccxt. Every method raises `UpstreamError` in place of ccxt's errors.

    name: ccxt's name of the exchange.
    thread: runs the exchange object.
    monotonic: our clock, in seconds.
    make: makes the exchange object, on the thread; by default one of ccxt's classes.
    turns: backoff and limits of requests.
    """

    def __init__(
        self,
        name: str,
        thread: CcxtThread,
        *,
        monotonic: Callable[[], float],
        make: Maker | None = None,
        turns: TurnTimings = USUAL_TURNS,
    ) -> None:
        self.name = name
        self._thread = thread
        self._make = make or ccxt_exchange
        self._is_ccxt = make is None or getattr(make, "func", make) is ccxt_exchange
        self._exchange: Ccxt | None = None
        self._closed = False
        self.requests = 0  # requests of REST that the client made; ccxt may send several for one
        self._errors: Counter[int] = Counter()
        self.venue = venue(name)
        self.turns = Turns(name, AT_ONCE, monotonic, turns)
        self.contact = RestContact()
        self._monotonic = monotonic

    async def abilities(self) -> Abilities:
        """The features of the exchange. Imports ccxt."""

        async def look(exchange: Ccxt) -> Abilities:
            has, frames = exchange.has, exchange.timeframes
            return Abilities(
                history=has.get("fetchOHLCV") is True,
                time=has.get("fetchTime") is True,
                watch=has.get("watchOHLCV") is True,
                unwatch=has.get("unWatchOHLCV") is True,
                tickers=has.get("fetchTickers") is True,
                timeframes=None if frames is None else frozenset(frames),
                rate_limit_s=exchange.rateLimit / 1000,
            )

        can = await self._call("its abilities", look)
        if self.venue.paced and can.rate_limit_s:
            self.turns.pace.weight_per_s = PACED_SHARE / can.rate_limit_s
        return can

    async def now_ms(self, errand: Errand) -> int:
        """The exchange's time, requested now, in UTC ms."""

        async def ask(exchange: Ccxt) -> int:
            stamp_ms = await exchange.fetch_time()
            if stamp_ms is None or not 0 < stamp_ms < 2**MAX_BITS:
                raise UpstreamError(f"{self.name}: the answer to fetchTime has no time")
            return int(stamp_ms)

        return await self._request("fetchTime", Kind.TIME, errand, ask)

    async def listings(
        self, errand: Errand, *, again: bool, judge: JudgeList = lambda _market, _listings, _expected: None
    ) -> dict[str, dict[str, Listing]]:
        """The listed symbols by market and our name: pairs on spot, swaps on futures. A market whose list is incomplete
        is left out, and ccxt keeps its previous list.

        errand: the purpose of the request, with its urgency.
        again: request a new list, though ccxt has one.
        judge: judges each list, on ccxt's thread.
        """

        async def ask(exchange: Ccxt) -> dict[str, dict[str, Listing]]:
            before = exchange.markets if isinstance(exchange, KeepsMarkets) else None
            markets = await exchange.load_markets(again)
            lists: dict[str, dict[str, Listing]] = {}
            refused = []
            for market, kind in KINDS.items():
                found = (_listing(self.name, item, market) for item in markets.values())
                listings = {one.symbol: one for one in found if one is not None}
                if judge(market, listings, exchange.has.get(kind) is True) is None:
                    lists[market] = listings
                else:
                    refused.append(market)
            if refused and before and isinstance(exchange, KeepsMarkets):
                old = {name: item for name, item in before.items() if _is_of(item, refused)}
                exchange.set_markets({**old, **markets})
            if not markets:
                raise UpstreamError(f"{self.name}: the answer to loadMarkets lists nothing")
            return lists

        return await self._request("loadMarkets", Kind.LISTINGS, errand, ask)

    async def most_rows(self, series: SeriesId) -> int | None:
        """The most rows of one answer; None when ccxt does not know the limit."""

        async def look(exchange: Ccxt) -> int | None:
            most = exchange.feature_value(ccxt_symbol(series), "fetchOHLCV", "limit")
            return most if isinstance(most, int) and most > 1 else None

        return await self._call("its limits", look)

    async def rows(
        self,
        series: SeriesId,
        start: int | None,
        limit: int | None,
        errand: Errand,
        charged: int = 0,
        *,
        not_empty: bool = False,
    ) -> Answer:
        """Request rows of a series.

        series: the series.
        start: first open time, in UTC seconds; None: the newest rows.
        limit: most rows; None: the exchange's own limit.
        errand: the purpose of the request, with its urgency.
        charged: number of candles that the venue charges for.
        not_empty: whether the exchange has shown rows from `start` on before, so that an empty answer is wrong.
        """

        async def ask(exchange: Ccxt) -> Answer:
            since_ms = None if start is None else start * 1000
            answer = await exchange.fetch_ohlcv(ccxt_symbol(series), series.timeframe.code, since_ms, limit)
            rows = [plain_row(row) for row in answer]
            if rows and not any(row and row[0] is not None for row in rows):
                # ccxt makes rows of any iterable, also of the letters of an HTML page in place of a list.
                raise UpstreamError(f"{self.name}: the answer to fetchOHLCV of {series} cannot be understood")
            if not_empty and not rows:
                raise UpstreamError(
                    f"{self.name}: the answer to fetchOHLCV of {series} lacks rows that were there before"
                )
            # The headers may be those of a later answer: its date is later, and the exchange's as well.
            return Answer(rows, date_ms(header(exchange.last_response_headers, "date")))

        weight = self.venue.weight(Kind.ROWS, series.market, charged)
        return await self._request(f"fetchOHLCV of {series}", Kind.ROWS, errand, ask, weight)

    async def tickers(self, symbols: Mapping[str, str], errand: Errand) -> list[Ticker]:
        """The tickers of the last 24 hours. `symbols`: the exchange's symbols by ccxt's."""

        async def ask(exchange: Ccxt) -> list[Ticker]:
            answer = await exchange.fetch_tickers(list(symbols))
            found = []
            for symbol, ticker in answer.items():
                if symbol not in symbols or not isinstance(ticker, Mapping):
                    continue
                numbers = plain_row([ticker.get(name) for name in ("last", "quoteVolume", "percentage")])
                values = [float(number) for number in numbers if number is not None and isfinite(number)]
                if len(values) == len(numbers):
                    found.append(Ticker(symbols[symbol], *values))
            return found

        return await self._request("fetchTickers", Kind.TICKERS, errand, ask)

    async def watch(self, series: SeriesId) -> list[Row]:
        """Wait for the next rows that the exchange pushes; subscribes the stream with the first call."""

        async def ask(exchange: Ccxt) -> list[Row]:
            return [plain_row(row) for row in await exchange.watch_ohlcv(ccxt_symbol(series), series.timeframe.code)]

        return await self._call(f"watchOHLCV of {series}", ask)

    async def unwatch(self, series: SeriesId) -> None:
        """Unsubscribe the stream that `watch` has subscribed."""

        async def ask(exchange: Ccxt) -> None:
            await exchange.un_watch_ohlcv(ccxt_symbol(series), series.timeframe.code)

        await self._call(f"unWatchOHLCV of {series}", ask)

    async def close(self) -> None:
        """Close the connections; requests that still wait for an answer raise `UpstreamError`."""
        self._closed = True
        exchange = self._exchange
        if exchange is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._thread.call(self._guarded("close", exchange.close))
        except (UpstreamError, TimeoutError) as error:
            log.warning(
                "exchange.close_failed",
                "its connections could not be closed: %s",
                str(error) or "no end in time",
                exchange=self.name,
            )

    def status(self) -> RestStatus:
        """The state of REST. Requests that ccxt sends on its own are not counted."""
        blocked_s = self.turns.refused_s
        return RestStatus(
            used=None,
            limit=None,
            share=None,
            under_way=self.turns.under_way,
            waiting=self.turns.waiting_by_urgency,
            blocked_s=blocked_s,
            blocked_until_ms=None,
            requests=self.requests,
            errors=dict(self._errors),
        )

    async def _request(
        self,
        what: str,
        kind: Kind,
        errand: Errand,
        ask: Callable[[Ccxt], Awaitable[Found]],
        weight: float | None = None,
    ) -> Found:
        async with self.turns.turn(errand, kind, self.venue.weight(kind) if weight is None else weight) as turn:
            errand.begun = True
            self.requests += 1
            try:
                found = await self._call(what, ask)
            except UpstreamError as error:
                self.contact = replace(self.contact, failure=str(error), status=error.status)
                self._errors[error.status] += 1
                if error.status == 429:
                    self.turns.ended(turn, Outcome.REFUSED, error.retry_after_s, failure=str(error))
                    raise UpstreamError(str(error), error.status, self.turns.refused_s) from error
                outcome = Outcome.SERVED if error.status in CALLED_WRONG else Outcome.FAILED
                self.turns.ended(turn, outcome, failure=None if outcome is Outcome.SERVED else str(error))
                raise
            self.turns.ended(turn, Outcome.SERVED)
            self.contact = RestContact(self._monotonic())
        return found

    async def _call(self, what: str, ask: Callable[[Ccxt], Awaitable[Found]]) -> Found:
        async def work() -> Found:
            if self._closed:
                raise UpstreamError(f"{self.name}: {what}: the exchange is closed")
            return await ask(self._exchange or self._made())

        return await self._thread.call(self._guarded(what, work))

    def _made(self) -> Ccxt:
        if self._is_ccxt and not offers_exchange(self.name):
            installed = offers_exchange(self.name) is not None
            raise UpstreamError(f"ccxt has no exchange {self.name}" if installed else NOT_INSTALLED, 400)
        exchange = self._make(self.name)
        if self._closed:  # closed during the import, which takes seconds
            raise UpstreamError(f"{self.name}: the exchange is closed")
        self._exchange = exchange
        return exchange

    async def _guarded(self, what: str, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Call ccxt on its thread; its errors become `UpstreamError`."""
        try:
            return await ask()
        except UpstreamError:
            raise
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            # ccxt ends a connection by cancelling the calls that wait for it.
            raise UpstreamError(f"{self.name}: {what}: the connection was ended") from None
        except Exception as error:  # ccxt raises any error on an unexpected answer
            headers = None if self._exchange is None else self._exchange.last_response_headers
            raise upstream_error(f"{self.name}: {what}", error, header(headers, "retry-after")) from error


def _is_of(item: Mapping[str, object], markets: Sequence[str]) -> bool:
    """Whether an item of ccxt's list belongs to these markets, or to a market that is not ours."""
    kinds = [KINDS[market] for market in markets]
    return any(item.get(kind) is True for kind in kinds) or not any(item.get(kind) is True for kind in KINDS.values())


def _listing(exchange: str, item: object, market: str) -> Listing | None:
    """The listing of an item of ccxt's list; None for an item of another market, or that no series id can name."""
    if not isinstance(item, Mapping):
        return None
    spot, swap = item.get("spot") is True, item.get("swap") is True
    base, quote, settle, symbol_id = (item.get(name) for name in ("base", "quote", "settle", "id"))
    if not (spot if market == "spot" else swap) or not isinstance(base, str) or not isinstance(quote, str):
        return None
    name = own_symbol(base, quote, settle if swap and isinstance(settle, str) else None)
    if not isinstance(symbol_id, str) or not symbol_id.isprintable() or not names_series(exchange, market, name):
        return None
    created_ms = item.get("created")
    created_s = created_ms // 1000 if isinstance(created_ms, int) else None
    return Listing(
        name,
        symbol_id,
        base,
        quote,
        "inactive" if item.get("active") is False else "TRADING",
        created_s if created_s is not None and 0 <= created_s <= MAX_TIME else None,
    )

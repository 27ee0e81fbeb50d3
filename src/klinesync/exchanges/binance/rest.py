"""Binance's REST market data: klines, the exchange's time, its lists of symbols and tickers. Spot and USD-M futures.

`core/finality.py` decides whether a row is a closed candle: by later rows of the same answer, or by stamps of both
clocks that were received before the request. Requests go through one gate for each host, which rations their weight
(`weight.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from klinesync.core.candle import Candle, check_candle, with_sound_flow
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle, UpstreamError
from klinesync.core.finality import LATER_ROWS, final_end
from klinesync.core.gaps import NOT_LISTED_BEFORE
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.binance.decode import (
    EXCHANGE,
    Klines,
    LeftOut,
    Row,
    decode_klines,
    decode_tickers,
    decode_time,
)
from klinesync.exchanges.binance.listings import MAX_LIST_BYTES, UNLISTED_TTL_S, Listings
from klinesync.exchanges.binance.requests import MarketRoutes, Requests
from klinesync.exchanges.binance.timings import USUAL_REST, RestTimings
from klinesync.exchanges.binance.weight import SHARE, WEIGHTS, MarketWeights
from klinesync.exchanges.exchange import (
    Emptiness,
    Errand,
    HistoryPage,
    ListingShelf,
    Ticker,
    Urgency,
)
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http
from klinesync.runtime.log_events import Log
from klinesync.runtime.single_flight import SingleFlight

log = Log(__name__)

# Most requests for the time until the clock is known: two answers must agree, or several must lie on one line where the
# speed of the exchange's clock is unknown.
TIME_ANSWERS = 6
# Fewest rows of a page: only a clock proves the newest two, and the first one repeats the last of the page before.
LEAST_ROWS = 4
# A row that opens this many ms after the exchange's time makes its answer invalid.
LONGEST_AHEAD_MS = 86_400_000
# A row that opens this many ms after the estimated time shows that the estimate is old (this machine slept, for
# example), or that the row is wrong. The exchange's time is requested before the page is used.
MEASURE_AHEAD_MS = 3_600_000
# The kind under which candles that are kept without their order flow are counted.
ORDER_FLOW = "order_flow"
# Longest page that is read, in bytes.
MAX_PAGE_BYTES = 4 << 20

# Binance never adds a candle late: the first answer with both neighbours of an open time proves it empty or not.
EMPTINESS = Emptiness()


@dataclass(frozen=True, slots=True)
class _Page:
    """One answer to klines.

    klines: the decoded rows.
    limit: most rows that were requested.
    final_ms: the earlier of the exchange's two clocks by stamps from before the request, in UTC ms; None where no clock
        proves anything.
    estimate_ms: the exchange's estimated time at the request, in UTC ms; None where it was unknown.
    """

    klines: Klines
    limit: int
    final_ms: int | None
    estimate_ms: int | None


class _RowsAhead(Exception):
    """A page has rows that open more than `MEASURE_AHEAD_MS` later than the estimated time."""


class BinanceRest:
    """The REST client of both markets.

    session: the HTTP client.
    routes: the REST address of each market.
    clocks: the exchange's time by market; answers set these clocks.
    final_margin_s: how long after its end a row may still change, in seconds of the exchange.
    monotonic: our clock, in seconds.
    share: largest share of an address's weight limit that the service uses.
    rng: jitter of retries; by default seeded, so the same in each run.
    shelf: keeps the lists of symbols over a restart; None: they are not kept.
    timings: waits and intervals.
    weights: weight limit of each market, and the weights of its requests.

    `left_out` counts items of answers that were left out, by market and kind: `kline`, `order_flow` (of a candle that
    is kept), `symbol`, `ticker`.
    """

    def __init__(
        self,
        session: Http,
        routes: Mapping[str, MarketRoutes],
        clocks: Mapping[str, ExchangeClock],
        *,
        final_margin_s: float,
        monotonic: Callable[[], float],
        share: float = SHARE,
        rng: random.Random | None = None,
        shelf: ListingShelf | None = None,
        timings: RestTimings = USUAL_REST,
        weights: Mapping[str, MarketWeights] = WEIGHTS,
    ) -> None:
        self._timings = timings
        self._weights = weights
        self._routes = routes
        self._clocks = clocks
        self._final_margin_ms = int(final_margin_s * 1000)
        self._monotonic = monotonic
        rng = rng or random.Random(EXCHANGE)  # noqa: S311  # jitter, not a secret
        requests = self._requests = Requests(
            session, routes, clocks, monotonic=monotonic, share=share, rng=rng, timings=timings, weights=weights
        )
        self._listings = Listings(requests, routes, monotonic, shelf)
        self._time_errands: dict[str, Errand] = {}
        self._time: dict[str, SingleFlight[None]] = {market: SingleFlight() for market in routes}
        self.left_out = requests.left_out
        self.status = requests.status
        self.access = requests.access
        self.contact = requests.contact
        self.refusal = self._listings.refusal
        self.symbol_id = self._listings.symbol_id
        self.symbol_id_now = self._listings.symbol_id_now
        self.listings = self._listings.listings

    async def now_ms(self, market: str) -> int:
        """The exchange's time, requested now, in UTC ms: single flight, at most one request in `ask_time_every_s`.

        While the time is unknown, answers must agree. While an answer is doubted, the request is repeated until the
        clock has moved or the doubt has ended, `TIME_ANSWERS` times at most. Raises `UpstreamError`.
        """
        clock = self._clocks[market]
        for _ in range(TIME_ANSWERS):
            await self._ask_time(market, Errand(Urgency.READ))
            estimate_ms = clock.estimate_ms(self._monotonic())
            if estimate_ms is not None and not clock.doubts_answer:
                return estimate_ms
            await asyncio.sleep(max(0.0, self._timings.ask_time_every_s - clock.answer_age_s(self._monotonic())))
        estimate_ms = clock.estimate_ms(self._monotonic())
        if estimate_ms is not None:
            return estimate_ms  # answers that do not agree with each other move no clock
        raise UpstreamError(f"{EXCHANGE} {market}: {TIME_ANSWERS} answers to time do not agree with each other")

    async def _ask_time(self, market: str, errand: Errand) -> None:
        """Request the exchange's time, unless an answer has just arrived. Raises `UpstreamError`."""
        clock, gate = self._clocks[market], self._requests.gate(market)
        question = self._time_errands.setdefault(market, Errand(errand.urgency))
        question.urgency = min(
            question.urgency, errand.urgency
        )  # callers share one request, which has their highest urgency

        async def ask() -> None:
            async with gate.turn(question, self._weights[market].time, "time") as turn:
                clock.asking(self._monotonic())
                body = await self._requests.send(turn, market, "time", {}, MAX_PAGE_BYTES)
                clock.answered(self._requests.decoded(market, decode_time, body, "time"), self._monotonic())

        async def fetch() -> None:
            try:
                if clock.answer_age_s(self._monotonic()) >= self._timings.ask_time_every_s:
                    await self._requests.repeat(gate, question, ask)
            finally:
                self._time_errands.pop(market, None)

        await self._time[market].get(fetch)

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol, requested now. Tickers with numbers that are not finite are left out.
        Raises `UpstreamError`."""
        body = await self._requests.ask(market, "ticker/24hr", self._weights[market].tickers, MAX_LIST_BYTES)
        tickers, left_out = self._requests.decoded(market, decode_tickers, body, "ticker/24hr")
        self._requests.leave_out(market, "ticker", left_out)
        return tickers

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles, page by page, ascending. Invalid rows are quarantined: left out, counted and logged.

        series: the series.
        start: first open time, in UTC seconds.
        errand: the purpose of the request, with its urgency.
        end: open time before which the span ends; None: the newest candle that is proven final.

        Raises `UpstreamError`; a page that does not fit its request yields nothing.
        """
        frame, symbol_id = series.timeframe, await self.symbol_id(series)
        first, overlaps, asked = True, False, False
        while end is None or start < end:
            if not asked and self._needs_time(series, start, end):
                asked = await self._try_time(series.market, errand)
            page = await self._page(series, symbol_id, start, end, errand)
            times = page.klines.times
            if not times:
                return  # nothing follows
            # Rows from `end` on were requested only as proof.
            last = frame.floor(times[-1] // 1000)
            if overlaps and last <= start:
                return  # no row follows the one by which pages overlap
            proven = final_end(frame, [time_ms // 1000 for time_ms in times], page.final_ms, self._final_margin_ms)
            reached = end is not None and end <= proven
            if end is not None:
                proven = min(proven, end)
            # A row that is not final does not prove a hole before it either, because it is not stored.
            final = [time_ms for time_ms in times if time_ms < proven * 1000]
            candles = self._sound(series, [row for row in page.klines.rows if row[0] < proven * 1000])
            # An invalid row still shows that its open time is not empty; a row off the grid shows nothing of a minute.
            shown = [time_ms // 1000 for time_ms in final if time_ms % 1000 == 0 and frame.is_open(time_ms // 1000)]
            if first and final and series.market == "futures" and frame.floor(times[0] // 1000) > start:
                unlisted = await self._before_listing(series, start, times[0] // 1000)
                if unlisted is not None:
                    # Yielded with the candle after it, so that the ledger gets a hole between candles, with its proof.
                    yield HistoryPage(candles[:1], [unlisted], NOT_LISTED_BEFORE)
            empty = [] if page.klines.blind else EMPTINESS.proven(frame, shown, page.estimate_ms)
            if candles or empty:
                yield HistoryPage(candles, empty)
            first = first and not final
            # A page with fewer rows than requested does not prove the end, because an exchange may send fewer. The end
            # is proven when the candle after the newest row has not ended, or by an answer without new rows.
            now_ms = page.estimate_ms
            follows = self._is_late(page) or now_ms is None or now_ms >= frame.next(frame.next(last)) * 1000
            ends_now = now_ms is not None and last * 1000 <= now_ms < frame.next(last) * 1000
            full = page.klines.count >= page.limit and not ends_now
            if reached or (not follows and proven > last):
                return
            progress = shown[-1] if shown else start
            overlaps = progress > start
            if progress <= start or not (full or follows):
                # A newer stamp may prove the remaining rows: request them again, from the newest final one on.
                if asked or not self._is_late(page):
                    return
                asked = await self._try_time(series.market, errand)
                if not asked:
                    return
            elif asked and progress > start:
                asked = False
            start = progress

    # Pages of klines.

    async def _page(self, series: SeriesId, symbol_id: str, start: int, end: int | None, errand: Errand) -> _Page:
        """One page of rows from `start` on. With `end`: rows before it, and where no clock proves the newest of them,
        the `LATER_ROWS` that do."""
        market, gate, clock = series.market, self._requests.gate(series.market), self._clocks[series.market]
        weights = self._weights[market]
        if end is not None and not self._proves(end, clock.final_ms(self._monotonic())):
            end = series.timeframe.shift(end, LATER_ROWS)
        limit = weights.page_size(self._expected(series, start, end), self._routes[market].page)
        params = {
            "symbol": symbol_id,
            "interval": series.timeframe.code,
            "startTime": str(start * 1000),
            "limit": str(limit),
        }
        if end is not None:
            # Binance's `endTime` is inclusive: the newest open time of the answer.
            params["endTime"] = str(series.timeframe.shift(end, -1) * 1000)

        async def ask() -> _Page:
            async with gate.turn(errand, weights.page(limit), "klines") as turn:
                now_s = self._monotonic()
                final_ms, estimate_ms = clock.final_ms(now_s), clock.estimate_ms(now_s)
                errand.begun = True
                body = await self._requests.send(turn, market, "klines", params, MAX_PAGE_BYTES)

            def checked(body: bytes, most_ahead_ms: int) -> _Page:
                page = _Page(decode_klines(body), limit, final_ms, estimate_ms)
                self._check_page(series, page, start, end)
                known_ms = clock.estimate_ms(self._monotonic())
                if page.klines.times and known_ms is not None and page.klines.times[-1] > known_ms + most_ahead_ms:
                    raise _RowsAhead
                return page

            try:
                return self._requests.decoded(market, partial(checked, most_ahead_ms=MEASURE_AHEAD_MS), body, "klines")
            except _RowsAhead:
                await self._try_time(market, errand, agreed=True)
            try:
                return self._requests.decoded(market, partial(checked, most_ahead_ms=LONGEST_AHEAD_MS), body, "klines")
            except _RowsAhead as error:
                what = f"{series}: a page of klines from {date_text(start)} on lies in the future"
                raise self._requests.nonsense(market, "klines", what) from error

        page = await self._requests.repeat(gate, errand, ask)
        self._requests.leave_out(market, "kline", page.klines.left_out, series)
        self._requests.leave_out(market, ORDER_FLOW, page.klines.flow_left_out, series)
        return page

    def _expected(self, series: SeriesId, start: int, end: int | None) -> int | None:
        """The most rows that may come from `start` on; None where the exchange's time is unknown."""
        frame = series.timeframe
        if end is not None:
            return max(LEAST_ROWS, frame.count(start, end))
        now_ms = self._clocks[series.market].estimate_ms(self._monotonic())
        return None if now_ms is None else max(LEAST_ROWS, frame.count(start, frame.floor(now_ms // 1000)) + 2)

    def _proves(self, end: int, final_ms: int | None) -> bool:
        """Whether a clock proves all candles before `end`."""
        return final_ms is not None and end * 1000 + self._final_margin_ms <= final_ms

    def _needs_time(self, series: SeriesId, start: int, end: int | None) -> bool:
        """Whether the exchange's time must be requested before a page from `start` on: by our estimate the newest ended
        candle is final, but no clock proves it."""
        frame, clock, now_s = series.timeframe, self._clocks[series.market], self._monotonic()
        estimate_ms = clock.estimate_ms(now_s)
        if estimate_ms is None:
            return end is None  # with an end, later rows may prove the candles
        ended = frame.floor((estimate_ms - self._final_margin_ms) // 1000)
        if ended <= start:
            return False
        if end is not None and end <= frame.shift(ended, -LATER_ROWS):
            return False  # later rows prove it
        if clock.difference(now_s) is not None:
            return False  # the clocks differ and prove nothing
        return not self._proves(ended, clock.final_ms(now_s))

    def _is_late(self, page: _Page) -> bool:
        """Whether a newer time of the exchange might prove more of a page: the time was unknown, or a row opens after
        it."""
        return page.estimate_ms is None or page.klines.times[-1] > page.estimate_ms

    async def _try_time(self, market: str, errand: Errand, *, agreed: bool = False) -> bool:
        """Request the exchange's time; False when the request fails, and then only later rows prove candles. `agreed`:
        with an answer to a new request, repeated until the clock has followed the answers, see `now_ms`."""
        clock = self._clocks[market]
        try:
            if agreed:  # the newest answer may be from before the clock jumped
                await asyncio.sleep(max(0.0, self._timings.ask_time_every_s - clock.answer_age_s(self._monotonic())))
            if agreed or clock.estimate_ms(self._monotonic()) is None:
                await self.now_ms(market)
            else:
                await self._ask_time(market, errand)
        except UpstreamError as error:
            if error.status in (418, 429):
                raise  # no request is sent now; after another failure of the time, klines may still be served
            self._requests.warn(
                (market, "time"),
                "exchange.time_failed",
                "the market does not tell its time",
                market=market,
                error=error,
            )
            return False
        return True

    def _check_page(self, series: SeriesId, page: _Page, start: int, end: int | None) -> None:
        """Raises `UpstreamError` when the rows do not fit the request."""
        times = page.klines.times
        if not times:
            if page.klines.count:
                raise self._requests.nonsense(
                    series.market, "klines", "the answer to klines cannot be understood: no row has a time"
                )
            return
        if times[0] < start * 1000 or not _ascending(times):
            raise self._requests.nonsense(
                series.market, "klines", f"{series}: a page of klines from {date_text(start)} on is not in order"
            )
        if page.klines.count > page.limit or (end is not None and times[-1] >= end * 1000):
            raise self._requests.nonsense(
                series.market,
                "klines",
                f"{series}: a page of klines from {date_text(start)} on is more than was asked for",
            )

    async def _before_listing(self, series: SeriesId, start: int, first: int) -> Span | None:
        """The span after `start` that is empty because the symbol was not listed yet; None without one. `first`: open
        time of the first row."""
        try:
            listing = (await self.listings(series.market, UNLISTED_TTL_S)).get(series.symbol)
        except UpstreamError as error:
            self._requests.warn(
                series.market,
                "symbols.onboard_failed",
                "the listing date cannot be requested",
                series=series,
                error=error,
            )
            return None
        if listing is None or listing.onboard_s is None:
            return None
        frame = series.timeframe
        span = Span(frame.next(start), frame.floor(listing.onboard_s))
        return span if span.start < span.end <= first else None

    def _sound(self, series: SeriesId, rows: list[Row]) -> list[Candle]:
        """The rows that are valid candles; the others are quarantined. Invalid order flow is left out."""
        candles = []
        flow_left_out = LeftOut()
        for row in rows:
            try:
                if row[0] % 1000:
                    raise BadCandle(row[0] / 1000, "its time is no whole second")
                candle = Candle(row[0] // 1000, *row[1:])
                try:
                    check_candle(candle, series.timeframe)
                except BadCandle as problem:
                    sound = with_sound_flow(candle)
                    if sound is candle:
                        raise
                    candle = check_candle(sound, series.timeframe)
                    flow_left_out.add(str(problem))
                candles.append(candle)
            except BadCandle as error:
                self.left_out[series.market, "kline"] += 1
                self._requests.warn(
                    series, "rest.row_quarantined", "a REST row is quarantined", series=series, error=error
                )
        self._requests.leave_out(series.market, ORDER_FLOW, flow_left_out, series)
        return candles


def _ascending(times: list[int]) -> bool:
    return all(one < other for one, other in pairwise(times))

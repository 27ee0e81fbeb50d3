"""Binance's REST market data: klines, the exchange's time, its lists of symbols and tickers. Spot and USD-M futures.

What makes a row a closed candle is the rule of `core/finality.py`: later rows of the same answer, or stamps of both
clocks that were received before the row was asked for. Requests go through one gate for each host, which rations their
weight (`weight.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from typing import TypeVar

import aiohttp

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle, check_candle
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle, NotListed, UpstreamError
from klinesync.core.finality import LATER_ROWS, final_end
from klinesync.core.network_errors import unreachable
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.access import CALLED_WRONG, Access
from klinesync.exchanges.binance.decode import (
    EXCHANGE,
    BadAnswer,
    Klines,
    LeftOut,
    Row,
    decode_klines,
    decode_listings,
    decode_problem,
    decode_tickers,
    decode_time,
)
from klinesync.exchanges.binance.rest_gate import RestGate
from klinesync.exchanges.binance.symbols import SymbolTable, coin_margined
from klinesync.exchanges.binance.weight import SHARE, WEIGHTS, Turn, WeightBudget
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import (
    LISTINGS_TTL_S,
    Emptiness,
    Errand,
    HistoryPage,
    Listing,
    ListingShelf,
    RestStatus,
    Ticker,
    Urgency,
)
from klinesync.exchanges.whole_lists import WholeLists
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http, location, read_body
from klinesync.runtime.log_events import Log, LogEvent
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.single_flight import SingleFlight

Decoded = TypeVar("Decoded")
Found = TypeVar("Found")
log = Log(__name__)

TIMEOUT_S = 10.0
# How often a request is repeated that was not answered, or with the server's error; and the backoff before that.
RETRIES = 2
RETRY = Backoff(initial_s=0.5, most_s=1.0, jitter=0.5)
# The exchange's time is asked no more often than this, in seconds (ours), for each market. So many answers must do
# until the clock is known: two that agree, or at a speed that is not known yet some that run on.
ASK_TIME_EVERY_S = 1.0
TIME_ANSWERS = 6
# The fewest rows of a page: the newest two are proven by a clock alone, and the first is that of the page before.
LEAST_ROWS = 4
# How old a list of symbols may be, in seconds, when it does not have a symbol, or when the history of a symbol does not
# begin where it was looked for.
UNLISTED_TTL_S = 60.0
# After a failure the list is not asked for again before so long: who asks gets the same error.
LISTINGS_PAUSE_S = 5.0
# Rows that open so much later than the newest stamp are no candles of this exchange.
LONGEST_AHEAD_MS = 86_400_000
# The longest bodies that are read. Spot's list of symbols has grown past 10 MB.
MAX_PAGE_BYTES = 4 << 20
MAX_LIST_BYTES = 64 << 20
MAX_PROBLEM_BYTES = 4 << 10
# Bad rows are logged so often for one series.
LOG_EVERY_S = 60.0

# A minute without trades is in the first answer that shows its neighbours, or there is none.
EMPTINESS = Emptiness()
NOT_LISTED_BEFORE = "the exchange lists the symbol only since then, and its first row is not before it"


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


@dataclass(frozen=True, slots=True)
class _Page:
    """One answer to klines, at most `limit` rows.

    `final_ms`: the earlier of the exchange's clocks, by stamps from before the answer was asked for; None where no
    clock proves anything. `estimate_ms`: what time it seemed to be then; None where nothing was known.
    """

    klines: Klines
    limit: int
    final_ms: int | None
    estimate_ms: int | None


@dataclass(frozen=True, slots=True)
class _Listed:
    """A list of symbols, and when it came (monotonic); one that was kept over a restart came at no time."""

    at_s: float
    table: SymbolTable


class _Passing(UpstreamError):
    """What the next request may not meet again: no answer, an error of the server, too many requests."""


class BinanceRest:
    """The REST client of both markets. `clocks` learns the exchange's time from it.

    `share`: how much of an address' weight we use at most; `rng` spreads what is repeated, by default the same way
    every time. `shelf` keeps the lists of symbols over a restart.

    `left_out` counts items of answers that were left out, by market and kind: `kline`, `symbol`, `ticker`.
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
    ) -> None:
        self._session = session
        self._routes = routes
        self._clocks = clocks
        self._final_margin_ms = int(final_margin_s * 1000)
        self._monotonic = monotonic
        self._share = share
        self._rng = rng or random.Random(EXCHANGE)  # noqa: S311  # jitter, not a secret
        self._gates: dict[str, RestGate] = {}
        self._accesses = {market: Access() for market in routes}
        self._contacts: dict[str, RestContact] = {}
        self._shelf = shelf
        self._shelf_read: set[str] = set()
        self._listed: dict[str, _Listed] = {}
        self._listing: dict[str, SingleFlight[_Listed]] = {market: SingleFlight() for market in routes}
        self._not_listed: dict[str, tuple[float, UpstreamError]] = {}
        self._whole: dict[str, WholeLists] = {}
        self._time_errands: dict[str, Errand] = {}
        self._time: dict[str, SingleFlight[None]] = {market: SingleFlight() for market in routes}
        self._log_limit = LogLimit(LOG_EVERY_S)
        self.left_out: Counter[tuple[str, str]] = Counter()

    def status(self) -> dict[str, RestStatus]:
        """How the REST of each market stands that was asked anything."""
        return {market: gate.status for market, gate in self._gates.items()}

    def access(self, market: str) -> Access:
        """For how long the market is left alone while it refuses this service, or is in trouble; its handshakes share
        it."""
        return self._accesses[market]

    def contact(self, market: str) -> RestContact:
        """The newest contact with that market."""
        return self._contacts.get(market, RestContact())

    async def now_ms(self, market: str) -> int:
        """The exchange's time, asked now: single flight, at most once in `ASK_TIME_EVERY_S`. Where nothing was known of
        it the answers must agree; where an answer is doubted it is asked until the clock has leapt or the doubt is
        over, `TIME_ANSWERS` times at most. Raises `UpstreamError`."""
        clock = self._clocks[market]
        for _ in range(TIME_ANSWERS):
            await self._ask_time(market, Errand(Urgency.READ))
            estimate_ms = clock.estimate_ms(self._monotonic())
            if estimate_ms is not None and not clock.doubts_answer:
                return estimate_ms
            await asyncio.sleep(max(0.0, ASK_TIME_EVERY_S - clock.answer_age_s(self._monotonic())))
        estimate_ms = clock.estimate_ms(self._monotonic())
        if estimate_ms is not None:
            return estimate_ms  # answers that do not agree with each other move no clock
        raise UpstreamError(f"{EXCHANGE} {market}: {TIME_ANSWERS} answers to time do not agree with each other")

    async def _ask_time(self, market: str, errand: Errand) -> None:
        """Ask for the exchange's time, unless it was just told. Raises `UpstreamError`."""
        clock, gate = self._clocks[market], self._gate(market)
        question = self._time_errands.setdefault(market, Errand(errand.urgency))
        question.urgency = min(question.urgency, errand.urgency)  # the most urgent of those who share it

        async def ask() -> None:
            async with gate.turn(question, WEIGHTS[market].time, "time") as turn:
                clock.asking(self._monotonic())
                body = await self._send(turn, market, "time", {}, MAX_PAGE_BYTES)
                clock.answered(self._decode(market, decode_time, body, "time"), self._monotonic())

        async def fetch() -> None:
            try:
                if clock.answer_age_s(self._monotonic()) >= ASK_TIME_EVERY_S:
                    await self._repeat(gate, question, ask)
            finally:
                self._time_errands.pop(market, None)

        await self._time[market].get(fetch)

    async def knows(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series' symbol. Raises `UpstreamError` when it never told its list."""
        return await self.refusal(series) is None

    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series cannot be had, as a sentence; None when the exchange lists its symbol.

        A list is good for an hour, one without the symbol for a minute; an older one when the exchange cannot be
        asked. Raises `UpstreamError` when there is none at all.
        """
        market = series.market
        if series.exchange != EXCHANGE or market not in self._routes:
            return f"{series.exchange} has no market {market}"
        if (why := coin_margined(series)) is not None:
            return why
        table = await self._kept(market)
        try:
            table = await self._table(market, LISTINGS_TTL_S)
            if table.symbol_id(series.symbol) is None:
                table = await self._table(market, UNLISTED_TTL_S)
        except UpstreamError as error:
            if table is None:
                raise
            self._warn(
                market, "symbols.outdated", "no new list of symbols, an older one is used", market=market, error=error
            )
        if table.symbol_id(series.symbol) is None:
            return f"{EXCHANGE} lists no such symbol on its {market} market"
        return None

    async def symbol_id(self, series: SeriesId) -> str:
        """The exchange's name of the series' symbol. Raises `NotListed`, and `UpstreamError` when its list cannot be
        had."""
        table = await self._kept(series.market)
        found = None if table is None else table.symbol_id(series.symbol)
        if found is None:
            why = await self.refusal(series)
            found = self.symbol_id_now(series)
            if why is not None or found is None:
                raise NotListed(f"{series}: {why or 'the exchange lists it no more'}")
        return found

    def symbol_id_now(self, series: SeriesId) -> str | None:
        """The exchange's name of the series' symbol by the newest list that there is; None when it is not in it."""
        listed = self._listed.get(series.market)
        return None if listed is None else listed.table.symbol_id(series.symbol)

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """What the market lists, by our symbol, as it told at most `max_age_s` ago. Raises `UpstreamError`."""
        return (await self._table(market, max_age_s)).by_name

    async def _table(self, market: str, max_age_s: float) -> SymbolTable:
        listed = self._listed.get(market)
        if listed is None or self._monotonic() - listed.at_s > max_age_s:
            listed = await self._listing[market].get(partial(self._ask_listings, market))
        return listed.table

    async def _kept(self, market: str) -> SymbolTable | None:
        """The newest list that there is, however old; None when there is none. Asks nobody."""
        if market not in self._listed and self._shelf is not None and market not in self._shelf_read:
            self._shelf_read.add(market)
            listings = await self._shelf.load(market)
            if listings and market not in self._listed:
                self._listed[market] = _Listed(float("-inf"), SymbolTable(listings))
        listed = self._listed.get(market)
        return None if listed is None else listed.table

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol, asked now. Those that are no finite numbers are left out. Raises
        `UpstreamError`."""
        body = await self._ask(market, "ticker/24hr", WEIGHTS[market].tickers, MAX_LIST_BYTES)
        tickers, left_out = self._decode(market, decode_tickers, body, "ticker/24hr")
        self._leave_out(market, "ticker", left_out)
        return tickers

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles of the span `[start, end)`, a page at a time, ascending; without `end` up to the newest candle
        that is proven final.

        Bad rows are quarantined: left out, counted and logged. Raises `UpstreamError`; nothing of a page that cannot
        be what was asked for is yielded.
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
            # Rows at `end` and behind it were asked for as proof alone.
            last = frame.floor(times[-1] // 1000)
            if overlaps and last <= start:
                return  # nothing follows the row that pages overlap by
            proven = final_end(frame, [time_ms // 1000 for time_ms in times], page.final_ms, self._final_margin_ms)
            reached = end is not None and end <= proven
            if end is not None:
                proven = min(proven, end)
            # What is not final does not prove a hole before it either: it is not stored.
            final = [time_ms for time_ms in times if time_ms < proven * 1000]
            candles = self._sound(series, [row for row in page.klines.rows if row[0] < proven * 1000])
            # A row that is no candle still says that there is something; one off the grid leaves its minute uncovered.
            shown = [time_ms // 1000 for time_ms in final if time_ms % 1000 == 0 and frame.is_open(time_ms // 1000)]
            if first and final and series.market == "futures" and frame.floor(times[0] // 1000) > start:
                unlisted = await self._before_listing(series, start, times[0] // 1000)
                if unlisted is not None:
                    # With the candle behind it, so that what is written is a hole with its proof.
                    yield HistoryPage(candles[:1], [unlisted], NOT_LISTED_BEFORE)
            empty = [] if page.klines.blind else EMPTINESS.proven(frame, shown, page.estimate_ms)
            if candles or empty:
                yield HistoryPage(candles, empty)
            first = first and not final
            # Fewer rows than were asked for do not show the end: an exchange may give fewer than it says. What would
            # follow the newest row has not ended, or an answer without anything new shows it.
            now_ms = page.estimate_ms
            follows = self._is_late(page) or now_ms is None or now_ms >= frame.next(frame.next(last)) * 1000
            ends_now = now_ms is not None and last * 1000 <= now_ms < frame.next(last) * 1000
            full = page.klines.count >= page.limit and not ends_now
            if reached or (not follows and proven > last):
                return
            progress = shown[-1] if shown else start
            overlaps = progress > start
            if progress <= start or not (full or follows):
                # A newer stamp may prove the rows that are left: again from the newest one that is final.
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
        """One page of rows from `start` on; with `end` those before that, and the rows behind them that prove
        the newest where no clock does."""
        market, gate, clock = series.market, self._gate(series.market), self._clocks[series.market]
        weights = WEIGHTS[market]
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
            # Binance's `endTime` is the newest open time that is wanted.
            params["endTime"] = str(series.timeframe.shift(end, -1) * 1000)

        async def ask() -> _Page:
            async with gate.turn(errand, weights.page(limit), "klines") as turn:
                now_s = self._monotonic()
                final_ms, estimate_ms = clock.final_ms(now_s), clock.estimate_ms(now_s)
                errand.begun = True
                body = await self._send(turn, market, "klines", params, MAX_PAGE_BYTES)

            def checked(body: bytes) -> _Page:
                page = _Page(decode_klines(body), limit, final_ms, estimate_ms)
                self._check_page(series, page, start, end)
                return page

            return self._decode(market, checked, body, "klines")

        page = await self._repeat(gate, errand, ask)
        self._leave_out(market, "kline", page.klines.left_out, series)
        return page

    def _expected(self, series: SeriesId, start: int, end: int | None) -> int | None:
        """How many rows there may be from `start` on, as far as can be known."""
        frame = series.timeframe
        if end is not None:
            return max(LEAST_ROWS, frame.count(start, end))
        now_ms = self._clocks[series.market].estimate_ms(self._monotonic())
        return None if now_ms is None else max(LEAST_ROWS, frame.count(start, frame.floor(now_ms // 1000)) + 2)

    def _proves(self, end: int, final_ms: int | None) -> bool:
        """Whether a clock proves all candles before `end`."""
        return final_ms is not None and end * 1000 + self._final_margin_ms <= final_ms

    def _needs_time(self, series: SeriesId, start: int, end: int | None) -> bool:
        """Whether the exchange must be asked for its time before a page from `start` on: by our estimate the newest
        candle that has ended is final, and no clock proves it."""
        frame, clock, now_s = series.timeframe, self._clocks[series.market], self._monotonic()
        estimate_ms = clock.estimate_ms(now_s)
        if estimate_ms is None:
            return end is None  # else later rows may do
        ended = frame.floor((estimate_ms - self._final_margin_ms) // 1000)
        if ended <= start:
            return False
        if end is not None and end <= frame.shift(ended, -LATER_ROWS):
            return False  # the rows behind it prove it
        if clock.difference(now_s) is not None:
            return False  # the clocks prove nothing
        return not self._proves(ended, clock.final_ms(now_s))

    def _is_late(self, page: _Page) -> bool:
        """Whether the exchange's time, asked now, might prove more of a page: nothing was known of it, or a row opens
        later than what was known."""
        return page.estimate_ms is None or page.klines.times[-1] > page.estimate_ms

    async def _try_time(self, market: str, errand: Errand) -> bool:
        """Ask for the exchange's time; whether it was told. Without it two later rows alone prove."""
        clock = self._clocks[market]
        try:
            if clock.estimate_ms(self._monotonic()) is None:
                await self.now_ms(market)
            else:
                await self._ask_time(market, errand)
        except UpstreamError as error:
            if error.status in (418, 429):
                raise  # no request goes; where the time alone is held, rows may be served all the same
            self._warn(
                (market, "time"),
                "exchange.time_failed",
                "the market does not tell its time",
                market=market,
                error=error,
            )
            return False
        return True

    def _check_page(self, series: SeriesId, page: _Page, start: int, end: int | None) -> None:
        """Raises `UpstreamError` when the rows cannot be what was asked for."""
        times = page.klines.times
        if not times:
            if page.klines.count:
                raise self._nonsense(
                    series.market, "klines", "the answer to klines cannot be understood: no row has a time"
                )
            return
        if times[0] < start * 1000 or not _ascending(times):
            raise self._nonsense(
                series.market, "klines", f"{series}: a page of klines from {date_text(start)} on is not in order"
            )
        if page.klines.count > page.limit or (end is not None and times[-1] >= end * 1000):
            raise self._nonsense(
                series.market,
                "klines",
                f"{series}: a page of klines from {date_text(start)} on is more than was asked for",
            )
        known_ms = self._clocks[series.market].estimate_ms(self._monotonic())
        if known_ms is not None and times[-1] > known_ms + LONGEST_AHEAD_MS:
            raise self._nonsense(
                series.market, "klines", f"{series}: a page of klines from {date_text(start)} on lies in the future"
            )

    async def _before_listing(self, series: SeriesId, start: int, first: int) -> Span | None:
        """What is empty behind `start` as the symbol was not listed then, when its first row opens at `first`."""
        try:
            listing = (await self.listings(series.market, UNLISTED_TTL_S)).get(series.symbol)
        except UpstreamError as error:
            self._warn(
                series.market,
                "symbols.onboard_failed",
                "since when it is listed cannot be asked",
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
        """The rows that are candles; the others are quarantined."""
        candles = []
        for row in rows:
            try:
                if row[0] % 1000:
                    raise BadCandle(row[0] / 1000, "its time is no whole second")
                candles.append(check_candle(Candle(row[0] // 1000, *row[1:]), series.timeframe))
            except BadCandle as error:
                self.left_out[series.market, "kline"] += 1
                self._warn(series, "rest.row_quarantined", "a REST row is quarantined", series=series, error=error)
        return candles

    # Lists.

    async def _ask_listings(self, market: str) -> _Listed:
        failed_at_s, failure = self._not_listed.get(market, (float("-inf"), None))
        now_s, whole = self._monotonic(), self._whole.setdefault(market, WholeLists())
        if failure is not None and (now_s - failed_at_s < LISTINGS_PAUSE_S or whole.pause_s(now_s) > 0.0):
            raise UpstreamError(str(failure), failure.status, failure.retry_after_s)
        kept = await self._kept(market)
        if kept is not None:
            whole.kept(kept.by_name.keys())
        try:
            body = await self._ask(market, "exchangeInfo", WEIGHTS[market].exchange_info, MAX_LIST_BYTES)
            listings, left_out = self._decode(market, partial(decode_listings, market), body, "exchangeInfo")
            table = SymbolTable(listings)
            # A market without symbols that never had one is believed: an exchange may have one market only.
            why = whole.refusal(table.by_name.keys(), self._monotonic(), expected=False)
            if why is not None:
                raise self._nonsense(market, "exchangeInfo", f"the answer to exchangeInfo {why}: it is no whole list")
        except UpstreamError as error:
            self._not_listed[market] = (self._monotonic(), error)
            raise
        for listing in table.ambiguous:
            left_out.add(f"{listing.symbol_id}: more than one symbol is named {listing.symbol}, or like it")
        self._leave_out(market, "symbol", left_out)
        listed = self._listed[market] = _Listed(self._monotonic(), table)
        if self._shelf is not None:
            await self._shelf.keep(market, list(table.by_name.values()))
        return listed

    # Requests.

    def _gate(self, market: str) -> RestGate:
        gate = self._gates.get(market)
        if gate is None:
            name = f"{EXCHANGE} {market} ({self._routes[market].base_url})"
            budget = WeightBudget(WEIGHTS[market].limit, self._share)
            gate = self._gates[market] = RestGate(
                name, budget, self._clocks[market], self._monotonic, self.access(market)
            )
        return gate

    async def _ask(self, market: str, name: str, weight: int, most_bytes: int) -> bytes:
        """What a user waits for."""
        gate, errand = self._gate(market), Errand(Urgency.READ)

        async def ask() -> bytes:
            async with gate.turn(errand, weight, name) as turn:
                return await self._send(turn, market, name, {}, most_bytes)

        return await self._repeat(gate, errand, ask)

    async def _repeat(self, gate: RestGate, errand: Errand, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Ask again what was not answered, a bounded number of times."""
        for attempt in count():
            try:
                return await ask()
            except _Passing as error:
                blocked = error.retry_after_s is not None
                if attempt >= RETRIES or (blocked and not gate.waits(errand)):
                    raise
            if not blocked:  # else the gate knows when the host wants to be asked again
                await asyncio.sleep(RETRY.delay_s(attempt, self._rng))
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, turn: Turn, market: str, name: str, params: Mapping[str, str], most_bytes: int) -> bytes:
        """The body of one answer, which is no longer than `most_bytes`."""
        gate, url = self._gate(market), self._routes[market].url(name)
        if (left_s := gate.blocked_s) > 0.0:  # since this turn began: it is the second request of it
            raise _Passing(f"{url}: the host wants to be left alone for {left_s:.0f} s more", 429, left_s)
        gate.sent(turn)
        try:
            async with self._session.get(url, params=params) as response:
                status, elsewhere = response.status, location(response)
                retry_after_s = gate.answered(turn, status, response.headers)
                body = await read_body(response, most_bytes if status == 200 else MAX_PROBLEM_BYTES)
        except TimeoutError as error:
            gate.count_error(0)
            raise self._failed(
                turn, market, _Passing(f"{url} did not answer within {TIMEOUT_S:g} s", cause=unreachable(url, error))
            ) from error
        except aiohttp.ClientError as error:
            gate.count_error(0)
            reason = unreachable(url, error)
            raise self._failed(turn, market, _Passing(reason, cause=reason)) from error
        if status == 200:
            if len(body) > most_bytes:
                raise self._nonsense(market, name, f"the answer to {name} is longer than {most_bytes} bytes")
            return body
        gate.count_error(status)
        kind = _Passing if status >= 500 or retry_after_s is not None else UpstreamError
        reason = f"{url} answered {status}{elsewhere}: {decode_problem(body)}"
        if status in CALLED_WRONG:
            self.access(market).served(name)
        raise self._failed(turn, market, kind(reason, status, retry_after_s))

    def _failed(self, turn: Turn, market: str, error: UpstreamError) -> UpstreamError:
        """The same error of a request, once it is noted as the newest contact."""
        self.access(market).failed(turn.kind, error.status, str(error), turn.went_s, self._monotonic())
        return self._not_well(market, error)

    def _not_well(self, market: str, error: UpstreamError) -> UpstreamError:
        self._contacts[market] = replace(self.contact(market), failure=str(error), status=error.status)
        return error

    def _decode(self, market: str, decode: Callable[[bytes], Decoded], body: bytes, name: str) -> Decoded:
        try:
            answer = decode(body)
        except BadAnswer as error:
            raise self._nonsense(market, name, f"the answer to {name} cannot be understood: {error}") from error
        self.access(market).served(name)
        self._contacts[market] = RestContact(self._monotonic())  # only what is understood is an answer
        return answer

    def _leave_out(self, market: str, kind: str, left_out: LeftOut, key: object = "") -> None:
        """Count the items of an answer that could not be used, and say so now and then."""
        if left_out.count:
            self.left_out[market, kind] += left_out.count
            what = f"{market}: {left_out.count} of the items of one answer ({kind}) are left out; {left_out.first}"
            self._warn((market, kind, key), "rest.items_left_out", what, market=market)

    def _nonsense(self, market: str, name: str, what: str) -> UpstreamError:
        self._gate(market).count_error(200)
        now_s = self._monotonic()
        self.access(market).failed(name, 200, what, now_s, now_s)
        return self._not_well(market, UpstreamError(what))

    def _warn(self, key: object, event: LogEvent, sentence: str, **fields: object) -> None:
        suppressed = self._log_limit.allow(key, self._monotonic())
        if suppressed is not None:
            log.warning(event, sentence, **fields, suppressed=suppressed)


def _ascending(times: list[int]) -> bool:
    return all(one < other for one, other in pairwise(times))

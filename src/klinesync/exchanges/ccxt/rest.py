"""CcxtRest: the REST of any exchange that ccxt knows: its time, lists and history, and the interval of polls.

The file is long because each answer updates the clocks, listings and margin on which the next request depends.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from klinesync.core.errors import WRONG_REQUEST, BadCandle, UpstreamError
from klinesync.core.finality import LATER_ROWS
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.client import Abilities, Answer, CcxtClient
from klinesync.exchanges.ccxt.rows import (
    LONGEST_AHEAD_MS,
    MEASURE_AHEAD_MS,
    Page,
    ccxt_symbol,
    newest_open_ms,
    next_start,
    read_page,
)
from klinesync.exchanges.ccxt.timings import USUAL_CCXT, CcxtTimings
from klinesync.exchanges.ccxt.venue_margin import DateClock, VenueMargin
from klinesync.exchanges.ccxt.venues import Polling, polling
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import (
    Errand,
    HistoryPage,
    Listing,
    Reach,
    StreamCounts,
    Ticker,
    Urgency,
)
from klinesync.exchanges.whole_lists import WholeLists
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.single_flight import SingleFlight

log = Log(__name__)

# Most requests for the time until the clock is known: two answers must agree.
TIME_ANSWERS = 6
# Largest and smallest share of the allowed requests for polls of forming candles (less where closes take many), and the
# share that neither polls nor closes use.
POLL_SHARE = 0.5
LEAST_POLL_SHARE = 0.05
SPARE_SHARE = 0.1
# Fewest rows of an answer: only a clock proves the newest two, and the first one repeats the last of the page before.
LEAST_ROWS = 4
# Shortest time between two log lines about one series, in seconds.
LOG_EVERY_S = 60.0
_ANY_FRAME = Timeframe.parse("1m")


class CcxtRest:
    """The REST of one exchange. Its owner must close it.

    client: the exchange through ccxt.
    clocks: its time by market; answers set these clocks.
    final_margin_s: how long after its end a row may still change, in seconds of the exchange.
    monotonic: our clock, in seconds.
    rng: jitter.
    timings: waits and intervals.
    bulkheads: contain defects.
    """

    def __init__(
        self,
        client: CcxtClient,
        *,
        clocks: Mapping[str, ExchangeClock],
        final_margin_s: float,
        monotonic: Callable[[], float],
        rng: random.Random,
        timings: CcxtTimings = USUAL_CCXT,
        bulkheads: Bulkheads | None = None,
    ) -> None:
        self.timings = timings
        self.bulkheads = bulkheads or Bulkheads()
        self.client = client
        self.name = client.name
        self.venue = client.venue
        self.emptiness = client.venue.emptiness
        self.clocks = clocks
        self.margin = VenueMargin(int(final_margin_s * 1000))
        self.monotonic = monotonic
        self.rng = rng
        self.polled = 0  # series that are polled, of all connections
        self._counts = {market: StreamCounts() for market in clocks}
        self._left_out: Counter[tuple[str, str]] = Counter()
        self._abilities: Abilities | None = None
        self._asking_abilities: SingleFlight[Abilities] = SingleFlight()
        self._listed: dict[str, tuple[float, Mapping[str, Listing]]] = {}
        self._listing: SingleFlight[None] = SingleFlight()
        self._not_listed: dict[str, UpstreamError] = {}
        self._whole = {market: WholeLists(timings=timings.lists) for market in clocks}
        self._lists_asked = False  # ccxt caches the first answer until it is asked to reload
        self._most_rows: dict[str, int | None] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)
        self._leaving: set[asyncio.Task[None]] = set()
        self._time: dict[str, SingleFlight[None]] = {market: SingleFlight() for market in clocks}
        self._dated_s: dict[str, float] = {}
        self._dates = {market: DateClock() for market in clocks}

    async def abilities(self) -> Abilities:
        """The features of the exchange. Raises `UpstreamError`, with status 400 when ccxt has no such exchange."""
        if self._abilities is None:
            self._abilities = await self._asking_abilities.get(self.client.abilities)
        return self._abilities

    async def now_ms(self, market: str) -> int:
        """The exchange's time, UTC milliseconds, requested now. An exchange without a request for its time gives it by
        the newest `Date` header, or else by the newest open time. A doubted answer is requested again, at most
        `TIME_ANSWERS` times. Raises `UpstreamError`."""
        clock = self.clocks[market]
        for _ in range(TIME_ANSWERS):
            await self._ask_time(market, Errand(Urgency.READ))
            estimate_ms = clock.estimate_ms(self.monotonic())
            if estimate_ms is not None and not clock.doubts_answer:
                return estimate_ms
            await asyncio.sleep(max(0.0, self.timings.ask_time_every_s - clock.answer_age_s(self.monotonic())))
        estimate_ms = clock.estimate_ms(self.monotonic())
        if estimate_ms is not None:
            return estimate_ms  # answers that do not agree with each other move no clock
        raise UpstreamError(f"{self.client.name}: {TIME_ANSWERS} answers to the time do not agree with each other")

    def contact(self, market: str) -> RestContact:
        """The newest contact with the exchange: its markets share one client."""
        cooldown_s = self.client.turns.refused_s
        return replace(self.client.contact, final_margin_s=self.margin.ms / 1000, cooldown_s=cooldown_s)

    async def refusal(self, series: SeriesId) -> str | None:
        """Why the exchange has no candles of the series, as a sentence; None when it has. Raises `UpstreamError`."""
        try:
            can = await self.abilities()
        except UpstreamError as error:
            if error.status == WRONG_REQUEST:
                return str(error)
            raise
        frame = series.timeframe.code
        if not can.history:
            return f"ccxt has no OHLCV of {self.client.name}"
        if can.timeframes is not None and frame not in can.timeframes:
            return f"{self.client.name} has no {frame}; it has {' '.join(sorted(can.timeframes))}"
        if series.market not in self.clocks:
            return f"{self.client.name} has no market {series.market}"
        try:
            listings = await self.listings(series.market, self.timings.listings_ttl_s)
            if series.symbol not in listings:
                listings = await self.listings(series.market, self.timings.unlisted_ttl_s)
        except UpstreamError:
            if series.market not in self._listed:
                raise
            listings = self._listed[series.market][1]  # the previous list, while a new one cannot be requested
        if series.symbol not in listings:
            return f"{self.client.name} lists no {ccxt_symbol(series)} on its {series.market} market"
        return None

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """The listings of a market, by our symbol.

        market: name of the market.
        max_age_s: greatest age of the list, in seconds; at least `unlisted_ttl_s` applies. 0 requests a new list, to
            confirm that a symbol is gone.

        Raises `UpstreamError`, also for an answer that is no complete list; the previous list stays valid then.
        """
        listed, now_s = self._listed.get(market), self.monotonic()
        fresh_s = max(max_age_s, self.timings.unlisted_ttl_s) if max_age_s > 0.0 else 0.0
        if listed is not None and now_s - listed[0] <= fresh_s:
            return listed[1]
        if self._whole[market].pause_s(now_s) <= 0.0:
            await self._listing.get(self._ask_listings)
        if (failure := self._not_listed.get(market)) is not None:
            raise UpstreamError(str(failure), failure.status, failure.retry_after_s)
        return self._listed[market][1]

    async def _ask_listings(self) -> None:
        """Request the lists of all markets, which come in one answer."""
        unjudged = set(self.clocks)

        def judge(market: str, listings: Mapping[str, Listing], expected: bool) -> str | None:
            unjudged.discard(market)
            why = self._whole[market].refusal(listings.keys(), self.monotonic(), expected=expected)
            if why is None:
                self._not_listed.pop(market, None)
            else:
                name = self.client.name
                self._not_listed[market] = UpstreamError(f"{name} {why}: no whole list of its {market} market")
            return why

        again, self._lists_asked = self._lists_asked, True
        try:
            lists = await self.client.listings(Errand(Urgency.READ), again=again, judge=judge)
        except UpstreamError as error:
            for market, whole in self._whole.items():
                if market in unjudged or market not in self._not_listed:
                    whole.failed(self.monotonic())
                    self._not_listed[market] = error
            return
        now_s = self.monotonic()
        self._listed.update({market: (now_s, listings) for market, listings in lists.items()})

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol. Raises `UpstreamError`, with status 400 when the exchange has no such
        list."""
        if not (await self.abilities()).tickers:
            raise UpstreamError(f"{self.client.name} has no list of tickers", 400)
        listings = await self.listings(market, self.timings.listings_ttl_s)
        symbols = {
            ccxt_symbol(SeriesId(self.client.name, market, listing.symbol, _ANY_FRAME)): listing.symbol_id
            for listing in listings.values()
        }
        return await self.client.tickers(symbols, Errand(Urgency.READ))

    async def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """The closed candles of the span `[start, end)`, a page at a time. See `Exchange.history`. Raises
        `UpstreamError`."""
        frame, clock = series.timeframe, self.clocks[series.market]
        if series.market in self.venue.depth and clock.estimate_ms(self.monotonic()) is None:
            await self.now_ms(series.market)
        reach = self.reach(series)
        at: int | None = start if reach is None else max(start, reach.oldest)
        while at is not None and (end is None or at < end):
            limit = await self.limit(series, at, end)
            page = await self.page(series, at, end, limit, errand, prove=True)
            if page.candles or page.empty:
                yield HistoryPage(page.candles, page.empty)
            now_ms = clock.estimate_ms(self.monotonic())
            now_s = None if now_ms is None else now_ms // 1000
            at = next_start(frame, at, page, end, limit, now_s, self.venue.window)

    def reach(self, series: SeriesId) -> Reach | None:
        """The limit of the exchange's history of a series; None when the exchange gives all of it, or when its time is
        not known."""
        now_ms = self.clocks[series.market].estimate_ms(self.monotonic())
        oldest = None if now_ms is None else self.venue.oldest(series, now_ms // 1000)
        return None if oldest is None else Reach(oldest, self.venue.depth_sentence(series))

    def polling(self, market: str) -> Polling | None:
        """The cost of following series of a market by polling; None while the rate limit is unknown."""
        can = self._abilities
        return polling(self.venue, market, None if can is None else can.rate_limit_s)

    def load(self, series: SeriesId) -> float:
        """See `Exchange`."""
        cost = self.polling(series.market)
        return 0.0 if cost is None else cost.load([series.timeframe])

    def too_many(self, series: SeriesId, count: int) -> str:
        """See `Exchange`."""
        cost = self.polling(series.market)
        assert cost is not None, "it has a load"
        return cost.too_many(count, series.timeframe)

    # What the connections use.

    async def page(
        self,
        series: SeriesId,
        start: int,
        end: int | None,
        limit: int | None,
        errand: Errand,
        *,
        prove: bool,
        not_empty: bool = False,
    ) -> Page:
        """Request one page of rows. Invalid rows are counted and logged.

        series: the series.
        start: the open time of the first row.
        end: the open time before which candles are wanted; None: up to now.
        limit: most rows; None: the exchange's default.
        errand: urgency of the request.
        prove: whether the exchange's time is requested first, where that can prove further rows to be final.
        not_empty: whether an answer without rows is an error, because the series had rows before. False by default.

        Raises `UpstreamError`.
        """
        can, clock = await self.abilities(), self.clocks[series.market]
        frame, asked_s = series.timeframe, self.monotonic()
        if prove and can.time and self._may_prove(series, start, end, limit):
            await (self.now_ms(series.market) if clock.rest_ms is None else self._ask_time(series.market, errand))
        final_ms = clock.final_ms(self.monotonic())
        charged = self._charged(series, start, limit)
        answer = await self.client.rows(series, start, limit, errand, charged, not_empty=not_empty)
        self._learn(series, answer, can)
        page = read_page(
            frame,
            answer.rows,
            start,
            end,
            final_ms=final_ms,
            known_ms=await self._known_ms(series.market, asked_s, newest_open_ms(answer.rows)),
            margin_ms=self.margin.ms,
            emptiness=self.emptiness,
        )
        for bad in page.bad:
            self.quarantine(series, bad)
        return page

    async def _known_ms(self, market: str, asked_s: float, newest_ms: int | None) -> int | None:
        """The exchange's time at a request, UTC milliseconds; None when unknown. The time is requested when the newest
        row opens much later than the estimate.

        market: name of the market.
        asked_s: when the rows were requested, monotonic seconds.
        newest_ms: the newest open time of the answer; None without rows.

        Raises `UpstreamError`.
        """
        clock = self.clocks[market]
        known_ms = clock.estimate_ms(asked_s)
        if known_ms is None or newest_ms is None or newest_ms <= known_ms + MEASURE_AHEAD_MS:
            return known_ms
        # An answer of a moment ago may be from before the clock jumped.
        await asyncio.sleep(max(0.0, self.timings.ask_time_every_s - clock.answer_age_s(self.monotonic())))
        try:
            measured_ms = await self.now_ms(market)
        except UpstreamError as error:
            if error.status in (418, 429):
                raise
            suppressed = self._log_limit.allow((market, "time"), self.monotonic())
            if suppressed is not None:
                sentence = "the time of the market cannot be requested"
                log.warning("exchange.time_failed", sentence, market=market, suppressed=suppressed, error=error)
            return known_ms
        return max(known_ms, min(measured_ms, newest_ms))

    def _charged(self, series: SeriesId, start: int, limit: int | None) -> int:
        """The number of candles for which a request from `start` on is charged: all up to now, where the venue's window
        is open-ended."""
        frame, now_ms = series.timeframe, self.clocks[series.market].estimate_ms(self.monotonic())
        if now_ms is None:
            return limit or 0
        return min(frame.count(start, max(start, frame.floor(now_ms // 1000))) + 1, self.venue.window or limit or 0)

    def quarantine(self, series: SeriesId, bad: BadCandle) -> None:
        """Count an invalid row and log it, throttled."""
        self._left_out[series.market, "kline"] += 1
        suppressed = self._log_limit.allow(series, self.monotonic())
        if suppressed is not None:
            log.warning("rest.row_quarantined", "a row is quarantined", series=series, suppressed=suppressed, error=bad)

    def pause_s(self, series: SeriesId, can: Abilities, *, confirms: bool = False) -> float:
        """The pause between two polls of a series, in seconds; longer where many series are polled.

        series: the series.
        can: the features of the exchange.
        confirms: whether a candle was just published as closed, so that the next poll must come soon.
        """
        timings = self.timings
        length_s = min(series.timeframe.seconds / timings.polls_per_candle, timings.poll_most_s)
        if confirms:
            length_s = min(length_s, timings.confirm_s)
        elif (cost := polling(self.venue, series.market, can.rate_limit_s)) is not None:
            # Requests for closed candles come first: the more series, the fewer polls of forming candles.
            closes = self.polled * cost.needs(series.timeframe) / cost.per_minute
            share = max(LEAST_POLL_SHARE, min(POLL_SHARE, 1.0 - SPARE_SHARE - closes))
            length_s = max(length_s, min(self.polled * cost.request_s / share, timings.poll_most_s))
        return max(timings.poll_least_s, length_s) * self.rng.uniform(0.9, 1.1)

    def leave(self, series: SeriesId, can: Abilities) -> None:
        """Unsubscribe the stream of a series, where the exchange has such a request, without waiting for the answer."""
        if can.unwatch:
            loop, work = asyncio.get_running_loop(), partial(self._unwatch, series)
            task = self.bulkheads.begin(loop, work, part=Part.CONNECTION, name=f"unwatch {series}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unwatch(self, series: SeriesId) -> None:
        try:
            await self.client.unwatch(series)
        except UpstreamError as error:
            log.info("stream.unsubscribe_failed", "its stream stays subscribed", series=series, error=error)

    async def limit(self, series: SeriesId, start: int, end: int | None) -> int | None:
        """The number of rows to request from `start` on; None when the page size of the exchange is unknown. `end`: the
        open time before which candles are wanted, None: up to now. Raises `UpstreamError`, with status 400 for a series
        that the exchange does not have."""
        market = series.market
        listed = series.symbol in self._listed.get(market, (0.0, {}))[1]
        if not listed or series.timeframe.code not in ((await self.abilities()).timeframes or Timeframe.known):
            why = await self.refusal(series)  # which also has ccxt load its list of symbols
            if why is not None:
                raise UpstreamError(f"{series}: {why}", 400)
        if market not in self._most_rows:
            self._most_rows[market] = self.venue.page.get(market) or await self.client.most_rows(series)
        most = self._most_rows[market]
        if most is None or end is None:
            return most
        # With the later rows that prove the wanted ones to be final.
        return max(LEAST_ROWS, min(most, series.timeframe.count(start, end) + LATER_ROWS))

    def _may_prove(self, series: SeriesId, start: int, end: int | None, limit: int | None) -> bool:
        """Whether a new answer to the time can prove rows to be final which the newest answer cannot."""
        clock, frame = self.clocks[series.market], series.timeframe
        if clock.rest_ms is None:
            return True
        ends = [] if end is None else [end]
        if limit is not None:
            ends.append(frame.shift(start, limit))
        estimate_ms = clock.estimate_ms(self.monotonic())
        if estimate_ms is not None:
            ends.append(frame.floor((estimate_ms - self.margin.ms) // 1000))
        return not ends or min(ends) * 1000 + self.margin.ms > clock.rest_ms

    async def _ask_time(self, market: str, errand: Errand) -> None:
        """Request the exchange's time, unless an answer came a moment ago. Raises `UpstreamError`."""
        clock = self.clocks[market]

        async def fetch() -> None:
            if clock.answer_age_s(self.monotonic()) < self.timings.ask_time_every_s:
                return
            if (await self.abilities()).time:
                clock.asking(self.monotonic())
                stamp_ms = await self.client.now_ms(errand)
                clock.answered(stamp_ms, self.monotonic())
            elif (
                clock.estimate_ms(self.monotonic()) is None or self._date_age_s(market) >= self.timings.ask_date_every_s
            ):
                self._dated_s[market] = self.monotonic()
                await self._ask_date(market, errand)

        await self._time[market].get(fetch)

    def _date_age_s(self, market: str) -> float:
        """Seconds since the newest answer with a `Date`, of an exchange without a request for its time."""
        return self.monotonic() - self._dated_s.get(market, float("-inf"))

    async def _ask_date(self, market: str, errand: Errand) -> None:
        """Request rows: their `Date` header and newest open time show the time. Raises `UpstreamError`."""
        can, clock = await self.abilities(), self.clocks[market]
        symbols = await self.listings(market, self.timings.listings_ttl_s)
        trading = next((symbol for symbol in symbols.values() if symbol.trading), None)
        if trading is None:
            raise UpstreamError(f"{self.client.name} lists nothing on its {market} market to tell the time by", 400)
        frames = (frame for frame in Timeframe.known.values() if can.timeframes is None or frame.code in can.timeframes)
        series = SeriesId(self.client.name, market, trading.symbol, next(frames, _ANY_FRAME))
        answer = await self.client.rows(series, None, None, errand)
        self._learn(series, answer, can)
        if clock.rest_ms is None:
            raise UpstreamError(f"{self.client.name} does not tell the time")

    def _learn(self, series: SeriesId, answer: Answer, can: Abilities) -> None:
        """Set the clock of an exchange without a request for its time: by the `Date` header, where rows confirm it,
        or else by the newest row."""
        if can.time:
            return
        clock, now_s = self.clocks[series.market], self.monotonic()
        self._dated_s[series.market] = now_s
        newest_ms = newest_open_ms(answer.rows)
        if newest_ms is not None and clock.rest_ms is not None:
            known_ms = max(clock.rest_ms, answer.date_ms or 0)  # the clock is old after this machine slept
            if newest_ms > known_ms + LONGEST_AHEAD_MS:
                return  # no row of this exchange
        stamp_ms = newest_ms
        if answer.date_ms is not None:
            stamp_ms = self._dates[series.market].answered(answer.date_ms, newest_ms, now_s)
        if stamp_ms is not None and stamp_ms > (clock.rest_ms or 0):
            clock.learn(stamp_ms, now_s)

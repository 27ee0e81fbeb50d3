"""CcxtExchange over an exchange object of our own: what proves a row final, and the assumed exchange time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate

import pytest

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.ccxt import rest as ccxt_rest
from klinesync.exchanges.ccxt.client import CcxtClient
from klinesync.exchanges.ccxt.exchange import CcxtExchange
from klinesync.exchanges.ccxt.rows import Row
from klinesync.exchanges.ccxt.thread import CcxtThread
from klinesync.exchanges.ccxt.timings import CcxtTimings
from klinesync.exchanges.exchange import Errand, KlineEvent, StreamCallbacks, Urgency
from klinesync.runtime.exchange_clock import ExchangeClock

BTC = SeriesId.parse("fake:spot:BTC/USDT:1m")
T0 = 1_700_000_040
MARGIN_S = 2.0
WAIT_S = 30.0


# No wait before the time is requested again.
AT_ONCE = CcxtTimings(ask_time_every_s=0.0, poll_least_s=0.05, begin_again=Backoff(0.1, 0.2, jitter=0.5))


def row(minute: int) -> Row:
    return ((T0 + 60 * minute) * 1000, 1.0, 2.0, 0.5, 1.5, 10.0)


def candle(minute: int) -> Candle:
    return Candle(T0 + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0)


class Fake:
    """An exchange object like ccxt's. `now_s`: its time; `minutes`: the minutes with rows; `pushes`: the pushes of its
    stream."""

    def __init__(self, minutes: Iterable[int], now_s: float, **has: object) -> None:
        self.has: Mapping[str, object] = {"fetchOHLCV": True, "fetchTime": True} | has
        self.timeframes: Mapping[str, object] | None = {"1m": "1m"}
        self.rateLimit = 1.0
        self.last_response_headers: Mapping[str, str] | None = None
        self.minutes: Sequence[int] = list(minutes)
        self.now_s = now_s
        self.asked: list[str] = []
        self.sinces: list[int | None] = []
        self.bases = ["BTC"]
        self.lists: list[bool] = []  # whether each was requested again
        self.tells_date = False
        self.pushes: asyncio.Queue[Sequence[Row]] = asyncio.Queue()

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if self.tells_date:
            self.last_response_headers = {"Date": formatdate(self.now_s, usegmt=True)}

    async def load_markets(self, reload: bool = False) -> Mapping[str, Mapping[str, object]]:
        self.lists.append(reload)
        facts: Mapping[str, object] = {"quote": "USDT", "spot": True}
        return {f"{base}/USDT": {"base": base, "id": f"{base}USDT", **facts} for base in self.bases}

    def feature_value(self, symbol: str, method: str, parameter: str) -> object:
        return 100

    async def fetch_time(self) -> int | None:
        self._answer("time")
        return int(self.now_s * 1000)

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str, since: int | None = None, limit: int | None = None
    ) -> Sequence[Row]:
        self._answer("rows")
        self.sinces.append(since)
        rows = [row(minute) for minute in self.minutes]
        return [one for one in rows if since is None or (one[0] or 0) >= since][:limit]

    async def fetch_tickers(self, symbols: list[str]) -> Mapping[str, Mapping[str, object]]:
        return {}

    async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
        return await self.pushes.get()

    async def un_watch_ohlcv(self, symbol: str, timeframe: str) -> object:
        return True

    async def close(self) -> None:
        self.asked.append("close")


@asynccontextmanager
async def source_of(
    exchange: Fake,
    monotonic: Callable[[], float] | None = None,
    name: str = "fake",
    timings: CcxtTimings = AT_ONCE,
) -> AsyncIterator[CcxtExchange]:
    clock = monotonic or asyncio.get_running_loop().time
    thread = CcxtThread()
    source = CcxtExchange(
        CcxtClient(name, thread, monotonic=clock, make=lambda _: exchange),
        clocks={"spot": ExchangeClock(), "futures": ExchangeClock()},
        final_margin_s=MARGIN_S,
        monotonic=clock,
        rng=random.Random(1),
        timings=timings,
    )
    try:
        yield source
    finally:
        await source.close()
        await thread.stop()


async def history(source: CcxtExchange, start: int = T0, end: int | None = None) -> list[Candle]:
    return [one async for page in source.history(BTC, start, Errand(Urgency.SWEEP), end) for one in page.candles]


async def test_the_newest_row_is_final_once_the_exchanges_time_says_so() -> None:
    exchange = Fake([0, 1], T0 + 120 + MARGIN_S)
    async with source_of(exchange) as source:
        assert await history(source) == [candle(0), candle(1)]
        assert exchange.asked[:3] == ["time", "time", "rows"], "a stamp from before the rows were asked for"


async def test_the_newest_row_is_not_final_a_moment_before() -> None:
    async with source_of(Fake([0, 1], T0 + 120 + MARGIN_S - 0.001)) as source:
        assert await history(source) == [candle(0)]


async def test_without_a_time_to_ask_for_the_date_of_an_earlier_answer_is_the_stamp() -> None:
    exchange = Fake([0, 1, 2], T0 + 120, fetchTime=None)
    exchange.tells_date = True
    async with source_of(exchange) as source:
        assert await history(source) == [candle(0)], "the row of the next minute has just opened"
        exchange.now_s += MARGIN_S + 1.0  # a whole second of it is not confirmed
        assert await history(source) == [candle(0)], "the date of the answer itself proves nothing of its rows"
        assert await history(source) == [candle(0), candle(1)]


async def test_a_date_that_is_ahead_closes_nothing_early() -> None:
    exchange = Fake([0, 1], T0 + 60, fetchTime=None)
    exchange.tells_date = True
    now_s = 1000.0
    async with source_of(exchange, lambda: now_s) as source:
        for second in range(75):
            exchange.now_s = T0 + 60 + second + 30.0  # 30 s ahead of the true time
            exchange.minutes = [0, 1] if second < 60 else [0, 1, 2]
            now_s += 1.0
            found = await history(source)
            assert (candle(1) in found) == (second >= 60 + MARGIN_S + 2), second


async def test_without_dates_the_newest_open_time_is_the_stamp() -> None:
    exchange = Fake([0, 1], T0 + 1000, fetchTime=None)
    async with source_of(exchange) as source:
        assert await source.now_ms("spot") == (T0 + 60) * 1000
    exchange.minutes = []
    async with source_of(exchange) as source:
        with pytest.raises(UpstreamError, match="does not tell the time"):
            await source.now_ms("spot")


async def test_a_page_far_ahead_of_an_old_clock_is_used_once_the_clock_has_followed() -> None:
    """This machine slept for days: the pages of a day were given by the old clock, and the next was refused."""
    exchange = Fake([0, 1], T0 + 65)
    async with source_of(exchange, lambda: 1000.0) as source:
        assert await history(source) == [candle(0)]
        exchange.minutes = [0, *range(3000, 5000)]
        exchange.now_s = T0 + 60 * 5000 + MARGIN_S
        found: set[int] = set()
        async for page in source.history(BTC, T0, Errand(Urgency.SWEEP)):
            assert source.clocks["spot"].rest_ms == exchange.now_s * 1000
            found |= {one.time for one in page.candles}
    assert sorted(found) == [T0 + 60 * minute for minute in exchange.minutes]
    assert exchange.asked.count("time") == 2 + 4, "a single answer moves no clock that far"


async def test_an_answer_from_a_moment_before_a_jump_does_not_stand_for_the_time_of_a_page_far_ahead() -> None:
    exchange = Fake([0, 1], T0 + 65)
    async with source_of(exchange, timings=replace(AT_ONCE, ask_time_every_s=0.3)) as source:
        await source.now_ms("spot")
        exchange.minutes = [0, *range(3000, 5000)]
        exchange.now_s = T0 + 60 * 5000 + MARGIN_S
        await anext(source.history(BTC, T0, Errand(Urgency.SWEEP)))
        assert source.clocks["spot"].rest_ms == exchange.now_s * 1000


async def test_the_date_and_the_rows_of_an_answer_move_a_clock_that_cannot_be_asked_by_days() -> None:
    exchange, now_s = Fake([0, 1], T0 + 65, fetchTime=None), 1000.0
    exchange.tells_date = True
    async with source_of(exchange, lambda: now_s) as source:
        for _ in range(5):
            await history(source)
            now_s, exchange.now_s = now_s + 1.0, exchange.now_s + 1.0
        exchange.minutes = range(6000)
        exchange.now_s = T0 + 60 * 6000 - 30
        assert (await history(source, T0 + 60 * 5950))[-1] == candle(5997)
        clock = source.clocks["spot"]
        for _ in range(3):
            now_s, exchange.now_s = now_s + 1.0, exchange.now_s + 1.0
            assert abs((clock.estimate_ms(now_s) or 0) / 1000 - exchange.now_s) < 60.0, "its speed is still ours"
            await history(source, T0 + 60 * 5950)


async def test_a_row_days_ahead_of_clock_and_date_is_refused() -> None:
    exchange = Fake([0, 1], T0 + 65, fetchTime=None)
    exchange.tells_date = True
    async with source_of(exchange) as source:
        await history(source)
        exchange.minutes = [0, 1, 6000]
        with pytest.raises(UpstreamError, match="lies in the future"):
            await history(source)


async def test_a_page_from_the_past_needs_no_new_stamp() -> None:
    exchange = Fake(range(50), T0 + 60 * 50)
    now_s = 1000.0
    async with source_of(exchange, lambda: now_s) as source:
        await source.now_ms("spot")
        now_s += 3600.0
        exchange.asked.clear()
        assert len(await history(source, T0, T0 + 60 * 10)) == 10
        assert exchange.asked == ["rows"]


async def test_what_is_pushed_is_never_closed_and_does_not_hold_up_the_clock() -> None:
    exchange = Fake([0, 1, 2], T0 + 130.0, watchOHLCV=True)
    spoilt, newer = [*row(2)[:5], None], [*row(2)[:4], 1.75, 11.0]
    for pushed in (spoilt, newer, row(3)):
        exchange.pushes.put_nowait([pushed])
    events: list[KlineEvent] = []
    told = asyncio.Event()

    def take(event: KlineEvent) -> None:
        events.append(event)
        if event.candle.time == T0 + 180:
            told.set()

    async with source_of(exchange) as source:
        connection = source.connection("spot", StreamCallbacks(lambda _: None, take, lambda _: None))
        connection.want(BTC)
        task = asyncio.create_task(connection.run())
        async with asyncio.timeout(WAIT_S):
            await told.wait()
        task.cancel()
        await asyncio.wait([task])
        known_ms = source.clocks["spot"].rest_ms
    assert [((event.candle.time - T0) // 60, event.closed) for event in events] == [
        (0, True),
        (1, True),
        (2, False),
        (2, False),
        (3, False),
    ]
    assert events[3].candle.close == 1.75
    assert known_ms == int(exchange.now_s * 1000)
    assert all(event.by_rest for event in events)
    assert [event.event_ms for event in events] == sorted({event.event_ms for event in events})
    assert source.left_out() == {("spot", "kline"): 1}


async def test_what_a_venue_keeps_no_more_is_not_asked_for() -> None:
    exchange = Fake(range(1000), T0 + 60 * 1000 + 30)
    async with source_of(exchange, name="kraken") as source:
        assert source.reach(BTC) is None, "what time it is there is not known yet"
        found = await history(source)
        reach = source.reach(BTC)
        assert reach is not None
        assert reach.oldest == T0 + 60 * (1000 - 717)
        assert reach.sentence == "kraken keeps the newest 720 candles of 1m only"
        assert found[0].time == reach.oldest
        assert found[-1] == candle(999 - 1) or found[-1] == candle(999)
        assert min(since or 0 for since in exchange.sinces) == reach.oldest * 1000


@pytest.mark.parametrize(("name", "empty"), [("okx", [36]), ("hyperliquid", [])])
async def test_a_hole_of_a_minute_ago_is_proven_unless_the_venue_adds_quiet_minutes_late(
    name: str, empty: list[int]
) -> None:
    """The hole was confirmed empty at once, and the candle that came later was missing."""
    exchange = Fake([*range(36), 37, 38], T0 + 60 * 39)
    async with source_of(exchange, name=name) as source:
        pages = [page async for page in source.history(BTC, T0, Errand(Urgency.DEEP))]
    spans = [span for page in pages for span in page.empty]
    assert spans == [Span(T0 + 60 * minute, T0 + 60 * minute + 60) for minute in empty]


async def test_a_first_answer_without_the_symbols_of_a_market_that_has_some_is_no_list_and_is_asked_for_again() -> None:
    exchange, now_s = Fake([0], T0 + 60, spot=True), 1000.0
    exchange.bases = []
    async with source_of(exchange, lambda: now_s) as source:
        for asked, pause_s in ((1, 5.0), (2, 10.0), (3, 20.0), (4, 30.0), (5, 30.0)):
            for _ in range(3):
                with pytest.raises(UpstreamError, match="lists nothing"):
                    await source.refusal(BTC)
            assert exchange.lists == [False, *[True] * (asked - 1)], "ccxt asks no second time of itself"
            now_s += pause_s
        exchange.bases = ["BTC", "ETH"]
        assert await source.refusal(BTC) is None


async def test_a_list_is_asked_for_again_to_confirm_that_a_symbol_is_gone_and_else_seldom() -> None:
    exchange, now_s = Fake([0], T0 + 60), 1000.0
    exchange.bases = ["BTC", "ETH"]
    async with source_of(exchange, lambda: now_s) as source:
        assert set(await source.listings("spot", 3600.0)) == {"BTC/USDT", "ETH/USDT"}
        exchange.bases = ["ETH"]
        now_s += 60.0
        assert "BTC/USDT" in await source.listings("spot", 60.0), "lists are large"
        assert set(await source.listings("spot", 0.0)) == {"ETH/USDT"}
        assert exchange.lists == [False, True]


async def test_a_quiet_exchange_without_a_time_or_dates_is_asked_for_rows_no_more_often_than_it_may_tell_it() -> None:
    exchange, now_s = Fake([0, 1], T0 + 120, fetchTime=None), 1000.0
    async with source_of(exchange, lambda: now_s) as source:
        await source.now_ms("spot")
        asked = len(exchange.asked)
        for _ in range(120):  # a minute, in which nothing is traded
            now_s += 0.5
            await source.now_ms("spot")
        assert len(exchange.asked) - asked == 60.0 / AT_ONCE.ask_date_every_s
        asked = len(exchange.asked)
        for _ in range(60):  # polls report the same
            now_s += 1.0
            await history(source)
            polls = len(exchange.asked)
            await source.now_ms("spot")
            assert len(exchange.asked) == polls


async def test_polls_make_room_for_closes_and_a_close_is_looked_at_again_however_many_series_there_are() -> None:
    async with source_of(Fake([0], T0 + 60)) as source:
        can = replace(await source.abilities(), rate_limit_s=1.0)
        pauses: list[float] = []
        for source.polled in (1, 10, 20, 24, 100):
            pauses.append(source.pause_s(BTC, can))
            assert source.pause_s(BTC, can, confirms=True) <= AT_ONCE.confirm_s * 1.1
        assert pauses[0] < 4.0
        assert 10 * 1.0 / ccxt_rest.POLL_SHARE * 0.9 < pauses[1] < pauses[2] < AT_ONCE.poll_most_s * 1.1
        assert all(pause_s > AT_ONCE.poll_most_s * 0.9 for pause_s in pauses[2:]), "closes are all that is asked for"


async def test_a_series_without_trades_is_quiet_from_its_first_page_on() -> None:
    exchange = Fake([0, 1], T0 + 300.0)
    quiet: asyncio.Queue[Span] = asyncio.Queue()
    async with source_of(exchange) as source:
        callbacks = StreamCallbacks(
            lambda _: None, lambda _: None, lambda _: None, quiet=lambda _, span: quiet.put_nowait(span)
        )
        connection = source.connection("spot", callbacks)
        connection.want(BTC)
        task = asyncio.create_task(connection.run())
        async with asyncio.timeout(WAIT_S):
            span = await quiet.get()
        assert exchange.asked.count("rows") == 2, "the newest candles, and further back"
        assert span.start == T0 + 120
        assert span.end >= T0 + 300
        task.cancel()
        await asyncio.wait([task])


async def test_a_stream_that_is_refused_is_polled_for_and_said_to_be_back_with_its_first_push() -> None:
    class Refused(Fake):
        refuses = True

        async def watch_ohlcv(self, symbol: str, timeframe: str) -> Sequence[Row]:
            if self.refuses:
                raise ConnectionRefusedError("the handshake is refused")
            return await super().watch_ohlcv(symbol, timeframe)

    exchange = Refused([0, 1, 2], T0 + 130.0, watchOHLCV=True)
    told: asyncio.Queue[str | None] = asyncio.Queue()
    lost: list[SeriesId] = []
    async with source_of(exchange) as source:
        callbacks = StreamCallbacks(
            lambda _: None, lambda _: None, lost.extend, stands_in=lambda _, reason: told.put_nowait(reason)
        )
        connection = source.connection("spot", callbacks)
        connection.want(BTC)
        task = asyncio.create_task(connection.run())
        async with asyncio.timeout(WAIT_S):
            assert "the handshake is refused" in str(await told.get())
            exchange.refuses = False
            exchange.pushes.put_nowait([[*row(2)[:4], 1.75, 11.0]])
            while await told.get() is not None:
                pass
        assert lost == [], "the series was carried all the time"
        task.cancel()
        await asyncio.wait([task])

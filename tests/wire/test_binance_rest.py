"""The REST client: which rows count as closed, paging, and invalid answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.backoff import Backoff
from klinesync.core.candle import NO_FLOW, Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.gaps import NOT_LISTED_BEFORE
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.binance import listings as binance_listings
from klinesync.exchanges.binance import requests as binance_requests
from klinesync.exchanges.binance import rest as binance_rest
from klinesync.exchanges.binance.requests import market_routes
from klinesync.exchanges.binance.rest import BinanceRest
from klinesync.exchanges.binance.timings import RestTimings
from klinesync.exchanges.exchange import (
    BOTH_NEIGHBOURS,
    LISTINGS_TTL_S,
    Errand,
    HistoryPage,
    Listing,
    ListingShelf,
    Ticker,
    Urgency,
)
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import HttpClient

SERIES = SeriesId.parse("binance:spot:BTC/USDT:1m")
FUTURES = SeriesId.parse("binance:futures:BTC/USDT:1m")
START = 1_700_000_040


def row(minute: int, **changes: object) -> list[object]:
    values: dict[str, object] = {
        "time": (START + minute * 60) * 1000,
        "open": "1.0",
        "high": "2.0",
        "low": "0.5",
        "close": "1.5",
        "volume": "10.0",
        "close_time": 0,
        "quote_volume": "15.0",
        "trades": 3,
        "taker_buy_volume": "5.0",
        "taker_buy_quote_volume": "7.5",
    } | changes
    return [*values.values(), "0"]


def candle(minute: int) -> Candle:
    return Candle(START + minute * 60, 1.0, 2.0, 0.5, 1.5, 10.0, 15.0, 3, 5.0, 7.5)


class Exchange:
    """Answers with the values that a test sets. `failures` are answered first, one by one."""

    def __init__(self) -> None:
        self.now_ms = (START + 62) * 1000  # the first candle is over, and its margin
        self.rows: list[list[object]] = []
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.failures: list[Callable[[], web.StreamResponse]] = []
        self.headers: dict[str, str] = {}
        self.onboard_s = START
        self.tickers: object = []
        self.asked: list[dict[str, str]] = []
        self.asked_time = 0
        self.time_failure: Callable[[], web.Response] | None = None
        self.most_rows = 10_000
        self.spot_symbols: Sequence[str] = ("BTC",)  # base assets

    def _failure(self) -> web.StreamResponse | None:
        return self.failures.pop(0)() if self.failures else None

    async def time(self, request: web.Request) -> web.Response:
        self.asked_time += 1
        return self.time_failure() if self.time_failure else web.json_response({"serverTime": self.now_ms})

    async def klines(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        failure = self._failure() or (self.answer and self.answer())
        if failure:
            return failure
        start, limit = int(request.query["startTime"]), int(request.query["limit"])
        end = int(request.query.get("endTime", 10**15))
        found = [item for item in self.rows if isinstance(item[0], int) and start <= item[0] <= end]
        return web.json_response(found[: min(limit, self.most_rows)], headers=self.headers)

    async def day(self, request: web.Request) -> web.StreamResponse:
        self.asked.append({"tickers": request.path})
        return self._failure() or web.json_response(self.tickers)

    async def info(self, request: web.Request) -> web.StreamResponse:
        self.asked.append({"info": request.path})
        failure = self._failure()
        if failure:
            return failure
        symbol: dict[str, object] = {
            "symbol": "BTCUSDT",
            "status": "TRADING",
            "baseAsset": "BTC",
            "quoteAsset": "USDT",
        }
        if request.path.startswith("/fapi"):
            symbols = [
                symbol | {"contractType": "PERPETUAL", "onboardDate": self.onboard_s * 1000},
                symbol | {"symbol": "ETHUSDT_261225", "baseAsset": "ETH", "contractType": "CURRENT_QUARTER"},
                symbol | {"symbol": "BTCUSDT_260925", "status": "PENDING_TRADING", "contractType": ""},
                symbol | {"symbol": "OLDUSDT", "baseAsset": "OLD", "status": "PENDING_TRADING", "contractType": ""},
            ]
        else:
            symbols = [symbol | {"symbol": f"{base}USDT", "baseAsset": base} for base in self.spot_symbols]
        return web.json_response({"symbols": symbols})


class Kept:
    """The list of symbols that an earlier run stored: no further request is needed."""

    def __init__(self, *symbols: str) -> None:
        self.symbols = symbols
        self.kept: dict[str, list[Listing]] = {}

    async def load(self, market: str) -> list[Listing]:
        return [Listing(f"{base}/USDT", f"{base}USDT", base, "USDT", "TRADING") for base in self.symbols]

    async def keep(self, market: str, listings: Sequence[Listing]) -> None:
        self.kept[market] = list(listings)


@asynccontextmanager
async def connected(
    exchange: Exchange,
    monotonic: Callable[[], float] | None = None,
    timeout_s: float = 60.0,
    shelf: ListingShelf | None = None,
    ask_time_every_s: float = 0.0,
) -> AsyncIterator[tuple[BinanceRest, dict[str, ExchangeClock]]]:
    """A REST client of `exchange`. What is repeated is repeated at once, and so, as by default, is the question for the
    time."""
    app = web.Application()
    for prefix in ("/api/v3", "/fapi/v1"):
        app.router.add_get(prefix + "/time", exchange.time)
        app.router.add_get(prefix + "/klines", exchange.klines)
        app.router.add_get(prefix + "/exchangeInfo", exchange.info)
        app.router.add_get(prefix + "/ticker/24hr", exchange.day)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    try:
        async with HttpClient(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
            yield (
                BinanceRest(
                    session,
                    market_routes(url, url),
                    clocks,
                    final_margin_s=2,
                    monotonic=monotonic or asyncio.get_running_loop().time,
                    rng=Random(1),
                    shelf=shelf or Kept("BTC", "ETH"),
                    timings=RestTimings(ask_time_every_s=ask_time_every_s, repeat=Backoff(0.0, 0.0)),
                ),
                clocks,
            )
    finally:
        await runner.cleanup()


async def pages(
    rest: BinanceRest,
    series: SeriesId = SERIES,
    start: int = START,
    end: int | None = None,
    urgency: Urgency = Urgency.REPAIR,
) -> list[HistoryPage]:
    return [page async for page in rest.history(series, start, Errand(urgency), end)]


async def history(rest: BinanceRest, series: SeriesId = SERIES, start: int = START) -> list[Candle]:
    return list({one.time: one for page in await pages(rest, series, start) for one in page.candles}.values())


def failure(status: int, **headers: str) -> Callable[[], web.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: web.json_response({"code": -1003, "msg": "Too much"}, status=status, headers=named)


@pytest.mark.parametrize(
    ("ms_after_close", "closed"), [(-30_000, False), (0, False), (1_999, False), (2_000, True), (90_000, True)]
)
async def test_the_last_row_counts_as_closed_once_the_exchange_said_that_its_margin_is_over(
    ms_after_close: int, closed: bool
) -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    exchange.now_ms = (START + 120) * 1000 + ms_after_close
    async with connected(exchange) as (rest, clocks):
        assert await history(rest) == [candle(0), candle(1)][: 1 + closed]
        assert clocks["spot"].rest_ms == exchange.now_ms


async def test_a_clock_that_has_leapt_is_followed_within_one_question() -> None:
    exchange = Exchange()
    async with connected(exchange) as (rest, clocks):
        known_ms = await rest.now_ms("spot")
        exchange.asked_time = 0
        exchange.now_ms += 86_400_000
        assert await rest.now_ms("spot") >= exchange.now_ms
        assert exchange.asked_time == 4
        assert clocks["spot"].moved == {"rest": 1}
        assert exchange.now_ms - known_ms > 80_000_000


async def test_answers_that_do_not_agree_move_no_clock_and_are_asked_for_a_few_times() -> None:
    exchange = Exchange()

    async def absurd(request: web.Request) -> web.Response:
        exchange.asked_time += 1
        if exchange.asked_time <= wrong:
            return web.json_response({"serverTime": exchange.now_ms + 10**9 * (-1) ** exchange.asked_time})
        return web.json_response({"serverTime": exchange.now_ms})

    wrong = 0
    exchange.time = absurd  # type: ignore[method-assign]  # as a test wants it
    async with connected(exchange) as (rest, _):
        await rest.now_ms("spot")
        for wrong, questions in ((1, 2), (3, 4), (1000, binance_rest.TIME_ANSWERS)):  # noqa: B007  # read above
            exchange.asked_time = 0
            assert abs(await rest.now_ms("spot") - exchange.now_ms) < 60_000
            assert exchange.asked_time == questions


async def test_a_row_is_closed_when_two_later_ones_follow_in_the_same_answer_whatever_time_it_is() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    exchange.now_ms = START * 1000
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0)], "one later row proves the end, not the values"


@pytest.mark.parametrize(("series", "page"), [(SERIES, 1000), (FUTURES, 499)])
async def test_history_is_read_page_by_page_to_its_end(series: SeriesId, page: int) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(2 * page + 1) if minute != 700]
    exchange.now_ms = (START + 60 * 5000) * 1000
    async with connected(exchange) as (rest, _):
        found = await history(rest, series)
    assert found == [candle(minute) for minute in range(2 * page + 1) if minute != 700]
    assert {asked["limit"] for asked in exchange.asked} == {str(page)}
    assert len(exchange.asked) == 4, "the last answer shows that nothing follows"


@pytest.mark.parametrize("holes", [{5}, {5, 6, 7}, {998, 999, 1000, 1001}, {1000, 1003}])
async def test_a_hole_is_proven_empty_by_one_answer_also_where_a_page_ends(holes: set[int]) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(1500) if minute not in holes]
    exchange.now_ms = (START + 60 * 5000) * 1000
    async with connected(exchange) as (rest, _):
        empty = {span for page in await pages(rest) for span in page.empty}
    minutes = {time // 60 for span in empty for time in range(span.start - START, span.end - START, 60)}
    assert minutes == holes


async def test_history_goes_on_while_rows_come_though_an_exchange_gives_fewer_than_asked() -> None:
    exchange = Exchange()
    exchange.most_rows = 100
    exchange.rows = [row(minute) for minute in range(700)]
    exchange.now_ms = (START + 60 * 700) * 1000 + 500
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(minute) for minute in range(699)]
        assert {asked["limit"] for asked in exchange.asked} == {"1000"}
        exchange.asked.clear()
        part = [page async for page in rest.history(SERIES, START, Errand(Urgency.DEEP), START + 251 * 60)]
        assert part[-1].candles[-1] == candle(250)
        assert len(exchange.asked) == 3, "the span is covered"


async def test_a_row_with_other_columns_is_read_and_one_that_cannot_be_read_is_left_out_alone() -> None:
    exchange = Exchange()
    odd = [
        [*row(1), "a new column", {}],
        [*row(2)[:6], None, None, None],
        row(3)[:6],
        row(4, high=None),
        row(5, high="x")[:9],
        row(6, time=None),
    ]
    exchange.answer = lambda: web.json_response([row(0), *odd, row(7)])
    async with connected(exchange) as (rest, clocks):
        clocks["spot"].learn((START + 6000) * 1000, asyncio.get_running_loop().time())
        (page,) = await pages(rest, end=START + 8 * 60)
        few = [candle(2).ohlcv, candle(3).ohlcv]  # fewer columns: without order flow
        assert page.candles == [candle(0), candle(1), *(Candle(*values) for values in few), candle(7)]
        assert page.empty == [], "what cannot be read may have been anything"
        assert rest.left_out == {("spot", "kline"): 3}
        exchange.answer = lambda: web.json_response([row(0), row(1, high=None), row(3)])
        (page,) = await pages(rest, end=START + 4 * 60)
        assert page.empty == [Span(START + 120, START + 180)], "the row of minute 1 is there"


async def test_a_bad_row_is_no_proof_of_emptiness_but_one_off_the_grid_is() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1, high="0.1"), row(2, time=(START + 120) * 1000 + 7), row(3), row(4)]
    exchange.now_ms = (START + 6000) * 1000
    async with connected(exchange) as (rest, _):
        (page,) = await pages(rest)
    assert page.empty == [Span(START + 120, START + 180)]


async def test_bad_rows_are_quarantined_and_counted_and_the_others_kept() -> None:
    exchange = Exchange()
    exchange.rows = [
        row(0), row(1, high="0.1"), row(2, time=(START + 120) * 1000 + 7), row(3), row(4, volume="nan"),
        row(5, low="0.00000000"),
    ]  # fmt: skip
    exchange.now_ms = (START + 6000) * 1000
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0), candle(3)]
        assert rest.left_out.total() == 4


async def test_order_flow_that_is_invalid_costs_the_order_flow_alone_and_is_counted() -> None:
    exchange = Exchange()
    exchange.rows = [
        row(0),
        row(1, taker_buy_volume="10.1"),
        row(2, taker_buy_quote_volume="16"),
        row(3, quote_volume="-1"),
        row(4, trades=-1),
        row(5, quote_volume="nan"),
        row(6, trades="many"),
        row(7, taker_buy_volume=[]),
        row(8, quote_volume=None),
        row(9),
    ]
    exchange.now_ms = (START + 6000) * 1000
    async with connected(exchange) as (rest, _):
        candles = await history(rest)
        assert [one.ohlcv for one in candles] == [candle(minute).ohlcv for minute in range(10)]
        assert candles[0] == candle(0)
        assert candles[9] == candle(9)
        assert {one.flow for one in candles[1:8]} == {NO_FLOW}
        assert candles[8] == candle(8)._replace(quote_volume=None), "null is no fault"
        assert rest.left_out == {("spot", "order_flow"): 7}


async def test_a_page_that_is_not_what_was_asked_for_ends_the_reading() -> None:
    exchange = Exchange()
    exchange.answer = lambda: web.json_response([row(minute - 2000) for minute in range(1000)])
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match="is not in order"):
            await history(rest)


@pytest.mark.parametrize(
    ("status", "headers", "retry_after_s"),
    [
        (429, {"Retry_After": "47"}, 47.0),
        (418, {"Retry_After": "120"}, 120.0),
        (429, {}, 60.0),
        (503, {}, None),
        (400, {}, None),
    ],
)
async def test_an_error_is_told_with_the_exchanges_words_and_its_wish_to_be_left_alone(
    status: int, headers: dict[str, str], retry_after_s: float | None
) -> None:
    exchange = Exchange()
    exchange.answer = failure(status, **headers)
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match=f"{status}: -1003 Too much") as caught:
            await pages(rest, urgency=Urgency.READ)
        assert (caught.value.status, caught.value.retry_after_s) == (status, retry_after_s)
        assert rest.status()["spot"].errors == {status: 3 if status == 503 else 1}


@pytest.mark.parametrize("fault", [failure(500), failure(503), failure(502)])
async def test_an_error_of_the_server_is_passing_and_the_page_is_asked_for_again(
    fault: Callable[[], web.Response],
) -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    exchange.failures = [fault, fault]
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0)]
    assert len(exchange.asked) == 3


async def test_a_connection_that_breaks_within_an_answer_is_passing_too() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    whole = exchange.klines
    asked = 0

    async def broken_once(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked > 1:
            return await whole(request)
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b"[[1700")
        assert request.transport is not None
        request.transport.abort()
        return response

    exchange.klines = broken_once  # type: ignore[method-assign]
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0)]
        assert rest.status()["spot"].errors == {0: 1}


async def test_an_exchange_that_does_not_answer_in_time_is_asked_a_bounded_number_of_times() -> None:
    exchange, over = Exchange(), asyncio.Event()
    asked = 0

    async def never(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await over.wait()
        return web.Response()

    exchange.klines = never  # type: ignore[method-assign]
    async with connected(exchange, timeout_s=0.05) as (rest, clocks):
        clocks["spot"].learn(exchange.now_ms, asyncio.get_running_loop().time())
        with pytest.raises(UpstreamError, match="did not answer"):
            await history(rest)
        assert asked == 1 + binance_requests.RETRIES
        status = rest.status()["spot"]
        assert (status.requests, status.errors, status.under_way) == (3, {0: 3}, 0)
        assert status.used == 6, "the exchange may have counted them"
        over.set()


async def test_a_repair_waits_out_a_429_by_the_exchanges_clock_and_goes_on() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    exchange.failures = [failure(429, Retry_After="40")]
    async with connected(exchange) as (rest, clocks):
        reading = asyncio.create_task(history(rest))
        async with asyncio.timeout(60):
            while not exchange.asked or not rest.status()["spot"].blocked_s:
                await asyncio.sleep(0.005)
        loop = asyncio.get_running_loop()
        clocks["spot"].learn(exchange.now_ms + 39_000, loop.time())
        # A second, plus the time until the answer.
        assert 0 < rest.status()["spot"].blocked_s <= 11.0, "not yet"
        clocks["spot"].learn(exchange.now_ms + 40_000, loop.time())
        async with asyncio.timeout(60):
            assert await reading == [candle(0)]


async def test_the_second_request_of_a_turn_waits_too_when_another_has_met_a_429_meanwhile() -> None:
    now_s = 1000.0
    limited = asyncio.Event()

    class Limiting(Exchange):
        async def time(self, request: web.Request) -> web.Response:
            await limited.wait()
            return await super().time(request)

        async def day(self, request: web.Request) -> web.StreamResponse:
            answer = await super().day(request)
            limited.set()
            return answer

    exchange = Limiting()
    exchange.rows = [row(0), row(1)]
    exchange.now_ms = (START + 600) * 1000
    exchange.failures = [failure(429, Retry_After="5")]
    async with connected(exchange, lambda: now_s) as (rest, _):
        reading = asyncio.create_task(history(rest))
        while not exchange.asked:
            other = asyncio.create_task(rest.tickers("spot"))
            await asyncio.wait([other, asyncio.create_task(limited.wait())], return_when=asyncio.FIRST_COMPLETED)
        while not exchange.asked_time:
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert [one for one in exchange.asked if "symbol" in one] == [], "klines are not asked for meanwhile"
        now_s += 5.1
        assert await asyncio.wait_for(reading, 10) == [candle(0), candle(1)]
        other.cancel()


async def test_the_errand_has_begun_when_its_first_page_is_asked_for() -> None:
    exchange, errand = Exchange(), Errand(Urgency.DEEP)
    exchange.rows = [row(0), row(1)]
    seen: list[bool] = []

    def look() -> web.Response:
        seen.append(errand.begun)
        return failure(500)()

    exchange.failures = [look]
    async with connected(exchange) as (rest, _):
        reading = rest.history(SERIES, START, errand)
        assert not errand.begun
        await anext(reading)
        await reading.aclose()
    assert seen == [True]


async def test_the_weight_that_the_exchange_tells_of_is_known() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    exchange.headers = {"X-MBX-USED-WEIGHT-1M": "321"}
    async with connected(exchange) as (rest, _):
        await history(rest)
        status = rest.status()["spot"]
        assert (status.used, status.limit, status.requests, status.errors) == (321, 6000, 3, {})


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[[1]]", b'[["x"]]', b"\xff"])
async def test_an_answer_that_is_none_is_an_error_of_the_exchange(body: bytes) -> None:
    exchange = Exchange()
    exchange.answer = lambda: web.Response(body=body)
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match="cannot be understood"):
            await history(rest)


async def test_a_candle_that_ends_a_full_page_while_it_is_open_ends_the_reading_and_proves_no_hole() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(1001) if minute != 998]
    exchange.now_ms = (START + 1000 * 60 + 30) * 1000
    async with connected(exchange) as (rest, _):
        (page,) = await pages(rest)
    assert [one.time for one in page.candles] == [START + 60 * minute for minute in range(1000) if minute != 998]
    assert page.empty == [Span(START + 998 * 60, START + 999 * 60)]
    exchange.rows = [row(minute) for minute in range(1001) if minute != 999]
    async with connected(exchange) as (rest, _):
        (page,) = await pages(rest)
    assert (page.candles[-1].time, page.empty) == (START + 998 * 60, [])


async def test_an_exchange_that_is_not_there_is_an_error_of_the_exchange() -> None:
    async with HttpClient() as session:
        url = "http://127.0.0.1:9"
        gone = BinanceRest(
            session,
            market_routes(url, url),
            {"spot": ExchangeClock(), "futures": ExchangeClock()},
            final_margin_s=2,
            monotonic=lambda: 0.0,
            shelf=Kept("BTC"),
        )
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await history(gone)


async def test_listed_symbols_are_known_and_the_list_is_asked_once() -> None:
    exchange = Exchange()
    async with connected(exchange) as (rest, _):
        assert await rest.refusal(SERIES) is None
        assert await rest.refusal(SeriesId.parse("binance:spot:ETH/USDT:1m")) is not None
        assert await rest.refusal(FUTURES) is None
        assert await rest.refusal(SeriesId.parse("binance:futures:ETH/USDT:1m")) is not None, (
            "a quarterly is no perpetual"
        )
        assert await rest.refusal(SeriesId.parse("okx:spot:BTC/USDT:1m")) is not None
    assert exchange.asked == [{"info": "/api/v3/exchangeInfo"}, {"info": "/fapi/v1/exchangeInfo"}]


async def test_the_time_is_not_asked_where_a_stamp_that_came_before_shows_all_that_has_ended() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clocks["spot"].learn((START + 122) * 1000, now_s)
        assert await history(rest) == [candle(0), candle(1)]
        exchange.rows.pop()
        assert await history(rest) == [candle(0), candle(1)], "its margin is over by the stamp"
        assert exchange.asked_time == 0
        now_s = 59.0
        assert await history(rest) == [candle(0), candle(1)]
        assert exchange.asked_time == 0, "nothing has ended since"
        now_s = 61.0
        exchange.now_ms = (START + 183) * 1000
        assert await history(rest) == [candle(0), candle(1)]
        assert exchange.asked_time == 1, "by our estimate a candle has ended since"


async def test_our_own_clock_passing_a_close_proves_nothing_and_the_time_is_asked() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1)]
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clocks["spot"].learn((START + 121) * 1000 + 900, now_s)
        now_s = 0.2  # by our estimate the margin has passed
        exchange.now_ms = (START + 121) * 1000 + 950
        assert await history(rest) == [candle(0)], "the exchange says that it is not"
        assert exchange.asked_time == 1


@pytest.mark.parametrize("series", [SERIES, FUTURES], ids=str)
async def test_a_page_far_ahead_of_an_old_clock_is_used_once_the_clock_has_followed(series: SeriesId) -> None:
    """This machine slept for days: the first pages were stored by the old clock, and the next was refused."""
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(7000)]
    exchange.now_ms = (START + 60 * 7000) * 1000 + 2000
    async with connected(exchange, lambda: 5.0) as (rest, clocks):
        clocks[series.market].learn((START + 65) * 1000, 5.0)
        found: list[int] = []
        async for page in rest.history(series, START, Errand(Urgency.FILL)):
            assert clocks[series.market].rest_ms == exchange.now_ms, "before any candle of the page is given"
            found += [one.time for one in page.candles]
    assert sorted(set(found)) == [START + 60 * minute for minute in range(7000)]
    assert exchange.asked_time == 4, "a single answer moves no clock that far"
    assert rest.status()[series.market].errors == {}


async def test_an_answer_from_a_moment_before_a_jump_does_not_stand_for_the_time_of_a_page_far_ahead() -> None:
    """The time had been told less than `ask_time_every_s` ago, so it was not asked for, and the old clock counted."""
    exchange = Exchange()
    async with connected(exchange, ask_time_every_s=0.3) as (rest, clocks):
        await rest.now_ms("spot")
        exchange.rows = [row(minute) for minute in range(3000)]
        exchange.now_ms = (START + 60 * 3000) * 1000 + 2000
        first = await anext(rest.history(SERIES, START, Errand(Urgency.FILL)))
        assert clocks["spot"].rest_ms == exchange.now_ms
        assert first.candles == [candle(minute) for minute in range(998)]


async def test_while_the_time_cannot_be_asked_a_page_a_few_hours_ahead_of_the_clock_is_used_and_no_later_one() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(3000)]
    exchange.time_failure = failure(503)
    async with connected(exchange, lambda: 5.0) as (rest, clocks):
        clocks["spot"].learn((START + 65) * 1000, 5.0)
        reading = rest.history(SERIES, START, Errand(Urgency.FILL))
        assert (await anext(reading)).candles == [candle(minute) for minute in range(998)]
        with pytest.raises(UpstreamError, match="lies in the future"):
            await anext(reading)


async def test_a_span_that_is_over_is_read_without_asking_the_time_however_old_the_stamp() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(50)]
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clocks["futures"].learn((START + 6000) * 1000, now_s)
        now_s = 50.0
        (page,) = await pages(rest, FUTURES, end=START + 21 * 60)
    assert [one.time for one in page.candles] == [START + 60 * minute for minute in range(21)]
    assert exchange.asked_time == 0
    assert exchange.asked == [
        {
            "symbol": "BTCUSDT",
            "interval": "1m",
            "startTime": str(START * 1000),
            "endTime": str((START + 1200) * 1000),
            "limit": "99",
        }
    ]


@pytest.mark.parametrize(("ms_after_close", "closed"), [(1_999, False), (2_000, True)])
async def test_with_an_end_the_last_row_needs_a_stamp_as_no_row_follows_it(ms_after_close: int, closed: bool) -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    exchange.now_ms = (START + 120) * 1000 + ms_after_close
    async with connected(exchange) as (rest, _):
        found = {one for page in await pages(rest, end=START + 120) for one in page.candles}
    assert found == set([candle(0), candle(1)][: 1 + closed])


@pytest.mark.parametrize("end", [999, 1000, 1001, 1501])
async def test_a_reading_with_an_end_stops_there_also_at_the_end_of_a_page(end: int) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(2000)]
    exchange.now_ms = (START + 60 * 5000) * 1000
    async with connected(exchange) as (rest, clocks):
        clocks["spot"].learn(exchange.now_ms, asyncio.get_running_loop().time())
        found = {one.time for page in await pages(rest, end=START + 60 * end) for one in page.candles}
        assert await pages(rest, end=START) == []
    assert found == {START + 60 * minute for minute in range(end)}
    assert len(exchange.asked) == 1 + (end > 1000)


async def test_while_the_time_alone_is_refused_and_held_history_is_read_with_two_later_rows_as_proof() -> None:
    exchange = Exchange()
    later_s = 0.0
    async with connected(exchange, lambda: asyncio.get_running_loop().time() + later_s) as (rest, _):
        await rest.now_ms("spot")
        exchange.rows = [row(minute) for minute in range(4)]
        later_s = 180.0
        exchange.asked_time = 0
        exchange.time_failure = failure(403)
        for _ in range(3):
            assert await history(rest) == [candle(0), candle(1)]
        assert exchange.asked_time == 1, "the time is held after it was refused"


async def test_rows_that_are_refused_whole_again_and_again_are_trouble_of_the_market_and_requests_of_rows_wait() -> (
    None
):
    exchange = Exchange()
    exchange.rows = [row(1), row(0)]
    later_s = 0.0
    async with connected(exchange, lambda: asyncio.get_running_loop().time() + later_s) as (rest, _):
        await rest.now_ms("spot")
        for _ in range(4):
            later_s += 100.0
            with pytest.raises(UpstreamError, match="is not in order"):
                await pages(rest, end=START + 120)
        now_s = asyncio.get_running_loop().time() + later_s
        assert rest.access("spot").held_s("klines", now_s) > 1.0


async def test_deep_pages_ask_no_time_and_where_holes_bring_them_up_to_now_their_last_row_is_proven_after_all() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in (*range(900), *range(3000, 3100))]
    exchange.now_ms = (START + 60 * 3100) * 1000 + 2000
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clocks["spot"].learn((START + 60 * 3090) * 1000, now_s)
        now_s = 602.0
        found = await history(rest)
    assert [len(exchange.asked), exchange.asked_time] == [1, 1], "nothing can follow"
    assert found == [candle(minute) for minute in (*range(900), *range(3000, 3100))]


async def test_a_hole_before_a_last_row_that_an_old_stamp_does_not_prove_is_proven_by_the_next_answer() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in (*range(899), *range(3000, 3101))]
    exchange.now_ms = (START + 60 * 3101) * 1000 + 2000
    del exchange.rows[-2]
    exchange.rows.insert(0, row(-1))
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clocks["spot"].learn((START + 60 * 3090) * 1000, now_s)
        now_s = 662.0
        found = await pages(rest, start=START - 60)
    empty = {span for page in found for span in page.empty}
    assert empty == {Span(START + 899 * 60, START + 3000 * 60), Span(START + 3099 * 60, START + 3100 * 60)}
    assert exchange.asked_time == 1


async def test_a_short_span_of_futures_is_asked_for_in_a_page_of_weight_one() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(3)]
    exchange.now_ms = (START + 150) * 1000
    async with connected(exchange) as (rest, _):
        await history(rest, FUTURES)
        await history(rest, FUTURES)
    assert [asked["limit"] for asked in exchange.asked] == ["99", "99"], "the time is asked before"


async def test_a_short_page_that_turns_out_to_be_full_is_followed_by_another() -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(300)]
    exchange.now_ms = (START + 60 * 299) * 1000
    async with connected(exchange) as (rest, clocks):
        clocks["futures"].learn((START + 60) * 1000, asyncio.get_running_loop().time())
        found = await history(rest, FUTURES)
    assert found == [candle(minute) for minute in range(298)], "one answer alone moves no clock so far"


async def test_before_a_futures_symbol_was_listed_again_there_is_nothing_and_the_listing_proves_it() -> None:
    exchange = Exchange()
    exchange.rows = [row(100), row(102), row(103)]
    exchange.now_ms = (START + 103 * 60 + 30) * 1000
    exchange.onboard_s = START + 100 * 60 + 17
    async with connected(exchange) as (rest, _):
        unlisted, page = await pages(rest, FUTURES)
        assert (unlisted.empty, unlisted.proof) == ([Span(START + 60, START + 6000)], NOT_LISTED_BEFORE)
        assert unlisted.candles == [candle(100)], "what is behind it comes with it"
        assert (page.candles, page.proof) == ([candle(100), candle(102)], BOTH_NEIGHBOURS)
        assert page.empty == [Span(START + 6060, START + 6120)]
        exchange.rows.insert(0, row(0))
        assert [page.proof for page in await pages(rest, FUTURES)] == [BOTH_NEIGHBOURS], "it was listed at the start"


@pytest.mark.parametrize(("series", "onboard_minute"), [(SERIES, 100), (FUTURES, 0), (FUTURES, 101)])
async def test_a_first_row_that_is_late_proves_nothing_without_a_listing_that_begins_with_it(
    series: SeriesId, onboard_minute: int
) -> None:
    exchange = Exchange()
    exchange.rows = [row(100), row(101), row(102)]
    exchange.now_ms = (START + 102 * 60 + 30) * 1000
    exchange.onboard_s = START + onboard_minute * 60
    async with connected(exchange) as (rest, _):
        assert [page.empty for page in await pages(rest, series)] == [[]]


async def test_a_listing_that_cannot_be_asked_for_proves_nothing_and_hinders_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def forbidden(request: web.Request) -> web.StreamResponse:
        return failure(403)()

    exchange = Exchange()
    exchange.rows = [row(100), row(101)]
    exchange.now_ms = (START + 101 * 60 + 30) * 1000
    exchange.onboard_s = START + 6000
    exchange.info = forbidden  # type: ignore[method-assign]
    async with connected(exchange) as (rest, _):
        assert [page.empty for page in await pages(rest, FUTURES)] == [[]]
    assert "the listing date cannot be requested" in caplog.text


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([row(0), row(2000_000)], "lies in the future"),
        ([row(minute) for minute in range(1001)], "more than was asked for"),
        ([row(1), row(0)], "not in order"),
        ([row(0), row(0)], "not in order"),
        ([row(-1), row(0)], "not in order"),
        ([row(0), row(13)], "more than was asked for"),
    ],
)
async def test_a_page_that_no_exchange_would_send_is_refused_whole(rows: list[list[object]], match: str) -> None:
    exchange = Exchange()
    exchange.answer = lambda: web.json_response(rows)
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match=match):
            await pages(rest, end=START + 660 if match == "more than was asked for" and len(rows) < 9 else None)
        assert rest.status()["spot"].errors == {200: 1}


@pytest.mark.parametrize("declared", [True, False])
async def test_no_more_of_a_huge_body_is_read_than_a_page_can_have(declared: bool) -> None:
    exchange = Exchange()
    written = 0

    async def huge(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        if declared:
            response.content_length = 1 << 30
        await response.prepare(request)
        try:
            while written < 1 << 30:
                await response.write(b"[" * 65_536)
                written += 65_536
        except ConnectionError:
            pass  # the reader had enough
        return response

    exchange.klines = huge  # type: ignore[method-assign]
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match="longer than"):
            await history(rest)
    assert written < 20 * binance_rest.MAX_PAGE_BYTES


async def test_many_bad_rows_of_a_series_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute, high="0.1") for minute in range(500)]
    exchange.now_ms = (START + 60 * 5000) * 1000
    with caplog.at_level(logging.WARNING):
        async with connected(exchange) as (rest, _):
            await history(rest)
            assert rest.left_out.total() == 500
    assert caplog.text.count("is quarantined") == 1


async def test_the_list_of_symbols_is_kept_as_long_as_the_caller_likes_and_asked_for_once_at_a_time() -> None:
    exchange = Exchange()
    exchange.onboard_s = START + 7
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, _):
        first, *others = await asyncio.gather(*(rest.listings("futures", 60.0) for _ in range(5)))
        assert first == {
            "BTC/USDT": Listing("BTC/USDT", "BTCUSDT", "BTC", "USDT", "TRADING", START + 7, "perpetual"),
            "OLD/USDT": Listing("OLD/USDT", "OLDUSDT", "OLD", "USDT", "PENDING_TRADING", None, "perpetual"),
        }
        assert others == [first] * 4
        now_s = 59.0
        assert await rest.listings("futures", 60.0) is first
        assert len(exchange.asked) == 1
        assert await rest.listings("futures", 10.0) == first
        assert len(exchange.asked) == 2
        assert (await rest.listings("spot", 60.0))["BTC/USDT"].onboard_s is None


async def test_listings_that_cannot_be_had_are_an_error_and_not_asked_for_again_at_once() -> None:
    exchange = Exchange()
    now_s = 0.0
    async with connected(exchange, lambda: now_s) as (rest, _):
        await rest.listings("spot", 60.0)
        now_s = 100.0
        exchange.failures = [failure(403)]
        for _ in range(2):
            with pytest.raises(UpstreamError, match="403"):
                await rest.listings("spot", 60.0)
        assert len(exchange.asked) == 2
        now_s += binance_listings.LISTINGS_PAUSE_S
        assert await rest.listings("spot", 60.0)


async def test_a_refusal_falls_back_on_an_older_list_and_looks_again_for_what_a_list_does_not_have() -> None:
    exchange = Exchange()
    now_s = 0.0
    other = SeriesId.parse("binance:spot:ETH/USDT:1m")
    async with connected(exchange, lambda: now_s, shelf=Kept()) as (rest, _):
        exchange.failures = [failure(403)]
        with pytest.raises(UpstreamError):
            await rest.refusal(SERIES)
        now_s += binance_listings.LISTINGS_PAUSE_S
        assert await rest.refusal(SERIES) is None
        assert await rest.refusal(other) is not None
        assert len(exchange.asked) == 2
        now_s += binance_listings.UNLISTED_TTL_S + 1
        assert await rest.refusal(SERIES) is None
        assert len(exchange.asked) == 2
        assert await rest.refusal(other) is not None
        assert len(exchange.asked) == 3
        now_s += LISTINGS_TTL_S + 1
        exchange.failures = [failure(403)]
        assert await rest.refusal(SERIES) is None
        assert len(exchange.asked) == 4


@pytest.mark.parametrize("told", [(), ("BTC", "ETH")], ids=["empty", "shrunken"])
async def test_a_list_that_has_lost_most_symbols_replaces_nothing_and_is_asked_for_again_with_backoff(
    told: Sequence[str],
) -> None:
    exchange, shelf = Exchange(), Kept("BTC", "ETH", *(f"S{number}" for number in range(98)))
    exchange.spot_symbols = told
    now_s = 0.0
    async with connected(exchange, lambda: now_s, shelf=shelf) as (rest, _):
        assert await rest.refusal(SeriesId.parse("binance:spot:S7/USDT:1m")) is None, "by the list that was kept"
        for pause_s in (5.0, 10.0, 20.0):
            asked = len(exchange.asked)
            with pytest.raises(UpstreamError, match="no whole list"):
                await rest.listings("spot", 0.0)
            assert len(exchange.asked) <= asked + 1
            now_s += pause_s + 0.1
        assert await rest.refusal(SeriesId.parse("binance:spot:S7/USDT:1m")) is None
        assert shelf.kept == {}, "what is kept over a restart stays, too"
        exchange.spot_symbols = shelf.symbols[:95]
        now_s += 60.0
        assert len(await rest.listings("spot", 0.0)) == 95
        assert len(shelf.kept["spot"]) == 95


async def test_tickers_are_told_as_numbers_and_those_that_are_none_left_out() -> None:
    exchange = Exchange()
    ticker = {"symbol": "BTCUSDT", "lastPrice": "65000.10", "quoteVolume": "1e9", "priceChangePercent": "-1.250"}
    exchange.tickers = [ticker, ticker | {"symbol": "ODD", "quoteVolume": "NaN"}, ticker | {"lastPrice": "inf"}]
    async with connected(exchange) as (rest, _):
        assert await rest.tickers("futures") == [Ticker("BTCUSDT", 65000.10, 1e9, -1.25)]
        assert rest.left_out == {("futures", "ticker"): 2}
        exchange.tickers = {}
        with pytest.raises(UpstreamError, match="cannot be understood"):
            await rest.tickers("spot")
    assert exchange.asked == [{"tickers": "/fapi/v1/ticker/24hr"}, {"tickers": "/api/v3/ticker/24hr"}]


async def test_until_two_answers_agree_no_time_is_known_and_two_later_rows_alone_prove() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    stamps = iter([10**18, (START + 122) * 1000, (START + 122) * 1000])

    async def time(request: web.Request) -> web.Response:
        return web.json_response({"serverTime": next(stamps)})

    exchange.time = time  # type: ignore[method-assign]
    async with connected(exchange) as (rest, clocks):
        assert await rest.now_ms("spot") in range((START + 122) * 1000, (START + 124) * 1000)
        assert await history(rest) == [candle(0), candle(1)]
        assert clocks["spot"].doubted["rest"] >= 1


async def test_where_frames_and_rest_differ_two_later_rows_alone_prove() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    exchange.now_ms = (START + 150) * 1000
    now_s = 1000.0
    async with connected(exchange, lambda: now_s) as (rest, clocks):
        clock = clocks["spot"]
        for _ in range(8):
            now_s += 1.0
            clock.heard((START + 90) * 1000 + int(now_s * 1000), now_s)
        for _ in range(8):
            now_s += 1.0
            clock.heard((START + 90) * 1000 + int(now_s * 1000), now_s)
            await rest.now_ms("spot")
        assert clock.difference(now_s) is not None
        assert await history(rest) == [candle(0)]


async def test_many_questions_for_the_time_are_one_request_and_at_most_one_a_second() -> None:
    exchange = Exchange()
    now_s = 1000.0
    async with connected(exchange, lambda: now_s, ask_time_every_s=1.0) as (rest, clocks):
        clocks["spot"].learn(exchange.now_ms, now_s)
        await asyncio.gather(*(rest.now_ms("spot") for _ in range(20)))
        assert exchange.asked_time == 1
        now_s += 0.9
        await rest.now_ms("spot")
        assert exchange.asked_time == 1
        now_s += 0.2
        await rest.now_ms("spot")
        assert exchange.asked_time == 2

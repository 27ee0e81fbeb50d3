"""The REST client: what counts as closed, paging, and answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.ingest.binance_rest import BinanceRest, market_routes
from klinesync.runtime.clock import ExchangeClock

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
    } | changes
    return [*values.values(), 0, "0.0", 1, "0.0", "0.0", "0"]


def candle(minute: int) -> Candle:
    return Candle(START + minute * 60, 1.0, 2.0, 0.5, 1.5, 10.0)


class Exchange:
    """Answers with what a test puts in."""

    def __init__(self) -> None:
        self.now_ms = START * 1000
        self.rows: list[list[object]] = []
        self.answer: Callable[[], web.Response] | None = None
        self.asked: list[dict[str, str]] = []

    async def time(self, request: web.Request) -> web.Response:
        return web.json_response({"serverTime": self.now_ms})

    async def klines(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.query))
        if self.answer is not None:
            return self.answer()
        start, limit = int(request.query["startTime"]), int(request.query["limit"])
        found = [item for item in self.rows if isinstance(item[0], int) and item[0] >= start]
        return web.json_response(found[:limit])

    async def info(self, request: web.Request) -> web.Response:
        self.asked.append({"info": request.path})
        symbol = {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT"}
        if request.path.startswith("/fapi"):
            symbols = [
                symbol | {"contractType": "PERPETUAL"},
                symbol | {"symbol": "ETHUSDT_261225", "baseAsset": "ETH", "contractType": "CURRENT_QUARTER"},
            ]
        else:
            symbols = [symbol]
        return web.json_response({"symbols": symbols})


@asynccontextmanager
async def connected(exchange: Exchange) -> AsyncIterator[tuple[BinanceRest, dict[str, ExchangeClock]]]:
    app = web.Application()
    for prefix in ("/api/v3", "/fapi/v1"):
        app.router.add_get(prefix + "/time", exchange.time)
        app.router.add_get(prefix + "/klines", exchange.klines)
        app.router.add_get(prefix + "/exchangeInfo", exchange.info)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    clocks = {"spot": ExchangeClock(), "futures": ExchangeClock()}
    try:
        async with aiohttp.ClientSession() as session:
            yield (
                BinanceRest(
                    session,
                    market_routes(url, url),
                    clocks,
                    final_margin_s=2,
                    monotonic=asyncio.get_running_loop().time,
                ),
                clocks,
            )
    finally:
        await runner.cleanup()


async def history(rest: BinanceRest, series: SeriesId = SERIES, start: int = START) -> list[Candle]:
    found: dict[int, Candle] = {}
    async for page in rest.history(series, start):
        found.update((one.time, one) for one in page.candles)
    return list(found.values())


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
        assert clocks["spot"].proven_ms == exchange.now_ms


async def test_a_row_is_closed_when_a_later_one_follows_in_the_same_answer_whatever_time_it_is() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1), row(2)]
    exchange.now_ms = START * 1000
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0), candle(1)]


@pytest.mark.parametrize(("series", "page"), [(SERIES, 1000), (FUTURES, 499)])
async def test_history_is_read_page_by_page_to_its_end(series: SeriesId, page: int) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(2 * page + 1) if minute != 700]
    exchange.now_ms = (START + 60 * 5000) * 1000
    async with connected(exchange) as (rest, _):
        found = await history(rest, series)
    assert found == [candle(minute) for minute in range(2 * page + 1) if minute != 700]
    assert {asked["limit"] for asked in exchange.asked} == {str(page)}
    assert len(exchange.asked) == 3


@pytest.mark.parametrize("holes", [{5}, {5, 6, 7}, {998, 999, 1000, 1001}, {1000, 1003}])
async def test_a_hole_is_proven_empty_by_one_answer_also_where_a_page_ends(holes: set[int]) -> None:
    exchange = Exchange()
    exchange.rows = [row(minute) for minute in range(1500) if minute not in holes]
    exchange.now_ms = (START + 60 * 5000) * 1000
    async with connected(exchange) as (rest, _):
        empty = {span async for page in rest.history(SERIES, START) for span in page.empty}
    minutes = {time // 60 for span in empty for time in range(span.start - START, span.end - START, 60)}
    assert minutes == holes


async def test_a_bad_row_is_no_proof_of_emptiness_but_one_off_the_grid_is() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1, high="0.1"), row(2, time=(START + 120) * 1000 + 7), row(3), row(4)]
    exchange.now_ms = (START + 6000) * 1000
    async with connected(exchange) as (rest, _):
        (page,) = [page async for page in rest.history(SERIES, START)]
    assert page.empty == [Span(START + 120, START + 180)]


async def test_bad_rows_are_quarantined_and_counted_and_the_others_kept() -> None:
    exchange = Exchange()
    exchange.rows = [row(0), row(1, high="0.1"), row(2, time=(START + 120) * 1000 + 7), row(3), row(4, volume="nan")]
    exchange.now_ms = (START + 6000) * 1000
    async with connected(exchange) as (rest, _):
        assert await history(rest) == [candle(0), candle(3)]
        assert rest.quarantined == 3


async def test_a_page_that_is_not_what_was_asked_for_ends_the_reading() -> None:
    exchange = Exchange()
    exchange.answer = lambda: web.json_response([row(minute - 2000) for minute in range(1000)])
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match="is not in order"):
            await history(rest)


@pytest.mark.parametrize(
    ("status", "headers", "retry_after_s"),
    [(429, {"Retry-After": "7"}, 7.0), (418, {"Retry-After": "120"}, 120.0), (429, {}, 60.0), (503, {}, None)],
)
async def test_an_error_is_told_with_the_exchanges_words_and_its_wish_to_be_left_alone(
    status: int, headers: dict[str, str], retry_after_s: float | None
) -> None:
    exchange = Exchange()
    exchange.answer = lambda: web.json_response({"code": -1003, "msg": "Too much"}, status=status, headers=headers)
    async with connected(exchange) as (rest, _):
        with pytest.raises(UpstreamError, match=f"{status}: -1003 Too much") as caught:
            await history(rest)
        assert (caught.value.status, caught.value.retry_after_s) == (status, retry_after_s)


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
        (page,) = [page async for page in rest.history(SERIES, START)]
    assert [one.time for one in page.candles] == [START + 60 * minute for minute in range(1000) if minute != 998]
    assert page.empty == [Span(START + 998 * 60, START + 999 * 60)]
    exchange.rows = [row(minute) for minute in range(1001) if minute != 999]
    async with connected(exchange) as (rest, _):
        (page,) = [page async for page in rest.history(SERIES, START)]
    assert (page.candles[-1].time, page.empty) == (START + 998 * 60, [])


async def test_an_exchange_that_is_not_there_is_an_error_of_the_exchange() -> None:
    async with aiohttp.ClientSession() as session:
        url = "http://127.0.0.1:9"
        gone = BinanceRest(
            session,
            market_routes(url, url),
            {"spot": ExchangeClock(), "futures": ExchangeClock()},
            final_margin_s=2,
            monotonic=lambda: 0.0,
        )
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await history(gone)


async def test_listed_symbols_are_known_and_the_list_is_asked_once() -> None:
    exchange = Exchange()
    async with connected(exchange) as (rest, _):
        assert await rest.knows(SERIES)
        assert not await rest.knows(SeriesId.parse("binance:spot:ETH/USDT:1m"))
        assert await rest.knows(FUTURES)
        assert not await rest.knows(SeriesId.parse("binance:futures:ETH/USDT:1m")), "a quarterly is no perpetual"
        assert not await rest.knows(SeriesId.parse("okx:spot:BTC/USDT:1m"))
    assert exchange.asked == [{"info": "/api/v3/exchangeInfo"}, {"info": "/fapi/v1/exchangeInfo"}]

"""End to end over real sockets: the simulated exchange, the service, a client; the store compared with the exchange."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import aiohttp
import pyarrow.feather
import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import CaughtUp, ClosedCandle, Connected, FormingCandle, Gap, System, Update
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.sim.server import SimConfig, SimServer
from klinesync.ws import protocol
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
closed = partial(ClosedCandle, series=BTC)
system = partial(System, series=BTC)
gap_ = partial(Gap, series=BTC)
FUTURES_ETH = SeriesId.parse("binance:futures:ETH/USDT:1m")


async def stored(service: Service, series: SeriesId) -> list[Candle]:
    """All closed candles of the store, through HTTP."""
    candles: list[Candle] = []
    since = 0
    while True:
        status, page = await service.get("/api/market/candles", series_id=str(series), since=since, limit=5000)
        assert status == 200, page
        rows = page["candles"]
        assert isinstance(rows, list)
        if not rows:
            return candles
        candles += [Candle(*row.values()) for row in rows]
        since = candles[-1].time


def truth(exchange: SimServer, series: SeriesId, times: Iterable[int]) -> list[Candle]:
    """The traded candles of the exchange."""
    name = series.symbol.replace("/", "")
    listings = exchange.exchange.spot if series.market == "spot" else exchange.exchange.futures
    rows = (listings[name].minute(time) for time in times)
    return [Candle(row.time, row.open, row.high, row.low, row.close, row.volume) for row in rows if row is not None]


async def until_closed(updates: AsyncIterator[Update], count: int) -> list[Update]:
    """Updates up to the `count`-th closed candle."""
    seen: list[Update] = []
    async for update in updates:
        seen.append(update)
        count -= isinstance(update, ClosedCandle)
        if count == 0:
            break
    return seen


def check_complete(candles: list[Candle]) -> None:
    first, last = candles[0].time, candles[-1].time
    assert [candle.time for candle in candles] == list(range(first, last + 60, 60))


async def test_the_store_equals_what_was_recorded_bit_for_bit_with_no_hole(real_data: Path, tmp_path: Path) -> None:
    config = SimConfig(data=real_data / "spot", speed=1200)
    names = "binance:spot:BTC/USDT:1m,binance:spot:ETH/USDT:1m"
    async with (
        SimServer(config) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=names) as service,
    ):
        async with aclosing(follow(service.url, BTC, 0)) as updates:
            seen = await until_closed(updates, 2150)
        assert any(isinstance(update, FormingCandle) for update in seen)
        for series in service.runtime.market_data.whitelist:
            candles = await stored(service, series)
            assert len(candles) > 2000 + 100
            check_complete(candles)
            file = real_data / "spot" / f"{series.symbol.replace('/', '_')}-1m.feather"
            table = pyarrow.feather.read_table(file).to_pydict()
            shift_s = exchange.exchange.shift_s
            recorded = {
                int(date.timestamp()) + shift_s: values
                for date, *values in zip(
                    *(table[name] for name in ("date", "open", "high", "low", "close", "volume")), strict=True
                )
            }
            assert [list(candle.ohlcv[1:]) for candle in candles] == [recorded[candle.time] for candle in candles]


@pytest.mark.parametrize("series", [BTC, FUTURES_ETH], ids=str)
async def test_followed_candles_equal_the_exchanges_and_forming_ones_are_never_stored(
    series: SeriesId, tmp_path: Path
) -> None:
    async with (
        SimServer(SimConfig(speed=600, symbols=3)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(series)) as service,
    ):
        async with aclosing(follow(service.url, series, 0)) as updates:
            seen = await until_closed(updates, 2030)
        closed = [update.candle for update in seen if isinstance(update, ClosedCandle)]
        assert not [update for update in seen if isinstance(update, Gap)]
        check_complete(closed)
        assert closed == truth(exchange, series, [candle.time for candle in closed])
        candles = await stored(service, series)
        check_complete(candles)
        assert candles == truth(exchange, series, [candle.time for candle in candles])
        newest = closed[0].time - 60
        for update in seen:
            if isinstance(update, ClosedCandle):
                newest = update.candle.time
            elif isinstance(update, FormingCandle):
                assert update.candle.time > newest, "forming is newer than what is closed"


async def test_quiet_futures_minutes_that_the_stream_leaves_out_come_from_rest(tmp_path: Path) -> None:
    async with SimServer(SimConfig(speed=1200, symbols=40)) as exchange:
        futures = list(exchange.exchange.futures.values())
        quietest = max(futures, key=lambda listing: listing.symbol.name not in ("BTCUSDT", "ETHUSDT"))
        symbol = quietest.symbol
        series = SeriesId.parse(f"binance:futures:{symbol.base}/{symbol.quote}:1m")
        async with running_service(tmp_path / "store.sqlite", exchange, whitelist=str(series)) as service:
            async with aclosing(follow(service.url, series, 0)) as updates:
                await until_closed(updates, 2060)
            candles = await stored(service, series)
            check_complete(candles)
            assert candles == truth(exchange, series, [candle.time for candle in candles])


async def test_a_reconnect_fills_what_was_missed(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(speed=600, symbols=2)) as exchange:
        port = int(exchange.http_url.rpartition(":")[2])
        async with (
            running_service(store, exchange, whitelist=str(BTC)) as service,
            aclosing(follow(service.url, BTC, 0)) as updates,
        ):
            await until_closed(updates, 2005)
            # The exchange stops, and restarts at the same address half an hour of its time later.
            stopped_ms = exchange.now_ms()
            await exchange.__aexit__(None, None, None)
            again = SimConfig(speed=600, symbols=2, port=port, start=stopped_ms // 1000 + 1800)
            async with SimServer(again) as other:
                await until_closed(updates, 35)
                candles = await stored(service, BTC)
                check_complete(candles)
                later = [candle for candle in candles if candle.time * 1000 > stopped_ms]
                assert len(later) >= 30
                assert later == truth(other, BTC, [candle.time for candle in later])


async def test_a_restart_of_the_service_fills_what_was_missed(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(speed=600, symbols=2)) as exchange:
        async with (
            running_service(store, exchange, whitelist=str(BTC)) as service,
            aclosing(follow(service.url, BTC, 0)) as updates,
        ):
            await until_closed(updates, 2003)
        async with aiohttp.ClientSession() as http:
            await (await http.post(exchange.http_url + "/sim/clock", json={"advance_s": 1800})).read()
        async with (
            running_service(store, exchange, whitelist=str(BTC)) as service,
            aclosing(follow(service.url, BTC)) as updates,
        ):
            await until_closed(updates, 35)
            candles = await stored(service, BTC)
            check_complete(candles)
            assert candles == truth(exchange, BTC, [candle.time for candle in candles])


async def test_a_follower_after_a_long_absence_pages_the_candles_before_the_catch_up(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        start = 1_700_000_040
        candles = [Candle(start + 60 * at, 1.0, 2.0, 0.5, 1.5, float(at)) for at in range(7500)]
        await service.runtime.market_data.ingest_candles_closed(BTC, candles[:4000])
        await service.runtime.market_data.ingest_candles_closed(BTC, candles[4000:])
        async with aclosing(follow(service.url, BTC, start)) as updates:
            seen = await until_closed(updates, 7499)
    assert isinstance(seen[0], Connected)
    assert seen[0].head == candles[-1].time
    assert seen[1:] == [closed(candle) for candle in candles[1:]]


async def test_holes_of_pages_are_declared(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        start = 1_700_000_040
        candles = [Candle(start + 60 * at, 1.0, 2.0, 0.5, 1.5, float(at)) for at in range(8000) if at not in (7, 8)]
        await service.runtime.market_data.ingest_candles_closed(BTC, candles)
        async with aclosing(follow(service.url, BTC, start)) as updates:
            seen = await until_closed(updates, 7997)
    assert [update for update in seen if isinstance(update, Gap)] == [gap_(start + 7 * 60, start + 9 * 60)]
    at = seen.index(gap_(start + 7 * 60, start + 9 * 60))
    assert seen[at - 1 : at + 2 : 2] == [closed(candles[6]), closed(candles[7])]


async def test_a_follower_gets_the_events_of_its_series(tmp_path: Path) -> None:
    async with (
        running_service(tmp_path / "store.sqlite") as service,
        aclosing(follow(service.url, BTC, 0)) as updates,
    ):
        await service.runtime.market_data.ingest_candles_closed(BTC, [Candle(1_700_000_040, 1, 2, 0.5, 1.5, 1)])
        assert isinstance(await anext(updates), Connected)
        assert isinstance(await anext(updates), ClosedCandle)
        assert isinstance(await anext(updates), CaughtUp)
        service.runtime.hub.tell(BTC, protocol.system(BTC, "stream.stale", "no frames", {"since": 5}))
        service.runtime.hub.tell(BTC, protocol.system(BTC, "slow", ""))
        assert await anext(updates) == system("stream.stale", "no frames", {"since": 5})
        assert await anext(updates) == system("slow", "", {})


async def test_a_symbol_that_the_exchange_does_not_list_is_unknown(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange) as service,
    ):
        status, answer = await service.get("/api/market/candles", series_id="binance:spot:NOSUCH/USDT:1m")
        assert (status, answer["code"]) == (404, "unknown_series")
        status, answer = await service.get("/api/market/candles", series_id="binance:spot:ETH/USDT:5m")
        assert (status, answer["candles"]) == (200, [])
        async with service.http.ws_connect(service.url + "/ws/market") as socket:
            await socket.send_json({"type": "subscribe", "series_id": "binance:spot:NOSUCH/USDT:1m"})
            error = await socket.receive_json(timeout=10)
            assert (error["type"], error["code"]) == ("error", "unknown_series")

"""History from files while no exchange is reachable: reads, subscriptions and the start, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.ccxt import installed as ccxt_installed
from klinesync.sim.server import SimConfig, SimServer
from support.history_files import minutes, write_freqtrade
from support.running_service import Service, retrying, running_service
from support.upstream import truth
from support.waiting import until

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
BTC_5M = SeriesId.parse("binance:spot:BTC/USDT:5m")
KRAKEN = SeriesId.parse("kraken:spot:BTC/USD:1m")
START = 1_700_000_130
PATIENCE_S = 30.0
OFFLINE = {"market_history_source": "freqtrade", "audit_interval_s": "0"}
Json = dict[str, Any]


def last_minutes(count: int, ago: int = 0) -> list[Candle]:
    """Candles up to the given minutes before now, by this machine's clock."""
    end = int(time.time()) // 60 * 60 - ago * 60
    return minutes(end - count * 60, count)


def files_with(folder: Path, candles: Sequence[Candle], name: str = "binance/BTC_USDT-1m.feather") -> Path:
    write_freqtrade(folder / name, candles)
    return folder


async def page(service: Service, series: SeriesId, **params: int) -> list[Candle]:
    status, answer = await service.get("/api/market/candles", series_id=str(series), **params)
    assert status == 200, answer
    rows = answer["candles"]
    assert isinstance(rows, list)
    return [Candle(*row.values()) for row in rows]


async def until_page(service: Service, series: SeriesId, wanted: Sequence[Candle], **params: int) -> None:
    candles: list[Candle] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (candles := await page(service, series, **params)) != list(wanted):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{len(candles)} candles of {len(wanted)}: {candles[:1]} … {candles[-1:]}") from None


async def health(service: Service, series: SeriesId) -> Json:
    status, answer = await service.get("/api/market/health", series_id=str(series))
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("ago", [0, 60 * 24 * 400])
async def test_a_read_gets_candles_of_files_of_any_age(tmp_path: Path, ago: int) -> None:
    candles = last_minutes(3000, ago)
    folder = files_with(tmp_path / "data", candles)
    async with running_service(
        tmp_path / "store.sqlite", None, None, retrying(0.05), freqtrade_data_dir=str(folder), **OFFLINE
    ) as service:
        await until_page(service, BTC, candles[-500:])
        await until_page(service, BTC, candles[500:2500], before=candles[2500].time, limit=2000)
        assert (await page(service, BTC_5M, limit=5))[-1].time >= candles[-1].time - 600


async def test_the_start_and_a_subscription_read_files(tmp_path: Path) -> None:
    """A whitelisted series is read at once; another series when a client subscribes, and the client gets its
    candles."""
    candles = last_minutes(2500, 30)
    folder = files_with(tmp_path / "data", candles)
    files_with(folder, candles, "binance/ETH_USDT-1m.feather")
    flags = OFFLINE | {"freqtrade_data_dir": str(folder), "whitelist": str(BTC), "enable_whitelist_ingest": "on"}
    async with running_service(tmp_path / "store.sqlite", None, None, retrying(0.05), **flags) as service:
        runtime = service.runtime

        async def stored(series: SeriesId) -> int:
            return await runtime.market_data.reader._database.read(lambda store: store.count_after(series, 0, 5000))

        async with asyncio.timeout(PATIENCE_S):
            while await stored(BTC) < 2000:
                await asyncio.sleep(0.02)
        assert await stored(BTC) == 2000, "as far as a first history reaches"
        sent: list[int] = []
        eth = "binance:spot:ETH/USDT:1m"
        async with service.http.ws_connect(service.url.replace("http", "ws") + "/ws/market") as watching:
            await watching.send_json({"type": "subscribe", "series_id": eth, "since": 0, "supports_batch": True})
            async with asyncio.timeout(PATIENCE_S):
                while len(sent) < 2000:
                    message = await watching.receive_json()
                    if message["type"] == "candles_batch":
                        sent += [candle["candle_time"] for candle in message["candles"]]
        assert sent == [candle.time for candle in candles[500:]]
        answer = await health(service, BTC)
        assert (answer["status"], answer["status_reason"]) == ("red", "exchange_unreachable")
        assert "127.0.0.1:9" in answer["detail"]
        assert answer["head_time"] == candles[-1].time
        assert (answer["backfill"]["reason"], answer["backfill"]["state"]) == ("files", "succeeded")
        status, told = await service.get("/api/market/status")
        assert (status, told["status_reason"]) == (200, "exchange_unreachable")


async def test_without_a_file_the_exchange_is_reported_as_unreachable(tmp_path: Path) -> None:
    folder = files_with(tmp_path / "data", last_minutes(100))
    flags = OFFLINE | {"freqtrade_data_dir": str(folder), "whitelist": "binance:futures:BTC/USDT:1m"}
    async with running_service(
        tmp_path / "store.sqlite", None, None, retrying(0.05), **flags, enable_whitelist_ingest="on"
    ) as service:
        series = SeriesId.parse("binance:futures:BTC/USDT:1m")
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await health(service, series))["status_reason"] != "exchange_unreachable":
                assert answer["status_reason"] == "backfill_running"
                await asyncio.sleep(0.02)
        for _ in range(100):
            answer = await health(service, series)
            assert (answer["status"], answer["status_reason"]) == ("red", "exchange_unreachable"), "and stays so"
            assert (answer["head_time"], answer["missing_candles"]) == (None, None)
            await asyncio.sleep(0.01)


async def test_files_of_an_unavailable_exchange_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ccxt_installed, "find_spec", lambda _: None)
    candles = last_minutes(50)
    folder = files_with(tmp_path / "data", candles, "kraken/BTC_USD-1m.feather")
    async with running_service(
        tmp_path / "store.sqlite", None, None, retrying(0.05), freqtrade_data_dir=str(folder), **OFFLINE
    ) as service:
        await until_page(service, KRAKEN, candles)
        status, _ = await service.get("/api/market/candles", series_id="kraken:spot:ETH/USD:1m")
        assert status == 404


async def test_new_candles_of_a_growing_file_are_read(tmp_path: Path) -> None:
    candles = last_minutes(600)
    folder = files_with(tmp_path / "data", candles[:300])
    async with running_service(
        tmp_path / "store.sqlite", None, None, retrying(0.05), freqtrade_data_dir=str(folder), **OFFLINE
    ) as service:
        await until_page(service, BTC, candles[:300])
        files_with(folder, candles)
        await until_page(service, BTC, candles[100:])


async def test_candles_of_the_exchange_follow_those_of_the_files_once_it_answers(tmp_path: Path) -> None:
    """The exchange's time counts from now on: 2023."""
    reserved = socket.create_server(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    reserved.close()
    newest = START // 60 * 60
    async with SimServer(SimConfig(symbols=2, start=START)) as exchange:
        candles = truth(exchange, BTC, range(newest - 600 * 60, newest - 100 * 60, 60))
    folder = files_with(tmp_path / "data", candles)
    address = {
        f"binance_{market}_{kind}_url": f"{scheme}://127.0.0.1:{port}"
        for market in ("spot", "futures")
        for kind, scheme in (("rest", "http"), ("ws", "ws"))
    }
    flags = OFFLINE | address | {"freqtrade_data_dir": str(folder), "whitelist": str(BTC)}
    async with running_service(
        tmp_path / "store.sqlite", None, None, retrying(0.05), **flags, enable_whitelist_ingest="on"
    ) as service:
        await until_page(service, BTC, candles)
        async with SimServer(SimConfig(symbols=2, start=START, port=port)) as exchange:
            right = candles + truth(exchange, BTC, range(candles[-1].time + 60, newest, 60))
            await until_page(service, BTC, right[-600:], limit=600)
            await until(lambda: service.runtime.supervisors.keeps_up(BTC), "it is followed")
            answer = await health(service, BTC)
            assert (answer["status_reason"], answer["detail"]) == ("up_to_date", None)

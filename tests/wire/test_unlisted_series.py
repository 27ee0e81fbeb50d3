"""A series that the exchange does not list: refused at once, or served as imported."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.ingest.timings import AuditLimits, FollowTimings
from klinesync.market.surroundings import Surroundings
from klinesync.market.tuning import Tuning
from klinesync.sim.rest_request import RestRequest
from klinesync.sim.server import SimConfig, SimServer
from support.history_files import minutes, write_freqtrade
from support.processes import klinesync
from support.running_service import Service, running_service
from support.upstream import complete, passed, stored
from support.waiting import until


async def test_a_backfill_of_an_unlisted_symbol_ends_at_once_and_stores_nothing(tmp_path: Path) -> None:
    async with SimServer(SimConfig(symbols=2, contracts=True, odd_symbols=True)) as exchange:
        start = exchange.now_ms() // 60_000 * 60 - 3600
        quarterly = next(name for name in exchange.exchange.futures if "_" in name)

        async def backfill(series: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(
                klinesync,
                *("backfill", series, f"--from={start}", f"--to={start + 300}", "--json"),
                *(
                    f"--database-url=sqlite:///{tmp_path}/store.sqlite",
                    f"--binance-futures-rest-url={exchange.http_url}",
                ),
            )

        dated = f"binance:futures:BTC/USDT:USDT-{quarterly.rpartition('_')[2]}:1m"
        status, out, told = await backfill(dated)
        assert (status, '"candles": 5' in out) == (0, True), told
        status, _, told = await backfill("binance:futures:BTC/USDT:USDT-200101:1m")
        assert (status, "lists no such symbol" in told) == (1, True), told
        status, _, told = await backfill("binance:futures:BTC/USD:BTC:1m")
        assert (status, "coin-margined" in told) == (1, True), told


# Unlisted names whose joined texts are symbols of the exchange (`BTCUSDT`).
UNLISTED = [SeriesId.parse("binance:futures:BTC/USDT:USDT-200101:1m"), SeriesId.parse("binance:spot:BT/CUSDT:1m")]
LISTED = SeriesId.parse("binance:spot:ETH/USDT:1m")
HOLE = range(100, 105)


class Ended(NamedTuple):
    """The service's answers about a series."""

    candles: list[Candle]
    state: object
    detail: object


async def seen(service: Service, series: SeriesId) -> Ended:
    _, health = await service.get("/api/market/health", series_id=str(series))
    stream = health["stream"]
    assert isinstance(stream, dict)
    return Ended(await stored(service, series), stream["state"], stream["detail"])


async def test_an_imported_series_that_is_not_listed_is_served_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning(follow=FollowTimings(tick_s=0.05), audit=AuditLimits(again_s=0.1))
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(symbols=2, contracts=True, odd_symbols=True, speed=60)) as exchange:
        asked: list[tuple[str, str]] = []
        answer = exchange._api.answer

        def noted(request: RestRequest, now_ms: int) -> object:
            if request.path == "klines":
                asked.append((request.market, request.params.get("symbol", "")))
            return answer(request, now_ms)

        monkeypatch.setattr(exchange._api, "answer", noted)
        end = exchange.now_ms() // 60_000 * 60 - 1200
        rows = [candle for at, candle in enumerate(minutes(end - 300 * 60, 300)) if at not in HOLE]
        for number, series in enumerate(UNLISTED):
            path = write_freqtrade(tmp_path / f"{number}.feather", rows)
            done = await asyncio.to_thread(
                klinesync, "import", str(path), f"--series={series}", f"--database-url=sqlite:///{store}"
            )
            assert done[0] == 0, done
        async with (
            running_service(
                store, exchange, None, Surroundings(tuning=tuning), whitelist=f"{LISTED},{UNLISTED[0]}",
                audit_interval_s="0.02", startup_kline_sync_target_candles="400",
            ) as service,
            service.http.ws_connect(service.url + "/ws/market") as socket,
        ):  # fmt: skip
            for series in UNLISTED:
                await socket.send_json({"type": "subscribe", "series_id": str(series), "since": 0, "ack": True})
                await service.get("/api/market/candles", series_id=str(series), limit=5000)
                await service.get("/api/market/candles", series_id=str(series), before=rows[50].time, limit=500)
                five = series.with_timeframe(series.timeframe.known["5m"])
                assert len(await stored(service, five)) >= 57
                body = {"series_id": str(series), "from": rows[0].time - 6000}
                status, refused = await service.post("/api/market/ingest/backfill", body)
                assert (status, refused["code"]) == (404, "unknown_series"), refused
            followed = service.runtime.supervisors
            async with asyncio.timeout(60):
                for series in UNLISTED:
                    while followed.status(series).state != "delisted":
                        await asyncio.sleep(0.05)
            auditing = followed.by_name()["binance"].audit
            assert auditing is not None
            looked = auditing.audits
            await until(lambda: auditing.audits > looked + 5, "the audit goes on")
            await passed(exchange, 600)
            await complete(service, exchange, LISTED)
            for series in UNLISTED:
                assert await seen(service, series) == (rows, "delisted", "the exchange does not list it")
                _, page = await service.get("/api/market/candles", series_id=str(series), limit=5000)
                gaps = page["gaps"]
                assert isinstance(gaps, list)
                assert [gap["state"] for gap in gaps] == ["unknown"]
            assert followed.status(LISTED).state == "live"
            assert set(asked) == {("spot", "ETHUSDT")}

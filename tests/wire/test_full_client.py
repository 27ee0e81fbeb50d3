"""The Python client with `full=True`: candles with their order flow in pages, catch-up, live and after restarts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
from aiohttp import web

from klinesync.client import AsyncKlinesync, ClosedCandle, FormingCandle, Klinesync, Update, tables
from klinesync.client.follow import follow
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIRST = 1_700_000_040
NAMES = ("candle_time", *Candle._fields[1:])


def candle(minute: int) -> Candle:
    """A candle whose source has all of its order flow, some, or none."""
    flow = ((15.0, 3 + minute, 4.0, 6.0), (15.0, None, 4.0, None), (None,) * 4)[minute % 3]
    return Candle(FIRST + 60 * minute, 1.0, 2.0, 0.5, 1.5, 10.0, *flow)


CANDLES = [candle(minute) for minute in range(6000)]


async def ingest(service: Service, candles: list[Candle]) -> None:
    rows = [dict(zip(NAMES, one, strict=True)) for one in candles]
    body = {"series_id": str(BTC), "candles": rows}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 200, answer


async def closed(updates: AsyncIterator[Update], count: int) -> list[Candle]:
    """The next `count` closed candles."""
    seen: list[Candle] = []
    async for update in updates:
        if isinstance(update, ClosedCandle):
            seen.append(update.candle)
            if len(seen) == count:
                break
    return seen


async def test_candles_and_history_are_arrays_with_order_flow(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        await ingest(service, CANDLES)
        async with AsyncKlinesync(service.url) as client:
            short = await client.history(BTC, 0)
            full = await client.history(BTC, 0, full=True)
            assert short.dtype == tables.CANDLE
            assert full.dtype == tables.FULL_CANDLE
            assert [row[:6] for row in full.tolist()] == short.tolist()
            for name in NAMES[6:]:
                expected = np.array([getattr(one, name) for one in CANDLES], float)  # None becomes NaN
                assert np.array_equal(full[name], expected, equal_nan=True)
            newest = await client.candles(BTC, limit=3, full=True)
            assert np.array_equal(newest["trades"], full["trades"][-3:], equal_nan=True)
            assert (await client.candles(BTC, before=FIRST, full=True)).dtype == tables.FULL_CANDLE
        with Klinesync(service.url) as blocking:
            same = await asyncio.to_thread(blocking.history, BTC, 0, full=True)
            assert same.tobytes() == full.tobytes()
            some = await asyncio.to_thread(blocking.candles, BTC, limit=3, full=True)
            assert some.tobytes() == newest.tobytes()
            updates = blocking.follow(BTC, FIRST, full=True, what=["closed"])
            first = await asyncio.to_thread(
                lambda: next(update for update in updates if isinstance(update, ClosedCandle))
            )
            await asyncio.to_thread(updates.close)
            assert first.candle == CANDLES[1]


async def test_a_follower_gets_the_order_flow_in_pages_catch_up_live_and_after_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with running_service(store) as service:
        await ingest(service, CANDLES[:3000])
        async with (
            aclosing(follow(service.url, BTC, FIRST - 60, full=True)) as full,
            aclosing(follow(service.url, BTC, FIRST - 60)) as short,
        ):
            # More than one catch-up sends: the older ones are paged over HTTP.
            assert await closed(full, 3000) == CANDLES[:3000]
            assert await closed(short, 3000) == [Candle(*one.ohlcv) for one in CANDLES[:3000]]
            await ingest(service, CANDLES[3000:3002])
            assert await closed(full, 2) == CANDLES[3000:3002]
            assert await closed(short, 2) == [Candle(*one.ohlcv) for one in CANDLES[3000:3002]]
    async with running_service(store) as service, AsyncKlinesync(service.url) as client:
        updates = client.follow([str(BTC)], CANDLES[2000].time, full=True, factors=True)
        async with aclosing(updates):
            assert await closed(updates, 1001) == CANDLES[2001:3002]


async def test_forming_candles_have_their_order_flow(tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite", enable_debug_api="on") as service:
        await ingest(service, CANDLES[:1])
        async with aclosing(follow(service.url, BTC, FIRST, full=True)) as updates:
            async for update in updates:
                if isinstance(update, FormingCandle):
                    assert update.candle == CANDLES[3]
                    break
                body = {"series_id": str(BTC), "candle": dict(zip(NAMES, CANDLES[3], strict=True))}
                status, answer = await service.post("/api/market/ingest/candle_forming", body)
                assert status == 200, answer


async def test_a_service_that_knows_no_order_flow_gives_none() -> None:
    row = dict(zip(NAMES, CANDLES[0].ohlcv, strict=False))
    requests: list[dict[str, object]] = []

    async def page(_: web.Request) -> web.Response:
        return web.json_response({"candles": [row]})

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        requests.append(await answer.receive_json())
        await answer.send_json({"type": "subscribed", "series_id": str(BTC), "head_time": FIRST, "stream": "live"})
        await answer.send_json({"type": "candle_closed", "series_id": str(BTC), "candle": row})
        await answer.receive()
        return answer

    application = web.Application()
    application.add_routes([web.get("/api/market/candles", page), web.get("/ws/market", socket)])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = "http://{}:{}".format(*runner.addresses[0])
        async with AsyncKlinesync(url) as client:
            table = await client.candles(BTC, full=True)
            assert table["close"].tolist() == [1.5]
            assert np.isnan(table["trades"]).all()
            async with aclosing(client.follow(BTC, 0, full=True)) as updates:
                assert await closed(updates, 1) == [Candle(*CANDLES[0].ohlcv)]
        assert requests[0]["fields"] == "full"
    finally:
        await runner.cleanup()

"""Derived series over real sockets: live, caught up, over restarts, corrected; compared with the exchange's true
candles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from math import isclose
from pathlib import Path

import aiohttp
import pytest

from klinesync.client.follow import follow
from klinesync.client.updates import ClosedCandle, FormingCandle, Gap, Update
from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.sim.exchange import Grid
from klinesync.sim.server import SimConfig, SimServer
from klinesync.storage.sqlite import SqliteDatabase
from support.candles import bare, of_minute
from support.derived_candles import roll_up
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
MINUTE = BTC.timeframe
FIVE, HOUR = Timeframe.parse("5m"), Timeframe.parse("1h")
BTC_FIVE, BTC_HOUR = BTC.with_timeframe(FIVE), BTC.with_timeframe(HOUR)
# Computed candles; native candles before them are tested in tests/wire/test_derived_history.
ROLLED = {"derived_native_candles": "0"}


def minutes(exchange: SimServer, start: int, end: int) -> list[Candle]:
    """The traded candles in `[start, end)` with their final values."""
    rows = (exchange.exchange.spot["BTCUSDT"].minute(time) for time in range(start, end, 60))
    return [of_minute(row) for row in rows if row is not None]


def truth(exchange: SimServer, timeframe: Timeframe, start: int, end: int) -> list[Candle]:
    """The candles of `timeframe` that open in `[start, end)`; the exchange folds them in another order."""
    base = minutes(exchange, start, end)
    if timeframe == MINUTE:
        return base
    rolled = roll_up(base, MINUTE, (timeframe,))[timeframe]
    theirs = exchange.exchange.spot["BTCUSDT"].candles(
        Grid(timeframe), start, timeframe.next(timeframe.floor(end - 1)), end * 1000
    )
    for ours, row in zip(rolled, theirs.rows(), strict=True):
        assert ours[:5] == row[:5]
        assert isclose(ours.volume, row.volume, rel_tol=1e-9)
    return rolled


async def until_closed(updates: AsyncIterator[Update], count: int) -> list[Update]:
    """Updates up to the `count`-th closed candle."""
    seen: list[Update] = []
    async for update in updates:
        seen.append(update)
        count -= isinstance(update, ClosedCandle)
        if count == 0:
            break
    return seen


async def next_forming(updates: AsyncIterator[Update]) -> Candle:
    async for update in updates:
        if isinstance(update, FormingCandle):
            return update.candle
    raise AssertionError("the service ended the connection")


def closed(updates: Sequence[Update]) -> list[Candle]:
    return [update.candle for update in updates if isinstance(update, ClosedCandle)]


def check_stream(exchange: SimServer, timeframe: Timeframe, seen: Sequence[Update]) -> None:
    """Closed candles are correct, each once, in order, none missing; forming candles led up to them."""
    candles = closed(seen)
    end = timeframe.next(candles[-1].time)
    assert candles == bare(truth(exchange, timeframe, candles[0].time, end))
    assert not any(update.revised for update in seen if isinstance(update, ClosedCandle))
    newest = candles[0].time - 1
    shown: dict[int, list[Candle]] = {}
    for update in seen:
        if isinstance(update, ClosedCandle):
            newest = update.candle.time
        elif isinstance(update, FormingCandle):
            assert update.candle.time > newest, "forming is newer than what is closed"
            shown.setdefault(update.candle.time, []).append(update.candle)
    for time, forming in shown.items():
        (whole,) = truth(exchange, timeframe, time, timeframe.next(time))
        for earlier, later in pairwise([*forming, whole]):
            check_grew(earlier, later)


def check_grew(earlier: Candle, later: Candle) -> None:
    """`later` is the same candle, with more trades."""
    assert later.open == earlier.open
    assert later.high >= earlier.high, (earlier, later)
    assert later.low <= earlier.low, (earlier, later)
    assert later.volume >= earlier.volume, (earlier, later)


async def stored(store: Path, series: SeriesId) -> list[Candle]:
    """All candles of a closed store."""
    async with SqliteDatabase(store) as database:
        return await database.read(lambda rows: rows.between(series, 0, MAX_TIME))


async def test_a_derived_series_is_followed_like_any_other(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=1200, symbols=2)) as exchange,
        running_service(
            tmp_path / "store.sqlite", exchange, whitelist=str(BTC), market_forming_min_interval_ms="20", **ROLLED
        ) as service,
    ):
        async with aclosing(follow(service.url, BTC, 0)) as updates:
            head = closed(await until_closed(updates, 2010))[-1].time
        for series, recent in ((BTC_FIVE, 12), (BTC_HOUR, 2)):
            frame = series.timeframe
            since = frame.shift(frame.floor(head), -6)
            async with aclosing(follow(service.url, series, since)) as updates:
                seen = await until_closed(updates, 5 + recent)
            assert closed(seen)[0].time == frame.next(since)
            assert not [update for update in seen if isinstance(update, Gap)]
            assert [update for update in seen if isinstance(update, FormingCandle)]
            check_stream(exchange, frame, seen)


async def test_a_restart_in_mid_bucket_leaves_no_trace_in_a_derived_stream(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(speed=600, symbols=2)) as exchange:
        async with running_service(store, exchange, whitelist=str(BTC), **ROLLED) as service:
            async with aclosing(follow(service.url, BTC, 0)) as updates:
                await until_closed(updates, 2003)  # history, and live candles have begun
            async with aclosing(follow(service.url, BTC_FIVE, 0)) as updates:
                before = await until_closed(updates, 405)
            async with aclosing(follow(service.url, BTC)) as updates:
                while closed(await until_closed(updates, 1))[0].time % 300 != 60:
                    pass
        async with aiohttp.ClientSession() as http:
            # Offline for more than half an hour: both restarts fall into the middle of a bucket.
            await (await http.post(exchange.http_url + "/sim/clock", json={"advance_s": 1830})).read()
        async with (
            running_service(
                store, exchange, whitelist=str(BTC), market_forming_min_interval_ms="20", **ROLLED
            ) as service,
            aclosing(follow(service.url, BTC_FIVE, closed(before)[-1].time)) as updates,
        ):
            after = await until_closed(updates, 15)
        check_stream(exchange, FIVE, [*before, *after])
        base = await stored(store, BTC)
        end = FIVE.floor(base[-1].time + 60)
        assert await stored(store, BTC_FIVE) == truth(exchange, FIVE, 300 * -(-base[0].time // 300), end)


async def test_forming_after_a_restart_counts_the_minutes_that_closed_before_it(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    start = 1_760_005_800  # half past an hour
    async with SimServer(SimConfig(speed=120, symbols=2, start=start)) as exchange:
        for _ in range(2):
            async with (
                running_service(
                    store, exchange, whitelist=str(BTC), market_forming_min_interval_ms="20", **ROLLED
                ) as service,
                aclosing(follow(service.url, BTC_HOUR)) as updates,
            ):
                forming = await next_forming(updates)
            assert forming.time == start - 1800
            (least,) = truth(exchange, HOUR, forming.time, start)
            (whole,) = truth(exchange, HOUR, forming.time, forming.time + 3600)
            check_grew(least, forming)
            check_grew(forming, whole)


async def test_a_derived_series_on_the_whitelist_has_its_base_followed(tmp_path: Path) -> None:
    async with (
        SimServer(SimConfig(speed=600, symbols=2)) as exchange,
        running_service(tmp_path / "store.sqlite", exchange, whitelist=str(BTC_FIVE), **ROLLED) as service,
        aclosing(follow(service.url, BTC_FIVE, 0)) as updates,
    ):
        seen = await until_closed(updates, 405)  # two thousand minutes of history, and live ones
        candles = closed(seen)
        assert candles == bare(truth(exchange, FIVE, candles[0].time, candles[-1].time + 300))
        status, listed = await service.get("/api/market/whitelist")
        assert (status, listed["series_ids"]) == (200, [str(BTC_FIVE)])
        status, page = await service.get("/api/market/candles", series_id=str(BTC), limit=10)
        assert status == 200
        assert isinstance(page["candles"], list)
        assert len(page["candles"]) == 10


# --- posted candles


def body(series: SeriesId, candle: Candle) -> dict[str, object]:
    values = dict(zip(("candle_time", "open", "high", "low", "close", "volume"), candle.ohlcv, strict=True))
    return {"series_id": str(series), "candle": values}


async def post(service: Service, series: SeriesId, candle: Candle) -> tuple[int, dict[str, object]]:
    return await service.post("/api/market/ingest/candle_closed", body(series, candle))


@pytest.mark.parametrize("timeframe", ["5m", "1d"])
async def test_a_closed_candle_for_a_derived_series_is_refused(timeframe: str, tmp_path: Path) -> None:
    async with running_service(tmp_path / "store.sqlite") as service:
        series = BTC.with_timeframe(Timeframe.parse(timeframe))
        status, answer = await post(service, series, Candle(1_699_920_000, 1.0, 2.0, 0.5, 1.5, 1.0))
        assert status == 422
        assert "is derived from 1m" in str(answer["detail"])
        many = {"series_id": str(series), "candles": [body(series, Candle(1_699_920_000, 1, 2, 0.5, 1.5, 1))["candle"]]}
        status, answer = await service.post("/api/market/ingest/candles_closed", many)
        assert status == 422
        assert "is derived from 1m" in str(answer["detail"])


async def test_a_correction_reaches_followers_of_the_base_and_of_what_is_derived(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    async with SimServer(SimConfig(speed=600, symbols=2)) as exchange:
        async with running_service(store, exchange, whitelist=str(BTC), **ROLLED) as service:
            async with aclosing(follow(service.url, BTC, 0)) as updates:
                first = closed(await until_closed(updates, 2005))[0].time
            noon = HOUR.shift(HOUR.floor(first), 5)
            (was,) = minutes(exchange, noon + 420, noon + 480)
            # Six values are posted, so that the order flow of the exchange is dropped.
            corrected = Candle(*was.ohlcv)._replace(high=was.high * 2, volume=was.volume + 1.0)
            watched = {BTC: was.time, BTC_FIVE: noon + 300, BTC_HOUR: noon}
            async with service.http.ws_connect(service.url + "/ws/market") as socket:
                for series in watched:
                    # `since` before the candle that will change: a later `since` gets no correction.
                    await socket.send_json(
                        {"type": "subscribe", "series_id": str(series), "since": noon - 3600, "supports_batch": True}
                    )
                caught_up: set[str] = set()
                while len(caught_up) < len(watched):
                    message = await socket.receive_json(timeout=10)
                    if message["type"] == "candles_batch":
                        caught_up.add(message["series_id"])
                assert (await post(service, BTC, corrected))[0] == 200
                revised: dict[str, dict[str, float]] = {}
                while len(revised) < len(watched):
                    message = await socket.receive_json(timeout=10)
                    if message["type"] == "candle_closed":
                        known = message["candle"]["candle_time"] <= watched[SeriesId.parse(message["series_id"])]
                        assert message.get("revised", False) == known, "what is told again is marked as a revision"
                    if message.get("revised"):
                        assert message["series_id"] not in revised, "each correction is told once"
                        revised[message["series_id"]] = message["candle"]
                # The same candle again changes nothing and is not published: the next message is the next correction.
                assert (await post(service, BTC, corrected))[0] == 200
                assert (await post(service, BTC, was))[0] == 200
                while not message.get("revised") or message["candle"] == revised[message["series_id"]]:
                    message = await socket.receive_json(timeout=10)
                assert (message["series_id"], message["candle"]["high"]) == (str(BTC), was.high)
            assert (await post(service, BTC, corrected))[0] == 200
        for series, time in watched.items():
            frame = series.timeframe
            base = [corrected if minute == was else minute for minute in minutes(exchange, time, frame.next(time))]
            expected = base if frame == MINUTE else roll_up(base, MINUTE, (frame,))[frame]
            assert list(revised[str(series)].values()) == list(expected[0].ohlcv)
            assert [candle for candle in await stored(store, series) if candle.time == time] == expected
            around = [
                candle
                for candle in await stored(store, series)
                if candle.time in (frame.shift(time, -1), frame.next(time))
            ]
            assert around == [
                *truth(exchange, frame, frame.shift(time, -1), time),
                *truth(exchange, frame, frame.next(time), frame.shift(time, 2)),
            ]
        async with SqliteDatabase(store) as database:
            revisions = await database.read(lambda rows: rows.revisions(BTC))
        assert [(revision.was, revision.source) for revision in revisions] == [
            (was, "http"), (corrected, "http"), (*bare([was]), "http"),
        ]  # fmt: skip

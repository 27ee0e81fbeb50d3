"""The recorded outage of 2021-04-25, 04:01 to 08:45 UTC, through the whole service over real sockets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, runs
from klinesync.core.timeframe import Timeframe
from klinesync.sim.server import SimConfig, SimServer
from klinesync.sim.tape import Market
from klinesync.storage.sqlite import SqliteDatabase
from support.candles import bare, ohlcv
from support.derived_candles import derive
from support.running_service import Service, running_service

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
BRD = SeriesId.parse("binance:spot:BRD/BTC:1m")  # illiquid: it has minutes without trades, and an earlier outage
FIVE = Timeframe.parse("5m")
TARGETS = [FIVE, *map(Timeframe.parse, ("15m", "1h", "4h", "1d"))]


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


OUTAGE = Span(at("2021-04-25 04:01"), at("2021-04-25 08:45"))
EARLIER = Span(at("2021-04-20 02:00"), at("2021-04-20 04:30"))
START = at("2021-04-25 03:51")
HISTORY = 10_000  # reaches back beyond the earlier outage, also when the start takes a minute at this speed


class Exchange(SimServer):
    """The simulated exchange, which records requests for klines: symbol, and recorded start time."""

    def __init__(self, config: SimConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[str, int]] = []

    def _rest_of(self, market: Market) -> Callable[[web.Request], Awaitable[web.Response]]:
        answer = super()._rest_of(market)

        async def rest(request: web.Request) -> web.Response:
            if request.match_info["path"] == "klines":
                start = int(request.query["startTime"]) // 1000 - self.exchange.shift_s
                self.asked.append((request.query["symbol"], start))
            return await answer(request)

        return rest

    def asked_across(self, series: SeriesId, hole: Span) -> int:
        """The number of requests whose answer covers the gap: begun before, with less than a thousand rows between."""
        name = series.symbol.replace("/", "")
        return sum(symbol == name and hole.start - 60_000 < start < hole.end for symbol, start in self.asked)


def recorded(folder: Path, series: SeriesId) -> list[Candle]:
    raw = gzip.decompress((folder / "gaps" / f"{series.symbol.replace('/', '_')}-1m.json.gz").read_bytes())
    rows = msgspec.json.decode(raw, type=list[tuple[int, float, float, float, float, float]])
    return [ohlcv(time // 1000, values) for time, *values in rows]


@asynccontextmanager
async def following(exchange: Exchange, store: Path) -> AsyncIterator[Service]:
    flags = {
        "whitelist": f"{BTC},{BRD}",
        "startup_kline_sync_target_candles": str(HISTORY),
        # Requests of the audit, which reads the newest minutes again, are not counted.
        "audit_interval_s": "0",
    }
    async with running_service(store, exchange, **flags) as service:
        yield service


async def listen(service: Service, series: SeriesId, since: int, upto: int) -> list[dict[str, object]]:
    """All closed candles and gaps of `series` after `since`, up to the one at `upto`; one message each."""
    seen: list[dict[str, object]] = []
    async with service.http.ws_connect(service.url + "/ws/market") as socket:
        await socket.send_json({"type": "subscribe", "series_id": str(series), "since": since})
        async for frame in socket:
            assert frame.type is aiohttp.WSMsgType.TEXT
            message = frame.json()
            assert message["type"] != "error", message
            if message["type"] != "candle_forming":
                seen.append(message)
            if message["type"] == "candle_closed" and message["candle"]["candle_time"] >= upto:
                return seen
    raise AssertionError("the service ended the connection")


def gaps_told(messages: list[dict[str, object]], shift_s: int) -> list[tuple[int, int, object]]:
    """In recorded time."""
    return [
        (
            int(str(message["expected_next_time"])) - shift_s,
            int(str(message["actual_time"])) - shift_s,
            message["state"],
        )
        for message in messages
        if message["type"] == "gap"
    ]


def times(messages: list[dict[str, object]]) -> list[int]:
    return [message["candle"]["candle_time"] for message in messages if message["type"] == "candle_closed"]  # type: ignore[index]


async def test_the_outage_is_confirmed_empty_declared_once_and_never_requested_again(
    real_data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    five = BTC.with_timeframe(FIVE)
    async with Exchange(SimConfig(data=real_data / "gaps", start=START, speed=2400)) as exchange:
        shift_s = exchange.exchange.shift_s
        since, resumed, later, last = (
            at(f"2021-04-25 {time}") + shift_s for time in ("03:45", "08:50", "09:10", "09:30")
        )
        async with following(exchange, store) as service:
            live, live_five, live_brd = await asyncio.gather(
                *(listen(service, series, since, resumed) for series in (BTC, five, BRD))
            )
            for series in (BTC, BRD):
                assert exchange.asked_across(series, OUTAGE), "the hole was shown by REST"
            # Confirmed empty: never requested again, and declared once to late subscribers too.
            exchange.asked.clear()
            late = await listen(service, BTC, since, later)
        for messages in (live, live_brd, late):
            assert gaps_told(messages, shift_s) == [(*OUTAGE, "confirmed_empty")]
            assert sorted(set(times(messages))) == times(messages)
        assert gaps_told(live_five, shift_s) == [(at("2021-04-25 04:05"), OUTAGE.end, "confirmed_empty")]
        async with following(exchange, store) as service:
            await asyncio.gather(*(listen(service, series, later, last) for series in (BTC, BRD)))
        assert exchange.asked, "the restarted service read what it had missed"
        for series, hole in ((BTC, OUTAGE), (BRD, EARLIER), (BRD, OUTAGE)):
            assert exchange.asked_across(series, hole) == 0

    async with SqliteDatabase(store) as database:
        for series, holes in ((BTC, [OUTAGE]), (BRD, [EARLIER, OUTAGE])):
            await check_store(database, recorded(real_data, series), series, holes, shift_s)


async def check_store(
    database: SqliteDatabase, minutes: list[Candle], series: SeriesId, holes: list[Span], shift_s: int
) -> None:
    """The store of `series` equals the recording, its gap ledger has the `holes`, and derived candles follow."""
    stored = await database.read(lambda store: store.between(series, 0, MAX_TIME))
    first, last = stored[0].time - shift_s, stored[-1].time - shift_s
    inside = [minute for minute in minutes if first <= minute.time <= last]
    assert len(stored) > 6_000
    assert [candle._replace(time=candle.time - shift_s) for candle in bare(stored)] == inside
    assert all(None not in candle for candle in stored), "the simulated exchange makes up the order flow"

    ledger = await database.read(lambda store: store.gaps(series))
    assert [(gap.start - shift_s, gap.end - shift_s) for gap in ledger] == holes
    assert all(gap.state is GapState.CONFIRMED_EMPTY and gap.proof and gap.time for gap in ledger)

    empty = [gap.span for gap in ledger]
    for target in TARGETS:
        expected, wholly_empty = expectations(target, stored, empty)
        derived = series.with_timeframe(target)
        # The bucket in which the base begins may have a native candle.
        every = await database.read(lambda store, of=derived: store.between(of, 0, MAX_TIME))  # type: ignore[misc]
        assert [candle for candle in every if candle.time >= expected[0].time] == expected
        gaps: list[Gap] = await database.read(lambda store, of=derived: store.gaps(of))  # type: ignore[misc]
        assert [gap.span for gap in gaps] == wholly_empty
        assert all(gap.state is GapState.CONFIRMED_EMPTY for gap in gaps)


def expectations(target: Timeframe, stored: list[Candle], empty: list[Span]) -> tuple[list[Candle], list[Span]]:
    """The closed candles of `target`, bucket by bucket, and the spans of its wholly empty buckets."""
    candles: list[Candle] = []
    wholly_empty: list[int] = []
    position = 0
    open_ = target.floor(stored[0].time)
    while target.next(open_) <= stored[-1].time + 60:
        inside = []
        while position < len(stored) and stored[position].time < target.next(open_):
            inside.append(stored[position])
            position += 1
        bucket = derive(target, BTC.timeframe, open_, inside, empty)
        if bucket.candle is not None:
            candles.append(bucket.candle)
        elif bucket.missing == 0:
            wholly_empty.append(open_)
        open_ = target.next(open_)
    return candles, runs(target, wholly_empty)

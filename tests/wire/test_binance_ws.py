"""Connections to the exchange: subscribing, dropping, reconnecting, and invalid frames."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance import streams as binance_ws
from klinesync.exchanges.binance.streams import BinanceConnection, Symbols
from klinesync.exchanges.binance.timings import USUAL_STREAMS, StreamTimings
from klinesync.exchanges.exchange import KlineEvent, StreamCallbacks
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import HttpClient
from klinesync.sim.server import SimConfig, SimServer
from support.running_service import running_service
from support.upstream import plain
from support.waiting import until

T = TypeVar("T")
BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
ETH = SeriesId.parse("binance:spot:ETH/USDT:1m")

FRAME = {
    "stream": "btcusdt@kline_1m",
    "data": {
        "e": "kline",
        "E": 60_005,
        "s": "BTCUSDT",
        "k": {"t": 0, "s": "BTCUSDT", "i": "1m", "o": "1", "c": "1", "h": "1", "l": "1", "v": "1", "x": True},
    },
}


@dataclass
class Exchange:
    """A scripted exchange: records requests, answers them, sends the messages of a test."""

    answers: bool = True
    refuses: int = 0
    task: asyncio.Task[None] | None = None
    error: dict[str, object] | None = None
    requests: asyncio.Queue[dict[str, object]] = field(default_factory=asyncio.Queue)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.refuses:
            self.refuses -= 1
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            asked = json.loads(message.data)
            self.requests.put_nowait(asked)
            if self.answers:
                answer = {"result": None} if self.error is None else {"error": self.error}
                await socket.send_json(answer | {"id": asked["id"]})
        return socket

    async def asked(self) -> tuple[object, object]:
        request = await asyncio.wait_for(self.requests.get(), 10)
        return request["method"], request["params"]


class Plain:
    """Symbols in the notation of pairs, all of them listed."""

    def symbol_id_now(self, series: SeriesId) -> str | None:
        return plain(series)

    async def symbol_id(self, series: SeriesId) -> str:
        return plain(series)


class Broken(Plain):
    """Finds no name in its table, and fails at its first use."""

    def __init__(self) -> None:
        self._asked = 0

    def symbol_id_now(self, series: SeriesId) -> str | None:
        return None

    async def symbol_id(self, series: SeriesId) -> str:
        self._asked += 1
        if self._asked == 1:
            raise RuntimeError("broken on purpose")
        return plain(series)


@dataclass
class Heard:
    """The reports of a connection."""

    attached: asyncio.Queue[SeriesId] = field(default_factory=asyncio.Queue)
    events: asyncio.Queue[KlineEvent] = field(default_factory=asyncio.Queue)
    lost: asyncio.Queue[list[SeriesId]] = field(default_factory=asyncio.Queue)
    failing: asyncio.Queue[tuple[list[SeriesId], str]] = field(default_factory=asyncio.Queue)

    def callbacks(self, event: Callable[[KlineEvent], None] | None) -> StreamCallbacks:
        def lost(series: Iterable[SeriesId]) -> None:
            self.lost.put_nowait(list(series))

        def failing(series: Iterable[SeriesId], reason: str) -> None:
            self.failing.put_nowait((list(series), reason))

        return StreamCallbacks(self.attached.put_nowait, event or self.events.put_nowait, lost, failing)


@asynccontextmanager
async def connected(
    exchange: Exchange,
    *wanted: SeriesId,
    clock: ExchangeClock | None = None,
    event: Callable[[KlineEvent], None] | None = None,
    symbols: Symbols | None = None,
    timings: StreamTimings = USUAL_STREAMS,
    bulkheads: Bulkheads | None = None,
) -> AsyncIterator[tuple[BinanceConnection, Heard]]:
    app = web.Application()
    app.router.add_get("/stream", exchange.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    heard = Heard()
    async with HttpClient() as session:
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/stream"
        connection = BinanceConnection(
            session,
            url,
            heard.callbacks(event),
            rng=random.Random(1),
            symbols=symbols or Plain(),
            clock=clock,
            timings=timings,
            bulkheads=bulkheads,
        )
        for series in wanted:
            connection.want(series)
        task = exchange.task = asyncio.create_task(connection.run())
        try:
            yield connection, heard
        finally:
            task.cancel()
            await asyncio.wait([task])
            await runner.cleanup()


async def soon(queue: asyncio.Queue[T]) -> T:
    return await asyncio.wait_for(queue.get(), 10)


async def test_streams_are_subscribed_attached_once_answered_and_dropped_while_it_runs() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m"])
        assert await soon(heard.attached) == BTC
        connection.want(ETH)
        assert await exchange.asked() == ("SUBSCRIBE", ["ethusdt@kline_1m"])
        assert await soon(heard.attached) == ETH
        connection.unwant(BTC)
        assert await exchange.asked() == ("UNSUBSCRIBE", ["btcusdt@kline_1m"])
        assert connection.room == binance_ws.STREAMS_PER_CONNECTION - 1


async def test_a_lost_connection_is_made_again_and_everything_is_subscribed_anew() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, ETH) as (connection, heard):
        await soon(heard.attached)
        await soon(heard.attached)
        await exchange.asked()
        await exchange.sockets[0].close()
        assert await soon(heard.lost) == [BTC, ETH]
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m", "ethusdt@kline_1m"])
        assert await soon(heard.attached) == BTC
        assert connection.reconnects == 1


async def test_a_refused_subscription_ends_the_connection_and_is_tried_again() -> None:
    exchange = Exchange(error={"code": 2, "msg": "Invalid request"})
    async with connected(exchange, BTC) as (_, heard):
        await exchange.asked()
        await exchange.asked()
        assert heard.attached.empty()
        exchange.error = None
        assert await soon(heard.attached) == BTC


async def test_a_subscription_that_is_not_answered_is_tried_again() -> None:
    exchange = Exchange(answers=False)
    async with connected(exchange, BTC, timings=StreamTimings(answer_timeout_s=0.05)) as (_, heard):
        await exchange.asked()
        await exchange.asked()
        exchange.answers = True
        assert await soon(heard.attached) == BTC


async def test_why_streams_are_not_carried_is_told_while_handshakes_fail() -> None:
    exchange = Exchange(refuses=1)
    async with connected(exchange, BTC) as (connection, heard):
        series, reason = await soon(heard.failing)
        assert (series, reason.partition(" ")[2]) == ([BTC], "answers a WebSocket handshake with 503")
        connection.want(ETH)
        assert await soon(heard.failing) == ([ETH], reason)
        assert {await soon(heard.attached), await soon(heard.attached)} == {BTC, ETH}
        await exchange.sockets[0].close()
        await soon(heard.lost)
        assert await soon(heard.failing) == ([BTC, ETH], "the connection to the exchange ended with code 1000")


async def test_why_streams_are_not_carried_is_told_while_acknowledgements_fail() -> None:
    exchange = Exchange(error={"code": 2, "msg": "Invalid\nrequest"})
    async with connected(exchange, BTC) as (_, heard):
        assert await soon(heard.failing) == (
            [BTC],
            "the exchange refuses a subscription: SUBSCRIBE was answered with 2 Invalid\\nrequest",
        )
    quick = StreamTimings(answer_timeout_s=0.05)
    async with connected(Exchange(answers=False), BTC, timings=quick) as (_, heard):
        assert await soon(heard.failing) == (
            [BTC],
            "the exchange has not answered a subscription within 0.05 s",
        )


async def test_a_frame_that_is_none_is_quarantined_and_the_connection_lives_on() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        for bad in ("{", "[]", '{"stream":"btcusdt@kline_1m","data":{"k":1}}'):
            await exchange.sockets[0].send_str(bad)
        await exchange.sockets[0].send_bytes(b"\x00")
        await exchange.sockets[0].send_json(FRAME)
        assert (await soon(heard.events)).closed
        assert connection.quarantined == 4
        assert connection.reconnects == 0


async def test_candles_with_invalid_order_flow_come_without_it_and_are_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = Exchange()
    spoilt = json.loads(json.dumps(FRAME))
    spoilt["data"]["k"] |= {"q": "1", "n": 3, "V": "2", "Q": "1"}
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        for _ in range(20):
            await exchange.sockets[0].send_json(spoilt)
        for _ in range(20):
            event = await soon(heard.events)
            assert event.closed
            assert event.candle == Candle(0, 1.0, 1.0, 1.0, 1.0, 1.0)
        assert connection.quarantined == 0
        assert connection._counts.flow_left_out == 20
    assert caplog.text.count("without its order flow") == 1


async def test_a_stream_that_is_renewed_is_dropped_and_subscribed_again() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, ETH) as (connection, heard):
        await exchange.asked()
        assert {await soon(heard.attached), await soon(heard.attached)} == {BTC, ETH}
        connection.renew(ETH)
        assert await exchange.asked() == ("UNSUBSCRIBE", ["ethusdt@kline_1m"])
        assert await exchange.asked() == ("SUBSCRIBE", ["ethusdt@kline_1m"])
        assert await soon(heard.attached) == ETH
        assert heard.lost.empty(), "the other one is left alone"


async def test_what_comes_of_a_stream_while_it_is_renewed_is_taken() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await exchange.asked()
        await soon(heard.attached)
        exchange.answers = False
        connection.renew(BTC)
        assert await exchange.asked() == ("UNSUBSCRIBE", ["btcusdt@kline_1m"])
        await exchange.sockets[0].send_json(FRAME)
        assert (await soon(heard.events)).series == BTC


async def test_a_connection_that_is_to_be_made_anew_is_and_its_streams_are_lost_meanwhile() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        connection.reconnect()
        assert await soon(heard.lost) == [BTC]
        assert await soon(heard.attached) == BTC
        assert len(exchange.sockets) == 2


SHUTDOWN = {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 1}}


async def test_a_successor_takes_over_before_the_first_socket_ends_and_nothing_is_attached_anew() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, ETH, timings=StreamTimings(overlap_least_s=0.1)) as (connection, heard):
        await soon(heard.attached)
        await soon(heard.attached)
        await exchange.asked()
        first = exchange.sockets[0]
        await first.send_json(SHUTDOWN)
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m", "ethusdt@kline_1m"])
        assert not first.closed
        await first.send_json(FRAME)
        await soon(heard.events)
        await exchange.sockets[1].send_json(FRAME)  # only now has the second connection delivered data
        await soon(heard.events)
        await until(lambda: first.closed, "the first has ended")
        assert connection.rotations == 1
        assert connection.reconnects == 0
        assert heard.attached.empty()
        assert heard.lost.empty()
        await exchange.sockets[1].send_json(FRAME)
        await soon(heard.events)


async def test_a_successor_that_is_to_end_too_is_followed_by_another_one_at_once() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        await exchange.asked()
        await exchange.sockets[0].send_json(SHUTDOWN)
        await exchange.asked()
        await exchange.sockets[1].send_json(SHUTDOWN)
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m"])
        await exchange.sockets[2].send_json(FRAME)
        await soon(heard.events)
        assert heard.lost.empty()
        assert connection.reconnects == 0


async def test_a_first_socket_that_ends_before_its_successor_is_ready_loses_its_streams_until_it_is() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, timings=StreamTimings(answer_timeout_s=0.2)) as (_, heard):
        await soon(heard.attached)
        await exchange.asked()
        exchange.answers = False
        await exchange.sockets[0].send_json(SHUTDOWN)
        await exchange.asked()
        await exchange.sockets[0].close()
        assert await soon(heard.lost) == [BTC]
        exchange.answers = True
        assert await soon(heard.attached) == BTC


async def test_a_successor_that_cannot_be_had_is_tried_again_while_the_first_carries_on() -> None:
    exchange = Exchange()
    quick = StreamTimings(successor_retry_s=0.1, rotate_check_s=0.05, overlap_least_s=0.0)
    async with connected(exchange, BTC, timings=quick) as (connection, heard):
        await soon(heard.attached)
        await exchange.asked()
        exchange.refuses = 2
        await exchange.sockets[0].send_json(SHUTDOWN)
        await until(lambda: exchange.refuses == 0, "it was tried")
        await exchange.sockets[0].send_json(FRAME)
        await soon(heard.events)
        await exchange.asked()
        await exchange.sockets[1].send_json(FRAME)
        await until(lambda: connection.rotations == 1, "it worked in the end")
        assert heard.lost.empty()


class SetClock(ExchangeClock):
    """An exchange's clock that a test sets."""

    now_ms = 1_700_000_000_000

    def estimate_ms(self, now_s: float) -> int | None:
        return self.now_ms


async def test_a_socket_is_replaced_when_the_exchanges_clock_says_that_its_day_is_over() -> None:
    quick = StreamTimings(rotate_check_s=0.05, overlap_least_s=0.0)
    clock = SetClock()
    now_s = asyncio.get_running_loop().time
    exchange = Exchange()
    async with connected(exchange, BTC, clock=clock, timings=quick) as (connection, heard):
        await soon(heard.attached)
        await exchange.asked()
        clock.now_ms += 21 * 3_600_000
        looked = now_s() + 0.2
        await until(lambda: now_s() > looked, "some looks at the clock")
        assert len(exchange.sockets) == 1
        clock.now_ms += 2 * 3_600_000
        await exchange.asked()
        await exchange.sockets[1].send_json(FRAME)
        await until(lambda: connection.rotations == 1, "it is replaced")


async def test_a_defect_of_ours_is_not_taken_for_the_exchanges_and_the_connection_is_made_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: KlineEvent) -> None:
        raise RuntimeError("broken on purpose")

    exchange = Exchange()
    async with connected(exchange, BTC, event=broken) as (connection, heard):
        await soon(heard.attached)
        await exchange.sockets[0].send_json(FRAME)
        await until(lambda: connection.reconnects > 0, "it connects anew")
        assert connection.quarantined == 0
    assert "RuntimeError: broken on purpose" in caplog.text


async def test_frames_that_are_too_large_are_quarantined_and_the_connection_lives_on() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC) as (connection, heard):
        await soon(heard.attached)
        await exchange.sockets[0].send_json(FRAME | {"padding": "x" * (2 << 20)})
        await exchange.sockets[0].send_json(FRAME)
        await soon(heard.events)
        assert connection.quarantined == 1
        assert connection.reconnects == 0


async def test_hundreds_of_streams_share_few_connections_and_all_deliver(tmp_path: Path) -> None:
    async with SimServer(SimConfig(speed=60, symbols=250)) as exchange:
        names = [f"binance:spot:{one.symbol.base}/{one.symbol.quote}:1m" for one in exchange.exchange.spot.values()]
        async with running_service(
            tmp_path / "store.sqlite", exchange, whitelist=",".join(names), startup_kline_sync_target_candles="5"
        ) as service:
            async with service.http.ws_connect(service.url + "/ws/market") as socket:
                for name in names:
                    await socket.send_json({"type": "subscribe", "series_id": name})
                closed: set[str] = set()
                formed: set[str] = set()
                while closed != set(names) or formed != set(names):
                    message = await socket.receive_json(timeout=20)
                    if message["type"] == "candle_closed":
                        closed.add(message["series_id"])
                    elif message["type"] == "candle_forming":
                        formed.add(message["series_id"])
            async with service.http.get(exchange.http_url + "/sim/state") as response:
                state = await response.json()
        assert len(state["connections"]) == 2


class OneSymbol(Plain):
    """Every series has one symbol, whose name is known after `refuse` failures."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse

    def symbol_id_now(self, series: SeriesId) -> str | None:
        return None if self.refuse else "BTCUSDT"

    async def symbol_id(self, series: SeriesId) -> str:
        if self.refuse:
            self.refuse -= 1
            raise UpstreamError("the list cannot be had")
        return "BTCUSDT"


async def test_two_series_of_one_stream_are_counted_and_one_that_leaves_does_not_silence_the_other() -> None:
    exchange = Exchange()
    async with connected(exchange, BTC, ETH, symbols=OneSymbol()) as (connection, heard):
        assert {await soon(heard.attached), await soon(heard.attached)} == {BTC, ETH}
        assert await exchange.asked() == ("SUBSCRIBE", ["btcusdt@kline_1m"])
        await exchange.sockets[0].send_json(FRAME)
        assert [(await soon(heard.events)).series for _ in range(2)] == [BTC, ETH]
        connection.unwant(BTC)
        await exchange.sockets[0].send_json(FRAME)
        assert (await soon(heard.events)).series == ETH
        connection.unwant(ETH)
        assert await exchange.asked() == ("UNSUBSCRIBE", ["btcusdt@kline_1m"])


async def test_a_series_whose_name_is_not_known_yet_is_subscribed_once_it_is() -> None:
    exchange = Exchange()
    quick = StreamTimings(names_retry_s=0.05)
    async with connected(exchange, BTC, symbols=OneSymbol(refuse=2), timings=quick) as (_, heard):
        assert await soon(heard.attached) == BTC


async def test_a_series_whose_name_is_not_known_yet_is_not_forgotten_by_a_defect() -> None:
    exchange = Exchange()
    bulkheads = Bulkheads(restart=Backoff(0.05, 30.0))
    async with connected(exchange, BTC, symbols=Broken(), bulkheads=bulkheads) as (_, heard):
        assert await soon(heard.attached) == BTC

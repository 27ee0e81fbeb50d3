"""/ws/market over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from klinesync.core.series_id import SeriesId
from klinesync.ws import protocol
from support.running_service import Service, running_service

BTC = "binance:spot:BTC/USDT:1m"
START = 1_700_000_040


def candle(minute: int, **changes: float) -> dict[str, float]:
    return {
        "candle_time": START + 60 * minute,
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 10.0,
    } | changes


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path / "store.sqlite") as running:
        yield running


async def ingest(service: Service, *candles: dict[str, float], series_id: str = BTC) -> None:
    body = {"series_id": series_id, "candles": list(candles)}
    status, answer = await service.post("/api/market/ingest/candles_closed", body)
    assert status == 200, answer


class Socket:
    """A client: sends JSON, receives JSON."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket

    async def send(self, **message: object) -> None:
        await self.raw.send_json(message)

    async def next(self) -> dict[str, object]:
        message: dict[str, object] = await self.raw.receive_json(timeout=10)
        return message

    async def settle(self) -> list[dict[str, object]]:
        """All messages so far; a pong comes after them."""
        await self.send(type="ping")
        messages = []
        while (message := await self.next()) != {"type": "pong"}:
            messages.append(message)
        return messages


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Socket]:
    async with service.http.ws_connect(service.url + "/ws/market") as socket:
        yield Socket(socket)


def closed(minute: int, **changes: float) -> dict[str, object]:
    return {"type": "candle_closed", "series_id": BTC, "candle": candle(minute, **changes)}


async def test_catch_up_then_live(service: Service) -> None:
    await ingest(service, candle(0), candle(1), candle(2))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=START, ack=True)
        assert await socket.next() == {
            "type": "subscribed",
            "series_id": BTC,
            "head_time": START + 120,
            "stream": "reconnecting",
        }
        assert await socket.next() == closed(1)
        assert await socket.next() == closed(2)
        assert await socket.next() == {"type": "caught_up", "series_id": BTC, "head_time": START + 120}
        await ingest(service, candle(3))
        assert await socket.next() == closed(3)


async def test_caught_up_comes_without_candles_too(service: Service) -> None:
    await ingest(service, candle(0), series_id="binance:spot:ETH/USDT:1m")
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=0, ack=True)
        subscribed, seam = await socket.settle()
        assert (subscribed["head_time"], seam) == (None, {"type": "caught_up", "series_id": BTC, "head_time": None})
        await socket.send(type="subscribe", series_id="binance:spot:ETH/USDT:1m", ack=True)
        assert [message["type"] for message in await socket.settle()] == ["subscribed", "caught_up"]
        await socket.send(type="subscribe", series_id="binance:spot:ETH/USDT:1m", since=0)
        assert [message["type"] for message in await socket.settle()] == ["candle_closed"], "only who asked for an ack"


async def test_a_since_in_the_future_counts_as_the_head(service: Service) -> None:
    await ingest(service, candle(0), candle(1))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=32_503_680_000, ack=True)
        subscribed, seam = await socket.settle()
        assert (subscribed["head_time"], seam["head_time"]) == (START + 60, START + 60)
        await ingest(service, candle(3))
        gap, live = await socket.settle()
        assert (gap["expected_next_time"], gap["actual_time"]) == (START + 120, START + 180)
        assert live == closed(3)


async def test_older_history_is_announced_and_several_corrections_are_one_batch(service: Service) -> None:
    await ingest(service, *map(candle, range(10, 15)))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=0, supports_batch=True)
        await socket.settle()
        await ingest(service, *map(candle, range(3, 10)))
        (extended,) = await socket.settle()
        assert (extended["type"], extended["event"]) == ("system", "history.extended")
        assert extended["data"] == {"first_time": START + 180}
        await ingest(service, candle(11, volume=5.0), candle(12, volume=5.0))
        (revised,) = await socket.settle()
        assert (revised["type"], revised["revised"]) == ("candles_batch", True)
        await ingest(service, candle(11, volume=5.0), candle(12, volume=5.0))
        assert await socket.settle() == [], "what the client has already is not sent again"


async def test_what_narrows_a_subscription(service: Service) -> None:
    await ingest(service, candle(0), candle(1))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=START - 60, what=["corrections"])
        assert await socket.settle() == []
        await ingest(service, candle(2), candle(1, volume=7.0))
        assert await socket.settle() == [closed(1, volume=7.0) | {"revised": True}]
        for bad in ([], ["all"], "closed", [1], {"closed": True}):
            await socket.send(type="subscribe", series_id=BTC, what=bad)
            (error,) = await socket.settle()
            assert error["code"] == "bad_request"
            assert str(error["message"]).startswith("invalid what")


async def test_a_batch_is_sent_to_clients_that_support_batches(service: Service) -> None:
    await ingest(service, candle(0), candle(1))
    async with connected(service) as client, connected(service) as other:
        await client.send(type="subscribe", series_id=BTC, since=0, supports_batch=True)
        await other.send(type="subscribe", series_id=BTC, since=0)
        assert await client.next() == {"type": "candles_batch", "series_id": BTC, "candles": [candle(0), candle(1)]}
        assert [await other.next(), await other.next()] == [closed(0), closed(1)]
        await ingest(service, candle(2), candle(3))
        assert await client.next() == {"type": "candles_batch", "series_id": BTC, "candles": [candle(2), candle(3)]}
        assert [await other.next(), await other.next()] == [closed(2), closed(3)]


async def test_without_since_there_is_no_catch_up(service: Service) -> None:
    await ingest(service, candle(0))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC)
        assert await socket.settle() == []
        await ingest(service, candle(1))
        assert await socket.next() == closed(1)


async def test_a_jump_is_declared_before_the_next_candle(service: Service) -> None:
    await ingest(service, candle(0), candle(3))
    gap = {"type": "gap", "series_id": BTC, "reason": "missing", "state": "unknown"}
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=START)
        assert await socket.next() == gap | {"expected_next_time": START + 60, "actual_time": START + 180}
        assert await socket.next() == closed(3)
        await ingest(service, candle(5))
        assert await socket.next() == gap | {"expected_next_time": START + 240, "actual_time": START + 300}
        assert await socket.next() == closed(5)


async def test_a_correction_and_a_late_fill_are_marked_and_a_repeat_is_silent(service: Service) -> None:
    await ingest(service, candle(0), candle(2))
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC, since=START + 120)
        assert await socket.settle() == []
        await ingest(service, candle(2, close=1.25))
        await ingest(service, candle(1))
        await ingest(service, candle(1), candle(2, close=1.25))
        assert await socket.settle() == [closed(2, close=1.25) | {"revised": True}, closed(1) | {"revised": True}]


async def test_subscribing_again_starts_over(service: Service) -> None:
    await ingest(service, candle(0), candle(1))
    async with connected(service) as socket:
        for _ in range(2):
            await socket.send(type="subscribe", series_id=BTC, since=0)
            assert await socket.settle() == [closed(0), closed(1)]
        await ingest(service, candle(2))
        assert await socket.settle() == [closed(2)]


async def test_after_unsubscribe_nothing_comes(service: Service) -> None:
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id=BTC)
        await socket.settle()
        await socket.send(type="unsubscribe", series_id=BTC)
        await socket.settle()
        await ingest(service, candle(0))
        assert await socket.settle() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense", {"code": "bad_request", "message": "message is not JSON"}),
        ('{"type":"trade"}', {"code": "bad_request", "message": "unknown message type: trade"}),
        ('{"type":"subscribe"}', {"code": "bad_request", "message": "missing series_id"}),
    ],
)
async def test_a_bad_message_is_answered_and_the_connection_stays(
    service: Service, text: str, expected: dict[str, object]
) -> None:
    async with connected(service) as socket:
        await socket.raw.send_str(text)
        assert await socket.next() == {"type": "error"} | expected
        assert await socket.settle() == []


async def test_a_series_of_an_unknown_exchange_is_refused_and_leaves_nothing_attached(service: Service) -> None:
    async with connected(service) as socket:
        await socket.send(type="subscribe", series_id="nowhere:spot:BTC/USDT:1m")
        error = await socket.next()
        assert (error["code"], error["series_id"]) == ("unknown_series", "nowhere:spot:BTC/USDT:1m")
        await ingest(service, candle(0), series_id="nowhere:spot:BTC/USDT:1m")
        assert await socket.settle() == []


async def test_a_system_message_reaches_all_subscribers_of_the_series_in_order_and_no_others(service: Service) -> None:
    hub = service.runtime.hub
    told = protocol.system(SeriesId.parse(BTC), "stream.stale", "no frames for 15 s", {"since": START})
    message = {
        "type": "system",
        "series_id": BTC,
        "event": "stream.stale",
        "message": "no frames for 15 s",
        "data": {"since": START},
    }
    async with connected(service) as client, connected(service) as other, connected(service) as elsewhere:
        for socket in (client, other):
            await socket.send(type="subscribe", series_id=BTC)
            assert await socket.settle() == []
        await elsewhere.send(type="subscribe", series_id=BTC.replace("BTC/", "ETH/").replace("1m", "5m"))
        await elsewhere.settle()
        await ingest(service, candle(0))
        hub.tell(SeriesId.parse(BTC), told)
        await ingest(service, candle(1))
        for socket in (client, other):
            assert [await socket.next() for _ in range(3)] == [closed(0), message, closed(1)]
        assert await elsewhere.settle() == []
        await client.send(type="unsubscribe", series_id=BTC)
        assert await client.settle() == []
        hub.tell(SeriesId.parse(BTC), told)
        assert await client.settle() == []
        assert await other.settle() == [message]


async def test_a_message_past_the_limit_ends_the_connection_and_no_other(service: Service) -> None:
    async with connected(service) as socket, connected(service) as other:
        await socket.raw.send_str("x" * (65 << 10))
        message = await socket.raw.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1009
        assert await other.settle() == []


async def test_the_shutdown_closes_with_1001(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as http:
        async with running_service(tmp_path / "store.sqlite") as service:
            socket = await http.ws_connect(service.url + "/ws/market")
            await socket.send_json({"type": "ping"})
            assert await socket.receive_json(timeout=10) == {"type": "pong"}
        message = await socket.receive(timeout=10)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1001
        await socket.close()

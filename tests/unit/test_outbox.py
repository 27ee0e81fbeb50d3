"""Outbox: the backlog of a slow client, and its warning."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.market_data.read_services import CatchUp
from klinesync.market_data.ws_services import WsSubscriptionCoordinator
from klinesync.ws import outbox as outbox_module
from klinesync.ws.frames import payload_of, text_frame
from klinesync.ws.hub import CandleHub, Client
from klinesync.ws.outbox import ClientLimits, Outbox
from klinesync.ws.session import Subscription

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")


class Wire:
    """A wire that keeps written frames, and accepts none while the outbox is paused."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.closed: int | None = None

    @property
    def write(self) -> Callable[[Sequence[bytes]], None]:
        return self.frames.extend

    def ending(self) -> None:
        pass

    def close(self, code: int) -> None:
        self.closed = code

    def messages(self) -> list[dict[str, object]]:
        return [json.loads(payload_of(frame)) for frame in self.frames]


def following(hub: CandleHub) -> tuple[Client, Wire]:
    wire = Wire()
    client = Client(wire, hub.limits)
    hub.connected(client)
    subscription = Subscription(BTC, None, supports_batch=False)
    hub.attach(client, subscription)
    subscription.caught_up([], None, 0, 0)
    return client, wire


def publish(hub: CandleHub, minutes: range) -> None:
    for minute in minutes:
        candle = Candle(minute * 60, 1.0, 2.0, 0.5, 1.5, 1.0)
        hub.publish(Applied(BTC, (candle,), frozenset(), commit=minute))


async def test_a_slow_client_is_warned_once_at_half_of_the_limit_then_closed_with_1013() -> None:
    hub = CandleHub(limits=ClientLimits(max_messages=10))
    client, wire = following(hub)
    client.outbox.pause()
    publish(hub, range(1, 6))
    client.outbox.resume()
    assert all(message["type"] == "candle_closed" for message in wire.messages()), "half is not full"
    wire.frames.clear()
    client.outbox.pause()
    publish(hub, range(6, 15))
    client.outbox.resume()
    warning, *candles = wire.messages()
    assert (warning["type"], warning["event"], warning["series_id"]) == ("system", "slow", str(BTC))
    assert isinstance(warning["data"], dict)
    assert warning["data"]["max_messages"] == 10
    assert [candle["type"] for candle in candles] == ["candle_closed"] * 9
    wire.frames.clear()
    client.outbox.pause()
    publish(hub, range(15, 30))
    assert client.outbox.ended == 1013
    assert wire.closed == 1013


async def test_a_catch_up_waits_for_room() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    await outbox.room()
    outbox.pause()
    frame = text_frame(b"{}")
    outbox.put([frame] * (outbox_module.ROOM_MESSAGES + 1))
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.resume()
    await waiting
    assert outbox.ended is None


async def test_a_client_that_reads_nothing_while_its_catch_up_waits_is_closed_with_1013() -> None:
    wire = Wire()
    outbox = Outbox(wire, ClientLimits(room_patience_s=0.01))
    outbox.pause()
    outbox.put([text_frame(b"{}")] * (outbox_module.ROOM_MESSAGES + 1))
    await outbox.room()
    assert [outbox.ended, wire.closed] == [1013, 1013]


async def test_a_wait_for_room_ends_when_the_client_disconnects() -> None:
    outbox = Outbox(Wire())
    outbox.pause()
    outbox.put([text_frame(b"{}")] * (outbox_module.ROOM_MESSAGES + 1))
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    outbox.abandon()
    await waiting


def test_a_catch_up_does_not_make_a_client_slow() -> None:
    from klinesync.ws.session import CATCH_UP_MAX_CANDLES

    most = outbox_module.ROOM_MESSAGES + 2 * CATCH_UP_MAX_CANDLES  # a gap before each candle
    assert most <= outbox_module.USUAL_CLIENTS.max_messages // 2


class Writes:
    """A wire that keeps each write by itself."""

    def __init__(self) -> None:
        self.writes: list[list[bytes]] = []

    def write(self, frames: Sequence[bytes]) -> None:
        self.writes.append(list(frames))

    def ending(self) -> None:
        pass

    def close(self, code: int) -> None:
        self.writes.append([f"closed {code}".encode()])


async def test_the_messages_of_one_step_of_the_loop_are_one_write_after_the_first() -> None:
    hub, wire = CandleHub(), Writes()
    client = Client(wire)
    hub.connected(client)
    for number in range(5):
        client.outbox.put([b"%d" % number])
    assert wire.writes == [[b"0"]], "the first one does not wait"
    await asyncio.sleep(0)
    assert wire.writes == [[b"0"], [b"1", b"2", b"3", b"4"]]
    await asyncio.sleep(0)
    client.outbox.put([b"5"])
    assert wire.writes[-1] == [b"5"]


async def test_of_a_series_only_the_newest_forming_candle_of_a_step_is_written_and_none_that_has_closed() -> None:
    hub, wire = CandleHub(), Writes()
    client = Client(wire)
    hub.connected(client)
    client.outbox.put([b"closed 60"])
    client.outbox.put_forming(BTC, 120, [b"forming"])
    client.outbox.put_forming(BTC, 120, [b"newer forming"])
    client.outbox.put([b"message"])
    await asyncio.sleep(0)
    assert wire.writes[1:] == [[b"message"], [b"newer forming"]]
    await asyncio.sleep(0)
    wire.writes.clear()
    client.outbox.put([b"first"])
    client.outbox.put_forming(BTC, 180, [b"forming"])
    client.outbox.drop_forming(BTC, 180)
    client.outbox.put([b"closed 180"])
    await asyncio.sleep(0)
    assert wire.writes == [[b"first"], [b"closed 180"]]


async def test_joined_messages_of_a_client_that_reads_never_make_it_slow() -> None:
    """A minute's end is one step: its messages may be more than a backlog may be."""
    hub, wire = CandleHub(), Writes()
    client = Client(wire)
    hub.connected(client)
    frame = b"x" * 300
    for _ in range(2 * outbox_module.USUAL_CLIENTS.max_messages):
        client.outbox.put([frame])
    await asyncio.sleep(0)
    assert client.outbox.ended is None
    assert sum(map(len, wire.writes)) == 2 * outbox_module.USUAL_CLIENTS.max_messages
    assert max(sum(map(len, frames)) for frames in wire.writes) <= outbox_module.WRITE_BYTES + len(frame)


async def test_joined_messages_come_before_the_close() -> None:
    hub, wire = CandleHub(), Writes()
    client = Client(wire)
    hub.connected(client)
    client.outbox.put([b"first"])
    client.outbox.put([b"second"])
    client.outbox.end(1001)
    await asyncio.sleep(0)
    assert wire.writes == [[b"first"], [b"second"], [b"closed 1001"]]


async def test_joined_messages_wait_while_the_wire_is_paused() -> None:
    hub, wire = CandleHub(), Writes()
    client = Client(wire)
    hub.connected(client)
    client.outbox.put([b"first"])
    client.outbox.put([b"second"])
    client.outbox.pause()
    await asyncio.sleep(0)
    assert wire.writes == [[b"first"]]
    client.outbox.resume()
    assert wire.writes == [[b"first"], [b"second"]]


class LateReader:
    """The store is ahead of the publications: two of its candles are published during the catch-up, two later."""

    def __init__(self, hub: CandleHub) -> None:
        self._hub = hub

    async def check_known_or_stored(self, series: SeriesId) -> None:
        pass

    async def catch_up(self, series: SeriesId, since: int | None) -> CatchUp:
        publish(self._hub, range(1, 3))
        return CatchUp([], 60, 0, 4, [], 240)


async def test_caught_up_names_the_newest_candle_that_was_sent_where_the_store_is_ahead_of_it() -> None:
    hub, wire = CandleHub(), Wire()
    reader = LateReader(hub)
    live = StreamStatus(StreamState.LIVE)
    coordinator = WsSubscriptionCoordinator(hub, reader, lambda _: live, None, lambda _: 300.0)  # type: ignore[arg-type]
    client = Client(wire)
    coordinator.connected(client)
    await coordinator.handle(client, json.dumps({"type": "subscribe", "series_id": str(BTC), "ack": True}))
    publish(hub, range(3, 5))
    await asyncio.sleep(0)
    received = [
        (
            message["type"],
            message["head_time"] if message["type"] != "candle_closed" else message["candle"]["candle_time"],  # type: ignore[index]
        )
        for message in wire.messages()
    ]
    assert received == [
        ("subscribed", 240),
        ("candle_closed", 60),
        ("candle_closed", 120),
        ("caught_up", 120),
        ("candle_closed", 180),
        ("candle_closed", 240),
    ]

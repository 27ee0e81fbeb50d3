"""Teller: system messages of a rebuild and of a stream, and who gets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from klinesync.core.series_id import SeriesId
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import StreamStatus
from klinesync.market_data.teller import REBUILD_TELL_EVERY_S, Teller
from klinesync.pipelines.derived_step import DerivedStep
from klinesync.pipelines.ledger_step import Progress
from klinesync.ws.frames import payload_of
from klinesync.ws.hub import CandleHub, Client
from klinesync.ws.session import Subscription
from support.clocks import ManualClock

BTC = SeriesId.parse("binance:spot:BTC/USDT:1m")
FIVE = SeriesId.parse("binance:spot:BTC/USDT:5m")


class Wire:
    """A wire that keeps what is written."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    @property
    def write(self) -> Callable[[Sequence[bytes]], None]:
        return self.frames.extend

    def ending(self) -> None:
        pass

    def close(self, code: int) -> None:
        pass

    def taken(self) -> list[dict[str, object]]:
        frames, self.frames[:] = list(self.frames), []
        return [json.loads(payload_of(frame)) for frame in frames]


def watching(hub: CandleHub, series: SeriesId) -> Wire:
    wire = Wire()
    client = Client(wire)
    hub.connected(client)
    subscription = Subscription(series, None, supports_batch=False)
    hub.attach(client, subscription)
    subscription.caught_up([], None, 0, 0)
    return wire


def progress(*, left: bool, head: int = 600) -> Progress:
    return Progress(BTC, "other settings", 3, head, 6000, left=left)


async def test_messages_of_a_rebuild_are_throttled_and_its_end_is_sent() -> None:
    clock, hub = ManualClock(100.0), CandleHub()
    teller = Teller(hub, DerivedStep(Timeframe.parse("1m"), [Timeframe.parse("5m")]), clock)
    wire = watching(hub, BTC)
    states = []
    for left in (True, True, True, False):
        teller.ledger(progress(left=left))
        await asyncio.sleep(0)  # messages of one step of the loop are one write
        states += [one["data"]["state"] for one in wire.taken()]  # type: ignore[index]  # a system message has data
    assert states == ["running", "done"], "not each of its steps"
    teller.ledger(progress(left=True))
    clock.now_s += REBUILD_TELL_EVERY_S
    teller.ledger(progress(left=True))
    await asyncio.sleep(0)
    assert [one["event"] for one in wire.taken()] == ["factor.rebuild"] * 2


async def test_the_state_of_a_stream_is_sent_to_subscribers_of_derived_series_too() -> None:
    hub = CandleHub()
    teller = Teller(hub, DerivedStep(Timeframe.parse("1m"), [Timeframe.parse("5m")]), ManualClock())
    base, derived = watching(hub, BTC), watching(hub, FIVE)
    teller.stream(BTC, StreamStatus(StreamState.STALE, 1_700_000_000, 1_699_999_990, "REST shows more"))
    for wire, series in ((base, BTC), (derived, FIVE)):
        (message,) = wire.taken()
        assert (message["event"], message["series_id"]) == ("stream.stale", str(series))
        assert message["data"] == {
            "state": "stale",
            "since": 1_700_000_000,
            "last_frame_at": 1_699_999_990,
            "detail": "REST shows more",
        }
        assert "REST shows more" in str(message["message"])

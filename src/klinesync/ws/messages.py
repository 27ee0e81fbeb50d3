"""The shapes of the messages of `/ws/market`, in both directions, as they are on the wire. Pure.

`protocol.py` encodes the messages of the service from these types. The TypeScript types of the page are generated
from them (`make types`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from klinesync.core.gaps import GapState
from klinesync.core.stream_state import StreamState

GapReason = Literal["missing", "truncated"]
# The kinds of candles that a subscription may select.
What = Literal["closed", "forming", "corrections"]
# The fields of candles that a subscription may select: with order flow.
Fields = Literal["full"]
# The events of `system` messages. Clients ignore unknown events, because later versions may add some.
SystemEventName = Literal[
    "backfill.progress",
    "factor.rebuild",
    "history.extended",
    "slow",
    "stream.delisted",
    "stream.live",
    "stream.off",
    "stream.reconnecting",
    "stream.rest_fallback",
    "stream.stale",
    "stream.subscribed",
]
# The event of each new state of a series' stream.
STREAM_EVENTS: Mapping[StreamState, SystemEventName] = {
    StreamState.OFF: "stream.off",
    StreamState.SUBSCRIBED: "stream.subscribed",
    StreamState.LIVE: "stream.live",
    StreamState.STALE: "stream.stale",
    StreamState.REST_FALLBACK: "stream.rest_fallback",
    StreamState.RECONNECTING: "stream.reconnecting",
    StreamState.DELISTED: "stream.delisted",
}


class CandleOut(msgspec.Struct, gc=False):
    """A candle in the form of the wire, the same in HTTP and WebSocket."""

    candle_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class FullCandleOut(CandleOut, gc=False):
    """A candle with its order flow, for clients that ask for `fields=full`; null where the source does not tell."""

    quote_volume: float | None
    trades: int | None
    taker_buy_volume: float | None
    taker_buy_quote_volume: float | None


class CandlesBatch(msgspec.Struct, gc=False, omit_defaults=True, tag_field="type", tag="candles_batch"):
    """Several closed candles, ascending; `revised`: each corrects a sent candle, or fills a hole behind one."""

    series_id: str
    candles: list[CandleOut]
    revised: bool = False


class CandleClosed(msgspec.Struct, gc=False, omit_defaults=True, tag_field="type", tag="candle_closed"):
    """One closed candle; `revised`: it corrects a sent candle, or fills a hole behind one."""

    series_id: str
    candle: CandleOut
    revised: bool = False


class CandleForming(msgspec.Struct, gc=False, tag_field="type", tag="candle_forming"):
    """The candle in progress."""

    series_id: str
    candle: CandleOut


class GapMessage(msgspec.Struct, gc=False, tag_field="type", tag="gap"):
    """Missing candles from `expected_next_time` up to `actual_time`, sent before the candle at `actual_time`."""

    series_id: str
    expected_next_time: int
    actual_time: int
    reason: GapReason
    state: GapState


class Subscribed(msgspec.Struct, gc=False, tag_field="type", tag="subscribed"):
    """The acknowledgement of a subscription; `stream`: the state of the series' stream."""

    series_id: str
    head_time: int | None
    stream: str


class CaughtUp(msgspec.Struct, gc=False, tag_field="type", tag="caught_up"):
    """The end of the catch-up; `head_time`: the newest closed candle sent so far."""

    series_id: str
    head_time: int | None


class SystemEvent(msgspec.Struct, gc=False, tag_field="type", tag="system"):
    """An event of a series: a sentence for people, the facts in `data`."""

    series_id: str
    event: SystemEventName
    message: str
    data: dict[str, object]


class ErrorMessage(msgspec.Struct, gc=False, omit_defaults=True, tag_field="type", tag="error"):
    """A failed request; the connection stays. `detail`: a sentence beside a message that is a code."""

    code: str
    message: str
    series_id: str | msgspec.UnsetType = msgspec.UNSET
    detail: str | msgspec.UnsetType = msgspec.UNSET


class Pong(msgspec.Struct, gc=False, tag_field="type", tag="pong"):
    """The answer to a ping."""


ServerMessage = (
    CandlesBatch | CandleClosed | CandleForming | GapMessage | Subscribed | CaughtUp | SystemEvent | ErrorMessage | Pong
)


class SubscribeRequest(msgspec.Struct, gc=False, tag_field="type", tag="subscribe"):
    """Subscribes: candles after `since` (exclusive), then live ones; without `since` live ones only. `WsMessageParser`
    has the sentences of refusals."""

    series_id: str
    since: int | None = None
    supports_batch: bool | None = None
    ack: bool | None = None
    what: list[What] | None = None
    fields: Fields | None = None


class UnsubscribeRequest(msgspec.Struct, gc=False, tag_field="type", tag="unsubscribe"):
    """Ends the subscription of a series."""

    series_id: str


class PingRequest(msgspec.Struct, gc=False, tag_field="type", tag="ping"):
    """Asks for a pong."""


ClientMessage = SubscribeRequest | UnsubscribeRequest | PingRequest

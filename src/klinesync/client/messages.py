"""Messages of `/ws/market` from the service, decoded. Unknown fields and types are ignored."""

from __future__ import annotations

from typing import get_args

import msgspec

from klinesync.client.asking import ServiceError
from klinesync.client.tables import WireCandle, WireTime
from klinesync.core.decoding import Undecodable, decoded


class SubscribedMessage(msgspec.Struct, tag_field="type", tag="subscribed"):
    """The first answer to a subscription with `ack`."""

    head_time: WireTime | None = None
    stream: str = ""


class CaughtUpMessage(msgspec.Struct, tag_field="type", tag="caught_up"):
    """The seam of catch-up and live. An older service does not send this message."""

    head_time: WireTime | None = None


class ClosedMessage(msgspec.Struct, tag_field="type", tag="candle_closed"):
    """One closed candle."""

    candle: WireCandle
    revised: bool = False


class BatchMessage(msgspec.Struct, tag_field="type", tag="candles_batch"):
    """Several closed candles, ascending."""

    candles: list[WireCandle]
    revised: bool = False


class FormingMessage(msgspec.Struct, tag_field="type", tag="candle_forming"):
    """The candle in progress."""

    candle: WireCandle


class GapMessage(msgspec.Struct, tag_field="type", tag="gap"):
    """A jump before the next closed candle. Reason `truncated`: the candles are stored, and are paged over HTTP."""

    expected_next_time: WireTime
    actual_time: WireTime
    reason: str = "missing"
    state: str = "unknown"


class SystemMessage(msgspec.Struct, tag_field="type", tag="system"):
    """An event of the series."""

    event: str
    message: str = ""
    data: dict[str, object] = {}


class ErrorMessage(msgspec.Struct, tag_field="type", tag="error"):
    """A refusal. `detail`: a sentence, where `message` is a code."""

    code: str
    message: str = ""
    detail: str | None = None


Message = (
    SubscribedMessage
    | CaughtUpMessage
    | ClosedMessage
    | BatchMessage
    | FormingMessage
    | GapMessage
    | SystemMessage
    | ErrorMessage
)
_KNOWN = frozenset(kind.__struct_config__.tag for kind in get_args(Message))


class _Any(msgspec.Struct):
    type: str


class _Gap(msgspec.Struct):
    start_time: WireTime
    end_time: WireTime
    state: str = "unknown"


class Page(msgspec.Struct):
    """The answer of `GET /api/market/candles`. An older service does not send `gaps`."""

    candles: list[WireCandle]
    gaps: list[_Gap] = []


_message = msgspec.json.Decoder(Message)
_any = msgspec.json.Decoder(_Any)
_page = msgspec.json.Decoder(Page)


def message_in(text: str | bytes) -> Message | None:
    """The message of a frame; None when its type is unknown. Raises `ServiceError`."""
    try:
        message: Message = decoded(_message, text)
    except Undecodable as error:
        problem = error
    else:
        return message
    try:
        if decoded(_any, text).type not in _KNOWN:
            return None
    except Undecodable as error:
        problem = error
    raise ServiceError("bad_message", f"the service sent a message that breaks the protocol: {problem}")


def page_in(body: bytes) -> Page:
    """A page of candles. Raises `ServiceError`."""
    try:
        return decoded(_page, body)
    except Undecodable as error:
        raise ServiceError("bad_message", f"the service sent a malformed page of candles: {error}") from None

"""The messages of `/ws/market`: parsed when they arrive, encoded once for all their receivers. Pure.

A message to clients is encoded as a whole WebSocket text frame, so that a thousand clients share its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import msgspec

from klinesync.core.candle import MAX_TIME, Candle
from klinesync.core.decoding import Undecodable, decoded
from klinesync.core.errors import BadSeriesId, Rejected
from klinesync.core.gaps import GapState
from klinesync.core.printable import printable, printable_values
from klinesync.core.series_id import SeriesId
from klinesync.core.splice import Jump
from klinesync.ws.frames import text_frame
from klinesync.ws.messages import (
    CandleClosed,
    CandleForming,
    CandleOut,
    CandlesBatch,
    CaughtUp,
    ErrorMessage,
    FullCandleOut,
    GapMessage,
    GapReason,
    Pong,
    ServerMessage,
    Subscribed,
    SystemEvent,
    SystemEventName,
    What,
)

_any = msgspec.json.Decoder(object)
_encode = msgspec.json.Encoder().encode

# All kinds of candles.
WHAT: frozenset[str] = frozenset(get_args(What))


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribes to a series: candles after `since`, then live ones.

    series: the series.
    since: open time in UTC seconds, exclusive; None: live only.
    supports_batch: whether several closed candles may come as one `candles_batch`.
    ack: whether the first answer is `subscribed`, and `caught_up` ends the catch-up.
    what: the kinds of candles to send; all by default.
    full: whether candles have their order flow; False by default.
    """

    series: SeriesId
    since: int | None
    supports_batch: bool
    ack: bool
    what: frozenset[str] = WHAT
    full: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Ends the subscription of `series`."""

    series: SeriesId


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong."""


ClientMessage = Subscribe | Unsubscribe | Ping


class BadMessage(Rejected):
    """A message that breaks the protocol. The connection stays."""

    def __init__(self, message: str, series_id: str | None = None) -> None:
        self.series_id = series_id
        super().__init__(message)


class WsMessageParser:
    """Parses the messages of clients. Every malformed message raises `BadMessage` with a sentence of the protocol."""

    def parse(self, text: str | bytes) -> ClientMessage:
        """The message in `text`. Raises `BadMessage`."""
        try:
            message: object = decoded(_any, text)
        except Undecodable:
            raise BadMessage("message is not JSON") from None
        if not isinstance(message, dict):
            raise BadMessage("message is not a JSON object")
        match message.get("type"):
            case "subscribe":
                return self._subscribe(message)
            case "unsubscribe":
                return Unsubscribe(self._series(message))
            case "ping":
                return Ping()
            case None:
                raise BadMessage("missing type")
            case kind:
                raise BadMessage(f"unknown message type: {str(kind)[:100]}")

    def _subscribe(self, message: dict[str, object]) -> Subscribe:
        series = self._series(message)
        since = message.get("since")
        # A bool is an int in Python, but not in JSON.
        if since is not None and (isinstance(since, bool) or not isinstance(since, int) or not 0 <= since <= MAX_TIME):
            raise BadMessage("invalid since", str(series))
        return Subscribe(
            series,
            since,
            self._flag(message, "supports_batch", series),
            self._flag(message, "ack", series),
            self._what(message, series),
            self._full(message, series),
        )

    def _what(self, message: dict[str, object], series: SeriesId) -> frozenset[str]:
        value = message.get("what")
        if value is None:
            return WHAT
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(kind, str) and kind in WHAT for kind in value)
        ):
            raise BadMessage(f"invalid what: a list of one or more of {', '.join(sorted(WHAT))}", str(series))
        return frozenset(value)

    def _full(self, message: dict[str, object], series: SeriesId) -> bool:
        value = message.get("fields")
        if value is not None and value != "full":
            raise BadMessage("invalid fields", str(series))
        return value is not None

    def _series(self, message: dict[str, object]) -> SeriesId:
        text = message.get("series_id")
        if text is None or text == "":
            raise BadMessage("missing series_id")
        if not isinstance(text, str):
            raise BadMessage("invalid series_id")
        try:
            return SeriesId.parse(text)
        except BadSeriesId as error:
            raise BadMessage(str(error), text[:100]) from None

    def _flag(self, message: dict[str, object], name: str, series: SeriesId) -> bool:
        value = message.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise BadMessage(f"invalid {name}", str(series))
        return value


def _frame(message: ServerMessage) -> bytes:
    return text_frame(_encode(message))


def candles_out(candles: Iterable[Candle], *, full: bool = False) -> list[CandleOut]:
    """The candles in the form of the wire; `full`: with their order flow."""
    if full:
        return [FullCandleOut(*candle) for candle in candles]
    return [CandleOut(*candle.ohlcv) for candle in candles]


def _candle_out(candle: Candle, full: bool) -> CandleOut:
    return FullCandleOut(*candle) if full else CandleOut(*candle.ohlcv)


def pong() -> bytes:
    """The answer to a ping."""
    return _frame(Pong())


def subscribed(series: SeriesId, head_time: int | None, stream: str) -> bytes:
    """The acknowledgement of a subscription with `ack`."""
    return _frame(Subscribed(str(series), head_time, stream))


def caught_up(series: SeriesId, head_time: int | None) -> bytes:
    """The end of the catch-up, for a subscription with `ack`; `head_time`: the newest closed candle sent so far."""
    return _frame(CaughtUp(str(series), head_time))


def candle_closed(series: SeriesId, candle: Candle, *, revised: bool = False, full: bool = False) -> bytes:
    """One closed candle.

    series: the series.
    candle: the candle.
    revised: whether it corrects a sent candle, or fills a hole behind one; False by default.
    full: whether it has its order flow; False by default.
    """
    return _frame(CandleClosed(str(series), _candle_out(candle, full), revised))


def candles_batch(series: SeriesId, candles: Sequence[Candle], *, revised: bool = False, full: bool = False) -> bytes:
    """Several closed candles.

    series: the series.
    candles: ascending.
    revised: whether each corrects a sent candle, or fills a hole behind one; False by default.
    full: whether they have their order flow; False by default.
    """
    return _frame(CandlesBatch(str(series), candles_out(candles, full=full), revised))


def candle_forming(series: SeriesId, candle: Candle, *, full: bool = False) -> bytes:
    """The candle in progress; `full`: with its order flow."""
    return _frame(CandleForming(str(series), _candle_out(candle, full)))


def gap(series: SeriesId, jump: Jump, *, reason: GapReason = "missing", state: GapState = GapState.UNKNOWN) -> bytes:
    """A jump, sent before the candle that follows it.

    series: the series.
    jump: the missing open times.
    reason: `missing` (the default), or `truncated`: the candles are stored, and can be paged.
    state: of the missing candles; unknown by default.
    """
    return _frame(GapMessage(str(series), jump.expected, jump.actual, reason, state))


def system(series: SeriesId, event: SystemEventName, message: str, data: Mapping[str, object] | None = None) -> bytes:
    """An event of a series. Text is escaped.

    series: the series.
    event: its name.
    message: a sentence for people.
    data: the facts; none by default.
    """
    return _frame(SystemEvent(str(series), event, printable(message), printable_values(data or {})))


def error_message(code: str, message: str, series_id: str | None = None, detail: str | None = None) -> bytes:
    """A failed request; the connection stays. Text of the client is escaped.

    code: for programs.
    message: a sentence, or a second code.
    series_id: of the request; None when it has none.
    detail: a sentence beside a message that is a code; None otherwise.
    """
    return _frame(ErrorMessage(code, printable(message), _printable_or_unset(series_id), _printable_or_unset(detail)))


def _printable_or_unset(text: str | None) -> str | msgspec.UnsetType:
    return msgspec.UNSET if text is None else printable(text)

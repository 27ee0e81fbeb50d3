"""Decodes frames of Binance's streams. Pure: any text makes a value, or raises `BadFrame` or `BadCandle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from klinesync.core.candle import Candle, check_candle, with_sound_flow
from klinesync.core.decoding import Int64
from klinesync.core.errors import BadCandle
from klinesync.core.series_id import SeriesId
from klinesync.exchanges.binance.decode import BadAnswer, decoded
from klinesync.exchanges.exchange import KlineEvent

# Longest frame in characters; a longer one is quarantined. A kline frame has some 400.
MAX_FRAME_CHARS = 64 << 10
# Most characters of the exchange's own error message that are quoted.
MAX_MSG_CHARS = 200
# Longest time, in ms, before the end of its candle at which a frame may call the candle final: the clocks of an
# exchange's machines differ by some ms.
CLOSED_EARLY_MS = 1000
SHUTDOWN = "serverShutdown"


class _Prices(msgspec.Struct, gc=False):
    """A kline without its order flow."""

    t: Int64
    s: str
    i: str
    o: float
    h: float
    l: float  # noqa: E741  # the exchange's name
    c: float
    v: float
    x: msgspec.Raw


class _Kline(_Prices, gc=False):
    q: float | None = None
    n: Int64 | None = None
    V: float | None = None
    Q: float | None = None


class _Event(msgspec.Struct, gc=False):
    E: Int64
    k: _Kline


class _PricesEvent(msgspec.Struct, gc=False):
    E: Int64
    k: _Prices


class _Error(msgspec.Struct, gc=False):
    code: Int64 = 0
    msg: str = ""


class _Frame(msgspec.Struct, gc=False):
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()
    id: Int64 | None = None
    error: _Error | None = None
    e: str = ""


# Numbers arrive as text: strict=False reads them. It would read "false" as a flag too, so `x` is left raw.
_FLAG = {b"true": True, b"false": False}
_frame = msgspec.json.Decoder(_Frame)
_event = msgspec.json.Decoder(_Event, strict=False)
_prices_event = msgspec.json.Decoder(_PricesEvent, strict=False)


class BadFrame(ValueError):
    """A frame that breaks the protocol. The connection goes on."""


class Stream(NamedTuple):
    """A subscribed stream.

    symbol_id: the exchange's symbol, which each frame must have.
    series: the series of its candles.
    others: further series that use the same stream; each gets every candle.
    """

    symbol_id: str
    series: SeriesId
    others: tuple[SeriesId, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `id`; `error` is None when the request succeeded."""

    id: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The exchange announces that it ends this socket soon."""


def parse_frame(text: str | bytes, streams: Mapping[str, Stream]) -> KlineEvent | Answer | Shutdown | None:
    """Decode a frame; None for a stream that is not (or no longer) followed. Invalid order flow is left out of the
    candle, and `flow_fault` of the event says why. Raises `BadFrame`, `BadCandle`."""
    if len(text) > MAX_FRAME_CHARS:
        raise BadFrame(f"it has {len(text)} characters")
    try:
        frame = decoded(_frame, text)
        if not frame.stream or frame.stream == f"!{SHUTDOWN}":
            if frame.e == SHUTDOWN or frame.stream:
                return Shutdown()
            if frame.id is not None or frame.error is not None:
                error = None if frame.error is None else f"{frame.error.code} {frame.error.msg[:MAX_MSG_CHARS]}"
                return Answer(frame.id, error)
            raise BadFrame("it is neither a stream's nor an answer")
        stream = streams.get(frame.stream)
        if stream is None:
            return None
        event, flow_fault = _read_event(frame.data)
    except BadAnswer as problem:
        raise BadFrame(str(problem)) from None
    kline, series = event.k, stream.series
    if kline.i != series.timeframe.code or kline.s != stream.symbol_id:
        raise BadFrame(f"symbol {kline.s[:50]!r}, interval {kline.i[:50]!r} on stream {frame.stream[:100]!r}")
    open_s, rest_ms = divmod(kline.t, 1000)
    if rest_ms:
        raise BadCandle(kline.t / 1000, "its time is no whole second")
    candle = Candle(
        open_s, kline.o, kline.h, kline.l, kline.c, kline.v, kline.q, kline.n, kline.V, kline.Q
    )  # fmt: skip
    try:
        check_candle(candle, series.timeframe)
    except BadCandle as problem:
        sound = with_sound_flow(candle)
        if sound is candle:
            raise
        candle, flow_fault = check_candle(sound, series.timeframe), str(problem)
    closed = _FLAG.get(bytes(kline.x))
    if closed is None:
        raise BadFrame(f"x is {bytes(kline.x)[:50]!r}, neither true nor false")
    event_ms = event.E
    if event_ms < kline.t:
        raise BadFrame(f"it is stamped {event_ms}, before its candle opens at {kline.t}")
    if closed and event_ms < series.timeframe.next(open_s) * 1000 - CLOSED_EARLY_MS:
        raise BadFrame(f"it calls the candle of {open_s} final at {event_ms}, before its end")
    return KlineEvent(series, candle, closed, event_ms, flow_fault=flow_fault)


def _read_event(data: msgspec.Raw) -> tuple[_Event, str | None]:
    """The event, and why its order flow cannot be read. Raises `BadAnswer` when its prices cannot be read either."""
    try:
        return decoded(_event, data), None
    except BadAnswer as problem:
        bare = decoded(_prices_event, data)
        kline = bare.k
        whole = _Kline(kline.t, kline.s, kline.i, kline.o, kline.h, kline.l, kline.c, kline.v, kline.x)
        return _Event(bare.E, whole), str(problem)


def stream_name(symbol_id: str, series: SeriesId) -> str:
    """`btcusdt@kline_1m` for the symbol `BTCUSDT`."""
    return f"{symbol_id.lower()}@kline_{series.timeframe.code}"

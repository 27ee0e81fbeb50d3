"""The contact with an exchange: of each stream, of REST, and of a market as a whole. Values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The state of the stream of a series. Times are UTC seconds of the exchange.

    detail: a sentence, or None.
    quiet: the span behind the newest closed candle in which REST has shown that there are no candles.
    """

    state: StreamState
    since: int | None = None
    last_frame_at: int | None = None
    detail: str | None = None
    quiet: Span | None = None


def stream_sentence(status: StreamStatus) -> str:
    """A sentence about the state of a stream."""
    sentence = _SENTENCES[status.state]
    return sentence if status.detail is None else f"{sentence}: {status.detail}"


_SENTENCES = {
    StreamState.OFF: "the series is not followed",
    StreamState.SUBSCRIBED: "the stream is subscribed; no frame has come yet",
    StreamState.LIVE: "the stream is live",
    StreamState.STALE: "the stream is stale, REST stands in for it",
    StreamState.REST_FALLBACK: "REST stands in for the stream",
    StreamState.RECONNECTING: "the stream is being connected",
    StreamState.DELISTED: "the symbol is not traded, it is followed again once it is",
}


@dataclass(frozen=True, slots=True)
class RestContact:
    """The newest contact with a market over REST.

    answered_s: when the newest request was answered well, monotonic seconds; None before the first answer.
    failure: a sentence about the newest request when that one failed; None when it was answered well.
    status: HTTP status of that failure, 0 without an answer.
    final_margin_s: observed time after its end in which the venue changes a row; None where that is not observed.
    cooldown_s: remaining seconds of the exchange's Retry-After or ban; 0 without one.
    """

    answered_s: float | None = None
    failure: str | None = None
    status: int = 0
    final_margin_s: float | None = None
    cooldown_s: float = 0.0


# Where nothing failed, and nothing came.
NO_ANSWER = "no answer to the question for its time"


@dataclass(frozen=True, slots=True)
class ExchangeTrouble:
    """Why an exchange gives no candles at present: it refuses this service, or gives no answer; and a sentence."""

    reason: Literal["exchange_refuses", "exchange_unreachable"]
    detail: str


@dataclass(frozen=True, slots=True)
class MarketContact:
    """The contact with one market of an exchange. Times are UTC seconds of the exchange.

    streams: the state of each followed stream.
    connected: whether a connection for streams is open.
    unreachable: neither a frame nor an answer came for a while.
    unreachable_since: when the newest frame or answer came, or the first series was followed, once `unreachable`.
    silent_s: seconds since the newest frame of any stream; None before the first frame.
    answers: whether REST answered lately.
    refused: a sentence, when REST refuses this service (401, 403, 451).
    failure: why the newest request failed; None when it was answered.
    unanswered: the newest request failed, and none was answered for a while.
    clocks_differ: a sentence with both times, while the market's clocks differ; None while they agree.
    final_margin_s: how long after its end a row of REST may change.
    final_margin_seen: whether rows have changed later than the configured margin.
    cooldown_s: remaining seconds of the exchange's Retry-After or ban; 0 without one.
    """

    market: str
    streams: tuple[StreamStatus, ...] = ()
    connected: bool = False
    unreachable: bool = False
    unreachable_since: int | None = None
    silent_s: float | None = None
    answers: bool = False
    refused: str | None = None
    failure: str | None = None
    unanswered: bool = False
    clocks_differ: str | None = None
    final_margin_s: float = 0.0
    final_margin_seen: bool = False
    cooldown_s: float = 0.0

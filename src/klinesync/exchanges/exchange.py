"""The Source port: what the service needs of an exchange. Implemented by Binance's clients, and by the simulation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState


class KlineEvent(Struct, frozen=True):
    """One push: the candle as it stands, and whether the exchange calls it final. `event_ms`: the exchange's time.

    `by_rest`: the source has no frames that say final or what time it is. Then a closed candle is a row of REST that is
    proven final, and `event_ms` tells an order only.
    """

    series: SeriesId
    candle: Candle
    closed: bool
    event_ms: int
    by_rest: bool = False


def _nobody(_series: Iterable[SeriesId], _reason: str) -> None:
    """Nobody asks why streams fail."""


def _no_stand_in(_series: SeriesId, _reason: str | None) -> None:
    """Nobody asks whether REST stands in."""


def _no_quiet(_series: SeriesId, _span: Span) -> None:
    """Nobody asks where there are no candles."""


@dataclass(frozen=True, slots=True)
class StreamCallbacks:
    """Whom a connection tells: each runs on the event loop and returns at once.

    attached: the exchange has acknowledged the subscription of a series.
    event: a candle has come.
    lost: series are carried no more.
    failing: series are not carried, and why: a handshake, an acknowledgement or the exchange's name is missing.
    stands_in: REST is polled in place of the stream of a series, and why; None: the stream brings frames again.
    quiet: REST has shown that there are no candles in a span behind the newest closed one.
    """

    attached: Callable[[SeriesId], None]
    event: Callable[[KlineEvent], None]
    lost: Callable[[Iterable[SeriesId]], None]
    failing: Callable[[Iterable[SeriesId], str], None] = _nobody
    stands_in: Callable[[SeriesId, str | None], None] = _no_stand_in
    quiet: Callable[[SeriesId, Span], None] = _no_quiet


class Urgency(IntEnum):
    """Whose request goes first where an exchange rations them."""

    REPAIR = 0  # a hole that live candles wait behind
    READ = 1  # a user waits
    SWEEP = 2  # start-up
    FILL = 3  # what a stream did not bring, mostly because nothing was traded
    DEEP = 4  # old holes, deep history, the audit


@dataclass(slots=True)
class Errand:
    """Why history is asked for. Its urgency may be raised while it waits; `begun`: a request of it was sent."""

    urgency: Urgency
    begun: bool = False


BOTH_NEIGHBOURS = "one REST answer has its neighbours and nothing between them"


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One answer of the exchange: closed candles, ascending, the spans between its rows in which it has nothing, and
    how it showed that."""

    candles: list[Candle]
    empty: list[Span]
    proof: str = BOTH_NEIGHBOURS


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back an exchange's history of a series goes: `oldest` is the first open time that it still gives, in UTC
    seconds, and `sentence` says why nothing before it can be had."""

    oldest: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A symbol as the exchange lists it: `symbol` is ours (`BTC/USDT`), `symbol_id` and `status` the exchange's.
    `onboard_s`: since when it is listed, in UTC seconds, where it tells. `kind`: spot, perpetual or delivery."""

    symbol: str
    symbol_id: str
    base_asset: str
    quote_asset: str
    status: str
    onboard_s: int | None = None
    kind: str = "spot"

    @property
    def trading(self) -> bool:
        return self.status == "TRADING"


class ListingShelf(Protocol):
    """Keeps the newest list of symbols of each market over a restart. Its own troubles are logged, never raised."""

    async def load(self, market: str) -> Sequence[Listing]:
        """The list that was kept last; empty when there is none."""
        ...

    async def keep(self, market: str, listings: Sequence[Listing]) -> None:
        """Keep this list."""
        ...


@dataclass(frozen=True, slots=True)
class Ticker:
    """The last 24 hours of a symbol."""

    symbol_id: str
    last_price: float
    quote_volume: float
    price_change_percent: float


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """Where a series' stream stands. Times are UTC seconds of the exchange; `detail` is a sentence where there is
    something to say; `quiet`: the span behind the newest closed candle in which REST has shown that there are none."""

    state: StreamState
    since: int | None = None
    last_frame_at: int | None = None
    detail: str | None = None
    quiet: Span | None = None


def stream_sentence(status: StreamStatus) -> str:
    """The state of a stream as people read it."""
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
    final_margin_s: how long after its end the venue may change a row, as far as was seen; None where that is not
        watched.
    left_alone_s: for how long REST is not asked from now on at the exchange's wish, in seconds; 0 where it is asked.
    """

    answered_s: float | None = None
    failure: str | None = None
    status: int = 0
    final_margin_s: float | None = None
    left_alone_s: float = 0.0


# Where nothing failed, and nothing came.
NO_ANSWER = "no answer to the question for its time"


@dataclass(frozen=True, slots=True)
class ExchangeTrouble:
    """Why an exchange gives no candles at present: it refuses this service, or gives no answer; and a sentence."""

    reason: Literal["exchange_refuses", "exchange_unreachable"]
    detail: str


@dataclass(frozen=True, slots=True)
class MarketContact:
    """What is heard of one market of an exchange. Times are UTC seconds of the exchange.

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
    final_margin_seen: whether rows were seen to change later than the configured margin.
    left_alone_s: for how long REST is not asked from now on at the exchange's wish, in seconds; 0 where it is asked.
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
    left_alone_s: float = 0.0

    @property
    def trouble(self) -> ExchangeTrouble | None:
        """Why the market gives no history; None while it answers."""
        if self.refused is not None:
            return ExchangeTrouble("exchange_refuses", self.refused)
        if self.unreachable or self.unanswered:
            return ExchangeTrouble("exchange_unreachable", self.failure or NO_ANSWER)
        return None


class HistoryWatch(Protocol):
    """Is told how the reading of history goes. Spans are open times in UTC seconds; `candles` counts since `began`."""

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        """Somebody reads `span` of `series`."""
        ...

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        """All before `upto` is read."""
        ...

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        """The reading is over; `error` is what was in the way."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection: the streams that it carries, and what it has been through."""

    market: str
    streams: int
    connected: bool
    reconnects: int
    rotations: int
    quarantined: int


class Connection(Protocol):
    """Carries the live streams of several series of one market."""

    @property
    def status(self) -> ConnectionStatus:
        """How it stands."""
        ...

    @property
    def room(self) -> int:
        """How many more streams it takes."""
        ...

    def want(self, series: SeriesId) -> None:
        """Carry the series' stream from now on: `attached` is told once the exchange has been, after every connect."""
        ...

    @property
    def idle(self) -> bool:
        """Whether it carries no stream."""
        ...

    def unwant(self, series: SeriesId) -> None:
        """Drop the series' stream."""
        ...

    def renew(self, series: SeriesId) -> None:
        """Drop the series' stream and subscribe it again: it is acknowledged, and brings nothing."""
        ...

    def reconnect(self) -> None:
        """End what carries the streams now, and connect anew: none of them brings anything."""
        ...

    async def run(self) -> None:
        """Stay connected until cancelled."""
        ...


# Reads closed candles of a series: of the span `[start, end)`, or from `start` on (see `Source.history`).
History: TypeAlias = Callable[[SeriesId, int, Errand, int | None], AsyncGenerator[HistoryPage, None]]


class Source(Protocol):
    """One exchange. Its methods raise `UpstreamError` when it does not answer, or not with sense."""

    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        """A new connection of that market; it does nothing until it runs."""
        ...

    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles of the span `[start, end)`, page by page, ascending; without `end` up to the newest candle
        that is proven final.

        Pages overlap by a row, so that every hole lies within one answer, which proves it.
        """
        ...

    async def now_ms(self, market: str) -> int:
        """The exchange's time, asked now."""
        ...

    def contact(self, market: str) -> RestContact:
        """The newest contact over REST; returns at once and asks nobody."""
        ...

    async def knows(self, series: SeriesId) -> bool:
        """Whether the exchange lists the series' symbol."""
        ...

    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """What the exchange lists, by our symbol, as it told at most `max_age_s` (monotonic) ago."""
        ...

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol, asked now."""
        ...

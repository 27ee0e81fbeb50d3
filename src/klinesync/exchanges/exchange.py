"""The Exchange port: what the service needs of an exchange. `binance/` and `ccxt/` implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

from msgspec import Struct

from klinesync.core.candle import Candle
from klinesync.core.counted import counted
from klinesync.core.errors import WRONG_REQUEST, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, missing_spans
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import RestContact
from klinesync.runtime.exchange_clock import ExchangeClock

# Age up to which a list of symbols is used, in seconds.
LISTINGS_TTL_S = 3600.0


class KlineEvent(Struct, frozen=True):
    """One push of a stream: a candle, and whether the exchange calls it final. `event_ms`: the exchange's time.

    `by_rest`: the exchange has no frames with a final mark or a time. A closed candle is a row of REST that is proven
    final then, and `event_ms` gives the order only.
    `flow_fault`: why the order flow that the push has was left out of the candle; None when nothing was left out.
    """

    series: SeriesId
    candle: Candle
    closed: bool
    event_ms: int
    by_rest: bool = False
    flow_fault: str | None = None


def _nobody(_series: Iterable[SeriesId], _reason: str) -> None:
    """Ignores failures of streams."""


def _no_stand_in(_series: SeriesId, _reason: str | None) -> None:
    """Ignores that REST is polled."""


def _no_quiet(_series: SeriesId, _span: Span) -> None:
    """Ignores spans without candles."""


@dataclass(frozen=True, slots=True)
class StreamCallbacks:
    """The callbacks of a connection. Each runs on the event loop and returns at once.

    attached: the exchange has acknowledged the subscription of a series.
    event: a candle has arrived.
    lost: the streams of series have ended.
    failing: series are not subscribed, and why: a handshake, an acknowledgement or the exchange's name is missing.
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
    """The priority of a request where an exchange rations requests; the smallest number goes first."""

    REPAIR = 0  # a hole that live candles wait behind
    READ = 1  # a user waits
    SWEEP = 2  # start-up
    FILL = 3  # candles that a stream did not bring, mostly because nothing was traded
    DEEP = 4  # old holes, deep history, the audit


@dataclass(slots=True)
class Errand:
    """The purpose of a request for history. Its urgency may be raised while it waits; `begun`: a request was sent."""

    urgency: Urgency
    begun: bool = False


BOTH_NEIGHBOURS = "one REST answer has its neighbours and nothing between them"


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One answer of the exchange: closed candles, ascending, the spans between its rows that are proven empty, and the
    proof."""

    candles: list[Candle]
    empty: list[Span]
    proof: str = BOTH_NEIGHBOURS


@dataclass(frozen=True, slots=True)
class Reach:
    """The reach of an exchange's history of a series: `oldest` is the first available open time, in UTC seconds;
    `sentence` says why earlier candles are not available."""

    oldest: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed symbol: `symbol` is our name (`BTC/USDT`), `symbol_id` and `status` are the exchange's.

    onboard_s: since when it is listed, in UTC seconds; None where the exchange does not say.
    kind: spot, perpetual or delivery.
    """

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
    """Keeps the newest list of symbols of each market over a restart. Its own errors are logged, never raised."""

    async def load(self, market: str) -> Sequence[Listing]:
        """The kept list; empty without one."""
        ...

    async def keep(self, market: str, listings: Sequence[Listing]) -> None:
        """Keep this list in place of the previous one."""
        ...


@dataclass(frozen=True, slots=True)
class Ticker:
    """The last 24 hours of a symbol."""

    symbol_id: str
    last_price: float
    quote_volume: float
    price_change_percent: float


class HistoryWatch(Protocol):
    """Receives the progress of readings of history. Spans are open times in UTC seconds; `candles` counts since
    `began`."""

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        """The reading of `span` of `series` has begun."""
        ...

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        """Everything before `upto` is read."""
        ...

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        """The reading is over; `error`: a sentence when it failed."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection: its streams, its state and its counters."""

    exchange: str
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
        """The state of the connection."""
        ...

    @property
    def room(self) -> int:
        """The number of further streams that fit."""
        ...

    def want(self, series: SeriesId) -> None:
        """Subscribe the stream of a series. After every connect `attached` is called once the exchange acknowledges
        it."""
        ...

    @property
    def idle(self) -> bool:
        """Whether the connection has no stream."""
        ...

    def unwant(self, series: SeriesId) -> None:
        """Unsubscribe the stream of a series."""
        ...

    def renew(self, series: SeriesId) -> None:
        """Unsubscribe and subscribe the stream of a series that is acknowledged, and brings nothing."""
        ...

    def reconnect(self) -> None:
        """Close the connection and connect again, because no stream brings anything."""
        ...

    async def run(self) -> None:
        """Stay connected until cancelled."""
        ...


@dataclass(slots=True)
class StreamCounts:
    """The counters of all connections of one market since the start.

    frames: candles received from streams, also forming.
    quarantined: frames that were no valid candles.
    reconnects: connections that ended and were reconnected.
    rotations: connections that were replaced before the exchange's time limit.
    flow_left_out: candles that were taken without their order flow, because it was invalid.
    """

    frames: int = 0
    quarantined: int = 0
    reconnects: int = 0
    rotations: int = 0
    flow_left_out: int = 0


# The key of a budget that both markets of an exchange share.
ALL_MARKETS = "all"


@dataclass(frozen=True, slots=True)
class RestStatus:
    """The state of REST of one host.

    used, limit: request weight of the exchange's current minute; None where the exchange does not count by the minute.
    share: largest share of the limit that the service uses; None likewise.
    under_way: requests in flight.
    waiting: queued requests by urgency.
    blocked_s: remaining seconds of a Retry-After or ban.
    blocked_until_ms: its end in UTC ms of the exchange; None without one, or where that is not known.
    requests: requests since the start.
    errors: failures since the start by HTTP status: 0 without an answer, 200 for an answer that could not be
    understood.
    """

    used: int | None
    limit: int | None
    share: float | None
    under_way: int
    waiting: Mapping[Urgency, int]
    blocked_s: float
    blocked_until_ms: int | None
    requests: int
    errors: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Emptiness:
    """The policy that proves an open time empty: one answer has both neighbours and nothing between them, and the
    exchange adds no candle later.

    late_s: longest time after a candle's end, in seconds of the exchange, after which the exchange may add a candle
        without trades that it left out before; 0 for an exchange that never does.
    """

    late_s: float = 0.0

    def proven(self, frame: Timeframe, shown: Sequence[int], now_ms: int | None) -> list[Span]:
        """The empty spans between the open times that one answer shows.

        shown: ascending.
        now_ms: the exchange's time; None where it is not known, and then nothing is proven where candles come late.
        """
        if not shown:
            return []
        end = shown[-1]
        if self.late_s:
            if now_ms is None:
                return []
            end = min(end, frame.floor(int(now_ms / 1000 - self.late_s)))
            if end <= shown[0]:
                return []
        return missing_spans(frame, shown[0], end, [time for time in shown if time < end])


# Reads closed candles of a series: of the span `[start, end)`, or from `start` on (see `Exchange.history`).
History: TypeAlias = Callable[[SeriesId, int, Errand, int | None], AsyncGenerator[HistoryPage, None]]


class Exchange(ABC):
    """One exchange. Requests raise `UpstreamError` when the exchange does not answer, or not sensibly.

    name: as in series_ids.
    clocks: the exchange's time by market; the keys are the markets. Answers and frames set the clocks.
    emptiness: the policy that proves open times empty.
    one_list_decides: whether a list of symbols is one answer, so that a single list without a symbol proves that it is
        delisted. Otherwise two lists are needed, some time apart.
    """

    name: str
    clocks: Mapping[str, ExchangeClock]
    emptiness: Emptiness = Emptiness()
    one_list_decides: bool = False

    # Streams.

    @abstractmethod
    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        """A new connection for streams of a market; it does nothing until `run`."""

    def streams(self) -> Mapping[str, StreamCounts]:
        """The counters of connections by market. By default there are none."""
        return {}

    # History.

    @abstractmethod
    def history(
        self, series: SeriesId, start: int, errand: Errand, end: int | None = None
    ) -> AsyncGenerator[HistoryPage, None]:
        """Closed candles of the span `[start, end)`, page by page, ascending; without `end` up to the newest candle
        that is proven final.

        Pages overlap by a row, so that every hole lies within one answer, which proves it by `emptiness`.
        """

    def reach(self, series: SeriesId) -> Reach | None:
        """The reach of the history of the series; None, the default, when all of it is available, or that is not known
        yet."""
        return None

    def left_out(self) -> Mapping[tuple[str, str], int]:
        """Items of answers that could not be used since the start, by market and kind (`kline`, `symbol`, `ticker`).
        By default nothing is counted."""
        return {}

    # Listings.

    def timeframe_refusal(self, timeframe: Timeframe) -> str | None:
        """Why the exchange has no candles of a timeframe, as a sentence; None, the default, when it has some, or only
        `refusal` can tell. Returns at once, without a request."""
        return None

    @abstractmethod
    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series is not available, as a sentence; None when it is. Raises `UpstreamError`."""

    @abstractmethod
    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """The listed symbols by our name, from an answer at most `max_age_s` (monotonic) old. Raises
        `UpstreamError`."""

    async def symbol_id(self, series: SeriesId) -> str | None:
        """The exchange's own name of the series' symbol; None when it is not listed. Raises `UpstreamError`."""
        listing = (await self.listings(series.market, LISTINGS_TTL_S)).get(series.symbol)
        return None if listing is None else listing.symbol_id

    # Tickers.

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol, requested now. Raises `UpstreamError`; by default always."""
        raise UpstreamError(f"{self.name} has no list of tickers", WRONG_REQUEST)

    # Clock.

    @abstractmethod
    async def now_ms(self, market: str) -> int:
        """The exchange's time, requested now, in UTC ms. Raises `UpstreamError`."""

    # Budget.

    @abstractmethod
    def contact(self, market: str) -> RestContact:
        """The newest contact over REST; returns at once, without a request."""

    def rest(self) -> Mapping[str, RestStatus]:
        """The state of each used REST host by market (`ALL_MARKETS`: the markets share one). By default there are
        none."""
        return {}

    def load(self, series: SeriesId) -> float:
        """The share of the exchange's requests that following the series takes; all followed series may take 1. By
        default a series takes nothing."""
        return 0.0

    def too_many(self, series: SeriesId, count: int) -> str:
        """A sentence about `count` series, the last of them `series`, that exceed the exchange's limit."""
        return f"{self.name} has no room for {counted(count, 'series', 'series')}"

    # The end.

    @abstractmethod
    async def close(self) -> None:
        """Close all connections. No request is made afterwards."""

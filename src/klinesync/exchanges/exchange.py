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

# How long a list of symbols is good for, in seconds.
LISTINGS_TTL_S = 3600.0


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


@dataclass(slots=True)
class StreamCounts:
    """What happened on the connections of one market since the start, also on those that are gone.

    frames: candles that the streams brought, also forming.
    quarantined: frames that were no candles.
    reconnects: connections that ended and were made anew.
    rotations: connections that were replaced before the exchange ends them.
    """

    frames: int = 0
    quarantined: int = 0
    reconnects: int = 0
    rotations: int = 0


# The key of a budget that both markets of an exchange share.
ALL_MARKETS = "all"


@dataclass(frozen=True, slots=True)
class RestStatus:
    """How the REST of one host stands.

    used, limit: request weight of the exchange's present minute; None where the exchange does not count by the minute.
    share: how much of the limit we use at most; None likewise.
    under_way: requests that wait for their answer.
    waiting: requests that wait for their turn, by urgency.
    blocked_s: for how long nothing is sent at the exchange's wish, in seconds.
    blocked_until_ms: until when, in UTC ms of the exchange; None where it is asked, or where that is not known.
    requests: sent since the start.
    errors: failures since the start by HTTP status: 0 without an answer, 200 where it could not be understood.
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
    """What proves that an exchange has no candle for an open time: one answer shows both neighbours and nothing between
    them, and the exchange adds no candle any more.

    late_s: some exchanges leave out a candle without trades and add it later: how long after the candle's end, at most,
        in seconds of the exchange. 0 where an exchange adds none.
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
    """One exchange. What is asked of it raises `UpstreamError` when it does not answer, or not with sense.

    name: as series ids have it.
    clocks: what is known of its time, by market. The keys are its markets. Answers and frames teach the clocks.
    emptiness: what proves that it has no candle.
    one_list_decides: whether a list of symbols is one answer, so that a single list without a symbol shows that it is
        gone. Else two lists do, some time apart.
    """

    name: str
    clocks: Mapping[str, ExchangeClock]
    emptiness: Emptiness = Emptiness()
    one_list_decides: bool = False

    # Streams.

    @abstractmethod
    def connection(self, market: str, callbacks: StreamCallbacks) -> Connection:
        """A new connection of that market; it does nothing until it runs."""

    def streams(self) -> Mapping[str, StreamCounts]:
        """What happened on the connections, by market. By default nothing is counted."""
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
        """How far back the history of the series goes; None, the default, where all of it can be had, or where that is
        not known yet."""
        return None

    def left_out(self) -> Mapping[tuple[str, str], int]:
        """Items of answers that could not be used since the start, by market and kind (`kline`, `symbol`, `ticker`).
        By default nothing is counted."""
        return {}

    # Listings.

    @abstractmethod
    async def refusal(self, series: SeriesId) -> str | None:
        """Why the series cannot be had, as a sentence; None when it can. Raises `UpstreamError`."""

    @abstractmethod
    async def listings(self, market: str, max_age_s: float) -> Mapping[str, Listing]:
        """What the exchange lists, by our symbol, as it told at most `max_age_s` (monotonic) ago. Raises
        `UpstreamError`."""

    async def symbol_id(self, series: SeriesId) -> str | None:
        """The exchange's own name of the series' symbol; None when it is not listed. Raises `UpstreamError`."""
        listing = (await self.listings(series.market, LISTINGS_TTL_S)).get(series.symbol)
        return None if listing is None else listing.symbol_id

    # Tickers.

    async def tickers(self, market: str) -> Sequence[Ticker]:
        """The last 24 hours of every symbol, asked now. Raises `UpstreamError`, as where, by default, it has none."""
        raise UpstreamError(f"{self.name} has no list of tickers", WRONG_REQUEST)

    # Clock.

    @abstractmethod
    async def now_ms(self, market: str) -> int:
        """The exchange's time, asked now, in UTC ms. Raises `UpstreamError`."""

    # Budget.

    @abstractmethod
    def contact(self, market: str) -> RestContact:
        """The newest contact over REST; returns at once and asks nobody."""

    def rest(self) -> Mapping[str, RestStatus]:
        """How each REST host stands that was asked anything, by market (`ALL_MARKETS`: the markets share it). By
        default nothing is counted."""
        return {}

    def load(self, series: SeriesId) -> float:
        """The share of the exchange's requests that following the series takes; all followed series may take 1. By
        default a series takes nothing."""
        return 0.0

    def too_many(self, series: SeriesId, count: int) -> str:
        """A sentence about `count` series, the last one of them `series`, for which there is no room."""
        return f"{self.name} has no room for {counted(count, 'series', 'series')}"

    # The end.

    @abstractmethod
    async def close(self) -> None:
        """Close all connections. Nothing is asked afterwards."""

"""Venue: what is known of an exchange that ccxt does not say, or says otherwise: cost, page, window and depth of its
candles. Pure.

A venue that is not in the table is taken as ccxt describes it: each request weighs 1, and everything is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.ingest.turn_queue import Kind

# Requests that each candle of a followed series costs: one when the candle is due, one that looks at it again.
REQUESTS_PER_CANDLE = 2
# A polled series is asked for at least this often, in requests a minute, however long its candles are.
LEAST_POLLS_PER_MINUTE = 1.0
# Share of a venue's requests that the closes of followed series may take. The rest is for time, lists, holes, history
# and retries: with all of it in use one retry would make every later close late.
FIT_SHARE = 0.8
# Candles that the depth is taken to be shorter: some end while a request waits for its turn.
DEPTH_SPARE = 3


class Quiet(StrEnum):
    """What becomes of a candle in which nothing was traded."""

    FLAT = "flat"
    OMITTED = "omitted"
    LATE = "omitted, later flat"


@dataclass(frozen=True, slots=True)
class Cost:
    """What requests weigh. `rows`: one for candles, and one more for each `rows_per_weight` candles of the answer (0:
    candles weigh nothing); `time`, `listings`, `tickers`: the other kinds."""

    rows: float = 1.0
    rows_per_weight: int = 0
    time: float = 1.0
    listings: float = 1.0
    tickers: float = 1.0

    def of(self, kind: Kind) -> float:
        """The weight of a request of that kind, as far as it is known before the answer."""
        return {Kind.ROWS: self.rows, Kind.TIME: self.time, Kind.LISTINGS: self.listings, Kind.TICKERS: self.tickers}[
            kind
        ]

    def of_rows(self, rows: int) -> float:
        """What the candles of an answer weigh beside the request."""
        return rows // self.rows_per_weight if self.rows_per_weight else 0.0


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange.

    name: as ccxt names it.
    request_s: shortest time between two requests for candles, in seconds, by market: by the venue's budget for one
        address, or by ccxt's limiter where that is slower. Empty: as ccxt says.
    weight_per_minute: the venue's budget, where ccxt's limiter counts its requests wrong; None: ccxt counts right.
    cost: what requests weigh, with `weight_per_minute`.
    page: most candles of one answer, by market, where ccxt says otherwise.
    window: candles of the span that one answer looks into, where that is not the page; None: it is.
    depth: how many of the newest candles exist, by market; of a market that is not named all of them do.
    quiet: what becomes of a candle in which nothing was traded.
    pushes: whether ccxt streams its candles; else they are polled.
    tells_time: whether it can be asked for its time; else the time is read from `Date` and rows.
    """

    name: str
    request_s: Mapping[str, float] = field(default_factory=dict)
    weight_per_minute: float | None = None
    cost: Cost = Cost()
    page: Mapping[str, int] = field(default_factory=dict)
    window: int | None = None
    depth: Mapping[str, int] = field(default_factory=dict)
    quiet: Quiet = Quiet.OMITTED
    pushes: bool = True
    tells_time: bool = True

    def oldest(self, series: SeriesId, now_s: int) -> int | None:
        """The oldest open time that the venue still has of the series; None where it has all. `now_s`: its time."""
        depth, frame = self.depth.get(series.market), series.timeframe
        if depth is None:
            return None
        return max(0, frame.shift(frame.floor(now_s), DEPTH_SPARE - depth))

    def depth_sentence(self, series: SeriesId) -> str:
        """Why candles before `oldest` cannot be had."""
        return f"{self.name} keeps the newest {self.depth[series.market]:,} candles of {series.timeframe} only"


def _everywhere(seconds: float) -> Mapping[str, float]:
    return {"spot": seconds, "futures": seconds}


# Where ccxt counts right, `request_s` is its limiter's: `rateLimit` (ms) times the cost of the path.
VENUES: Mapping[str, Venue] = {
    venue.name: venue
    for venue in (
        Venue("okx", _everywhere(0.055), quiet=Quiet.FLAT),
        Venue("bybit", _everywhere(0.1), quiet=Quiet.FLAT),
        Venue("kraken", {"spot": 1.2}, depth={"spot": 720}, window=720),
        Venue("coinbase", _everywhere(0.102), pushes=False),
        # Futures answered with 200 rows where ccxt says 500.
        Venue("kucoin", {"spot": 0.0225, "futures": 0.045}, page={"futures": 200}),
        Venue("gate", _everywhere(0.05), depth={"spot": 10_000, "futures": 10_000}, quiet=Quiet.FLAT),
        # 1,200 a minute for an address. A request for candles weighs 20, and 1 more for each 60 of them; ccxt counts 4.
        Venue(
            "hyperliquid",
            _everywhere(1.0),
            weight_per_minute=1200.0,
            cost=Cost(rows=20.0, rows_per_weight=60, time=2.0, listings=120.0, tickers=40.0),
            depth={"spot": 5000, "futures": 5000},
            window=5000,
            quiet=Quiet.LATE,
        ),
        Venue("bitget", _everywhere(0.05), quiet=Quiet.FLAT),
        Venue("krakenfutures", {"futures": 0.6}, quiet=Quiet.FLAT, pushes=False, tells_time=False),
    )
}


def venue(name: str) -> Venue:
    """What is known of that exchange."""
    return VENUES.get(name) or Venue(name)


@dataclass(frozen=True, slots=True)
class Polling:
    """What following series costs on one market of a venue. `request_s`: shortest time between two requests."""

    venue: Venue
    request_s: float

    @property
    def per_minute(self) -> float:
        """Requests a minute that the venue allows."""
        return 60.0 / self.request_s

    def needs(self, frame: Timeframe) -> float:
        """Requests a minute that a series of `frame` needs at least."""
        closes = REQUESTS_PER_CANDLE * 60.0 / frame.seconds
        return closes if self.venue.pushes else max(closes, LEAST_POLLS_PER_MINUTE)

    def fit(self, frame: Timeframe) -> int:
        """How many series of `frame` can be followed at once."""
        return int(FIT_SHARE * self.per_minute / self.needs(frame) + 1e-9)

    def load(self, frames: Iterable[Timeframe]) -> float:
        """The share that these series take of what may be taken: above 1 they do not fit."""
        return sum(map(self.needs, frames)) / (FIT_SHARE * self.per_minute)


def polling(of: Venue, market: str, rate_limit_s: float | None) -> Polling | None:
    """What following series costs on that market. `rate_limit_s`: what ccxt says, None where it was not asked yet.
    None when nothing is known."""
    request_s = of.request_s.get(market, rate_limit_s)
    return None if not request_s else Polling(of, request_s)

"""Venue: facts about an exchange that ccxt lacks or has wrong: cost, page, window and depth of its candles. Pure.

A venue that is not in the table is as ccxt describes it: each request weighs 1, and all history is available.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from klinesync.core.counted import counted
from klinesync.core.series_id import SeriesId
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.turn_queue import Kind
from klinesync.exchanges.exchange import Emptiness

# Requests for each candle of a followed series: one when the candle is due, one that confirms it.
REQUESTS_PER_CANDLE = 2
# Fewest polls of a polled series, in requests a minute, however long its candles are.
LEAST_POLLS_PER_MINUTE = 1.0
# Largest share of a venue's requests that the closes of followed series may take. The rest is for time, lists, holes,
# history and retries; without a reserve one retry would delay every later close.
FIT_SHARE = 0.85
# Largest share of a venue's budget where the service paces requests itself. The burst of `Pace` and one large request
# more then still fit into the budget of a minute.
PACED_SHARE = 0.75
# Candles by which the depth is assumed to be shorter, because candles end while a request is queued.
DEPTH_SPARE = 3


class Quiet(StrEnum):
    """What a venue shows for a candle without trades."""

    FLAT = "flat"
    OMITTED = "omitted"
    LATE = "omitted, later flat"


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange. Weights are in ccxt's unit: its limiter lets a weight of 1 pass in `rate_limit_s`.

    name: ccxt's name.
    rate_limit_s: ccxt's rate limit, in seconds, until ccxt itself is loaded; None: not known.
    rows: weight of a request for candles by market; 1 for a market that is missing here.
    rows_per_weight: number of candles of an answer that weigh 1 more (0: candles weigh nothing).
    others: weights of the other kinds of requests, where ccxt counts them wrong.
    paced: whether ccxt counts requests wrong, so that the service paces them itself.
    page: most candles of one answer by market, where ccxt has another number.
    window: candles of the span that one answer covers; None: as many as the page.
    depth: number of the newest candles that are available by market; all for a market that is missing here.
    quiet: what the venue shows for a candle without trades.
    late_s: longest time after its end, in seconds, at which such a candle is added, where it is added late.
    pushes: whether ccxt streams its candles; otherwise they are polled.
    tells_time: whether it has a request for its time; otherwise the time is read from `Date` and rows.
    """

    name: str
    rate_limit_s: float | None = None
    rows: Mapping[str, float] = field(default_factory=dict)
    rows_per_weight: int = 0
    others: Mapping[Kind, float] = field(default_factory=dict)
    paced: bool = False
    page: Mapping[str, int] = field(default_factory=dict)
    window: int | None = None
    depth: Mapping[str, int] = field(default_factory=dict)
    quiet: Quiet = Quiet.OMITTED
    late_s: float = 0.0
    pushes: bool = True
    tells_time: bool = True

    @property
    def emptiness(self) -> Emptiness:
        """The policy that proves open times empty."""
        return Emptiness(self.late_s)

    def weight(self, kind: Kind, market: str | None = None, rows: int = 0) -> float:
        """The weight of a request.

        kind: its kind.
        market: of a request for candles.
        rows: candles of the answer.
        """
        if kind is not Kind.ROWS:
            return self.others.get(kind, 1.0)
        return self.rows.get(market or "", 1.0) + (rows // self.rows_per_weight if self.rows_per_weight else 0.0)

    def request_s(self, market: str, rate_limit_s: float | None = None) -> float | None:
        """The shortest time between two requests for few candles, in seconds; None when it is not known.
        `rate_limit_s`: ccxt's rate limit, once ccxt is loaded."""
        unit_s = self.rate_limit_s if rate_limit_s is None else rate_limit_s
        if not unit_s:
            return None
        return unit_s * self.weight(Kind.ROWS, market) / (PACED_SHARE if self.paced else 1.0)

    def oldest(self, series: SeriesId, now_s: int) -> int | None:
        """The oldest available open time of the series; None where all are available. `now_s`: the venue's time, in UTC
        seconds."""
        depth, frame = self.depth.get(series.market), series.timeframe
        if depth is None:
            return None
        return max(0, frame.shift(frame.floor(now_s), DEPTH_SPARE - depth))

    def depth_sentence(self, series: SeriesId) -> str:
        """Why candles before `oldest` are not available."""
        return f"{self.name} keeps the newest {self.depth[series.market]:,} candles of {series.timeframe} only"


def _everywhere(weight: float) -> Mapping[str, float]:
    return {"spot": weight, "futures": weight}


# The rate limits and weights are those of ccxt 4.5.90, where `paced` does not say otherwise.
VENUES: Mapping[str, Venue] = {
    venue.name: venue
    for venue in (
        Venue("okx", 0.110, _everywhere(0.5), quiet=Quiet.FLAT),
        Venue("bybit", 0.020, _everywhere(5.0), quiet=Quiet.FLAT),
        Venue("kraken", 1.0, {"spot": 1.2}, depth={"spot": 720}, window=720),
        Venue("coinbase", 0.034, {"spot": 3.0}, pushes=False),
        # Futures answer with 200 rows at most, as measured; ccxt says 500.
        Venue("kucoin", 0.0075, {"spot": 3.0, "futures": 6.0}, page={"futures": 200}),
        Venue("gate", 0.050, _everywhere(1.0), depth={"spot": 10_000, "futures": 10_000}, quiet=Quiet.FLAT),
        # 1,200 a minute for an address. A request for candles weighs 20, and 1 more for each 60 of them; ccxt counts 4.
        Venue(
            "hyperliquid",
            0.050,
            _everywhere(20.0),
            rows_per_weight=60,
            others={Kind.TIME: 2.0, Kind.LISTINGS: 120.0, Kind.TICKERS: 40.0},
            paced=True,
            depth={"spot": 5000, "futures": 5000},
            window=5000,
            quiet=Quiet.LATE,
            # Reported delays are ten to ninety seconds.
            late_s=180.0,
        ),
        Venue("bitget", 0.050, _everywhere(1.0), quiet=Quiet.FLAT),
        Venue("krakenfutures", 0.600, {"futures": 1.0}, quiet=Quiet.FLAT, pushes=False, tells_time=False),
    )
}


def venue(name: str) -> Venue:
    """The entry of that exchange in the table, or the default."""
    return VENUES.get(name) or Venue(name)


@dataclass(frozen=True, slots=True)
class Polling:
    """The cost of following series on one market of a venue. `request_s`: shortest time between two requests, in
    seconds."""

    venue: Venue
    request_s: float

    @property
    def per_minute(self) -> float:
        """The number of requests a minute that the venue allows."""
        return 60.0 / self.request_s

    def needs(self, frame: Timeframe) -> float:
        """The fewest requests a minute that a series of `frame` needs."""
        closes = REQUESTS_PER_CANDLE * 60.0 / frame.seconds
        return closes if self.venue.pushes else max(closes, LEAST_POLLS_PER_MINUTE)

    def fit(self, frame: Timeframe) -> int:
        """The number of series of `frame` that can be followed at once."""
        return int(FIT_SHARE * self.per_minute / self.needs(frame) + 1e-9)

    def too_many(self, series: int, frame: Timeframe) -> str:
        """A sentence about `series` series of `frame` that exceed the limit."""
        needs = f"{self.needs(frame):.3g}"
        return (
            f"{self.venue.name} allows about {self.per_minute:.0f} requests for candles a minute, and a series of "
            f"{frame} takes {needs}: {counted(self.fit(frame), 'series', 'series')} fit, and {series} are too many"
        )

    def load(self, frames: Iterable[Timeframe]) -> float:
        """The share of the available requests that these series need; above 1 they do not fit."""
        return sum(map(self.needs, frames)) / (FIT_SHARE * self.per_minute)


def polling(of: Venue, market: str, rate_limit_s: float | None = None) -> Polling | None:
    """The cost of following series on a market.

    of: the venue.
    market: its market.
    rate_limit_s: ccxt's rate limit; None until ccxt is loaded.

    Returns None when no rate limit is known.
    """
    request_s = of.request_s(market, rate_limit_s)
    return None if request_s is None else Polling(of, request_s)

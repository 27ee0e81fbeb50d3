"""Venue: what is known of an exchange that ccxt does not say, or says otherwise: cost, page, window and depth of its
candles. Pure.

A venue that is not in the table is taken as ccxt describes it: each request weighs 1, and everything is kept.
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

# Requests that each candle of a followed series costs: one when the candle is due, one that looks at it again.
REQUESTS_PER_CANDLE = 2
# A polled series is asked for at least this often, in requests a minute, however long its candles are.
LEAST_POLLS_PER_MINUTE = 1.0
# Share of a venue's requests that the closes of followed series may take. The rest is for time, lists, holes, history
# and retries: with all of it in use one retry would make every later close late.
FIT_SHARE = 0.85
# Share of a venue's budget that is used where we pace requests ourselves: with what `Pace` lets pass at once, and one
# large request more, a minute never takes more than the budget.
PACED_SHARE = 0.75
# Candles that the depth is taken to be shorter: some end while a request waits for its turn.
DEPTH_SPARE = 3


class Quiet(StrEnum):
    """What becomes of a candle in which nothing was traded."""

    FLAT = "flat"
    OMITTED = "omitted"
    LATE = "omitted, later flat"


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange. Requests weigh in ccxt's unit, of which its limiter lets one pass in `rate_limit_s`.

    name: as ccxt names it.
    rate_limit_s: ccxt's, in seconds, for as long as ccxt was not asked; None: not known.
    rows: what a request for candles weighs, by market; a market that is not named: 1.
    rows_per_weight: a request weighs 1 more for each so many candles of the answer (0: candles weigh nothing).
    others: what requests of the other kinds weigh, where ccxt counts wrong.
    paced: whether ccxt counts requests wrong, so that we pace them ourselves.
    page: most candles of one answer, by market, where ccxt says otherwise.
    window: candles of the span that one answer looks into, where that is not the page; None: it is.
    depth: how many of the newest candles exist, by market; of a market that is not named all of them do.
    quiet: what becomes of a candle in which nothing was traded.
    late_s: how long after its end such a candle is added at most, in seconds, where it comes late.
    pushes: whether ccxt streams its candles; else they are polled.
    tells_time: whether it can be asked for its time; else the time is read from `Date` and rows.
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
        """What proves that the venue has no candle."""
        return Emptiness(self.late_s)

    def weight(self, kind: Kind, market: str | None = None, rows: int = 0) -> float:
        """What a request weighs. rows: candles of the answer."""
        if kind is not Kind.ROWS:
            return self.others.get(kind, 1.0)
        return self.rows.get(market or "", 1.0) + (rows // self.rows_per_weight if self.rows_per_weight else 0.0)

    def request_s(self, market: str, rate_limit_s: float | None = None) -> float | None:
        """The shortest time between two requests for few candles, in seconds. rate_limit_s: ccxt's, once it is known.
        None when nothing is known."""
        unit_s = self.rate_limit_s if rate_limit_s is None else rate_limit_s
        if not unit_s:
            return None
        return unit_s * self.weight(Kind.ROWS, market) / (PACED_SHARE if self.paced else 1.0)

    def oldest(self, series: SeriesId, now_s: int) -> int | None:
        """The oldest open time that the venue still has of the series; None where it has all. `now_s`: its time."""
        depth, frame = self.depth.get(series.market), series.timeframe
        if depth is None:
            return None
        return max(0, frame.shift(frame.floor(now_s), DEPTH_SPARE - depth))

    def depth_sentence(self, series: SeriesId) -> str:
        """Why candles before `oldest` cannot be had."""
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
        # Futures were seen to answer with 200 rows where ccxt says 500.
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
            # Reported are some ten seconds to a minute and a half.
            late_s=180.0,
        ),
        Venue("bitget", 0.050, _everywhere(1.0), quiet=Quiet.FLAT),
        Venue("krakenfutures", 0.600, {"futures": 1.0}, quiet=Quiet.FLAT, pushes=False, tells_time=False),
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

    def too_many(self, series: int, frame: Timeframe) -> str:
        """A sentence about so many series of `frame` that do not fit."""
        needs = f"{self.needs(frame):.3g}"
        return (
            f"{self.venue.name} allows about {self.per_minute:.0f} requests for candles a minute, and a series of "
            f"{frame} takes {needs}: {counted(self.fit(frame), 'series', 'series')} fit, and {series} are too many"
        )

    def load(self, frames: Iterable[Timeframe]) -> float:
        """The share that these series take of what may be taken: above 1 they do not fit."""
        return sum(map(self.needs, frames)) / (FIT_SHARE * self.per_minute)


def polling(of: Venue, market: str, rate_limit_s: float | None = None) -> Polling | None:
    """What following series costs on that market. `rate_limit_s`: what ccxt says, None where it was not asked yet.
    None when nothing is known."""
    request_s = of.request_s(market, rate_limit_s)
    return None if request_s is None else Polling(of, request_s)

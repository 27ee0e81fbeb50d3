"""FollowTimings, AuditLimits: waits, intervals and limits of ingest that no flag sets. Seconds are monotonic, unless
said otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.exchanges.reach import USUAL_SILENCE, SilenceTimings

# Backoff of asking REST for an overdue candle, after answers without it.
FRUITLESS = Backoff(initial_s=1.0, most_s=300.0)
# Backoff of subscribing a stale stream again.
RESUBSCRIBE = Backoff(initial_s=15.0, most_s=900.0)


@dataclass(frozen=True, slots=True)
class FollowTimings:
    """The timings of followed series.

    tick_s: interval of checks of all jobs.
    silence: what silence of a market means.
    clock_age_s: age of the newest stamp of a stream at which the exchange is asked for its time.
    attach_wait_s: longest time that history waits for the acknowledgement of the stream.
    fruitless: backoff of asking REST for an overdue candle, after answers without it.
    in_flight_s: time after REST shows a candle until the stream counts as stale: its frame may be in flight.
    resubscribe: backoff of subscribing a stale stream again.
    listings_age_s: poll interval of the lists of symbols while no symbol is suspect or delisted.
    listings_pause_s: shortest time between two polls of the lists.
    suspect_listings_age_s: poll interval of the lists while a symbol is suspect or delisted. Two lists without the
        symbol, at least this far apart, prove that the symbol is delisted.
    """

    tick_s: float = 0.5
    silence: SilenceTimings = USUAL_SILENCE
    clock_age_s: float = 5.0
    attach_wait_s: float = 5.0
    fruitless: Backoff = FRUITLESS
    in_flight_s: float = 2.0
    resubscribe: Backoff = RESUBSCRIBE
    listings_age_s: float = 3600.0
    listings_pause_s: float = 5.0
    suspect_listings_age_s: float = 60.0


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """Which candles an audit requests, and how often.

    candles: of one audit. Futures pages of up to 100 rows have the least weight; two further rows prove the newest.
    age_s: youngest candle of an audit, in seconds of the exchange after its open: REST may lag behind the stream.
    again_s: shortest time between two audits of a series.
    """

    candles: int = 97
    age_s: int = 120
    again_s: float = 60.0


USUAL_TIMINGS = FollowTimings()
USUAL_AUDIT = AuditLimits()

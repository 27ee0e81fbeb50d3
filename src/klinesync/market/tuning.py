"""Tuning: the limits and timings of all rooms that no flag sets."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.exchanges.binance.timings import USUAL_REST, USUAL_STREAMS, RestTimings, StreamTimings
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.pending import USUAL_RETRIES, RetryPolicy
from klinesync.ingest.timings import USUAL_AUDIT, USUAL_TIMINGS, AuditLimits, FollowTimings
from klinesync.market.limits import USUAL_BODIES, USUAL_CONNECTIONS, BodyLimits, ConnectionLimits
from klinesync.market_data.exchange_time import CLOCK_AGE_S
from klinesync.market_data.known_series import USUAL_KNOWN, KnownLimits
from klinesync.market_data.retention import USUAL_TRIMMING, Trimming
from klinesync.market_data.startup_sync import RETRY
from klinesync.market_data.status_service import MAX_STREAMS
from klinesync.market_data.store_healer import USUAL_HEALING, HealTimings
from klinesync.market_data.store_scrub import USUAL_SCRUB, ScrubLimits
from klinesync.market_data.top_markets import USUAL_TOP, TopLimits
from klinesync.pipelines.ledger_step import RETRY as LEDGER_RETRY
from klinesync.ws.outbox import USUAL_CLIENTS, ClientLimits

# Interval of checks of the store, in seconds.
STORE_PROBE_S = 5.0
# Seconds for which the metrics reuse measurements of the store, because measuring visits every series.
STORE_FACTS_TTL_S = 10.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """The service runs with the defaults; a test or an embedding program may pass others.

    follow, audit: followed series.
    retries: when history that could not be read is requested again.
    history: limits of reading history.
    binance_streams, binance_rest: the clients of Binance. Other exchanges bring their own entries.
    clients: WebSocket clients.
    connections, bodies: connections to the server, and bodies of requests.
    top_markets: the most traded symbols.
    trimming: retention.
    scrub, healing: reading all of the store, and healing what is damaged.
    known: requests whether an exchange lists a series.
    ledger_retry: backoff before a ledger that could not be advanced is tried again.
    startup_retry: backoff of a series of the whitelist that cannot be followed.
    clock_age_s: age of the newest stamp at which an exchange has to be asked for its time before a tail is judged.
    status_streams: most open event streams of the status.
    store_probe_s: interval of checks of the store.
    store_facts_ttl_s: seconds for which the metrics reuse measurements of the store.
    """

    follow: FollowTimings = USUAL_TIMINGS
    audit: AuditLimits = USUAL_AUDIT
    retries: RetryPolicy = USUAL_RETRIES
    history: HistoryLimits = USUAL_LIMITS
    binance_streams: StreamTimings = USUAL_STREAMS
    binance_rest: RestTimings = USUAL_REST
    clients: ClientLimits = USUAL_CLIENTS
    connections: ConnectionLimits = USUAL_CONNECTIONS
    bodies: BodyLimits = USUAL_BODIES
    top_markets: TopLimits = USUAL_TOP
    trimming: Trimming = USUAL_TRIMMING
    scrub: ScrubLimits = USUAL_SCRUB
    healing: HealTimings = USUAL_HEALING
    known: KnownLimits = USUAL_KNOWN
    ledger_retry: Backoff = LEDGER_RETRY
    startup_retry: Backoff = RETRY
    clock_age_s: float = CLOCK_AGE_S
    status_streams: int = MAX_STREAMS
    store_probe_s: float = STORE_PROBE_S
    store_facts_ttl_s: float = STORE_FACTS_TTL_S


USUAL_TUNING = Tuning()

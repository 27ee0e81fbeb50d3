"""The status of the whole service. Pure: facts of its parts in, a status with a reason out.

`status` decides the colour of every lamp. A part with a problem hands over a value (`MarketFacts.clocks_differ`,
`StoreFacts.damaged`, `StatusFacts.restarts` …) and needs no code here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from klinesync.core.dates import date_text
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import NO_ANSWER, MarketContact, StreamStatus
from klinesync.market_data.health import Status

# Seconds for which the restart of a part after a defect is reported.
RESTART_COUNTS_S = 300.0
# Seconds without a frame and without a connection after which the handshakes of a market count as failing.
HANDSHAKES_FAIL_AFTER_S = 5.0

ExchangeState = Literal["live", "degraded", "unreachable", "idle"]
StatusReason = Literal[
    "store_unavailable",
    "exchange_refuses",
    "exchange_unreachable",
    "store_damaged",
    "series_red",
    "handshakes_fail",
    "stream_reconnecting",
    "stream_stale",
    "stream_rest_fallback",
    "clocks_differ",
    "part_restarted",
    "series_yellow",
    "ingest_off",
    "idle",
    "live",
]
# The first reason that applies is reported.
STATUS: dict[StatusReason, Status] = {
    "store_unavailable": "red",
    "exchange_refuses": "red",
    "exchange_unreachable": "red",
    "store_damaged": "red",
    "series_red": "red",
    "handshakes_fail": "yellow",
    "stream_reconnecting": "yellow",
    "stream_stale": "yellow",
    "stream_rest_fallback": "yellow",
    "clocks_differ": "yellow",
    "part_restarted": "yellow",
    "series_yellow": "yellow",
    "ingest_off": "green",
    "idle": "green",
    "live": "green",
}
_ORDER = {reason: place for place, reason in enumerate(STATUS)}


@dataclass(frozen=True, slots=True)
class RestFacts:
    """REST of a market. `weight_*`: in the exchange's minute; `banned_until`: UTC seconds, while the exchange refuses
    requests."""

    weight_used: int
    weight_limit: int
    banned_until: int | None = None


@dataclass(frozen=True, slots=True)
class MarketFacts:
    """The facts of a market of an exchange.

    exchange: name of the exchange.
    contact: to the market.
    rest: the use of its REST; None, as by default: not counted, or no request yet.
    clocks_differ: a sentence while the exchange's clocks differ from each other; None, as by default: they agree.
    """

    exchange: str
    contact: MarketContact
    rest: RestFacts | None = None
    clocks_differ: str | None = None


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """The reading of all of the store that finds damage. `progress_pct`: of the one in progress, 0 … 100; None: there
    is none. `started_time`, `finished_time`: UTC seconds of the newest start and end; None before the first."""

    progress_pct: float | None = None
    started_time: int | None = None
    finished_time: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The facts of the store.

    error: a sentence while the store does not answer or cannot be written; None otherwise.
    damaged: a sentence while a part of the store is damaged; None otherwise.
    queued_candles: number of closed candles that wait for the writer.
    scrub: the reading of all of the store.
    """

    error: str | None = None
    damaged: str | None = None
    queued_candles: int = 0
    scrub: ScrubStatus = ScrubStatus()


@dataclass(frozen=True, slots=True)
class Restart:
    """A part that was restarted after a defect: its name, and how long ago, in seconds."""

    part: str
    ago_s: float


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """The facts of the service.

    now_time: UTC seconds.
    version: of the program.
    ingest: whether the flags allow any ingest.
    markets: of every exchange in use.
    series: the health of each followed series; None while the store does not answer.
    store: of the store.
    restarts: parts that were restarted after a defect; none by default.
    """

    now_time: int
    version: str
    ingest: bool
    markets: Sequence[MarketFacts]
    series: Sequence[Status] | None
    store: StoreFacts
    restarts: Sequence[Restart] = ()


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """Followed streams of a market, by state. `subscribed`: acknowledged, without a frame yet (a quiet series)."""

    live: int
    subscribed: int
    stale: int
    rest_fallback: int
    reconnecting: int
    delisted: int


@dataclass(frozen=True, slots=True)
class RestUse:
    """Request weight of the exchange's minute, and the end (UTC seconds) of a ban of requests."""

    weight_used: int | None
    weight_limit: int | None
    banned_until: int | None


@dataclass(frozen=True, slots=True)
class MarketStatus:
    """One market of an exchange. `since`: when its state began; `last_frame_at`: the newest frame of any stream (UTC
    seconds of the exchange); `detail`: a sentence where there is something to say."""

    exchange: str
    market: str
    state: ExchangeState
    since: int | None
    last_frame_at: int | None
    detail: str | None
    streams: StreamCounts
    rest: RestUse


@dataclass(frozen=True, slots=True)
class SeriesCounts:
    """Number of followed series, by the status of their health."""

    followed: int
    green: int
    yellow: int
    red: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store: `ok` while it answers, can be written and is undamaged; closed candles that wait for the writer; and
    the reading of all of it that finds damage."""

    ok: bool
    detail: str | None
    queued_candles: int
    scrub: ScrubStatus


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The whole service. `detail`: a sentence that explains `status_reason`."""

    status: Status
    status_reason: StatusReason
    detail: str
    now_time: int
    version: str
    exchanges: tuple[MarketStatus, ...]
    series: SeriesCounts
    store: StoreStatus


@dataclass(frozen=True, slots=True)
class _Trouble:
    """A reason that applies, and its sentence."""

    reason: StatusReason
    detail: str


def status(facts: StatusFacts) -> ServiceStatus:
    """The status of the service."""
    troubles = list(_of_store(facts.store))
    markets = []
    for market in facts.markets:
        rest = _rest_use(market, facts.now_time)
        own = list(_of_market(market, rest))
        markets.append(_market_status(market, rest, own))
        name = f"{market.exchange} {market.contact.market}"
        troubles += [_Trouble(trouble.reason, f"{name}: {trouble.detail}") for trouble in own]
    counts = Counter(facts.series or ())
    followed = sum(len(market.contact.streams) for market in facts.markets)
    if counts["red"]:
        troubles.append(_Trouble("series_red", f"{counts['red']} of {followed} followed series are red"))
    if counts["yellow"]:
        troubles.append(_Trouble("series_yellow", f"{counts['yellow']} of {followed} followed series are yellow"))
    restarted = sorted({restart.part for restart in facts.restarts if restart.ago_s < RESTART_COUNTS_S})
    if restarted:
        troubles.append(_Trouble("part_restarted", f"restarted after a defect: {', '.join(restarted)}"))
    worst = _worst(troubles) or _without_trouble(facts, followed)
    store = facts.store
    return ServiceStatus(
        status=STATUS[worst.reason],
        status_reason=worst.reason,
        detail=worst.detail,
        now_time=facts.now_time,
        version=facts.version,
        exchanges=tuple(markets),
        series=SeriesCounts(followed, counts["green"], counts["yellow"], counts["red"]),
        store=StoreStatus(
            ok=store.error is None and store.damaged is None,
            detail=store.error or store.damaged,
            queued_candles=store.queued_candles,
            scrub=store.scrub,
        ),
    )


def _worst(troubles: Sequence[_Trouble]) -> _Trouble | None:
    return min(troubles, key=lambda trouble: _ORDER[trouble.reason], default=None)


def _without_trouble(facts: StatusFacts, followed: int) -> _Trouble:
    if followed:
        return _Trouble("live", "all followed series are up to date")
    if not facts.ingest:
        return _Trouble("ingest_off", "ingest is off: the store is served as it is")
    return _Trouble("idle", "no series is followed at present")


def _of_store(store: StoreFacts) -> Iterable[_Trouble]:
    if store.error is not None:
        yield _Trouble("store_unavailable", store.error)
    if store.damaged is not None:
        yield _Trouble("store_damaged", store.damaged)


def _rest_use(market: MarketFacts, now_time: int) -> RestUse:
    """The use of REST. `banned_until` is known even if requests are not counted."""
    if market.rest is not None:
        return RestUse(market.rest.weight_used, market.rest.weight_limit, market.rest.banned_until)
    cooldown_s = market.contact.cooldown_s
    return RestUse(None, None, now_time + ceil(cooldown_s) if cooldown_s > 0.0 else None)


def _of_market(market: MarketFacts, rest: RestUse) -> Iterable[_Trouble]:
    """The troubles of a market; none for a market without a followed symbol that is traded."""
    contact, counts = market.contact, _counts(market.contact)
    traded = len(contact.streams) - counts.delisted
    if not traded:
        return
    if contact.refused is not None:
        yield _Trouble("exchange_refuses", f"its REST refuses this service: {contact.refused}")
    if contact.unreachable:
        why = contact.failure or NO_ANSWER
        yield _Trouble("exchange_unreachable", f"neither frames nor answers come: {_with_ban(rest, why)}")
    waits_s = HANDSHAKES_FAIL_AFTER_S if contact.silent_s is None else contact.silent_s
    if not contact.connected and contact.answers and counts.reconnecting and waits_s >= HANDSHAKES_FAIL_AFTER_S:
        why = _first_detail(contact.streams, StreamState.RECONNECTING)
        yield _Trouble("handshakes_fail", f"no connection for streams can be opened, while REST answers{why}")
    if counts.reconnecting:
        yield _Trouble("stream_reconnecting", f"{counts.reconnecting} of {traded} streams are being connected")
    if counts.stale:
        yield _Trouble("stream_stale", f"{counts.stale} of {traded} streams withhold what REST shows")
    if counts.rest_fallback:
        why = _first_detail(contact.streams, StreamState.REST_FALLBACK)
        yield _Trouble("stream_rest_fallback", f"REST stands in for {counts.rest_fallback} of {traded} streams{why}")
    if market.clocks_differ is not None:
        yield _Trouble("clocks_differ", market.clocks_differ)


def _with_ban(rest: RestUse, why: str) -> str:
    return why if rest.banned_until is None else f"{why}; REST is not asked before {date_text(rest.banned_until)}"


def _market_status(market: MarketFacts, rest: RestUse, troubles: Sequence[_Trouble]) -> MarketStatus:
    contact = market.contact
    counts = _counts(contact)
    worst = _worst(troubles)
    frames = [stream.last_frame_at for stream in contact.streams if stream.last_frame_at is not None]
    state = _state(contact, counts, worst)
    return MarketStatus(
        exchange=market.exchange,
        market=contact.market,
        state=state,
        since=_since(contact, state),
        last_frame_at=max(frames, default=None),
        detail=_detail(contact, counts) if worst is None else worst.detail,
        streams=counts,
        rest=rest,
    )


def _state(contact: MarketContact, counts: StreamCounts, worst: _Trouble | None) -> ExchangeState:
    if not len(contact.streams) - counts.delisted:
        return "idle"
    # An exchange that refuses REST while its frames still come is reachable.
    if contact.unreachable or (contact.refused is not None and not counts.live):
        return "unreachable"
    return "live" if worst is None else "degraded"


def _since(contact: MarketContact, state: ExchangeState) -> int | None:
    """When the state began: with the first stream that failed, or the last stream that recovered."""
    if state == "unreachable" and contact.unreachable_since is not None:
        return contact.unreachable_since
    good = (StreamState.LIVE, StreamState.SUBSCRIBED, StreamState.DELISTED)
    if state == "live":
        return max((stream.since for stream in contact.streams if stream.since is not None), default=None)
    failed = (stream.since for stream in contact.streams if stream.since is not None and stream.state not in good)
    return min(failed, default=None)


def _detail(contact: MarketContact, counts: StreamCounts) -> str | None:
    """A sentence about a market without trouble; None when there is nothing to say."""
    if contact.streams and counts.delisted == len(contact.streams):
        return "no followed symbol is traded"
    if not contact.streams:
        return "nothing of it is followed"
    if counts.subscribed and not counts.live:
        return "quiet: the exchange answers, and its streams have brought nothing yet"
    if contact.final_margin_seen:
        return f"its rows were seen to change late: a candle is closed {contact.final_margin_s:g} s after its end"
    return None


def _counts(contact: MarketContact) -> StreamCounts:
    counts = Counter(stream.state for stream in contact.streams)
    return StreamCounts(
        live=counts[StreamState.LIVE],
        subscribed=counts[StreamState.SUBSCRIBED],
        stale=counts[StreamState.STALE],
        rest_fallback=counts[StreamState.REST_FALLBACK],
        reconnecting=counts[StreamState.RECONNECTING],
        delisted=counts[StreamState.DELISTED],
    )


def _first_detail(streams: Iterable[StreamStatus], state: StreamState) -> str:
    """The detail of the first stream in that state, as the end of a sentence; empty without a detail."""
    return next((f": {stream.detail}" for stream in streams if stream.state is state and stream.detail), "")

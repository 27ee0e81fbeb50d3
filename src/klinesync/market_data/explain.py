"""ExplainService: why is this candle (not) here? One series: its stream, its needs, its gaps, its newest events.

Everything is known already: the exchange is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from klinesync.core.errors import UnknownSeries
from klinesync.core.events import SeriesEvent
from klinesync.core.gaps import SETTLED, Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, widened, without
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.history.queue import NeedStatus
from klinesync.history.series_events import SeriesEvents
from klinesync.history.service import HistoryService
from klinesync.market_data.health import Health
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.listings import stored_listings
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database

# Gaps of an answer, the newest of them.
MAX_GAPS_TOLD = 500
# Needs of an answer, the first that are asked for.
MAX_NEEDS_TOLD = 500


@dataclass(frozen=True, slots=True)
class NeedFacts:
    """Candles that are missing and asked for; open times in UTC seconds, the end exclusive.

    series_id: of the candles.
    start_time, end_time: the span.
    reason: why they are missing: `tail`, `older`, `gap`, `native`, `requested`.
    asked_by: who wants them.
    urgency: how soon they are asked for: `repair`, `read`, `sweep`, `fill`, `deep`.
    attempts: how often they were asked for.
    next_try_at_ms: when they are asked for (again), UTC milliseconds; None: they are being read now.
    last_answer: what came of the newest attempt, a sentence; None before the first one.
    """

    series_id: str
    start_time: int
    end_time: int
    reason: str
    asked_by: str
    urgency: str
    attempts: int
    next_try_at_ms: int | None
    last_answer: str | None


@dataclass(frozen=True, slots=True)
class GapFacts:
    """A hole between stored candles. `state`: as in the gap ledger; what is unknown and soon read is `healing`. `proof`
    and `since`, UTC seconds, are of gaps that are confirmed empty or lost."""

    start_time: int
    end_time: int
    state: GapState
    missing_candles: int
    proof: str | None
    since: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. Times are UTC seconds, by the exchange's clock where that is known.

    health: how well the series is, with the stream of its base.
    base: the series that is ingested for it.
    first_time: the first stored open time; None when nothing is stored.
    needs: the first that are asked for, of this series and its base; `need_count`: of how many.
    gaps: the newest gaps, ascending; `gap_count`: of how many.
    events: the newest events of the series, its base and its market, in the order in which they happened last.
    """

    series: SeriesId
    base: SeriesId
    health: Health
    first_time: int | None
    needs: Sequence[NeedFacts]
    need_count: int
    gaps: Sequence[GapFacts]
    gap_count: int
    events: Sequence[SeriesEvent]


@dataclass(frozen=True, slots=True)
class _Stored:
    span: Span | None
    gaps: list[Gap]
    base_span: Span | None
    listed: bool


class ExplainService:
    """Explains series.

    database: the store.
    health: judges the series.
    base_of: the series that is ingested for a derived one; any other series itself.
    stream: the state of a base series' stream.
    history: has the needs.
    events: what happened to series.
    refusal: why the exchange has no candles of the timeframe of a base series, as a sentence; None when it may have.
    monotonic: monotonic seconds, which needs go by.
    """

    def __init__(
        self,
        *,
        database: Database,
        health: HealthService,
        base_of: Callable[[SeriesId], SeriesId],
        stream: Callable[[SeriesId], StreamStatus],
        history: HistoryService,
        events: SeriesEvents,
        refusal: Callable[[SeriesId], str | None],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._health = health
        self._base_of = base_of
        self._stream = stream
        self._history = history
        self._events = events
        self._refusal = refusal
        self._monotonic = monotonic

    async def explain(self, series: SeriesId) -> Explanation:
        """All that is known of `series`. Raises `UnknownSeries` when nothing is, and `StoreError`."""
        base = self._base_of(series)
        pair = tuple(dict.fromkeys((series, base)))
        known = (
            self._stream(base).state is not StreamState.OFF
            or any(self._events.knows(one) for one in pair)
            or any(self._history.needs_of(one) for one in pair)
        )

        refusal = self._refusal(base)

        def look(store: CandleStore) -> _Stored:
            stored = _Stored(store.span(series), store.gaps(series), store.span(base), listed=True)
            if known or stored.span is not None or stored.base_span is not None:
                return stored
            listings = stored_listings(store, series.exchange, series.market)
            listed = refusal is None and any(listing.symbol == series.symbol for listing in listings)
            return _Stored(None, [], None, listed)

        stored = await self._database.read(look)
        if not stored.listed:
            raise UnknownSeries(
                str(series),
                refusal
                or "nothing of it is stored, nobody follows it, and the lists of symbols that were kept do not have "
                "it; read its candles to have its exchange asked",
            )
        health = self._health.judge_any(series, stored.span, stored.gaps, stored.base_span)
        statuses = [status for one in pair for status in self._history.needs_of(one)]
        needs = need_facts(statuses, self._monotonic(), health.now_time)
        gaps = gap_facts(series, stored.gaps, self._history.working_on(base))
        return Explanation(
            series=series,
            base=base,
            health=health,
            first_time=None if stored.span is None else stored.span.start,
            needs=needs[:MAX_NEEDS_TOLD],
            need_count=len(needs),
            gaps=gaps[max(0, len(gaps) - MAX_GAPS_TOLD) :],
            gap_count=len(gaps),
            events=self._events.of(*pair),
        )


def need_facts(statuses: Iterable[NeedStatus], now_s: float, now_time: int) -> list[NeedFacts]:
    """Needs as they are told: first those that are being read, then in the order in which they are asked for.

    statuses: the needs of a series and its base.
    now_s: the present moment, monotonic seconds.
    now_time: the same in UTC seconds of the exchange.
    """
    facts = []
    for status in sorted(statuses, key=_next_try_s):
        need = status.need
        wait_s = None if status.next_try_s is None else max(0.0, status.next_try_s - now_s)
        facts.append(
            NeedFacts(
                series_id=str(need.series),
                start_time=need.span.start,
                end_time=need.span.end,
                reason=need.reason,
                asked_by=need.asked_by,
                urgency=need.urgency.name.lower(),
                attempts=status.attempts,
                next_try_at_ms=None if wait_s is None else now_time * 1000 + int(wait_s * 1000),
                last_answer=status.last_answer,
            )
        )
    return facts


def _next_try_s(status: NeedStatus) -> float:
    return float("-inf") if status.next_try_s is None else status.next_try_s


def gap_facts(series: SeriesId, ledger: Sequence[Gap], at_work: Sequence[Span]) -> list[GapFacts]:
    """The gaps of a series as they are told.

    series: whose gaps.
    ledger: its gap ledger.
    at_work: spans of its base that are being read, or soon will be, ascending and disjoint.
    """
    frame = series.timeframe
    healed = widened(frame, at_work)
    facts = []
    for gap in ledger:
        state = gap.state
        if state not in SETTLED:
            state = GapState.UNKNOWN if without([gap.span], healed) else GapState.HEALING
        missing = frame.count(gap.start, gap.end)
        facts.append(GapFacts(gap.start, gap.end, state, missing, gap.proof, gap.time))
    return facts

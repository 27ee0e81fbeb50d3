"""ExplainService: why is this candle (not) here? The stream, the needs, the gaps and the newest events of a series.

The exchange is never asked.
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

# Most gaps of an answer, the newest.
MAX_GAPS = 500
# Most needs of an answer, by the time of their next attempt.
MAX_NEEDS = 500


@dataclass(frozen=True, slots=True)
class NeedFacts:
    """Missing candles that are requested. Times are open times in UTC seconds, the end exclusive.

    series_id: of the candles.
    start_time, end_time: the span.
    reason: why the candles are missing: `tail`, `older`, `gap`, `native`, `requested`.
    asked_by: who needs them.
    urgency: of the request: `repair`, `read`, `sweep`, `fill`, `deep`.
    attempts: requests so far.
    next_try_at_ms: time of the next attempt, UTC milliseconds; None: in flight.
    last_answer: the result of the newest attempt, a sentence; None before the first.
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
    """A gap between stored candles. `state`: as in the gap ledger, or `healing` when the gap is being read or waits.
    `proof` and `since` (UTC seconds): of gaps that are confirmed empty or lost."""

    start_time: int
    end_time: int
    state: GapState
    missing_candles: int
    proof: str | None
    since: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a series. Times are UTC seconds, by the exchange's clock if it is known.

    series: the series.
    base: the series that is ingested for it.
    health: of the series, with the stream of its base.
    first_time: the first stored open time; None when nothing is stored.
    needs: of the series and its base, by the time of their next attempt; `need_count`: number of all needs.
    gaps: the newest gaps, ascending; `gap_count`: number of all gaps.
    events: the newest events of the series, its base and its market, oldest first.
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
    base_of: the base of a derived series; another series itself.
    stream: status of a base series' stream.
    history: has the needs.
    events: has the events.
    refusal: why the exchange has no candles of the timeframe of a base series, a sentence; None when it may have some.
    hint: the end of that sentence: how to have a series computed; empty when that is impossible.
    monotonic: monotonic seconds.
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
        hint: Callable[[SeriesId], str],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._health = health
        self._base_of = base_of
        self._stream = stream
        self._history = history
        self._events = events
        self._refusal = refusal
        self._hint = hint
        self._monotonic = monotonic

    async def explain(self, series: SeriesId) -> Explanation:
        """Explain a series. Raises `UnknownSeries` when nothing is known of the series, and `StoreError`."""
        base = self._base_of(series)
        pair = tuple(dict.fromkeys((series, base)))
        known = self._stream(base).state is not StreamState.OFF or any(
            self._events.knows(member) or self._history.needs_of(member) for member in pair
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
                (refusal and refusal + self._hint(series))
                or "it is neither stored nor followed, and no cached list of symbols has it; read its candles once, so "
                "that its exchange is asked",
            )
        health = self._health.judge(series, stored.span, stored.gaps, stored.base_span)
        statuses = [status for member in pair for status in self._history.needs_of(member)]
        needs = need_facts(statuses, self._monotonic(), health.now_time)
        gaps = gap_facts(series, stored.gaps, self._history.working_on(base))
        return Explanation(
            series=series,
            base=base,
            health=health,
            first_time=None if stored.span is None else stored.span.start,
            needs=needs[:MAX_NEEDS],
            need_count=len(needs),
            gaps=gaps[max(0, len(gaps) - MAX_GAPS) :],
            gap_count=len(gaps),
            events=self._events.of(*pair),
        )


def need_facts(statuses: Iterable[NeedStatus], now_s: float, now_time: int) -> list[NeedFacts]:
    """The facts of needs, by the time of their next attempt; needs in flight first.

    statuses: the needs of a series and its base.
    now_s: monotonic seconds.
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


def gap_facts(series: SeriesId, ledger: Sequence[Gap], working_on: Sequence[Span]) -> list[GapFacts]:
    """The facts of the gaps of a series.

    series: whose gaps.
    ledger: its gap ledger.
    working_on: spans of its base that are being read or wait, ascending and disjoint.
    """
    frame = series.timeframe
    healing = widened(frame, working_on)
    facts = []
    for gap in ledger:
        state = gap.state
        if state not in SETTLED:
            state = GapState.UNKNOWN if without([gap.span], healing) else GapState.HEALING
        missing = frame.count(gap.start, gap.end)
        facts.append(GapFacts(gap.start, gap.end, state, missing, gap.proof, gap.time))
    return facts

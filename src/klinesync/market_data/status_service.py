"""StatusService: gathers the facts of the whole service, and judges its status; once, or as a stream of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

from klinesync import __version__
from klinesync.core.candle import Applied
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.contact import MarketContact
from klinesync.exchanges.exchange import Exchange
from klinesync.market_data.event_streams import EventStreams
from klinesync.market_data.health import Status
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.status import (
    MarketFacts,
    Restart,
    RestFacts,
    ScrubStatus,
    ServiceStatus,
    StatusFacts,
    StoreFacts,
    status,
)
from klinesync.market_data.store_scrub import ScrubProgress
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock, Monotonic
from klinesync.runtime.single_flight import SingleFlight
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Database

# Timeout of a read of the store, in seconds.
STORE_ANSWER_S = 5.0
# Shortest time between two events of a stream, in seconds.
EVENT_EVERY_S = 1.0
# Longest time between two events of a stream, in seconds, so that ages (`last_frame_at`) are at most that old.
REFRESH_S = 15.0
# Most open event streams of the status.
MAX_STREAMS = 100

# The stored span of a series, and the ledger of its gaps.
Stored = tuple[Span | None, list[Gap]]


def market_facts(
    contacts: Callable[[], Sequence[tuple[str, MarketContact]]], exchanges: Callable[[], Mapping[str, Exchange]]
) -> list[MarketFacts]:
    """The facts of each market of each exchange.

    contacts: the contact to each market, with the exchange's name.
    exchanges: the exchanges in use, by name.
    """
    by_name = exchanges()
    facts = []
    for name, contact in contacts():
        rest = by_name[name].rest().get(contact.market)
        use = None
        if rest is not None and rest.used is not None and rest.limit is not None:
            banned_until = None if rest.blocked_until_ms is None else rest.blocked_until_ms // 1000
            use = RestFacts(rest.used, rest.limit, banned_until)
        facts.append(MarketFacts(name, contact, use, clocks_differ=contact.clocks_differ))
    return facts


def restarts(bulkheads: Bulkheads, clock: Clock) -> list[Restart]:
    """The parts that were restarted after a defect."""
    return [Restart(part, ago_s) for part, ago_s in bulkheads.ago_s(clock.monotonic_s()).items()]


class StatusService:
    """The status of the service.

    database: the store.
    health: judges the series.
    followed: the base series that are followed.
    markets: the facts of each market of each exchange.
    queued_candles: number of closed candles that wait for the writer.
    now_s: UTC seconds.
    ingest: whether the flags allow any ingest.
    damaged: a sentence about damaged parts of the store; None, as by default: there are none.
    restarts: parts that were restarted after a defect; none by default.
    scrub: progress of the reading of all of the store; None (the default): there is none.
    monotonic: monotonic seconds.
    max_streams: most open event streams.
    """

    def __init__(
        self,
        *,
        database: Database,
        health: HealthService,
        followed: Callable[[], Sequence[SeriesId]],
        markets: Callable[[], Sequence[MarketFacts]],
        queued_candles: Callable[[], int],
        now_s: Callable[[], float],
        ingest: bool,
        damaged: Callable[[], str | None] = lambda: None,
        restarts: Callable[[], Sequence[Restart]] = lambda: (),
        scrub: ScrubProgress | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        self._monotonic = monotonic
        self._database = database
        self._health = health
        self._followed = followed
        self._markets = markets
        self._queued_candles = queued_candles
        self._now_s = now_s
        self._ingest = ingest
        self._damaged = damaged
        self._restarts = restarts
        self._scrub = scrub or ScrubProgress()
        # Cache of the stored spans and gaps of followed series, until a write changes them.
        self._stored: dict[SeriesId, Stored] = {}
        self._in_flight: SingleFlight[ServiceStatus] = SingleFlight()
        self.streams = EventStreams("the status", max_streams, REFRESH_S)

    def changed(self, series: SeriesId) -> None:
        """Drop the cached span of a series, which a write has changed."""
        self._stored.pop(series, None)

    def published(self, applied: Applied) -> None:
        """See `Subscriber`."""
        self.changed(applied.series)

    async def status(self) -> ServiceStatus:
        """The present status. Never raises: a store that does not answer is a status too."""
        return await self._in_flight.get(self._judge_service)

    async def follow(self) -> AsyncGenerator[ServiceStatus, None]:
        """The status at once, then after each change, at most once in `EVENT_EVERY_S`, at least once in `REFRESH_S`.
        Ends with `streams`."""
        sent, sent_s = None, float("-inf")
        while not self.streams.ended:
            answer = await self.status()
            lasting = _without_ages(answer)
            if lasting != sent or self._monotonic() - sent_s >= REFRESH_S:
                sent, sent_s = lasting, self._monotonic()
                yield answer
            await self.streams.pause(EVENT_EVERY_S)

    async def _judge_service(self) -> ServiceStatus:
        error: str | None = None
        series: list[Status] | None = None
        try:
            async with asyncio.timeout(STORE_ANSWER_S):
                series = await self._judge_series()
        except TimeoutError:
            error = f"the store does not answer within {STORE_ANSWER_S:g} s"
        except StoreError as problem:
            error = f"the store cannot be read: {problem}"
        if error is None and (failed := self._database.write_error) is not None:
            error = f"the store cannot be written: {failed}"
        return status(
            StatusFacts(
                now_time=int(self._now_s()),
                version=__version__,
                ingest=self._ingest,
                markets=self._markets(),
                series=series,
                store=StoreFacts(error, self._damaged(), self._queued_candles(), _scrub_status(self._scrub)),
                restarts=self._restarts(),
            )
        )

    async def _judge_series(self) -> list[Status]:
        """The health of each followed series. The store is read in any case, to check that it answers."""
        followed = self._followed()
        for unfollowed in self._stored.keys() - set(followed):
            del self._stored[unfollowed]
        known = dict(self._stored)
        unknown = [series for series in followed if series not in known]

        def look(store: CandleStore) -> dict[SeriesId, Stored]:
            return {series: _stored(store, series) for series in unknown}

        # A placeholder for each read in flight: `changed` removes it, and the result of that read is not cached.
        placeholders: dict[SeriesId, Stored] = {series: (None, []) for series in unknown}
        self._stored.update(placeholders)
        read: dict[SeriesId, Stored] = {}
        try:
            read = await self._database.read(look)
        finally:
            for series, placeholder in placeholders.items():
                if self._stored.get(series) is not placeholder:
                    continue
                # An open gap may be confirmed empty without a write of candles, and is read again next time; so is a
                # series that is damaged.
                settled = series in read and all(gap.state is GapState.CONFIRMED_EMPTY for gap in read[series][1])
                if settled and not self._database.damage.of(series):
                    self._stored[series] = read[series]
                else:
                    del self._stored[series]
        known |= read
        spans = ((series, *known[series]) for series in followed)
        return [self._health.judge(series, span, gaps, base_stored=span).status for series, span, gaps in spans]


def _without_ages(answer: ServiceStatus) -> ServiceStatus:
    """The answer without times, ages and counters, which change all the time."""
    exchanges = (
        replace(market, last_frame_at=None, rest=replace(market.rest, weight_used=None)) for market in answer.exchanges
    )
    store = replace(answer.store, queued_candles=0, scrub=ScrubStatus())
    return replace(answer, now_time=0, exchanges=tuple(exchanges), store=store)


def _stored(store: CandleStore, series: SeriesId) -> Stored:
    """The stored span and the gaps of a series; nothing of a series whose part of the store is damaged, which is on the
    board of damage now."""
    try:
        return store.span(series), store.gaps(series)
    except StoreDamaged:
        return None, []


def _scrub_status(scrub: ScrubProgress) -> ScrubStatus:
    pct = scrub.progress_pct
    return ScrubStatus(None if pct is None else round(pct, 1), scrub.started_time, scrub.finished_time)

"""StatusService: gathers what is known of the service, and has it judged; once, or again and again for followers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from klinesync import __version__
from klinesync.core.candle import Applied
from klinesync.core.errors import StoreError
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.exchanges.contact import MarketContact
from klinesync.exchanges.exchange import Exchange
from klinesync.market_data.health import Status
from klinesync.market_data.health_service import HealthService
from klinesync.market_data.status import (
    MarketFacts,
    Restart,
    RestFacts,
    ServiceStatus,
    StatusFacts,
    StoreFacts,
    status,
)
from klinesync.market_data.top_markets import RateLimited
from klinesync.runtime.bulkheads import Bulkheads
from klinesync.runtime.clock import SYSTEM_CLOCK, Clock, Monotonic
from klinesync.runtime.single_flight import SingleFlight
from klinesync.storage.candles import CandleStore
from klinesync.storage.database import Database

# A store that does not answer a read within this time, in seconds, does not answer.
STORE_ANSWER_S = 5.0
# Shortest time between two events of one stream, in seconds.
EVENT_EVERY_S = 1.0
# Longest time between two events of one stream, in seconds: ages (`last_frame_at`) are never older than that.
REFRESH_S = 15.0
# Most streams of status open at once.
MAX_STREAMS = 100

# The stored span of a series, and the ledger of its gaps.
Stored = tuple[Span | None, list[Gap]]


def market_facts(
    contacts: Callable[[], Sequence[tuple[str, MarketContact]]], exchanges: Callable[[], Mapping[str, Exchange]]
) -> list[MarketFacts]:
    """The facts of each market of each exchange.

    contacts: the newest contact with each market, with the exchange's name.
    exchanges: those that are asked, by name.
    """
    found = exchanges()
    facts = []
    for name, contact in contacts():
        rest = found[name].rest().get(contact.market)
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
    followed: the base series that are followed at present.
    markets: what is known of each market of each exchange; returns at once.
    queued_candles: closed candles that wait for the writer.
    now_s: UTC seconds.
    ingest: whether the service follows anything at all, by its flags.
    damaged: a sentence, while a part of the store is damaged.
    restarts: parts that were restarted after a defect.
    monotonic: our clock.
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
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
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
        # What is stored of a followed series, until a write changes it.
        self._stored: dict[SeriesId, Stored] = {}
        self._looking: SingleFlight[ServiceStatus] = SingleFlight()
        self._streams = 0
        self._ended = asyncio.Event()

    def changed(self, series: SeriesId) -> None:
        """A write has changed the series: what is known of its stored span is read again."""
        self._stored.pop(series, None)

    def published(self, applied: Applied) -> None:
        """See `Subscriber`."""
        self.changed(applied.series)

    async def status(self) -> ServiceStatus:
        """The status now. Never raises: a store that does not answer is a status too."""
        return await self._looking.get(self._look)

    async def follow(self) -> AsyncGenerator[ServiceStatus, None]:
        """The status at once, then whenever it has changed, at most one in `EVENT_EVERY_S`, at least one in
        `REFRESH_S`. Ends with `end`."""
        told, told_s = None, float("-inf")
        while not self._ended.is_set():
            answer = await self.status()
            # Ages and counters go on all the time; what they are of is told with the next change.
            gist = _gist(answer)
            if gist != told or self._monotonic() - told_s >= REFRESH_S:
                told, told_s = gist, self._monotonic()
                yield answer
            try:
                async with asyncio.timeout(EVENT_EVERY_S):
                    await self._ended.wait()
            except TimeoutError:
                pass  # it is time for the next look

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Takes one of the places for streams. Raises `RateLimited` when there is none."""
        if self._streams >= MAX_STREAMS:
            raise RateLimited(f"{MAX_STREAMS} streams of the status are open, which is the most", REFRESH_S)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def end(self) -> None:
        """The service stops: every stream ends."""
        self._ended.set()

    async def _look(self) -> ServiceStatus:
        error: str | None = None
        series: list[Status] | None = None
        try:
            async with asyncio.timeout(STORE_ANSWER_S):
                series = await self._judge()
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
                store=StoreFacts(error, self._damaged(), self._queued_candles()),
                restarts=self._restarts(),
            )
        )

    async def _judge(self) -> list[Status]:
        """The health of each followed series. The store is read in any case, to see that it answers."""
        followed = self._followed()
        for gone in self._stored.keys() - set(followed):
            del self._stored[gone]
        known = dict(self._stored)
        unknown = [series for series in followed if series not in known]

        def look(store: CandleStore) -> dict[SeriesId, Stored]:
            return {series: (store.span(series), store.gaps(series)) for series in unknown}

        # Noted before the read: a write that is published before the read is back takes the note out again.
        notes: dict[SeriesId, Stored] = {series: (None, []) for series in unknown}
        self._stored.update(notes)
        read: dict[SeriesId, Stored] = {}
        try:
            read = await self._database.read(look)
        finally:
            for series, note in notes.items():
                if self._stored.get(series) is not note:
                    continue
                # A hole may be confirmed empty without a write of candles: one that is not settled is read again.
                if series in read and all(gap.state is GapState.CONFIRMED_EMPTY for gap in read[series][1]):
                    self._stored[series] = read[series]
                else:
                    del self._stored[series]
        known |= read
        return [self._health.judge(series, *known[series]).status for series in followed]


def _gist(answer: ServiceStatus) -> ServiceStatus:
    """The answer without what changes all the time: the time, ages, and counters."""
    return replace(
        answer,
        now_time=0,
        exchanges=tuple(
            replace(one, last_frame_at=None, rest=replace(one.rest, weight_used=None)) for one in answer.exchanges
        ),
        store=replace(answer.store, queued_candles=0),
    )

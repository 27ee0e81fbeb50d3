"""RequestedBackfills: history that somebody asked for at length, noted in the store until it is over.

The queue reads it, oldest part first; here stands who waits for it, how far it is, and what is left of it after a
restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from klinesync.core import gaps
from klinesync.core.candle import MAX_TIME
from klinesync.core.errors import StoreError, UnknownSeries
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, candle_count, clipped, hull, without
from klinesync.exchanges.exchange import HistoryWatch
from klinesync.history import pending as policy
from klinesync.history.missing import BACKFILL, Need, Reason
from klinesync.history.pending import Pending
from klinesync.history.pieces import Fetch
from klinesync.history.ports import HistoryPorts
from klinesync.history.queue import HistoryQueue
from klinesync.runtime.clock import Monotonic
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore

log = Log(__name__)

OnProgress = Callable[["BackfillProgress"], None]


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How an explicit backfill of `span` stands: of the `total` candles that it lacked when it began, `elapsed_s` ago,
    so many are still `missing`; so many `candles` were brought. `trouble`: what is in the way, if anything is.

    `lost`: candles of the span that no source gives any more, and `lost_why` as a sentence. `begins`: the first open
    time that there is, where the span begins before it, and the exchange has shown that it has nothing there.
    """

    series: SeriesId
    span: Span
    total: int
    missing: int
    candles: int
    elapsed_s: float
    trouble: str | None = None
    lost: int = 0
    lost_why: str | None = None
    begins: int | None = None

    @property
    def progress_pct(self) -> float:
        """0 … 100."""
        return round(100.0 * (self.total - self.missing) / self.total, 1) if self.total else 100.0

    @property
    def candles_per_s(self) -> float:
        """How fast they came so far."""
        return round(self.candles / max(self.elapsed_s, 1e-3), 1)

    @property
    def left_s(self) -> int | None:
        """About how many seconds it will take; None when that cannot be known."""
        done = self.total - self.missing
        return round(self.elapsed_s * self.missing / done) if done else None


class RequestedBackfills:
    """The explicit backfills of all series.

    ports: the store, where they are noted, and who is told.
    queue: has their needs.
    submit: adds a need to the queue, and wakes who reads.
    """

    def __init__(self, ports: HistoryPorts, queue: HistoryQueue, submit: Callable[[Need], None]) -> None:
        self._ports = ports
        self._queue = queue
        self._submit = submit
        self._watch = ports.deep_watch or ports.watch
        self._deep: dict[SeriesId, _Deep] = {}

    async def backfill(self, series: SeriesId, span: Span, on_progress: OnProgress) -> BackfillProgress:
        """See `HistoryService.backfill`."""
        begun, ask = await self._ask(series, span, on_progress)
        if ask is None:
            return begun
        try:
            return await asyncio.shield(ask.done)
        finally:
            if (deep := self._deep.get(series)) is not None and ask in deep.asks:
                deep.asks.remove(ask)
                self._end_if_over(series, deep)

    async def start(self, series: SeriesId, span: Span) -> BackfillProgress:
        """See `HistoryService.start`."""
        begun, _ = await self._ask(series, span, lambda _: None)
        return begun

    def watch_of(self, fetch: Fetch) -> HistoryWatch | None:
        """The watch of a reading that belongs to explicit backfills alone; None for another."""
        if fetch.series in self._deep and all(pending.requested for pending in fetch.needs):
            return _DeepWatch(self._deep, self._watch)
        return None

    def under_way(self, series: SeriesId) -> bool:
        """Whether the series is being backfilled."""
        return series in self._deep

    async def _ask(self, series: SeriesId, span: Span, on_progress: OnProgress) -> tuple[BackfillProgress, _Ask | None]:
        """How it stands when it begins, and what is to be waited for, if anything is."""
        if not self._ports.covers(series):
            raise UnknownSeries(str(series), f"{series.exchange} {series.market} cannot be asked for history")
        frame = series.timeframe
        stored, ledger = await self._ports.stored(series)
        kept_from = 0 if stored is None else self._ports.kept_from(series, frame.shift(stored.end, -1))
        first = frame.ceil(max(span.start, kept_from, 0))
        end = min(frame.ceil(span.end), frame.floor(int(self._ports.now_s(series))))
        span = Span(first, max(first, end))
        left = gaps.unproven(ledger, stored, span) if span.start < span.end else []
        left, beyond = self._beyond(series, span, left, stored, ledger)
        if not left:
            return beyond.of(BackfillProgress(series, span, 0, 0, 0, 0.0)), None
        await self._mark(series, left, asked=span)
        ask = self._begin(series, span, left, on_progress)
        return ask.progress(series, self._deep[series], 0), ask

    def _beyond(
        self, series: SeriesId, span: Span, missing: Sequence[Span], stored: Span | None, ledger: Sequence[Gap]
    ) -> tuple[list[Span], _Beyond]:
        """What of the `missing` parts of `span` may still be had, and what the others are."""
        frame, reach = series.timeframe, self._ports.reach(series)
        left, why = list(missing), None
        inside = [gap for gap in ledger if gap.state is GapState.LOST and gap.span.overlaps(span)]
        lost = clipped([gap.span for gap in inside], span)
        if inside:
            why = inside[-1].proof
        if reach is not None and (older := clipped(left, Span(0, reach.oldest))):
            lost, why = [*without(older, lost), *lost], reach.sentence
            left = without(left, [Span(0, reach.oldest)])
        begins, nothing = None, self._queue.memory.nothing_before(series, self._ports.monotonic())
        if stored is not None and nothing is not None and nothing.end == stored.start:
            begins = stored.start if clipped(left, nothing) else None
            left = without(left, [nothing])
        return left, _Beyond(candle_count(frame, lost), why, begins)

    def _kept(self, series: SeriesId, spans: Sequence[Span], stored: Span | None) -> list[Span]:
        """What of them would not be trimmed at once."""
        kept_from = 0 if stored is None else self._ports.kept_from(series, series.timeframe.shift(stored.end, -1))
        return clipped(spans, Span(kept_from, MAX_TIME + 1))

    def _begin(self, series: SeriesId, span: Span, left: list[Span], on_progress: OnProgress) -> _Ask:
        deep = self._deep.setdefault(series, _Deep())
        total = candle_count(series.timeframe, left)
        done: asyncio.Future[BackfillProgress] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda over: over.cancelled() or over.exception())  # nobody may be waiting for it
        monotonic = self._ports.monotonic
        ask = _Ask(span, left, total, on_progress, monotonic, monotonic(), deep.candles, done, _Beyond())
        deep.asks.append(ask)
        whole = hull([part for one in deep.asks for part in one.left])
        if whole != deep.whole:
            deep.whole = whole
            self._watch.began(series, whole, BACKFILL)
        for part in left:
            self._submit(Need(series, part, Reason.REQUESTED, BACKFILL))
        return ask

    async def begin_again(self) -> None:
        """Take up again what was being backfilled when the service ended. Raises `StoreError`."""
        for series, span in await self._ports.database.read(lambda store: store.backfills()):
            under_way = self._deep.get(series)
            if not self._ports.covers(series) or (under_way and any(ask.span == span for ask in under_way.asks)):
                continue
            stored, ledger = await self._ports.stored(series)
            left = self._kept(series, gaps.unsettled(ledger, stored, span), stored)
            if left:
                log.info("backfill.resumed", "its backfill goes on", series=series, span=left[0])
                self._begin(series, span, left, lambda _: None)
            else:
                await self._ports.database.write(lambda store, one=(series, span): store.end_backfill(*one))  # type: ignore[misc]

    async def _mark(self, series: SeriesId, spans: Sequence[Span], asked: Span | None = None) -> None:
        """Note in the ledger that somebody is at work on the holes in `spans`, and what was `asked` for. Raises
        `StoreError`."""

        def mark(store: CandleStore) -> None:
            store.change_gaps(series, gaps.begin_healing(store.gaps(series, hull(spans)), spans))
            if asked is not None:
                store.add_backfill(series, asked)

        await self._ports.database.write(mark)

    async def mark_rest(self, pending: Pending) -> None:
        """What was written has made a hole of the rest of a need from before the first stored candle. Raises
        `StoreError`."""
        deep = self._deep.get(pending.series)
        if deep is None or not pending.requested or pending.between_stored or pending.span in deep.marked:
            return
        deep.marked.add(pending.span)
        await self._mark(pending.series, [pending.span])

    async def judge(self, series: SeriesId) -> None:
        """Something of the series was read: end those of its backfills that are over. Raises `StoreError`."""
        deep = self._deep[series]
        stored, ledger = await self._ports.stored(series)
        for ask in list(deep.asks):
            ask.left, ask.beyond = self._beyond(
                series, ask.span, gaps.unsettled(ledger, stored, ask.span), stored, ledger
            )
            waiting = [pending for part in ask.left for pending in self._queue.waiting(series, part)]
            if self._queue.looks(series) or any(pending.fruitless < policy.PATIENCE for pending in waiting):
                ask.tell(series, deep, ask.span.start)
                continue
            holes = clipped(ask.left, stored) if stored is not None else []
            await self._ports.database.write(lambda store, ask=ask, holes=holes: _end(store, series, ask.span, holes))  # type: ignore[misc]
            if ask in deep.asks:
                deep.asks.remove(ask)
            if not ask.done.done():
                ask.done.set_result(ask.progress(series, deep, ask.span.start))
        self._end_if_over(series, deep)

    def fail(self, series: SeriesId, error: StoreError) -> None:
        """The store cannot be read or written: whoever waits for a backfill of the series is told."""
        deep = self._deep.get(series)
        if deep is None:
            return
        asks, deep.asks = deep.asks, []
        for ask in asks:
            if not ask.done.done():
                ask.done.set_exception(error)
        deep.trouble = str(error)
        self._end_if_over(series, deep)

    def _end_if_over(self, series: SeriesId, deep: _Deep) -> None:
        if not deep.asks and self._deep.get(series) is deep:
            del self._deep[series]
            self._watch.ended(series, deep.trouble)


class _DeepWatch:
    """Counts a reading among the explicit backfills of its series; health shows these, not their readings."""

    def __init__(self, deeps: Mapping[SeriesId, _Deep], watch: HistoryWatch) -> None:
        self._deeps = deeps
        self._watch = watch
        self._counted = 0

    def began(self, series: SeriesId, span: Span, reason: str) -> None:
        """The explicit backfill began before."""

    def advanced(self, series: SeriesId, upto: int, candles: int) -> None:
        if (deep := self._deeps.get(series)) is None:
            return  # nobody waits for it any more
        deep.candles += candles - self._counted
        self._counted = candles
        self._watch.advanced(series, upto, deep.candles)
        for ask in deep.asks:
            ask.tell(series, deep, upto)

    def ended(self, series: SeriesId, error: str | None = None) -> None:
        if (deep := self._deeps.get(series)) is not None:
            deep.trouble = error


@dataclass(frozen=True, slots=True)
class _Beyond:
    """What of an explicit backfill cannot be had: see `BackfillProgress`."""

    lost: int = 0
    lost_why: str | None = None
    begins: int | None = None

    def of(self, how: BackfillProgress) -> BackfillProgress:
        """The progress, with this in it."""
        return replace(how, lost=self.lost, lost_why=self.lost_why, begins=self.begins)


@dataclass(slots=True, eq=False)
class _Ask:
    """One call of `backfill`: what it asked for, what of it was `left` at the last look, and who waits for it."""

    span: Span
    left: list[Span]
    total: int
    on_progress: OnProgress
    monotonic: Monotonic
    began_s: float
    candles_before: int
    done: asyncio.Future[BackfillProgress]
    beyond: _Beyond

    def progress(self, series: SeriesId, deep: _Deep, upto: int) -> BackfillProgress:
        """How it stands when all before `upto` was read since the last look."""
        missing = sum(series.timeframe.count(max(start, upto), end) for start, end in self.left if end > upto)
        candles = deep.candles - self.candles_before
        elapsed_s = self.monotonic() - self.began_s
        return self.beyond.of(
            BackfillProgress(series, self.span, self.total, missing, candles, elapsed_s, deep.trouble)
        )

    def tell(self, series: SeriesId, deep: _Deep, upto: int) -> None:
        self.on_progress(self.progress(series, deep, upto))


@dataclass(slots=True, eq=False)
class _Deep:
    """The explicit backfills of one series: what they lack from first to last, how many candles came, which needs were
    marked in the ledger."""

    asks: list[_Ask] = field(default_factory=list)
    whole: Span | None = None
    candles: int = 0
    marked: set[Span] = field(default_factory=set)
    trouble: str | None = None


def _end(store: CandleStore, series: SeriesId, asked: Span, holes: Sequence[Span]) -> None:
    """What was asked for is over: nobody is at work on its `holes` any more."""
    store.end_backfill(series, asked)
    if holes:
        store.change_gaps(series, gaps.end_healing(store.gaps(series, hull(holes)), holes))

"""IngestPipeline: the only writer of closed candles, in the order candles -> factor -> overlay -> publish.

Group commit: an idle writer commits arriving candles at once; candles that arrive while the writer is busy are the next
batch. Live candles go first. Bulk candles (history, HTTP) fill a transaction only up to the longest wait of live ones.
Publishing follows the commit, in commit order, and never waits.

The file is longer than others: a transaction, its repeats without what is damaged, and its publication are one order of
steps, and all of them share the list of unreadable ledgers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence

from msgspec.structs import replace

from klinesync.core import gaps
from klinesync.core.candle import ROUNDING, Applied, Candle, agree, check_candle
from klinesync.core.errors import DerivedSeries, StoreError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, common, hull, joined, without
from klinesync.core.timeframe import Timeframe
from klinesync.pipelines.derived_settings import Settled, settle
from klinesync.pipelines.derived_step import NATIVE, DerivedStep, write_closed
from klinesync.pipelines.ledger_step import LedgerStep, Progress
from klinesync.pipelines.submissions import Empty, QueueLimits, Submission, Submissions, fail
from klinesync.runtime.clock import SYSTEM_CLOCK, Monotonic
from klinesync.runtime.log_events import Log
from klinesync.runtime.log_limit import LogLimit
from klinesync.runtime.metrics import Durations
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import Damage, DoAgain, Kept, StoreDamaged
from klinesync.storage.database import Database, R
from klinesync.storage.records import Derivation, DerivationOrigin, Origin, SeriesChange

log = Log(__name__)

# Sources whose candles are refused for a series that is stored as a derived one.
POSTED = frozenset({"http", "file"})
# Delay before a piece of a ledger is tried again after the store failed, in seconds.
CATCH_UP_RETRY_S = 1.0
# Seconds between two log lines about the same failure of the store.
LOG_EVERY_S = 60.0
# Seconds between two log lines about a ledger that lags because of damage; the damage itself is logged once.
DAMAGE_LINE_S = 600.0
# Most repeats of a transaction that meets damage; after them one more, without any ledger.
MAX_DONE_AGAIN = 8
# Series whose rows are packed in one transaction; others wait for it.
PACKED_AT_ONCE = 16
# Seconds without a batch after which rows are packed: not between the candles of a minute's end.
PACK_AFTER_S = 2.0
# Base candles of one transaction that brings a derived series up to date.
MAX_REFRESH_CANDLES = 20_000


class LedgerDamaged(StoreDamaged):
    """A transaction met damage in a ledger, or in candles that a ledger is computed from.

    changed: the series that the transaction changed.
    unreadable: the series whose ledger is left out when the transaction is repeated.
    """

    def __init__(self, damage: Damage, changed: Sequence[SeriesId]) -> None:
        super().__init__(damage)
        self.changed = tuple(changed)
        named = (damage.series,) if damage.series in changed and damage.series is not None else self.changed
        self.unreadable: dict[SeriesId, StoreDamaged] = dict.fromkeys(named, self)


class IngestPipeline:
    """Writes, folds and publishes checked, closed candles. `run` is its one task.

    database: the store.
    derived: computes derived candles.
    ledger: computes factors and overlays.
    publish: called with the changes of each series after the commit.
    wall_s: the system clock in UTC seconds, for the dates of revisions and confirmations.
    tell: called with the progress of each ledger that catches up in pieces.
    committed: called with the other changes of each transaction: gaps, trims, marks.
    limits: bounds of the backlog.
    monotonic: our clock, in seconds.
    """

    def __init__(
        self,
        database: Database,
        derived: DerivedStep,
        ledger: LedgerStep,
        publish: Callable[[Applied], None],
        wall_s: Callable[[], float],
        *,
        tell: Callable[[Progress], None] = lambda _: None,
        committed: Callable[[Sequence[SeriesChange]], None] = lambda _: None,
        limits: QueueLimits | None = None,
        monotonic: Monotonic = SYSTEM_CLOCK.monotonic_s,
    ) -> None:
        self._database = database
        self._derived = derived
        self._ledger = ledger
        self._publish = publish
        self._tell = tell
        self._committed = committed
        self._wall_s = wall_s
        self._waiting = Submissions(limits or QueueLimits())
        self._monotonic = monotonic
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()
        self._told_failure = LogLimit(LOG_EVERY_S)
        self._told_damage = LogLimit(DAMAGE_LINE_S)
        # By series, ledgers that are left out of transactions until they have caught up, and the damage.
        self._unreadable_ledgers: dict[SeriesId, StoreDamaged] = {}
        # When rows may be packed, in monotonic seconds; None: there are none to pack.
        self._pack_at_s: float | None = None
        # Counters since the start: transactions, changed candles by source, and revised candles.
        self.batches = 0
        self.batches_failed = 0
        self.batch_s = Durations()
        self.written: Counter[str] = Counter()
        self.revised = 0

    @property
    def live_candles(self) -> int:
        """Live candles that wait for the writer, or are being written."""
        return self._waiting.live_candles

    @property
    def bulk_candles(self) -> int:
        """Bulk candles (history, HTTP, files) that wait for the writer, or are being written."""
        return self._waiting.bulk_candles

    def live_waits(self) -> bool:
        """Whether live candles wait for the writer, or are being written."""
        return self._waiting.live_candles > 0

    def queued_candles(self) -> int:
        """All closed candles that wait for the writer, or are being written."""
        return self._waiting.live_candles + self._waiting.bulk_candles

    def offer(
        self, series: SeriesId, candles: Sequence[Candle], *, by_frames: bool = True
    ) -> asyncio.Future[Applied] | None:
        """Queue live closed candles, without waiting. The future ends after their commit and publication.

        series: of the candles.
        candles: ascending.
        by_frames: only frames say that the candles are final. Candles that are stored with other values are not written
            then; the result has them as `questioned`.

        Returns None when there is no room, or when an earlier write of the series failed: then nothing of the series is
        queued until `mend`, so that no hole is written. The future raises `StoreError` when the commit failed.
        """
        if not self._waiting.has_room_for_live(series, len(candles)):
            return None
        submission = self._submission(series, candles, "stream", None, live=True, by_frames=by_frames)
        self._waiting.add(submission)
        return submission.written

    async def mend(self, series: SeriesId) -> None:
        """Wait for room, then accept live candles of the series again; the caller begins from the stored head."""
        async with self._room:
            await self._room.wait_for(lambda: self._waiting.may_mend)
        self._waiting.mend(series)

    async def submit(
        self,
        series: SeriesId,
        candles: Sequence[Candle],
        source: str,
        empty: Empty | None = None,
        *,
        checked: bool = False,
    ) -> Applied:
        """Write closed candles, all or none: wait for room, then for the commit.

        series: an ingested series; or a derived one, whose candles are written in buckets that are incomplete in its
            base.
        candles: in any order; ascending where the series is derived.
        source: where the candles come from; a label of metrics. Of a derived series: `NATIVE`.
        empty: spans without candles, confirmed in the gap ledger after the candles are written.
        checked: whether the caller has checked every candle by the rules of `check_candle`; False by default.

        Raises `BadCandle`, `DerivedSeries`, and `StoreError` when the commit failed; then nothing was written.
        """
        async with self._room:
            await self._room.wait_for(lambda: self._waiting.has_room_for_bulk)
        submission = self._submission(series, candles, source, empty, live=False, checked=checked)
        self._waiting.add(submission)
        return await submission.written

    def _submission(
        self,
        series: SeriesId,
        candles: Sequence[Candle],
        source: str,
        empty: Empty | None,
        *,
        live: bool,
        by_frames: bool = False,
        checked: bool = False,
    ) -> Submission:
        if self._derived.derives(series) and source != NATIVE:
            raise DerivedSeries(series, self._derived.base)
        assert source != NATIVE or self._derived.derives(series), f"{series} is no derived series"
        if source in POSTED and series in self._derived.dormant:
            raise DerivedSeries(series, self._derived.dormant[series].timeframe)
        if not checked:
            for candle in candles:
                check_candle(candle, series.timeframe)
        self._arrived.set()
        written: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        return Submission(series, candles, source, empty, live, written, by_frames)

    async def refresh_series(self, series: SeriesId) -> None:
        """Bring the derived series of base `series` up to its head, after a target was switched off for a while. In
        transactions of `MAX_REFRESH_CANDLES` base candles, between live batches. Raises `StoreError`."""
        if series.timeframe != self._derived.base:
            return
        for target in self._derived.targets:
            missing = await self._database.read(
                lambda store, target=target: self._derived.missing(store, series, target)  # type: ignore[misc]
            )
            for span in missing:
                await self._refresh_span(series, target, span)

    async def refresh_span(self, series: SeriesId, span: Span) -> None:
        """Compute the derived candles of base `series` anew in the buckets that `span` touches: while candles of these
        buckets were damaged, corrections of their other candles did not reach the derived ones. Raises `StoreError`."""
        if series.timeframe != self._derived.base:
            return
        derived, stored = await self._database.read(lambda store: (store.derived_of(series), store.span(series)))
        if stored is None or not span.overlaps(stored):
            return
        start, end = span.clipped(stored)  # damage of unknown extent may span all times
        timeframes = {*self._derived.targets, *(one.timeframe for one in derived)}
        for target in sorted(timeframes, key=lambda timeframe: timeframe.seconds):
            await self._refresh_span(series, target, Span(target.floor(start), target.ceil(end)))

    async def settle_derived(self) -> Settled:
        """Mark the series that were computed with another base or other timeframes; called before anything is written.
        Raises `StoreError`."""
        derived = self._derived
        settled = await self._database.write(lambda store: settle(store, derived.base, derived.targets))
        derived.dormant = settled.dormant
        derived.redoing = set(settled.redo)
        return settled

    async def redo_derived(self, series: SeriesId) -> None:
        """Compute the derived `series` anew from its base, in transactions of `MAX_REFRESH_CANDLES` base candles,
        between live batches. Raises `StoreError`."""
        base, target = self._derived.base_of(series), series.timeframe
        stored = await self._database.read(lambda store: store.span(base))
        if stored is not None:
            await self._refresh_span(base, target, Span(target.floor(stored.start), target.floor(stored.end)))
        done = Derivation(base, DerivationOrigin.RECOMPUTED)
        await self._database.write(lambda store: store.set_derivation(series, done))
        self._derived.redoing.discard(series)

    async def settled_derived(self) -> None:
        """Note in the store that all series are computed with these settings. Raises `StoreError`."""
        derived = self._derived
        await self._database.write(lambda store: store.set_derived_settings(derived.base, derived.targets))

    async def _refresh_span(self, series: SeriesId, target: Timeframe, span: Span) -> None:
        start = span.start
        while start < span.end:
            end = min(target.floor(series.timeframe.shift(start, MAX_REFRESH_CANDLES)), span.end)
            end = max(end, target.next(start))
            await self._refresh(series, target, Span(start, end))
            start = end

    async def _refresh(self, series: SeriesId, target: Timeframe, window: Span) -> None:
        at, now_s = int(self._wall_s()), self._monotonic()

        def change(store: CandleStore) -> list[Applied]:
            changes = self._derived.refresh(store, series, target, window, at)
            self._advance_ledgers(store, changes, now_s)
            return changes

        for applied in await self._commit(change):
            self._publish(applied)
        self._arrived.set()

    async def take_out_damaged(self, series: SeriesId, span: Span) -> list[Span]:
        """Take the damaged candles that `span` touches out of a series: they are kept in quarantine, and are a gap. Its
        ledger is rewound behind them. Candles that are derived from them stay. Returns the spans that were taken out.
        Raises `StoreError`; then nothing was changed."""
        at, now_s = int(self._wall_s()), self._monotonic()

        def change(store: CandleStore) -> tuple[list[Span], list[SeriesChange]]:
            taken = [part.span for part in store.take_out_damaged(series, span, at)]
            if taken:
                self._cut_ledger(store, series, taken[0].start, now_s)
            return taken, store.changes

        taken, changes = await self._commit(change)
        if changes:
            self._committed(changes)
        self._arrived.set()
        return taken

    async def redo_ledger(self, series: SeriesId) -> None:
        """Delete the damaged ledger of a series, and compute it anew. Raises `StoreError`."""
        at = int(self._wall_s())
        await self._database.write(lambda store: self._ledger.redo(store, series, at))
        self._unreadable_ledgers.pop(series, None)
        self._arrived.set()

    async def run(self) -> None:
        """Write queued candles until cancelled; a batch that has begun is finished. Ledgers that lag advance in pieces
        between batches."""
        look_at_s: float | None = self._monotonic()
        while True:
            batch = self._waiting.take()
            if batch:
                await _finished(self._write(batch), "pipeline write")
            elif look_at_s is not None and look_at_s <= self._monotonic():
                looked = await self._look(self._ledger.look_for_lags)
                look_at_s = None if looked else self._monotonic() + CATCH_UP_RETRY_S
            elif (series := self._ledger.due(self._monotonic())) is not None:
                await _finished(self._catch_up(series), "pipeline catch-up")
            elif self._ledger.has_cold:
                await self._look(self._ledger.warm)
            elif self._pack_at_s is not None and self._pack_at_s <= self._monotonic():
                await _finished(self._pack(), "pipeline packing")
            else:
                await self._something_to_do(look_at_s)

    async def _look(self, look: Callable[[CandleStore], None]) -> bool:
        try:
            await self._database.read(look)
        except StoreDamaged:
            return False  # logged by the statement that met the damage
        except StoreError as error:
            if self._told_failure.allow(str(error), self._monotonic()) is not None:
                log.error("ledger.look_failed", "factors and overlays cannot be looked after at present", error=error)
            return False
        return True

    async def _something_to_do(self, look_at_s: float | None) -> None:
        self._arrived.clear()
        due = [at_s for at_s in (look_at_s, self._ledger.next_due_s(), self._pack_at_s) if at_s is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(due, default=None)):
                await self._arrived.wait()

    async def _catch_up(self, series: SeriesId) -> None:
        """Advance a ledger that lags by one piece."""
        now_s = self._monotonic()
        try:
            progress = await self._database.write(lambda store: self._ledger.catch_up(store, series, now_s))
        except StoreDamaged as error:
            if self._told_damage.allow(str(error), now_s) is not None:
                log.error(
                    "ledger.catch_up_failed", "its factors and overlays cannot catch up", series=series, error=error
                )
            self._ledger.put_off(series, error, now_s)
        except StoreError as error:
            if self._told_failure.allow(str(error), now_s) is not None:
                log.error(
                    "ledger.catch_up_failed", "its factors and overlays cannot catch up", series=series, error=error
                )
            await asyncio.sleep(CATCH_UP_RETRY_S)
        except Exception as error:
            log.exception("ledger.catch_up_failed", "its factors and overlays cannot catch up", series=series)
            self._ledger.put_off(series, error, now_s)
        else:
            if not progress.left:
                self._unreadable_ledgers.pop(series, None)
            self._tell(progress)

    async def _pack(self) -> None:
        """Pack rows of some series; when that fails, it is tried again after the next batch. A series whose rows cannot
        be packed is left out by the store: the others of its transaction are packed in the next one, at once."""

        def change(store: CandleStore) -> bool:
            store.pack_rows(PACKED_AT_ONCE)
            return store.to_pack

        try:
            more = await self._database.write(change)
        except StoreDamaged as error:
            if self._told_failure.allow(str(error), self._monotonic()) is not None:
                log.error(
                    "pipeline.pack_failed",
                    "its newest candles cannot be packed at present",
                    series=error.damage.series,
                    error=error,
                )
            self._pack_at_s = self._monotonic()
        except StoreError as error:
            if self._told_failure.allow(str(error), self._monotonic()) is not None:
                log.error("pipeline.pack_failed", "the newest candles cannot be packed at present", error=error)
            self._pack_at_s = None
        else:
            self._pack_at_s = self._monotonic() if more else None

    async def drain(self) -> None:
        """Write all queued candles; called at the shutdown, after `run` was cancelled."""
        while batch := self._waiting.take():
            await self._write(batch)

    def apply(self, store: CandleStore, batch: Sequence[Submission], now_s: float = 0.0) -> list[list[Applied]]:
        """The write transaction of one batch. Runs on the writer thread.

        store: the store, within its transaction.
        batch: the submissions.
        now_s: monotonic seconds.

        Returns for each submission the changes of its series, then those of the series derived from it.
        """
        at = int(self._wall_s())
        changes = [self._append(store, one, at) or self._apply_one(store, one, at) for one in batch]
        self._advance_ledgers(store, [applied for change in changes for applied in change], now_s)
        return changes

    async def _commit(self, change: Callable[[CandleStore], R]) -> R:
        """Run `change` in a transaction; its result, after the commit. Raises `StoreError`.

        A transaction that met an unreadable page cannot be committed. It is repeated without the ledger, or the derived
        candles, that need the page, so that damage costs no new candle.
        """
        for _ in range(MAX_DONE_AGAIN):
            try:
                return await self._database.write(change)
            except DoAgain:
                pass  # the damage is known now, and the repeated transaction does without that part
            except LedgerDamaged as error:
                self._unreadable_ledgers |= error.unreadable
        try:
            return await self._database.write(change)
        except LedgerDamaged as error:
            self._unreadable_ledgers |= dict.fromkeys(error.changed, error)
        return await self._database.write(change)

    def _advance_ledgers(self, store: CandleStore, changes: Sequence[Applied], now_s: float) -> None:
        store.save()  # a failure to write candles is not a failure of a ledger
        sound = [applied for applied in changes if applied.series not in self._unreadable_ledgers]
        try:
            if len(sound) < len(changes):
                with store.savepoint():
                    for applied in changes:
                        error = self._unreadable_ledgers.get(applied.series)
                        if error is not None and error.damage.kept is not Kept.LEDGER:
                            self._ledger.leave_behind(store, applied, error, now_s)
            self._advance_sound(store, sound, now_s)
        except StoreDamaged as error:
            raise LedgerDamaged(error.damage, [applied.series for applied in changes]) from error

    def _cut_ledger(self, store: CandleStore, series: SeriesId, time: int, now_s: float) -> None:
        """Rewind the ledger of a series whose candles from `time` on were taken out."""
        error = self._unreadable_ledgers.get(series)
        try:
            if error is None:
                self._ledger.cut(store, series, time)
            elif error.damage.kept is not Kept.LEDGER:
                self._ledger.leave_from(store, series, time, error, now_s)
        except StoreDamaged as damaged:
            raise LedgerDamaged(damaged.damage, [series]) from damaged

    def _advance_sound(self, store: CandleStore, changes: Sequence[Applied], now_s: float) -> None:
        try:
            with store.savepoint():
                self._ledger.advance(store, changes, now_s)
        except StoreError:
            raise
        except Exception as error:
            # A defect of ledgers must not cost a candle: the ledgers lag, the candles are kept.
            log.exception("ledger.failed", "factors and overlays failed; they lag behind the candles")
            self._ledger.set_back(store, changes, error, now_s)

    def _append(self, store: CandleStore, submission: Submission, at: int) -> list[Applied] | None:
        """The usual case of `_apply_one`: a live candle that opens where the head closes, and leaves no hole. None, and
        nothing is written, for any other submission."""
        series = submission.series
        if not submission.live or len(submission.candles) != 1 or series in self._derived.dormant:
            return None
        if self._derived.waiting(store, series, submission.candles[0].time):
            return None
        applied = store.append(series, submission.candles[0])
        if applied is None:
            return None
        return [applied, *(_with_gaps(store, change) for change in self._derived.close(store, applied, at))]

    def _apply_one(self, store: CandleStore, submission: Submission, at: int) -> list[Applied]:
        series, empty = submission.series, submission.empty
        candles = submission.candles
        spans: Sequence[Span]
        if submission.source == NATIVE:
            spans, proof = (empty.spans, empty.proof) if empty is not None else ((), "")
            native = self._derived.write_native(store, series, candles, spans, proof, at)
            return [_with_gaps(store, native)]
        first = store.first(series) if submission.live else None
        if first is not None and candles and candles[0].time < first:
            # A live candle before the first stored one would leave a hole between that nobody requests.
            candles = [candle for candle in candles if candle.time >= first]
        questioned = _questioned(store, series, candles) if submission.by_frames else ()
        if questioned:
            candles = [candle for candle in candles if candle not in questioned]
        applied = write_closed(store, series, candles, Origin(submission.source, at))
        if applied.candles and series in self._derived.dormant:
            # Candles of a series that was derived before: it is computed from its base once it is derived again.
            base = self._derived.dormant[series]
            store.set_derivation(series, Derivation(base, DerivationOrigin.MIXED))
        spans = ()
        if empty is not None and empty.spans:
            spans = self._settle(store, series, empty, at)
        changes = [applied, *self._derived.advance(store, series, applied, spans, at)]
        if questioned:
            changes[0] = replace(applied, questioned=questioned)
        return [_with_gaps(store, change) for change in changes]

    def _settle(self, store: CandleStore, series: SeriesId, empty: Empty, at: int) -> Sequence[Span]:
        """Settle gaps; returns the spans to compute derived candles of again: all of `empty`, or none when no gap has
        changed."""
        lost = empty.spans if empty.lost else ()
        if empty.proof == gaps.NOT_LISTED_BEFORE:
            # There were candles, which were damaged: the source has forgotten them with an earlier listing.
            kept = [part.span for part in store.quarantine.all() if part.series == series]
            lost = common(empty.spans, joined(kept))
        changed = False
        for turn, spans in ((gaps.lose, lost), (gaps.confirm_empty, without(empty.spans, lost))):
            if spans:
                change = turn(store.gaps(series, hull(spans)), spans, empty.proof, at)
                store.change_gaps(series, change)
                changed = changed or bool(change)
        return empty.spans if changed else ()

    async def _write(self, batch: Sequence[Submission]) -> None:
        began_s = self._monotonic()
        one_by_one = False
        try:
            results, beside, to_pack = await self._commit(
                lambda store: (self.apply(store, batch, began_s), store.changes, store.to_pack)
            )
        except StoreDamaged as error:
            self.batches_failed += 1
            if len(batch) == 1:
                if self._told_failure.allow(str(error), began_s) is not None:
                    log.error("pipeline.submission_failed", "a submission was not stored", error=error)
                fail([*batch, *self._waiting.break_off(batch)], error)
            else:
                one_by_one = True
        except StoreError as error:
            if self._told_failure.allow(str(error), began_s) is not None:
                log.error("pipeline.batch_failed", "a batch was not stored", submissions=len(batch), error=error)
            self.batches_failed += 1
            fail([*batch, *self._waiting.break_off(batch)], error)
        else:
            self.batches += 1
            self._pack_at_s = self._monotonic() + PACK_AFTER_S if to_pack else None
            for submission, changes in zip(batch, results, strict=True):
                for applied in changes:
                    if applied.candles:
                        source = submission.source if applied.series == submission.series else "derived"
                        self.written[source] += len(applied.candles)
                        self.revised += len(applied.revised)
                        self._publish(applied)
                if not submission.written.done():
                    submission.written.set_result(changes[0])
            if beside:
                self._committed(beside)
        finally:
            took_s = self._monotonic() - began_s
            self.batch_s.observe(took_s)
            if not one_by_one:
                self._waiting.ended(batch, took_s)
            async with self._room:
                self._room.notify_all()
        if one_by_one:
            # Damage of one series does not hold up the others.
            for submission in batch:
                if submission.live and self._waiting.is_broken(submission.series):
                    fail([submission], StoreError("an earlier candle of the series was not stored"))
                    self._waiting.dropped([submission])
                else:
                    await self._write([submission])


async def _finished(work: Coroutine[None, None, None], name: str) -> None:
    """Finish `work`, also when cancelled meanwhile."""
    task = asyncio.create_task(work, name=name)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _questioned(store: CandleStore, series: SeriesId, candles: Sequence[Candle]) -> tuple[Candle, ...]:
    """The candles that are stored with other values, roundings aside."""
    head = store.head(series)
    if head is None:
        return ()
    questioned = []
    for candle in candles:
        if candle.time <= head:
            stored = store.newest(series, 1, before=candle.time + 1, after=candle.time - 1)
            if stored and not agree(stored[0], candle, ROUNDING):
                questioned.append(candle)
    return tuple(questioned)


def _with_gaps(store: CandleStore, applied: Applied) -> Applied:
    """The changes with the rows of the gap ledger for the holes that a follower meets. The usual batch, a run directly
    behind the head, has no holes, and reads no rows."""
    if not applied.candles:
        return applied
    first, last = applied.candles[0].time, applied.candles[-1].time
    holes = store.gaps(applied.series, Span(first, last))
    return replace(applied, gaps=tuple(holes)) if holes else applied

"""LedgerStep: factors and overlays, advanced to the head inside the write transaction.

There is one operation: rewind to the first changed candle, advance to the head. Usually that is one candle behind the
last one, from states in memory; after a restart the states come from the newest checkpoint and the few candles behind
it. An advance that is too long for the transaction is done later, piece by piece (`catch_up`).

The file is longer than others: rewind, advance and the faults of plugins in between change the same few tables.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Applied, Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import FactorGraph, Said
from klinesync.factor.indicator import Indicator
from klinesync.factor.plugin import FactorFault, ForeignStates
from klinesync.overlay.graph import OverlayGraph
from klinesync.overlay.instruction import Instruction
from klinesync.overlay.plugin import OverlayFault
from klinesync.pipelines.factor_states import Entry, FactorStates
from klinesync.pipelines.watchdog import TookTooLong
from klinesync.runtime.log_events import Log
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.records import Ledger

log = Log(__name__)

# Most series whose states are read after a start, before a candle needs them.
MAX_WARMED = 10_000
# Most of them in one read, which a live candle waits for.
WARMED_AT_ONCE = 32
# Consecutive failures of a factor or overlay at one series before it is suspended until the next start.
MAX_FAULTS = 5
# Likewise timeouts; fewer, because every series waits during a timeout.
MAX_TIMEOUTS = 2
# Backoff before a ledger that could not be advanced is tried again.
RETRY = Backoff(initial_s=1.0, most_s=60.0)


@dataclass(frozen=True, slots=True)
class Lag:
    """A ledger that lags.

    reason: why, as a text.
    tries: consecutive failed tries.
    due_s: when the next try is due, in monotonic seconds.
    """

    reason: str
    tries: int = 0
    due_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a ledger that catches up in pieces.

    series: of the ledger.
    reason: why the ledger lagged, as a text.
    epoch: of the ledger.
    factor_head: open time of the newest candle that factors have computed.
    head: open time of the newest stored candle.
    left: whether the ledger still lags.
    """

    series: SeriesId
    reason: str
    epoch: int
    factor_head: int | None
    head: int | None
    left: bool


class LedgerStep:
    """Advances factors and overlays. Methods run on the writer thread unless their docstring says otherwise.

    factors: the factors to compute.
    overlays: the overlays to draw.
    indicators: on which factors may depend.
    max_candles: longest advance inside a write transaction, in candles; 2,000 by default.
    guard: a context that limits the time of plugins; none by default.
    reads_flow: whether factors that are not among these, but have computed ledgers of the store, read order flow; False
        by default.
    redoes: the step whose states of order flow this one redoes, which computes nothing else; by default this one's own.
    retry: backoff before a ledger that could not be advanced is tried again.
    """

    def __init__(
        self,
        factors: FactorGraph,
        overlays: OverlayGraph,
        indicators: Sequence[Indicator] = (),
        *,
        max_candles: int = 2000,
        guard: AbstractContextManager[object] | None = None,
        reads_flow: bool = False,
        redoes: LedgerStep | None = None,
        retry: Backoff = RETRY,
    ) -> None:
        self._retry = retry
        self._redoing = redoes or self
        # Whether order flow that is filled in changes ledgers. A factor that is suspended meanwhile counts: the next
        # start has it again.
        self.redoes_flow = reads_flow or factors.reads_flow or self._redoing is not self
        self.states = FactorStates(factors, indicators)
        self.overlays = overlays
        self._max_candles = max_candles
        self._guard = guard or nullcontext()
        self._fingerprint = self._fingerprint_now()
        self._ours = {self._fingerprint}
        self._cold: deque[SeriesId] = deque()
        self._behind: dict[SeriesId, Lag] = {}
        self._in_a_row: Counter[tuple[str, SeriesId]] = Counter()
        self._timeouts: Counter[str] = Counter()
        # Since the start: faults by plugin, and the reason of each suspended plugin. May be read on any thread.
        self.faults: Counter[str] = Counter()
        self.suspended: dict[str, str] = {}
        self.last_fault: dict[SeriesId, str] = {}

    @property
    def factors(self) -> FactorGraph:
        """The factors that are not suspended."""
        return self.states.factors

    def _fingerprint_now(self) -> str:
        text = f"{self.factors.fingerprint}\n{self.overlays.fingerprint}"
        return sha256(text.encode()).hexdigest()

    @property
    def idle(self) -> bool:
        """Whether there are neither factors nor overlays to compute."""
        return not self.factors.names

    def computed(self, ledger: Ledger) -> bool:
        """Whether these factors and overlays have computed the ledger. May be called on any thread."""
        return ledger.fingerprint in self._ours

    def lag(self, series: SeriesId) -> Lag | None:
        """Why the ledger of the series lags; None when it does not, or that is not known. May be called on any
        thread."""
        return self._behind.get(series)

    def behind(self) -> dict[SeriesId, Lag]:
        """All ledgers that are known to lag. May be called on any thread."""
        return dict(self._behind)

    def due(self, now_s: float) -> SeriesId | None:
        """The series whose ledger is advanced next by a piece. May be called on any thread."""
        for series, lag in self.behind().items():
            if lag.due_s <= now_s:
                return series
        return None

    def next_due_s(self) -> float | None:
        """When the next ledger is due (monotonic seconds); None when none lags. May be called on any thread."""
        return min((lag.due_s for lag in self.behind().values()), default=None)

    def look_for_lags(self, store: CandleStore) -> None:
        """Find the ledgers that lag, or were computed by other factors; called after a start."""
        if self.idle:
            return
        ledgers: dict[SeriesId, Ledger] | None = None
        with suppress(StoreDamaged):  # then each is read by itself
            ledgers = store.ledger.all()
        for series in store.series():
            try:
                head = store.head(series)
                ledger = store.ledger.get(series) if ledgers is None else ledgers.get(series)
            except StoreDamaged:  # the store reports the damage, and other series go on
                continue
            if head is None:
                continue
            if ledger is not None and ledger.fingerprint not in self._ours:
                self._behind[series] = Lag("other factors or overlays")
            elif ledger is None or (ledger.factor_head, ledger.overlay_head) != (head, head):
                self._behind[series] = Lag("candles without factors")
            elif len(self._cold) < MAX_WARMED:
                self._cold.append(series)

    @property
    def has_cold(self) -> bool:
        """Whether `warm` has more series to read. May be called on any thread."""
        return bool(self._cold)

    def warm(self, store: CandleStore) -> None:
        """Read the states of the next `WARMED_AT_ONCE` series into memory. May be called on any thread."""
        for _ in range(min(WARMED_AT_ONCE, len(self._cold))):
            series = self._cold.popleft()
            ledger = store.ledger.get(series)
            if ledger is not None and self.computed(ledger):
                with suppress(FactorFault, ForeignStates):  # logged when a candle comes
                    self.states.warm(store, series, ledger)

    def advance(self, store: CandleStore, changes: Sequence[Applied], now_s: float) -> None:
        """Bring the ledgers up to date with the changes of a transaction.

        store: the store, within its transaction.
        changes: what the transaction wrote, of all series.
        now_s: monotonic seconds.

        A plugin's fault is counted and logged, and the ledger of its series lags. Raises store errors only.
        """
        fresh: dict[SeriesId, list[Sequence[Candle]]] = {}
        changed = Counter(applied.series for applied in changes)
        for applied in changes:
            if changed[applied.series] == 1 and self._advance_usual(store, applied, now_s):
                continue
            candles = applied.candles
            if applied.enriched:
                filled = [candle for candle in candles if candle.time in applied.enriched]
                if not self.redoes_flow or self._redoing.redo_flow(store, applied.series, filled):
                    candles = tuple(candle for candle in candles if candle.time not in applied.enriched)
            if candles:
                fresh.setdefault(applied.series, []).append(candles)
        for series, parts in fresh.items():
            # Not `revised`: it leaves out roundings, and factors depend on every bit.
            ascending = parts[0] if len(parts) == 1 else _newest_of_each(parts)
            changed_from = ascending[0].time
            if not self.idle:
                self._follow(store, series, ascending, now_s)
                continue
            ledger = store.ledger.get(series)
            if ledger is not None and _reaches(ledger, changed_from):
                self._rewind(store, series, ledger, changed_from)  # a start with factors goes on from there

    def _advance_usual(self, store: CandleStore, applied: Applied, now_s: float) -> bool:
        """Advance a ledger by the usual change: one new candle behind its head, whose states are in memory, and which
        needs no checkpoint. False, and nothing is changed, for any other change."""
        if len(applied.candles) != 1:
            return False
        series, time = applied.series, applied.candles[0].time
        entry, ledger = self.states.recent(series), store.ledger.get(series)
        if (
            entry is None
            or ledger is None
            or not entry.at_head
            or entry.record_id != ledger.record_id
            or ledger.factor_head is None
            or ledger.factor_head != ledger.overlay_head
            or ledger.fingerprint not in self._ours
            or series.timeframe.next(ledger.factor_head) != time
            or store.head(series) != time
            or series in self._behind
            or self.factors.outside
            or self.states.checkpoint_due(series, entry, ledger.factor_head, time)
        ):
            return False
        entry.at_head = False  # until the candle is in the entry
        try:
            with self._guard:
                entry.states, events = self.factors.advance_many(entry.states, applied.candles)
        except (FactorFault, TookTooLong) as fault:
            self._advance(store, series, ledger, applied.candles, now_s, fault)
        else:
            self._record(store, series, ledger, entry, events, time, now_s)
        return True

    def redo_flow(self, store: CandleStore, series: SeriesId, filled: Sequence[Candle]) -> bool:
        """Redo the states that depend on order flow, after the order flow of candles was filled in. The heads, the
        epoch, events and drawings stay. Returns whether that is all that there is to do; otherwise the ledger has to be
        rewound.

        store: the store, within its transaction.
        series: whose candles.
        filled: the candles that were filled in, ascending; not empty.
        """
        ledger, first = store.ledger.get(series), filled[0].time
        if ledger is None or not self.computed(ledger) or self.suspended or self.factors.flow_has_events:
            return False
        if ledger.factor_head is None or ledger.factor_head < first:
            return False
        if any(None in candle for candle in filled) and store.derivation(series).base is not None:
            return False  # a derived candle that lost a value, because one of its parts has none
        try:
            with self._guard:
                redone = self.states.redo_flow(store, series, ledger, first, min(filled[-1].time, ledger.factor_head))
        except (FactorFault, ForeignStates, TookTooLong) as error:
            log.warning("ledger.flow_not_redone", "it is computed again", series=series, error=error)
            return False
        if redone:
            # Readers of records get the new numbers. The others keep what they were told: that there is no value yet.
            entry = self.states.get(series)
            record_id = _next_record(ledger)
            if entry is not None and entry.record_id == ledger.record_id:
                entry.record_id = record_id
            store.ledger.put(series, ledger._replace(record_id=record_id))
        return redone

    def catch_up(self, store: CandleStore, series: SeriesId, now_s: float) -> Progress:
        """Advance a ledger that lags by one piece: a rewind, or at most `max_candles`."""
        lag = self._behind.get(series) or Lag("")
        ledger = store.ledger.get(series)
        head = store.head(series)
        heads = None if ledger is None or not self.computed(ledger) else (ledger.factor_head, ledger.overlay_head)
        if head is None or heads == (head, head):
            # The store knows that the ledger lags, also when this transaction fails.
            self._behind.pop(series, None)
            return Progress(series, lag.reason, 0 if ledger is None else ledger.epoch, head, head, left=False)
        if ledger is None or ledger.fingerprint not in self._ours:
            ledger = self._begin_anew(store, series, ledger)
        faults = self.faults.total()
        candles = store.oldest(series, self._max_candles, since=_after(ledger.factor_head))
        ledger = self._advance(store, series, ledger, candles, now_s)
        if faults == self.faults.total():
            self._behind[series] = Lag(lag.reason)
        return Progress(series, lag.reason, ledger.epoch, ledger.factor_head, head, left=True)

    def set_back(self, store: CandleStore, changes: Sequence[Applied], error: Exception, now_s: float) -> None:
        """The work of `advance` for these changes was rolled back after a defect: the ledgers lag, and are rewound
        behind the changed candles. Raises store errors only."""
        for applied in changes:
            series = applied.series
            ledger = store.ledger.get(series)
            if not applied.candles:
                continue
            earliest = min(candle.time for candle in applied.candles)
            if ledger is not None and _reaches(ledger, earliest):
                self._rewind(store, series, ledger, earliest)
            if not self.idle:
                self.put_off(series, error, now_s)

    def leave_behind(self, store: CandleStore, applied: Applied, error: Exception, now_s: float) -> None:
        """A change of a series whose ledger can be neither read nor rewound: the ledger lags, is not shown, and is
        computed anew once it can be written."""
        if applied.candles:
            self.leave_from(store, applied.series, min(candle.time for candle in applied.candles), error, now_s)

    def leave_from(self, store: CandleStore, series: SeriesId, time: int, error: Exception, now_s: float) -> None:
        """As `leave_behind`, of candles that changed from `time` on."""
        ledger = store.ledger.get(series)
        if ledger is not None and _reaches(ledger, time):
            store.ledger.put(series, ledger._replace(fingerprint="", record_id=_next_record(ledger)))
        if not self.idle and series not in self._behind:
            self.put_off(series, error, now_s)

    def cut(self, store: CandleStore, series: SeriesId, time: int) -> None:
        """Candles from `time` on were taken out of the series: its ledger is rewound, and goes on without them."""
        ledger = store.ledger.get(series)
        if ledger is not None and _reaches(ledger, time):
            self._rewind(store, series, ledger, time)
            if not self.idle:
                self._behind.setdefault(series, Lag("damaged candles were taken out"))

    def redo(self, store: CandleStore, series: SeriesId, at: int) -> None:
        """Reset a damaged ledger; it is computed anew, piece by piece. `at`: UTC seconds."""
        try:
            ledger = store.ledger.get(series)
        except StoreDamaged:
            # Nobody knows its epoch and record any more: no ledger counts as many as there are seconds.
            ledger = Ledger("", epoch=at, record_id=at)
        if ledger is None:
            return
        self._begin_anew(store, series, ledger)
        if not self.idle:
            self._behind[series] = Lag("its ledger was damaged")

    def put_off(self, series: SeriesId, error: Exception, now_s: float) -> None:
        """The ledger of the series could not be advanced; it is tried again after a backoff."""
        self.states.forget(series)
        self._try_later(series, f"{type(error).__name__}: {error}", now_s)

    def _try_later(self, series: SeriesId, reason: str, now_s: float) -> None:
        lag = self._behind.get(series) or Lag("")
        self._behind[series] = Lag(reason, lag.tries + 1, now_s + self._retry.delay_s(lag.tries))

    def trim(self, store: CandleStore, series: SeriesId, before: int) -> None:
        """Trim the ledger before the candles that open before `before` are trimmed: events and drawings of these
        candles go. The states after the last trimmed candle are kept, so that the remaining candles are computed as
        before. A ledger that has not come that far, or that has no candles left, begins anew."""
        ledger = store.ledger.get(series)
        last = store.newest(series, 1, before=before)
        if ledger is None or not last:
            return
        time = last[0].time
        states: bytes | None = None
        head = ledger.factor_head if self.computed(ledger) and not self.idle else None
        if head is not None and time <= head and time != store.head(series):
            try:
                states = self.factors.encode(self.states.at(store, series, time), time)
            except (FactorFault, ForeignStates) as error:
                log.warning(
                    "ledger.trimmed",
                    "its factors will be computed from the remaining candles",
                    series=series,
                    error=error,
                )
        if states is not None:
            store.ledger.trim(series, before)
            store.ledger.add_checkpoint(series, time, states, kept=True)
            return
        self._begin_anew(store, series, ledger)
        if not self.idle:
            self._behind.setdefault(series, Lag("trimmed before it was computed"))

    def _begin_anew(self, store: CandleStore, series: SeriesId, ledger: Ledger | None) -> Ledger:
        """Reset the ledger of a series, as if nothing had ever been computed."""
        epoch, record_id = (0, 0) if ledger is None else (ledger.epoch + 1, _next_record(ledger))
        store.ledger.rewind(series, 0)
        self.states.forget(series)
        ledger = Ledger(self._fingerprint, epoch, record_id)
        store.ledger.put(series, ledger)
        return ledger

    def _follow(self, store: CandleStore, series: SeriesId, candles: Sequence[Candle], now_s: float) -> None:
        """Advance, or rewind and advance, a ledger over `candles`: all changed ones of the series, ascending."""
        ledger = store.ledger.get(series)
        if ledger is None:
            ledger = Ledger(self._fingerprint)
        elif _reaches(ledger, candles[0].time):
            ledger = self._rewind(store, series, ledger, candles[0].time)
        if ledger.fingerprint not in self._ours:
            # The ledger was rewound all the same: it is ours again when the missing plugin is suspended or uninstalled.
            self._behind.setdefault(series, Lag("other factors or overlays"))
            return
        entry = self.states.get(series)
        if entry is None or entry.record_id != ledger.record_id or not entry.at_head or series in self._behind:
            todo: Sequence[Candle] = store.oldest(series, self._max_candles + 1, since=_after(ledger.factor_head))
        else:
            todo = candles
            entry.at_head = False  # until `candles` are in the entry
        if len(todo) > self._max_candles:
            self._behind.setdefault(series, Lag("a long history"))
            return
        self._advance(store, series, ledger, todo, now_s)

    def _rewind(self, store: CandleStore, series: SeriesId, ledger: Ledger, time: int) -> Ledger:
        """Rewind the ledger, as if the candles from `time` on had never been stored."""
        store.ledger.rewind(series, time)
        self.states.forget(series)
        before = store.newest(series, 1, before=time)
        factor_head = before[0].time if before and ledger.factor_head is not None else None
        overlay_head = ledger.overlay_head
        if overlay_head is not None and overlay_head >= time:
            overlay_head = factor_head
        ledger = ledger._replace(
            epoch=ledger.epoch + 1,
            record_id=_next_record(ledger),
            factor_head=factor_head,
            overlay_head=overlay_head,
            version_id=store.ledger.newest_version(series, time),
        )
        store.ledger.put(series, ledger)
        return ledger

    def _advance(
        self,
        store: CandleStore,
        series: SeriesId,
        ledger: Ledger,
        candles: Sequence[Candle],
        now_s: float,
        met: FactorFault | TookTooLong | None = None,
    ) -> Ledger:
        """Advance the ledger over candles that follow its head, up to the first fault of a plugin. `met`: the fault
        of a try before."""
        events: list[Said] = []
        complete = True
        try:
            while True:
                try:
                    if met is not None:
                        fault_met, met = met, None
                        raise fault_met
                    entry = self.states.at_head_of(store, series, ledger)
                    if candles:
                        with self._guard:
                            entry.states, events = self.states.fold(store, series, ledger.factor_head, entry, candles)
                    break
                except FactorFault as fault:
                    remembered = self.states.get(series)
                    if remembered is not None:
                        remembered.handles.clear()  # the handles have moved on, the states have not
                        remembered.at_head = False
                    if self._fault(series, fault.factor, fault, fault.error, now_s):
                        continue  # without the suspended factor
                    if ledger.factor_head is not None and fault.candle_time <= ledger.factor_head:
                        return ledger
                    candles = [candle for candle in candles if candle.time < fault.candle_time]
                    complete = False
        except TookTooLong as error:
            # The timeout was raised between two plugins.
            self._fault(series, "", error, error, now_s)
            return ledger
        except ForeignStates as error:
            log.warning("ledger.rebuilt", "its factors are computed anew", series=series, error=error)
            ledger = ledger._replace(fingerprint="", record_id=_next_record(ledger))
            store.ledger.put(series, ledger)
            self._behind[series] = Lag("states that cannot be read")
            return ledger
        factor_head = candles[-1].time if candles else ledger.factor_head
        return self._record(store, series, ledger, entry, events, factor_head, now_s, complete=complete)

    def _record(
        self,
        store: CandleStore,
        series: SeriesId,
        ledger: Ledger,
        entry: Entry,
        events: Sequence[Said],
        factor_head: int | None,
        now_s: float,
        *,
        complete: bool = True,
    ) -> Ledger:
        """Store the events, their drawings and the new heads. `entry` has the states at `factor_head`; `complete`: no
        fault has cut the advance short."""
        store.ledger.add_events(series, events)
        version_id, overlay_head = self._draw(store, series, ledger, events, factor_head, now_s)
        if (factor_head, overlay_head) == (ledger.factor_head, ledger.overlay_head):
            return ledger
        record_id = max(_next_record(ledger), version_id)
        ledger = Ledger(self._fingerprint, ledger.epoch, record_id, factor_head, overlay_head, version_id)
        store.ledger.put(series, ledger)
        entry.record_id = ledger.record_id
        entry.at_head = complete and store.head(series) == factor_head
        if entry.at_head and overlay_head == factor_head:
            self._settled(series)
        return ledger

    def _settled(self, series: SeriesId) -> None:
        lag = self._behind.get(series)
        if lag is not None:
            # The ledger counts as lagging until the store shows otherwise: the commit may fail.
            self._behind[series] = Lag(lag.reason)
        if series in self.last_fault:
            del self.last_fault[series]
            for name in list(self.faults):
                del self._in_a_row[name, series]

    def _draw(
        self,
        store: CandleStore,
        series: SeriesId,
        ledger: Ledger,
        events: Sequence[Said],
        factor_head: int | None,
        now_s: float,
    ) -> tuple[int, int | None]:
        """Store the drawings of these events, and of earlier ones that the overlays lag behind. Returns the number of
        the newest drawing, and the new head of the overlays."""
        if factor_head is None:
            return ledger.version_id, None
        if ledger.overlay_head == ledger.factor_head:
            if not events:
                return ledger.version_id, factor_head  # the usual candle has no events
        else:
            events = store.ledger.events(series, _after(ledger.overlay_head) + 1, factor_head + 1)
        while True:
            try:
                with self._guard:
                    drawings = self.overlays.draw(events)
                break
            except OverlayFault as fault:
                if not self._fault(series, fault.overlay, fault, fault.error, now_s):
                    return ledger.version_id, ledger.overlay_head
            except TookTooLong as error:
                self._fault(series, "", error, error, now_s)
                return ledger.version_id, ledger.overlay_head
        first = ledger.version_id + 1
        store.ledger.add_drawings(
            series, [Instruction.numbered(number, drawing) for number, drawing in enumerate(drawings, first)]
        )
        return ledger.version_id + len(drawings), factor_head

    def _fault(self, series: SeriesId, name: str, fault: Exception, error: object, now_s: float) -> bool:
        """Count a fault. Returns whether the plugin is suspended now, so that the others can go on."""
        self.faults[name] += 1
        self._in_a_row[name, series] += 1
        if isinstance(error, TookTooLong):
            self._timeouts[name] += 1
        times = self._in_a_row[name, series]
        self.last_fault[series] = str(fault)
        if name and (times >= MAX_FAULTS or self._timeouts[name] >= MAX_TIMEOUTS):
            self._suspend(name, series, fault)
            return True
        log.error(
            "ledger.lags",
            "its factors or overlays lag behind the candles",
            series=series,
            error=fault,
            exc_info=times == 1,
        )
        self._try_later(series, str(fault), now_s)
        return False

    def _suspend(self, name: str, series: SeriesId, fault: Exception) -> None:
        if name in self.overlays.names:
            self.overlays = self.overlays.without(name)
        else:
            remaining = self.factors.without(name)
            suspended = set(self.factors.names) - set(remaining.names)
            self.overlays = self.overlays.without_factors(*suspended)
            self.states.factors = remaining
        sentence = f"{name} is suspended until the next start, after it failed at {series} again and again: {fault}"
        self.suspended[name] = sentence
        log.error("plugin.suspended", "%s", sentence, plugin=name, series=series)
        self._fingerprint = self._fingerprint_now()
        self._ours.add(self._fingerprint)


def _next_record(ledger: Ledger) -> int:
    """The number of the next record: greater than that of this record, and than the number of every published drawing,
    so that a reader who follows both by one number misses nothing."""
    return max(ledger.record_id, ledger.version_id) + 1


def _newest_of_each(parts: Sequence[Sequence[Candle]]) -> list[Candle]:
    """The candles of several changes of a series, ascending; of one time that of the last change."""
    by_time = {candle.time: candle for part in parts for candle in part}
    return [by_time[time] for time in sorted(by_time)]


def _reaches(ledger: Ledger, time: int) -> bool:
    """Whether the ledger may depend on candles from `time` on; states that a trim has left lie before its head."""
    return ledger.factor_head is None or time <= ledger.factor_head


def _after(head: int | None) -> int:
    return -1 if head is None else head


def no_ledger(*, reads_flow: bool = False, redoes: LedgerStep | None = None) -> LedgerStep:
    """A step without factors and overlays: it computes nothing, and rewinds ledgers of changed candles.

    reads_flow: whether it does so too where only order flow was filled in; False by default.
    redoes: the step whose states it redoes in place of that, where they can be; None by default.
    """
    return LedgerStep(FactorGraph(()), OverlayGraph((), ()), reads_flow=reads_flow, redoes=redoes)

"""FactorStates: the states of factors after a candle, from memory or from a checkpoint and the candles behind it."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan

from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.factor.columns import Columns, Floats
from klinesync.factor.graph import FactorGraph, Said, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.indicator_handle import Handle
from klinesync.factor.plugin import ForeignStates, Seen, Upstream
from klinesync.storage.candles import CandleStore
from klinesync.storage.records import Ledger

# Candles between two checkpoints, which is what a restart or a rewind replays at most.
CHECKPOINT_CANDLES = 64
# Every 16th checkpoint (1,024 candles) is kept, for longer rewinds and for reads of the past.
KEPT_CHECKPOINTS = 16
# Most candles over which the states of factors that read order flow are redone in place. Two factors took 3.6
# microseconds a candle on an idle machine: 0.12 s of a transaction.
MAX_REDONE_CANDLES = 32_768
# Most series with states in memory; the least recently used are dropped, and read from the store again.
MAX_ENTRIES = 20_000


@dataclass(slots=True)
class Entry:
    """The states of a series in memory.

    states: of the factors, by name.
    record_id: the ledger record whose transaction computed these states.
    at_head: whether no newer candle was stored at that time.
    handles: TA-Lib's handles of the indicators that factors depend on, by name.
    shift: of the grid of the checkpoints of the series, in candles.
    """

    states: States
    record_id: int
    at_head: bool
    handles: dict[str, Handle]
    shift: int


class FactorStates:
    """The states of factors: at the heads of ledgers from memory, and at any stored candle from the store. Methods run
    on the writer thread unless their docstring says otherwise.

    factors: whose states are kept.
    indicators: on which factors may depend.
    """

    def __init__(self, factors: FactorGraph, indicators: Sequence[Indicator] = ()) -> None:
        self._all = factors  # encoded states may have those of a factor that was suspended later
        self.factors = factors
        self._indicators = {indicator.name: indicator for indicator in indicators}
        self._entries: OrderedDict[SeriesId, Entry] = OrderedDict()

    def get(self, series: SeriesId) -> Entry | None:
        """The remembered states of the series, whatever their record."""
        return self._entries.get(series)

    def recent(self, series: SeriesId) -> Entry | None:
        """The same, for a use of them: they are dropped after those that were used before."""
        entry = self._entries.get(series)
        if entry is not None:
            self._entries.move_to_end(series)
        return entry

    def checkpoint_due(self, series: SeriesId, entry: Entry, head: int, time: int) -> bool:
        """Whether the states after `head` are stored before the candle of `time` is computed."""
        return _cell(series, entry.shift, head) != _cell(series, entry.shift, time)

    def forget(self, series: SeriesId) -> None:
        """Drop the remembered states of the series, which are no longer true."""
        self._entries.pop(series, None)

    def at_head_of(self, store: CandleStore, series: SeriesId, ledger: Ledger) -> Entry:
        """The states at the ledger's head: from memory, or from a checkpoint and the candles behind it."""
        entry = self._entries.get(series)
        if entry is None or entry.record_id != ledger.record_id:
            states = self.at(store, series, ledger.factor_head)
            entry = self._entries[series] = Entry(states, ledger.record_id, False, {}, _shift_of(series))
            if len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
        self._entries.move_to_end(series)
        return entry

    def warm(self, store: CandleStore, series: SeriesId, ledger: Ledger) -> None:
        """Read the states of a series before a candle needs them, unless they are remembered. Only reads; may be called
        on any thread. Raises as `at` does."""
        if series not in self._entries:
            states = self.at(store, series, ledger.factor_head)
            at_head = store.head(series) == ledger.factor_head
            self._entries.setdefault(series, Entry(states, ledger.record_id, at_head, {}, _shift_of(series)))

    def at(self, store: CandleStore, series: SeriesId, time: int | None, factors: FactorGraph | None = None) -> States:
        """The states of the factors after the newest stored candle at `time` or before. None: before the first candle,
        where a trim may have stored states. May be called on any thread.

        factors: whose states, among the present ones; None: all of them.

        Raises `ForeignStates`, and `FactorFault` when a plugin has changed its behaviour.
        """
        factors = factors or self.factors
        before = store.first(series) if time is None else time + 1
        if before is None or not factors.names:
            return factors.seed()
        at, states = self._checkpoint(store, series, before, factors)
        needed = [self._indicators[name] for name in factors.outside]
        while time is not None and at < time:
            candles = _next_candles(store, series, at, time)
            if not candles:
                break
            states, _ = factors.advance_many(states, candles, values_at(store, series, needed, candles))
            at = candles[-1].time
        return states

    def _checkpoint(
        self, store: CandleStore, series: SeriesId, before: int, factors: FactorGraph
    ) -> tuple[int, States]:
        """The newest checkpoint before a time: its time, and the states of `factors`; -1 and their seed without one."""
        checkpoint = store.ledger.checkpoint(series, before)
        return (-1, factors.seed()) if checkpoint is None else (checkpoint[0], self._decoded(checkpoint[1], factors))

    def _decoded(self, encoded: bytes, factors: FactorGraph) -> States:
        try:
            decoded = self.factors.decode(encoded)
        except ForeignStates:
            decoded = self._all.decode(encoded)
        try:
            return {name: decoded[name] for name in factors.names}
        except KeyError as error:
            raise ForeignStates(f"the factor {error} was suspended meanwhile") from None

    def redo_flow(self, store: CandleStore, series: SeriesId, ledger: Ledger, first: int, last: int) -> bool:
        """Redo the states that depend on order flow, after order flow of candles from `first` to `last` was filled in:
        in the checkpoints, and in memory. Ends at the first checkpoint from `last` on whose states stay: later ones
        stay too.

        series: the series.
        ledger: of the series; these factors have computed it beyond `first`.
        first, last: open times of candles that were filled in.

        Returns False, and changes nothing, when that takes more than `MAX_REDONE_CANDLES`, or when a factor had given
        a number that is another one now: readers have to be told of such a change. Raises `ForeignStates` and
        `FactorFault`, with nothing changed.
        """
        head = ledger.factor_head
        assert head is not None, "there is a state to redo"
        entry = self._entries.get(series)
        if entry is not None and entry.record_id != ledger.record_id:
            # Of a transaction that failed: a later record may have the same number.
            self.forget(series)
            entry = None
        graph = self.factors.of_flow
        needed = [self._indicators[name] for name in graph.outside]
        at, states = self._checkpoint(store, series, first, graph)
        newest, _ = store.ledger.checkpoint(series, head + 1) or (-1, b"")
        redone: list[tuple[int, bytes, bool]] = []
        steady, folded = False, 0
        while at < head and not steady:
            candles = _next_candles(store, series, at, head)
            if not candles:
                break
            folded += len(candles)
            if folded > MAX_REDONE_CANDLES:
                return False
            outside = values_at(store, series, needed, candles)
            done = 0
            for end, time, encoded in self._checkpoints_among(store, series, candles):
                states, _ = graph.advance_many(states, candles[done:end], outside and outside[done:end])
                done = end
                stored = self.factors.decode(encoded)
                if not _numbers_stay(graph, stored, states, time):
                    return False
                steady = time >= last and graph.encode(_of(graph, stored)) == graph.encode(states)
                if steady:
                    break
                # Every checkpoint but the newest is a kept one: the others were replaced.
                kept = time != newest or _is_kept(series, time, store.oldest(series, 1, since=time))
                redone.append((time, self.factors.encode({**stored, **states}, time), kept))
            if not steady:
                states, _ = graph.advance_many(states, candles[done:], outside and outside[done:])
            at = candles[-1].time
        if entry is not None and not steady:
            if not _numbers_stay(graph, entry.states, states, head):
                return False
            entry.states = {**entry.states, **states}
        for time, encoded, kept in redone:
            store.ledger.add_checkpoint(series, time, encoded, kept=kept)
        return True

    def _checkpoints_among(
        self, store: CandleStore, series: SeriesId, candles: Sequence[Candle]
    ) -> Iterator[tuple[int, int, bytes]]:
        """The stored checkpoints of candles, ascending: the number of candles up to it, its time, its states."""
        positions = {candle.time: position for position, candle in enumerate(candles)}
        newest_first: list[tuple[int, int, bytes]] = []
        before = candles[-1].time + 1
        while (checkpoint := store.ledger.checkpoint(series, before)) is not None and checkpoint[0] >= candles[0].time:
            before, encoded = checkpoint
            if before in positions:
                newest_first.append((positions[before] + 1, before, encoded))
        return reversed(newest_first)

    def fold(
        self, store: CandleStore, series: SeriesId, head: int | None, entry: Entry, candles: Sequence[Candle]
    ) -> tuple[States, list[Said]]:
        """The states after the candles, and the events; stores the checkpoints between."""
        states = entry.states
        events: list[Said] = []
        shift = entry.shift
        last = _cell(series, shift, candles[-1].time)
        first = 0
        while first < len(candles):
            cell = _cell(series, shift, candles[first].time)
            if head is not None and cell != (before := _cell(series, shift, head)):
                keep = cell // KEPT_CHECKPOINTS != before // KEPT_CHECKPOINTS
                if keep or cell == last:
                    store.ledger.add_checkpoint(series, head, self.factors.encode(states, head), kept=keep)
            end = first + 1
            while end < len(candles) and _cell(series, shift, candles[end].time) == cell:
                end += 1
            run = candles[first:end]
            states, run_events = self.factors.advance_many(states, run, self._outside(store, series, entry, run))
            events += run_events
            first, head = end, run[-1].time
        return states, events

    def _outside(
        self, store: CandleStore, series: SeriesId, entry: Entry, candles: Sequence[Candle]
    ) -> list[Upstream] | None:
        """The values of the indicators that factors depend on, at these candles."""
        needed = self.factors.outside
        if not needed:
            return None
        rows: list[dict[str, Seen]] = [{} for _ in candles]
        for name in needed:
            indicator = self._indicators[name]
            handle = entry.handles.get(name)
            if handle is None:
                before = store.newest(series, indicator.warm_up, before=candles[0].time)
                handle = entry.handles[name] = indicator.open(series.timeframe, Columns.of(before))
            keys = [output.key for output in indicator.outputs]
            for row, candle in zip(rows, candles, strict=True):
                row[name] = Seen(dict(zip(keys, handle.update(candle), strict=True)))
        return list(rows)


def outputs_at(
    store: CandleStore, series: SeriesId, indicators: Sequence[Indicator], candles: Sequence[Candle]
) -> dict[str, dict[str, Floats]]:
    """The outputs of indicators at stored candles, by the indicator's name and the output's key.

    store: has the candles before.
    series: whose candles.
    indicators: to compute.
    candles: consecutive and stored.
    """
    if not (indicators and candles):
        return {}
    before = store.newest(series, max(indicator.warm_up for indicator in indicators), before=candles[0].time)
    columns = Columns.of([*before, *candles])
    return {indicator.name: indicator.compute(series.timeframe, columns, len(before)) for indicator in indicators}


def values_at(
    store: CandleStore, series: SeriesId, indicators: Sequence[Indicator], candles: Sequence[Candle]
) -> list[Upstream] | None:
    """The same values, a mapping for each candle; None without indicators. Parameters as for `outputs_at`."""
    if not indicators:
        return None
    rows: list[dict[str, Seen]] = [{} for _ in candles]
    for name, outputs in outputs_at(store, series, indicators, candles).items():
        for row, numbers in zip(rows, zip(*(output.tolist() for output in outputs.values()), strict=True), strict=True):
            row[name] = Seen(dict(zip(outputs, numbers, strict=True)))
    return list(rows)


def _next_candles(store: CandleStore, series: SeriesId, since: int, upto: int) -> list[Candle]:
    """The next candles after `since`, at most those between two kept checkpoints, and none after `upto`."""
    candles = store.oldest(series, KEPT_CHECKPOINTS * CHECKPOINT_CANDLES, since=since)
    return [candle for candle in candles if candle.time <= upto]


def _of(factors: FactorGraph, states: States) -> States:
    return {name: states[name] for name in factors.names}


def _numbers_stay(factors: FactorGraph, before: States, after: States, candle_time: int) -> bool:
    """Whether each output has the number that it had before, if it had one."""
    numbers = factors.numbers(_of(factors, after), candle_time)
    return all(
        isnan(number) or number == numbers[key]
        for key, number in factors.numbers(_of(factors, before), candle_time).items()
    )


def _cell(series: SeriesId, shift: int, time: int) -> int:
    """The number of the cell between checkpoints that a candle lies in."""
    return (time // series.timeframe.seconds + shift) // CHECKPOINT_CANDLES


def _is_kept(series: SeriesId, time: int, following: Sequence[Candle]) -> bool:
    """Whether a checkpoint at `time` is a kept one: the candle after it, if there is one, begins a kept cell."""
    shift = _shift_of(series)
    cell = _cell(series, shift, time) // KEPT_CHECKPOINTS
    return all(_cell(series, shift, candle.time) // KEPT_CHECKPOINTS != cell for candle in following)


def _shift_of(series: SeriesId) -> int:
    """The shift of the checkpoints of a series, so that not all series store their states in the same minute."""
    return zlib.crc32(str(series).encode()) % CHECKPOINT_CANDLES

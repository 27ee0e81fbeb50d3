"""FactorStates: the states of factors after a candle, from memory or from a checkpoint and the candles behind it."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

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
        step_s, shift = series.timeframe.seconds, entry.shift
        return _cell_of(head, step_s, shift) != _cell_of(time, step_s, shift)

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

    def at(self, store: CandleStore, series: SeriesId, time: int | None) -> States:
        """The states of the factors after the stored candle at `time`. None: before the first candle, where a trim may
        have stored states. May be called on any thread.

        Raises `ForeignStates`, and `FactorFault` when a plugin has changed its behaviour.
        """
        factors = self.factors
        states = factors.seed()
        before = store.first(series) if time is None else time + 1
        if before is None:
            return states
        at = -1
        checkpoint = store.ledger.checkpoint(series, before)
        if checkpoint is not None:
            at, encoded = checkpoint
            try:
                states = factors.decode(encoded)
            except ForeignStates:
                decoded = self._all.decode(encoded)
                states = {name: decoded[name] for name in factors.names}
        needed = [self._indicators[name] for name in factors.outside]
        while time is not None and at < time:
            candles = store.oldest(series, KEPT_CHECKPOINTS * CHECKPOINT_CANDLES, since=at)
            candles = [candle for candle in candles if candle.time <= time]
            if not candles:
                break
            states, _ = factors.advance_many(states, candles, values_at(store, series, needed, candles))
            at = candles[-1].time
        return states

    def fold(
        self, store: CandleStore, series: SeriesId, head: int | None, entry: Entry, candles: Sequence[Candle]
    ) -> tuple[States, list[Said]]:
        """The states after the candles, and the events; stores the checkpoints between."""
        states = entry.states
        events: list[Said] = []
        frame_s, shift = series.timeframe.seconds, entry.shift

        def cell_of(time: int) -> int:
            return _cell_of(time, frame_s, shift)

        last = cell_of(candles[-1].time)
        first = 0
        while first < len(candles):
            cell = cell_of(candles[first].time)
            if head is not None and cell != (before := cell_of(head)):
                keep = cell // KEPT_CHECKPOINTS != before // KEPT_CHECKPOINTS
                if keep or cell == last:
                    store.ledger.add_checkpoint(series, head, self.factors.encode(states, head), kept=keep)
            end = first + 1
            while end < len(candles) and cell_of(candles[end].time) == cell:
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


def _cell_of(time: int, step_s: int, shift: int) -> int:
    """The number of the span between two checkpoints."""
    return (time // step_s + shift) // CHECKPOINT_CANDLES


def _shift_of(series: SeriesId) -> int:
    """The shift of the checkpoints of a series, so that not all series store their states in the same minute."""
    return zlib.crc32(str(series).encode()) % CHECKPOINT_CANDLES

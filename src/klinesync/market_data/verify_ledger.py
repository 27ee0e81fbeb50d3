"""LedgerVerifier: recomputes the ledger of a series from the stored candles, and compares.

The states are folded from the first candle on, in windows of candles, each window in one snapshot. Events, drawings,
their numbers and every checkpoint must equal the stored ones, bit for bit. The fold of a trimmed series begins with its
first remaining checkpoint, which is not verified.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.series_id import SeriesId
from klinesync.factor.graph import Said, States
from klinesync.factor.indicator import Indicator
from klinesync.factor.plugin import FactorFault, ForeignStates
from klinesync.market_data.findings import Difference, LedgerAudit, SeriesAudit
from klinesync.overlay.instruction import Drawing, Instruction
from klinesync.overlay.plugin import OverlayFault
from klinesync.pipelines.factor_states import values_at
from klinesync.pipelines.ledger_step import LedgerStep
from klinesync.storage.candles import CandleStore
from klinesync.storage.damage import StoreDamaged
from klinesync.storage.database import Reading
from klinesync.storage.records import Ledger

# Candles of a window.
WINDOW_CANDLES = 10_000
# Attempts at a ledger that is rewound while it is read.
TRIES = 3
# Longest text of a stored or expected value in a finding, in characters.
MAX_TEXT_CHARS = 200
# Before and after every time of a store.
_NEVER, _EVER = -(1 << 62), 1 << 62

_encode = msgspec.json.Encoder().encode


class _Changed(Exception):
    """The ledger was rewound or trimmed since the last window."""


class LedgerVerifier:
    """Verifies ledgers. `step`: the factors and overlays; `indicators`: that factors may depend on."""

    def __init__(self, step: LedgerStep, indicators: Sequence[Indicator]) -> None:
        self.step = step
        self.needed = [indicator for indicator in indicators if indicator.name in step.factors.outside]

    def audit(self, store: Reading, audit: SeriesAudit, progress: Callable[[SeriesAudit], None]) -> None:
        """Verify the ledger of a series.

        store: to read from.
        audit: of the series; gets `ledger` and differences.
        progress: called with `audit` after each window.

        Raises `StoreError`.
        """
        if self.step.idle:
            return
        for attempt in range(TRIES):
            walk = _Walk(self, audit.series)
            try:
                while not store.read(walk.look):
                    audit.now = f"factors computed up to {date_text(walk.since)}"
                    progress(audit)
            except _Changed:
                continue
            if walk.notes.kinds and walk.moved and self.step.factors.reads_flow and attempt < TRIES - 1:
                continue  # order flow may have been filled in behind the walk: states change within an epoch then
            audit.ledger = walk.found
            for kind, count in walk.notes.kinds.items():
                audit.kinds[kind] = audit.kinds.get(kind, 0) + count
            audit.shown = [*audit.shown, *walk.notes.shown]
            return
        audit.ledger = LedgerAudit("changing")


class _Walk:
    """An attempt at the ledger of a series. `since`: the candle up to which the states are folded."""

    def __init__(self, verifier: LedgerVerifier, series: SeriesId) -> None:
        self._step = verifier.step
        self._factors = verifier.step.factors
        self._overlays = verifier.step.overlays
        self._needed = verifier.needed
        self._series = series
        self.notes = SeriesAudit(series)
        self.found = LedgerAudit("none")
        self.since = -1
        self._ledger: Ledger | None = None  # at the beginning
        self._states: States = {}
        self._from = _NEVER  # stored data from this time on has not been compared yet
        self._drawings = 0
        self._base: int | None = 0  # number before that of the first drawing; None: unknown after a trim
        self._undrawn_after: int | None = None  # the overlay head, when there are events after it
        self.moved = False  # whether the ledger has another record than at the beginning

    def look(self, store: CandleStore) -> bool:
        """Verify the next window. Returns whether it is the last. Raises `_Changed`."""
        ledger = store.ledger.get(self._series)
        first = store.first(self._series)
        if self._ledger is None:
            if ledger is None:
                return True
            self.found = LedgerAudit("other_factors", ledger.epoch, ledger.factor_head, ledger.overlay_head)
            if not self._step.computed(ledger):
                return True
            self._ledger = ledger
            self._set_status(store, ledger)
            if not self._begin(store, first):
                return True
        elif ledger is None or ledger.epoch != self._ledger.epoch or first is None or first > self.since:
            raise _Changed
        self.moved = self.moved or ledger.record_id != self._ledger.record_id
        if self._undrawn_after is not None and ledger.overlay_head != self._undrawn_after:
            raise _Changed
        head = -1 if ledger.factor_head is None else ledger.factor_head
        candles = store.oldest(self._series, WINDOW_CANDLES, since=self.since)
        whole = len(candles) < WINDOW_CANDLES or candles[-1].time >= head
        candles = [candle for candle in candles if candle.time <= head]
        try:
            self._window(store, ledger, candles)
        except FactorFault as fault:
            self._note("factor_fault", fault.candle_time, f"its ledger goes beyond this candle, but now {fault}")
            whole = True
        except OverlayFault as fault:
            self._note("overlay_fault", self.since, f"its ledger goes beyond this, but now {fault}")
            whole = True
        if whole:
            self._finish(store, ledger)
        return whole

    def _begin(self, store: CandleStore, first: int | None) -> bool:
        """Set the first states. Returns whether there are any."""
        factors = self._factors
        self._states = factors.seed()
        checkpoint = None if first is None else store.ledger.checkpoint(self._series, first)
        if first is None or checkpoint is None:
            return True
        self._base = None
        if self._needed:
            # Near the edge, indicators were computed with candles that were trimmed since: begin after the warm-up.
            checkpoint = self._after_warm_up(store, first)
            if checkpoint is None:
                return False
            self._from = checkpoint[0] + 1
        self.since, encoded = checkpoint
        try:
            self._states = factors.decode(encoded)
        except ForeignStates as error:
            self._note("checkpoint_wrong", self.since, f"it is what the series begins with, and {error}")
            return False
        return True

    def _after_warm_up(self, store: CandleStore, first: int) -> tuple[int, bytes] | None:
        """The first checkpoint with enough candles before it for the warm-up of indicators; None when there is none."""
        warm_up = max(indicator.warm_up for indicator in self._needed)
        since = first - 1
        while warm_up > 0:
            candles = store.oldest(self._series, min(warm_up, WINDOW_CANDLES), since=since)
            if not candles:
                return None
            warm_up, since = warm_up - len(candles), candles[-1].time
        edge = since
        while candles := store.oldest(self._series, WINDOW_CANDLES, since=since):
            since = candles[-1].time
            oldest, before = None, since + 1
            while (checkpoint := store.ledger.checkpoint(self._series, before)) is not None and checkpoint[0] >= edge:
                oldest, before = checkpoint, checkpoint[0]
            if oldest is not None:
                return oldest
        return None

    def _window(self, store: CandleStore, ledger: Ledger, candles: Sequence[Candle]) -> None:
        """Fold over the candles, and compare the stored data from `_from` up to the last candle."""
        if not candles:
            return
        end = candles[-1].time + 1
        said = self._fold(store, candles)
        self._compare_events(store, said, end)
        overlay_head = -1 if ledger.overlay_head is None else ledger.overlay_head
        to_draw = [event for event in said if _time_of(event) <= overlay_head]
        if len(to_draw) < len(said):
            self._undrawn_after = ledger.overlay_head
        self._compare_drawings(store, self._overlays.draw(to_draw), end)
        self._from = end

    def _fold(self, store: CandleStore, candles: Sequence[Candle]) -> list[Said]:
        """The events at the candles. Advances the states, and compares checkpoints on the way."""
        outside = values_at(store, self._series, self._needed, candles)
        times = [candle.time for candle in candles]
        said: list[Said] = []
        at = 0
        for time, encoded in [*self._checkpoints(store, times[-1]), (times[-1], None)]:
            end = bisect_right(times, time)
            beside = None if outside is None else outside[at:end]
            self._states, new = self._factors.advance_many(self._states, candles[at:end], beside)
            said += new
            at, self.since = end, times[end - 1] if end else self.since
            if encoded is None:
                continue
            self.found.checkpoints += 1
            if self.since != time:
                self._note("checkpoint_wrong", time, "there is no candle of its time")
            elif not self._same_states(encoded, time):
                self._note("checkpoint_wrong", time, "the candles up to it give other states")
        return said

    def _checkpoints(self, store: CandleStore, upto: int) -> list[tuple[int, bytes | None]]:
        """The checkpoints after `since` up to a time, ascending."""
        newest_first: list[tuple[int, bytes | None]] = []
        before = upto + 1
        while (checkpoint := store.ledger.checkpoint(self._series, before)) is not None and checkpoint[0] > self.since:
            newest_first.append(checkpoint)
            before = checkpoint[0]
        return newest_first[::-1]

    def _same_states(self, encoded: bytes, time: int) -> bool:
        ours = self._factors.encode(self._states, time)
        if ours == encoded:
            return True
        try:
            return self._factors.decode(encoded) == self._factors.decode(ours)
        except ForeignStates:
            return False

    def _compare_events(self, store: CandleStore, said: Sequence[Said], end: int) -> None:
        expected: dict[int, list[bytes]] = {}
        for event in said:
            expected.setdefault(_time_of(event), []).append(_encode(event))
        self.found.events += len(said)

        def read(start: int, end: int) -> list[tuple[int, bytes]]:
            return [(_time_of(event), _encode(event)) for event in store.ledger.events(self._series, start, end)]

        self._compare("factor_event", read, expected, end)

    def _compare_drawings(self, store: CandleStore, drawn: Sequence[Drawing], end: int) -> None:
        by_time: dict[int, list[tuple[int, Drawing]]] = {}
        for count, drawing in enumerate(drawn, self._drawings + 1):
            by_time.setdefault(drawing.visible_time, []).append((count, drawing))
        self._drawings += len(drawn)
        self.found.drawings += len(drawn)
        if self._base is None:
            self._base = self._base_of(store, by_time)
        base = _NEVER if self._base is None else self._base
        expected = {
            time: [_encode(Instruction.numbered(base + count, drawing)) for count, drawing in drawings]
            for time, drawings in by_time.items()
        }

        def read(start: int, end: int) -> list[tuple[int, bytes]]:
            return [
                (stored.visible_time, _encode(stored)) for stored in store.ledger.drawings(self._series, start, end)
            ]

        self._compare("drawing", read, expected, end)

    def _base_of(self, store: CandleStore, by_time: dict[int, list[tuple[int, Drawing]]]) -> int | None:
        """The number before that of the first drawing after a trim, by the first drawing that is stored as expected."""
        for time, drawings in by_time.items():
            try:
                instructions = store.ledger.drawings(self._series, time, time + 1)
            except StoreDamaged:
                continue
            for count, drawing in drawings:
                for stored in instructions:
                    if stored == Instruction.numbered(stored.version_id, drawing):
                        return stored.version_id - count
        return None

    def _compare(
        self,
        what: str,
        read: Callable[[int, int], list[tuple[int, bytes]]],
        expected: dict[int, list[bytes]],
        end: int,
    ) -> None:
        """Compare the stored data in `[_from, end)` with the expected data.

        what: prefix of the kind of a difference.
        read: reads the times and texts of a span.
        expected: texts by time.
        end: open time, exclusive.
        """
        compared: Counter[bytes] = Counter()
        for time, texts in expected.items():
            try:
                stored = [text for _, text in read(time, time + 1)]
            except StoreDamaged:
                continue  # noted below
            compared.update(stored)
            self._compare_texts(what, time, stored, texts)
        for time, text in _readable(read, self._from, end):
            if text is None:
                self._note(f"{what}_wrong", time, "it cannot be read")
            elif compared[text]:
                compared[text] -= 1
            else:
                self._note(f"{what}_unexpected", time, f"it is stored, and the candles do not give it: {_short(text)}")

    def _compare_texts(self, what: str, time: int, stored: list[bytes], expected: list[bytes]) -> None:
        if stored == expected:
            return
        missing = list((Counter(expected) - Counter(stored)).elements())
        extra = list((Counter(stored) - Counter(expected)).elements())
        if not (missing or extra):
            self._note(f"{what}_wrong", time, "they are stored in another order")
        for text, right in zip(extra, missing, strict=False):
            self._note(f"{what}_wrong", time, f"it is stored as {_short(text)}, and the candles give {_short(right)}")
        for text in missing[len(extra) :]:
            self._note(f"{what}_missing", time, f"the candles give it: {_short(text)}")
        for text in extra[len(missing) :]:
            self._note(f"{what}_unexpected", time, f"it is stored, and the candles do not give it: {_short(text)}")

    def _finish(self, store: CandleStore, ledger: Ledger) -> None:
        """Check the heads, and stored data after them."""
        series = self._series
        head, first = store.head(series), store.first(series)
        factor_head, overlay_head = ledger.factor_head, ledger.overlay_head
        self._set_status(store, ledger)
        for name, at, most in (("factor", factor_head, head), ("overlay", overlay_head, factor_head)):
            if at is None:
                continue
            if most is None or at > most:
                self._note("ledger_head", at, f"the {name} head is ahead of what it is computed from")
            elif first is not None and at >= first and not store.between(series, at, at + 1):
                self._note("ledger_head", at, f"there is no candle at the {name} head")
        if self.notes.kinds.keys() & {"factor_fault", "overlay_fault"}:
            return
        if self._base is not None and ledger.version_id != self._base + self._drawings:
            newest = self._base + self._drawings
            what = f"its newest drawing is said to have the number {ledger.version_id}, and has {newest}"
            self._note("ledger_head", overlay_head or 0, what)
        # Data after the head: up to the newest candle in windows, and then at once.
        low, high = first or 0, (head or 0) + 1
        for end in (*range(low, high, WINDOW_CANDLES * series.timeframe.seconds), high, _EVER):
            if end > self._from:
                self._compare_events(store, (), end)
                self._compare_drawings(store, (), end)
                self._from = end
        before = _EVER
        while (checkpoint := store.ledger.checkpoint(series, before)) is not None:
            before = checkpoint[0]
            if before <= self.since or (factor_head is not None and before <= factor_head):
                break
            self._note("checkpoint_wrong", before, "it lies ahead of the factor head")

    def _set_status(self, store: CandleStore, ledger: Ledger) -> None:
        found = self.found
        found.factor_head, found.overlay_head = ledger.factor_head, ledger.overlay_head
        at_head = store.head(self._series) == ledger.factor_head == ledger.overlay_head
        found.status = "up_to_date" if at_head else "lagging"

    def _note(self, kind: str, time: int, what: str) -> None:
        self.notes.note(Difference(kind, time, what))


def _readable(
    read: Callable[[int, int], list[tuple[int, bytes]]], start: int, end: int
) -> list[tuple[int, bytes | None]]:
    """The times and texts that `read` gives in `[start, end)`. A None stands for damaged data: at that time, or from
    that time on when the span of the damage is unknown or longer."""
    texts: list[tuple[int, bytes | None]] = []
    while start < end:
        try:
            return [*texts, *read(start, end)]
        except StoreDamaged as error:
            span = error.damage.span
            if span is None or span.end - span.start > 1:
                return [*texts, (start, None)]
            texts += _readable(read, start, span.start)
            texts.append((span.start, None))
            start = span.end
    return texts


def _time_of(said: Said) -> int:
    time = said.event.get("visible_time")
    return time if isinstance(time, int) else -1


def _short(text: bytes) -> str:
    whole = text.decode()
    return whole if len(whole) <= MAX_TEXT_CHARS else f"{whole[:MAX_TEXT_CHARS]} …"

"""Findings of `verify`: differences of a series, counted by kind, with the first few as examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from klinesync.core.candle import Candle
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId

# Most differences of a series that are kept as examples; all are counted.
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between stored and expected data.

    kind: damaged, bad_candle; hole_not_in_ledger, gap_not_a_hole, bad_gap; derived_wrong, derived_unexpected,
        derived_missing; ledger_head; factor_event_wrong, -_unexpected, -_missing, drawing_wrong, -_unexpected,
        -_missing, checkpoint_wrong.
    time: open time, UTC seconds.
    what: a sentence.
    stored, expected: candles, if the kind has them.
    """

    kind: str
    time: int
    what: str
    stored: Candle | None = None
    expected: Candle | None = None


# none: nothing was computed yet. lagging: behind the candles; compared up to its head. other_factors: computed by other
# factors, versions or parameters, and not compared. changing: rewound repeatedly while it was read.
LedgerStatus = Literal["none", "up_to_date", "lagging", "other_factors", "changing"]


@dataclass(slots=True)
class LedgerAudit:
    """The state of a series' ledger, and the numbers of events, drawings and checkpoints that were compared. Heads are
    open times."""

    status: LedgerStatus
    epoch: int = 0
    factor_head: int | None = None
    overlay_head: int | None = None
    events: int = 0
    drawings: int = 0
    checkpoints: int = 0


@dataclass(slots=True)
class SeriesAudit:
    """The findings of a series.

    series: the series.
    base: the base of a derived series; None for another series.
    first, head: open times of the first and the last candle.
    count: number of candles.
    native: number of native candles.
    gaps: numbers of gaps and of missing candles, by state.
    ledger: None when no factors run.
    kinds: number of differences by kind.
    shown: the first differences.
    now: a sentence about the progress.
    """

    series: SeriesId
    base: SeriesId | None = None
    first: int | None = None
    head: int | None = None
    count: int = 0
    native: int = 0
    gaps: dict[GapState, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(GapState, (0, 0)))
    ledger: LedgerAudit | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    shown: list[Difference] = field(default_factory=list)
    now: str = ""

    @property
    def differences(self) -> int:
        """Number of differences."""
        return sum(self.kinds.values())

    def note(self, difference: Difference, count: int = 1) -> None:
        """Add `count` differences (1 by default) with `difference` as their example."""
        self.kinds[difference.kind] = self.kinds.get(difference.kind, 0) + count
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(difference)

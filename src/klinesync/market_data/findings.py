"""What an audit finds: differences of a series, counted by kind, the first few of them kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from klinesync.core.candle import Candle
from klinesync.core.gaps import GapState
from klinesync.core.series_id import SeriesId

# Differences of a series that are shown; all are counted.
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """What is stored at `time` and what should be. `kind` is for machines, `what` for people. Kinds: damaged,
    bad_candle; hole_not_in_ledger, gap_not_a_hole, bad_gap; derived_wrong, derived_unexpected, derived_missing;
    ledger_head; factor_event_wrong, -_unexpected, -_missing, drawing_wrong, -_unexpected, -_missing,
    checkpoint_wrong.
    `stored` and `expected` are candles where the kind has them."""

    kind: str
    time: int
    what: str
    stored: Candle | None = None
    expected: Candle | None = None


# none: nothing was ever computed. lagging: behind the candles; what there is was compared. other_factors: computed by
# other factors, versions or parameters, and not compared. changing: it was rewound again and again while it was read.
LedgerStatus = Literal["none", "up_to_date", "lagging", "other_factors", "changing"]


@dataclass(slots=True)
class LedgerAudit:
    """How far a series' factors and overlays are, and what of them was compared: counts of events, drawings and
    checkpoints. Heads are open times."""

    status: LedgerStatus
    epoch: int = 0
    factor_head: int | None = None
    overlay_head: int | None = None
    events: int = 0
    drawings: int = 0
    checkpoints: int = 0


@dataclass(slots=True)
class SeriesAudit:
    """What was found in one series. `base`: the series that it was computed anew from. `gaps`: spans and candles
    missing, by state. `native`: how many are the exchange's own. `ledger`: None where no factors run. `kinds`: how many
    differences there are of each kind; `shown`: the first few. `now`: what is being done, for progress."""

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
        """How many there are; 0 is well."""
        return sum(self.kinds.values())

    def note(self, difference: Difference, count: int = 1) -> None:
        """One more; `count` of them, of which this is the one to show."""
        self.kinds[difference.kind] = self.kinds.get(difference.kind, 0) + count
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(difference)

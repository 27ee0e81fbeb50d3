"""Gaps: the missing spans of a series, and the state of each of them.

The gap ledger of a series is ascending, disjoint and merged: neighbours of one state (and one proof) are one row. The
store keeps one row a gap, so every operation here is a plain function from the rows that touch its spans to a
`GapChange`: the rows to delete and the rows to insert. Other rows may be passed too, the whole ledger for example; they
stay as they are.

An open time between the first and the last stored candle that is not in the ledger is stored. Only a noted gap can be
healed, confirmed empty or lost, so a stored candle can never be declared empty by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from klinesync.core.spans import Span, clipped, common, hull, joined, missing_spans, runs, without
from klinesync.core.timeframe import Timeframe


class GapState(StrEnum):
    """The state of a gap: nothing is known yet; being requested; the exchange has no candles there; or no source has
    its candles any more."""

    UNKNOWN = "unknown"
    HEALING = "healing"
    CONFIRMED_EMPTY = "confirmed_empty"
    LOST = "lost"


# States of gaps that are not requested any more. A settled gap has a proof: why, and since when.
SETTLED = frozenset({GapState.CONFIRMED_EMPTY, GapState.LOST})
# The proof of a source that has the symbol's present listing only: of candles of an earlier listing it shows nothing.
NOT_LISTED_BEFORE = "the exchange lists the symbol only since then, and its first row is not before it"


class Gap(NamedTuple):
    """One row of the ledger. `proof` (a text) and `time` (UTC seconds by which the whole gap was confirmed or given up)
    are set when, and only when, the gap is settled: confirmed empty or lost."""

    start: int
    end: int
    state: GapState
    proof: str | None = None
    time: int | None = None

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)

    def over(self, span: Span) -> Gap:
        """A gap of the same state, proof and time over another span."""
        return self._replace(start=span.start, end=span.end)


@dataclass(frozen=True, slots=True)
class GapChange:
    """Rows to delete, then rows to insert; both ascending. False when both are empty."""

    delete: tuple[Gap, ...] = ()
    insert: tuple[Gap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.delete or self.insert)

    def applied_to(self, gaps: Iterable[Gap]) -> list[Gap]:
        """The ledger after this change."""
        return sorted((set(gaps) - set(self.delete)) | set(self.insert))


# --- changes of the ledger


def note(gaps: Sequence[Gap], holes: Sequence[Span]) -> GapChange:
    """Note missing open times: the parts of `holes` that are no gap yet become unknown gaps."""
    new = without(holes, [gap.span for gap in gaps])
    return _change(gaps, sorted([*gaps, *(Gap(*span, GapState.UNKNOWN) for span in new)]))


def fill(gaps: Sequence[Gap], filled: Sequence[Span]) -> GapChange:
    """Remove `filled` from the ledger, whatever its state: candles arrived, or their times are of no more interest."""
    return _change(gaps, [gap.over(left) for gap in gaps for left in without([gap.span], filled)])


def begin_healing(gaps: Sequence[Gap], spans: Sequence[Span]) -> GapChange:
    """Begin requesting `spans`: their unknown and lost parts become healing."""
    return _turn(gaps, spans, (GapState.UNKNOWN, GapState.LOST), GapState.HEALING)


def end_healing(gaps: Sequence[Gap], spans: Sequence[Span]) -> GapChange:
    """End requesting `spans` (given up, or a restart): their healing parts become unknown."""
    return _turn(gaps, spans, (GapState.HEALING,), GapState.UNKNOWN)


def confirm_empty(gaps: Sequence[Gap], spans: Sequence[Span], proof: str, time: int) -> GapChange:
    """The exchange has shown that it has no candles in `spans`.

    gaps: the rows that touch `spans`.
    spans: the empty spans.
    proof: how the exchange has shown it, as a text.
    time: when, in UTC seconds.

    Parts that were confirmed before keep their proof and time, so that confirming again writes nothing.
    """
    assert proof, "a gap is confirmed empty by a proof"
    old = (GapState.UNKNOWN, GapState.HEALING, GapState.LOST)
    return _turn(gaps, spans, old, GapState.CONFIRMED_EMPTY, proof, time)


def lose(gaps: Sequence[Gap], spans: Sequence[Span], reason: str, time: int) -> GapChange:
    """No source has the candles of `spans` any more.

    gaps: the rows that touch `spans`.
    spans: the lost spans.
    reason: why, as a text.
    time: since when, in UTC seconds.
    """
    assert reason, "a gap is lost for a reason"
    return _turn(gaps, spans, (GapState.UNKNOWN, GapState.HEALING), GapState.LOST, reason, time)


def arrived(gaps: Sequence[Gap], timeframe: Timeframe, stored: Span | None, times: Sequence[int]) -> GapChange:
    """Candles were written. The gaps that they fill are removed; open times between them and `stored`, or between two
    of them outside `stored`, are noted as gaps.

    gaps: the rows that touch `reach(timeframe, stored, times)`.
    timeframe: of the series.
    stored: from the first stored open time to the end of the last stored candle, before the write; None when nothing
        was stored.
    times: open times of the written candles, strictly ascending.
    """
    if not times:
        return GapChange()
    filled = runs(timeframe, times)
    covered = filled if stored is None else sorted([*without(filled, [stored]), stored])
    holes = without([hull(covered)], covered)
    left = fill(gaps, filled).applied_to(gaps)
    return _change(gaps, note(left, holes).applied_to(left))


def reach(timeframe: Timeframe, stored: Span | None, times: Sequence[int]) -> Span:
    """The span in which `arrived` can change the ledger: `times` (not empty) and what joins them to `stored`."""
    start, end = times[0], timeframe.next(times[-1])
    return Span(start, end) if stored is None else Span(min(start, stored.end), max(end, stored.start))


# --- questions to the ledger


def unproven(gaps: Sequence[Gap], stored: Span | None, window: Span) -> list[Span]:
    """The parts of `window` that are neither stored nor confirmed empty: open and lost gaps, and the times outside
    `stored`. No candle has to be read for this."""
    return _outside(gaps, stored, window, frozenset({GapState.CONFIRMED_EMPTY}))


def unsettled(gaps: Sequence[Gap], stored: Span | None, window: Span) -> list[Span]:
    """The parts of `window` that may still be requested: neither stored, nor confirmed empty, nor lost."""
    return joined(_outside(gaps, stored, window, SETTLED))


def _outside(gaps: Sequence[Gap], stored: Span | None, window: Span, states: frozenset[GapState]) -> list[Span]:
    """The parts of `window` that are neither stored nor a gap in one of the `states`."""
    inside = clipped((gap.span for gap in gaps if gap.state not in states), window)
    outside = without([window], [] if stored is None else [stored])
    return sorted(inside + without(outside, [gap.span for gap in gaps]))


def declared(timeframe: Timeframe, window: Span, times: Sequence[int], gaps: Sequence[Gap]) -> list[Gap]:
    """The holes that stored candles leave in a window, as gaps: in the states of the ledger, and unknown where the
    ledger has no row.

    timeframe: of the series.
    window: where to look.
    times: open times of the stored candles, strictly ascending.
    gaps: rows of the ledger.
    """
    holes = missing_spans(timeframe, *window, times)
    if not holes:
        return []
    told = [gap.over(span) for gap in gaps for span in common([gap.span], holes)]
    untold = without(holes, [gap.span for gap in told])
    return sorted([*told, *(Gap(*span, GapState.UNKNOWN) for span in untold)])


def within(gaps: Sequence[Gap], window: Span, most: int) -> list[Gap]:
    """The gaps in `window`, cut to it, ascending; only the newest `most` of them."""
    inside = [gap.over(span) for gap in gaps for span in clipped([gap.span], window)]
    return inside[max(0, len(inside) - most) :]


def missing_candles(timeframe: Timeframe, gaps: Iterable[Gap]) -> dict[GapState, int]:
    """The number of missing candles by state; every state has an entry."""
    counts = dict.fromkeys(GapState, 0)
    for gap in gaps:
        counts[gap.state] += timeframe.count(gap.start, gap.end)
    return counts


def _turn(
    gaps: Sequence[Gap],
    spans: Sequence[Span],
    old: tuple[GapState, ...],
    new: GapState,
    proof: str | None = None,
    time: int | None = None,
) -> GapChange:
    """The parts of `spans` in an `old` state get the `new` state."""
    turned: list[Gap] = []
    for gap in gaps:
        if gap.state in old:
            turned += (gap.over(span) for span in without([gap.span], spans))
            turned += (Gap(*span, new, proof, time) for span in common([gap.span], spans))
        else:
            turned.append(gap)
    return _change(gaps, sorted(turned))


def _change(before: Sequence[Gap], ascending: Iterable[Gap]) -> GapChange:
    """The rows that differ between `before` and the merged `ascending`."""
    after: list[Gap] = []
    for gap in ascending:
        last = after[-1] if after else None
        if last is not None and last.end == gap.start and last[2:4] == gap[2:4]:
            time = gap.time if last.time is None or gap.time is None else max(last.time, gap.time)
            after[-1] = Gap(last.start, gap.end, gap.state, gap.proof, time)
        else:
            after.append(gap)
    kept = set(before) & set(after)
    return GapChange(
        tuple(gap for gap in before if gap not in kept),
        tuple(gap for gap in after if gap not in kept),
    )

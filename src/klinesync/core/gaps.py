"""Gaps: the spans of open times that a series lacks, and what is known about each of them.

The ledger of a series is its gaps, ascending,
disjoint, and merged: neighbours of one state (and one proof) are one row. It lives in the store, one row a gap, so
every operation here is a plain function from the rows that touch its spans to a `GapChange`: the rows to delete and
the rows to insert. Rows that lie elsewhere may be passed too (the whole ledger, say); they are left alone.

What is not in the ledger and lies between the first and the last stored candle is stored. Only a noted gap can be
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
    """What is known about a gap: nothing yet, that somebody fetches it, that the exchange has nothing there, or that
    there may have been candles and no source gives them any more."""

    UNKNOWN = "unknown"
    HEALING = "healing"
    CONFIRMED_EMPTY = "confirmed_empty"
    LOST = "lost"


# States of gaps that nobody fetches any more. Such a gap has a proof: why, and since when.
SETTLED = frozenset({GapState.CONFIRMED_EMPTY, GapState.LOST})


class Gap(NamedTuple):
    """One row of the ledger. `proof` (a text) and `time` (UTC seconds by which all of it was confirmed or given up) are
    set when, and only when, the gap is settled: confirmed empty or lost."""

    start: int
    end: int
    state: GapState
    proof: str | None = None
    time: int | None = None

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)

    def over(self, span: Span) -> Gap:
        """The same knowledge about another span."""
        return self._replace(start=span.start, end=span.end)


@dataclass(frozen=True, slots=True)
class GapChange:
    """Rows to delete, then rows to insert; both ascending. False when there is nothing to write."""

    delete: tuple[Gap, ...] = ()
    insert: tuple[Gap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.delete or self.insert)

    def applied_to(self, gaps: Iterable[Gap]) -> list[Gap]:
        """The ledger after this change."""
        return sorted((set(gaps) - set(self.delete)) | set(self.insert))


# --- the ledger: what changes it


def note(gaps: Sequence[Gap], holes: Sequence[Span]) -> GapChange:
    """Open times were found missing: what of `holes` is no gap yet becomes an unknown one."""
    new = without(holes, [gap.span for gap in gaps])
    return _change(gaps, sorted([*gaps, *(Gap(*span, GapState.UNKNOWN) for span in new)]))


def fill(gaps: Sequence[Gap], filled: Sequence[Span]) -> GapChange:
    """Candles arrived (or their times are of no more interest): `filled` is gap no longer, whatever its state."""
    return _change(gaps, [gap.over(left) for gap in gaps for left in without([gap.span], filled)])


def begin_healing(gaps: Sequence[Gap], spans: Sequence[Span]) -> GapChange:
    """Somebody fetches `spans`: what of them is unknown is healing now, and so is what was lost."""
    return _turn(gaps, spans, (GapState.UNKNOWN, GapState.LOST), GapState.HEALING)


def end_healing(gaps: Sequence[Gap], spans: Sequence[Span]) -> GapChange:
    """Nobody fetches `spans` any more (given up, or a restart): what of them is healing is unknown again."""
    return _turn(gaps, spans, (GapState.HEALING,), GapState.UNKNOWN)


def confirm_empty(gaps: Sequence[Gap], spans: Sequence[Span], proof: str, time: int) -> GapChange:
    """The exchange showed that it has nothing at `spans`. `proof` says how, `time` when (UTC seconds).

    What was confirmed before keeps its proof and time, so that confirming again writes nothing.
    """
    assert proof, "a gap is confirmed empty by a proof"
    old = (GapState.UNKNOWN, GapState.HEALING, GapState.LOST)
    return _turn(gaps, spans, old, GapState.CONFIRMED_EMPTY, proof, time)


def lose(gaps: Sequence[Gap], spans: Sequence[Span], reason: str, time: int) -> GapChange:
    """No source gives candles at `spans` any more. `reason` says why, `time` since when (UTC seconds)."""
    assert reason, "a gap is lost for a reason"
    return _turn(gaps, spans, (GapState.UNKNOWN, GapState.HEALING), GapState.LOST, reason, time)


def arrived(gaps: Sequence[Gap], timeframe: Timeframe, stored: Span | None, times: Sequence[int]) -> GapChange:
    """Candles at `times` (strictly ascending) were written to a series that covered `stored` before.

    `stored` is the first stored open time and the end of the last stored candle, None when nothing was stored. The gaps
    that the candles fill are gone; what lies between them and `stored`, or between two of them outside `stored`, is
    noted. `gaps` must hold the rows that touch `reach(timeframe, stored, times)`.
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


# --- the ledger: what it tells


def unproven(gaps: Sequence[Gap], stored: Span | None, window: Span) -> list[Span]:
    """What of `window` is neither stored nor confirmed empty: open and lost gaps, and what lies outside `stored`.

    This is the same as looking for missing candles and leaving out the confirmed spans, without reading a candle.
    """
    return _outside(gaps, stored, window, frozenset({GapState.CONFIRMED_EMPTY}))


def unsettled(gaps: Sequence[Gap], stored: Span | None, window: Span) -> list[Span]:
    """What of `window` may still be fetched: what is neither stored, nor confirmed empty, nor lost."""
    return joined(_outside(gaps, stored, window, SETTLED))


def _outside(gaps: Sequence[Gap], stored: Span | None, window: Span, states: frozenset[GapState]) -> list[Span]:
    """What of `window` is neither stored nor a gap in one of the `states`."""
    inside = clipped((gap.span for gap in gaps if gap.state not in states), window)
    outside = without([window], [] if stored is None else [stored])
    return sorted(inside + without(outside, [gap.span for gap in gaps]))


def declared(timeframe: Timeframe, window: Span, times: Sequence[int], gaps: Sequence[Gap]) -> list[Gap]:
    """The holes that `times` (strictly ascending) leave in `window`, as gaps: in the states of the ledger `gaps`, and
    unknown where the ledger does not know them."""
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
    """How many candles are missing, by state; every state is named."""
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
    """What of `spans` is in an `old` state gets the `new` one."""
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

"""Spans of open times, and the arithmetic of them: joined, without, common, clipped; and on the grid of a timeframe.

Lists of spans, in arguments and results, are ascending and disjoint unless a function says otherwise. The meaning of a
span (missing, empty, requested) is the caller's business; `core.gaps` has that of the gap ledger.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from klinesync.core.timeframe import Timeframe


class Span(NamedTuple):
    """Open times from `start` to `end` (exclusive), in UTC seconds, both on a timeframe's grid."""

    start: int
    end: int

    def holds(self, time: int) -> bool:
        """Whether `time` lies in the span."""
        return self.start <= time < self.end

    def overlaps(self, other: Span) -> bool:
        """Whether some open time lies in both; neither may be empty."""
        return self.start < other.end and other.start < self.end

    def clipped(self, window: Span) -> Span:
        """The part inside `window`; a span that ends at or before its start when there is no such part."""
        return Span(max(self.start, window.start), min(self.end, window.end))


def without(spans: Iterable[Span], cuts: Sequence[Span]) -> list[Span]:
    """The parts of `spans` outside all `cuts`."""
    kept: list[Span] = []
    for start, end in spans:
        at = bisect_right(cuts, start, key=_end)
        while at < len(cuts) and cuts[at].start < end:
            if start < cuts[at].start:
                kept.append(Span(start, cuts[at].start))
            start = cuts[at].end  # the remaining part begins here
            at += 1
        if start < end:
            kept.append(Span(start, end))
    return kept


def common(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The parts of `spans` inside `others`."""
    return without(spans, without(spans, others))


def joined(spans: Iterable[Span]) -> list[Span]:
    """The times in any of `spans`, which may overlap and come in any order. Spans that touch become one."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and start <= whole[-1].end:
            whole[-1] = Span(whole[-1].start, max(end, whole[-1].end))
        else:
            whole.append(Span(start, end))
    return whole


def clipped(spans: Iterable[Span], window: Span) -> list[Span]:
    """The parts of `spans` inside `window`, which may be empty. Spans in any order stay in it."""
    cut = (span.clipped(window) for span in spans)
    return [span for span in cut if span.start < span.end]


def hull(spans: Sequence[Span]) -> Span:
    """The span from the first start to the last end of `spans`: at least one, in any order."""
    return Span(min(span.start for span in spans), max(span.end for span in spans))


# --- on the grid of a timeframe


def runs(timeframe: Timeframe, times: Sequence[int]) -> list[Span]:
    """The spans that are covered by the candles of `times` (strictly ascending, on the grid)."""
    if not times:
        return []
    if timeframe.count(times[0], times[-1]) == len(times) - 1:
        return [Span(times[0], timeframe.next(times[-1]))]  # the usual case: no hole
    step_s = timeframe.step_s
    if step_s:
        jumps = [(one, two) for one, two in pairwise(times) if two - one != step_s]
    else:
        jumps = [(one, two) for one, two in pairwise(times) if two != timeframe.next(one)]
    starts = [times[0], *(after for _, after in jumps)]
    lasts = [*(before for before, _ in jumps), times[-1]]
    return [Span(start, timeframe.next(last)) for start, last in zip(starts, lasts, strict=True)]


def missing_spans(timeframe: Timeframe, start: int, end: int, times: Sequence[int]) -> list[Span]:
    """The open times in `[start, end)` that are not among `times` (strictly ascending, on the grid)."""
    return without([Span(start, end)], runs(timeframe, times))


def widened(timeframe: Timeframe, spans: Iterable[Span]) -> list[Span]:
    """The candles of `timeframe` that `spans`, of a shorter timeframe, touch."""
    return joined(Span(timeframe.floor(span.start), timeframe.ceil(span.end)) for span in spans)


def narrowed(timeframe: Timeframe, spans: Iterable[Span]) -> list[Span]:
    """The candles of `timeframe` that lie wholly inside `spans`, of a shorter timeframe."""
    inner = (Span(timeframe.ceil(span.start), timeframe.floor(span.end)) for span in joined(spans))
    return [span for span in inner if span.start < span.end]


def candle_count(timeframe: Timeframe, spans: Iterable[Span]) -> int:
    """How many candles open in `spans`."""
    return sum(timeframe.count(*span) for span in spans)


_end = attrgetter("end")

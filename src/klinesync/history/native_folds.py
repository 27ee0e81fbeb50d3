"""NativeFold: native candles of a timeframe that an exchange lacks, folded from its candles of a shorter one.

A folded candle is closed when each of its parts is in an answer or proved empty, as a derived candle is. The parts are
not stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from klinesync.core.candle import Candle
from klinesync.core.derived import chain_to, complete, fold, native_parts
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, joined, missing_spans, narrowed, without
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import BOTH_NEIGHBOURS, HistoryPage
from klinesync.history.reading import Pages

# Parts before and after a span that are requested with it. A market that trades seldom has gaps of several parts, and a
# gap is proved empty by the candles on both of its sides.
BESIDE = 24
# Most folded candles of a page, so that its transaction is short.
PAGE_CANDLES = 1000


@dataclass(frozen=True, slots=True)
class NativeSources:
    """Finds the series of an exchange that gives the native candles of a derived series.

    knows: whether the exchange has a series. Raises `UpstreamError`.
    base: the base timeframe.
    """

    knows: Callable[[SeriesId], Awaitable[bool]]
    base: Timeframe

    async def source(self, series: SeriesId) -> SeriesId | None:
        """The series itself if the exchange has it, else the series of the longest timeframe that divides it; None when
        the exchange has neither. Raises `UpstreamError`."""
        for part in native_parts(series.timeframe, self.base):
            source = series.with_timeframe(part)
            if await self.knows(source):
                return source
        return None


@dataclass(slots=True)
class NativeFold:
    """One reading of native candles.

    target: the timeframe of the derived series.
    part: the timeframe that is read.
    span: the open times of the candles that are wanted, on the grid of `target`.
    first_part: the first open time that the answers have; None before an answer has any.
    """

    target: Timeframe
    part: Timeframe
    span: Span
    first_part: int | None = None

    @classmethod
    def newest(cls, target: Timeframe, part: Timeframe, wanted: Span, most_parts: int) -> NativeFold:
        """The fold of the newest parts of a span; of all of it where nothing is folded.

        target: the timeframe of the derived series.
        part: the timeframe that is read.
        wanted: open times of `target`.
        most_parts: most parts that are folded in memory.
        """
        if part == target:
            return cls(target, part, wanted)
        most = max(1, most_parts * part.step_s // target.seconds)
        return cls(target, part, Span(max(wanted.start, target.shift(wanted.end, -most)), wanted.end))

    @property
    def asked(self) -> Span:
        """The open times to request. A fold requests `BESIDE` parts before the span and after it too, so that a gap at
        either end of the span has both neighbours."""
        start, end = self.span
        if self.part == self.target:
            return self.span
        return Span(max(0, self.part.shift(start, -BESIDE)), self.part.shift(end, BESIDE))

    async def pages(self, pages: Pages) -> Pages:
        """The pages of `target` that are folded from all `pages` of `part`; the same pages when both are the same.
        Raises what `pages` raises."""
        parts: list[HistoryPage] = []
        async with aclosing(pages):
            async for page in pages:
                if self.first_part is None and page.candles:
                    self.first_part = page.candles[0].time
                if self.part == self.target:
                    yield page
                else:
                    parts.append(page)
        if parts:
            for page in folded_pages(self.target, self.part, self.span, parts):
                yield page

    def begins(self, brought: Span | None) -> int | None:
        """The open time of the exchange's first candle, as the answers prove; None when the exchange may have earlier
        ones.

        brought: the span of the folded candles; None: no candle came.
        """
        if self.first_part is None or self.first_part <= self.span.start:
            return None
        bucket = self.target.floor(self.first_part)
        if bucket >= self.span.end:
            return bucket  # behind the span: whether the bucket gives a candle was not read
        # The beginning of the first bucket is not proven empty: the candle of the bucket may be missing.
        return bucket if brought is not None and brought.start <= bucket else self.target.next(bucket)


def folded_pages(target: Timeframe, part: Timeframe, span: Span, pages: Sequence[HistoryPage]) -> list[HistoryPage]:
    """The closed candles of `target` in the answers to a request for candles of `part`, and their proved gaps.

    target, part: timeframes; `part` divides `target`.
    span: the open times of the candles that are wanted, on the grid of `target`.
    pages: the answers, ascending. A row of two pages counts once; rows outside the span are ignored.
    """
    rows: dict[int, Candle] = {
        candle.time: candle for page in pages for candle in page.candles if span.holds(candle.time)
    }
    empty = clipped(joined(part for page in pages for part in page.empty), span)
    unproven = without(missing_spans(part, *span, list(rows)), empty)
    folded = list(rows.values())
    for link in chain_to(target, part):
        folded = fold(link, folded)
    candles = complete(target, folded, unproven)
    gaps = narrowed(target, empty)
    if not candles:
        return []  # without a candle after it, an empty span is no gap between stored candles
    proofs = dict.fromkeys(page.proof for page in pages if page.empty) or {BOTH_NEIGHBOURS: None}
    proof = f"of its {part} candles: {'; '.join(proofs)}"
    cuts = [span.start, *(candle.time for candle in candles[PAGE_CANDLES::PAGE_CANDLES]), span.end]
    return [
        HistoryPage(candles[at : at + PAGE_CANDLES], clipped(gaps, Span(*cuts[number : number + 2])), proof)
        for number, at in enumerate(range(0, len(candles), PAGE_CANDLES))
    ]

"""Pieces: what one request asks for, and what its answer leaves. Pure.

The newest needs of a series come first, short ones that lie near each other together, and of a long one a piece at a
time: its oldest page when all of it may be empty (one answer shows that, however long it is), else its newest part. An
explicit backfill is read oldest part first: then the store declares the rest of it, and what follows from the candles
is redone once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from klinesync.core import gaps
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull, joined
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Urgency
from klinesync.history import pending as policy
from klinesync.history.missing import Reason
from klinesync.history.pending import Pending, fruitless

# Candles of one piece of a long need, before another series gets its turn: a few pages.
PIECE_CANDLES = 5000
# Short needs that one page may span are read together.
PAGE_CANDLES = 500


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read these needs, ascending; several only where they are short and near each other."""

    series: SeriesId
    needs: tuple[Pending, ...]

    @property
    def span(self) -> Span:
        return hull([pending.span for pending in self.needs])

    @property
    def urgency(self) -> Urgency:
        """That of the most urgent of its needs."""
        return min(pending.urgency for pending in self.needs)

    @property
    def reason(self) -> Reason:
        """That of its newest need."""
        return self.needs[-1].reason


@dataclass(frozen=True, slots=True)
class Remaining:
    """The part of a fetch that is still missing.

    stored: the stored span; None when nothing is stored.
    needs: as far as they are missing behind the head, grown to all that is missing of the holes that they touch.
    around: the span of those holes with the stored candle on either side.
    """

    stored: Span | None
    needs: tuple[Pending, ...]
    around: Span


@dataclass(frozen=True, slots=True)
class Piece:
    """What is asked for at once.

    span: the open times that are wanted.
    around: what the request covers: it begins and ends with a stored candle, so that one answer shows what is empty.
    most: only the oldest pages of `span`, until so many rows came; None: all of it.
    cut: older needs were cut off, so that the stored candle before the span may be missing from `around`.
    """

    span: Span
    around: Span
    most: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a piece.

    reached: all before this open time was asked for.
    first: open time of the first row; None: no row came.
    stored: the stored span now.
    ledger: all rows of the gap ledger now.
    """

    reached: int
    first: int | None
    stored: Span | None
    ledger: Sequence[Gap]


def together(timeframe: Timeframe, due: Sequence[Pending]) -> list[Pending]:
    """The first of the `due` needs (ascending, or descending), and those that follow it so closely that one page may
    span both."""
    taken = [due[0]]
    for pending in due[1:]:
        with_last, with_all = hull([pending.span, taken[-1].span]), hull([pending.span, taken[0].span])
        if timeframe.count(*with_last) > PAGE_CANDLES or timeframe.count(*with_all) > PIECE_CANDLES:
            break
        taken.append(pending)
    return taken


def remaining(fetch: Fetch, stored: Span | None, ledger: Sequence[Gap]) -> Remaining:
    """The part of `fetch` that is still missing, given the stored span and all rows of the gap ledger."""
    shift = fetch.series.timeframe.shift
    if stored is None:
        asked = [need for need in fetch.needs if need.requested]
        if not asked:
            return Remaining(stored, (), fetch.span)
        whole = asked[0].over(hull([need.span for need in asked]))
        return Remaining(stored, (whole,), whole.span)
    # A hole is read whole, with what of it is confirmed: only a stored candle at either end can prove that it is empty.
    # What of it is lost is not asked for.
    holes = joined(gap.span for gap in ledger if gap.state is not GapState.LOST)
    wanted = [need for need in fetch.needs if not need.between_stored or need.span.end > stored.start]
    older = [need for need in wanted if not need.between_stored and need.span.start < stored.start]
    if older:
        # History before the first stored candle is read up to it, so that no hole comes to be.
        holes.insert(0, Span(older[0].span.start, stored.start))
    newer = [need.span.end for need in wanted if need.requested and need.span.end > stored.end]
    if newer:
        holes.append(Span(stored.end, newer[-1]))
    needs: list[Pending] = []
    start, end = fetch.span
    for need in wanted:
        touched = [hole for hole in holes if hole.overlaps(need.span)]
        missing = [part for hole in touched for part in gaps.unsettled(ledger, stored, hole)]
        if not clipped(missing, need.span):
            continue
        span = hull(missing)
        if needs and span.start <= needs[-1].span.end:
            last = needs[-1]
            first = last.oldest_page_first
            merged = replace(last.need, span=hull([last.span, span]), urgency=min(last.urgency, need.urgency))
            oldest = first or need.oldest_page_first if first is not None else need.oldest_page_first
            needs[-1] = replace(last, need=merged, oldest_page_first=oldest)
        else:
            start = start if needs else touched[0].start
            needs.append(replace(need.over(span), between_stored=span.start >= stored.start))
        end = touched[-1].end
    if end < stored.end:  # behind the head there is no neighbour
        end = shift(end, 1)
    if start > stored.start:  # nor is there one before the first stored candle
        start = shift(start, -1)
    return Remaining(stored, tuple(needs), Span(start, end))


def after_files(
    fetch: Fetch, asked: Remaining, stored: Span | None, ledger: Sequence[Gap]
) -> tuple[Fetch, list[Pending]]:
    """The part of `asked` that the files did not fill: to be asked of the exchange now, and (the second) later."""
    parts = [
        replace(need.over(part), files_checked=True)
        for need in asked.needs
        for part in gaps.unsettled(ledger, stored, need.span)
    ]
    if not parts:
        return replace(fetch, needs=()), []
    taken = together(fetch.series.timeframe, parts if parts[0].requested else parts[::-1])
    return Fetch(fetch.series, tuple(sorted(taken, key=lambda need: need.span))), [
        need for need in parts if need not in taken
    ]


def piece_of(timeframe: Timeframe, now: Remaining) -> Piece:
    """The part of the pending needs that one request covers."""
    span = hull([need.span for need in now.needs])
    if timeframe.count(*span) <= PIECE_CANDLES:
        return Piece(span, now.around)
    first = now.needs[0]
    if first.requested:
        return Piece(span, now.around, most=PIECE_CANDLES)
    if first.between_stored if first.oldest_page_first is None else first.oldest_page_first:
        return Piece(span, now.around, most=1)
    start = timeframe.shift(span.end, -PIECE_CANDLES)
    return Piece(Span(start, span.end), Span(timeframe.shift(start, -1), now.around.end), cut=True)


def left_over(
    fetch: Fetch, asked: Remaining, piece: Piece, answer: Answer, now_s: float, rng: random.Random
) -> list[Pending]:
    """The part of `fetch` that waits again after `piece` was read with that answer; `asked` was missing before."""
    left = too_early(fetch, answer.stored, now_s, rng)
    for need in asked.needs:
        for span in gaps.unsettled(answer.ledger, answer.stored, need.span):
            if not need.requested and _early(span, answer.stored):
                continue
            if span.end <= piece.span.start:
                left.append(need.at_once(span, now_s, oldest_page_first=False))
            elif piece.cut and (answer.first is None or span.end <= answer.first):
                # The piece begins with nothing; so may the older part end.
                left.append(need.at_once(span, now_s, oldest_page_first=True))
            else:
                left += _asked(need, span, piece, answer, now_s, rng)
    return left


def nothing_before_first(piece: Piece, answer: Answer) -> Span | None:
    """The span right before the first stored candle in which the exchange has nothing, as the answer to `piece` shows:
    that candle was the first row of all that was asked for."""
    if answer.stored is None or answer.first != answer.stored.start or piece.span.start >= answer.first:
        return None
    return Span(piece.span.start, answer.first)


def too_early(fetch: Fetch, stored: Span | None, now_s: float, rng: random.Random) -> list[Pending]:
    """The part of `fetch` that lies behind the stored head: no hole yet, and live candles may bring it."""
    begin = 0 if stored is None else stored.end
    return [
        replace(need.over(Span(max(need.span.start, begin), need.span.end)), due_s=now_s + policy.RETRY.delay_s(0, rng))
        for need in fetch.needs
        if need.span.end > begin and not need.requested
    ]


def _early(span: Span, stored: Span | None) -> bool:
    return stored is None or span.end > stored.end


def _asked(
    need: Pending, span: Span, piece: Piece, answer: Answer, now_s: float, rng: random.Random
) -> Iterator[Pending]:
    """The part of a missing `span` that waits again, after at least a part of it was asked for."""
    if span.end > answer.reached:
        rest = Span(max(span.start, answer.reached), span.end)
        yield need.at_once(rest, now_s, oldest_page_first=False)
        span = Span(span.start, answer.reached)
    if need.requested:  # what is newer than all that came is no hole
        span = Span(span.start, min(span.end, span.start if answer.stored is None else answer.stored.end))
    if span.start >= span.end:
        return
    if answer.first is not None and answer.stored is not None and span.end <= answer.stored.start:
        return  # it was asked for, and the first row came later: the series begins there
    # The stored candle before the hole was asked for too: an answer without it does not reach back to the hole.
    beyond = not piece.cut and (answer.first is None or answer.first > piece.around.start)
    yield fruitless(need.over(span), now_s, rng, out_of_reach=beyond)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work went.

    remaining: the needs that wait again.
    answer: what came of it, a sentence.
    candles: how many came.
    """

    remaining: Sequence[Pending]
    answer: str
    candles: int = 0

"""Pieces of history: the part of the pending needs that one request covers, and the part still missing after its
answer. Pure.

The newest needs of a series come first. Short needs near each other share a request. A long need is read piece by
piece: its oldest page first when all of it may be empty (a single answer proves that, whatever the length), else its
newest part first. An explicit backfill is read oldest part first: the store then declares the unread rest as a gap, and
derived candles and ledgers are redone only once.
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
from klinesync.history.limits import HistoryLimits
from klinesync.history.missing import Reason
from klinesync.history.pending import Pending, RetryPolicy


@dataclass(frozen=True, slots=True)
class Fetch:
    """A command to read pending needs of a series.

    series: whose candles.
    needs: ascending; more than one only where they are short and near each other.
    """

    series: SeriesId
    needs: tuple[Pending, ...]

    @property
    def span(self) -> Span:
        return hull([pending.span for pending in self.needs])

    @property
    def urgency(self) -> Urgency:
        """The urgency of the most urgent need."""
        return min(pending.urgency for pending in self.needs)

    @property
    def reason(self) -> Reason:
        """The reason of the newest need."""
        return self.needs[-1].reason


@dataclass(frozen=True, slots=True)
class Remaining:
    """The part of a fetch that is still missing.

    stored: the stored span; None when nothing is stored.
    needs: the fetch's needs up to the head, without what is stored; each is widened to the whole gap that it touches.
    around: the span of those gaps and the stored candle on either side.
    """

    stored: Span | None
    needs: tuple[Pending, ...]
    around: Span


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of the pending needs that one request covers.

    span: the open times that are wanted.
    around: the open times that are requested: from a stored candle to a stored candle, so that the answer proves which
        candles the exchange does not have.
    most: rows after which the reading ends, oldest page first; None: all of `span` is read.
    cut: an older part of the needs was cut off, so that `around` may not begin with a stored candle.
    """

    span: Span
    around: Span
    most: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a piece.

    reached: every open time before this one was asked for.
    first: open time of the first row; None: no row came.
    stored: the stored span after the answer was written.
    ledger: all rows of the gap ledger after the answer was written.
    """

    reached: int
    first: int | None
    stored: Span | None
    ledger: Sequence[Gap]


def one_request(timeframe: Timeframe, due: Sequence[Pending], limits: HistoryLimits) -> list[Pending]:
    """The needs that share a request with the first of the `due` needs: those near enough for one page.

    timeframe: of the needs.
    due: ascending or descending.
    limits: of one request.
    """
    taken = [due[0]]
    for pending in due[1:]:
        with_last, with_all = hull([pending.span, taken[-1].span]), hull([pending.span, taken[0].span])
        if timeframe.count(*with_last) > limits.page_candles or timeframe.count(*with_all) > limits.piece_candles:
            break
        taken.append(pending)
    return taken


def remaining(fetch: Fetch, stored: Span | None, ledger: Sequence[Gap]) -> Remaining:
    """The part of a fetch that is still missing.

    fetch: the needs.
    stored: the stored span; None when nothing is stored.
    ledger: all rows of the gap ledger.
    """
    shift = fetch.series.timeframe.shift
    if stored is None:
        requested = [need for need in fetch.needs if need.requested]
        if not requested:
            return Remaining(stored, (), fetch.span)
        whole = requested[0].with_span(hull([need.span for need in requested]))
        return Remaining(stored, (whole,), whole.span)
    # A gap is read whole, with its confirmed parts: only stored candles at both ends prove that the exchange has
    # nothing between them. Lost parts are left out.
    holes = joined(gap.span for gap in ledger if gap.state is not GapState.LOST)
    wanted = [need for need in fetch.needs if not need.between_stored or need.span.end > stored.start]
    older = [need for need in wanted if not need.between_stored and need.span.start < stored.start]
    if older:
        # Older history is read up to the first stored candle, so that no gap opens before it.
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
            merged = replace(last.need, span=hull([last.span, span]), urgency=min(last.urgency, need.urgency))
            needs[-1] = replace(last, need=merged, oldest_page_first=last.oldest_page_first or need.oldest_page_first)
        else:
            start = start if needs else touched[0].start
            needs.append(replace(need.with_span(span), between_stored=span.start >= stored.start))
        end = touched[-1].end
    if end < stored.end:  # no stored candle follows the head,
        end = shift(end, 1)
    if start > stored.start:  # and none precedes the first stored candle
        start = shift(start, -1)
    return Remaining(stored, tuple(needs), Span(start, end))


def after_files(
    fetch: Fetch, asked: Remaining, stored: Span | None, ledger: Sequence[Gap], limits: HistoryLimits
) -> tuple[Fetch, list[Pending]]:
    """The needs that the files did not fill: those to ask the exchange for now, and those to ask for later.

    fetch: the fetch that was read from files.
    asked: its missing part before that.
    stored: the stored span now; None when nothing is stored.
    ledger: all rows of the gap ledger now.
    limits: of one request.
    """
    parts = [
        replace(need.with_span(part), files_checked=True)
        for need in asked.needs
        for part in gaps.unsettled(ledger, stored, need.span)
    ]
    if not parts:
        return replace(fetch, needs=()), []
    taken = one_request(fetch.series.timeframe, parts if parts[0].requested else parts[::-1], limits)
    fetch = Fetch(fetch.series, tuple(sorted(taken, key=lambda need: need.span)))
    return fetch, [need for need in parts if need not in taken]


def piece_of(timeframe: Timeframe, missing: Remaining, limits: HistoryLimits) -> Piece:
    """The part of the missing needs that one request covers.

    timeframe: of the needs.
    missing: the needs.
    limits: of one request.
    """
    span = hull([need.span for need in missing.needs])
    if timeframe.count(*span) <= limits.piece_candles:
        return Piece(span, missing.around)
    first = missing.needs[0]
    if first.requested:
        return Piece(span, missing.around, most=limits.piece_candles)
    if first.between_stored if first.oldest_page_first is None else first.oldest_page_first:
        return Piece(span, missing.around, most=1)
    start = timeframe.shift(span.end, -limits.piece_candles)
    return Piece(Span(start, span.end), Span(timeframe.shift(start, -1), missing.around.end), cut=True)


def still_missing(
    fetch: Fetch,
    asked: Remaining,
    piece: Piece,
    answer: Answer,
    now_s: float,
    rng: random.Random,
    retries: RetryPolicy,
) -> list[Pending]:
    """The needs that wait again after a piece was read.

    fetch: the fetch that the piece belongs to.
    asked: its missing part before the request.
    piece: what was requested.
    answer: what came.
    now_s: monotonic seconds.
    rng: jitter of the retry delays.
    retries: when the needs are requested again.
    """
    waiting = behind_head(fetch, answer.stored, now_s, rng, retries)
    for need in asked.needs:
        for span in gaps.unsettled(answer.ledger, answer.stored, need.span):
            if not need.requested and _is_behind_head(span, answer.stored):
                continue
            if span.end <= piece.span.start:
                waiting.append(need.due_now(span, now_s, oldest_page_first=False))
            elif piece.cut and (answer.first is None or span.end <= answer.first):
                # The beginning of the piece is empty; the end of the older part may be empty too.
                waiting.append(need.due_now(span, now_s, oldest_page_first=True))
            else:
                waiting += _after_request(need, span, piece, answer, now_s, rng, retries)
    return waiting


def nothing_before_first(piece: Piece, answer: Answer) -> Span | None:
    """The span right before the first stored candle in which the exchange has nothing, as the answer to `piece` proves:
    the first stored candle is the first row of the answer. None without this proof."""
    if answer.stored is None or answer.first != answer.stored.start or piece.span.start >= answer.first:
        return None
    return Span(piece.span.start, answer.first)


def behind_head(
    fetch: Fetch, stored: Span | None, now_s: float, rng: random.Random, retries: RetryPolicy
) -> list[Pending]:
    """The part of `fetch` behind the stored head: no gap yet, and live candles may fill it.

    fetch: the needs; those of an explicit backfill are left out.
    stored: the stored span; None when nothing is stored.
    now_s: monotonic seconds.
    rng: jitter of the retry delays.
    retries: when the needs are requested again.
    """
    begin = 0 if stored is None else stored.end
    return [
        replace(
            need.with_span(Span(max(need.span.start, begin), need.span.end)),
            due_s=now_s + retries.backoff.delay_s(0, rng),
        )
        for need in fetch.needs
        if need.span.end > begin and not need.requested
    ]


def _is_behind_head(span: Span, stored: Span | None) -> bool:
    return stored is None or span.end > stored.end


def _after_request(
    need: Pending,
    span: Span,
    piece: Piece,
    answer: Answer,
    now_s: float,
    rng: random.Random,
    retries: RetryPolicy,
) -> Iterator[Pending]:
    """The part of a missing `span` that waits again after at least a part of the span was requested."""
    if span.end > answer.reached:
        rest = Span(max(span.start, answer.reached), span.end)
        yield need.due_now(rest, now_s, oldest_page_first=False)
        span = Span(span.start, answer.reached)
    if need.requested:  # a span behind the head is no gap
        span = Span(span.start, min(span.end, span.start if answer.stored is None else answer.stored.end))
    if span.start >= span.end:
        return
    if answer.first is not None and answer.stored is not None and span.end <= answer.stored.start:
        return  # the span was requested, and the first row opens later: the series begins there
    # The request began with the stored candle before the gap: an answer without it does not reach back to the gap.
    out_of_reach = not piece.cut and (answer.first is None or answer.first > piece.around.start)
    yield retries.after_fruitless(need.with_span(span), now_s, rng, out_of_reach=out_of_reach)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a piece of work.

    remaining: the needs that wait again.
    answer: the result as a sentence.
    candles: number of candles read; 0 by default.
    """

    remaining: Sequence[Pending]
    answer: str
    candles: int = 0

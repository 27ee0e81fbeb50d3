"""HistoryQueue: which holes are asked for, in what order, and when again. Pure: values in, values out.

A need is a span of open times that may be missing. What a user waits for comes first. Else series take turns; of a
series the newest need comes first, short ones that lie near each other together, and of a long one a piece at a time:
its oldest page when all of it may be empty (one answer shows that, however long it is), else its newest part. What was
asked for at length (an explicit backfill) comes after the rest, and oldest part first: then the store declares what is
left of it, and what follows from the candles is redone once.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from klinesync.core import gaps
from klinesync.core.backoff import Backoff
from klinesync.core.candle import MAX_TIME
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, hull, joined, without
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import Urgency

# Needs of one series, and of all. What finds no room stays declared in the store, and is looked up again later.
MAX_NEEDS_OF_SERIES = 1000
MAX_NEEDS = 100_000
# Candles of one piece of a long need, before another series gets its turn: a few pages.
PIECE_CANDLES = 5000
# Short needs that one page may span are read together.
PAGE_CANDLES = 500
# Before a need that was asked for in vain is asked for again.
RETRY = Backoff(initial_s=30.0, most_s=6 * 3600.0, jitter=0.25)
# After so many answers in vain nobody is said to be at work on it, though it is still asked for now and then.
PATIENCE = 3
# For so long, in seconds, each answer must have shown that the exchange's history does not reach back to a hole, before
# the hole is lost: an exchange in trouble may give the newest rows alone for some minutes.
LOST_AFTER_S = 3600.0

_EVERYTHING = Span(0, MAX_TIME + 1)


@dataclass(frozen=True, slots=True)
class Need:
    """A span to be read. `inside`: it was found to lie between stored candles; should retention reach it, it is
    forgotten. `front`: whether its oldest page comes first (None: when it lies between stored candles). `vain`: how
    often it was asked for without an answer that settles it; `due_s`: not before that monotonic time. `urgency`:
    `DEEP`, or more urgent until it was asked for once. `oldest_first`: it was asked for at length, and may lie behind
    the stored head too; `filed`: the files were looked into. `beyond_s`: since when (monotonic) each answer
    showed that the exchange's history does not reach so far back; None when the last one did not."""

    span: Span
    reason: str
    inside: bool = False
    front: bool | None = None
    vain: int = 0
    due_s: float = float("-inf")
    urgency: Urgency = Urgency.DEEP
    oldest_first: bool = False
    filed: bool = False
    beyond_s: float | None = None

    @property
    def urgent(self) -> bool:
        return self.urgency < Urgency.DEEP


@dataclass(frozen=True, slots=True)
class Look:
    """Read from the store which gaps of the series are declared."""

    series: SeriesId


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read these needs, ascending; several only where they are short and near each other."""

    series: SeriesId
    needs: tuple[Need, ...]

    @property
    def span(self) -> Span:
        return hull([need.span for need in self.needs])

    @property
    def urgency(self) -> Urgency:
        """That of the most urgent of its needs."""
        return min(need.urgency for need in self.needs)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left to ask of a fetch: the `stored` span, the `needs` as far as they are missing behind the head, grown
    to all that is missing of the holes that they touch, and `around`: the span of those holes with the stored candle on
    either side."""

    stored: Span | None
    needs: tuple[Need, ...]
    around: Span


@dataclass(frozen=True, slots=True)
class Piece:
    """What is asked for at once: `span`, or its oldest pages until `most` rows came. The request covers `around`, which
    begins and ends with a stored candle, so that one answer shows what is empty; where older needs were `cut` off, its
    first candle may be missing."""

    span: Span
    around: Span
    most: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a piece: all before `reached` was asked for; the open time of the `first` row; and what the store
    holds now: its stored span, and all rows of its gap ledger."""

    reached: int
    first: int | None
    stored: Span | None
    ledger: Sequence[Gap]


@dataclass(slots=True)
class _Line:
    """What waits of one series, and when the first of it is due, and of what is urgent. `look`: there may be more in
    the store."""

    needs: tuple[Need, ...] = ()
    due_s: float = float("inf")
    urgent_due_s: float = float("inf")
    look: bool = False
    work: Look | Fetch | None = None

    def wait(self, needs: Iterable[Need]) -> None:
        self.needs = tuple(needs)
        self.due_s = min((need.due_s for need in self.needs), default=float("inf"))
        self.urgent_due_s = min((need.due_s for need in self.needs if need.urgent), default=float("inf"))

    def spans(self) -> list[Span]:
        under_way = self.work.needs if isinstance(self.work, Fetch) else ()
        return [need.span for need in (*self.needs, *under_way)]


class HistoryQueue:
    """What is to be read, series by series; of each series one piece of work is out at a time."""

    def __init__(self) -> None:
        self._lines: OrderedDict[SeriesId, _Line] = OrderedDict()
        # Series of which something urgent waits: few, so that these are found without looking at all.
        self._urgent: OrderedDict[SeriesId, None] = OrderedDict()
        self._size = 0

    def request(
        self,
        series: SeriesId,
        span: Span,
        reason: str,
        urgency: Urgency = Urgency.DEEP,
        *,
        oldest_first: bool = False,
    ) -> bool:
        """Add what of `span` is not asked for already; what of it waits is from now on as urgent as this, and comes
        oldest part first if this does. False when there was no room for all of it."""
        line = self._lines.setdefault(series, _Line())
        if urgency < Urgency.DEEP:
            self._wait(series, [_raised(need, span, reason, urgency) for need in line.needs])
        if oldest_first:
            self._wait(series, [_turned(need, span, reason) for need in line.needs])
        new = without([span], joined(line.spans()))
        room = max(0, min(MAX_NEEDS_OF_SERIES - len(line.needs), MAX_NEEDS - self._size))
        kept = new[max(0, len(new) - room) :]
        if kept:
            added = (Need(part, reason, urgency=urgency, oldest_first=oldest_first) for part in kept)
            self._wait(series, (*line.needs, *added))
        line.look = line.look or len(kept) < len(new)
        self._forget_if_idle(series)
        return len(kept) == len(new)

    def look(self, series: SeriesId) -> None:
        """The store may have declared gaps of the series."""
        self._lines.setdefault(series, _Line()).look = True

    def retry_now(self, series: SeriesId) -> None:
        """The exchange's history of the series may have changed: every pending need of it is due at once, with its
        retry interval back at the first."""
        if (line := self._lines.get(series)) is not None:
            self._wait(series, [replace(need, vain=0, due_s=float("-inf")) for need in line.needs])

    def take(self, now_s: float, *, urgent_only: bool = False) -> Look | Fetch | None:
        """The next piece of work, what is urgent first; None when nothing is due."""
        for series in self._urgent:
            line = self._lines[series]
            if line.work is None and line.urgent_due_s <= now_s:
                return self._out(series, line, self._fetch_of(series, line, now_s))
        if urgent_only:
            return None
        for series, line in self._lines.items():
            work = None if line.work is not None else self._work_of(series, line, now_s)
            if work is not None:
                return self._out(series, line, work)
        return None

    def _out(self, series: SeriesId, line: _Line, work: Look | Fetch) -> Look | Fetch:
        line.work = work
        self._lines.move_to_end(series)
        if series in self._urgent:
            self._urgent.move_to_end(series)
        return work

    def _work_of(self, series: SeriesId, line: _Line, now_s: float) -> Look | Fetch | None:
        if line.look and len(line.needs) <= MAX_NEEDS_OF_SERIES // 2 and self._size <= MAX_NEEDS // 2:
            line.look = False
            return Look(series)
        return self._fetch_of(series, line, now_s) if line.due_s <= now_s else None

    def _fetch_of(self, series: SeriesId, line: _Line, now_s: float) -> Fetch:
        due = sorted((need for need in line.needs if need.due_s <= now_s), key=lambda need: need.span)
        first = min(need.urgency for need in due)
        due = [need for need in due if need.urgency == first]
        short = [need for need in due if not need.oldest_first]
        taken = _together(series.timeframe, short[::-1]) if short else _together(series.timeframe, due)
        self._wait(series, [need for need in line.needs if need not in taken])
        return Fetch(series, tuple(sorted(taken, key=lambda need: need.span)))

    def _wait(self, series: SeriesId, needs: Sequence[Need]) -> None:
        """From now on these wait of the series."""
        line = self._lines[series]
        self._size += len(needs) - len(line.needs)
        line.wait(needs)
        if line.urgent_due_s < float("inf"):
            self._urgent[series] = None
        else:
            self._urgent.pop(series, None)

    def settle(self, work: Look | Fetch, left: Sequence[Need]) -> None:
        """Work that was taken is done; what is `left` of it waits again, and is urgent no more."""
        line = self._lines[work.series]
        assert line.work is work, "one piece of work of a series is out at a time"
        line.work = None
        self._wait(work.series, (*line.needs, *(replace(need, urgency=Urgency.DEEP) for need in left)))
        self._forget_if_idle(work.series)

    def _forget_if_idle(self, series: SeriesId) -> None:
        line = self._lines[series]
        if not line.needs and not line.look and line.work is None:
            del self._lines[series]

    def next_due_s(self, *, urgent_only: bool = False) -> float | None:
        """When `take` has something that it has not now; None when that needs another call first."""
        if urgent_only:
            urgent = (self._lines[series] for series in self._urgent)
            return min((line.urgent_due_s for line in urgent if line.work is None), default=None)
        return min((line.due_s for line in self._lines.values() if line.work is None and line.needs), default=None)

    def looks(self, series: SeriesId) -> bool:
        """Whether the store is yet to be asked for declared gaps of the series."""
        line = self._lines.get(series)
        return line is not None and (line.look or isinstance(line.work, Look))

    def waiting(self, series: SeriesId, span: Span) -> list[Need]:
        """What waits of `span`, or is being read, ascending."""
        line = self._lines.get(series)
        if line is None:
            return []
        under_way = line.work.needs if isinstance(line.work, Fetch) else ()
        touching = (need for need in (*line.needs, *under_way) if need.span.overlaps(span))
        return sorted(touching, key=lambda need: need.span)

    def at_work(self, series: SeriesId) -> list[Span]:
        """The spans that are being read, or soon will be; not those that were asked for in vain again and again."""
        line = self._lines.get(series)
        if line is None:
            return []
        if line.look or isinstance(line.work, Look):
            return [_EVERYTHING]
        under_way = line.work.needs if isinstance(line.work, Fetch) else ()
        return joined(need.span for need in (*line.needs, *under_way) if need.vain < PATIENCE)


def standing(fetch: Fetch, stored: Span | None, ledger: Sequence[Gap]) -> Standing:
    """How `fetch` stands with what the store holds: its stored span and all rows of its gap ledger."""
    shift = fetch.series.timeframe.shift
    if stored is None:
        asked = [need for need in fetch.needs if need.oldest_first]
        if not asked:
            return Standing(stored, (), fetch.span)
        whole = replace(asked[0], span=hull([need.span for need in asked]))
        return Standing(stored, (whole,), whole.span)
    # A hole is read whole, with what of it is confirmed: only a stored candle at either end can prove that it is empty.
    # What of it is lost is not asked for.
    holes = joined(gap.span for gap in ledger if gap.state is not GapState.LOST)
    wanted = [need for need in fetch.needs if not need.inside or need.span.end > stored.start]
    older = [need for need in wanted if not need.inside and need.span.start < stored.start]
    if older:
        # History before the first stored candle is read up to it, so that no hole comes to be.
        holes.insert(0, Span(older[0].span.start, stored.start))
    newer = [need.span.end for need in wanted if need.oldest_first and need.span.end > stored.end]
    if newer:
        holes.append(Span(stored.end, newer[-1]))
    needs: list[Need] = []
    start, end = fetch.span
    for need in wanted:
        touched = [hole for hole in holes if hole.overlaps(need.span)]
        missing = [part for hole in touched for part in gaps.unsettled(ledger, stored, hole)]
        if not clipped(missing, need.span):
            continue
        span = hull(missing)
        if needs and span.start <= needs[-1].span.end:
            last = needs[-1]
            front = last.front or need.front if last.front is not None else need.front
            needs[-1] = replace(
                last, span=hull([last.span, span]), front=front, urgency=min(last.urgency, need.urgency)
            )
        else:
            start = start if needs else touched[0].start
            needs.append(replace(need, span=span, inside=span.start >= stored.start))
        end = touched[-1].end
    if end < stored.end:  # behind the head there is no neighbour
        end = shift(end, 1)
    if start > stored.start:  # nor is there one before the first stored candle
        start = shift(start, -1)
    return Standing(stored, tuple(needs), Span(start, end))


def after_files(fetch: Fetch, asked: Standing, stored: Span | None, ledger: Sequence[Gap]) -> tuple[Fetch, list[Need]]:
    """What of `asked` the files left, to be asked of the exchange: now, and (the second) on other occasions."""
    parts = [
        replace(need, span=part, filed=True)
        for need in asked.needs
        for part in gaps.unsettled(ledger, stored, need.span)
    ]
    if not parts:
        return replace(fetch, needs=()), []
    taken = _together(fetch.series.timeframe, parts if parts[0].oldest_first else parts[::-1])
    return Fetch(fetch.series, tuple(sorted(taken, key=lambda need: need.span))), [
        need for need in parts if need not in taken
    ]


def piece_of(timeframe: Timeframe, now: Standing) -> Piece:
    """What of the needs that stand is asked for at once."""
    span = hull([need.span for need in now.needs])
    if timeframe.count(*span) <= PIECE_CANDLES:
        return Piece(span, now.around)
    first = now.needs[0]
    if first.oldest_first:
        return Piece(span, now.around, most=PIECE_CANDLES)
    if first.inside if first.front is None else first.front:
        return Piece(span, now.around, most=1)
    start = timeframe.shift(span.end, -PIECE_CANDLES)
    return Piece(Span(start, span.end), Span(timeframe.shift(start, -1), now.around.end), cut=True)


def left_over(
    fetch: Fetch, asked: Standing, piece: Piece, answer: Answer, now_s: float, rng: random.Random
) -> list[Need]:
    """What of `fetch`, of which `asked` stood, waits again after `piece` was read with that answer."""
    left = too_early(fetch, answer.stored, now_s, rng)
    for need in asked.needs:
        for span in gaps.unsettled(answer.ledger, answer.stored, need.span):
            if not need.oldest_first and _early(span, answer.stored):
                continue
            if span.end <= piece.span.start:
                left.append(replace(need, span=span, front=False, vain=0, beyond_s=None, due_s=now_s))
            elif piece.cut and (answer.first is None or span.end <= answer.first):
                # The piece begins with nothing; so may the older part end.
                left.append(replace(need, span=span, front=True, vain=0, beyond_s=None, due_s=now_s))
            else:
                left += _asked(need, span, piece, answer, now_s, rng)
    return left


def nothing_before_first(piece: Piece, answer: Answer) -> Span | None:
    """The span right before the first stored candle in which the exchange has nothing, as the answer to `piece` shows:
    that candle was the first row of all that was asked for."""
    if answer.stored is None or answer.first != answer.stored.start or piece.span.start >= answer.first:
        return None
    return Span(piece.span.start, answer.first)


def too_early(fetch: Fetch, stored: Span | None, now_s: float, rng: random.Random) -> list[Need]:
    """What of `fetch` lies behind no stored candle yet: it is no hole, and live candles may bring it."""
    begin = 0 if stored is None else stored.end
    return [
        replace(need, span=Span(max(need.span.start, begin), need.span.end), due_s=now_s + RETRY.delay_s(0, rng))
        for need in fetch.needs
        if need.span.end > begin and not need.oldest_first
    ]


def _early(span: Span, stored: Span | None) -> bool:
    return stored is None or span.end > stored.end


def _asked(need: Need, span: Span, piece: Piece, answer: Answer, now_s: float, rng: random.Random) -> Iterator[Need]:
    """What waits again of a missing `span` that was asked for, at least in part."""
    if span.end > answer.reached:
        yield replace(
            need, span=Span(max(span.start, answer.reached), span.end), front=False, vain=0, beyond_s=None, due_s=now_s
        )
        span = Span(span.start, answer.reached)
    if need.oldest_first:  # what is newer than all that came is no hole
        span = Span(span.start, min(span.end, span.start if answer.stored is None else answer.stored.end))
    if span.start >= span.end:
        return
    if answer.first is not None and answer.stored is not None and span.end <= answer.stored.start:
        return  # it was asked for, and the first row came later: the series begins there
    # The stored candle before the hole was asked for too: an answer without it does not reach back to the hole.
    beyond = not piece.cut and (answer.first is None or answer.first > piece.around.start)
    yield in_vain(replace(need, span=span), now_s, rng, beyond=beyond)


def not_answered(need: Need, now_s: float, rng: random.Random, again_s: float) -> Need:
    """The need, while the exchange gives no answer at all: its interval grows no further than while somebody is said
    to be at work on it, so that it is asked for soon after the exchange's return. `again_s`: not before so many
    seconds."""
    again = in_vain(need, now_s, rng, again_s)
    return replace(again, vain=min(again.vain, PATIENCE), filed=False)


def in_vain(need: Need, now_s: float, rng: random.Random, at_least_s: float = 0.0, *, beyond: bool = False) -> Need:
    """The need, to be asked for again after the next of its intervals. `beyond`: the answer shows that the exchange's
    history does not reach back to it."""
    vain, since_s = need.vain + 1, None
    if beyond:
        since_s = now_s if need.beyond_s is None else need.beyond_s
    return replace(need, vain=vain, due_s=now_s + max(at_least_s, RETRY.delay_s(need.vain, rng)), beyond_s=since_s)


def unanswered(need: Need, now_s: float, rng: random.Random) -> Need:
    """The need, of which files have nothing and the exchange is not asked: nobody is at work on it, and the files are
    looked into again after the next of its intervals."""
    again = in_vain(need, now_s, rng)
    return replace(again, vain=max(again.vain, PATIENCE), filed=False)


def is_lost(need: Need, now_s: float) -> bool:
    """Whether the exchange has shown for long enough that its history does not reach back to the need."""
    return need.beyond_s is not None and need.vain >= PATIENCE and now_s - need.beyond_s >= LOST_AFTER_S


def reached(needs: Iterable[Need], oldest: int) -> list[Need]:
    """What of the needs lies at or behind the `oldest` open time that the exchange still gives."""
    return [
        replace(need, span=Span(max(need.span.start, oldest), need.span.end))
        for need in needs
        if need.span.end > oldest
    ]


def _raised(need: Need, span: Span, reason: str, urgency: Urgency) -> Need:
    """The need, as urgent as a request of `span` that joins it."""
    raised = urgency < need.urgency and need.span.overlaps(span)
    return replace(need, urgency=urgency, reason=reason) if raised else need


def _turned(need: Need, span: Span, reason: str) -> Need:
    """The need, oldest part first as a request of `span` that joins it."""
    return replace(need, oldest_first=True, reason=reason) if need.span.overlaps(span) else need


def _together(timeframe: Timeframe, due: Sequence[Need]) -> list[Need]:
    """The first of the `due` needs (ascending, or descending), and those that follow it so closely that one page may
    span both."""
    taken = [due[0]]
    for need in due[1:]:
        with_last, with_all = hull([need.span, taken[-1].span]), hull([need.span, taken[0].span])
        if timeframe.count(*with_last) > PAGE_CANDLES or timeframe.count(*with_all) > PIECE_CANDLES:
            break
        taken.append(need)
    return taken

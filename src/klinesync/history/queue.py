"""HistoryQueue: the one queue of missing candles: order, limits, retries, memory. Pure: `now_s` is monotonic time.

A need that a user waits for comes first. Else series take turns, one piece of work of a series at a time. `take` gives
the next piece of work, `settle` takes it back with the part that waits again, `needs_of` tells about each need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from klinesync.core.candle import MAX_TIME
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined, without
from klinesync.exchanges.exchange import Urgency
from klinesync.history import pending as policy
from klinesync.history.memory import SourceMemory
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import Pending
from klinesync.history.pieces import Fetch, together

# Needs of one series, and of all. A gap that finds no room stays declared in the store, and is looked up again later.
MAX_NEEDS_OF_SERIES = 1000
MAX_NEEDS = 100_000
# Series whose store is to be looked into; the read of a further one asks again.
MAX_LOOKS = 10_000
# Pieces of work at a time; the exchange's budget rations their requests further.
MAX_AT_ONCE = 4
# And further ones that only urgent needs may take, so that a user does not wait for the end of a deep reading.
MAX_URGENT_AT_ONCE = 4

# Finds out from the store what is missing of a series, for a page that begins there (None: no page). Raises
# `StoreError`.
Find = Callable[[SeriesId, int | None], Awaitable[Sequence[Need]]]

_EVERYTHING = Span(0, MAX_TIME + 1)
# Read by themselves, as they are. Nobody wants them any more some time after the last read of the series.
_WHOLE = (Reason.TAIL, Reason.NATIVE)
# Reads repeat these: for a moment after an answer they are not asked for again.
_REPEATED = (Reason.TAIL, Reason.NATIVE, Reason.OLDER)


@dataclass(frozen=True, slots=True)
class NeedStatus:
    """A need, as `explain` tells it.

    need: what is missing, why, who asked, how urgent it is.
    in_flight: it is being read now.
    attempts: how often it was asked for, with the attempt in flight.
    next_try_s: when it is asked for (again), monotonic seconds; the past: as soon as there is room; None: in flight.
    last_answer: what came of the newest attempt that is over, a sentence; None before the first.
    """

    need: Need
    in_flight: bool
    attempts: int
    next_try_s: float | None
    last_answer: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """Look into the store what is missing of the series.

    page_start: where the earliest page that was read would begin, were it full; None: it is full, or none was read.
    find: finds that out; None: the gap ledger tells. The queue only hands it on.
    """

    series: SeriesId
    urgency: Urgency = Urgency.DEEP
    page_start: int | None = None
    find: Find | None = None


@dataclass(slots=True)
class _Line:
    """The work that waits of one series, and when its first need is due, and its first urgent one."""

    needs: tuple[Pending, ...] = ()
    due_s: float = float("inf")
    urgent_due_s: float = float("inf")
    look: Look | None = None
    work: Look | Fetch | None = None

    def wait(self, needs: Iterable[Pending]) -> None:
        self.needs = tuple(needs)
        self.due_s = min((pending.due_s for pending in self.needs), default=float("inf"))
        self.urgent_due_s = min((pending.due_s for pending in self.needs if pending.urgent), default=float("inf"))

    @property
    def in_flight(self) -> tuple[Pending, ...]:
        return self.work.needs if isinstance(self.work, Fetch) else ()

    @property
    def looks(self) -> bool:
        return self.look is not None or isinstance(self.work, Look)

    @property
    def waits_urgently(self) -> bool:
        return self.urgent_due_s < float("inf") or (self.look is not None and self.look.urgency < Urgency.DEEP)


class HistoryQueue:
    """All needs, series by series."""

    def __init__(self) -> None:
        self.memory = SourceMemory()
        self._lines: OrderedDict[SeriesId, _Line] = OrderedDict()
        # Series of which something urgent waits: few, so that these are found without looking at all.
        self._urgent: OrderedDict[SeriesId, None] = OrderedDict()
        self._size = 0
        self._looks = 0
        self._out = 0
        self._deep_out = 0

    # Who needs candles.

    def submit(self, need: Need, now_s: float) -> bool:
        """Add the part of a need that does not wait already; the part that waits is from now on as urgent as this.

        False when there was no room for all of it. What was answered a moment ago is not added.
        """
        line = self._lines.setdefault(need.series, _Line())
        wanted_until_s = now_s + policy.WANTED_S if need.reason in _WHOLE else float("inf")
        if need.reason is not Reason.GAP or need.urgency < Urgency.DEEP:
            self._wait(need.series, [_joined_by(pending, need, wanted_until_s) for pending in line.needs])
        alike = [pending.span for pending in (*line.needs, *line.in_flight) if _covers(pending, need)]
        new = without([need.span], joined(alike))
        if need.reason is Reason.TAIL and alike:
            new = []  # the tail that waits, or is being read, goes up to the newest candle
        if need.reason in _REPEATED and self.memory.was_answered(need.series, need.reason, _lasting(need), now_s):
            new = []
        room = max(0, min(MAX_NEEDS_OF_SERIES - len(line.needs), MAX_NEEDS - self._size))
        kept = new[max(0, len(new) - room) :]
        if kept:
            added = (Pending(replace(need, span=part), wanted_until_s=wanted_until_s) for part in kept)
            self._wait(need.series, (*line.needs, *added))
        if len(kept) < len(new) and need.reason not in _WHOLE:
            self._look(line, Look(need.series))
        self._forget_if_idle(need.series)
        return len(kept) == len(new)

    def look(self, look: Look) -> bool:
        """Something of the series may be missing that only the store tells. False when there was no room."""
        line = self._lines.setdefault(look.series, _Line())
        fits = line.look is not None or self._looks < MAX_LOOKS
        if fits:
            self._look(line, look)
            self._note_urgent(look.series, line)
        self._forget_if_idle(look.series)
        return fits

    def looked_lately(self, look: Look, now_s: float) -> bool:
        """Whether the same look for a read was over a moment ago."""
        return self.memory.was_answered(look.series, None, _lasting_look(look), now_s)

    def retry_now(self, series: SeriesId) -> None:
        """The exchange's history of the series may have changed: every pending need of it is due at once, with its
        retry delay back at the first."""
        if (line := self._lines.get(series)) is not None:
            self._wait(series, [replace(pending, fruitless=0, due_s=float("-inf")) for pending in line.needs])

    # Who reads.

    def take(self, now_s: float) -> Look | Fetch | None:
        """The next piece of work, an urgent one first; None when nothing is due, or as much is under way as may be."""
        if self._out >= MAX_AT_ONCE + MAX_URGENT_AT_ONCE:
            return None
        for series in list(self._urgent):
            work = self._work_of(series, now_s, urgent_only=True)
            if work is not None:
                return self._begin(work)
        if self._deep_out >= MAX_AT_ONCE:
            return None
        for series in list(self._lines):
            work = self._work_of(series, now_s)
            if work is not None:
                return self._begin(work)
        return None

    def settle(self, work: Look | Fetch, remaining: Sequence[Pending], now_s: float, answer: str | None = None) -> None:
        """Work that was taken is over.

        remaining: its needs that wait again. They are urgent no more.
        answer: what came of it, a sentence.
        """
        line = self._lines[work.series]
        assert line.work is work, "one piece of work of a series is under way at a time"
        line.work = None
        self._out -= 1
        self._deep_out -= work.urgency is Urgency.DEEP
        if isinstance(work, Look):
            if work.urgency < Urgency.DEEP:
                self._remember_answer(work.series, None, _lasting_look(work), now_s)
        elif work.reason in _REPEATED:
            self._remember_answer(
                work.series, work.reason, _lasting(replace(work.needs[-1].need, span=work.span)), now_s
            )
        self._wait(work.series, (*line.needs, *self._wanted_still(remaining, now_s, answer)))
        self._forget_if_idle(work.series)

    def _wanted_still(self, remaining: Sequence[Pending], now_s: float, answer: str | None) -> Iterator[Pending]:
        """The needs that wait again. A need that nobody wants by its next try ends; until then the memory holds back a
        new one."""
        for pending in remaining:
            if pending.due_s <= pending.wanted_until_s:
                yield _calmed(pending, answer)
            else:
                self.memory.remember_answer(
                    pending.series, pending.reason, _lasting(pending.need), pending.due_s, now_s
                )

    def next_due_s(self) -> float | None:
        """When `take` has something that it has not now; None when that needs another call first."""
        if self._out >= MAX_AT_ONCE + MAX_URGENT_AT_ONCE:
            return None
        urgent = (self._lines[series] for series in self._urgent)
        due_s = min((line.urgent_due_s for line in urgent if line.work is None), default=float("inf"))
        if self._deep_out < MAX_AT_ONCE:
            idle = (line.due_s for line in self._lines.values() if line.work is None)
            due_s = min(due_s, min(idle, default=float("inf")))
        return due_s if due_s < float("inf") else None

    # What waits.

    def needs_of(self, series: SeriesId) -> tuple[NeedStatus, ...]:
        """Each need of the series, ascending; those in flight as they were taken."""
        line = self._lines.get(series, _Line())
        told = [_status(pending, in_flight=False) for pending in line.needs]
        told += [_status(pending, in_flight=True) for pending in line.in_flight]
        return tuple(sorted(told, key=lambda status: status.need.span))

    def waits_urgently(self, series: SeriesId) -> bool:
        """Whether something urgent of the series waits, behind the piece of it that is being read."""
        return series in self._urgent

    def expects(self, series: SeriesId, reason: Reason) -> bool:
        """Whether a need of the series with that reason waits for its first answer."""
        line = self._lines.get(series, _Line())
        return any(one.reason is reason and not one.fruitless for one in (*line.needs, *line.in_flight))

    def looks(self, series: SeriesId) -> bool:
        """Whether the store is yet to be asked for declared gaps of the series."""
        line = self._lines.get(series)
        return line is not None and line.looks

    def waiting(self, series: SeriesId, span: Span) -> list[Pending]:
        """The needs in `span` that wait or are being read, ascending."""
        line = self._lines.get(series, _Line())
        touching = (pending for pending in (*line.needs, *line.in_flight) if pending.span.overlaps(span))
        return sorted(touching, key=lambda pending: pending.span)

    def at_work(self, series: SeriesId) -> list[Span]:
        """The spans that are being read, or soon will be; not those of many fruitless attempts."""
        line = self._lines.get(series, _Line())
        if line.looks:
            return [_EVERYTHING]
        waiting = (*line.needs, *line.in_flight)
        return joined(pending.span for pending in waiting if pending.fruitless < policy.PATIENCE)

    # Inside.

    def _begin(self, work: Look | Fetch) -> Look | Fetch:
        line = self._lines[work.series]
        line.work = work
        self._out += 1
        self._deep_out += work.urgency is Urgency.DEEP
        self._lines.move_to_end(work.series)
        if work.series in self._urgent:
            self._urgent.move_to_end(work.series)
        return work

    def _work_of(self, series: SeriesId, now_s: float, *, urgent_only: bool = False) -> Look | Fetch | None:
        """The next piece of work of the series, taken out of its line."""
        line = self._lines[series]
        if line.work is not None:
            return None
        look = line.look
        if look is not None and not (urgent_only and look.urgency is Urgency.DEEP) and self._has_room(line):
            line.look = None
            self._looks -= 1
            self._note_urgent(series, line)
            return look
        if (line.urgent_due_s if urgent_only else line.due_s) > now_s:
            return None
        return self._fetch_of(series, line, now_s)

    def _has_room(self, line: _Line) -> bool:
        """A look may add as many needs as there is room for."""
        return len(line.needs) <= MAX_NEEDS_OF_SERIES // 2 and self._size <= MAX_NEEDS // 2

    def _fetch_of(self, series: SeriesId, line: _Line, now_s: float) -> Fetch:
        due = sorted((pending for pending in line.needs if pending.due_s <= now_s), key=lambda one: one.span)
        first = min(pending.urgency for pending in due)
        due = [pending for pending in due if pending.urgency == first]
        whole = [pending for pending in due if pending.reason in _WHOLE]
        holes = [pending for pending in due if pending.reason in (Reason.GAP, Reason.OLDER)]
        taken = whole[-1:] or together(series.timeframe, holes[::-1] or due)
        self._wait(series, [pending for pending in line.needs if pending not in taken])
        asked = (replace(pending, attempts=pending.attempts + 1) for pending in taken)
        return Fetch(series, tuple(sorted(asked, key=lambda pending: pending.span)))

    def _wait(self, series: SeriesId, needs: Sequence[Pending]) -> None:
        """From now on these wait of the series."""
        line = self._lines[series]
        self._size += len(needs) - len(line.needs)
        line.wait(needs)
        self._note_urgent(series, line)

    def _look(self, line: _Line, look: Look) -> None:
        if line.look is None:
            self._looks += 1
            line.look = look
            return
        starts = [start for start in (line.look.page_start, look.page_start) if start is not None]
        find = look.find or line.look.find
        line.look = Look(look.series, min(look.urgency, line.look.urgency), min(starts, default=None), find)

    def _note_urgent(self, series: SeriesId, line: _Line) -> None:
        if line.waits_urgently:
            self._urgent[series] = None
        else:
            self._urgent.pop(series, None)

    def _remember_answer(self, series: SeriesId, reason: Reason | None, span: Span, now_s: float) -> None:
        self.memory.remember_answer(series, reason, span, now_s + policy.RETRY.initial_s, now_s)

    def _forget_if_idle(self, series: SeriesId) -> None:
        line = self._lines[series]
        if not line.needs and line.look is None and line.work is None:
            del self._lines[series]


def _lasting(need: Need) -> Span:
    """The span for which an answer to the need counts: a tail is longer by the next candle, and the same need."""
    return Span(need.span.start, MAX_TIME + 1) if need.reason is Reason.TAIL else need.span


def _lasting_look(look: Look) -> Span:
    """The same for a look: all from the beginning of its page on."""
    return Span(MAX_TIME if look.page_start is None else look.page_start, MAX_TIME + 1)


def _status(pending: Pending, *, in_flight: bool) -> NeedStatus:
    next_try_s = None if in_flight else max(pending.due_s, 0.0)
    return NeedStatus(pending.need, in_flight, pending.attempts, next_try_s, pending.last_answer)


def _calmed(pending: Pending, answer: str | None) -> Pending:
    """The need after it was asked for."""
    need = replace(pending.need, urgency=Urgency.DEEP)
    return replace(pending, need=need, last_answer=answer or pending.last_answer)


def _covers(pending: Pending, need: Need) -> bool:
    """Whether a pending need is of a kind with `need`, so that a common part is read once."""
    one, other = pending.reason, need.reason
    return one is other or not (one in _WHOLE or other in _WHOLE)


def _joined_by(pending: Pending, need: Need, wanted_until_s: float) -> Pending:
    """The pending need after `need` has joined it: as urgent as this, and oldest part first if this is requested."""
    old = pending.need
    if not _covers(pending, need):
        return pending
    if need.reason is Reason.TAIL:
        old = replace(old, span=need.span)  # what is missing is longer by now
    elif not old.span.overlaps(need.span):
        return pending
    if need.urgency < old.urgency:
        old = replace(old, urgency=need.urgency, asked_by=need.asked_by)
    if need.reason is Reason.REQUESTED:
        old = replace(old, reason=need.reason, asked_by=need.asked_by)
    return replace(pending, need=old, wanted_until_s=max(pending.wanted_until_s, wanted_until_s))

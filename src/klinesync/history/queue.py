"""HistoryQueue: the queue of all missing candles: order, limits, retries. Pure: `now_s` is monotonic time.

Needs that a user waits for come first. Otherwise series take turns, with one piece of work in flight for each. `take`
returns the next piece of work, `settle` ends it and queues the needs that wait again.

`take` and `next_due_s` search all series when nothing is due: 0.3 and 0.2 ms for 1,000 series. Turns and due times are
two orders, so that a heap would need both, and an update at each change of a need.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from klinesync.core.candle import MAX_TIME
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, joined, without
from klinesync.exchanges.exchange import Urgency
from klinesync.history.limits import USUAL_LIMITS, HistoryLimits
from klinesync.history.memory import SourceMemory
from klinesync.history.missing import Need, Reason
from klinesync.history.pending import USUAL_RETRIES, Pending, RetryPolicy
from klinesync.history.pieces import Fetch, one_request

# Most pieces of work in flight; the request budget of the exchange is a further limit.
MAX_AT_ONCE = 4
# Most further pieces of work in flight for urgent needs, so that no user waits for the end of deep history.
MAX_URGENT_AT_ONCE = 4

# Reads from the store which candles of a series are missing, for a page that begins at this open time (None: no page).
# Raises `StoreError`.
Find = Callable[[SeriesId, int | None], Awaitable[Sequence[Need]]]

_ALL_TIMES = Span(0, MAX_TIME + 1)
# Each is read by itself, and dropped some time after the last read of a series that no client follows.
_READ_ALONE = (Reason.TAIL, Reason.NATIVE)
# Submitted again by every read: dropped for a moment after an answer.
_REPEATED = (Reason.TAIL, Reason.NATIVE, Reason.OLDER)


@dataclass(frozen=True, slots=True)
class NeedStatus:
    """The state of a need, for `explain`.

    need: what is missing, why, who asked, and the urgency.
    in_flight: a request for the need is in flight.
    attempts: requests so far, with the request in flight.
    next_try_s: time of the next attempt, monotonic seconds; in the past: as soon as there is room; None: in flight.
    last_answer: the result of the newest finished attempt, a sentence; None before the first.
    """

    need: Need
    in_flight: bool
    attempts: int
    next_try_s: float | None
    last_answer: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """A command to look up in the store which candles of a series are missing.

    series: whose candles.
    urgency: of the lookup; `DEEP` by default.
    page_start: where the earliest page that was read would begin if it were full; None: it is full, or none was read.
    find: the lookup; None: the gaps of the gap ledger. The queue does not call it.
    failures: consecutive lookups before this one that failed.
    due_s: not before this time, monotonic seconds.
    """

    series: SeriesId
    urgency: Urgency = Urgency.DEEP
    page_start: int | None = None
    find: Find | None = None
    failures: int = 0
    due_s: float = float("-inf")


@dataclass(slots=True)
class _Line:
    """The queued work of one series.

    needs: the needs that wait.
    due_s: when the first of them is due.
    urgent_due_s: when the first urgent one is due.
    look: a lookup that waits.
    work: the piece of work in flight.
    """

    needs: tuple[Pending, ...] = ()
    due_s: float = float("inf")
    urgent_due_s: float = float("inf")
    look: Look | None = None
    work: Look | Fetch | None = None

    def replace_needs(self, needs: Iterable[Pending]) -> None:
        self.needs = tuple(needs)
        self.due_s = min((pending.due_s for pending in self.needs), default=float("inf"))
        self.urgent_due_s = min((pending.due_s for pending in self.needs if pending.urgent), default=float("inf"))

    @property
    def in_flight(self) -> tuple[Pending, ...]:
        return self.work.needs if isinstance(self.work, Fetch) else ()

    def is_looking(self, most_failures: int) -> bool:
        """Whether a lookup waits or is in flight that has not failed so often in a row."""
        looks = (self.look, self.work if isinstance(self.work, Look) else None)
        return any(look is not None and look.failures < most_failures for look in looks)

    @property
    def waits_urgently(self) -> bool:
        return self.urgent_due_s < float("inf") or (self.look is not None and self.look.urgency < Urgency.DEEP)


class HistoryQueue:
    """The needs of all series, requested again as `retries` has it.

    retries: when needs are requested again.
    limits: of the queue, of one request, and of its memory.
    """

    def __init__(self, retries: RetryPolicy = USUAL_RETRIES, limits: HistoryLimits = USUAL_LIMITS) -> None:
        self._retries = retries
        self._limits = limits
        self.memory = SourceMemory(limits)
        self._lines: OrderedDict[SeriesId, _Line] = OrderedDict()
        # Series with urgent work that waits: an index, so that `take` need not search all series.
        self._urgent: OrderedDict[SeriesId, None] = OrderedDict()
        self._size = 0
        self._looks = 0
        self._in_flight = 0
        self._deep_in_flight = 0

    # Adding needs.

    def submit(self, need: Need, now_s: float) -> bool:
        """Queue the part of a need that is not queued yet, and raise the queued part to the urgency of this need. A
        span that was answered a moment ago is dropped. Returns False when the queue had no room for all of it."""
        line = self._lines.setdefault(need.series, _Line())
        wanted_until_s = now_s + self._retries.wanted_s if need.reason in _READ_ALONE else float("inf")
        if need.reason is not Reason.GAP or need.urgency < Urgency.DEEP:
            self._replace_needs(need.series, [_merged(pending, need, wanted_until_s) for pending in line.needs])
        queued = [pending.span for pending in (*line.needs, *line.in_flight) if _same_kind(pending, need)]
        new = without([need.span], joined(queued))
        if need.reason is Reason.TAIL and queued:
            new = []  # the queued tail is read up to the newest candle
        if need.reason in _REPEATED and self.memory.was_answered(need.series, need.reason, _answered_span(need), now_s):
            new = []
        room = max(0, min(self._limits.needs_of_series - len(line.needs), self._limits.needs - self._size))
        kept = new[max(0, len(new) - room) :]
        if kept:
            added = (Pending(replace(need, span=part), wanted_until_s=wanted_until_s) for part in kept)
            self._replace_needs(need.series, (*line.needs, *added))
        if len(kept) < len(new) and need.reason not in _READ_ALONE:
            self._look(line, Look(need.series))
        self._forget_if_idle(need.series)
        return len(kept) == len(new)

    def look(self, look: Look) -> bool:
        """Queue a lookup in the store. Returns False when the queue had no room."""
        line = self._lines.setdefault(look.series, _Line())
        fits = line.look is not None or self._looks < self._limits.looks
        if fits:
            self._look(line, look)
            self._note_urgent(look.series, line)
        self._forget_if_idle(look.series)
        return fits

    def look_again(self, look: Look, due_s: float) -> None:
        """Queue a lookup that failed again, not before `due_s`, behind what users wait for."""
        self.look(replace(look, urgency=Urgency.DEEP, failures=look.failures + 1, due_s=due_s))

    def looked_lately(self, look: Look, now_s: float) -> bool:
        """Whether the same lookup for a read ended a moment ago."""
        return self.memory.was_answered(look.series, None, _answered_by_look(look), now_s)

    def retry_now(self, series: SeriesId) -> None:
        """Make every pending need of the series due at once, with the first retry delay, because the exchange's history
        of the series may have changed."""
        if (line := self._lines.get(series)) is not None:
            due = [replace(pending, fruitless_attempts=0, due_s=float("-inf")) for pending in line.needs]
            self._replace_needs(series, due)

    # Taking and settling work.

    def take(self, now_s: float) -> Look | Fetch | None:
        """The next piece of work, urgent work first; None when nothing is due, or a limit of work in flight is
        reached."""
        if self._in_flight >= MAX_AT_ONCE + MAX_URGENT_AT_ONCE:
            return None
        for series in list(self._urgent):
            work = self._work_of(series, now_s, urgent_only=True)
            if work is not None:
                return self._begin(work)
        if self._deep_in_flight >= MAX_AT_ONCE:
            return None
        for series in list(self._lines):
            work = self._work_of(series, now_s)
            if work is not None:
                return self._begin(work)
        return None

    def settle(self, work: Look | Fetch, remaining: Sequence[Pending], now_s: float, answer: str | None = None) -> None:
        """End a piece of work that was taken.

        work: as `take` returned it.
        remaining: its needs that wait again; their urgency becomes `DEEP`.
        now_s: monotonic seconds.
        answer: the result as a sentence; None: the needs keep their last answer.
        """
        line = self._lines[work.series]
        assert line.work is work, "a series has one piece of work in flight"
        line.work = None
        self._in_flight -= 1
        self._deep_in_flight -= work.urgency is Urgency.DEEP
        if isinstance(work, Look):
            if work.urgency < Urgency.DEEP:
                self._remember_answer(work.series, None, _answered_by_look(work), now_s)
        elif work.reason in _REPEATED:
            answered = _answered_span(replace(work.needs[-1].need, span=work.span))
            self._remember_answer(work.series, work.reason, answered, now_s)
        waiting = list(self._waiting_again(remaining, now_s, answer))
        self._replace_needs(work.series, (*_not_read(line.needs, waiting), *waiting))
        self._forget_if_idle(work.series)

    def _waiting_again(self, remaining: Sequence[Pending], now_s: float, answer: str | None) -> Iterator[Pending]:
        """The needs that wait again. A need that is not wanted any more is dropped; the memory keeps the same need from
        being queued again before the retry would have been due."""
        for pending in remaining:
            if pending.due_s <= pending.wanted_until_s:
                yield _after_attempt(pending, answer)
            else:
                self.memory.remember_answer(
                    pending.series, pending.reason, _answered_span(pending.need), pending.due_s, now_s
                )

    def next_due_s(self) -> float | None:
        """When `take` next has work that is not due now, monotonic seconds; None when only another call can bring
        work."""
        if self._in_flight >= MAX_AT_ONCE + MAX_URGENT_AT_ONCE:
            return None
        urgent = (self._lines[series] for series in self._urgent)
        due_s = min((line.urgent_due_s for line in urgent if line.work is None), default=float("inf"))
        if self._deep_in_flight < MAX_AT_ONCE:
            idle = [line for line in self._lines.values() if line.work is None]
            due_s = min(due_s, min((line.due_s for line in idle), default=float("inf")))
            failed = (line.look.due_s for line in idle if line.look and line.look.failures and self._has_room(line))
            due_s = min(due_s, min(failed, default=float("inf")))
        return due_s if due_s < float("inf") else None

    # What is queued.

    def needs_of(self, series: SeriesId) -> tuple[NeedStatus, ...]:
        """The state of each need of the series, ascending; of needs in flight as they were taken."""
        line = self._lines.get(series, _Line())
        statuses = [_status(pending, in_flight=False) for pending in line.needs]
        statuses += [_status(pending, in_flight=True) for pending in line.in_flight]
        return tuple(sorted(statuses, key=lambda status: status.need.span))

    def waits_urgently(self, series: SeriesId) -> bool:
        """Whether urgent work of the series waits behind the piece of work in flight."""
        return series in self._urgent

    def expects(self, series: SeriesId, reason: Reason) -> bool:
        """Whether a need of the series with that reason waits for its first answer."""
        return any(need.reason is reason and not need.fruitless_attempts for need in self._needs(series))

    def is_looking(self, series: SeriesId) -> bool:
        """Whether a lookup in the store for the series is queued or in flight. One that fails again and again does not
        count: it is still repeated, but nothing is to be waited for."""
        line = self._lines.get(series)
        return line is not None and line.is_looking(self._retries.stalled_after)

    def needs_in(self, series: SeriesId, span: Span) -> list[Pending]:
        """The needs in `span` that wait or are in flight, ascending."""
        return sorted(
            (need for need in self._needs(series) if need.span.overlaps(span)), key=lambda pending: pending.span
        )

    def working_on(self, series: SeriesId) -> list[Span]:
        """The spans that are in flight or wait, ascending; without stalled needs."""
        if self.is_looking(series):
            return [_ALL_TIMES]
        return joined(
            need.span for need in self._needs(series) if need.fruitless_attempts < self._retries.stalled_after
        )

    def _needs(self, series: SeriesId) -> tuple[Pending, ...]:
        """The needs of the series, waiting and in flight."""
        line = self._lines.get(series, _Line())
        return *line.needs, *line.in_flight

    # Private.

    def _begin(self, work: Look | Fetch) -> Look | Fetch:
        line = self._lines[work.series]
        line.work = work
        self._in_flight += 1
        self._deep_in_flight += work.urgency is Urgency.DEEP
        self._lines.move_to_end(work.series)
        if work.series in self._urgent:
            self._urgent.move_to_end(work.series)
        return work

    def _work_of(self, series: SeriesId, now_s: float, *, urgent_only: bool = False) -> Look | Fetch | None:
        """The next piece of work of the series, removed from its line."""
        line = self._lines[series]
        if line.work is not None:
            return None
        look = line.look
        if (
            look is not None
            and look.due_s <= now_s
            and not (urgent_only and look.urgency is Urgency.DEEP)
            and self._has_room(line)
        ):
            line.look = None
            self._looks -= 1
            self._note_urgent(series, line)
            return look
        if (line.urgent_due_s if urgent_only else line.due_s) > now_s:
            return None
        return self._fetch_of(series, line, now_s)

    def _has_room(self, line: _Line) -> bool:
        """Whether there is room for the needs that a lookup may add."""
        return len(line.needs) <= self._limits.needs_of_series // 2 and self._size <= self._limits.needs // 2

    def _fetch_of(self, series: SeriesId, line: _Line, now_s: float) -> Fetch:
        due = sorted((pending for pending in line.needs if pending.due_s <= now_s), key=lambda pending: pending.span)
        most_urgent = min(pending.urgency for pending in due)
        due = [pending for pending in due if pending.urgency == most_urgent]
        alone = [pending for pending in due if pending.reason in _READ_ALONE]
        gaps = [pending for pending in due if pending.reason in (Reason.GAP, Reason.OLDER)]
        taken = alone[-1:] or one_request(series.timeframe, gaps[::-1] or due, self._limits)
        self._replace_needs(series, [pending for pending in line.needs if pending not in taken])
        in_flight = (replace(pending, attempts=pending.attempts + 1) for pending in taken)
        return Fetch(series, tuple(sorted(in_flight, key=lambda pending: pending.span)))

    def _replace_needs(self, series: SeriesId, needs: Sequence[Pending]) -> None:
        line = self._lines[series]
        self._size += len(needs) - len(line.needs)
        line.replace_needs(needs)
        self._note_urgent(series, line)

    def _look(self, line: _Line, look: Look) -> None:
        if line.look is None:
            self._looks += 1
            line.look = look
            return
        starts = [start for start in (line.look.page_start, look.page_start) if start is not None]
        find = look.find or line.look.find
        failures, due_s = max(look.failures, line.look.failures), max(look.due_s, line.look.due_s)
        urgency = Urgency.DEEP if failures else min(look.urgency, line.look.urgency)
        line.look = Look(look.series, urgency, min(starts, default=None), find, failures, due_s)

    def _note_urgent(self, series: SeriesId, line: _Line) -> None:
        if line.waits_urgently:
            self._urgent[series] = None
        else:
            self._urgent.pop(series, None)

    def _remember_answer(self, series: SeriesId, reason: Reason | None, span: Span, now_s: float) -> None:
        self.memory.remember_answer(series, reason, span, now_s + self._retries.backoff.initial_s, now_s)

    def _forget_if_idle(self, series: SeriesId) -> None:
        line = self._lines[series]
        if not line.needs and line.look is None and line.work is None:
            del self._lines[series]


def _answered_span(need: Need) -> Span:
    """The span for which an answer to the need counts: that of a tail counts for the next candles too."""
    return Span(need.span.start, MAX_TIME + 1) if need.reason is Reason.TAIL else need.span


def _answered_by_look(look: Look) -> Span:
    """The span for which a lookup counts: from the start of its page on."""
    return Span(MAX_TIME if look.page_start is None else look.page_start, MAX_TIME + 1)


def _status(pending: Pending, *, in_flight: bool) -> NeedStatus:
    next_try_s = None if in_flight else max(pending.due_s, 0.0)
    return NeedStatus(pending.need, in_flight, pending.attempts, next_try_s, pending.last_answer)


def _after_attempt(pending: Pending, answer: str | None) -> Pending:
    """The need after a request."""
    need = replace(pending.need, urgency=Urgency.DEEP)
    return replace(pending, need=need, last_answer=answer or pending.last_answer)


def _not_read(needs: Sequence[Pending], waiting: Sequence[Pending]) -> Iterator[Pending]:
    """The queued needs, without the parts that were read with another need, because a gap is read whole.

    needs: that were queued during the reading; urgent needs are kept.
    waiting: the parts of the reading that wait again.
    """
    read = {reason: joined(pending.span for pending in waiting if pending.reason is reason) for reason in Reason}
    for pending in needs:
        parts = [pending.span] if pending.urgent else without([pending.span], read[pending.reason])
        for part in parts:
            yield pending.with_span(part)


def _same_kind(pending: Pending, need: Need) -> bool:
    """Whether one request can serve the common part of both needs."""
    return pending.reason is need.reason or (pending.reason not in _READ_ALONE and need.reason not in _READ_ALONE)


def _merged(pending: Pending, need: Need, wanted_until_s: float) -> Pending:
    """The pending need with the urgency of `need`, and oldest part first if `need` belongs to an explicit backfill."""
    old = pending.need
    if not _same_kind(pending, need):
        return pending
    if need.reason is Reason.TAIL:
        old = replace(old, span=need.span)  # the tail has grown
    elif not old.span.overlaps(need.span):
        return pending
    if need.urgency < old.urgency:
        old = replace(old, urgency=need.urgency, asked_by=need.asked_by)
    if need.reason is Reason.REQUESTED:
        old = replace(old, reason=need.reason, asked_by=need.asked_by)
    return replace(pending, need=old, wanted_until_s=max(pending.wanted_until_s, wanted_until_s))

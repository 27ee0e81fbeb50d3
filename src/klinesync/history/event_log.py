"""EventLog: the newest events of each series, in memory, and what of them a store does not have yet. Pure.

A log is bounded three ways: events a scope, scopes, and events of all scopes together. What happens again soon is
counted, not added, so that a stream which flaps does not push out everything else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice

from klinesync.core.events import EventBatch, NumberedEvent, ScopeChange, SeriesEvent
from klinesync.core.printable import printable

# Newest events of a scope that are kept.
MAX_EVENTS_A_SERIES = 200
# Scopes (series and markets) with events. Beyond, the scope without an event for the longest time is forgotten.
MAX_SCOPES = 5000
# Events of all scopes together, about 25 MB. Beyond, that scope loses its oldest events.
MAX_EVENTS = 50_000
# Longest sentence of an event, in characters.
MAX_DETAIL_CHARS = 300
# An event is the same again when one of so many newest events of its scope has its name and its sentence, ...
REPEAT_LOOK = 8
# ... and happened no longer ago than this, in milliseconds.
REPEAT_WITHIN_MS = 600_000
# Series of a market that get the same event for themselves within `CROWD_S` seconds. For further series the event is
# kept once, for the market: 1,000 streams that flap are the events of 20 series, and one of their market.
CROWD_LEAST = 20
CROWD_S = 60.0


class _Ring:
    """The events of one scope, oldest first. `clean_below`: the store has every event with a smaller number.
    `stored`: the store may have events of the scope, these or older ones."""

    __slots__ = ("clean_below", "events", "stored")

    def __init__(self) -> None:
        self.events: deque[NumberedEvent] = deque()
        self.clean_below = 0
        self.stored = False


class EventLog:
    """The events of all scopes.

    a_series: most events of a scope.
    scopes: most scopes.
    events: most events of all scopes together.
    """

    def __init__(
        self, *, a_series: int = MAX_EVENTS_A_SERIES, scopes: int = MAX_SCOPES, events: int = MAX_EVENTS
    ) -> None:
        self._a_series = a_series
        self._scopes = scopes
        self._events = events
        self._rings: OrderedDict[str, _Ring] = OrderedDict()  # the scope with the newest event is last
        self._total = 0
        self._number = 0
        self._dirty: dict[str, None] = {}  # scopes that the store does not have as they are; the longest so first
        self._gone: dict[str, None] = {}  # scopes that were forgotten here, and that the store may have
        self._clear = False  # what the store has is unknown: it is to be deleted

    def __len__(self) -> int:
        return self._total

    def __contains__(self, scope: str) -> bool:
        return scope in self._rings

    # What happened.

    def note(self, scope: str, event: str, detail: str, at_ms: int) -> None:
        """Something happened to that scope.

        scope: a series, or a market.
        event: its name.
        detail: a sentence; text of others in it is escaped, and cut where it is long.
        at_ms: when, UTC milliseconds.
        """
        detail = printable(detail[:MAX_DETAIL_CHARS])
        ring = self._ring(scope)
        self._number += 1
        again = self._taken_out(ring, event, detail, at_ms)
        if again is None:
            ring.events.append(NumberedEvent(self._number, SeriesEvent(event, detail, at_ms, at_ms)))
        else:
            repeated = again.event._replace(at_ms=at_ms, times=again.event.times + 1)
            ring.events.append(NumberedEvent(self._number, repeated))
            ring.clean_below = min(ring.clean_below, again.number)
        self._total += 1
        self._dirty.setdefault(scope)
        self._trim(scope, ring)

    def _taken_out(self, ring: _Ring, event: str, detail: str, at_ms: int) -> NumberedEvent | None:
        """The same event as it was noted before, which is not in the ring any more."""
        for back in range(1, min(REPEAT_LOOK, len(ring.events)) + 1):
            noted = ring.events[-back]
            same = noted.event.event == event and noted.event.detail == detail
            if same and abs(at_ms - noted.event.at_ms) <= REPEAT_WITHIN_MS:
                del ring.events[-back]
                self._total -= 1
                return noted
        return None

    def _ring(self, scope: str) -> _Ring:
        ring = self._rings.get(scope)
        if ring is None:
            ring = self._rings[scope] = _Ring()
            if scope in self._gone:
                ring.stored = True  # what was forgotten here
                del self._gone[scope]
        self._rings.move_to_end(scope)
        return ring

    def _trim(self, scope: str, ring: _Ring) -> None:
        if len(ring.events) > self._a_series:
            self._drop_oldest(scope, ring)
        while len(self._rings) > self._scopes:
            oldest = next(iter(self._rings))
            self._total -= len(self._rings[oldest].events)
            self._forget(oldest)
        while self._total > self._events:
            oldest = next(iter(self._rings))
            self._drop_oldest(oldest, self._rings[oldest])
            if not self._rings[oldest].events:
                self._forget(oldest)

    def _drop_oldest(self, scope: str, ring: _Ring) -> None:
        ring.events.popleft()
        self._total -= 1
        self._dirty.setdefault(scope)

    def _forget(self, scope: str) -> None:
        ring = self._rings.pop(scope)
        self._dirty.pop(scope, None)
        if ring.stored:
            self._gone.setdefault(scope)

    # What is told.

    def events(self, scopes: Sequence[str]) -> list[SeriesEvent]:
        """The newest events of these scopes together, at most as many as a scope has, in the order in which they
        happened last."""
        rings = [self._rings[scope].events for scope in scopes if scope in self._rings]
        newest = islice(merge(*(reversed(ring) for ring in rings), key=_newest_first), self._a_series)
        return [numbered.event for numbered in newest][::-1]

    def newest(self, scope: str, names: Iterable[str]) -> SeriesEvent | None:
        """The newest event of that scope that has one of these names."""
        ring, wanted = self._rings.get(scope), frozenset(names)
        if ring is None:
            return None
        return next((one.event for one in reversed(ring.events) if one.event.event in wanted), None)

    # The store.

    def restore(self, stored: Iterable[tuple[str, NumberedEvent]]) -> None:
        """Take what a store has, in the order of its numbers, before anything is noted."""
        assert not self._number, "what the store has is older than what is noted"
        for scope, numbered in stored:
            ring = self._ring(scope)
            ring.events.append(numbered)
            ring.clean_below, ring.stored = numbered.number + 1, True
            self._number = max(self._number, numbered.number)
            self._total += 1
            self._trim(scope, ring)

    def restart(self) -> None:
        """What the store has cannot be read: all of it is to be replaced by what is here."""
        self._clear = True
        self._gone.clear()
        for scope, ring in self._rings.items():
            ring.clean_below, ring.stored = 0, False
            self._dirty.setdefault(scope)

    def take(self, most: int) -> EventBatch:
        """What the store does not have, with at most `most` events; the rest is for the next batch. From now on it
        counts as stored: `put_back` a batch that was not."""
        changes = [ScopeChange(scope, self._number + 1, self._number + 1) for scope in self._gone]
        self._gone.clear()
        left = most
        while self._dirty and left > 0:
            scope = next(iter(self._dirty))
            ring = self._rings[scope]
            new = [numbered for numbered in ring.events if numbered.number >= ring.clean_below]
            some = tuple(new[:left])
            left -= max(1, len(some))
            first = ring.events[0].number
            changes.append(ScopeChange(scope, first, max(first, ring.clean_below), some))
            ring.stored = True
            ring.clean_below = new[len(some)].number if len(some) < len(new) else self._number + 1
            if len(some) == len(new):
                del self._dirty[scope]
        batch = EventBatch(tuple(changes), self._clear)
        self._clear = False
        return batch

    def put_back(self, batch: EventBatch) -> None:
        """That batch was not stored: the next one has its changes too."""
        if batch.clear:
            self.restart()
            return
        for change in batch.changes:
            ring = self._rings.get(change.scope)
            if ring is None:
                self._gone.setdefault(change.scope)
                continue
            ring.clean_below = min(ring.clean_below, change.start)
            ring.stored = True
            self._dirty.setdefault(change.scope)


def _newest_first(numbered: NumberedEvent) -> int:
    return -numbered.number


class Crowd:
    """Tells the event of one series from an event that many series of a market have at the same time."""

    def __init__(self) -> None:
        # By market scope and event: when it began, how many series had it since, and the sentence for all further ones.
        self._windows: dict[tuple[str, str], tuple[float, int, str]] = {}

    def sentence(self, market: str, event: str, detail: str, now_s: float) -> str | None:
        """The sentence of the market's event, once `CROWD_LEAST` series of that market had the event within `CROWD_S`;
        None for the event of one series. It counts from now on.

        detail: what is said of this series. The market's event says it of the first series that it is noted for.
        now_s: monotonic seconds.
        """
        began_s, count, sentence = self._windows.get((market, event), (now_s, 0, ""))
        if now_s - began_s >= CROWD_S:
            began_s, count = now_s, 0
        if count == CROWD_LEAST:
            sentence = f"more than {CROWD_LEAST} series of the market at once; of one of them: {detail}"
        self._windows[market, event] = began_s, count + 1, sentence
        return sentence if count >= CROWD_LEAST else None

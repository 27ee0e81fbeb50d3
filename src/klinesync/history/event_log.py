"""EventLog: the newest events of each series in memory, and the events that the store does not have yet. Pure.

The log has three limits: events of a scope, scopes, and events of all scopes together. Repeated events are counted, so
that a stream which flaps does not evict all other events.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice

from klinesync.core.events import EventBatch, NumberedEvent, ScopeChange, SeriesEvent
from klinesync.core.printable import printable

# Most events of a scope; the oldest are evicted.
MAX_EVENTS_A_SERIES = 200
# Most scopes (series and markets); the scope with the oldest newest event is evicted.
MAX_SCOPES = 5000
# Most events of all scopes together, about 25 MB; the scope with the oldest newest event loses its oldest events.
MAX_EVENTS = 50_000
# Longest sentence of an event, in characters.
MAX_DETAIL_CHARS = 300
# Newest events of a scope in which an event with the same name and sentence is searched, to count it as a repetition.
REPEAT_LOOK = 8
# Longest time between an event and its repetition, in milliseconds.
REPEAT_WITHIN_MS = 600_000
# Series of a market that may each note the same event within `CROWD_S` seconds. For further series the event is noted
# once, for the market: 1,000 streams that flap are the events of 20 series and an event of their market.
CROWD_LEAST = 20
CROWD_S = 60.0


class _Ring:
    """The events of a scope, oldest first. `clean_below`: the store has every event with a smaller number. `stored`:
    the store may have events of the scope."""

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
        self._dirty: dict[str, None] = {}  # scopes that differ from the store; the oldest difference first
        self._evicted: dict[str, None] = {}  # scopes that the store may still have
        self._clear = False  # the stored events are unknown, and have to be deleted

    def __len__(self) -> int:
        return self._total

    def __contains__(self, scope: str) -> bool:
        return scope in self._rings

    # Noting events.

    def note(self, scope: str, event: str, detail: str, at_ms: int) -> None:
        """Add an event.

        scope: a series, or a market.
        event: name of the event.
        detail: a sentence; escaped, and cut after `MAX_DETAIL_CHARS`.
        at_ms: when the event happened, UTC milliseconds.
        """
        detail = printable(detail[:MAX_DETAIL_CHARS])
        ring = self._ring(scope)
        self._number += 1
        before = self._remove_repeated(ring, event, detail, at_ms)
        if before is None:
            ring.events.append(NumberedEvent(self._number, SeriesEvent(event, detail, at_ms, at_ms)))
        else:
            repeated = before.event._replace(at_ms=at_ms, times=before.event.times + 1)
            ring.events.append(NumberedEvent(self._number, repeated))
            ring.clean_below = min(ring.clean_below, before.number)
        self._total += 1
        self._dirty.setdefault(scope)
        self._trim(scope, ring)

    def _remove_repeated(self, ring: _Ring, event: str, detail: str, at_ms: int) -> NumberedEvent | None:
        """Remove the newest repetition of the event from the ring, and return it; None when there is none."""
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
            if scope in self._evicted:
                ring.stored = True
                del self._evicted[scope]
        self._rings.move_to_end(scope)
        return ring

    def _trim(self, scope: str, ring: _Ring) -> None:
        if len(ring.events) > self._a_series:
            self._drop_oldest(scope, ring)
        while len(self._rings) > self._scopes:
            oldest = next(iter(self._rings))
            self._total -= len(self._rings[oldest].events)
            self._evict(oldest)
        while self._total > self._events:
            oldest = next(iter(self._rings))
            self._drop_oldest(oldest, self._rings[oldest])
            if not self._rings[oldest].events:
                self._evict(oldest)

    def _drop_oldest(self, scope: str, ring: _Ring) -> None:
        ring.events.popleft()
        self._total -= 1
        self._dirty.setdefault(scope)

    def _evict(self, scope: str) -> None:
        ring = self._rings.pop(scope)
        self._dirty.pop(scope, None)
        if ring.stored:
            self._evicted.setdefault(scope)

    # Reading events.

    def events(self, scopes: Sequence[str]) -> list[SeriesEvent]:
        """The newest events of these scopes together, by the time of their newest repetition, oldest first; at most as
        many as a scope may have."""
        rings = [self._rings[scope].events for scope in scopes if scope in self._rings]
        newest = islice(merge(*(reversed(ring) for ring in rings), key=_newest_first), self._a_series)
        return [numbered.event for numbered in newest][::-1]

    def newest(self, scope: str, names: Iterable[str]) -> SeriesEvent | None:
        """The newest event of a scope with one of these names; None when there is none."""
        ring, wanted = self._rings.get(scope), frozenset(names)
        if ring is None:
            return None
        return next((numbered.event for numbered in reversed(ring.events) if numbered.event.event in wanted), None)

    # Persistence.

    def restore(self, stored: Iterable[tuple[str, NumberedEvent]]) -> None:
        """Add stored events, in the order of their numbers, before the first event is noted."""
        assert not self._number, "stored events are older than noted events"
        for scope, numbered in stored:
            ring = self._ring(scope)
            ring.events.append(numbered)
            ring.clean_below, ring.stored = numbered.number + 1, True
            self._number = max(self._number, numbered.number)
            self._total += 1
            self._trim(scope, ring)

    def restart(self) -> None:
        """Replace all stored events by the events in memory, because the stored events cannot be read."""
        self._clear = True
        self._evicted.clear()
        for scope, ring in self._rings.items():
            ring.clean_below, ring.stored = 0, False
            self._dirty.setdefault(scope)

    def take(self, most: int) -> EventBatch:
        """The next batch of changes for the store, with at most `most` events. The batch counts as stored: `put_back`
        the batch when writing it fails."""
        changes = [ScopeChange(scope, self._number + 1, self._number + 1) for scope in self._evicted]
        self._evicted.clear()
        room = most
        while self._dirty and room > 0:
            scope = next(iter(self._dirty))
            ring = self._rings[scope]
            new = [numbered for numbered in ring.events if numbered.number >= ring.clean_below]
            taken = tuple(new[:room])
            room -= max(1, len(taken))
            first = ring.events[0].number
            changes.append(ScopeChange(scope, first, max(first, ring.clean_below), taken))
            ring.stored = True
            ring.clean_below = new[len(taken)].number if len(taken) < len(new) else self._number + 1
            if len(taken) == len(new):
                del self._dirty[scope]
        batch = EventBatch(tuple(changes), self._clear)
        self._clear = False
        return batch

    def put_back(self, batch: EventBatch) -> None:
        """Add the changes of a batch that was not stored to the next batch."""
        if batch.clear:
            self.restart()
            return
        for change in batch.changes:
            ring = self._rings.get(change.scope)
            if ring is None:
                self._evicted.setdefault(change.scope)
                continue
            ring.clean_below = min(ring.clean_below, change.start)
            ring.stored = True
            self._dirty.setdefault(change.scope)


def _newest_first(numbered: NumberedEvent) -> int:
    return -numbered.number


class Crowd:
    """Detects events that many series of a market have at the same time."""

    def __init__(self) -> None:
        # By market scope and event: beginning of the window, series with the event in it, the market's sentence.
        self._windows: dict[tuple[str, str], tuple[float, int, str]] = {}

    def sentence(self, market: str, event: str, detail: str, now_s: float) -> str | None:
        """Count an event of a series, and return the sentence of the market's event once `CROWD_LEAST` series had the
        same event within `CROWD_S`; None before.

        market: scope of the market.
        event: name of the event.
        detail: the sentence of the series; the market's sentence quotes that of the first further series.
        now_s: monotonic seconds.
        """
        began_s, count, sentence = self._windows.get((market, event), (now_s, 0, ""))
        if now_s - began_s >= CROWD_S:
            began_s, count = now_s, 0
        if count == CROWD_LEAST:
            sentence = f"more than {CROWD_LEAST} series of the market at once; of one of them: {detail}"
        self._windows[market, event] = began_s, count + 1, sentence
        return sentence if count >= CROWD_LEAST else None

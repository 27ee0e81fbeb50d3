"""TurnQueue: which request of a venue goes next, and how long a venue in trouble is left alone.

Pure: time is an argument, in monotonic seconds. `Turns` carries it out.

The queue grants at most `places` turns at once, the most urgent request first, of those the one that came first. Three
things hold requests back:

- A venue that refuses (429, 418) is left alone for as long as it asks for, `RETRY_AFTER_MOST_S` at most; where it does
  not say, for the backoff `refused`. Then one probe goes.
- Failures of one kind of request (the time, the listings, rows) slow this kind down; failures of any kind without a
  success between them slow all of them down. From the second failure in a row on, a probe goes after the
  backoff `trouble`.
- A probe is alone: while trouble lasts, one request of what is in trouble is under way, and the next one waits for a
  whole pause behind it, also where the probe was given up.

Where a venue's budget is paced here, a request also waits until enough of it is paid off (`Pace`).

A request does not wait for longer than `held_most_s`: its owner is told, and knows when to ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from klinesync.core.backoff import Backoff
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import USUAL_TURNS, TurnTimings
from klinesync.exchanges.exchange import Errand, Urgency

# The longest pause that a venue may ask for, in seconds: a Retry-After of a day must not silence the venue for a day.
RETRY_AFTER_MOST_S = 900.0
# Failures in a row that are taken as bad luck of one request, not as trouble of the venue.
HARMLESS_FAILURES = 1


class Kind(Enum):
    """What is asked: each kind has a backoff of its own, for a venue may answer one kind and fail another."""

    TIME = "time"
    LISTINGS = "listings"
    ROWS = "rows"
    TICKERS = "tickers"


class Outcome(Enum):
    """How a request ended. `FAILED`: no answer, a server error, or an answer that cannot be understood. `REFUSED`: too
    many requests. A request that the venue calls wrong (400) is `SERVED`: the venue is well."""

    SERVED = "served"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Turn:
    """One request: it waits, is under way, and is over. `weight`: what it takes of a budget that is paced here.
    `granted_s`: when it was granted."""

    errand: Errand
    kind: Kind
    number: int
    weight: float = 1.0
    granted_s: float | None = None


@dataclass(slots=True)
class _Trouble:
    """Failures in a row, and until when the next request waits. Requests that were granted before the last failure
    was counted say nothing new when they fail too. `backoff`: before the next probe."""

    backoff: Backoff
    failures: int = 0
    counted_s: float = float("-inf")
    until_s: float = float("-inf")

    @property
    def lasts(self) -> bool:
        return self.failures > HARMLESS_FAILURES

    def probed(self, now_s: float) -> None:
        if self.lasts:
            self.until_s = now_s + self.backoff.delay_s(self.failures - HARMLESS_FAILURES - 1)

    def failed(self, granted_s: float, now_s: float) -> None:
        if granted_s < self.counted_s:
            return
        self.failures += 1
        self.counted_s = now_s
        self.probed(now_s)

    def served(self) -> None:
        self.failures = 0
        self.until_s = float("-inf")


@dataclass(slots=True)
class _Refusal:
    """Whether the venue refuses, and until when it is left alone. `without_pause`: how many refusals in a row
    asked for no pause. `backoff`: the pauses after these."""

    backoff: Backoff
    until_s: float = float("-inf")
    counted_s: float = float("-inf")
    without_pause: int = 0
    lasts: bool = False

    def probed(self, now_s: float) -> None:
        if self.lasts:
            self.until_s = max(self.until_s, now_s + self._own_pause_s())

    def refused(self, retry_after_s: float | None, granted_s: float, now_s: float) -> None:
        if retry_after_s is None:
            if granted_s >= self.counted_s:
                self.without_pause += 1
            retry_after_s = self._own_pause_s()
        self.until_s = max(self.until_s, now_s + min(retry_after_s, RETRY_AFTER_MOST_S))
        self.counted_s = now_s
        self.lasts = True

    def served(self, granted_s: float) -> None:
        if granted_s >= self.counted_s:  # it was sent after the refusal
            self.without_pause = 0
            self.until_s = float("-inf")
            self.lasts = False

    def _own_pause_s(self) -> float:
        """The pause where the venue asks for none."""
        return self.backoff.delay_s(max(self.without_pause - 1, 0))


@dataclass(slots=True)
class TurnQueue:
    """The queue of one venue. `places`: requests under way at once; `pace`: how a budget is spent; `timings`: backoff
    and limits."""

    places: int
    pace: Pace = field(default_factory=Pace)
    timings: TurnTimings = USUAL_TURNS
    _waiting: dict[Turn, None] = field(default_factory=dict)  # in the order of coming
    _under_way: set[Turn] = field(default_factory=set)
    _count: int = 0
    _any: _Trouble = field(init=False)
    _kinds: dict[Kind, _Trouble] = field(init=False)
    _refusal: _Refusal = field(init=False)

    def __post_init__(self) -> None:
        self._any = _Trouble(self.timings.trouble)
        self._kinds = {kind: _Trouble(self.timings.trouble) for kind in Kind}
        self._refusal = _Refusal(self.timings.refused)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def waiting_by_urgency(self) -> dict[Urgency, int]:
        """How many requests wait, by urgency."""
        waiting = dict.fromkeys(Urgency, 0)
        for turn in self._waiting:
            waiting[turn.errand.urgency] += 1
        return waiting

    @property
    def under_way(self) -> int:
        """Requests that were granted and are not over."""
        return len(self._under_way)

    def refused_s(self, now_s: float) -> float:
        """For how long the venue wants no request; 0 when it takes them."""
        return max(0.0, self._refusal.until_s - now_s)

    def held_s(self, kind: Kind, now_s: float) -> float:
        """For how long no request of that kind goes; 0 when one may."""
        until_s = max(self._refusal.until_s, self._any.until_s, self._kinds[kind].until_s)
        return max(0.0, until_s - now_s)

    def join(self, errand: Errand, kind: Kind, weight: float = 1.0) -> Turn:
        """Queue a request."""
        self._count += 1
        turn = Turn(errand, kind, self._count, weight)
        self._waiting[turn] = None
        return turn

    def crowded_out(self) -> Turn | None:
        """Give up the least urgent request of a queue that is too long."""
        if len(self._waiting) <= self.timings.max_waiting:
            return None
        turn = max(self._waiting, key=_order)
        del self._waiting[turn]
        return turn

    def impatient(self, now_s: float) -> list[Turn]:
        """Give up the requests that would wait for the venue for too long."""
        most_s = self.timings.held_most_s
        turns = [
            turn
            for turn in self._waiting
            if self.held_s(turn.kind, now_s) > (0.0 if turn.errand.urgency is Urgency.READ else most_s)
        ]
        for turn in turns:
            del self._waiting[turn]
        return turns

    def next(self, now_s: float) -> Turn | None:
        """Who goes now; under way from now on. The urgency of those who wait may have been raised."""
        if len(self._under_way) >= self.places or self.pace.held_s(now_s) > 0.0:
            return None
        kinds = [kind for kind in Kind if self._may_go(kind, now_s)]
        turn = min((turn for turn in self._waiting if turn.kind in kinds), key=_order, default=None)
        if turn is None:
            return None
        del self._waiting[turn]
        turn.granted_s = now_s
        self._under_way.add(turn)
        self.pace.spend(turn.weight, now_s)
        for held in (self._refusal, self._any, self._kinds[turn.kind]):
            held.probed(now_s)
        return turn

    def wakes_s(self, now_s: float) -> float | None:
        """In how many seconds a pause ends that holds a waiting request back; None when none does."""
        paced_s = self.pace.held_s(now_s)
        waits = (max(paced_s, self.held_s(turn.kind, now_s)) for turn in self._waiting)
        return min((wait_s for wait_s in waits if wait_s > 0.0), default=None)

    def ended(self, turn: Turn, outcome: Outcome, now_s: float, retry_after_s: float | None = None) -> None:
        """A request under way was answered, or was not. `retry_after_s`: the pause that the venue asked for."""
        assert turn.granted_s is not None, "a request that is under way was granted"
        if outcome is Outcome.REFUSED:
            self._refusal.refused(retry_after_s, turn.granted_s, now_s)
        elif outcome is Outcome.FAILED:
            self._any.failed(turn.granted_s, now_s)
            self._kinds[turn.kind].failed(turn.granted_s, now_s)
        else:
            self._any.served()
            self._kinds[turn.kind].served()
            self._refusal.served(turn.granted_s)

    def over(self, turn: Turn) -> None:
        """The request is over, at whatever point. To say so again changes nothing."""
        self._waiting.pop(turn, None)
        self._under_way.discard(turn)

    def _may_go(self, kind: Kind, now_s: float) -> bool:
        if self.held_s(kind, now_s) > 0.0:
            return False
        if self._refusal.lasts or self._any.lasts:
            return not self._under_way
        return not (self._kinds[kind].lasts and any(turn.kind is kind for turn in self._under_way))


def _order(turn: Turn) -> tuple[Urgency, int]:
    return turn.errand.urgency, turn.number

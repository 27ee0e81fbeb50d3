"""TurnQueue: decides which request of a venue is sent next, with cooldowns after refusals and backoff after failures.

Pure: time is an argument, in monotonic seconds. `Turns` carries out the decisions.

The queue keeps at most `places` requests in flight. It grants the most urgent request first, and the oldest among
equals. Three rules hold requests back:

- A refusal (429, 418) begins a cooldown: the Retry-After, `RETRY_AFTER_MOST_S` at most, or without one the backoff
  `refused`. After that one probe is sent.
- Failures of one kind of request (time, listings, rows) begin a backoff of this kind; failures of any kind without a
  success between them begin a backoff of all kinds. From the second consecutive failure on, one probe is sent after
  the backoff `trouble`.
- While a backoff lasts, its probe is the only request in flight that it covers. The next request waits for a whole
  pause after the probe, also where the probe was cancelled.

Where the service paces the budget of a venue itself, a request also waits for room in that budget (`Pace`).

A request that would wait for longer than `held_most_s` fails at once; the error says when to retry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from klinesync.core.backoff import Backoff
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import USUAL_TURNS, TurnTimings
from klinesync.exchanges.exchange import Errand, Urgency

# Longest cooldown that a venue may ask for, in seconds: a Retry-After of a day must not stop its series for a day.
RETRY_AFTER_MOST_S = 900.0
# Consecutive failures that begin no backoff yet, because one request may fail by chance.
HARMLESS_FAILURES = 1


class Kind(Enum):
    """The kind of a request. Each kind has a backoff of its own, as a venue may serve one kind and fail another."""

    TIME = "time"
    LISTINGS = "listings"
    ROWS = "rows"
    TICKERS = "tickers"


class Outcome(Enum):
    """The outcome of a request. `FAILED`: no answer, a server error, or an answer that cannot be understood.
    `REFUSED`: too many requests. A request that the venue calls wrong (400) is `SERVED`, because the venue answers."""

    SERVED = "served"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Turn:
    """One request: first queued, then in flight, then ended.

    errand: the purpose of the request, with its urgency.
    kind: its kind.
    number: order of arrival.
    weight: its share of a budget that the service paces itself.
    granted_s: when it was granted, monotonic seconds; None while it is queued.
    """

    errand: Errand
    kind: Kind
    number: int
    weight: float = 1.0
    granted_s: float | None = None


@dataclass(slots=True)
class _Trouble:
    """Consecutive failures and their backoff. A failed request that was granted before the last counted failure is not
    counted, because it met the same trouble. `backoff`: pauses before the next probe."""

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
    """The cooldown after refusals.

    backoff: pauses after refusals without Retry-After.
    until_s: end of the cooldown, monotonic seconds.
    counted_s: when the last refusal was counted.
    without_pause: consecutive refusals without Retry-After.
    lasts: whether no request was served since the last refusal.
    """

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
        """The pause after a refusal without Retry-After, in seconds."""
        return self.backoff.delay_s(max(self.without_pause - 1, 0))


@dataclass(slots=True)
class TurnQueue:
    """The queue of one venue.

    places: most requests in flight.
    pace: paces a budget that ccxt counts wrong.
    timings: backoff and limits.
    """

    places: int
    pace: Pace = field(default_factory=Pace)
    timings: TurnTimings = USUAL_TURNS
    _waiting: dict[Turn, None] = field(default_factory=dict)  # in the order of arrival
    _in_flight: set[Turn] = field(default_factory=set)
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
        """The number of queued requests."""
        return len(self._waiting)

    @property
    def waiting_by_urgency(self) -> dict[Urgency, int]:
        """The number of queued requests by urgency."""
        waiting = dict.fromkeys(Urgency, 0)
        for turn in self._waiting:
            waiting[turn.errand.urgency] += 1
        return waiting

    @property
    def under_way(self) -> int:
        """The number of requests in flight."""
        return len(self._in_flight)

    def refused_s(self, now_s: float) -> float:
        """Remaining seconds of the cooldown after a refusal; 0 without one."""
        return max(0.0, self._refusal.until_s - now_s)

    def held_s(self, kind: Kind, now_s: float) -> float:
        """Seconds until a request of that kind may be sent; 0 when one may be sent now."""
        until_s = max(self._refusal.until_s, self._any.until_s, self._kinds[kind].until_s)
        return max(0.0, until_s - now_s)

    def join(self, errand: Errand, kind: Kind, weight: float = 1.0) -> Turn:
        """Queue a request.

        errand: the purpose of the request, with its urgency.
        kind: its kind.
        weight: its share of a budget that the service paces itself.
        """
        self._count += 1
        turn = Turn(errand, kind, self._count, weight)
        self._waiting[turn] = None
        return turn

    def evict(self) -> Turn | None:
        """Drop and return the least urgent request of a queue that exceeds `max_waiting`; None when it does not."""
        if len(self._waiting) <= self.timings.max_waiting:
            return None
        turn = max(self._waiting, key=_order)
        del self._waiting[turn]
        return turn

    def drop_held(self, now_s: float) -> list[Turn]:
        """Drop and return the requests whose cooldown or backoff is longer than they wait."""
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
        """Grant the next request, which is in flight from now on; None when none may be sent. The order is worked out
        anew each time, because the urgency of a queued request may be raised."""
        if len(self._in_flight) >= self.places or self.pace.held_s(now_s) > 0.0:
            return None
        kinds = [kind for kind in Kind if self._may_go(kind, now_s)]
        turn = min((turn for turn in self._waiting if turn.kind in kinds), key=_order, default=None)
        if turn is None:
            return None
        del self._waiting[turn]
        turn.granted_s = now_s
        self._in_flight.add(turn)
        self.pace.spend(turn.weight, now_s)
        for held in (self._refusal, self._any, self._kinds[turn.kind]):
            held.probed(now_s)
        return turn

    def wakes_s(self, now_s: float) -> float | None:
        """Seconds until the first pause ends that holds a queued request back; None without one."""
        paced_s = self.pace.held_s(now_s)
        waits = (max(paced_s, self.held_s(turn.kind, now_s)) for turn in self._waiting)
        return min((wait_s for wait_s in waits if wait_s > 0.0), default=None)

    def ended(self, turn: Turn, outcome: Outcome, now_s: float, retry_after_s: float | None = None) -> None:
        """Record the outcome of a request in flight.

        turn: the request.
        outcome: how it ended.
        now_s: monotonic seconds.
        retry_after_s: the Retry-After of a refusal, in seconds; None without one.
        """
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
        """Remove a request that has ended, queued or in flight. Idempotent."""
        self._waiting.pop(turn, None)
        self._in_flight.discard(turn)

    def _may_go(self, kind: Kind, now_s: float) -> bool:
        if self.held_s(kind, now_s) > 0.0:
            return False
        if self._refusal.lasts or self._any.lasts:
            return not self._in_flight
        return not (self._kinds[kind].lasts and any(turn.kind is kind for turn in self._in_flight))


def _order(turn: Turn) -> tuple[Urgency, int]:
    return turn.errand.urgency, turn.number

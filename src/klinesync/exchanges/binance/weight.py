"""The weight budget of a host: how much request weight may be used in a minute, and which request is sent next.

The minute is the exchange's. Each answer reports the weight used in it; the weight of requests in flight is added to
that. Other processes may use the same address, so the service keeps to a share of the limit. Less urgent requests may
fill only a part of that share, so that a repair, which live candles wait for, always finds room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from klinesync.exchanges.access import Access
from klinesync.exchanges.exchange import Errand, RestStatus, Urgency

MINUTE_MS = 60_000

# Largest share of the limit that the service uses. The rest is for other processes at the same address.
SHARE = 0.8
# The part of that share up to which requests of each urgency may fill it.
PART: Mapping[Urgency, float] = {
    Urgency.REPAIR: 1.0,
    Urgency.READ: 0.9,
    Urgency.SWEEP: 0.8,
    Urgency.FILL: 0.7,
    Urgency.DEEP: 0.5,
}
# Seconds in the queue after which a request counts as a `SWEEP`. Otherwise a request would starve where more urgent
# ones fill its part of the budget in every minute.
STARVED_S = 120.0
# Most requests in flight to one host, and how many of these places are reserved for repairs and reads.
MAX_IN_FLIGHT = 4
RESERVED = 1
# Most queued requests of a host.
MAX_WAITING = 5000
# Longest Retry-After that is believed, in seconds: an exchange bans for three days at most.
LONGEST_RETRY_AFTER_S = 3 * 86_400.0


@dataclass(frozen=True, slots=True)
class MarketWeights:
    """The weight limit of one market and the weights of its requests.

    limit: weight that the market allows in a minute.
    time, exchange_info, tickers: weight of one such request.
    klines: pairs (largest page size, weight of a page), ascending.
    """

    limit: int
    time: int
    exchange_info: int
    tickers: int
    klines: tuple[tuple[int, int], ...]

    def page(self, limit: int) -> int:
        """The weight of a page of at most `limit` klines."""
        return next((weight for most, weight in self.klines if limit <= most), self.klines[-1][1])

    def page_size(self, expected: int | None, best: int) -> int:
        """The page size to request: `best`, or less where the expected rows fit into a lighter page.

        A lighter page is one row smaller than its step: the exchange documents the step itself as light, but charges
        it as heavy.

        expected: number of rows that may come; None where it is not known.
        best: the page size with the least weight per candle.
        """
        if expected is not None:
            for most, weight in self.klines:
                if expected < most and weight < self.page(best):
                    return min(most - 1, best)
        return best


WEIGHTS: Mapping[str, MarketWeights] = {
    "spot": MarketWeights(6000, 1, 20, 80, ((1000, 2),)),
    "futures": MarketWeights(2400, 1, 1, 40, ((100, 1), (500, 2), (1000, 5), (1500, 10))),
}


class Now(NamedTuple):
    """The present time.

    exchange_ms: estimated time of the exchange, in UTC ms; None while it is not known.
    monotonic_s: our monotonic clock, in seconds.
    """

    exchange_ms: int | None
    monotonic_s: float

    @property
    def minute(self) -> int:
        """The minute that weight is counted in."""
        return int(self.monotonic_s * 1000 if self.exchange_ms is None else self.exchange_ms) // MINUTE_MS


@dataclass(slots=True, eq=False)
class Turn:
    """One request: first queued, then in flight.

    errand: the purpose of the request, with its urgency.
    weight: request weight.
    queued: whether it takes a place of its own among the requests in flight.
    kind: the endpoint, `klines` for example.
    joined_s: when it was queued, monotonic seconds.
    granted_s: when it was granted, monotonic seconds.
    sent: whether it was sent, so that the exchange may have counted its weight.
    answered: whether its answer has begun, which reports the used weight.
    epoch, reported_at_send, unanswered_at_send: the counts of `WeightBudget` when it was sent.
    """

    errand: Errand
    weight: int
    queued: bool = True
    kind: str = ""
    joined_s: float = float("inf")
    granted_s: float = 0.0
    sent: bool = False
    answered: bool = False
    epoch: int = 0
    reported_at_send: int = 0
    unanswered_at_send: int = 0

    def urgency(self, now: Now) -> Urgency:
        """The urgency of the request, raised after `STARVED_S` in the queue."""
        urgency = self.errand.urgency
        return urgency if now.monotonic_s - self.joined_s <= STARVED_S else min(urgency, Urgency.SWEEP)


class WeightBudget:
    """The weight budget of one host, and the queue of requests that wait for it.

    limit: weight that the host allows in a minute.
    share: largest share of the limit that the service uses.
    max_waiting: most queued requests; beyond that the least urgent one is dropped.
    """

    def __init__(self, limit: int, share: float = SHARE, max_waiting: int = MAX_WAITING) -> None:
        assert 0.0 < share <= 1.0, share
        self._max_waiting = max_waiting
        self.limit = limit
        self.share = share
        self.requests = 0
        self.errors: Counter[int] = Counter()
        self._queue: dict[Turn, None] = {}  # in the order of arrival
        self._in_flight: set[Turn] = set()
        self._minute = 0
        # Number of resets of the exchange's count. Weight that was reported in an earlier epoch no longer counts.
        self._epoch = 0
        self._reported = 0
        # Weight of requests of this epoch that got no answer, and how much of it the reported weight includes.
        self._unanswered = 0
        self._unanswered_reported = 0
        self._blocked_until_ms: int | None = None
        self._blocked_until_s = float("-inf")

    # The queue.

    def join(self, errand: Errand, weight: int, now: Now, kind: str = "") -> Turn | None:
        """Queue a request. After that call `evict`, since the queue may exceed its limit by one.

        errand: the purpose of the request, with its urgency.
        weight: request weight.
        now: the present time.
        kind: the endpoint, `klines` for example.

        Returns None when the queue is full of requests that are at least as urgent.
        """
        if len(self._queue) >= self._max_waiting and errand.urgency >= self._last().errand.urgency:
            return None
        turn = Turn(errand, weight, kind=kind, joined_s=now.monotonic_s)
        self._queue[turn] = None
        return turn

    def evict(self) -> Turn | None:
        """Drop and return the least urgent request of a queue that exceeds its limit; None when it does not."""
        if len(self._queue) <= self._max_waiting:
            return None
        turn = self._last()
        del self._queue[turn]
        return turn

    def next(self, now: Now, access: Access | None = None) -> Turn | None:
        """Grant the oldest of the most urgent requests that `access` does not hold back; None when there is no room.
        The granted request is in flight from now on."""
        if self._own_places() >= MAX_IN_FLIGHT:
            return None  # before the search, which takes 0.1 ms for 1,000 requests; each request that joins comes here
        free = self._queue.keys()
        if access is not None:
            kinds = {kind: access.held_s(kind, now.monotonic_s) > 0.0 for kind in {turn.kind for turn in free}}
            if any(kinds.values()):
                free = {turn: None for turn in free if not kinds[turn.kind]}.keys()
        # The queue is searched each time, because the urgency of a queued request may be raised.
        turn = min(free, key=lambda turn: turn.urgency(now), default=None)
        if turn is None or not self._has_room(turn, now):
            return None
        turn.granted_s = now.monotonic_s
        del self._queue[turn]
        self._in_flight.add(turn)
        return turn

    def admit_nested(self, errand: Errand, weight: int, now: Now) -> Turn:
        """Grant a small request within another that is in flight, without waiting for room.

        errand: the purpose of the outer request.
        weight: request weight of the small one.
        now: the present time.
        """
        self._keep_time(now)
        turn = Turn(errand, weight, queued=False)
        self._in_flight.add(turn)
        return turn

    def _last(self) -> Turn:
        return max(reversed(self._queue), key=_urgency)

    def _own_places(self) -> int:
        """The number of requests in flight that take a place of their own."""
        return sum(turn.queued for turn in self._in_flight)

    def _has_room(self, turn: Turn, now: Now) -> bool:
        urgency = turn.urgency(now)
        if self.blocked_s(now) > 0.0:
            return False
        places = MAX_IN_FLIGHT - (RESERVED if urgency > Urgency.READ else 0)
        if self._own_places() >= places:
            return False
        used = self.used(now)
        # An unused minute has room for any request, however small the share: a heavy one could never go otherwise.
        return not used or used + turn.weight <= self.limit * self.share * PART[urgency]

    # What happens to a request.

    def sent(self, turn: Turn) -> None:
        """The request is sent now."""
        turn.sent = True
        turn.epoch, turn.reported_at_send, turn.unanswered_at_send = self._epoch, self._reported, self._unanswered
        self.requests += 1

    def answered(self, turn: Turn, used: int | None, now: Now) -> None:
        """The head of an answer has arrived.

        turn: the request.
        used: weight used in the exchange's current minute, as the answer reports it; None without a report.
        now: the present time.
        """
        self._keep_time(now)
        turn.answered = True
        if used is None:
            self._unanswered += turn.weight
            return
        of_this_epoch = turn.epoch == self._epoch
        if used < turn.reported_at_send:
            if of_this_epoch:
                # The count went down, so the exchange's minute has ended, whatever our estimate of its clock says.
                self._count_anew(min(self._minute, now.minute) + 1)
            self._reported = max(self._reported, used)
        elif of_this_epoch:
            self._reported = max(self._reported, used)
            self._unanswered_reported = max(self._unanswered_reported, turn.unanswered_at_send)
        # Otherwise the exchange counted the request in the minute before.

    def over(self, turn: Turn, now: Now) -> None:
        """The request has ended: answered, failed or cancelled, also while it was queued."""
        self._keep_time(now)
        self._queue.pop(turn, None)
        if turn in self._in_flight:
            self._in_flight.remove(turn)
            if turn.sent and not turn.answered:
                self._unanswered += turn.weight

    # Cooldowns.

    def block(self, retry_after_s: float, now: Now) -> None:
        """Begin a cooldown: send nothing until `retry_after_s` have passed by the exchange's clock or by ours."""
        retry_after_s = min(retry_after_s, LONGEST_RETRY_AFTER_S)
        if self.blocked_s(now) >= retry_after_s:
            return
        self._blocked_until_s = now.monotonic_s + retry_after_s
        self._blocked_until_ms = None if now.exchange_ms is None else now.exchange_ms + int(retry_after_s * 1000)

    def blocked_s(self, now: Now) -> float:
        """Remaining seconds of the cooldown; 0 without one."""
        left_s = self._blocked_until_s - now.monotonic_s
        if self._blocked_until_ms is not None and now.exchange_ms is not None:
            # A (simulated) exchange whose clock runs faster than ours ends the cooldown earlier.
            left_s = min(left_s, (self._blocked_until_ms - now.exchange_ms) / 1000)
        return max(left_s, 0.0)

    def drop_held(self, access: Access, patience_s: float, now: Now) -> list[Turn]:
        """Drop and return the queued requests that `access` holds back for longer than they wait.

        access: holds kinds of requests back while the market refuses them or fails.
        patience_s: longest wait, in seconds.
        now: the present time.
        """
        kinds = {kind: access.held_s(kind, now.monotonic_s) for kind in {turn.kind for turn in self._queue}}
        turns = [turn for turn in self._queue if kinds[turn.kind] > patience_s]
        for turn in turns:
            del self._queue[turn]
        return turns

    def drop_blocked(self, longest_s: Mapping[Urgency, float], now: Now) -> list[Turn]:
        """Drop and return the queued requests that do not wait for the end of the cooldown.

        longest_s: longest wait by urgency, in seconds.
        now: the present time.
        """
        left_s = self.blocked_s(now)
        turns = [turn for turn in self._queue if left_s > longest_s[turn.errand.urgency]]
        for turn in turns:
            del self._queue[turn]
        return turns

    # Status.

    @property
    def waiting(self) -> bool:
        """Whether requests are queued."""
        return bool(self._queue)

    def used(self, now: Now) -> int:
        """Weight used in the exchange's current minute by all processes at our address, as far as it is known."""
        self._keep_time(now)
        return (
            self._reported
            + (self._unanswered - self._unanswered_reported)
            + sum(turn.weight for turn in self._in_flight if not turn.answered)
        )

    def status(self, now: Now) -> RestStatus:
        """The state of the host's REST."""
        waiting = dict.fromkeys(Urgency, 0)
        for turn in self._queue:
            waiting[turn.errand.urgency] += 1
        blocked_s = self.blocked_s(now)
        return RestStatus(
            used=self.used(now),
            limit=self.limit,
            share=self.share,
            under_way=len(self._in_flight),
            waiting=waiting,
            blocked_s=blocked_s,
            blocked_until_ms=now.exchange_ms + int(blocked_s * 1000) if blocked_s and now.exchange_ms else None,
            requests=self.requests,
            errors=dict(self.errors),
        )

    def _keep_time(self, now: Now) -> None:
        if now.minute > self._minute:
            self._count_anew(now.minute)

    def _count_anew(self, minute: int) -> None:
        self._minute = max(self._minute, minute)
        self._epoch += 1
        self._reported = self._unanswered = self._unanswered_reported = 0


def _urgency(turn: Turn) -> Urgency:
    return turn.errand.urgency

"""The request weight that an exchange allows an address in a minute, and whose request is sent next.

One budget stands for one host. The minute is the exchange's, and what is used of it the exchange tells with each
answer; on top of that comes what was sent and not yet told of. Others may use the same address, so that we keep to a
share of the limit; and of that share the less urgent may fill only a part, so that a request that live candles wait
for finds room at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from klinesync.exchanges.access import Access
from klinesync.exchanges.exchange import Errand, RestStatus, Urgency

MINUTE_MS = 60_000

# Of the limit: what we use at most. The rest is for others behind the same address.
SHARE = 0.8
# Of our share: how far requests of that urgency may fill it.
PART: Mapping[Urgency, float] = {
    Urgency.REPAIR: 1.0,
    Urgency.READ: 0.9,
    Urgency.SWEEP: 0.8,
    Urgency.FILL: 0.7,
    Urgency.DEEP: 0.5,
}
# A request that has waited for this long, in seconds, counts as a `SWEEP`: where more urgent requests fill the part of
# less urgent ones in every minute, these would wait for ever.
STARVED_S = 120.0
# Requests under way at once, to one host; and how many of those places are kept for what somebody waits for.
AT_ONCE = 4
KEPT_FREE = 1
# Most waiting requests of a host.
MAX_WAITING = 5000
# An exchange bans for three days at most; a longer Retry-After is nonsense.
LONGEST_RETRY_AFTER_S = 3 * 86_400.0


@dataclass(frozen=True, slots=True)
class MarketWeights:
    """What one market allows in a minute, and what its requests weigh. `klines`: page sizes up to which a page weighs
    so much, ascending."""

    limit: int
    time: int
    exchange_info: int
    tickers: int
    klines: tuple[tuple[int, int], ...]

    def page(self, limit: int) -> int:
        """The weight of a page of at most `limit` klines."""
        return next((weight for most, weight in self.klines if limit <= most), self.klines[-1][1])

    def page_size(self, expected: int | None, best: int) -> int:
        """The page size to ask for: `best`, which has the least weight per candle, or less where `expected` rows fit
        into a page that weighs less. It is one below the step: whether a step belongs to the lighter pages is told one
        way and measured the other."""
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
    """The time: the exchange's as estimated, in ms, None while nothing is known of it; and ours, monotonic seconds."""

    exchange_ms: int | None
    monotonic_s: float

    @property
    def minute(self) -> int:
        """The minute that weight is counted in."""
        return int(self.monotonic_s * 1000 if self.exchange_ms is None else self.exchange_ms) // MINUTE_MS


@dataclass(slots=True, eq=False)
class Turn:
    """One request: it waits, then is under way. `sent`: the exchange may have counted it; `answered`: it has
    told what is used. `queued`: it has a place of its own. `kind`: what is asked for (`klines`); `joined_s`: since when
    it waits; `went_s`: when it was let go; both monotonic."""

    errand: Errand
    weight: int
    queued: bool = True
    kind: str = ""
    joined_s: float = float("inf")
    went_s: float = 0.0
    sent: bool = False
    answered: bool = False
    # What was known when it was sent, see `WeightBudget`.
    epoch: int = 0
    told: int = 0
    lost: int = 0

    def urgency(self, now: Now) -> Urgency:
        """Its urgency, raised after `STARVED_S` of waiting."""
        urgency = self.errand.urgency
        return urgency if now.monotonic_s - self.joined_s <= STARVED_S else min(urgency, Urgency.SWEEP)


class WeightBudget:
    """The weight of one host, and the line of those who wait for it.

    limit: weight that the host allows in a minute.
    share: how much of it we use at most.
    max_waiting: most waiting requests; past that the least urgent is given up.
    """

    def __init__(self, limit: int, share: float = SHARE, max_waiting: int = MAX_WAITING) -> None:
        assert 0.0 < share <= 1.0, share
        self._max_waiting = max_waiting
        self.limit = limit
        self.share = share
        self.requests = 0
        self.errors: Counter[int] = Counter()
        self._line: dict[Turn, None] = {}  # in the order of coming
        self._under_way: set[Turn] = set()
        self._minute = 0
        # Counts how often the exchange's count began anew: what was told before says nothing of what is used now.
        self._epoch = 0
        self._told = 0
        # Weight of requests whose answer never came, in this epoch; and how much of it is in what was told.
        self._lost = 0
        self._lost_told = 0
        self._blocked_until_ms: int | None = None
        self._blocked_until_s = float("-inf")

    # The line.

    def join(self, errand: Errand, weight: int, now: Now, kind: str = "") -> Turn | None:
        """Queue a request. None when the line is full of others that are as urgent; see `crowded_out`."""
        if len(self._line) >= self._max_waiting and errand.urgency >= self._last().errand.urgency:
            return None
        turn = Turn(errand, weight, kind=kind, joined_s=now.monotonic_s)
        self._line[turn] = None
        return turn

    def crowded_out(self) -> Turn | None:
        """Give up the least urgent of a line that is too long."""
        if len(self._line) <= self._max_waiting:
            return None
        turn = self._last()
        del self._line[turn]
        return turn

    def next(self, now: Now, access: Access | None = None) -> Turn | None:
        """Who goes now: the first of the most urgent of those that `access` lets go, when there is room. It is under
        way from now on."""
        free = self._line.keys()
        if access is not None:
            kinds = {kind: access.held_s(kind, now.monotonic_s) > 0.0 for kind in {turn.kind for turn in free}}
            if any(kinds.values()):
                free = {turn: None for turn in free if not kinds[turn.kind]}.keys()
        # Looked for each time: the urgency of those who wait may be raised.
        turn = min(free, key=lambda turn: turn.urgency(now), default=None)
        if turn is None or not self._has_room(turn, now):
            return None
        turn.went_s = now.monotonic_s
        del self._line[turn]
        self._under_way.add(turn)
        return turn

    def at_once(self, errand: Errand, weight: int, now: Now) -> Turn:
        """A small request in the place of one that is under way; it does not wait for room."""
        self._keep_time(now)
        turn = Turn(errand, weight, queued=False)
        self._under_way.add(turn)
        return turn

    def _last(self) -> Turn:
        return max(reversed(self._line), key=_urgency)

    def _has_room(self, turn: Turn, now: Now) -> bool:
        urgency = turn.urgency(now)
        if self.blocked_s(now) > 0.0:
            return False
        places = AT_ONCE - (KEPT_FREE if urgency > Urgency.READ else 0)
        if sum(one.queued for one in self._under_way) >= places:
            return False
        used = self.used(now)
        # In a minute that nobody has used there is room for anything, however small the share.
        return not used or used + turn.weight <= self.limit * self.share * PART[urgency]

    # What happens to a request.

    def sent(self, turn: Turn) -> None:
        """The request leaves."""
        turn.sent = True
        turn.epoch, turn.told, turn.lost = self._epoch, self._told, self._lost
        self.requests += 1

    def answered(self, turn: Turn, used: int | None, now: Now) -> None:
        """An answer begins; `used` is what it tells of the weight used in the exchange's present minute."""
        self._keep_time(now)
        turn.answered = True
        if used is None:
            self._lost += turn.weight
            return
        of_this_epoch = turn.epoch == self._epoch
        if used < turn.told:
            if of_this_epoch:
                # The count went down: the exchange's minute is over, whatever our estimate of its clock says.
                self._count_anew(min(self._minute, now.minute) + 1)
            self._told = max(self._told, used)
        elif of_this_epoch:
            self._told = max(self._told, used)
            self._lost_told = max(self._lost_told, turn.lost)
        # Else it was counted in the minute before.

    def over(self, turn: Turn, now: Now) -> None:
        """The request is over: answered, failed or cancelled, at whatever point."""
        self._keep_time(now)
        self._line.pop(turn, None)
        if turn in self._under_way:
            self._under_way.remove(turn)
            if turn.sent and not turn.answered:
                self._lost += turn.weight

    # What the exchange wants.

    def block(self, retry_after_s: float, now: Now) -> None:
        """Send nothing until so much time has passed, on the exchange's clock or ours."""
        retry_after_s = min(retry_after_s, LONGEST_RETRY_AFTER_S)
        if self.blocked_s(now) >= retry_after_s:
            return
        self._blocked_until_s = now.monotonic_s + retry_after_s
        self._blocked_until_ms = None if now.exchange_ms is None else now.exchange_ms + int(retry_after_s * 1000)

    def blocked_s(self, now: Now) -> float:
        """How long nothing is sent from now on; 0 when the host is free."""
        left_s = self._blocked_until_s - now.monotonic_s
        if self._blocked_until_ms is not None and now.exchange_ms is not None:
            # An exchange that runs faster than we do is through with it earlier.
            left_s = min(left_s, (self._blocked_until_ms - now.exchange_ms) / 1000)
        return max(left_s, 0.0)

    def held(self, access: Access, patience_s: float, now: Now) -> list[Turn]:
        """Those in line that `access` holds for longer than `patience_s`. They are out of the line now."""
        kinds = {kind: access.held_s(kind, now.monotonic_s) for kind in {turn.kind for turn in self._line}}
        turns = [turn for turn in self._line if kinds[turn.kind] > patience_s]
        for turn in turns:
            del self._line[turn]
        return turns

    def unwilling(self, longest_s: Mapping[Urgency, float], now: Now) -> list[Turn]:
        """Those in line that will not wait until the host is free. They are out of the line now."""
        left_s = self.blocked_s(now)
        turns = [turn for turn in self._line if left_s > longest_s[turn.errand.urgency]]
        for turn in turns:
            del self._line[turn]
        return turns

    # What is told.

    @property
    def waiting(self) -> bool:
        """Whether somebody is in line."""
        return bool(self._line)

    def used(self, now: Now) -> int:
        """Weight used in the exchange's present minute, by all behind our address, as far as it can be known."""
        self._keep_time(now)
        return (
            self._told
            + (self._lost - self._lost_told)
            + sum(turn.weight for turn in self._under_way if not turn.answered)
        )

    def status(self, now: Now) -> RestStatus:
        """How it all stands."""
        waiting = dict.fromkeys(Urgency, 0)
        for turn in self._line:
            waiting[turn.errand.urgency] += 1
        blocked_s = self.blocked_s(now)
        return RestStatus(
            used=self.used(now),
            limit=self.limit,
            share=self.share,
            under_way=len(self._under_way),
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
        self._told = self._lost = self._lost_told = 0


def _urgency(turn: Turn) -> Urgency:
    return turn.errand.urgency

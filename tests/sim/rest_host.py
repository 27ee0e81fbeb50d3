"""The REST side of one market: weights, limits, bans, and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from klinesync.exchanges.binance.weight import SHARE
from sim.exchange import MINUTE_S, SimulatedExchange
from sim.scenario import Faults
from sim.virtual_loop import VirtualLoop

# The exchange's limit of weight per minute, unless the scenario makes it scarce.
LIMITS = {"spot": 6000, "futures": 2400}
# Range of `Retry-After`, in seconds of the exchange.
BAN_S = (10, 240)
# The longest part of the calm for which a ban may still last.
BAN_IN_CALM_S = 30
# Weight that a process may add before it knows the used weight of its address: four requests at once, each for a page
# and the time, and one for the list of symbols.
UNAWARE = 4 * 3 + 20


@dataclass(frozen=True, slots=True)
class Wish:
    """When requests to a host may resume, on the exchange's clock or on the service's; and when the host said so."""

    until_ms: int
    until_s: float
    told_s: float


@dataclass(slots=True)
class Answer:
    """The refusal of the exchange, and `retry_after_s` where it names one."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    retry_after_s: int | None = None


TOO_MUCH = b'{"code":-1003,"msg":"Too much request weight used."}'
NO_SYMBOL = b'{"code":-1121,"msg":"Invalid symbol."}'
ERRORS = ((500, b"oops"), (503, b'{"code":-1000,"msg":"busy"}'), (200, b'[[1,"1'), (200, b"<html>"), (0, b""))


def weight_of(market: str, name: str, params: Mapping[str, str]) -> int:
    """The weight of a request."""
    if name == "klines":
        if market == "spot":
            return 2
        limit = int(params["limit"])
        return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10
    if name == "exchangeInfo":
        return 20 if market == "spot" else 1
    assert name == "time", name
    return 1


class RestHost:
    """One market. `violate` is called when a process exceeds the limits. `asker` is the name of a process."""

    def __init__(
        self, exchange: SimulatedExchange, loop: VirtualLoop, market: str, violate: Callable[[str], None]
    ) -> None:
        self.limit = exchange.scenario.faults.weight or LIMITS[market]
        self._exchange = exchange
        self._loop = loop
        self._market = market
        # A process with a wrong exchange time cannot keep to the exchange's minutes.
        self._violate = (lambda _: None) if exchange.scenario.faults.clocks else violate
        self._minute = 0
        self._used = 0
        self._unaware: set[str] = set()
        self._banned_until_ms = 0
        self._wishes: dict[str, Wish] = {}
        self._time_read: dict[str, tuple[float, float]] = {}

    def answer(self, asker: str, name: str, params: Mapping[str, str], faults: Faults, rng: Random) -> Answer:
        """One request of the process `asker` arrives."""
        weight = weight_of(self._market, name, params)
        self._count(asker, weight)
        answer = self._wish(faults, rng)
        if answer is None and rng.random() < faults.rest_limit:
            answer = Answer(429, TOO_MUCH, retry_after_s=rng.randint(1, 5))
        if answer is None and rng.random() < faults.rest_error:
            answer = Answer(*rng.choice(ERRORS))
        if answer is None:
            answer = self._good(name, params, faults, rng)
        answer.headers["X-MBX-USED-WEIGHT-1M"] = str(self._used)
        if answer.retry_after_s is not None:
            answer.headers["Retry-After"] = str(answer.retry_after_s)
        return answer

    def _count(self, asker: str, weight: int) -> None:
        minute = self._exchange.now_ms() // (MINUTE_S * 1000)
        if minute != self._minute:
            self._minute, self._used = minute, 0
            self._unaware = set()
        self._used += weight
        self._unaware.add(asker)
        most = self.limit * SHARE + UNAWARE * len(self._unaware)
        if self._used > most:
            self._violate(f"{self._market}: weight {self._used} is used of a minute that allows {self.limit}")

    def _wish(self, faults: Faults, rng: Random) -> Answer | None:
        """`Retry-After` of a refusal, if any."""
        exchange = self._exchange
        now_ms = exchange.now_ms()
        # It ends with the storm on both clocks: a service that cannot reach the exchange waits by its own clock.
        storm_s = min(exchange.storm_end_s - now_ms / 1000, exchange.mono_s(exchange.storm_end_s) - self._loop.time())
        latest_ms = now_ms + int(1000 * max(0.0, storm_s + BAN_IN_CALM_S))
        if now_ms < self._banned_until_ms:
            # Requests during a ban prolong it.
            self._banned_until_ms = max(self._banned_until_ms, min(latest_ms, now_ms + BAN_S[1] * 1000))
            return Answer(418, TOO_MUCH, retry_after_s=self._left_s(now_ms))
        if faults.ban and rng.random() < faults.ban:
            self._banned_until_ms = min(latest_ms, now_ms + rng.randint(*BAN_S) * 1000)
            if now_ms < self._banned_until_ms:
                return Answer(429, TOO_MUCH, retry_after_s=self._left_s(now_ms))
        if self._used > self.limit:
            return Answer(429, TOO_MUCH, retry_after_s=MINUTE_S - now_ms // 1000 % MINUTE_S)
        return None

    def _left_s(self, now_ms: int) -> int:
        return -(-(self._banned_until_ms - now_ms) // 1000)

    def _good(self, name: str, params: Mapping[str, str], faults: Faults, rng: Random) -> Answer:
        # A cache somewhere: whole rows arrive late, by less than it takes to give up a hole.
        lag_s = rng.uniform(0.5, 8) * min(60.0, self._exchange.scenario.speed)
        lagging = rng.random() < faults.rest_lag
        if name == "klines" and self._exchange.listing(self._market, params["symbol"]) is None:
            return Answer(400, NO_SYMBOL)
        return Answer(200, self._exchange.rest(self._market, name, params, lag_s if lagging else 0.0))

    # The rules for processes.

    def told_to_wait(self, asker: str, retry_after_s: int, known_ms: int | None) -> None:
        """A process reads a refusal, and must leave the host alone. `known_ms` is the exchange's time as the process
        knows it, which may be old: it may be early by the difference."""
        now_ms, now_s = self._exchange.now_ms(), self._loop.time()
        until_ms = (now_ms if known_ms is None else min(known_ms, now_ms)) + retry_after_s * 1000
        before = self._wishes.get(asker)
        if before is None or until_ms > before.until_ms:
            self._wishes[asker] = Wish(until_ms, now_s + retry_after_s, now_s)

    def time_is_read(self, asker: str, asked_s: float) -> None:
        """A process reads the answer to a request for the time, sent at that moment."""
        self._time_read[asker] = (asked_s, self._loop.time())

    def check_wish(self, asker: str, name: str) -> None:
        """A process sends a request for `name`."""
        wish = self._wishes.get(asker)
        if wish is None:
            return
        left_s, now_s = (wish.until_ms - self._exchange.now_ms()) / 1000, self._loop.time()
        asked_s, read_s = self._time_read.get(asker, (0.0, 0.0))
        if name == "klines" and read_s == now_s and asked_s <= wish.told_s:
            return  # the second of two concurrent requests
        if left_s > 0 and now_s < wish.until_s:
            self._violate(
                f"{self._market}: {name} is requested during a cooldown of the exchange, which lasts for {left_s:.1f} s"
            )

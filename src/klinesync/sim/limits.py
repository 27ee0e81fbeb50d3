"""Limits: REST weight per clock minute, messages per second on a WebSocket."""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.backoff import Backoff
from klinesync.sim.tape import Market

WEIGHT_LIMIT: dict[Market, int] = {"spot": 6000, "futures": 2400}
MESSAGE_LIMIT: dict[Market, int] = {"spot": 5, "futures": 10}
MAX_STREAMS = 1024
LIFETIME_MS = 24 * 3600 * 1000
_BAN = Backoff(initial_s=120.0, most_s=3 * 24 * 3600.0)
_REFUSALS_BEFORE_BAN = 10  # how many requests into a wall of 429 it takes to be banned is not documented
_FORGIVEN_AFTER_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not answered. `status` is 429 or 418."""

    status: int
    retry_after_s: int
    message: str


@dataclass(slots=True)
class _Client:
    minute: int = -1
    used: int = 0
    refused: int = 0
    banned_until_ms: int = 0
    bans: int = 0


class WeightLimit:
    """The weight that each address has used in the present minute of the exchange's clock, on one market.

    Too much is answered with 429; going on regardless, with 418 and a ban that doubles each time.
    """

    def __init__(self, market: Market) -> None:
        self._market = market
        self._limit = WEIGHT_LIMIT[market]
        self._clients: dict[str, _Client] = {}

    def charge(self, address: str, weight: int, now_ms: int) -> Refusal | None:
        """Count a request of that weight, also when it turns out to be a bad one; the refusal when it is too much."""
        client = self._client(address, now_ms)
        if now_ms < client.banned_until_ms:
            return banned(client.banned_until_ms, now_ms)
        if client.used + weight > self._limit:
            client.refused += 1
            if client.refused > _REFUSALS_BEFORE_BAN:
                forgiven = now_ms - client.banned_until_ms > _FORGIVEN_AFTER_MS
                client.bans = 1 if forgiven else client.bans + 1
                client.banned_until_ms = now_ms + round(1000 * _BAN.delay_s(client.bans - 1))
                return banned(client.banned_until_ms, now_ms)
            return Refusal(429, rest_of_minute_s(now_ms), too_much(self._market))
        client.used += weight
        return None

    def used(self, address: str, now_ms: int) -> int:
        """Weight used by that address in the present minute."""
        return self._client(address, now_ms).used

    def total(self, now_ms: int) -> int:
        """Weight used by everybody in the present minute."""
        minute = now_ms // 60_000
        return sum(client.used for client in self._clients.values() if client.minute == minute)

    def _client(self, address: str, now_ms: int) -> _Client:
        client = self._clients.setdefault(address, _Client())
        minute = now_ms // 60_000
        if client.minute != minute:
            client.minute, client.used, client.refused = minute, 0, 0
        return client


def too_much(market: Market) -> str:
    """What 429 says."""
    limit = WEIGHT_LIMIT[market]
    if market == "spot":
        return (
            f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API."
        )
    return (
        f"Too many requests; current limit of IP is {limit} requests per minute. "
        "Please use the websocket for live updates to avoid polling the API."
    )


def rest_of_minute_s(now_ms: int) -> int:
    """Whole seconds until the window of the weight ends, one at least."""
    return max(1, 60 - now_ms // 1000 % 60)


def banned(until_ms: int, now_ms: int) -> Refusal:
    """The refusal of an address that is banned until then."""
    return Refusal(
        418,
        max(1, -(-(until_ms - now_ms) // 1000)),
        f"Way too much request weight used; IP banned until {until_ms}. "
        "Please use WebSocket Streams for live updates to avoid bans.",
    )


class MessageLimit:
    """How many messages a connection may send in a second: JSON, PING and PONG together. Host time."""

    __slots__ = ("_count", "_limit", "_second_began_s")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._second_began_s = 0.0
        self._count = 0

    def count(self, now_s: float) -> bool:
        """Count one message; False when it is one too many."""
        if now_s - self._second_began_s >= 1.0:
            self._second_began_s = now_s
            self._count = 0
        self._count += 1
        return self._count <= self._limit

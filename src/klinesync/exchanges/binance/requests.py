"""Requests: how Binance's REST is asked. Each market has a gate that rations weight, and a newest contact."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import aiohttp

from klinesync.core.errors import UpstreamError
from klinesync.core.network_errors import unreachable
from klinesync.exchanges.access import CALLED_WRONG, Access
from klinesync.exchanges.binance.decode import (
    EXCHANGE,
    BadAnswer,
    LeftOut,
    decode_problem,
)
from klinesync.exchanges.binance.rest_gate import RestGate
from klinesync.exchanges.binance.timings import USUAL_REST, RestTimings
from klinesync.exchanges.binance.weight import WEIGHTS, MarketWeights, Turn, WeightBudget
from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.exchange import (
    Errand,
    RestStatus,
    Urgency,
)
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.runtime.http_client import Http, location, read_body
from klinesync.runtime.log_events import Log, LogEvent
from klinesync.runtime.log_limit import LogLimit

Decoded = TypeVar("Decoded")
Found = TypeVar("Found")
log = Log(__name__)

TIMEOUT_S = 10.0
# How often a request is repeated that was not answered, or with the server's error.
RETRIES = 2
MAX_PROBLEM_BYTES = 4 << 10
# Troubles are logged so often for one series.
LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class MarketRoutes:
    """Where one market's REST lives, and the page size with the least weight per candle."""

    base_url: str
    prefix: str
    page: int

    def url(self, name: str) -> str:
        return f"{self.base_url}{self.prefix}/{name}"


def market_routes(spot_url: str, futures_url: str) -> dict[str, MarketRoutes]:
    """The routes of both markets. Spot pages cost 2 whatever their size; futures pages under 500 rows cost 2."""
    return {
        "spot": MarketRoutes(spot_url, "/api/v3", 1000),
        "futures": MarketRoutes(futures_url, "/fapi/v1", 499),
    }


class _Passing(UpstreamError):
    """What the next request may not meet again: no answer, an error of the server, too many requests."""


class Requests:
    """Sends requests to both markets.

    session: the network.
    routes: where the REST of each market lives.
    clocks: by market; the minute that weight is counted in.
    monotonic: seconds.
    share: how much of an address' weight we use at most.
    rng: jitter of retries.
    timings: waits and intervals.
    weights: what each market allows, and what its requests weigh.

    `left_out` counts items of answers that were left out, by market and kind: `kline`, `symbol`, `ticker`.
    """

    def __init__(
        self,
        session: Http,
        routes: Mapping[str, MarketRoutes],
        clocks: Mapping[str, ExchangeClock],
        *,
        monotonic: Callable[[], float],
        share: float,
        rng: random.Random,
        timings: RestTimings = USUAL_REST,
        weights: Mapping[str, MarketWeights] = WEIGHTS,
    ) -> None:
        self.weights = weights
        self._timings = timings
        self._session = session
        self._routes = routes
        self._clocks = clocks
        self._monotonic = monotonic
        self._share = share
        self._rng = rng
        self._gates: dict[str, RestGate] = {}
        self._accesses = {market: Access() for market in routes}
        self._contacts: dict[str, RestContact] = {}
        self._log_limit = LogLimit(LOG_EVERY_S)
        self.left_out: Counter[tuple[str, str]] = Counter()

    def status(self) -> dict[str, RestStatus]:
        """How the REST of each market stands that was asked anything."""
        return {market: gate.status for market, gate in self._gates.items()}

    def access(self, market: str) -> Access:
        """For how long the market is left alone while it refuses this service, or is in trouble; its handshakes share
        it."""
        return self._accesses[market]

    def contact(self, market: str) -> RestContact:
        """The newest contact with that market."""
        return self._contacts.get(market, RestContact())

    def gate(self, market: str) -> RestGate:
        """The one way to the REST of that market."""
        gate = self._gates.get(market)
        if gate is None:
            name = f"{EXCHANGE} {market} ({self._routes[market].base_url})"
            budget = WeightBudget(self.weights[market].limit, self._share)
            gate = self._gates[market] = RestGate(
                name, budget, self._clocks[market], self._monotonic, self.access(market), self._timings
            )
        return gate

    async def ask(self, market: str, name: str, weight: int, most_bytes: int) -> bytes:
        """What a user waits for."""
        gate, errand = self.gate(market), Errand(Urgency.READ)

        async def ask() -> bytes:
            async with gate.turn(errand, weight, name) as turn:
                return await self.send(turn, market, name, {}, most_bytes)

        return await self.repeat(gate, errand, ask)

    async def repeat(self, gate: RestGate, errand: Errand, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Ask again what was not answered, a bounded number of times."""
        for attempt in count():
            try:
                return await ask()
            except _Passing as error:
                blocked = error.retry_after_s is not None
                if attempt >= RETRIES or (blocked and not gate.waits(errand)):
                    raise
            if not blocked:  # else the gate knows when the host wants to be asked again
                await asyncio.sleep(self._timings.repeat.delay_s(attempt, self._rng))
        raise AssertionError("the last attempt returns or raises")

    async def send(self, turn: Turn, market: str, name: str, params: Mapping[str, str], most_bytes: int) -> bytes:
        """The body of one answer, which is no longer than `most_bytes`."""
        gate, url = self.gate(market), self._routes[market].url(name)
        if (left_s := gate.blocked_s) > 0.0:  # since this turn began: it is the second request of it
            raise _Passing(f"{url}: the host wants to be left alone for {left_s:.0f} s more", 429, left_s)
        gate.sent(turn)
        try:
            async with self._session.get(url, params=params) as response:
                status, elsewhere = response.status, location(response)
                retry_after_s = gate.answered(turn, status, response.headers)
                body = await read_body(response, most_bytes if status == 200 else MAX_PROBLEM_BYTES)
        except TimeoutError as error:
            gate.count_error(0)
            raise self._failed(
                turn, market, _Passing(f"{url} did not answer within {TIMEOUT_S:g} s", cause=unreachable(url, error))
            ) from error
        except aiohttp.ClientError as error:
            gate.count_error(0)
            reason = unreachable(url, error)
            raise self._failed(turn, market, _Passing(reason, cause=reason)) from error
        if status == 200:
            if len(body) > most_bytes:
                raise self.nonsense(market, name, f"the answer to {name} is longer than {most_bytes} bytes")
            return body
        gate.count_error(status)
        kind = _Passing if status >= 500 or retry_after_s is not None else UpstreamError
        reason = f"{url} answered {status}{elsewhere}: {decode_problem(body)}"
        if status in CALLED_WRONG:
            self.access(market).served(name)
        raise self._failed(turn, market, kind(reason, status, retry_after_s))

    def _failed(self, turn: Turn, market: str, error: UpstreamError) -> UpstreamError:
        """The same error of a request, once it is noted as the newest contact."""
        self.access(market).failed(turn.kind, error.status, str(error), turn.went_s, self._monotonic())
        return self._not_well(market, error)

    def _not_well(self, market: str, error: UpstreamError) -> UpstreamError:
        self._contacts[market] = replace(self.contact(market), failure=str(error), status=error.status)
        return error

    def decoded(self, market: str, decode: Callable[[bytes], Decoded], body: bytes, name: str) -> Decoded:
        """What an answer says. Raises `UpstreamError` when it cannot be understood.

        decode: raises `BadAnswer`.
        name: what was asked for.
        """
        try:
            answer = decode(body)
        except BadAnswer as error:
            raise self.nonsense(market, name, f"the answer to {name} cannot be understood: {error}") from error
        self.access(market).served(name)
        self._contacts[market] = RestContact(self._monotonic())  # only what is understood is an answer
        return answer

    def leave_out(self, market: str, kind: str, left_out: LeftOut, key: object = "") -> None:
        """Count the items of an answer that could not be used, and say so now and then."""
        if left_out.count:
            self.left_out[market, kind] += left_out.count
            what = f"{market}: {left_out.count} of the items of one answer ({kind}) are left out; {left_out.first}"
            self.warn((market, kind, key), "rest.items_left_out", what, market=market)

    def nonsense(self, market: str, name: str, what: str) -> UpstreamError:
        """The error of an answer that cannot be what was asked for; it counts as a failure of the market.

        name: what was asked for, `klines` for example.
        what: a sentence.
        """
        self.gate(market).count_error(200)
        now_s = self._monotonic()
        self.access(market).failed(name, 200, what, now_s, now_s)
        return self._not_well(market, UpstreamError(what))

    def warn(self, key: object, event: LogEvent, sentence: str, **fields: object) -> None:
        """Log a trouble, now and then for one `key`."""
        suppressed = self._log_limit.allow(key, self._monotonic())
        if suppressed is not None:
            log.warning(event, sentence, **fields, suppressed=suppressed)

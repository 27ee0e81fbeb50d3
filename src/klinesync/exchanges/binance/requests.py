"""Requests: sends the requests to Binance's REST. Each market has a gate that rations weight, and a newest contact."""

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

# Longest wait for an answer, in seconds.
TIMEOUT_S = 10.0
# Retries of a request without an answer, or with an error of the server.
RETRIES = 2
# Longest body of an error that is read, in bytes.
MAX_PROBLEM_BYTES = 4 << 10
# Shortest time between two log lines of one kind, in seconds.
LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class MarketRoutes:
    """The address of one market's REST.

    base_url: scheme and host.
    prefix: path before the name of an endpoint.
    page: page size of klines with the least weight per candle.
    """

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


class _Transient(UpstreamError):
    """A failure that a retry may not meet again: no answer, an error of the server, too many requests."""


class Requests:
    """Sends requests to both markets.

    session: the HTTP client.
    routes: the REST address of each market.
    clocks: the exchange's time by market; weight is counted by its minutes.
    monotonic: our clock, in seconds.
    share: largest share of an address's weight limit that the service uses.
    rng: jitter of retries.
    timings: waits and intervals.
    weights: weight limit of each market, and the weights of its requests.

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
        """The state of REST of each market that was used."""
        return {market: gate.status for market, gate in self._gates.items()}

    def access(self, market: str) -> Access:
        """The backoff of a market that refuses this service or fails; requests and handshakes share it."""
        return self._accesses[market]

    def contact(self, market: str) -> RestContact:
        """The newest contact with that market."""
        return self._contacts.get(market, RestContact())

    def gate(self, market: str) -> RestGate:
        """The gate of that market's REST; every request passes it."""
        gate = self._gates.get(market)
        if gate is None:
            name = f"{EXCHANGE} {market} ({self._routes[market].base_url})"
            budget = WeightBudget(self.weights[market].limit, self._share)
            gate = self._gates[market] = RestGate(
                name, budget, self._clocks[market], self._monotonic, self.access(market), self._timings
            )
        return gate

    async def ask(self, market: str, name: str, weight: int, most_bytes: int) -> bytes:
        """Request an endpoint without parameters for a waiting user.

        market: name of the market.
        name: the endpoint, `ticker/24hr` for example.
        weight: request weight.
        most_bytes: longest answer that is read.

        Returns the body. Raises `UpstreamError`.
        """
        gate, errand = self.gate(market), Errand(Urgency.READ)

        async def ask() -> bytes:
            async with gate.turn(errand, weight, name) as turn:
                return await self.send(turn, market, name, {}, most_bytes)

        return await self.repeat(gate, errand, ask)

    async def repeat(self, gate: RestGate, errand: Errand, ask: Callable[[], Awaitable[Found]]) -> Found:
        """Call `ask`, with up to `RETRIES` retries after failures that may pass.

        gate: of the market.
        errand: the purpose of the request, with its urgency.
        ask: sends the request; raises `UpstreamError`.
        """
        for attempt in count():
            try:
                return await ask()
            except _Transient as error:
                blocked = error.retry_after_s is not None
                if attempt >= RETRIES or (blocked and not gate.waits(errand)):
                    raise
            if not blocked:  # in a cooldown the gate makes the retry wait
                await asyncio.sleep(self._timings.repeat.delay_s(attempt, self._rng))
        raise AssertionError("the last attempt returns or raises")

    async def send(self, turn: Turn, market: str, name: str, params: Mapping[str, str], most_bytes: int) -> bytes:
        """Send one request.

        turn: granted by the gate.
        market: name of the market.
        name: the endpoint.
        params: of the query.
        most_bytes: longest answer that is read.

        Returns the body of an answer with status 200. Raises `UpstreamError` for any other.
        """
        gate, url = self.gate(market), self._routes[market].url(name)
        if (left_s := gate.blocked_s) > 0.0:  # the cooldown began after the turn: this is its second request
            raise _Transient(f"{url}: the host is in cooldown for {left_s:.0f} s more, as it asked", 429, left_s)
        gate.sent(turn)
        try:
            async with self._session.get(url, params=params) as response:
                status, elsewhere = response.status, location(response)
                retry_after_s = gate.answered(turn, status, response.headers)
                body = await read_body(response, most_bytes if status == 200 else MAX_PROBLEM_BYTES)
        except TimeoutError as error:
            gate.count_error(0)
            raise self._failed(
                turn, market, _Transient(f"{url} did not answer within {TIMEOUT_S:g} s", cause=unreachable(url, error))
            ) from error
        except aiohttp.ClientError as error:
            gate.count_error(0)
            reason = unreachable(url, error)
            raise self._failed(turn, market, _Transient(reason, cause=reason)) from error
        if status == 200:
            if len(body) > most_bytes:
                raise self.nonsense(market, name, f"the answer to {name} is longer than {most_bytes} bytes")
            return body
        gate.count_error(status)
        kind = _Transient if status >= 500 or retry_after_s is not None else UpstreamError
        reason = f"{url} answered {status}{elsewhere}: {decode_problem(body)}"
        if status in CALLED_WRONG:
            self.access(market).served(name)
        raise self._failed(turn, market, kind(reason, status, retry_after_s))

    def _failed(self, turn: Turn, market: str, error: UpstreamError) -> UpstreamError:
        """Record a failed request in the backoff and as the newest contact; returns the same error."""
        self.access(market).failed(turn.kind, error.status, str(error), turn.granted_s, self._monotonic())
        return self._note_failure(market, error)

    def _note_failure(self, market: str, error: UpstreamError) -> UpstreamError:
        self._contacts[market] = replace(self.contact(market), failure=str(error), status=error.status)
        return error

    def decoded(self, market: str, decode: Callable[[bytes], Decoded], body: bytes, name: str) -> Decoded:
        """Decode an answer, and record the contact.

        market: name of the market.
        decode: the decoder; raises `BadAnswer`.
        body: of the answer.
        name: the endpoint.

        Raises `UpstreamError` when the answer cannot be understood.
        """
        try:
            answer = decode(body)
        except BadAnswer as error:
            raise self.nonsense(market, name, f"the answer to {name} cannot be understood: {error}") from error
        self.access(market).served(name)
        self._contacts[market] = RestContact(self._monotonic())  # only an answer that is understood counts
        return answer

    def leave_out(self, market: str, kind: str, left_out: LeftOut, key: object = "") -> None:
        """Count the items of an answer that could not be used; log them, throttled.

        market: name of the market.
        kind: the kind of item, `kline` for example.
        left_out: the items.
        key: throttles the log separately, by series for example.
        """
        if left_out.count:
            self.left_out[market, kind] += left_out.count
            what = f"{market}: {left_out.count} of the items of one answer ({kind}) are left out; {left_out.first}"
            self.warn((market, kind, key), "rest.items_left_out", what, market=market)

    def nonsense(self, market: str, name: str, what: str) -> UpstreamError:
        """The error of an answer that does not fit its request; it counts as a failure of the market.

        market: name of the market.
        name: the endpoint, `klines` for example.
        what: a sentence that says what is wrong.
        """
        self.gate(market).count_error(200)
        now_s = self._monotonic()
        self.access(market).failed(name, 200, what, now_s, now_s)
        return self._note_failure(market, UpstreamError(what))

    def warn(self, key: object, event: LogEvent, sentence: str, **fields: object) -> None:
        """Log a warning, throttled by key.

        key: at most one line in `LOG_EVERY_S` for each.
        event: name of the event.
        sentence: message.
        fields: of the log line.
        """
        suppressed = self._log_limit.allow(key, self._monotonic())
        if suppressed is not None:
            log.warning(event, sentence, **fields, suppressed=suppressed)

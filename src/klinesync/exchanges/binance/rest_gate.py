"""RestGate: queues all requests to the REST of one host, and keeps to its weight budget and its cooldowns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.access import Access
from klinesync.exchanges.binance.timings import USUAL_REST, RestTimings
from klinesync.exchanges.binance.weight import LONGEST_RETRY_AFTER_S, Now, Turn, WeightBudget
from klinesync.exchanges.exchange import Errand, RestStatus, Urgency
from klinesync.runtime.exchange_clock import ExchangeClock

USED_HEADER = "X-MBX-USED-WEIGHT-1M"
# Cooldown after a 429 or 418 without a readable Retry-After, in seconds.
DEFAULT_RETRY_AFTER_S = 60.0
# Interval, in seconds, of checks whether the exchange's minute or a cooldown has ended while requests are queued. It is
# a poll because the exchange's clock may jump.
POLL_S = 0.25
# Longest wait of a request for the end of a backoff after failures, in seconds; a longer one fails the request at once.
HELD_PATIENCE_S = 1.0


class RestGate:
    """The gate of one host.

    name: names the host in errors.
    budget: weight budget and queue of the host.
    clock: the exchange's time; the weight is counted by its minutes.
    monotonic: our clock, in seconds.
    access: the backoff while the host refuses this service or fails; by default a new one.
    timings: longest waits of requests.
    """

    def __init__(
        self,
        name: str,
        budget: WeightBudget,
        clock: ExchangeClock,
        monotonic: Callable[[], float],
        access: Access | None = None,
        timings: RestTimings = USUAL_REST,
    ) -> None:
        self._timings = timings
        self._access = access or Access()
        self._name = name
        self._budget = budget
        self._clock = clock
        self._monotonic = monotonic
        self._waiting: dict[Turn, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def status(self) -> RestStatus:
        """The state of the host's REST."""
        return self._budget.status(self._now())

    @property
    def blocked_s(self) -> float:
        """Remaining seconds of a cooldown that the host asked for; 0 without one."""
        return self._budget.blocked_s(self._now())

    def waits(self, errand: Errand) -> bool:
        """Whether a request of that urgency waits for the end of the present cooldown; otherwise it fails at once."""
        return self._budget.blocked_s(self._now()) <= self._timings.longest_block_s[errand.urgency]

    @asynccontextmanager
    async def turn(self, errand: Errand, weight: int, kind: str = "") -> AsyncIterator[Turn]:
        """Wait until a request may be sent; it is sent within the context. A cancelled wait releases its place.

        errand: the purpose of the request, with its urgency.
        weight: request weight.
        kind: the endpoint, `klines` for example; each kind has a backoff of its own.

        Raises `UpstreamError` when the request is not granted: a cooldown, a backoff of more than `HELD_PATIENCE_S`, a
        full queue, or no room for a user's request within `read_patience_s`.
        """
        turn = await self._wait(errand, weight, kind)
        try:
            yield turn
        finally:
            self._end(turn)

    @asynccontextmanager
    async def within(self, turn: Turn, weight: int) -> AsyncIterator[Turn]:
        """A small request within the turn of another one, sent before that one. It does not wait for room."""
        small = self._budget.admit_nested(turn.errand, weight, self._now())
        try:
            yield small
        finally:
            self._end(small)

    def sent(self, turn: Turn) -> None:
        """The request of that turn is sent now."""
        self._budget.sent(turn)

    def answered(self, turn: Turn, status: int, headers: Mapping[str, str]) -> float | None:
        """The head of an answer has arrived. Counts the used weight, and begins a cooldown after a 429 or 418.

        turn: the request.
        status: HTTP status.
        headers: of the answer.

        Returns the cooldown in seconds; None without one.
        """
        now = self._now()
        self._budget.answered(turn, _number(headers.get(USED_HEADER)), now)
        if status not in (418, 429):
            return None
        header_s = _number(headers.get("Retry-After"))
        retry_after_s = DEFAULT_RETRY_AFTER_S if header_s is None else min(float(header_s), LONGEST_RETRY_AFTER_S)
        self._budget.block(retry_after_s, now)
        for dropped in self._budget.drop_blocked(self._timings.longest_block_s, now):
            self._refuse(dropped, self._blocked_error(now))
        return retry_after_s

    def count_error(self, status: int) -> None:
        """Count a failed request by HTTP status: 0 without an answer, 200 for an answer that cannot be understood."""
        self._budget.errors[status] += 1

    async def _wait(self, errand: Errand, weight: int, kind: str) -> Turn:
        now = self._now()
        if not self.waits(errand):
            raise self._blocked_error(now)
        if self._access.held_s(kind, now.monotonic_s) > HELD_PATIENCE_S:
            raise self._held_error(kind, now)
        turn = self._budget.join(errand, weight, now, kind)
        if turn is None:
            raise self._crowded_error()
        evicted = self._budget.evict()
        if evicted is not None:
            self._refuse(evicted, self._crowded_error())
        admitted = self._waiting[turn] = asyncio.get_running_loop().create_future()
        self._pump()
        held = self._access.held_s(kind, now.monotonic_s) > 0.0
        patience_s = self._timings.read_patience_s
        try:
            if held:
                # The wait is bounded by the loop's clock too, because a backoff may be prolonged again and again.
                await asyncio.wait([admitted], timeout=2 * HELD_PATIENCE_S)
                now = self._now()
                if not admitted.done() and self._access.held_s(kind, now.monotonic_s) > 0.0:
                    raise self._held_error(kind, now)
            async with asyncio.timeout(patience_s if errand.urgency is Urgency.READ else None):
                await admitted
        except TimeoutError:
            self._end(turn)
            raise UpstreamError(f"{self._name}: no room for a request within {patience_s:g} s") from None
        except BaseException:
            self._end(turn)
            raise
        return turn

    def _end(self, turn: Turn) -> None:
        self._waiting.pop(turn, None)
        self._budget.over(turn, self._now())
        self._pump()

    def _pump(self) -> None:
        """Refuse requests that are held back for too long, grant those that may go, and poll while others wait."""
        first = next(iter(self._waiting.values()), None)
        if first is not None and first.get_loop().is_closed():
            return  # the service was killed and its coroutines are being collected: no request can be granted
        now = self._now()
        for held in self._budget.drop_held(self._access, HELD_PATIENCE_S, now):
            self._refuse(held, self._held_error(held.kind, now))
        while (turn := self._budget.next(now, self._access)) is not None:
            admitted = self._waiting.pop(turn)
            if admitted.done():  # cancelled, but its task has not run since
                self._budget.over(turn, now)
            else:
                self._access.sent(turn.kind, now.monotonic_s)
                admitted.set_result(None)
        if self._budget.waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)
        elif not self._budget.waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._timer = None
        self._pump()

    def _refuse(self, turn: Turn, error: UpstreamError) -> None:
        admitted = self._waiting.pop(turn)
        if not admitted.done():
            admitted.set_exception(error)

    def _now(self) -> Now:
        monotonic_s = self._monotonic()
        # The time of an exchange whose clock runs fast is not extrapolated at that speed, which may have changed: a
        # request before the end of a cooldown is worse than a late one.
        return Now(self._clock.least_ms(monotonic_s), monotonic_s)

    def _blocked_error(self, now: Now) -> UpstreamError:
        left_s = self._budget.blocked_s(now)
        return UpstreamError(f"{self._name} is in cooldown for {left_s:.0f} s more, as it asked", 429, left_s)

    def _held_error(self, kind: str, now: Now) -> UpstreamError:
        left_s = self._access.held_s(kind, now.monotonic_s)
        sentence = f"{self._name} is asked again in {left_s:.0f} s: {self._access.why}"
        return UpstreamError(sentence, self._access.status, left_s)

    def _crowded_error(self) -> UpstreamError:
        return UpstreamError(f"{self._name}: too many requests wait for their turn")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 12 else None

"""RestGate: the one way to a host's REST. Requests wait here for their turn, and the host's wishes are kept."""

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
DEFAULT_RETRY_AFTER_S = 60.0
# Who waits looks so often whether the exchange's minute, or its wish to be left alone, is over: its clock may jump.
POLL_S = 0.25
# A request waits for no longer than this, in seconds, where its host is left alone after a failure: its owner is told.
HELD_PATIENCE_S = 1.0


class RestGate:
    """The gate of one host.

    name: how it is told of in errors.
    budget: its weight.
    clock: what is known of its time.
    monotonic: our clock.
    access: for how long it is left alone while it refuses this service, or is in trouble.
    timings: how long requests wait.
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
        """How it stands."""
        return self._budget.status(self._now())

    @property
    def blocked_s(self) -> float:
        """For how long the host wants to be left alone from now on; 0 when it does not mind."""
        return self._budget.blocked_s(self._now())

    def waits(self, errand: Errand) -> bool:
        """Whether a request of that urgency would wait for the host, if it is blocked, rather than fail."""
        return self._budget.blocked_s(self._now()) <= self._timings.longest_block_s[errand.urgency]

    @asynccontextmanager
    async def turn(self, errand: Errand, weight: int, kind: str = "") -> AsyncIterator[Turn]:
        """One request's turn. Raises `UpstreamError` when it does not come, also where the host is left alone for
        longer than `HELD_PATIENCE_S`. Cancelled, it gives everything back.

        kind: what is asked for, `klines` for example: each kind has a backoff of its own.
        """
        turn = await self._wait(errand, weight, kind)
        try:
            yield turn
        finally:
            self._end(turn)

    @asynccontextmanager
    async def within(self, turn: Turn, weight: int) -> AsyncIterator[Turn]:
        """A small request in the course of another one's turn, before it."""
        small = self._budget.at_once(turn.errand, weight, self._now())
        try:
            yield small
        finally:
            self._end(small)

    def sent(self, turn: Turn) -> None:
        """The request of that turn leaves now."""
        self._budget.sent(turn)

    def answered(self, turn: Turn, status: int, headers: Mapping[str, str]) -> float | None:
        """The answer's head is here. In how many seconds the host wants to be asked again, when it says so."""
        now = self._now()
        self._budget.answered(turn, _number(headers.get(USED_HEADER)), now)
        if status not in (418, 429):
            return None
        told_s = _number(headers.get("Retry-After"))
        retry_after_s = DEFAULT_RETRY_AFTER_S if told_s is None else min(float(told_s), LONGEST_RETRY_AFTER_S)
        self._budget.block(retry_after_s, now)
        for unwilling in self._budget.unwilling(self._timings.longest_block_s, now):
            self._refuse(unwilling, self._blocked_error(now))
        return retry_after_s

    def count_error(self, status: int) -> None:
        """A request failed: HTTP's status, 0 without an answer, 200 when it could not be understood."""
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
        crowded_out = self._budget.crowded_out()
        if crowded_out is not None:
            self._refuse(crowded_out, self._crowded_error())
        admitted = self._waiting[turn] = asyncio.get_running_loop().create_future()
        self._pump()
        held = self._access.held_s(kind, now.monotonic_s) > 0.0
        patience_s = self._timings.read_patience_s
        try:
            if held:
                # Also by the loop's clock, and not for ever where a pause is prolonged again and again.
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
        """Let go who may go."""
        first = next(iter(self._waiting.values()), None)
        if first is not None and first.get_loop().is_closed():
            return  # the service was killed, and its coroutines are collected: nobody waits in the line any more
        now = self._now()
        for held in self._budget.held(self._access, HELD_PATIENCE_S, now):
            self._refuse(held, self._held_error(held.kind, now))
        while (turn := self._budget.next(now, self._access)) is not None:
            admitted = self._waiting.pop(turn)
            if admitted.done():  # cancelled, and does not know it yet
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
        # A quick exchange's time is not extrapolated at its speed: the speed may have changed, and asking the exchange
        # before it wants to be asked is worse than asking late.
        return Now(self._clock.least_ms(monotonic_s), monotonic_s)

    def _blocked_error(self, now: Now) -> UpstreamError:
        left_s = self._budget.blocked_s(now)
        return UpstreamError(f"{self._name} wants to be left alone for {left_s:.0f} s more", 429, left_s)

    def _held_error(self, kind: str, now: Now) -> UpstreamError:
        left_s = self._access.held_s(kind, now.monotonic_s)
        sentence = f"{self._name} is asked again in {left_s:.0f} s: {self._access.why}"
        return UpstreamError(sentence, self._access.status, left_s)

    def _crowded_error(self) -> UpstreamError:
        return UpstreamError(f"{self._name}: too many requests wait for their turn")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 12 else None

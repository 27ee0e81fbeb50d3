"""Turns: queues the requests to one venue. `TurnQueue` decides; a cancelled request releases its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import USUAL_TURNS, TurnTimings
from klinesync.exchanges.ccxt.turn_queue import Kind, Outcome, Turn, TurnQueue
from klinesync.exchanges.exchange import Errand, Urgency

# Longest time that a user's request stays in the queue, in seconds.
READ_PATIENCE_S = 10.0
# Longest interval, in seconds, of checks whether a pause has ended: the monotonic clock may be a test's.
POLL_S = 0.25


class Turns:
    """The turns of one venue.

    name: names the venue in errors.
    places: most requests in flight.
    monotonic: our clock, in seconds.
    timings: backoff and limits.
    """

    def __init__(
        self, name: str, places: int, monotonic: Callable[[], float], timings: TurnTimings = USUAL_TURNS
    ) -> None:
        self._name = name
        self._queue = TurnQueue(places, Pace(burst_s=timings.burst_s), timings)
        self._monotonic = monotonic
        self._granted: dict[Turn, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._failure: str | None = None

    @property
    def pace(self) -> Pace:
        """Paces a budget that ccxt counts wrong."""
        return self._queue.pace

    @property
    def refused_s(self) -> float:
        """Remaining seconds of the cooldown after a refusal; 0 without one."""
        return self._queue.refused_s(self._monotonic())

    def held_s(self, kind: Kind) -> float:
        """Seconds until a request of that kind may be sent; 0 when one may be sent now."""
        return self._queue.held_s(kind, self._monotonic())

    @property
    def waiting(self) -> int:
        """The number of queued requests."""
        return self._queue.waiting

    @property
    def waiting_by_urgency(self) -> dict[Urgency, int]:
        """The number of queued requests by urgency."""
        return self._queue.waiting_by_urgency

    @property
    def under_way(self) -> int:
        """The number of requests in flight."""
        return self._queue.under_way

    @asynccontextmanager
    async def turn(self, errand: Errand, kind: Kind, weight: float = 1.0) -> AsyncIterator[Turn]:
        """Wait until a request may be sent; it is sent within the context. A cancelled wait releases its place.

        errand: the purpose of the request, with its urgency.
        kind: its kind.
        weight: its share of a budget that the service paces itself.

        Raises `UpstreamError` when the request is not granted: at once in a cooldown or backoff that is longer than it
        waits, or with a full queue; a user's request also after `READ_PATIENCE_S`.
        """
        turn = self._queue.join(errand, kind, weight)
        granted = self._granted[turn] = asyncio.get_running_loop().create_future()
        try:
            self._pump()
            try:
                async with asyncio.timeout(READ_PATIENCE_S if errand.urgency is Urgency.READ else None):
                    await granted
            except TimeoutError:
                raise UpstreamError(f"{self._name}: no turn for a request within {READ_PATIENCE_S:g} s") from None
            yield turn
        finally:
            self._granted.pop(turn, None)
            self._queue.over(turn)
            self._pump()

    def ended(
        self, turn: Turn, outcome: Outcome, retry_after_s: float | None = None, *, failure: str | None = None
    ) -> None:
        """Record the outcome of a request, within its turn.

        turn: the request.
        outcome: how it ended.
        retry_after_s: the Retry-After of a refusal, in seconds; None without one.
        failure: the cause of a failure, as a sentence; the errors of requests that are held back for it quote it.
        """
        self._failure = failure
        self._queue.ended(turn, outcome, self._monotonic(), retry_after_s)

    def _pump(self) -> None:
        """Refuse requests that do not wait, grant those that may be sent, and run again when a pause ends."""
        now_s = self._monotonic()
        while (turn := self._queue.evict()) is not None:
            self._refuse(turn, UpstreamError(f"{self._name}: too many requests wait for their turn"))
        for turn in self._queue.drop_held(now_s):
            self._refuse(turn, self._held_error(turn.kind))
        while (turn := self._queue.next(now_s)) is not None:
            granted = self._granted[turn]
            if granted.done():  # cancelled, but its task has not run since
                self._queue.over(turn)
            else:
                granted.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakes_s = self._queue.wakes_s(now_s)
        if wakes_s is not None:
            self._timer = asyncio.get_running_loop().call_later(min(wakes_s, POLL_S), self._pump)

    def _refuse(self, turn: Turn, error: UpstreamError) -> None:
        granted = self._granted[turn]
        if not granted.done():
            granted.set_exception(error)

    def _held_error(self, kind: Kind) -> UpstreamError:
        if (left_s := self.refused_s) > 0.0:
            return UpstreamError(
                f"{self._name} is in cooldown for {left_s:.0f} s more, as it asked{self._why}", 429, left_s
            )
        left_s = self.held_s(kind)
        return UpstreamError(f"{self._name} is in trouble and is asked again in {left_s:.0f} s{self._why}", 0, left_s)

    @property
    def _why(self) -> str:
        return "" if self._failure is None else f": {self._failure}"

"""Turns: requests of one venue wait here for their turn. `TurnQueue` decides; nobody holds up anybody by leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from klinesync.core.errors import UpstreamError
from klinesync.exchanges.ccxt.pace import Pace
from klinesync.exchanges.ccxt.timings import USUAL_TURNS, TurnTimings
from klinesync.exchanges.ccxt.turn_queue import Kind, Outcome, Turn, TurnQueue
from klinesync.exchanges.exchange import Errand, Urgency

# How long a request that a user waits for waits for its turn, in seconds.
READ_PATIENCE_S = 10.0
# Pauses are looked at again after so long at most, in seconds: the monotonic clock may be a test's.
POLL_S = 0.25


class Turns:
    """The turns of one venue.

    name: how errors tell of the venue.
    places: requests under way at once.
    monotonic: our clock.
    timings: when requests go.
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
        """How a budget is spent that is paced here."""
        return self._queue.pace

    @property
    def refused_s(self) -> float:
        """For how long the venue wants no request, in seconds; 0 when it takes them."""
        return self._queue.refused_s(self._monotonic())

    def held_s(self, kind: Kind) -> float:
        """For how long no request of that kind goes, in seconds; 0 when one may."""
        return self._queue.held_s(kind, self._monotonic())

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._queue.waiting

    @property
    def waiting_by_urgency(self) -> dict[Urgency, int]:
        """How many requests wait for their turn, by urgency."""
        return self._queue.waiting_by_urgency

    @property
    def under_way(self) -> int:
        """Requests that were granted and are not over."""
        return self._queue.under_way

    @asynccontextmanager
    async def turn(self, errand: Errand, kind: Kind, weight: float = 1.0) -> AsyncIterator[Turn]:
        """A request may be sent within. Raises `UpstreamError` when the turn does not come: at once while the venue
        is left alone for longer than such a request waits, and to a user's request after `READ_PATIENCE_S`."""
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
        """How the request of that turn ended; to be told within the turn.

        retry_after_s: the pause that the venue asked for, in seconds.
        failure: what was in the way, as a sentence; the requests that are held back for it tell it.
        """
        self._failure = failure
        self._queue.ended(turn, outcome, self._monotonic(), retry_after_s)

    def _pump(self) -> None:
        """Refuse who does not wait, let go who may, and look again when a pause ends."""
        now_s = self._monotonic()
        while (turn := self._queue.crowded_out()) is not None:
            self._refuse(turn, UpstreamError(f"{self._name}: too many requests wait for their turn"))
        for turn in self._queue.impatient(now_s):
            self._refuse(turn, self._held_error(turn.kind))
        while (turn := self._queue.next(now_s)) is not None:
            granted = self._granted[turn]
            if granted.done():  # cancelled, and its task does not know yet
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

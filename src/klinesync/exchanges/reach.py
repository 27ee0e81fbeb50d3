"""ExchangeWatch: whether one market of an exchange is heard at all, by frames or by REST answers. Pure.

A quiet series brings no frames, and that alone proves nothing. So after some seconds without a frame the exchange is
asked for its time; only a market that gives neither frames nor answers is unreachable. All times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from klinesync.core.errors import WRONG_REQUEST
from klinesync.exchanges.access import REFUSALS
from klinesync.exchanges.contact import RestContact

# Between two looks of the watch, in seconds. After a longer pause (the host slept, the event loop was blocked) frames
# may still wait in the sockets, so the silence is counted anew.
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class SilenceTimings:
    """What silence of a market means, in monotonic seconds.

    ask_after_s: seconds without a frame or an answer after which the exchange is asked for its time.
    ask_every_s: shortest time between two such questions, while no answer comes.
    unreachable_after_s: seconds without a frame or an answer after which the market counts as unreachable.
    """

    ask_after_s: float = 3.0
    ask_every_s: float = 1.0
    unreachable_after_s: float = 5.0


USUAL_SILENCE = SilenceTimings()


class ExchangeWatch:
    """The watch over one market. `check` runs at each tick; `unreachable` and `silent_from_s` are its result.

    timings: what silence means.
    """

    __slots__ = (
        "_asked_s",
        "_checked_s",
        "_contact",
        "_counted_from_s",
        "_heard_s",
        "_timings",
        "frame_s",
        "unreachable",
    )

    def __init__(self, timings: SilenceTimings = USUAL_SILENCE) -> None:
        self._timings = timings
        self.frame_s: float | None = None  # set at each frame, whatever the frame says
        self.unreachable = False
        self._heard_s: float | None = None
        self._counted_from_s: float | None = None  # None while no series is followed
        self._checked_s = 0.0
        self._asked_s = float("-inf")
        self._contact = RestContact()

    @property
    def silent_from_s(self) -> float | None:
        """Since when nothing is heard, as of the newest `check`: the newest frame or answer, or when the first series
        was followed; None while nothing is followed."""
        if self._counted_from_s is None:
            return None
        return self._counted_from_s if self._heard_s is None else max(self._counted_from_s, self._heard_s)

    @property
    def refused(self) -> str | None:
        """A sentence, when the newest request was refused; None otherwise."""
        return self._contact.failure if self._contact.status in REFUSALS else None

    def check(self, now_s: float, contact: RestContact, *, followed: bool) -> bool:
        """Judge the silence. True when `unreachable` has changed.

        now_s: the present moment, monotonic seconds.
        contact: the newest contact with the market over REST.
        followed: whether any stream of the market is followed; a market of which nothing is followed is not watched.
        """
        before, self._contact = self.unreachable, contact
        heard = [at_s for at_s in (self.frame_s, contact.answered_s) if at_s is not None]
        self._heard_s = max(heard, default=None)
        paused = now_s - self._checked_s > LONGEST_PAUSE_S
        self._checked_s = now_s
        if not followed:
            self._counted_from_s, self.unreachable = None, False
            return before
        if self._counted_from_s is None or (paused and not before):
            self._counted_from_s = now_s
        silent_s = self._silent_s(now_s)
        # Once unreachable, a market is back only when something new is heard.
        self.unreachable = silent_s >= self._timings.unreachable_after_s
        return self.unreachable != before

    def ask_due(self, now_s: float) -> bool:
        """Whether to ask the exchange for its time now: nothing is heard, or the newest request was refused."""
        if self._counted_from_s is None or now_s - self._asked_s < self._timings.ask_every_s:
            return False
        asked_too_long_ago = self.refused is not None and now_s - self._asked_s >= self._timings.ask_after_s
        if self._silent_s(now_s) < self._timings.ask_after_s and not asked_too_long_ago:
            return False
        self._asked_s = now_s
        return True

    def answers(self, now_s: float) -> bool:
        """Whether the newest request was answered, not long ago."""
        at_s = self._contact.answered_s
        return self._contact.failure is None and at_s is not None and now_s - at_s < self._timings.unreachable_after_s

    def unanswered(self, now_s: float) -> bool:
        """Whether the newest request failed, other than as a wrong question, and none was answered for a while."""
        at_s, contact = self._contact.answered_s, self._contact
        failed = contact.failure is not None and contact.status != WRONG_REQUEST
        return failed and (at_s is None or now_s - at_s >= self._timings.unreachable_after_s)

    @property
    def failure(self) -> str | None:
        """Why the newest request failed; None when it was answered."""
        return self._contact.failure

    def _silent_s(self, now_s: float) -> float:
        from_s = self.silent_from_s
        assert from_s is not None, "it is followed"
        return now_s - from_s

"""Progress: the position of a follower in one series. Messages of the service in, updates for the follower out.
Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, TypeAlias

from klinesync.client.messages import (
    BatchMessage,
    CaughtUpMessage,
    ClosedMessage,
    FormingMessage,
    GapMessage,
    SubscribedMessage,
    SystemMessage,
)
from klinesync.client.updates import CaughtUp, ClosedCandle, Connected, FormingCandle, Gap, System, Update
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId

What: TypeAlias = Literal["closed", "forming", "corrections"]
EVERYTHING: tuple[What, ...] = ("closed", "forming", "corrections")

FollowMessage: TypeAlias = (
    SubscribedMessage | CaughtUpMessage | ClosedMessage | BatchMessage | FormingMessage | GapMessage | SystemMessage
)


class Progress:
    """One follower's progress through one series, over all of its connections.

    Delivered closed candles are strictly increasing and open after `since`; the exception is a correction of a candle
    after `since`, which is marked as revised. An older service sends corrections of
    candles before `since`, no `caught_up`, and forming candles to everybody; the rules hold for it too.

    series: the series
    since: open time in UTC seconds, exclusive; None: live only
    what: the kinds of candles to deliver; all of them by default
    full: whether candles have their order flow; False by default
    """

    __slots__ = ("_acknowledged", "_caught_up", "_delivered", "_floor", "_head", "full", "series", "what")

    def __init__(
        self, series: SeriesId, since: int | None, what: Collection[What] = EVERYTHING, *, full: bool = False
    ) -> None:
        self.series = series
        self.what = frozenset(what)
        self.full = full
        self._floor = since  # candles up to this open time are never delivered
        self._delivered: int | None = None  # the newest delivered open time
        self._head: int | None = None  # the newest stored open time when this connection subscribed
        self._acknowledged = False  # of this connection, as is the next
        self._caught_up = False

    @property
    def resume(self) -> int | None:
        """The `since` of the next subscription."""
        return self._floor if self._delivered is None else self._delivered

    def subscription(self) -> dict[str, object]:
        """The message that subscribes from the current position."""
        self._acknowledged = self._caught_up = False
        message: dict[str, object] = {
            "type": "subscribe",
            "series_id": str(self.series),
            "since": self.resume,
            "supports_batch": True,
            "ack": True,
        }
        if self.what != set(EVERYTHING):
            message["what"] = [kind for kind in EVERYTHING if kind in self.what]
        if self.full:
            message["fields"] = "full"
        return message

    def ahead(self, message: SubscribedMessage) -> bool:
        """Whether `since` is after the service's newest candle. Such a `since` counts as the head; the caller
        subscribes again, because an older service does not know this rule."""
        head = message.head_time
        if head is None or self._floor is None or self._delivered is not None or self._floor <= head:
            return False
        self._floor = head
        return True

    def take(self, message: FollowMessage) -> list[Update]:
        """The updates of a message. Messages before the acknowledgement belong to an earlier subscription, and have
        none."""
        series = self.series
        if not self._acknowledged and not isinstance(message, SubscribedMessage):
            return []
        match message:
            case SubscribedMessage(head_time=head, stream=stream):
                if self._floor is None:
                    # Live only: after a disconnect the follower resumes where live began.
                    self._floor = head
                self._head, self._acknowledged = head, True
                resume = self.resume
                nothing_stored = head is None or resume is None or resume >= head
                return [Connected(head, stream, series=series), *(self._seam(head) if nothing_stored else [])]
            case CaughtUpMessage(head_time=head):
                return self._seam(head)
            case ClosedMessage(candle=item, revised=revised):
                return self.closed([item.candle()], revised=revised)
            case BatchMessage(candles=items, revised=revised):
                return self.closed([item.candle() for item in items], revised=revised)
            case FormingMessage(candle=item):
                candle = item.candle()
                return [FormingCandle(candle, series=series)] if "forming" in self.what and self._next(candle) else []
            case GapMessage(expected_next_time=expected, actual_time=actual, state=state):
                return self.gap(expected, actual, state)
            case SystemMessage(event=event, message=text, data=data):
                return [System(event, text, data, series=series)]

    def closed(self, candles: Sequence[Candle], *, revised: bool = False) -> list[Update]:
        """The updates of closed candles, of one message or one page; ascending."""
        return list(self._revised(candles) if revised else self._newer(candles))

    def gap(self, expected: int, actual: int, state: str) -> list[Update]:
        """The update of a hole before the candle at `actual`; none when the follower is past the hole."""
        resume = self.resume
        if resume is not None and actual <= resume:
            return []
        return [Gap(expected, actual, state, series=self.series)]

    def _newer(self, candles: Sequence[Candle]) -> Iterator[Update]:
        for candle in candles:
            if not self._next(candle):
                continue
            if self._floor is None:
                self._floor = candle.time - 1  # live began here
            self._delivered = candle.time
            if "closed" in self.what:
                yield ClosedCandle(candle, series=self.series)
            if self._head is None or candle.time >= self._head:
                yield from self._seam(self._head)

    def _revised(self, candles: Sequence[Candle]) -> Iterator[Update]:
        for candle in candles:
            if self._floor is not None and candle.time > self._floor and "corrections" in self.what:
                yield ClosedCandle(candle, revised=True, series=self.series)

    def _next(self, candle: Candle) -> bool:
        resume = self.resume
        return resume is None or candle.time > resume

    def _seam(self, head: int | None) -> list[Update]:
        if self._caught_up:
            return []
        self._caught_up = True
        return [CaughtUp(head, series=self.series)]

"""Subscription: what one client gets of one series. A splice of store catch-up and live; values in, messages out."""

from __future__ import annotations

from collections.abc import Sequence

from klinesync.core.candle import Applied, Candle
from klinesync.core.gaps import Gap, GapState, Span, without
from klinesync.core.series_id import SeriesId
from klinesync.core.splice import Jump, Splice
from klinesync.ws import protocol

# Candles that one catch-up sends at most; older ones are paged over HTTP.
CATCH_UP_MAX_CANDLES = 2000


class Announcement:
    """Closed candles of one series that were committed together, those that followers are told of: one at least.
    Encoded when first needed, then shared by all."""

    __slots__ = ("_all", "_batch", "_closed", "before", "candles", "commit", "gaps", "newest", "revised", "series")

    def __init__(self, applied: Applied) -> None:
        self.series = applied.series
        self.candles = candles = applied.told
        self.revised = applied.revised
        self.gaps = applied.gaps
        self.commit = applied.commit
        self.newest = candles[-1].time
        frame = self.series.timeframe
        # Whoever has the candle at this time gets all of them, and they are all that is to be said. None: it depends.
        self.before: int | None = None
        if not applied.revised and all(
            frame.next(candles[at].time) == candles[at + 1].time for at in range(len(candles) - 1)
        ):
            self.before = frame.shift(candles[0].time, -1)
        self._closed: dict[int, bytes] = {}
        self._all: list[bytes] | None = None
        self._batch: list[bytes] | None = None

    def closed(self, candle: Candle) -> bytes:
        """`candle_closed` of one of the candles."""
        frame = self._closed.get(candle.time)
        if frame is None:
            frame = self._closed[candle.time] = protocol.candle_closed(
                self.series, candle, revised=candle.time in self.revised
            )
        return frame

    def messages(self, *, batch: bool) -> list[bytes]:
        """All of them, as a `candles_batch` where there are several and `batch` is wanted. To be read only: shared."""
        if batch and len(self.candles) > 1:
            if self._batch is None:
                self._batch = [protocol.candles_batch(self.series, self.candles)]
            return self._batch
        if self._all is None:
            self._all = [self.closed(candle) for candle in self.candles]
        return self._all


class Subscription:
    """One client's stream of one series: attached, then caught up from the store, then live.

    Strictly increasing in open time, each closed candle once, every jump declared; the exception is a revision,
    which is marked as one.
    """

    __slots__ = ("_commit", "_held_gaps", "_revised", "_since", "_splice", "series", "supports_batch")

    def __init__(self, series: SeriesId, since: int | None, *, supports_batch: bool) -> None:
        self.series = series
        self.supports_batch = supports_batch
        self._since = since
        self._splice: Splice[Candle] = Splice(series.timeframe, after=since)
        self._splice.hold()
        self._commit = -1
        self._revised: dict[int, tuple[Candle, int]] = {}
        self._held_gaps: list[Gap] = []

    @property
    def since(self) -> int | None:
        """The newest closed open time that the client has, or said that it has."""
        return self._splice.after

    def caught_up(
        self, rows: Sequence[Candle], first: int | None, newer: int, commit: int, gaps: Sequence[Gap] = ()
    ) -> list[bytes]:
        """The catch-up and all that was held: what the client gets now, before anything live.

        `rows`: the newest stored candles after `since`, ascending, at most `CATCH_UP_MAX_CANDLES`; `newer`: how many
        are stored after `since` in all; `first`: the oldest stored open time; `gaps`: what the ledger says of the holes
        among the rows; `commit`: the newest transaction that is in them. All of one state of the store. Without `since`
        there are no rows.
        """
        frame, since = self.series.timeframe, self._since
        messages: list[bytes] = []
        if since is not None and first is not None:
            # A since before the first stored candle counts as the time just before that one.
            last = max(frame.floor(since), frame.shift(first, -1))
            if newer > len(rows):
                jump = Jump(frame.next(last), rows[0].time)
                messages.append(protocol.gap(self.series, jump, reason="truncated"))
                last = frame.shift(rows[0].time, -1)
            # What is held from before the newest rows is truncated too.
            self._splice.last = self._splice.after = last
        # A held candle that is among the rows is there as it is now; it may have been revised since it was held.
        through = [*self._splice.history(rows), *self._splice.release()]
        messages += self._messages(through, (*gaps, *self._held_gaps))
        # Revisions that were published while the store was read: of what the client has, as the read did not see it.
        if since is not None:
            self._commit = commit
        shown = {item.time: item for item in through if isinstance(item, Candle)}
        revised, self._revised = self._revised, {}
        messages += [
            protocol.candle_closed(self.series, candle, revised=True)
            for time, (candle, number) in sorted(revised.items())
            if self._has(time, number) and shown.get(time) != candle
        ]
        return messages

    @property
    def holding(self) -> bool:
        """Whether the catch-up is still being read: nothing goes out before it."""
        return self._splice.holding

    def announce(self, announcement: Announcement) -> list[bytes]:
        """What of newly committed candles the client gets now."""
        splice = self._splice
        if splice.last is not None and splice.last == announcement.before and not splice.holding:
            # The usual case: all of them are next, in order, and everybody gets the same bytes.
            splice.last = splice.after = announcement.newest
            return announcement.messages(batch=self.supports_batch)
        if splice.holding:
            self._held_gaps += announcement.gaps
        through: list[Candle | Jump] = []
        revisions: list[bytes] = []
        for candle in announcement.candles:
            if candle.time not in announcement.revised:
                through += splice.live(candle)
            elif splice.holding:
                # The catch-up may have it with these values already, or not.
                self._revised[candle.time] = (candle, announcement.commit)
            elif self._has(candle.time, announcement.commit):
                # After what was sent it cannot lie: a revision lies behind the head, and the head was sent.
                revisions.append(announcement.closed(candle))
        return revisions + self._messages(through, announcement.gaps)

    def _has(self, time: int, commit: int) -> bool:
        """Whether the client has the candle at `time` in a version from before the transaction `commit`: it had it when
        it came, or got it from before."""
        if self._since is not None and time <= self._since:
            return True
        after = self._splice.after
        return after is not None and time <= after and commit > self._commit

    def wants_forming(self, candle: Candle) -> bool:
        """Whether a forming candle is newer than all that is closed, and the catch-up is out."""
        if self._splice.holding:
            return False
        return self._splice.after is None or candle.time > self._splice.after

    def _messages(self, through: Sequence[Candle | Jump], gaps: Sequence[Gap]) -> list[bytes]:
        candles = [item for item in through if isinstance(item, Candle)]
        if self.supports_batch and len(candles) > 1:
            jumps = [self._gap(item, gaps) for item in through if isinstance(item, Jump)]
            return [*jumps, protocol.candles_batch(self.series, candles)]
        return [
            protocol.candle_closed(self.series, item) if isinstance(item, Candle) else self._gap(item, gaps)
            for item in through
        ]

    def _gap(self, jump: Jump, gaps: Sequence[Gap]) -> bytes:
        """A jump, with what is known of it: confirmed empty only when all of it is."""
        hole = [Span(jump.expected, jump.actual)]
        states = [
            state
            for state in (GapState.CONFIRMED_EMPTY, GapState.HEALING)
            if not without(hole, sorted({gap.span for gap in gaps if gap.state in (state, GapState.CONFIRMED_EMPTY)}))
        ]
        return protocol.gap(self.series, jump, state=states[0] if states else GapState.UNKNOWN)

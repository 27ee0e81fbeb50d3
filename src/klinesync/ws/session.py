"""Subscription: the messages of one series for one client, a splice of catch-up and live. Values in, messages out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from klinesync.core.candle import Applied, Candle, agree
from klinesync.core.gaps import Gap, GapState
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, clipped, without
from klinesync.core.splice import Jump, Splice
from klinesync.ws import protocol

# Most candles of one catch-up; older ones are paged over HTTP.
CATCH_UP_MAX_CANDLES = 2000


class Announcement:
    """The closed candles of one series in one commit, to be published. Messages are encoded when first needed, and
    shared by all subscribers of one kind.

    applied: the commit, with at least one candle that is told.
    full: the kind of its subscribers: whether candles have their order flow; False by default.
    """

    __slots__ = (
        "_all", "_batch", "_closed", "_extended", "_full", "_revised_batch", "before", "candles", "commit", "gaps",
        "newest", "revised", "series",
    )  # fmt: skip

    def __init__(self, applied: Applied, *, full: bool = False) -> None:
        self._full = full
        self.series = applied.series
        self.candles = candles = applied.told
        self.revised = applied.revised
        self.gaps = applied.gaps
        self.commit = applied.commit
        self.newest = candles[-1].time
        if applied.flow_revised and not full:
            self.candles = candles = tuple(candle for candle in candles if candle.time not in applied.flow_revised)
            self.revised = applied.revised - applied.flow_revised
        frame = self.series.timeframe
        # Subscribers whose newest candle opens at this time receive the whole batch, and nothing else. None: the
        # messages are decided for each subscriber.
        self.before: int | None = None
        if (
            candles
            and not self.revised
            and all(frame.next(candles[at].time) == candles[at + 1].time for at in range(len(candles) - 1))
        ):
            self.before = frame.shift(candles[0].time, -1)
        self._closed: dict[int, bytes] = {}
        self._all: list[bytes] | None = None
        self._batch: list[bytes] | None = None
        self._revised_batch: list[bytes] | None = None
        self._extended: dict[int, bytes] = {}

    def closed(self, candle: Candle) -> bytes:
        """`candle_closed` of one of the candles."""
        frame = self._closed.get(candle.time)
        if frame is None:
            frame = self._closed[candle.time] = protocol.candle_closed(
                self.series, candle, revised=candle.time in self.revised, full=self._full
            )
        return frame

    def revisions(self, candles: Sequence[Candle], *, batch: bool) -> list[bytes]:
        """The messages of revised candles: with `batch`, several come as one `candles_batch`. Read-only, because
        subscribers that get all revised candles share the list."""
        if not batch or len(candles) < 2:
            return [self.closed(candle) for candle in candles]
        if len(candles) < len(self.revised):
            return [protocol.candles_batch(self.series, candles, revised=True, full=self._full)]
        if self._revised_batch is None:
            self._revised_batch = [protocol.candles_batch(self.series, candles, revised=True, full=self._full)]
        return self._revised_batch

    def extended(self, first_time: int) -> bytes:
        """The `history.extended` event: older history, from `first_time` on, has arrived."""
        frame = self._extended.get(first_time)
        if frame is None:
            frame = self._extended[first_time] = history_extended(self.series, first_time)
        return frame

    def messages(self, *, batch: bool) -> list[bytes]:
        """The messages of all candles: with `batch`, several come as one `candles_batch`. Read-only, because the list
        is shared."""
        if batch and len(self.candles) > 1:
            if self._batch is None:
                self._batch = [protocol.candles_batch(self.series, self.candles, full=self._full)]
            return self._batch
        if self._all is None:
            self._all = [self.closed(candle) for candle in self.candles]
        return self._all


def history_extended(series: SeriesId, first_time: int) -> bytes:
    """The `history.extended` event: older history has arrived, to be paged over HTTP; `first_time`: the new first open
    time of the series."""
    begins = datetime.fromtimestamp(first_time, UTC).strftime("%Y-%m-%d %H:%M")
    message = f"older history is stored now, from {begins} UTC on; page it over HTTP"
    return protocol.system(series, "history.extended", message, {"first_time": first_time})


class Subscription:
    """One client's stream of one series: attached, then caught up from the store, then live.

    Strictly increasing in open time, each closed candle once, every jump declared; the exception is a revision,
    which is marked as one. Candles before the first candle that was stored when the subscription attached are never
    sent; the client gets `history.extended` for them.

    series: the series.
    since: the newest closed open time that the client has; None: live only.
    supports_batch: whether several closed candles may come as one message.
    what: the kinds of candles to send, of `protocol.WHAT`; all by default.
    full: whether candles have their order flow; False by default.
    """

    __slots__ = (
        "_closed", "_commit", "_corrections", "_extended_to", "_first", "_forming", "_held_gaps", "_newest",
        "_revised", "_since", "_splice", "full", "series", "supports_batch",
    )  # fmt: skip

    def __init__(
        self,
        series: SeriesId,
        since: int | None,
        *,
        supports_batch: bool,
        what: frozenset[str] = protocol.WHAT,
        full: bool = False,
    ) -> None:
        self._closed = "closed" in what
        self._forming = "forming" in what
        self._corrections = "corrections" in what
        self._first: int | None = None  # candles that open before are never sent
        self._extended_to: int | None = None
        self._newest: int | None = None
        self.series = series
        self.supports_batch = supports_batch
        self.full = full
        self._since = since
        self._splice: Splice[Candle] = Splice(series.timeframe, after=since)
        self._splice.hold()
        self._commit = -1
        self._revised: dict[int, tuple[Candle, int]] = {}
        self._held_gaps: list[Gap] = []

    @property
    def newest(self) -> int | None:
        """Open time of the newest closed candle that was sent; None before the first."""
        return self._newest

    @property
    def since(self) -> int | None:
        """The newest closed open time that the client was sent, or named in its request."""
        return self._splice.after

    def caught_up(
        self, rows: Sequence[Candle], first: int | None, newer: int, commit: int, gaps: Sequence[Gap] = ()
    ) -> list[bytes]:
        """The messages of the catch-up and of the held candles, which are sent before live ones. All arguments are of
        one snapshot of the store.

        rows: the newest stored candles after `since`, ascending, at most `CATCH_UP_MAX_CANDLES`; empty without `since`.
        first: the oldest stored open time; None when nothing is stored.
        newer: count of all stored candles after `since`.
        commit: number of the newest transaction in the snapshot.
        gaps: rows of the gap ledger for the holes among the rows.
        """
        frame, since = self.series.timeframe, self._since
        messages: list[bytes] = []
        self._first = first
        if since is not None and first is not None:
            # A `since` before the first stored candle counts as the time just before that candle.
            last = max(frame.floor(since), frame.shift(first, -1))
            if newer > len(rows):
                jump = Jump(frame.next(last), rows[0].time)
                if self._closed:
                    messages.append(protocol.gap(self.series, jump, reason="truncated"))
                last = frame.shift(rows[0].time, -1)
            # Held candles before these rows are truncated too.
            self._splice.last = self._splice.after = last
        # The row of a held candle has the current values; the candle may have been revised while held.
        through = [*self._splice.history(rows), *self._splice.release()]
        for time, (candle, _) in sorted(self._revised.items()):
            if self._was_left_out(time):
                through += self._splice.live(candle)
        messages += self._messages(through, (*gaps, *self._held_gaps))
        # Revisions that were published while the store was read, of candles of which the client has older values.
        if since is not None:
            self._commit = commit
        shown = {item.time: item for item in through if isinstance(item, Candle)}
        revised, self._revised = self._revised, {}
        lowest = min(revised, default=None)
        if lowest is not None and self._is_older(lowest):
            messages.append(history_extended(self.series, self._extend(lowest)))
        corrected = [
            candle
            for time, (candle, number) in sorted(revised.items())
            if not self._is_older(time) and self._has(time, number) and not self._is_same(shown.get(time), candle)
        ]
        if not self._corrections:
            return messages
        if self.supports_batch and len(corrected) > 1:
            return [*messages, protocol.candles_batch(self.series, corrected, revised=True, full=self.full)]
        return messages + [
            protocol.candle_closed(self.series, candle, revised=True, full=self.full) for candle in corrected
        ]

    @property
    def holding(self) -> bool:
        """Whether the catch-up is still being read; until then nothing is sent."""
        return self._splice.holding

    def announce(self, announcement: Announcement) -> list[bytes]:
        """The messages of newly committed candles for this client; `announcement` is that of its kind."""
        splice = self._splice
        if splice.last is not None and splice.last == announcement.before and not splice.holding:
            # The usual case: the whole batch follows the client's newest candle, and all clients get the same bytes.
            splice.last = splice.after = self._newest = announcement.newest
            return announcement.messages(batch=self.supports_batch) if self._closed else []
        if splice.holding:
            self._held_gaps += announcement.gaps
        through: list[Candle | Jump] = []
        corrected: list[Candle] = []
        extended: list[bytes] = []
        for candle in announcement.candles:
            if self._is_older(candle.time):
                if not extended:  # the oldest of them
                    extended.append(announcement.extended(self._extend(candle.time)))
            elif candle.time not in announcement.revised:
                through += splice.live(candle)
            elif splice.holding:
                # `caught_up` will know whether the catch-up has these values already.
                self._revised[candle.time] = (candle, announcement.commit)
            elif self._was_left_out(candle.time):
                through += splice.live(candle)
            elif self._has(candle.time, announcement.commit):
                # A revision is behind the head, and the head was sent.
                corrected.append(candle)
        revisions = announcement.revisions(corrected, batch=self.supports_batch) if self._corrections else []
        return [*extended, *revisions, *self._messages(through, announcement.gaps)]

    def _is_same(self, shown: Candle | None, candle: Candle) -> bool:
        """Whether the client has all values of a candle already, having been sent `shown`."""
        return shown is not None and (agree(shown, candle) if self.full else shown.ohlcv == candle.ohlcv)

    def _is_older(self, time: int) -> bool:
        """Whether a candle opens before the first candle that was stored when the subscription attached."""
        return self._first is not None and time < self._first

    def _extend(self, time: int) -> int:
        """The first open time of the series, now that a candle at `time` has arrived."""
        self._extended_to = time if self._extended_to is None else min(time, self._extended_to)
        return self._extended_to

    def _has(self, time: int, commit: int) -> bool:
        """Whether the client has values of the candle at `time` from before the transaction `commit`: from before the
        subscription, or from an earlier commit."""
        if self._since is not None and time <= self._since:
            return True
        after = self._splice.after
        return after is not None and time <= after and commit > self._commit

    def _was_left_out(self, time: int) -> bool:
        """Whether a revised candle is newer than all that the client was sent: the catch-up lacked the candle, which
        was damaged."""
        after = self._splice.after
        return self._since is not None and after is not None and time > after

    def wants_forming(self, candle: Candle) -> bool:
        """Whether a forming candle is newer than all closed ones, and the catch-up has been sent."""
        if self._splice.holding or not self._forming:
            return False
        return self._splice.after is None or candle.time > self._splice.after

    def _messages(self, through: Sequence[Candle | Jump], gaps: Sequence[Gap]) -> list[bytes]:
        candles = [item for item in through if isinstance(item, Candle)]
        if candles:
            self._newest = candles[-1].time
            if self._first is None:
                self._first = candles[0].time
        if not self._closed:
            return []
        if self.supports_batch and len(candles) > 1:
            jumps = [self._gap(item, gaps) for item in through if isinstance(item, Jump)]
            return [*jumps, protocol.candles_batch(self.series, candles, full=self.full)]
        return [
            protocol.candle_closed(self.series, item, full=self.full)
            if isinstance(item, Candle)
            else self._gap(item, gaps)
            for item in through
        ]

    def _gap(self, jump: Jump, gaps: Sequence[Gap]) -> bytes:
        """The `gap` message of a jump, with its state: confirmed empty when the whole jump is, lost when a part of the
        jump is."""
        hole = [Span(jump.expected, jump.actual)]
        if any(clipped([gap.span], hole[0]) for gap in gaps if gap.state is GapState.LOST):
            return protocol.gap(self.series, jump, state=GapState.LOST)
        states = [
            state
            for state in (GapState.CONFIRMED_EMPTY, GapState.HEALING)
            if not without(hole, sorted({gap.span for gap in gaps if gap.state in (state, GapState.CONFIRMED_EMPTY)}))
        ]
        return protocol.gap(self.series, jump, state=states[0] if states else GapState.UNKNOWN)

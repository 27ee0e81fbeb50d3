"""IngestFeed: decides about the candles of one followed series. Pure: events in, commands out.

The feed is the splice at the edge exchange -> us. When the stream is attached, live candles are held and history is
requested (`Fetch`). A live candle that does not directly follow its predecessor is held, and the hole is requested over
REST, a bounded number of times and a bounded time. A hole between rows of one answer is the exchange's own, and is
passed at once. A hole that is passed without this proof is declared, and left to the healing of gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, without
from klinesync.core.splice import Jump, Splice
from klinesync.exchanges.exchange import HistoryPage, Urgency

# Requests for a hole that answers neither fill nor prove empty, before the hole is passed.
MAX_HOLE_FETCHES = 5
# Backoff of REST requests: after a failure, or after an answer that neither filled a hole nor proved it empty.
ASK_AGAIN = Backoff(initial_s=0.5, most_s=30.0)
# Longest time, in seconds, that closed live candles are held for the history before them; then the hole is declared.
HOLD_MOST_S = 60.0
# Closed candles whose stamps are remembered.
MAX_STAMPS = 500


class Fetch(Struct, frozen=True):
    """Request history after `delay_s`: from the stored open time `start` on, so that a hole behind it lies within one
    answer; None: a first history."""

    start: int | None
    delay_s: float = 0.0
    urgency: Urgency = Urgency.REPAIR


class Hurry(Struct, frozen=True):
    """Raise the urgency of the `Fetch` in flight."""

    urgency: Urgency


class Persist(Struct, frozen=True):
    """Write these closed candles, ascending.

    jumps: holes before or between the candles.
    empty: spans without candles at the exchange.
    proof: how the exchange has shown that.
    """

    candles: tuple[Candle, ...]
    jumps: tuple[Jump, ...] = ()
    empty: tuple[Span, ...] = ()
    proof: str = ""

    def unproven(self) -> list[Span]:
        """The jumps that are not proven empty: holes."""
        return without([Span(jump.expected, jump.actual) for jump in self.jumps], self.empty)


class Show(Struct, frozen=True):
    """Broadcast this forming candle."""

    candle: Candle


class ShowLater(Struct, frozen=True):
    """Call `due` at that monotonic time: a forming candle waits for the shortest interval."""

    at_s: float


Command = Fetch | Hurry | Persist | Show | ShowLater


class IngestFeed:
    """One followed series. `head` is the newest stored open time when following begins."""

    def __init__(self, series: SeriesId, head: int | None, *, forming_interval_s: float) -> None:
        self.series = series
        self.timeframe = series.timeframe
        self._splice: Splice[Candle] = Splice(series.timeframe, last=head)
        self._splice.hold()
        self._fetching = self._stalled = False
        self._urgency = Urgency.SWEEP  # of what is fetched
        # What the stream had told of the page that was let through, while that may wait for its commit.
        self._page: tuple[Candle, ...] | None = None
        self._caught_up = False
        self._held_since_s: float | None = None
        self._hole_fetches = 0
        self._hole_after: int | None = None
        self._stamps: dict[int, int] = {}
        self._values: dict[int, Candle] = {}  # of the frames with these stamps
        self._late: dict[int, Candle] = {}  # late ones, for when no page is under way any more
        self._failures = 0
        self._forming_interval_s = forming_interval_s
        self._shown_at_s = float("-inf")
        self._pending: Candle | None = None

    @property
    def head(self) -> int | None:
        """The newest closed open time that has passed."""
        return self._splice.last

    @property
    def fetching(self) -> bool:
        """Whether a `Fetch` is in flight."""
        return self._fetching

    @property
    def caught_up(self) -> bool:
        """Whether history has been read up to now at least once."""
        return self._caught_up

    @property
    def holding(self) -> bool:
        """Whether closed live candles are held."""
        return self._splice.holding

    def untold_since(self, candles: Sequence[Candle], since_ms: int) -> list[Candle]:
        """The candles without those whose final values the stream has sent at or after that time of the exchange."""
        return [candle for candle in candles if self._stamps.get(candle.time, -1) < since_ms]

    def attached(self) -> list[Command]:
        """The stream is subscribed (again): hold live candles, and read the missed ones."""
        self._splice.hold()
        self._hole_fetches = 0
        return self._fetch(0.0)

    def overdue(self, urgency: Urgency) -> list[Command]:
        """The stream does not bring an expected candle: request it over REST, and let live candles pass meanwhile."""
        return [] if self._fetching else self._fetch(0.0, urgency)

    def abandoned(self) -> None:
        """The `Fetch` in flight will not be answered, and no other one is made until `attached`."""
        self._fetching = False
        self._page = None

    def tick(self, now_s: float) -> list[Command]:
        """Time has passed (monotonic seconds): live candles that were held for too long pass, and the holes before them
        are declared."""
        if self._stalled or not self._splice.waiting:
            self._held_since_s = None
            return []
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s < HOLD_MOST_S or self._page is not None:
            return []
        self._held_since_s = None
        return self._persist(self._splice.release())

    def stalled(self, unwritten: Sequence[Candle] = ()) -> None:
        """A write failed or found no room: no candle passes, and nothing is requested, until `restarted`.

        The `unwritten` candles, and the stream's candles within an unwritten page, are kept until then: REST may be
        unreachable, and does not have the late candles and revisions among them.
        """
        self._splice.hold()
        self._stalled = True
        for candle in (*(self._page or ()), *unwritten):
            self._keep_late(candle, newer=False)
        self._page = None

    def restarted(self, head: int | None) -> list[Command]:
        """Candles that had passed were not stored: begin again from the stored head. An earlier `Fetch` is void."""
        self._fetching = self._stalled = False
        self._page = None
        held = self._splice.held()
        self._splice = Splice(self.timeframe, last=head)
        self._splice.hold()
        for candle in held:
            self._splice.live(candle)
        late, self._late = self._late, {}
        behind: list[Command] = []
        for time in sorted(late):
            if head is not None and time <= head:
                behind.append(Persist((late[time],)))
            else:
                self._splice.live(late[time])  # it is not late any more
        return [*behind, *self._fetch(0.0)]

    def closed(self, candle: Candle, event_ms: int) -> list[Command]:
        """A live candle that the exchange calls final, in a frame with the stamp `event_ms`.

        A candle at or before the last one that passed is written too: it is late, a revision, or the same again, and
        the write finds out. Of several frames about one candle the one with the latest stamp counts; a frame with other
        values and the same stamp passes, and the write has REST decide between both.
        """
        stamp_ms = self._stamps.get(candle.time, -1)
        if event_ms < stamp_ms or (event_ms == stamp_ms and candle == self._values.get(candle.time)):
            return []
        self._stamps[candle.time] = event_ms
        self._values[candle.time] = candle
        if len(self._stamps) > MAX_STAMPS:
            oldest = min(self._stamps)
            del self._stamps[oldest], self._values[oldest]
        if self._pending is not None and self._pending.time <= candle.time:
            self._pending = None
        splice = self._splice
        if splice.last is not None and candle.time <= splice.last:
            if self._stalled or self._page is not None:
                # A page may still wait for its commit: no live candle overtakes it.
                self._keep_late(candle, newer=True)
                return []
            return [Persist((candle,))]
        if not splice.holding and not splice.follows(candle):
            splice.hold()
            splice.live(candle)
            return self._fetch(0.0)
        return self._persist(splice.live(candle))

    def forming(self, candle: Candle, now_s: float) -> list[Command]:
        """A live forming candle. The shortest interval is kept; of several waiting candles the latest wins."""
        last = self._splice.last
        if last is not None and candle.time <= last:
            return []
        due_s = self._shown_at_s + self._forming_interval_s
        if now_s >= due_s:
            self._shown_at_s = now_s
            self._pending = None
            return [Show(candle)]
        waiting = self._pending is not None
        self._pending = candle
        return [] if waiting else [ShowLater(due_s)]

    def due(self, now_s: float) -> list[Command]:
        """The time of `ShowLater` has come."""
        candle, self._pending = self._pending, None
        last = self._splice.last
        if candle is None or (last is not None and candle.time <= last):
            return []
        self._shown_at_s = now_s
        return [Show(candle)]

    def history(self, page: HistoryPage) -> list[Command]:
        """A page of closed history, read from `Fetch.start` on."""
        self._page = tuple(candle for candle in page.candles if candle.time in self._stamps)
        self._splice.hold()  # the page may wait for its commit: live that follows it must not overtake it
        return self._persist(self._splice.history(page.candles), page.empty, page.proof)

    def page_written(self) -> list[Command]:
        """The candles of the page are stored. The next page may take long: live candles wait no longer than for any
        history."""
        if self._stalled:
            return []
        self._page = None
        return self._write_late()

    def history_ended(self) -> list[Command]:
        """The last page has arrived: live candles pass up to the first hole, which is requested again.

        A hole with too many fruitless requests is passed, and the next one requested.
        """
        self._fetching = False
        self._page = None
        self._failures = 0
        self._caught_up = True
        splice = self._splice
        before = splice.last
        through = splice.release_run()
        if splice.last != before or before != self._hole_after:
            self._hole_fetches = 0
            self._hole_after = splice.last
        if splice.holding and self._hole_fetches >= MAX_HOLE_FETCHES:
            self._hole_fetches = 0
            through += splice.release_run(past_hole=True)
        commands = self._write_late()
        commands += self._persist(through)
        if splice.holding:
            commands += self._fetch(ASK_AGAIN.delay_s(self._hole_fetches))
            self._hole_fetches += 1
        return commands

    def answers_again(self) -> None:
        """The exchange answers again after a while: the backoff of failed requests begins anew."""
        self._failures = 0

    def history_failed(self) -> list[Command]:
        """History could not be read: request it again. Live candles behind a hole stay held meanwhile, up to their
        limit.

        The exchange's Retry-After is kept by the queue of its requests.
        """
        self._fetching = False
        self._page = None
        delay_s = ASK_AGAIN.delay_s(self._failures)
        self._failures += 1
        commands = self._write_late()
        if self._splice.last is not None:
            commands += self._persist(self._splice.release_run())
        return commands + self._fetch(delay_s, self._urgency)

    def _write_late(self) -> list[Command]:
        late, self._late = self._late, {}
        return [Persist((late[time],)) for time in sorted(late)]

    def _keep_late(self, candle: Candle, *, newer: bool) -> None:
        if newer or candle.time not in self._late:
            self._late[candle.time] = candle
        if len(self._late) > MAX_STAMPS:
            del self._late[min(self._late)]

    def _fetch(self, delay_s: float, urgency: Urgency | None = None) -> list[Command]:
        if self._stalled:
            return []
        if urgency is None:
            urgency = Urgency.REPAIR if self._caught_up else Urgency.SWEEP
        if self._fetching:
            if urgency >= self._urgency:
                return []
            self._urgency = urgency
            return [Hurry(urgency)]
        self._fetching = True
        self._urgency = urgency
        return [Fetch(self._splice.last, delay_s, urgency)]

    def _persist(self, through: Sequence[Candle | Jump], empty: Sequence[Span] = (), proof: str = "") -> list[Command]:
        candles = tuple(item for item in through if isinstance(item, Candle))
        if not candles and not empty:
            return []
        jumps = tuple(item for item in through if isinstance(item, Jump))
        return [Persist(candles, jumps, tuple(empty), proof if empty else "")]

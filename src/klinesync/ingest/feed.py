"""IngestFeed: what one followed series does with what the exchange says. Values in, commands out.

The feed is the splice at the edge exchange -> us. Attached: live is held and history asked (`Fetch`). Live that does
not follow its predecessor: held, and the hole is asked from REST, a bounded number of times and a bounded time; a hole
that an answer of the exchange shows between its own rows is the exchange's, and is passed at once. One that is passed
without such a proof is declared, and left to the healing of gaps.
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

# How often REST is asked for a hole that its answers neither fill nor show, before the hole is passed.
MAX_HOLE_FETCHES = 5
# Before REST is asked again: after it failed, or after its answer neither filled nor showed a hole.
ASK_AGAIN = Backoff(initial_s=0.5, most_s=30.0)
# How long closed live candles are held for the history before them; then the hole is declared, and they go on.
HOLD_MOST_S = 60.0
# Closed candles of which it is remembered when the exchange sent them.
MAX_STAMPS = 500


class Fetch(Struct, frozen=True):
    """Ask for history after `delay_s`: from the open time `start` on, which is stored, so that a hole behind it lies
    within one answer; None: as much as a first history takes."""

    start: int | None
    delay_s: float = 0.0
    urgency: Urgency = Urgency.REPAIR


class Hurry(Struct, frozen=True):
    """The `Fetch` that is under way is so urgent now."""

    urgency: Urgency


class Persist(Struct, frozen=True):
    """Write these closed candles, ascending. `jumps` lie before or between them; `empty` is empty on the exchange, as
    `proof` says."""

    candles: tuple[Candle, ...]
    jumps: tuple[Jump, ...] = ()
    empty: tuple[Span, ...] = ()
    proof: str = ""

    def unproven(self) -> list[Span]:
        """The jumps that are not shown to be empty: holes."""
        return without([Span(jump.expected, jump.actual) for jump in self.jumps], self.empty)


class Show(Struct, frozen=True):
    """Broadcast this forming candle."""

    candle: Candle


class ShowLater(Struct, frozen=True):
    """A forming candle waits for its turn: call `due` at that monotonic time."""

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
        """The newest closed open time that was let through."""
        return self._splice.last

    @property
    def fetching(self) -> bool:
        """Whether a `Fetch` is under way."""
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
        """Without those whose final values the stream has told at or after that time of the exchange."""
        return [candle for candle in candles if self._stamps.get(candle.time, -1) < since_ms]

    def attached(self) -> list[Command]:
        """Live is subscribed (again): hold it, and read what was missed."""
        self._splice.hold()
        self._hole_fetches = 0
        return self._fetch(0.0)

    def overdue(self, urgency: Urgency) -> list[Command]:
        """Live does not bring what is due: ask REST for it, and let live pass meanwhile."""
        return [] if self._fetching else self._fetch(0.0, urgency)

    def abandoned(self) -> None:
        """Nobody will answer the `Fetch` that is under way, nor should be asked again until `attached`."""
        self._fetching = False
        self._page = None

    def tick(self, now_s: float) -> list[Command]:
        """Time has passed (monotonic): live that was held for too long goes on; the holes before it are declared."""
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
        """A write failed or found no room: nothing is let through, and nothing fetched, until `restarted`.

        The `unwritten` candles, and what the stream had told of an unwritten page, are kept for then: REST may be away,
        and has not what was late or a revision among them.
        """
        self._splice.hold()
        self._stalled = True
        for candle in (*(self._page or ()), *unwritten):
            self._keep_late(candle, newer=False)
        self._page = None

    def restarted(self, head: int | None) -> list[Command]:
        """What was let through was not stored: begin again from the stored head. An earlier `Fetch` is void."""
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
        """A live candle that the exchange calls final, in a frame that it sent at `event_ms`.

        One at or before what was let through is written too: it is late, or a revision, or the same again, and the
        write tells which. Of several frames about one candle the one that was sent last counts; one that says something
        else with the same stamp is let through, as the write asks which of the two is right.
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
                # A page that was let through may still wait for its commit: nothing overtakes it.
                self._keep_late(candle, newer=True)
                return []
            return [Persist((candle,))]
        if not splice.holding and not splice.follows(candle):
            splice.hold()
            splice.live(candle)
            return self._fetch(0.0)
        return self._persist(splice.live(candle))

    def forming(self, candle: Candle, now_s: float) -> list[Command]:
        """A live candle in progress. The least interval is kept; of those that wait the latest wins."""
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
        """What the page let through is stored. The next one may be long in coming: live waits for it no longer than for
        any history."""
        if self._stalled:
            return []
        self._page = None
        return self._write_late()

    def history_ended(self) -> list[Command]:
        """The last page is in: let live through up to the first hole, and ask again when there is one.

        A hole that was asked for in vain is passed, and the next one asked for.
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
        """The exchange answers again after a while: the backoff of what failed begins anew."""
        self._failures = 0

    def history_failed(self) -> list[Command]:
        """History could not be read: ask again. Live behind a hole stays held meanwhile, as long as it may.

        How long the exchange wants to be left alone is kept where its requests wait for their turn.
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

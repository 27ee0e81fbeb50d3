"""IngestFeed: decides about the candles of one followed series. Pure: events in, commands out.

The feed is the splice at the edge from the exchange to us. When the stream is attached, live candles are held and
history is requested (`Fetch`). A live candle that does not directly follow its predecessor is held, and the gap before
it is requested over REST, with a limited number of requests and a time limit. A gap between rows of one answer is
proven empty, and skipped at once. A gap that is skipped without this proof is declared, and healed later.
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

# Most fruitless requests for a gap (neither filled nor proven empty); then the gap is skipped.
MAX_HOLE_FETCHES = 5
# Backoff of REST requests after a failure, or after a fruitless request for a gap.
FETCH_BACKOFF = Backoff(initial_s=0.5, most_s=30.0)
# Longest time, in seconds, that closed live candles wait for the history before them; then the gap is declared.
MAX_HOLD_S = 60.0
# Most closed candles whose stamps are remembered; the oldest are evicted.
MAX_STAMPS = 500


class Fetch(Struct, frozen=True):
    """Request history.

    start: the stored head, so that the answer proves a gap behind it; None: a first history.
    delay_s: pause before the request, in seconds.
    urgency: of the request.
    """

    start: int | None
    delay_s: float = 0.0
    urgency: Urgency = Urgency.REPAIR


class Hurry(Struct, frozen=True):
    """Raise the urgency of the `Fetch` in flight."""

    urgency: Urgency


class Persist(Struct, frozen=True):
    """Write closed candles.

    candles: ascending.
    jumps: gaps before or between the candles.
    empty: spans that are proven empty.
    proof: how the exchange has proved that, a sentence.
    """

    candles: tuple[Candle, ...]
    jumps: tuple[Jump, ...] = ()
    empty: tuple[Span, ...] = ()
    proof: str = ""

    def unproven(self) -> list[Span]:
        """The gaps that are not proven empty."""
        return without([Span(jump.expected, jump.actual) for jump in self.jumps], self.empty)


class Show(Struct, frozen=True):
    """Broadcast this forming candle."""

    candle: Candle


class ShowLater(Struct, frozen=True):
    """Call `due` at the monotonic time `at_s`: a forming candle is throttled until then."""

    at_s: float


Command = Fetch | Hurry | Persist | Show | ShowLater


class IngestFeed:
    """The feed of one followed series.

    series: the series.
    head: the stored head when following begins; None when nothing is stored.
    forming_interval_s: shortest time between two forming candles, in seconds.
    """

    def __init__(self, series: SeriesId, head: int | None, *, forming_interval_s: float) -> None:
        self.series = series
        self.timeframe = series.timeframe
        self._splice: Splice[Candle] = Splice(series.timeframe, last=head)
        self._splice.hold()
        self._fetching = self._stalled = False
        self._urgency = Urgency.SWEEP  # of the `Fetch` in flight
        # Streamed candles within the page that waits for its commit; None when no page does.
        self._page: tuple[Candle, ...] | None = None
        self._caught_up = False
        self._held_since_s: float | None = None
        self._hole_fetches = 0
        self._hole_after: int | None = None
        self._stamps: dict[int, int] = {}
        self._values: dict[int, Candle] = {}  # candles of the frames with these stamps
        self._late: dict[int, Candle] = {}  # late candles, which wait for the commit of a page
        self._failures = 0
        self._forming_interval_s = forming_interval_s
        self._shown_at_s = float("-inf")
        self._pending: Candle | None = None

    @property
    def head(self) -> int | None:
        """The newest closed open time that was released to be written."""
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

    def not_streamed_since(self, candles: Sequence[Candle], since_ms: int) -> list[Candle]:
        """The candles without those whose final values the stream has sent since `since_ms`, in ms of the exchange."""
        return [candle for candle in candles if self._stamps.get(candle.time, -1) < since_ms]

    def attached(self) -> list[Command]:
        """The stream is subscribed (again): hold live candles, and request missed candles."""
        self._splice.hold()
        self._hole_fetches = 0
        return self._fetch(0.0)

    def overdue(self, urgency: Urgency) -> list[Command]:
        """The stream does not bring an expected candle: request the candle over REST, without holding live candles."""
        return [] if self._fetching else self._fetch(0.0, urgency)

    def abandoned(self) -> None:
        """The `Fetch` in flight ends without an answer, and no other is made until `attached`."""
        self._fetching = False
        self._page = None

    def tick(self, now_s: float) -> list[Command]:
        """Time has passed (monotonic seconds): live candles that were held for `MAX_HOLD_S` are released, and the gaps
        before them declared."""
        if self._stalled or not self._splice.waiting:
            self._held_since_s = None
            return []
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s < MAX_HOLD_S or self._page is not None:
            return []
        self._held_since_s = None
        return self._persist(self._splice.release())

    def stalled(self, unwritten: Sequence[Candle] = ()) -> None:
        """A write failed or found no room: hold all candles, and request nothing, until `restarted`.

        The `unwritten` candles, and streamed candles within an unwritten page, are kept until then, because REST may
        be unreachable, or lag behind late candles and revisions.
        """
        self._splice.hold()
        self._stalled = True
        for candle in (*(self._page or ()), *unwritten):
            self._keep_late(candle, newer=False)
        self._page = None

    def restarted(self, head: int | None) -> list[Command]:
        """Begin again from the stored head, after released candles were not stored. An earlier `Fetch` is void."""
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
                self._splice.live(late[time])
        return [*behind, *self._fetch(0.0)]

    def closed(self, candle: Candle, event_ms: int, *, by_rest: bool = False) -> list[Command]:
        """A final candle of the stream, in a frame with the stamp `event_ms`; or in a row of REST.

        A candle at or before the head is written too: the write detects whether it is late, a revision or a duplicate.
        Of several frames of a candle, the frame with the latest stamp counts. Frames with the same stamp and other
        values are all written, and REST decides between them; also frames with an earlier stamp and other values than a
        stored candle, because the exchange's clock may have been ahead at the later stamp.
        """
        stamp_ms = self._stamps.get(candle.time, -1)
        if event_ms <= stamp_ms and candle == self._values.get(candle.time):
            return []
        if event_ms < stamp_ms:
            last = self._splice.last
            stored = last is not None and candle.time <= last and not self._stalled and self._page is None
            return [Persist((candle,))] if stored and not by_rest else []
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
                # A page may wait for its commit, and live candles must not overtake the page.
                self._keep_late(candle, newer=True)
                return []
            return [Persist((candle,))]
        if not splice.holding and not splice.follows(candle):
            splice.hold()
            splice.live(candle)
            return self._fetch(0.0)
        return self._persist(splice.live(candle))

    def forming(self, candle: Candle, now_s: float) -> list[Command]:
        """A forming candle of the stream. Throttled and conflated: of the candles in an interval the latest wins."""
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
        self._splice.hold()  # the page may wait for its commit, and live candles must not overtake the page
        return self._persist(self._splice.history(page.candles), page.empty, page.proof)

    def page_written(self) -> list[Command]:
        """The candles of the page are stored: write late candles, which the next page must not delay."""
        if self._stalled:
            return []
        self._page = None
        return self._write_late()

    def history_ended(self) -> list[Command]:
        """The last page has arrived: release live candles up to the first gap, which is requested again. A gap after
        `MAX_HOLE_FETCHES` fruitless requests is skipped, and the next gap is requested."""
        self._fetching = False
        self._page = None
        self._failures = 0
        self._caught_up = True
        splice = self._splice
        before = splice.last
        released = splice.release_run()
        if splice.last != before or before != self._hole_after:
            self._hole_fetches = 0
            self._hole_after = splice.last
        if splice.holding and self._hole_fetches >= MAX_HOLE_FETCHES:
            self._hole_fetches = 0
            released += splice.release_run(past_hole=True)
        commands = self._write_late()
        commands += self._persist(released)
        if splice.holding:
            commands += self._fetch(FETCH_BACKOFF.delay_s(self._hole_fetches))
            self._hole_fetches += 1
        return commands

    def answers_again(self) -> None:
        """The exchange answers again: reset the backoff of failed requests."""
        self._failures = 0

    def history_failed(self) -> list[Command]:
        """History could not be read: request it again with backoff. Live candles behind a gap stay held, up to
        `MAX_HOLD_S`. The exchange's Retry-After is kept by its request gate."""
        self._fetching = False
        self._page = None
        delay_s = FETCH_BACKOFF.delay_s(self._failures)
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

    def _persist(self, released: Sequence[Candle | Jump], empty: Sequence[Span] = (), proof: str = "") -> list[Command]:
        candles = tuple(item for item in released if isinstance(item, Candle))
        if not candles and not empty:
            return []
        jumps = tuple(item for item in released if isinstance(item, Jump))
        return [Persist(candles, jumps, tuple(empty), proof if empty else "")]

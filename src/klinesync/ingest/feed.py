"""IngestFeed: what one followed series does with what the exchange says. Values in, commands out.

The feed is the splice at the edge exchange -> us. Attached: live is held and history asked (`Fetch`). Live that does
not follow its predecessor: held, and the hole is asked from REST, a bounded number of times; a hole that an answer of
the exchange shows between its own rows is the exchange's, and is passed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from klinesync.core.candle import Candle
from klinesync.core.gaps import Span
from klinesync.core.series_id import SeriesId
from klinesync.core.splice import Jump, Splice
from klinesync.runtime.sources import HistoryPage

# How often REST is asked for a hole that its answers neither fill nor show, before the hole is passed.
MAX_HOLE_FETCHES = 5
MAX_RETRY_DELAY_S = 30.0
# Closed candles of which it is remembered when the exchange sent them.
MAX_STAMPS = 500


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for history after `delay_s`: from the open time `start` on, which is stored, so that a hole behind it lies
    within one answer; None: as much as a first history takes."""

    start: int | None
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Persist:
    """Write these closed candles, ascending. `jumps` lie before or between them; `empty` is empty on the exchange."""

    candles: tuple[Candle, ...]
    jumps: tuple[Jump, ...] = ()
    empty: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Show:
    """Broadcast this forming candle."""

    candle: Candle


@dataclass(frozen=True, slots=True)
class ShowLater:
    """A forming candle waits for its turn: call `due` at that monotonic time."""

    at_s: float


Command = Fetch | Persist | Show | ShowLater


class IngestFeed:
    """One followed series. `head` is the newest stored open time when following begins."""

    def __init__(self, series: SeriesId, head: int | None, *, forming_interval_s: float) -> None:
        self.series = series
        self.timeframe = series.timeframe
        self._splice: Splice[Candle] = Splice(series.timeframe, last=head)
        self._splice.hold()
        self._fetching = self._stalled = False
        self._hole_fetches = 0
        self._hole_after: int | None = None
        self._stamps: dict[int, int] = {}
        self._stalled = False
        self._late: dict[int, Candle] = {}  # late ones, for when nothing is under way any more
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

    def attached(self) -> list[Command]:
        """Live is subscribed (again): hold it, and read what was missed."""
        self._splice.hold()
        self._hole_fetches = 0
        return self._fetch(0.0)

    def stalled(self, unwritten: Sequence[Candle] = ()) -> None:
        """A write failed or found no room: nothing is let through, and nothing fetched, until `restarted`.

        The `unwritten` candles are kept for then: REST has them, save what was late or a revision among them.
        """
        self._splice.hold()
        self._stalled = True
        for candle in unwritten:
            self._keep_late(candle, newer=False)

    def restarted(self, head: int | None) -> list[Command]:
        """What was let through was not stored: begin again from the stored head. An earlier `Fetch` is void."""
        self._fetching = self._stalled = False
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
        write tells which. Of several frames about one candle the one that was sent last counts.
        """
        if event_ms <= self._stamps.get(candle.time, -1):
            return []
        self._stamps[candle.time] = event_ms
        if len(self._stamps) > MAX_STAMPS:
            del self._stamps[min(self._stamps)]
        if self._pending is not None and self._pending.time <= candle.time:
            self._pending = None
        splice = self._splice
        if splice.last is not None and candle.time <= splice.last:
            if self._stalled or self._fetching:
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
        return self._persist(self._splice.history(page.candles), page.empty)

    def history_ended(self) -> list[Command]:
        """The last page is in: let live through up to the first hole, and ask again when there is one.

        A hole that was asked for in vain is passed, and the next one asked for.
        """
        self._fetching = False
        self._failures = 0
        splice = self._splice
        before = splice.last
        through = splice.release_run()
        if splice.last != before or before != self._hole_after:
            self._hole_fetches = 0
            self._hole_after = splice.last
        if splice.holding and self._hole_fetches >= MAX_HOLE_FETCHES:
            self._hole_fetches = 0
            through += splice.release_run(past_hole=True)
        late, self._late = self._late, {}
        commands: list[Command] = [Persist((late[time],)) for time in sorted(late)]
        commands += self._persist(through)
        if splice.holding:
            commands += self._fetch(0.5 * 2**self._hole_fetches)
            self._hole_fetches += 1
        return commands

    def history_failed(self, retry_after_s: float | None = None) -> list[Command]:
        """History could not be read: ask again. Live stays held, so that nothing is stored behind a hole."""
        self._fetching = False
        delay_s = min(0.5 * 2**self._failures, MAX_RETRY_DELAY_S)
        self._failures = min(self._failures + 1, 10)
        return self._fetch(max(delay_s, retry_after_s or 0.0))

    def _keep_late(self, candle: Candle, *, newer: bool) -> None:
        if newer or candle.time not in self._late:
            self._late[candle.time] = candle
        if len(self._late) > MAX_STAMPS:
            del self._late[min(self._late)]

    def _fetch(self, delay_s: float) -> list[Command]:
        if self._fetching or self._stalled:
            return []
        self._fetching = True
        return [Fetch(self._splice.last, delay_s)]

    def _persist(self, through: Sequence[Candle | Jump], empty: Sequence[Span] = ()) -> list[Command]:
        candles = tuple(item for item in through if isinstance(item, Candle))
        if not candles and not empty:
            return []
        return [Persist(candles, tuple(item for item in through if isinstance(item, Jump)), tuple(empty))]

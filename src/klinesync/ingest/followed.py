"""Followed: one followed series. Pure: events in, commands out.

An `IngestFeed` joins history and live candles, and a `StreamWatch` judges the stream. This class decides when REST is
asked for a candle that the stream does not bring, when the symbol may be delisted, and what happens after a failed
write. The job of the series carries the commands out, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.errors import WRONG_REQUEST
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus
from klinesync.exchanges.exchange import HistoryPage, KlineEvent, Listing, Urgency
from klinesync.ingest.feed import Command as FeedCommand
from klinesync.ingest.feed import Fetch, Hurry, IngestFeed, Persist, Show, ShowLater
from klinesync.ingest.liveness import StreamWatch
from klinesync.ingest.timings import USUAL_AUDIT, USUAL_TIMINGS, AuditLimits, FollowTimings

# Seconds of the exchange, beyond the finality margin of REST, until REST is asked for a candle that a working stream is
# expected to bring. Futures streams bring their last closed candles 2 s after the close.
STREAM_FIRST_S = 1.0
# Consecutive fruitless answers after which the lists of symbols are polled: the symbol may be delisted.
FRUITLESS_SUSPECT = 2
# Newest rows of a page that are expected of the stream.
OWED_ROWS = 10


@dataclass(frozen=True, slots=True)
class FollowSettings:
    """How series of an exchange are followed.

    first_history_candles: candles of the first history of a series.
    most_tail_candles: most candles of a tail, the newest.
    forming_interval_s: shortest time between two forming candles of a series, in seconds.
    stream_stale_s: seconds of the exchange after the close of a traded candle until the stream counts as stale.
    rest_final_margin_s: finality margin of REST rows, in seconds of the exchange.
    audit_interval_s: seconds between two audits; 0: no audit.
    ondemand_idle_ttl_s: seconds for which an on-demand series is followed without a subscriber.
    ondemand_max_jobs: most on-demand series; 0: no limit.
    one_list_decides: whether a single list without a symbol proves that the symbol is not traded, unless an earlier
        list had it; True by default.
    live_only: whether REST is never asked for candles that closed before the series was followed; False by default.
    timings: waits and intervals that no flag sets.
    audit: which candles an audit requests.
    """

    first_history_candles: int
    most_tail_candles: int
    forming_interval_s: float
    stream_stale_s: float
    rest_final_margin_s: float
    audit_interval_s: float
    ondemand_idle_ttl_s: float
    ondemand_max_jobs: int
    one_list_decides: bool = True
    live_only: bool = False
    timings: FollowTimings = USUAL_TIMINGS
    audit: AuditLimits = USUAL_AUDIT


@dataclass(frozen=True, slots=True)
class Moment:
    """The time of an event. `now_s`: monotonic seconds; `now_ms`: ms of the exchange, None when unknown."""

    now_s: float
    now_ms: int | None


@dataclass(frozen=True, slots=True)
class Publish:
    """The state of the stream has changed: publish it."""

    before: StreamState
    status: StreamStatus


@dataclass(frozen=True, slots=True)
class Declare:
    """Declare a gap between stored candles that is not proven empty: log it, and have it healed."""

    hole: Span


@dataclass(frozen=True, slots=True)
class Request:
    """Have an older span read by the history service, for `reason`."""

    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class RequestDeclared:
    """The symbol is listed again: have all declared gaps of the series read."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """The symbol may be delisted, or traded again: poll the exchange's lists soon."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The first history has been read, or the symbol is delisted."""


@dataclass(frozen=True, slots=True)
class Resubscribe:
    """The stream is stale: subscribe the stream again."""


@dataclass(frozen=True, slots=True)
class Recover:
    """A write failed: read the stored head once the store can be read, then call `restarted`."""


Command = FeedCommand | Publish | Declare | Request | RequestDeclared | Suspect | CaughtUp | Resubscribe | Recover
__all__ = [
    "CaughtUp", "Command", "Declare", "Fetch", "FollowSettings", "Followed", "Hurry", "Moment", "Persist", "Publish",
    "Recover", "Request", "RequestDeclared", "Resubscribe", "Show", "ShowLater", "Suspect",
]  # fmt: skip


class Followed:
    """One followed series, from its subscription on. Events that concern the feed alone go to `feed` (pages, `due`),
    those that concern the stream alone to `watch`.

    series: a base series.
    head: the stored head; None when nothing is stored.
    settings: how series are followed.
    now_s: when the stream was requested, monotonic seconds.
    since_ms: the same in UTC, for the stream's status; None when unknown.
    """

    def __init__(
        self, series: SeriesId, head: int | None, settings: FollowSettings, now_s: float, since_ms: int | None
    ) -> None:
        self.series = series
        self.feed = IngestFeed(series, head, forming_interval_s=settings.forming_interval_s)
        self.watch = StreamWatch(series.timeframe, settings.stream_stale_s, since_ms, settings.timings)
        self.by_rest = False  # whether the closed candles of the stream are rows of REST
        self._settings = settings
        self._timings = settings.timings
        self._published = self.watch.state
        self._begin_by_s = now_s + settings.timings.attach_wait_s
        self._ask_after_s = 0.0
        self._lost_s = float("-inf")  # when the connection was last lost
        self._head_before_fetch: int | None = None  # the head when the reading in flight began
        self._fruitless_attempts = 0
        self._overdue_head: int | None = None
        self._overdue_seen = False
        self._recovering = False
        self._caught_up_sent = False
        self._listed = False  # whether a list had the symbol
        self._absent_s: float | None = None  # since when lists lack the symbol; None while they have it, or if delisted

    # State.

    @property
    def is_delisted(self) -> bool:
        """Whether the symbol is not traded."""
        return self.watch.state == StreamState.DELISTED

    @property
    def is_recovering(self) -> bool:
        """Whether a write failed, and the stored head has not been read again yet."""
        return self._recovering

    @property
    def is_idle(self) -> bool:
        """Whether the series is caught up, and neither being read nor recovering."""
        return self.feed.caught_up and not (self.feed.fetching or self._recovering or self.is_delisted)

    def list_due_s(self, now_s: float) -> float | None:
        """Seconds until a second list decides, after a first list without the symbol; None: there was no such list."""
        if self._absent_s is None:
            return None
        return max(0.0, self._absent_s + self._timings.suspect_listings_age_s - now_s)

    # The stream.

    def attached(self, moment: Moment) -> list[Command]:
        """The exchange has acknowledged the subscription."""
        self.watch.attached(moment.now_ms)
        return [*self._changed(), *(() if self.is_delisted else self.feed.attached())]

    def lost(self, moment: Moment) -> list[Command]:
        """The connection is lost."""
        self._lost_s = moment.now_s
        self.watch.lost(moment.now_ms)
        return self._changed()

    def stands_in(self, moment: Moment, reason: str | None) -> list[Command]:
        """The exchange's client polls REST in place of the stream, for `reason`; None: the stream brings frames
        again."""
        self.watch.stands_in(moment.now_ms, reason)
        return self._changed()

    def unreachable(self, moment: Moment, detail: str) -> list[Command]:
        """The market of the series is unreachable."""
        self.watch.unreachable(moment.now_ms, detail)
        return self._changed()

    def reachable(self, moment: Moment) -> list[Command]:
        """The market of the series is reachable again."""
        self.watch.reachable(moment.now_ms)
        return self._changed()

    def event(self, event: KlineEvent, now_s: float, came_s: float, *, too_old: bool = False) -> list[Command]:
        """A frame whose stamp has been verified.

        event: the frame.
        now_s: monotonic seconds.
        came_s: when the frame came, monotonic seconds; earlier than `now_s` if its stamp had to be verified.
        too_old: the frame proves liveness, but its candle is dropped; False by default.
        """
        candle, self.by_rest = event.candle, event.by_rest
        commands: list[Command] = [Suspect()] if self.is_delisted else []
        self.watch.frame(candle, event.event_ms, closed=event.closed, connected=came_s >= self._lost_s)
        commands += self._changed()
        if too_old:
            return commands
        if event.closed:
            return commands + self.feed.closed(candle, event.event_ms, by_rest=event.by_rest)
        return commands + self.feed.forming(candle, now_s)

    # Time.

    def tick(self, moment: Moment, margin_s: float) -> list[Command]:
        """Time has passed. `margin_s`: finality margin of REST rows, in seconds of the exchange."""
        feed, watch, now_s = self.feed, self.watch, moment.now_s
        commands = self._held_too_long(moment) if feed.holding else []
        if self.is_delisted or self._recovering:
            return commands
        if not feed.caught_up and not feed.fetching:
            return [*commands, *feed.attached()] if now_s >= max(self._begin_by_s, self._ask_after_s) else commands
        if moment.now_ms is None:
            return commands
        watch.check(moment.now_ms, now_s)
        commands += self._changed()
        if watch.retry(now_s):
            commands.append(Resubscribe())
        if not feed.fetching and now_s >= self._ask_after_s and self._overdue(moment.now_ms, margin_s):
            commands += feed.overdue(Urgency.FILL if watch.serves else Urgency.REPAIR)
        return commands

    def _held_too_long(self, moment: Moment) -> list[Command]:
        """Release live candles that were held for too long; the first history that they waited for is read later."""
        first = self.feed.head is None
        released = self.feed.tick(moment.now_s)
        commands: list[Command] = []
        oldest = next((command.candles[0].time for command in released if isinstance(command, Persist)), None)
        if first and oldest is not None and moment.now_ms is not None:
            frame = self.series.timeframe
            start = frame.shift(frame.floor(moment.now_ms // 1000), -self._settings.first_history_candles)
            if start < oldest:
                commands.append(Request(Span(max(0, start), oldest), "startup"))
        return [*commands, *released]

    def _overdue(self, now_ms: int, margin_s: float) -> bool:
        """Whether the candle after the head is overdue, and was overdue at the last tick, so that no frame is in
        flight."""
        head, frame = self.feed.head, self.series.timeframe
        if head is not None:
            if self.watch.serves or self.watch.is_polled:
                margin_s += STREAM_FIRST_S
            if now_ms < frame.next(frame.next(head)) * 1000 + int(margin_s * 1000):
                return False
        if self._overdue_seen and self._overdue_head == head:
            return True
        self._overdue_seen, self._overdue_head = True, head
        return False

    # History.

    def history_begins(self) -> None:
        """The reading of a `Fetch` begins."""
        self._head_before_fetch = self.feed.head

    def shown(self, page: HistoryPage, moment: Moment) -> list[Command]:
        """A page of REST has come: its newest candles are expected of the stream."""
        self.watch.shown(page.candles[-OWED_ROWS:], moment.now_ms, moment.now_s)
        return self._changed()

    def written(self, persisted: Persist) -> list[Command]:
        """The candles of `persisted` are stored; its gaps lie between stored candles now."""
        return [Declare(hole) for hole in persisted.unproven()]

    def history_ended(self, now_s: float) -> list[Command]:
        """History is read up to now. Without a new candle, REST is asked again with backoff, and the symbol may be
        delisted."""
        commands: list[Command] = []
        self._overdue_seen = False
        if self.feed.head != self._head_before_fetch:
            self._fruitless_attempts, self._ask_after_s = 0, 0.0
        else:
            self._ask_after_s = now_s + self._timings.fruitless.delay_s(self._fruitless_attempts)
            self._fruitless_attempts += 1
            if self._fruitless_attempts >= FRUITLESS_SUSPECT:
                commands.append(Suspect())
        commands += self.feed.history_ended()
        return commands if self.feed.fetching else [*commands, *self._caught_up()]

    def history_failed(self, status: int, now_s: float) -> list[Command]:
        """History could not be read. `status`: HTTP status of the answer; 0 without an answer."""
        if status == WRONG_REQUEST or self.is_delisted:
            self._ask_after_s = now_s + self._timings.suspect_listings_age_s
            self.feed.abandoned()
            return [Suspect()]
        return [*self.feed.history_failed()]

    def _caught_up(self) -> list[Command]:
        sent, self._caught_up_sent = self._caught_up_sent, True
        return [] if sent else [CaughtUp()]

    # Failed writes.

    def unwritten(self, candles: Sequence[Candle] = ()) -> list[Command]:
        """A write failed or found no room: hold live candles, and begin again from the stored head."""
        self.feed.stalled(candles)
        if self._recovering:
            return []
        self._recovering = True
        return [Recover()]

    def restarted(self, head: int | None) -> list[Command]:
        """The store was read again. `head`: the stored head; None when nothing is stored."""
        self._recovering = False
        return [*self.feed.restarted(head)]

    # Listings.

    def judge(self, listing: Listing | None, moment: Moment, *, second: bool) -> list[Command]:
        """A complete list of symbols has come.

        listing: of the symbol; None when the list does not have the symbol.
        moment: when the list came.
        second: whether a first list without the symbol is `suspect_listings_age_s` old. A single list may be wrong.
        """
        if listing is not None and listing.trading:
            self._listed, self._absent_s = True, None
            return self._traded(listing, moment) if self.is_delisted else []
        if self.is_delisted:
            return []
        if not second and (self._listed or not self._settings.one_list_decides):
            if self._absent_s is None:
                self._absent_s = moment.now_s
            return []
        self._absent_s = None
        detail = "the exchange does not list it" if listing is None else f"its status is {listing.status}"
        self.watch.delisted(moment.now_ms, detail)
        return [*self._caught_up(), *self._changed()]

    def _traded(self, listing: Listing, moment: Moment) -> list[Command]:
        """The symbol is traded again: read the candles since the head."""
        since = "" if listing.onboard_s is None else f", since {date_text(listing.onboard_s)} by its own word"
        head = self.feed.head
        before = "" if head is None else f"; the last candle before is of {date_text(head)}"
        self.watch.listed(moment.now_ms, f"the exchange trades it (again){since}{before}")
        self._fruitless_attempts, self._ask_after_s = 0, 0.0
        return [*self._changed(), *self.feed.attached(), RequestDeclared()]

    def _changed(self) -> list[Command]:
        """`Publish`, if the stream's state has changed since the last `Publish`."""
        before, self._published = self._published, self.watch.state
        return [] if before == self._published else [Publish(before, self.watch.status)]


def all_stale(followed: Iterable[Followed]) -> bool:
    """Whether all these streams are stale, so that their connection has to be renewed."""
    return all(series.watch.is_stale for series in followed)

"""Followed: one followed series. What happens to it goes in as values, commands come out. Pure.

The parts: an `IngestFeed` joins history and live candles, a `StreamWatch` judges the stream, and this class decides
when REST is asked for a candle that the stream does not bring, when the symbol may be delisted, and what happens after
a failed write. The supervisor carries the commands out, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from klinesync.core.backoff import Backoff
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

# Longest time that history waits for the acknowledgement of the stream, in seconds.
ATTACH_WAIT_S = 5.0
# Exchange time that a stream gets beyond the margin of REST rows, before REST is asked for a candle, in seconds.
# Futures bring the last of their closed candles 2 s after the close.
STREAM_FIRST_S = 1.0
# Before REST is asked again after an answer that did not have what is due.
FRUITLESS = Backoff(initial_s=1.0, most_s=300.0)
# Fruitless answers in a row after which the exchange is asked whether the symbol is traded at all.
FRUITLESS_SUSPECT = 2
# Shortest time between two looks at the lists of symbols while one is suspect or gone, in seconds. Two lists without
# the symbol that are this far apart prove that it is delisted.
SUSPECT_LISTINGS_AGE_S = 60.0
# The newest rows of a page that a stream may owe.
OWED_ROWS = 10


@dataclass(frozen=True, slots=True)
class FollowSettings:
    """How series of an exchange are followed.

    first_history_candles: candles of the history of a series of which nothing is stored.
    most_tail_candles: of what a series missed, only the newest candles, up to so many, are read at once.
    forming_interval_s: shortest time between two forming candles of a series, in seconds.
    stream_stale_s: exchange time after its close by which a stream must have brought a traded candle, in seconds.
    rest_final_margin_s: how long after its close a REST row may still change, in seconds of the exchange.
    audit_interval_s: seconds between two audits; 0: no audit.
    ondemand_idle_ttl_s: how long a series goes on without a subscriber, in seconds.
    ondemand_max_jobs: most series on demand; 0: any number.
    one_list_decides: whether one whole list without a symbol that no list had proves that it is not traded.
    live_only: whether REST is asked for nothing that closed before the series was followed.
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


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happens: `now_s` by our monotonic clock, `now_ms` by the exchange's, None where it is unknown."""

    now_s: float
    now_ms: int | None


@dataclass(frozen=True, slots=True)
class Publish:
    """The state of the stream has changed: publish it."""

    before: StreamState
    status: StreamStatus


@dataclass(frozen=True, slots=True)
class Declare:
    """This hole is between stored candles, and nothing shows that it is empty: log it, and have it filled."""

    hole: Span


@dataclass(frozen=True, slots=True)
class Request:
    """Have this older span read, for that reason, after live."""

    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class RequestDeclared:
    """The symbol is listed again: have all declared holes of the series read."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """The symbol may not be traded (or be traded again): look at the exchange's lists soon."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The first history is in, or there is none to be had."""


@dataclass(frozen=True, slots=True)
class Resubscribe:
    """The stream is stale: subscribe it anew."""


@dataclass(frozen=True, slots=True)
class Recover:
    """A write failed: read the stored head once the store can be read, then call `restarted`."""


Command = FeedCommand | Publish | Declare | Request | RequestDeclared | Suspect | CaughtUp | Resubscribe | Recover
__all__ = [
    "CaughtUp", "Command", "Declare", "Fetch", "FollowSettings", "Followed", "Hurry", "Moment", "Persist", "Publish",
    "Recover", "Request", "RequestDeclared", "Resubscribe", "Show", "ShowLater", "Suspect",
]  # fmt: skip


class Followed:
    """One followed series, from its subscription on.

    series: a base series.
    head: newest stored open time; None when nothing is stored.
    settings: how series are followed.
    now_s: when the stream was asked for, monotonic seconds.
    since_ms: the same in UTC, for the stream's status.
    """

    def __init__(
        self, series: SeriesId, head: int | None, settings: FollowSettings, now_s: float, since_ms: int | None
    ) -> None:
        self.series = series
        self.feed = IngestFeed(series, head, forming_interval_s=settings.forming_interval_s)
        self.watch = StreamWatch(series.timeframe, settings.stream_stale_s, since_ms)
        self.by_rest = False  # whether closed candles are rows of REST, whoever brings them
        self._settings = settings
        self._published = self.watch.state
        self._begin_by_s = now_s + ATTACH_WAIT_S
        self._ask_after_s = 0.0
        self._lost_s = float("-inf")  # when the connection was lost last
        self._head_asked: int | None = None  # the head when the reading under way began
        self._fruitless = 0
        self._overdue_head: int | None = None
        self._overdue_seen = False
        self._recovering = False
        self._caught_up_told = False
        self._listed = False  # whether a list had the symbol
        self._absent_s: float | None = None  # since when lists do not have it; None while they do, or once delisted

    # What is known of it.

    @property
    def is_delisted(self) -> bool:
        """Whether the symbol is not traded."""
        return self.watch.state == StreamState.DELISTED

    @property
    def is_recovering(self) -> bool:
        """Whether a write failed, and the stored head is to be read again."""
        return self._recovering

    @property
    def at_rest(self) -> bool:
        """Whether the series is caught up, and nothing of it is being read or recovered."""
        return self.feed.caught_up and not (self.feed.fetching or self._recovering or self.is_delisted)

    def list_due_s(self, now_s: float) -> float | None:
        """In how many seconds a second list is to be looked at, since a first one had not the symbol; None: none is."""
        return None if self._absent_s is None else max(0.0, self._absent_s + SUSPECT_LISTINGS_AGE_S - now_s)

    # What the stream says.

    def attached(self, moment: Moment) -> list[Command]:
        """The exchange has acknowledged the subscription."""
        self.watch.attached(moment.now_ms)
        return [*self._changed(), *(() if self.is_delisted else self.feed.attached())]

    def lost(self, moment: Moment) -> list[Command]:
        """The connection is gone."""
        self._lost_s = moment.now_s
        self.watch.lost(moment.now_ms)
        return self._changed()

    def stands_in(self, moment: Moment, reason: str | None) -> list[Command]:
        """The source polls REST in place of the stream, and why; None: the stream brings frames again."""
        self.watch.stood_in(moment.now_ms, reason)
        return self._changed()

    def failing(self, reason: str) -> None:
        """The stream is not subscribed, and why."""
        self.watch.failing(reason)

    def quiet(self, span: Span) -> None:
        """REST has shown that there are no candles in `span`, behind the newest closed one."""
        self.watch.quiet = span

    def unreachable(self, moment: Moment, detail: str) -> list[Command]:
        """Nothing is heard of the exchange."""
        self.watch.unreachable(moment.now_ms, detail)
        return self._changed()

    def reachable(self, moment: Moment) -> list[Command]:
        """The exchange is heard again."""
        self.watch.reachable(moment.now_ms)
        return self._changed()

    def event(self, event: KlineEvent, now_s: float, came_s: float, *, too_old: bool = False) -> list[Command]:
        """A candle whose stamp is believed.

        now_s: the present moment, monotonic seconds.
        came_s: when the candle came, which is earlier where it had to wait.
        too_old: the candle is a sign of life, and is not taken.
        """
        candle, self.by_rest = event.candle, event.by_rest
        commands: list[Command] = [Suspect()] if self.is_delisted else []
        self.watch.frame(candle, event.event_ms, closed=event.closed, connected=came_s >= self._lost_s)
        commands += self._changed()
        if too_old:
            return commands
        commands += self.feed.closed(candle, event.event_ms) if event.closed else self.feed.forming(candle, now_s)
        return commands

    # Time.

    def due(self, now_s: float) -> list[Command]:
        """The time of a `ShowLater` has come."""
        return [*self.feed.due(now_s)]

    def tick(self, moment: Moment, margin_s: float) -> list[Command]:
        """Time has passed.

        margin_s: how long after its close a REST row may still change, in seconds of the exchange.
        """
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
        """Live candles that were held for too long go on; a first history that they waited for is read after them."""
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
        """Whether the candle behind the head is due, and was at the last tick: what was in flight then is in by now."""
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
        """The reading that a `Fetch` asked for begins."""
        self._head_asked = self.feed.head

    def page(self, page: HistoryPage) -> list[Command]:
        """A page of closed history is in, from wherever: what of it is to be written."""
        return [*self.feed.history(page)]

    def page_written(self) -> list[Command]:
        """What the page let through is stored."""
        return [*self.feed.page_written()]

    def answers_again(self) -> None:
        """The exchange answers after a while of trouble: the backoff of failed readings begins anew."""
        self.feed.answers_again()

    def shown(self, page: HistoryPage, moment: Moment) -> list[Command]:
        """A page of REST is in: the stream owes its newest candles."""
        self.watch.shown(page.candles[-OWED_ROWS:], moment.now_ms, moment.now_s)
        return self._changed()

    def written(self, persisted: Persist) -> list[Command]:
        """The candles of `persisted` are stored. Its holes lie between stored candles from now on."""
        return [Declare(hole) for hole in persisted.unproven()]

    def history_ended(self, now_s: float) -> list[Command]:
        """History is read up to now. REST that had nothing new is asked less often; or is the symbol not traded?"""
        commands: list[Command] = []
        self._overdue_seen = False
        if self.feed.head != self._head_asked:
            self._fruitless, self._ask_after_s = 0, 0.0
        else:
            self._ask_after_s = now_s + FRUITLESS.delay_s(self._fruitless)
            self._fruitless += 1
            if self._fruitless >= FRUITLESS_SUSPECT:
                commands.append(Suspect())
        commands += self.feed.history_ended()
        return commands if self.feed.fetching else [*commands, *self._caught_up()]

    def history_failed(self, status: int, now_s: float) -> list[Command]:
        """History could not be read; `status` is the HTTP status of the answer, 0 without one."""
        if status == WRONG_REQUEST or self.is_delisted:
            self._ask_after_s = now_s + SUSPECT_LISTINGS_AGE_S
            self.feed.abandoned()
            return [Suspect()]
        return [*self.feed.history_failed()]

    def _caught_up(self) -> list[Command]:
        told, self._caught_up_told = self._caught_up_told, True
        return [] if told else [CaughtUp()]

    # Writes that fail.

    def unwritten(self, candles: Sequence[Candle] = ()) -> list[Command]:
        """A write failed, or found no room: live is held, and the series begins again from its stored head."""
        self.feed.stalled(candles)
        if self._recovering:
            return []
        self._recovering = True
        return [Recover()]

    def restarted(self, head: int | None) -> list[Command]:
        """The store was read again; `head` is its newest open time."""
        self._recovering = False
        return [*self.feed.restarted(head)]

    # Symbols that come and go.

    def judge(self, listing: Listing | None, moment: Moment, *, second: bool) -> list[Command]:
        """What a whole list says of the symbol.

        listing: the symbol as it is listed; None when it is not.
        second: whether a first list without the symbol is a minute old: a list may be wrong for a moment.
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
        """The symbol is traded: read what there is between the head and now, and declare what there is not."""
        since = "" if listing.onboard_s is None else f", since {date_text(listing.onboard_s)} by its own word"
        head = self.feed.head
        behind = "" if head is None else f"; the last candle before is of {date_text(head)}"
        self.watch.listed(moment.now_ms, f"the exchange trades it (again){since}{behind}")
        self._fruitless, self._ask_after_s = 0, 0.0
        return [*self._changed(), *self.feed.attached(), RequestDeclared()]

    def _changed(self) -> list[Command]:
        """`Publish`, if the stream's state has changed since it was published last."""
        before, self._published = self._published, self.watch.state
        return [] if before == self._published else [Publish(before, self.watch.status)]


def all_stale(followed: Iterable[Followed]) -> bool:
    """Whether each of these streams is stale: then their connection brings nothing."""
    return all(one.watch.is_stale for one in followed)

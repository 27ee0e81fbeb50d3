"""SeriesEvents: notes what happens to series in an `EventLog`, dated by the clock of their exchange.

An event of one series is kept for that series. What happens to all series of a market (a lost connection, an exchange
that refuses) is kept once for the market, and so is the same event of many series at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

from klinesync.core.dates import date_text
from klinesync.core.events import EventName, SeriesEvent, market_scope, scopes_of
from klinesync.core.gaps import GapChange
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus, stream_sentence
from klinesync.history.event_log import Crowd, EventLog
from klinesync.history.event_words import Named, corrected_event, gap_events, reading_event
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.storage.records import Corrected, SeriesChange

# States of the stream of one series, whatever its connection does; and states in which that is over.
_OWN_STATES: Mapping[StreamState, EventName] = {
    StreamState.STALE: "stream.stale",
    StreamState.REST_FALLBACK: "stream.rest_fallback",
    StreamState.DELISTED: "stream.delisted",
}
_OVER: Mapping[StreamState, EventName] = {
    StreamState.SUBSCRIBED: "stream.subscribed",
    StreamState.LIVE: "stream.live",
}

Clocks = Mapping[tuple[str, str], ExchangeClock]
P = ParamSpec("P")


def _never_in_the_way(
    method: Callable[Concatenate[SeriesEvents, P], None],
) -> Callable[Concatenate[SeriesEvents, P], None]:
    """A defect in what notes an event costs that event: those who tell of it write candles and follow series."""

    @wraps(method)
    def contained(events: SeriesEvents, /, *args: P.args, **more: P.kwargs) -> None:
        with events.bulkheads.contained(Part.EVENTS, method.__name__):
            method(events, *args, **more)

    return contained


class SeriesEvents:
    """Notes events. Every method returns at once.

    log: keeps the events.
    clocks: what is known of the time, by exchange and market.
    wall_s: UTC seconds by this machine, for events of a market whose time is not known.
    monotonic: monotonic seconds.
    bulkheads: contains defects.
    derives: whether a series is computed from another. Its gaps and corrections follow from those of its base.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        clocks: Clocks,
        wall_s: Callable[[], float],
        monotonic: Callable[[], float],
        bulkheads: Bulkheads,
        derives: Callable[[SeriesId], bool] = lambda _: False,
    ) -> None:
        self._log = log
        self._clocks = clocks
        self._wall_s = wall_s
        self._monotonic = monotonic
        self._derives = derives
        self.bulkheads = bulkheads
        self._crowd = Crowd()

    # What is told.

    def knows(self, series: SeriesId) -> bool:
        """Whether the series itself has events."""
        return str(series) in self._log

    def of(self, *series: SeriesId) -> list[SeriesEvent]:
        """The newest events of these series and their markets together, in the order in which they happened last."""
        return self._log.events(scopes_of(*series))

    # Streams.

    @_never_in_the_way
    def followed(self, series: SeriesId, head: int | None) -> None:
        """The series is followed from now on. `head`: its newest stored open time; None when nothing is stored."""
        stored = "nothing is stored yet" if head is None else f"the newest stored candle is that of {date_text(head)}"
        self._note(series, Named("series.followed", f"the series is followed from now on; {stored}"))

    @_never_in_the_way
    def unfollowed(self, series: SeriesId) -> None:
        """Nobody has watched the series for a while."""
        self._note(series, Named("series.unfollowed", "nobody watches the series: it is followed no more"))

    @_never_in_the_way
    def stream(self, series: SeriesId, before: StreamState, status: StreamStatus) -> None:
        """The state of the stream has changed from `before`."""
        state = status.state
        own = _OWN_STATES.get(state) or (_OVER.get(state) if before in _OWN_STATES else None)
        if own is not None:
            self._note(series, Named(own, stream_sentence(status)))
        elif state is StreamState.RECONNECTING:
            self.market(series, "connection.lost", f"streams of the market are being connected{_behind(status.detail)}")
        elif before is StreamState.RECONNECTING:  # the first frame of a subscribed stream is no news
            self.market(series, "connection.made", "streams of the market are subscribed")

    @_never_in_the_way
    def failing(self, series: SeriesId, reason: str) -> None:
        """The stream of that series, and others of its connection, cannot be subscribed."""
        self.market(series, "connection.failing", f"streams of the market cannot be subscribed{_behind(reason)}")

    @_never_in_the_way
    def market(self, series: SeriesId, event: EventName, detail: str) -> None:
        """Something happened to the whole market of that series."""
        scope = market_scope(series.exchange, series.market)
        self._log.note(scope, event, detail, self._now_ms(series))

    # The store.

    @_never_in_the_way
    def unwritten(self, series: SeriesId) -> None:
        """Candles of the series could not be written."""
        detail = "candles could not be written; they are read again from the exchange once the store takes them"
        self._note(series, Named("store.failed", detail))

    @_never_in_the_way
    def damaged(self, series: SeriesId) -> None:
        """Stored candles of the series are gone."""
        self._note(series, Named("store.damaged", "stored candles are gone from the store: they are declared missing"))

    @_never_in_the_way
    def committed(self, changes: Sequence[SeriesChange]) -> None:
        """A transaction has changed gaps and stored values."""
        gaps: dict[SeriesId, list[GapChange]] = {}
        for series, change in changes:
            if self._derives(series):
                continue
            if isinstance(change, Corrected):
                self._note_own(series, corrected_event(change))
            else:
                gaps.setdefault(series, []).append(change)
        for series, gap_changes in gaps.items():
            for event in gap_events(series.timeframe, gap_changes):
                self._note_own(series, event)

    # History.

    @_never_in_the_way
    def read(self, series: SeriesId, span: Span | None, reason: str, candles: int, error: str | None) -> None:
        """A reading of history has ended.

        span: what was read; None where the reading failed before that was known.
        reason: why it was read.
        candles: how many came.
        error: what was in the way; None when nothing was.
        """
        event = reading_event(series.timeframe, span or Span(0, 0), reason, candles, error)
        if event is not None:
            self._note(series, event)

    def _note(self, series: SeriesId, event: Named) -> None:
        market = market_scope(series.exchange, series.market)
        sentence = self._crowd.sentence(market, *event, self._monotonic())
        if sentence is None:
            self._note_own(series, event)
        else:
            self.market(series, event.event, sentence)

    def _note_own(self, series: SeriesId, event: Named) -> None:
        self._log.note(str(series), *event, self._now_ms(series))

    def _now_ms(self, series: SeriesId) -> int:
        clock = self._clocks.get((series.exchange, series.market))
        now_ms = None if clock is None else clock.estimate_ms(self._monotonic())
        return int(self._wall_s() * 1000) if now_ms is None else now_ms


def _behind(detail: str | None) -> str:
    return "" if detail is None else f": {detail}"

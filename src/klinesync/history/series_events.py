"""SeriesEvents: notes events of series in an `EventLog`, dated by the clock of their exchange.

An event of a market (a lost connection, an exchange that refuses) is noted once for the market; so is an event that
many series of the market have at the same time.
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
from klinesync.history.event_words import Named, corrected_event, gap_events, reading_event, taken_out_event
from klinesync.runtime.bulkheads import Bulkheads, Part
from klinesync.runtime.exchange_clock import ExchangeClock
from klinesync.storage.records import Corrected, SeriesChange, TakenOut

# Events of stream states that concern a single series, not its connection.
_OWN_STATES: Mapping[StreamState, EventName] = {
    StreamState.STALE: "stream.stale",
    StreamState.REST_FALLBACK: "stream.rest_fallback",
    StreamState.DELISTED: "stream.delisted",
}
# Events of the states that follow them.
_RECOVERED_STATES: Mapping[StreamState, EventName] = {
    StreamState.SUBSCRIBED: "stream.subscribed",
    StreamState.LIVE: "stream.live",
}

Clocks = Mapping[tuple[str, str], ExchangeClock]
P = ParamSpec("P")


def _contained(
    method: Callable[Concatenate[SeriesEvents, P], None],
) -> Callable[Concatenate[SeriesEvents, P], None]:
    """Contain defects of a method, so that a defect loses the event and not the caller, who writes candles or follows
    series."""

    @wraps(method)
    def guarded(events: SeriesEvents, /, *args: P.args, **more: P.kwargs) -> None:
        with events.bulkheads.contained(Part.EVENTS, method.__name__):
            method(events, *args, **more)

    return guarded


class SeriesEvents:
    """Notes events of series. Every method returns at once.

    log: has the events.
    clocks: exchange clocks by exchange and market.
    wall_s: UTC seconds of this machine, for events of a market whose time is unknown.
    monotonic: monotonic seconds.
    bulkheads: contains defects.
    derives: whether a series is derived; its gaps and corrections, which follow from those of its base, are not noted.
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

    # Reading events.

    def knows(self, series: SeriesId) -> bool:
        """Whether the series has events of its own."""
        return str(series) in self._log

    def of(self, *series: SeriesId) -> list[SeriesEvent]:
        """The newest events of these series and their markets together, as `EventLog.events` orders them."""
        return self._log.events(scopes_of(*series))

    # Streams.

    @_contained
    def followed(self, series: SeriesId, head: int | None) -> None:
        """The series is followed from now on. `head`: its stored head; None when nothing is stored."""
        stored = "nothing is stored yet" if head is None else f"the newest stored candle is that of {date_text(head)}"
        self._note(series, Named("series.followed", f"the series is followed from now on; {stored}"))

    @_contained
    def unfollowed(self, series: SeriesId) -> None:
        """The series is not followed any more, because it has no subscribers."""
        self._note(series, Named("series.unfollowed", "nobody watches the series: it is followed no more"))

    @_contained
    def stream(self, series: SeriesId, before: StreamState, status: StreamStatus) -> None:
        """The state of a stream has changed.

        series: whose stream.
        before: the state before.
        status: the state now.
        """
        state = status.state
        own = _OWN_STATES.get(state) or (_RECOVERED_STATES.get(state) if before in _OWN_STATES else None)
        if own is not None:
            self._note(series, Named(own, stream_sentence(status)))
        elif state is StreamState.RECONNECTING:
            self.market(series, "connection.lost", f"streams of the market are being connected{_reason(status.detail)}")
        elif before is StreamState.RECONNECTING:  # `subscribed` -> `live` is no event
            self.market(series, "connection.made", "streams of the market are subscribed")

    @_contained
    def failing(self, series: SeriesId, reason: str) -> None:
        """The streams of a connection, among them that of `series`, cannot be subscribed."""
        self.market(series, "connection.failing", f"streams of the market cannot be subscribed{_reason(reason)}")

    @_contained
    def market(self, series: SeriesId, event: EventName, detail: str) -> None:
        """Note an event of a market.

        series: any series of the market.
        event: name of the event.
        detail: a sentence.
        """
        scope = market_scope(series.exchange, series.market)
        self._log.note(scope, event, detail, self._now_ms(series))

    # The store.

    @_contained
    def unwritten(self, series: SeriesId) -> None:
        """Candles of the series could not be written."""
        detail = "candles could not be written; they are read again from the exchange once the store takes them"
        self._note(series, Named("store.failed", detail))

    @_contained
    def damaged(self, series: SeriesId) -> None:
        """Stored candles of the series are damaged, and gone."""
        self._note(series, Named("store.damaged", "stored candles are gone from the store: they are declared missing"))

    @_contained
    def committed(self, changes: Sequence[SeriesChange]) -> None:
        """A transaction has changed gaps and stored values."""
        gaps: dict[SeriesId, list[GapChange]] = {}
        for series, change in changes:
            if isinstance(change, TakenOut):
                self._note_own(series, taken_out_event(series.timeframe, change))
                continue
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

    @_contained
    def read(self, series: SeriesId, span: Span | None, reason: str, candles: int, error: str | None) -> None:
        """A reading of history has ended.

        series: whose history.
        span: open times that were read; None: the reading failed before its span was known.
        reason: of the reading.
        candles: number of candles that came.
        error: why the reading failed, a sentence; None when it did not.
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


def _reason(detail: str | None) -> str:
    return "" if detail is None else f": {detail}"

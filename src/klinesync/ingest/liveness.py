"""StreamWatch: the liveness of one stream. Pure: events in, states out.

An acknowledged subscription is not data, and an open connection proves nothing about its streams. A stream is stale
when REST has a closed candle *with trades* that the stream did not bring. A candle without trades is not expected of a
stream, so that a quiet stream is never taken for a stale stream.

The states are those of `stream.state`: off, subscribed, live, stale, rest_fallback, reconnecting, delisted. Times
named `_ms` are the exchange's, times named `_s` monotonic.
"""

from __future__ import annotations

from collections.abc import Iterable

from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.printable import printable
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import StreamStatus
from klinesync.ingest.timings import USUAL_TIMINGS, FollowTimings

# Longest sentence about a stream, in characters.
MAX_DETAIL_CHARS = 500

STALE = (StreamState.STALE, StreamState.REST_FALLBACK)
CONNECTION_LOST = "the connection to the exchange is lost"


class StreamWatch:
    """The liveness of one stream.

    timeframe: of its candles.
    stale_s: seconds of the exchange after the close of a traded candle until the candle is overdue.
    since_ms: when the stream was requested, UTC; None (the default): unknown.
    timings: when a stream counts as stale, and is subscribed again.
    """

    __slots__ = (
        "_acknowledged",
        "_attached_ms",
        "_newest_closed",
        "_owed",
        "_owed_since_s",
        "_polling_reason",
        "_retries",
        "_retry_at_s",
        "_since_ms",
        "_stale_ms",
        "_timeframe",
        "_timings",
        "detail",
        "last_frame_ms",
        "quiet",
        "state",
    )  # fmt: skip

    def __init__(
        self,
        timeframe: Timeframe,
        stale_s: float,
        since_ms: int | None = None,
        timings: FollowTimings = USUAL_TIMINGS,
    ) -> None:
        self._timeframe = timeframe
        self._timings = timings
        self._stale_ms = int(stale_s * 1000)
        self.state = StreamState.RECONNECTING  # until it is acknowledged
        self.detail: str | None = None
        self.last_frame_ms: int | None = None
        self.quiet: Span | None = None  # proven empty by REST, behind the newest closed candle
        self._since_ms = since_ms
        self._acknowledged = False
        self._attached_ms: int | None = None
        self._newest_closed = -1  # newest open time of the stream's final candles
        self._owed: int | None = None  # open time of a traded candle that REST has and the stream did not bring
        self._owed_since_s = 0.0
        self._retries = 0
        self._retry_at_s = 0.0
        self._polling_reason: str | None = None  # why the source polls REST in place of the stream

    @property
    def status(self) -> StreamStatus:
        """The published status of the stream."""
        since, last_frame_at = _seconds(self._since_ms), _seconds(self.last_frame_ms)
        return StreamStatus(self.state, since, last_frame_at, self.detail, self.quiet)

    @property
    def is_stale(self) -> bool:
        """Whether REST has to replace the stream."""
        return self.state in STALE

    @property
    def serves(self) -> bool:
        """Whether the stream is expected to bring the next closed candle."""
        return self.state in (StreamState.SUBSCRIBED, StreamState.LIVE)

    @property
    def is_polled(self) -> bool:
        """Whether the exchange's client itself polls REST in place of the stream: closed candles arrive as from a
        stream."""
        return self._polling_reason is not None

    def attached(self, now_ms: int | None) -> None:
        """The exchange has acknowledged the subscription. A stale stream stays stale until data comes."""
        self._acknowledged = True
        self._attached_ms = now_ms
        self._owed = None
        if self.state == StreamState.RECONNECTING:
            self._change_state(StreamState.SUBSCRIBED, now_ms)

    def lost(self, now_ms: int | None, detail: str = CONNECTION_LOST) -> None:
        """The connection is lost, and polling by the exchange's client has ended. A stale stream stays stale, because
        REST still replaces it."""
        if self.serves or self.is_polled:
            self._change_state(StreamState.RECONNECTING, now_ms, detail)
        self._polling_reason = None
        self.quiet = None
        self._acknowledged = False
        self._owed = None

    def failing(self, reason: str) -> None:
        """The stream cannot be subscribed; `reason` says why. A stale stream keeps its detail."""
        if self.state == StreamState.RECONNECTING:
            self._set_detail(reason)

    def unreachable(self, now_ms: int | None, detail: str) -> None:
        """The exchange is unreachable, even if the connection still seems to be open."""
        if self.serves or self.is_polled:
            self._change_state(StreamState.RECONNECTING, now_ms, detail)

    def reachable(self, now_ms: int | None) -> None:
        """The exchange is reachable again. A stream whose connection stayed open is still subscribed."""
        if self.state == StreamState.RECONNECTING and self.is_polled:
            self._change_state(StreamState.REST_FALLBACK, now_ms, self._polling_reason)
        elif self.state == StreamState.RECONNECTING and self._acknowledged:
            self._change_state(StreamState.SUBSCRIBED, now_ms)

    def stands_in(self, now_ms: int | None, reason: str | None) -> None:
        """The exchange's client polls REST in place of the stream, or ends polling.

        now_ms: the exchange's time; None when unknown.
        reason: why REST is polled, a sentence; None: the stream brings frames again.
        """
        self._polling_reason = reason
        if reason is None and self.state == StreamState.REST_FALLBACK:
            self._change_state(StreamState.SUBSCRIBED if self._acknowledged else StreamState.RECONNECTING, now_ms)
        elif reason is not None and self.state != StreamState.DELISTED:
            self._change_state(StreamState.REST_FALLBACK, now_ms, reason)

    def delisted(self, now_ms: int | None, detail: str) -> None:
        """The exchange does not trade the symbol; no candle is expected until `listed`."""
        self._change_state(StreamState.DELISTED, now_ms, detail)
        self._owed = None

    def listed(self, now_ms: int | None, detail: str) -> None:
        """The exchange trades the symbol (again)."""
        self._change_state(StreamState.SUBSCRIBED if self._acknowledged else StreamState.RECONNECTING, now_ms, detail)

    def frame(self, candle: Candle, event_ms: int, *, closed: bool, connected: bool = True) -> bool:
        """The stream brought a frame.

        candle: of the frame.
        event_ms: stamp of the frame, ms of the exchange.
        closed: whether the candle is final.
        connected: False for a frame from a connection that was lost since, which proves nothing; True by default.

        Returns whether the frame makes a stale stream live: a closed candle in time does.
        """
        self.last_frame_ms = event_ms
        time = candle.time
        if closed:
            if self.quiet is not None and time >= self.quiet.start:
                self.quiet = None
            if time > self._newest_closed:
                self._newest_closed = time
            if self._owed is not None and time >= self._owed:
                self._owed = None
            in_time = event_ms <= self._timeframe.next(time) * 1000 + self._stale_ms
            if connected and in_time and self.is_stale and not self.is_polled:
                self._change_state(StreamState.LIVE, event_ms)
                self._retries = 0
                return True
        # The first frame may come before the acknowledgement.
        if connected and self.state in (StreamState.SUBSCRIBED, StreamState.RECONNECTING):
            if self.is_polled:
                self._change_state(StreamState.REST_FALLBACK, event_ms, self._polling_reason)
                return False
            detail = self.detail if self.state == StreamState.SUBSCRIBED else None  # else about a failed subscription
            self._change_state(StreamState.LIVE, event_ms, detail)
        return False

    def shown(self, candles: Iterable[Candle], now_ms: int | None, now_s: float) -> None:
        """REST has shown closed candles. The oldest of them that is expected of the stream (traded, closed while the
        stream was attached, and not brought) is owed.

        candles: rows of REST, ascending.
        now_ms: the exchange's time; None when unknown.
        now_s: monotonic seconds.
        """
        if not self._acknowledged or not (self.serves or self.is_stale):
            return
        if self._attached_ms is None:
            self._attached_ms = now_ms  # the exchange's time was unknown at the acknowledgement
            return
        for candle in candles:
            if candle.time <= self._newest_closed or not candle.volume:
                continue
            if self._timeframe.next(candle.time) * 1000 < self._attached_ms:
                continue
            if self.state == StreamState.STALE:
                self._change_state(StreamState.REST_FALLBACK, now_ms, self.detail)
            elif self._owed is None:
                self._owed = candle.time
                self._owed_since_s = now_s
            return

    def check(self, now_ms: int, now_s: float) -> bool:
        """Whether the stream becomes stale now."""
        if self._acknowledged and self._attached_ms is None:
            self._attached_ms = now_ms  # the exchange's time was unknown at the acknowledgement
        owed = self._owed
        if owed is None or not self.serves or now_s - self._owed_since_s < self._timings.in_flight_s:
            return False
        if now_ms < self._timeframe.next(owed) * 1000 + self._stale_ms:
            return False
        last_ms = self.last_frame_ms
        stream = "has brought no data" if last_ms is None else f"last brought data at {date_text(last_ms // 1000)}"
        detail = f"REST shows the candle of {date_text(owed)} with trades; the stream {stream}"
        self._change_state(StreamState.STALE, now_ms, detail)
        self._owed = None
        self._retry_at_s = now_s + self._timings.resubscribe.initial_s
        return True

    def retry(self, now_s: float) -> bool:
        """Whether a stale stream is to be subscribed again now; the next retry follows with backoff."""
        if not self.is_stale or self.is_polled or now_s < self._retry_at_s:
            return False
        self.retried(now_s)
        return True

    def retried(self, now_s: float) -> None:
        """The stream is subscribed again, by itself or with its whole connection. A renewed connection counts as a
        retry of each of its streams: with independent backoffs they would renew the connection in turns, too often."""
        self._retries += 1
        self._retry_at_s = now_s + self._timings.resubscribe.delay_s(self._retries)

    def _change_state(self, state: StreamState, now_ms: int | None, detail: str | None = None) -> None:
        self._set_detail(detail)
        if state != self.state:
            self.state = state
            self._since_ms = now_ms

    def _set_detail(self, detail: str | None) -> None:
        # Escaped, because a detail may quote the exchange: the status of a symbol, the message of an error.
        self.detail = None if detail is None else printable(detail[:MAX_DETAIL_CHARS])


def _seconds(time_ms: int | None) -> int | None:
    return None if time_ms is None else time_ms // 1000

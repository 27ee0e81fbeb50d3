"""StreamWatch: the liveness of one stream. Pure: events in, states out.

An acknowledged subscription is not data, and an open connection proves nothing about its streams. Only REST shows what
a
stream owes: a closed candle *with trades* that REST has and the stream did not bring makes the stream stale. A minute
without trades is not owed, so that a quiet stream is never taken for a broken one.

The states are those of `stream.state`: off, subscribed, live, stale, rest_fallback, reconnecting, delisted. Times
named `_ms` are the exchange's, those named `_s` monotonic.
"""

from __future__ import annotations

from collections.abc import Iterable

from klinesync.core.backoff import Backoff
from klinesync.core.candle import Candle
from klinesync.core.dates import date_text
from klinesync.core.printable import printable
from klinesync.core.spans import Span
from klinesync.core.stream_state import StreamState
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.contact import StreamStatus

# Seconds (ours) that a stream gets for a candle that REST shows, before it counts as stale: the frame may be in flight.
IN_FLIGHT_S = 2.0
# Backoff before a stale stream is subscribed again.
RESUBSCRIBE = Backoff(initial_s=15.0, most_s=900.0)
# Longest sentence about a stream, in characters.
MAX_DETAIL_CHARS = 500

STALE = (StreamState.STALE, StreamState.REST_FALLBACK)
CONNECTION_LOST = "the connection to the exchange is lost"


class StreamWatch:
    """One stream.

    stale_s: exchange time after its close by which a traded candle must have come, in seconds.
    since_ms: when the stream was asked for, UTC; None where that is not known.
    """

    __slots__ = (
        "_acknowledged", "_attached_ms", "_brought", "_owed", "_owed_since_s", "_retries", "_retry_at_s", "_since_ms",
        "_stale_ms", "_stood_in", "_timeframe", "detail", "last_frame_ms", "quiet", "state",
    )  # fmt: skip

    def __init__(self, timeframe: Timeframe, stale_s: float, since_ms: int | None = None) -> None:
        self._timeframe = timeframe
        self._stale_ms = int(stale_s * 1000)
        self.state = StreamState.RECONNECTING  # until it is acknowledged
        self.detail: str | None = None
        self.last_frame_ms: int | None = None
        self.quiet: Span | None = None  # where REST has shown that there are no candles behind the newest closed one
        self._since_ms = since_ms
        self._acknowledged = False
        self._attached_ms: int | None = None
        self._brought = -1  # the newest open time of which the stream brought the final candle
        self._owed: int | None = None
        self._owed_since_s = 0.0
        self._retries = 0
        self._retry_at_s = 0.0
        self._stood_in: str | None = None  # why the source polls REST in place of the stream

    @property
    def status(self) -> StreamStatus:
        """The published status of the stream."""
        since, last_frame_at = _seconds(self._since_ms), _seconds(self.last_frame_ms)
        return StreamStatus(self.state, since, last_frame_at, self.detail, self.quiet)

    @property
    def is_stale(self) -> bool:
        """Whether REST replaces the stream, or should."""
        return self.state in STALE

    @property
    def serves(self) -> bool:
        """Whether the stream can bring the next closed candle, so that waiting for it makes sense."""
        return self.state in (StreamState.SUBSCRIBED, StreamState.LIVE)

    @property
    def is_polled(self) -> bool:
        """Whether the exchange's client itself polls REST in place of the stream: closed candles arrive as from a
        stream."""
        return self._stood_in is not None

    def attached(self, now_ms: int | None) -> None:
        """The exchange has acknowledged the subscription. This is no data: a stale stream stays stale."""
        self._acknowledged = True
        self._attached_ms = now_ms
        self._owed = None
        if self.state == StreamState.RECONNECTING:
            self._turn(StreamState.SUBSCRIBED, now_ms)

    def lost(self, now_ms: int | None, detail: str = CONNECTION_LOST) -> None:
        """The connection is lost. A stale stream stays stale, and REST still replaces it. Polling by the exchange's
        client has ended, too."""
        if self.serves or self.is_polled:
            self._turn(StreamState.RECONNECTING, now_ms, detail)
        self._stood_in = None
        self.quiet = None
        self._acknowledged = False
        self._owed = None

    def failing(self, reason: str) -> None:
        """The stream is not subscribed; `reason` says why. A stale stream keeps its detail: REST replaces it."""
        if self.state == StreamState.RECONNECTING:
            self._set_detail(reason)

    def unreachable(self, now_ms: int | None, detail: str) -> None:
        """The exchange is unreachable, though the connection still seems to be open: the stream brings nothing."""
        if self.serves or self.is_polled:
            self._turn(StreamState.RECONNECTING, now_ms, detail)

    def reachable(self, now_ms: int | None) -> None:
        """The exchange is reachable again. A stream whose connection survived is still subscribed."""
        if self.state == StreamState.RECONNECTING and self.is_polled:
            self._turn(StreamState.REST_FALLBACK, now_ms, self._stood_in)
        elif self.state == StreamState.RECONNECTING and self._acknowledged:
            self._turn(StreamState.SUBSCRIBED, now_ms)

    def stood_in(self, now_ms: int | None, reason: str | None) -> None:
        """The source polls REST in place of the stream.

        now_ms: the exchange's time.
        reason: why, as a sentence; None once the stream brings frames again.
        """
        self._stood_in = reason
        if reason is None and self.state == StreamState.REST_FALLBACK:
            self._turn(StreamState.SUBSCRIBED if self._acknowledged else StreamState.RECONNECTING, now_ms)
        elif reason is not None and self.state != StreamState.DELISTED:
            self._turn(StreamState.REST_FALLBACK, now_ms, reason)

    def delisted(self, now_ms: int | None, detail: str) -> None:
        """The exchange does not trade the symbol; nothing is owed until `listed`."""
        self._turn(StreamState.DELISTED, now_ms, detail)
        self._owed = None

    def listed(self, now_ms: int | None, detail: str) -> None:
        """The exchange trades the symbol (again)."""
        self._turn(StreamState.SUBSCRIBED if self._acknowledged else StreamState.RECONNECTING, now_ms, detail)

    def frame(self, candle: Candle, event_ms: int, *, closed: bool, connected: bool = True) -> bool:
        """The stream brought a frame. True when the frame makes a stale stream live: a closed candle, in time.

        connected: False for a frame that waited while its connection was lost. It is no sign of life.
        """
        self.last_frame_ms = event_ms
        time = candle.time
        if closed:
            if self.quiet is not None and time >= self.quiet.start:
                self.quiet = None
            if time > self._brought:
                self._brought = time
            if self._owed is not None and time >= self._owed:
                self._owed = None
            in_time = event_ms <= self._timeframe.next(time) * 1000 + self._stale_ms
            if connected and in_time and self.is_stale and not self.is_polled:
                self._turn(StreamState.LIVE, event_ms)
                self._retries = 0
                return True
        # The first frame may overtake the acknowledgement.
        if connected and self.state in (StreamState.SUBSCRIBED, StreamState.RECONNECTING):
            if self.is_polled:
                self._turn(StreamState.REST_FALLBACK, event_ms, self._stood_in)
                return False
            # The trouble with the subscription is over.
            self._turn(StreamState.LIVE, event_ms, self.detail if self.state == StreamState.SUBSCRIBED else None)
        return False

    def shown(self, candles: Iterable[Candle], now_ms: int | None, now_s: float) -> None:
        """REST has shown closed candles. The stream owes the oldest traded one that closed while it was attached, and
        that it did not bring."""
        if not self._acknowledged or not (self.serves or self.is_stale):
            return
        if self._attached_ms is None:
            self._attached_ms = now_ms  # nothing was known of the exchange's time when it was acknowledged
            return
        for candle in candles:
            if candle.time <= self._brought or not candle.volume:
                continue
            if self._timeframe.next(candle.time) * 1000 < self._attached_ms:
                continue
            if self.state == StreamState.STALE:
                self._turn(StreamState.REST_FALLBACK, now_ms, self.detail)
            elif self._owed is None:
                self._owed = candle.time
                self._owed_since_s = now_s
            return

    def check(self, now_ms: int, now_s: float) -> bool:
        """Whether the stream becomes stale now."""
        if self._acknowledged and self._attached_ms is None:
            self._attached_ms = now_ms  # nothing was known of the exchange's time when it was acknowledged
        owed = self._owed
        if owed is None or not self.serves or now_s - self._owed_since_s < IN_FLIGHT_S:
            return False
        if now_ms < self._timeframe.next(owed) * 1000 + self._stale_ms:
            return False
        last_ms = self.last_frame_ms
        had = "has brought no data" if last_ms is None else f"last brought data at {date_text(last_ms // 1000)}"
        self._turn(
            StreamState.STALE, now_ms, f"REST shows the candle of {date_text(owed)} with trades; the stream {had}"
        )
        self._owed = None
        self._retry_at_s = now_s + RESUBSCRIBE.initial_s
        return True

    def retry(self, now_s: float) -> bool:
        """Whether a stale stream should be subscribed again now. The next time follows a doubled backoff."""
        if not self.is_stale or self.is_polled or now_s < self._retry_at_s:
            return False
        self.retried(now_s)
        return True

    def retried(self, now_s: float) -> None:
        """The stream is subscribed again, by itself or with its whole connection. (With a backoff each, the streams of
        a connection would renew it in turns, again and again, and it would bring nothing.)"""
        self._retries += 1
        self._retry_at_s = now_s + RESUBSCRIBE.delay_s(self._retries)

    def _turn(self, state: StreamState, now_ms: int | None, detail: str | None = None) -> None:
        self._set_detail(detail)
        if state != self.state:
            self.state = state
            self._since_ms = now_ms

    def _set_detail(self, detail: str | None) -> None:
        # Text of the exchange is in it: the status of a symbol, the message of an error.
        self.detail = None if detail is None else printable(detail[:MAX_DETAIL_CHARS])


def _seconds(time_ms: int | None) -> int | None:
    return None if time_ms is None else time_ms // 1000

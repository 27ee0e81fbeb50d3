"""Reads OHLCV rows of a ccxt exchange: valid candles, final candles, and where the next page begins.

Pure. A row is `[open time in ms, open, high, low, close, volume]`. `core/finality.py` decides whether it is final.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import isfinite

from klinesync.core.candle import Candle, check_candle
from klinesync.core.dates import date_text
from klinesync.core.errors import BadCandle, UpstreamError
from klinesync.core.finality import final_end
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.venue_margin import VenueMargin
from klinesync.exchanges.exchange import Emptiness

Row = Sequence[float | None]

# An exchange that adds no candle late.
AT_ONCE = Emptiness()

# A row that opens this many ms after the exchange's time is invalid.
LONGEST_AHEAD_MS = 86_400_000
# A row that opens so much later than the estimated time, in ms: the estimate is old (this machine slept, for example),
# or the row is wrong. The exchange is asked for its time before the answer is used.
MEASURE_AHEAD_MS = 3_600_000
# Most bits of a whole number; a larger one is invalid, and may not fit a float.
MAX_BITS = 63
# Fewest candles that an answer is assumed to cover where the page size of the exchange is unknown.
UNKNOWN_WINDOW = 100
# Candles that a live series may lag before it restarts at the newest ones; history fills the span between.
MOST_BEHIND = 20
# Candles before the open one at which live starts, because the previous candle may not be stored yet.
LIVE_BACK = 2
# Time for which an answer without news shows that a series is quiet, in seconds of the exchange: until the next poll.
QUIET_HOLDS_S = 90
# Published candles whose values are kept, to detect corrections.
MOST_RECENT = 4
# The HTTP status of ccxt's errors, by the name of their class.
STATUS_OF_ERROR = {
    "RateLimitExceeded": 429,
    "DDoSProtection": 429,
    "OnMaintenance": 503,
    "ExchangeNotAvailable": 503,
    "BadRequest": 400,  # BadSymbol is one
    "NotSupported": 400,
    "ArgumentsRequired": 400,
}
# The HTTP status in the text of ccxt's errors: `okx GET https://… 429 Too Many Requests …`.
_STATUS_IN_TEXT = re.compile(r"https?://\S+ ([1-5]\d\d)\b")
# Texts of venues for too many requests, in errors of any class: words, or a venue's own code (okx 50011, bybit 10006).
_TOO_FAST = re.compile(
    r"too many (requests|visits)|too frequent|rate.?limit|request limit|throttl|\b50011\b|\b10006\b", re.IGNORECASE
)


def ccxt_symbol(series: SeriesId) -> str:
    """ccxt's name of the series' symbol: `BTC/USDT` on futures is the linear swap `BTC/USDT:USDT`."""
    if series.market == "spot" or ":" in series.symbol:
        return series.symbol
    return f"{series.symbol}:{series.symbol.partition('/')[2]}"


def own_symbol(base: str, quote: str, settle: str | None) -> str:
    """Our name of a spot pair (`settle` None) or a swap: one that is settled in its quote asset is `BASE/QUOTE`."""
    return f"{base}/{quote}" if settle is None or settle == quote else f"{base}/{quote}:{settle}"


def plain_row(values: object) -> Row:
    """A row with plain numbers: a value that is no number, or an integer of more than 63 bits, becomes None; a value
    that is no row becomes an empty one."""
    return tuple(map(_plain_number, values)) if isinstance(values, list | tuple) else ()


def _plain_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, int) and value.bit_length() > MAX_BITS else value


@dataclass(frozen=True, slots=True)
class Page:
    """One answer, from its requested open time on.

    candles: final candles, ascending.
    empty: spans between two rows in which the venue has no candle.
    forming: the newest row, when it may still change.
    bad: rows that are no candles.
    newest: the newest open time of all rows; None without rows.
    still_open: whether the newest row may still change.
    rows: the number of rows.
    end: the open time before which rows are final.
    final_ms: the exchange's time that proved them final, UTC milliseconds; None: no clock did.
    """

    candles: list[Candle] = field(default_factory=list)
    empty: list[Span] = field(default_factory=list)
    forming: Candle | None = None
    bad: list[BadCandle] = field(default_factory=list)
    newest: int | None = None
    still_open: bool = False
    rows: int = 0
    end: int = 0
    final_ms: int | None = None


def read_page(
    frame: Timeframe,
    rows: Sequence[Row],
    start: int,
    end: int | None,
    *,
    final_ms: int | None,
    known_ms: int | None,
    margin_ms: int,
    emptiness: Emptiness = AT_ONCE,
) -> Page:
    """Read the answer to a request for rows. Rows before `start` are ignored; of several rows of one open time the
    last counts.

    frame: the timeframe.
    rows: as ccxt gives them.
    start: the requested open time, UTC seconds.
    end: the open time before which candles are wanted; None: all.
    final_ms: the exchange's time from before the request, UTC milliseconds; None: no clock proves a row to be final.
    known_ms: the estimate of the exchange's time; None: unknown.
    margin_ms: how long after its end a row may change, in milliseconds.
    emptiness: what proves that the venue has no candle.

    Raises `UpstreamError` when rows lie in the future.
    """
    by_time: dict[int, Row] = {}
    bad: list[BadCandle] = []
    for row in rows:
        if len(row) < 6 or row[0] is None or not isfinite(row[0]) or row[0] % 1000:
            bad.append(BadCandle(row[0] if row else None, "it is no row with an open time in whole seconds"))
        elif row[0] >= start * 1000:
            by_time[int(row[0]) // 1000] = row
    times = sorted(by_time)
    if not times:
        return Page(bad=bad)
    if known_ms is not None and times[-1] * 1000 > known_ms + LONGEST_AHEAD_MS:
        raise UpstreamError(
            f"rows from {date_text(start)} on reach to {date_text(times[-1])}, which lies in the future"
        )
    newest = times[-1]
    proven = final_end(frame, times, final_ms, margin_ms)
    still_open = proven <= frame.floor(newest)
    wanted = proven if end is None else min(proven, end)
    candles: list[Candle] = []
    forming = None
    for time in times:
        try:
            candle = _candle(by_time[time], frame)
        except BadCandle as error:
            bad.append(error)
            continue
        if time >= proven:
            forming = candle if time == newest else forming
        elif time < wanted:
            candles.append(candle)
    # A row that is no candle still says that there is something; one off the grid leaves its span uncovered.
    shown = [time for time in times if frame.is_open(time) and time < wanted]
    empty = emptiness.proven(frame, shown, known_ms)
    return Page(candles, empty, forming, bad, newest, still_open, len(times), proven, final_ms)


def newest_open_ms(rows: Iterable[Row]) -> int | None:
    """The newest open time of an answer, in ms; None where no row has one."""
    return max((int(row[0]) for row in rows if row and row[0] is not None and isfinite(row[0])), default=None)


def next_start(
    frame: Timeframe,
    start: int,
    page: Page,
    end: int | None,
    limit: int | None,
    now_s: int | None,
    window: int | None = None,
) -> int | None:
    """The open time at which the next page begins; None when this page was the last one. Pages overlap by one row.

    Many exchanges answer with the candles of a window of `limit` candles from `start` on. An answer without a new
    candle is therefore the end only when the window reaches up to now.

    frame: the timeframe.
    start: the open time from which this page was requested.
    page: the answer.
    end: the open time at which the reading ends, exclusive; None: at the newest candle.
    limit: most rows of an answer; None: unknown.
    now_s: the exchange's time, UTC seconds; None: unknown.
    window: the length of the exchange's window in candles, where it is longer than `limit`; None: `limit`.
    """
    newest = page.newest
    if end is not None and end <= page.end:
        return None
    if page.still_open:
        # A full answer does not show whether further rows follow. Request again, from the newest final row on.
        final = page.candles[-1].time if page.candles else start
        full = limit is not None and page.rows >= limit
        return final if full and final > start else None
    if newest is not None and now_s is not None and newest >= frame.latest_closed(now_s):
        return None  # nothing newer has ended
    if newest is not None and frame.floor(newest) > start:
        return frame.floor(newest)
    window_end = frame.shift(start, max(window or 0, UNKNOWN_WINDOW if limit is None else max(limit, 2)) - 1)
    if now_s is None or window_end >= frame.floor(now_s) or (end is not None and frame.next(window_end) >= end):
        return None
    return window_end


class LiveCandles:
    """The new candles in the rows of one live series: final candles, ascending, each once, and the forming candle.

    Rows are requested from one before the newest published final candle on. A final row that changed is published
    again.

    frame: the timeframe.
    margin: how long after its end the venue may change a row; it learns from such changes.
    """

    def __init__(self, frame: Timeframe, margin: VenueMargin) -> None:
        self._frame = frame
        self._margin = margin
        # Published final candles by open time, and the time between a candle's end and the request, in ms.
        self._recent: dict[int, tuple[Candle, int]] = {}
        self._final: Candle | None = None
        self._forming: Candle | None = None
        self._awaited: int | None = None  # the oldest open time that was shown as forming and is not final yet
        self._asked_from = 0  # the open time from which the newest page was requested
        self._asked_ms = 0  # the exchange's time at that request
        self._quiet_from: int | None = None  # the end of the newest final candle, also after a new start

    @property
    def newest_final(self) -> int | None:
        """The open time of the newest final candle; None before the first one, and after a new start."""
        return None if self._final is None else self._final.time

    def since(self, now_ms: int, back: int = LIVE_BACK) -> int:
        """The open time from which rows are to be requested. A series that is more than `MOST_BEHIND` candles behind
        starts anew, `back` candles before the open one.

        now_ms: the exchange's time, UTC milliseconds.
        back: candles before the open one at a start; `LIVE_BACK` by default.
        """
        frame = self._frame
        newest = frame.floor(now_ms // 1000)
        if self._final is None or frame.count(self._final.time, newest) > MOST_BEHIND:
            self._final = self._forming = self._awaited = None
            self._recent.clear()
            self._asked_from = max(0, frame.shift(newest, -back))
        else:
            self._asked_from = max(0, frame.shift(self._final.time, -1))
        return self._asked_from

    def due_ms(self, now_ms: int) -> int:
        """When the next candle is final, in the exchange's time (UTC milliseconds). The next candle is the oldest one
        that was shown as forming, or the open one."""
        awaited = self._awaited
        if awaited is None:
            awaited = self._frame.floor(now_ms // 1000)
            if self._final is not None:
                awaited = max(awaited, self._frame.next(self._final.time))
        return _end_ms(self._frame, awaited) + self._margin.ms

    def take(self, page: Page) -> list[tuple[Candle, bool]]:
        """The new candles of a page, each with whether it is final, in the order of publishing. A final candle is
        published again when its values have changed."""
        news: list[tuple[Candle, bool]] = []
        for candle in page.candles:
            seen_ms = 0 if page.final_ms is None else page.final_ms - _end_ms(self._frame, candle.time)
            before = self._recent.get(candle.time)
            if before is None and self._final is not None and candle.time <= self._final.time:
                continue
            if before is not None and before[0] != candle:
                self._margin.changed(before[1])
            self._recent[candle.time] = (candle, seen_ms)
            if before is None or before[0] != candle:
                news.append((candle, True))
            if self._final is None or candle.time >= self._final.time:
                self._final = candle
        for time in sorted(self._recent)[:-MOST_RECENT]:
            del self._recent[time]
        if self._final is not None and self._awaited is not None and self._awaited <= self._final.time:
            forming = self._forming
            self._awaited = forming.time if forming is not None and forming.time > self._final.time else None
        newest = page.forming
        if newest is None and page.candles and self._final != page.candles[-1]:
            newest = page.candles[-1]
        return news + self._show(newest)

    def quiet(self, page: Page, now_ms: int) -> Span | None:
        """The span behind the newest final candle in which a page shows no candle; None: the page shows no such span.

        The span ends at the newest row of the page, or, where no row follows the final candle, `QUIET_HOLDS_S` after
        the request.

        page: was given to `take` before.
        now_ms: the exchange's time at the request, UTC milliseconds.
        """
        if self._final is not None:
            self._quiet_from = self._frame.next(self._final.time)
        elif self._asked_from * 1000 > self._asked_ms:
            self._quiet_from = None  # the time between the last page and this one was not read
        self._asked_ms = now_ms
        start, newest = self._quiet_from, page.newest
        if start is None or (self._final is not None and newest is None):
            return None
        follows = newest is not None and newest >= start
        end = self._frame.floor(newest if newest is not None and follows else now_ms // 1000 + QUIET_HOLDS_S)
        return Span(start, end) if start < end else None

    def pushed(self, rows: Sequence[Row], now_ms: int) -> list[tuple[Candle, bool]]:
        """The new candle of a push of the stream, as a forming candle; nothing when it is not new. Raises
        `BadCandle`."""
        if not rows:
            return []
        row = max(rows, key=lambda one: (one[0] if one else None) or 0.0)
        candle = _candle(row, self._frame)
        if candle.time * 1000 > now_ms + LONGEST_AHEAD_MS:
            raise BadCandle(candle.time, "it lies in the future")
        return self._show(candle)

    def _show(self, candle: Candle | None) -> list[tuple[Candle, bool]]:
        if candle is None or candle == self._forming:
            return []
        for other in (self._final, self._forming):
            if other is not None and candle.time < other.time + (other is self._final):
                return []
        self._forming = candle
        if self._awaited is None:
            self._awaited = candle.time
        return [(candle, False)]


def upstream_error(what: str, error: Exception, retry_after: str | None = None) -> UpstreamError:
    """The `UpstreamError` for an error of an exchange or of ccxt.

    what: the request, for the message.
    error: as ccxt raised it.
    retry_after: the header `Retry-After` of the answer, in seconds; None: there was none.
    """
    names = [kind.__name__ for kind in type(error).__mro__]
    known = "BaseError" in names or isinstance(error, OSError | TimeoutError)
    status = _status(str(error), names) if known else 0
    text = " ".join(str(error).split())[:200]
    trouble = f"{names[0]} {text}" if known else f"the answer cannot be understood ({names[0]} {text})"
    retry_after_s = None
    if status == 429 and retry_after is not None:
        try:
            retry_after_s = float(retry_after)
        except ValueError:
            retry_after_s = None  # a date: the usual backoff applies
        if retry_after_s is not None and not (isfinite(retry_after_s) and retry_after_s >= 0.0):
            retry_after_s = None
    return UpstreamError(f"{what}: {trouble}", status, retry_after_s)


def _status(text: str, names: Sequence[str]) -> int:
    """The HTTP status of an error of ccxt, by its class and text; 0 without one; 429 for every kind of rate limit."""
    by_class = next((STATUS_OF_ERROR[name] for name in names if name in STATUS_OF_ERROR), 0)
    match = _STATUS_IN_TEXT.search(text)
    status = by_class if match is None else int(match[1])
    # The text after the address, because an address may contain any words.
    words = text if match is None else text[match.start(1) :]
    if by_class == 429 or status in (418, 429) or _TOO_FAST.search(words):
        return 429
    return by_class if status < 400 else status


def header(headers: Mapping[str, str] | None, name: str) -> str | None:
    """The value of a header. `name`: in lower case; the case of the headers' names does not matter."""
    return next((value for key, value in (headers or {}).items() if key.lower() == name), None)


def date_ms(text: str | None) -> int | None:
    """The time of a `Date` header, UTC milliseconds; None without a header, or when it is no date."""
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1000
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's own defects among them
        return None


def _end_ms(frame: Timeframe, open_time: int) -> int:
    return frame.next(frame.floor(open_time)) * 1000


def _candle(row: Row, frame: Timeframe) -> Candle:
    """The candle of a row. Raises `BadCandle`."""
    values = [value for value in row[:6] if value is not None]
    if len(values) < 6:
        raise BadCandle(row[0] if row else None, "a value is missing")
    time_ms, open_, high, low, close, volume = values
    if not isfinite(time_ms) or time_ms % 1000:
        raise BadCandle(time_ms, "its time is no whole second")
    return check_candle(
        Candle(int(time_ms) // 1000, float(open_), float(high), float(low), float(close), float(volume)), frame
    )

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
UNTOLD_WINDOW = 100
# Candles that a live series may lag before it restarts at the newest ones; history fills the span between.
MOST_BEHIND = 20
# Candles before the open one at which live starts, because the previous candle may not be stored yet.
LIVE_BACK = 2
# Time for which an answer without news shows that a series is quiet, in seconds of the exchange: until the next poll.
QUIET_HOLDS_S = 90
# Published candles whose values are kept, to detect corrections.
KEPT_TOLD = 4
# ccxt's errors by the name of their class, and the HTTP status that says the same.
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
# Texts of venues for too many requests, whatever class of error ccxt makes of them: words, or a venue's own code (okx
# 50011, bybit 10006).
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
    """A row as ccxt gives it, whatever that is: what is no number, or a whole number of more than 64 bits, counts as
    missing; what is no row counts as an empty one."""
    return tuple(map(_plain_number, values)) if isinstance(values, list | tuple) else ()


def _plain_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if isinstance(value, int) and value.bit_length() > MAX_BITS else value


@dataclass(frozen=True, slots=True)
class Page:
    """One answer, from the open time that it was asked for on.

    `candles` are final, ascending; `empty` lies between two of the answer's rows; `forming` is the newest row when it
    may still change (`still_open`); `bad` are rows that are no candles. `newest` is the newest open time of all `rows`,
    `end` the open time before which they are final. `final_ms`: the clock that proved them, None where none did.
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
    """Read the answer to "rows from `start` on" (open times in UTC seconds), of which those before `end` are wanted.

    `final_ms`: the exchange's clock, by stamps from before it was asked, None where no clock proves anything;
    `known_ms`: what time it is there, as far as is known. `margin_ms`: how long after its end a row may change;
    `emptiness`: what proves that the venue has no candle. Rows before `start` are passed over, the last of several of
    one time counts. Raises `UpstreamError` when rows lie in the future.
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
    """Where the next page begins, so that it overlaps this one by a row; None when this was the last one.

    Many exchanges answer with what lies in a window of `limit` candles behind `start`, so that an answer without
    anything new is the end only when the window reaches up to now (`now_s`, by the exchange's clock). `window`: where
    the exchange looks into a longer one than `limit`, in candles.
    """
    newest = page.newest
    if end is not None and end <= page.end:
        return None
    if page.still_open:
        # A full answer does not show whether rows follow the newest ones: again, from the newest final one on.
        final = page.candles[-1].time if page.candles else start
        full = limit is not None and page.rows >= limit
        return final if full and final > start else None
    if newest is not None and now_s is not None and newest >= frame.latest_closed(now_s):
        return None  # nothing newer has ended
    if newest is not None and frame.floor(newest) > start:
        return frame.floor(newest)
    window_end = frame.shift(start, max(window or 0, UNTOLD_WINDOW if limit is None else max(limit, 2)) - 1)
    if now_s is None or window_end >= frame.floor(now_s) or (end is not None and frame.next(window_end) >= end):
        return None
    return window_end


class LiveCandles:
    """What the rows of one live series newly tell: final candles, ascending, each once, and the one in progress.

    Rows are asked for from one before the newest told candle on: a row that changed after it was final is told again.
    `margin`: how long after its end the venue may change a row, which learns from such changes.
    """

    def __init__(self, frame: Timeframe, margin: VenueMargin) -> None:
        self._frame = frame
        self._margin = margin
        self._recent: dict[int, tuple[Candle, int]] = {}  # told candles, and how long after their end they were seen so
        self._told: Candle | None = None
        self._forming: Candle | None = None
        self._awaited: int | None = None  # the oldest open time that was shown and not told
        self._asked_from = 0  # the open time that the newest page was asked from
        self._looked_ms = 0  # the exchange's time when that page was asked for
        self._quiet_from: int | None = None  # behind the newest told candle, also once that is forgotten

    @property
    def told(self) -> int | None:
        """The newest open time that was told as final."""
        return None if self._told is None else self._told.time

    def since(self, now_ms: int, back: int = LIVE_BACK) -> int:
        """From what open time on rows are to be asked for. One far behind begins again at the newest: `back` candles
        before the one that is open."""
        frame = self._frame
        newest = frame.floor(now_ms // 1000)
        if self._told is None or frame.count(self._told.time, newest) > MOST_BEHIND:
            self._told = self._forming = self._awaited = None
            self._recent.clear()
            self._asked_from = max(0, frame.shift(newest, -back))
        else:
            self._asked_from = max(0, frame.shift(self._told.time, -1))
        return self._asked_from

    def due_ms(self, now_ms: int) -> int:
        """When the next candle is final, in the exchange's time: the oldest that was shown and not told, or the one
        that is open."""
        awaited = self._awaited
        if awaited is None:
            awaited = self._frame.floor(now_ms // 1000)
            if self._told is not None:
                awaited = max(awaited, self._frame.next(self._told.time))
        return _end_ms(self._frame, awaited) + self._margin.ms

    def take(self, page: Page) -> list[tuple[Candle, bool]]:
        """What a page brings: (candle, whether it is final), to be told in that order. One that was told as final is
        told again when its values are others now."""
        news: list[tuple[Candle, bool]] = []
        for candle in page.candles:
            seen_ms = 0 if page.final_ms is None else page.final_ms - _end_ms(self._frame, candle.time)
            before = self._recent.get(candle.time)
            if before is None and self._told is not None and candle.time <= self._told.time:
                continue
            if before is not None and before[0] != candle:
                self._margin.changed(before[1])
            self._recent[candle.time] = (candle, seen_ms)
            if before is None or before[0] != candle:
                news.append((candle, True))
            if self._told is None or candle.time >= self._told.time:
                self._told = candle
        for time in sorted(self._recent)[:-KEPT_TOLD]:
            del self._recent[time]
        if self._told is not None and self._awaited is not None and self._awaited <= self._told.time:
            forming = self._forming
            self._awaited = forming.time if forming is not None and forming.time > self._told.time else None
        newest = page.forming
        if newest is None and page.candles and self._told != page.candles[-1]:
            newest = page.candles[-1]
        return news + self._show(newest)

    def quiet(self, page: Page, now_ms: int) -> Span | None:
        """Where the page, which was taken, shows that there are no candles behind the newest told one: up to its newest
        row, or up to the next look where no row follows. None: nowhere.

        now_ms: the exchange's time when the page was asked for.
        """
        if self._told is not None:
            self._quiet_from = self._frame.next(self._told.time)
        elif self._asked_from * 1000 > self._looked_ms:
            self._quiet_from = None  # nobody has looked between the last page and this one
        self._looked_ms = now_ms
        start, newest = self._quiet_from, page.newest
        if start is None or (self._told is not None and newest is None):
            return None
        follows = newest is not None and newest >= start
        end = self._frame.floor(newest if newest is not None and follows else now_ms // 1000 + QUIET_HOLDS_S)
        return Span(start, end) if start < end else None

    def pushed(self, rows: Sequence[Row], now_ms: int) -> list[tuple[Candle, bool]]:
        """What a stream brings, which is the candle in progress at most. Raises `BadCandle`."""
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
        for other in (self._told, self._forming):
            if other is not None and candle.time < other.time + (other is self._told):
                return []
        self._forming = candle
        if self._awaited is None:
            self._awaited = candle.time
        return [(candle, False)]


def upstream_error(what: str, error: Exception, retry_after: str | None = None) -> UpstreamError:
    """The error of an exchange, or of ccxt, as ours. `retry_after` is the header of that name, in seconds."""
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
            retry_after_s = None  # a date: the usual pause does
        if retry_after_s is not None and not (isfinite(retry_after_s) and retry_after_s >= 0.0):
            retry_after_s = None
    return UpstreamError(f"{what}: {trouble}", status, retry_after_s)


def _status(text: str, names: Sequence[str]) -> int:
    """The HTTP status that an error of ccxt's stands for, 0 when there is none; 429 for every kind of "too fast"."""
    by_class = next((STATUS_OF_ERROR[name] for name in names if name in STATUS_OF_ERROR), 0)
    told = _STATUS_IN_TEXT.search(text)
    status = by_class if told is None else int(told[1])
    # The text behind the address: the address itself may say anything.
    words = text if told is None else text[told.start(1) :]
    if by_class == 429 or status in (418, 429) or _TOO_FAST.search(words):
        return 429
    return by_class if status < 400 else status


def header(headers: Mapping[str, str] | None, name: str) -> str | None:
    """The header of that name, however it is spelled."""
    return next((value for key, value in (headers or {}).items() if key.lower() == name), None)


def date_ms(text: str | None) -> int | None:
    """A `Date` header in ms; None when there is none, or no date in it."""
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1000
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's own defects among them
        return None


def _end_ms(frame: Timeframe, open_time: int) -> int:
    return frame.next(frame.floor(open_time)) * 1000


def _candle(row: Row, frame: Timeframe) -> Candle:
    """Raises `BadCandle`."""
    values = [value for value in row[:6] if value is not None]
    if len(values) < 6:
        raise BadCandle(row[0] if row else None, "a value is missing")
    time_ms, open_, high, low, close, volume = values
    if not isfinite(time_ms) or time_ms % 1000:
        raise BadCandle(time_ms, "its time is no whole second")
    return check_candle(
        Candle(int(time_ms) // 1000, float(open_), float(high), float(low), float(close), float(volume)), frame
    )

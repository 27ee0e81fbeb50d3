"""The evaluation of rows of a ccxt exchange: closedness, holes, the next page, live updates. By values."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.errors import BadCandle, UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.ccxt.rows import (
    LONGEST_AHEAD_MS,
    LiveCandles,
    Page,
    Row,
    ccxt_symbol,
    date_ms,
    header,
    next_start,
    own_symbol,
    read_page,
    upstream_error,
)
from klinesync.exchanges.ccxt.venue_margin import VenueMargin

MINUTE = Timeframe.parse("1m")
T0 = 1_700_000_040
MARGIN_MS = 2000


def row(minute: int, close: float = 1.5, volume: float | None = 10.0) -> Row:
    return ((T0 + 60 * minute) * 1000, 1.0, 2.0, 0.5, close, volume)


def candle(minute: int, close: float = 1.5) -> Candle:
    return Candle(T0 + 60 * minute, 1.0, 2.0, 0.5, close, 10.0)


def at(minute: float) -> int:
    """The time of a minute, in ms."""
    return int((T0 + 60 * minute) * 1000)


def read(
    *rows: Row, start: int = T0, end: int | None = None, final_ms: int | None = None, known_ms: int | None = None
) -> Page:
    return read_page(MINUTE, rows, start, end, final_ms=final_ms, known_ms=known_ms, margin_ms=MARGIN_MS)


# --- closedness


def test_a_row_with_two_later_ones_is_final_and_the_newest_two_are_not() -> None:
    page = read(row(0), row(1), row(2))
    assert page.candles == [candle(0)]
    assert page.forming == candle(2)
    assert page.still_open
    assert page.newest == T0 + 120


def test_a_stamp_proves_the_newest_row_once_the_margin_has_passed() -> None:
    assert read(row(0), row(1), final_ms=at(2) + MARGIN_MS - 1).candles == [candle(0)]
    assert read(row(0), row(1), row(2), final_ms=at(2) + MARGIN_MS).candles == [candle(0), candle(1)]
    page = read(row(0), row(1), final_ms=at(2) + MARGIN_MS)
    assert page.candles == [candle(0), candle(1)]
    assert page.forming is None
    assert not page.still_open


def test_rows_before_the_start_are_passed_over_and_rows_behind_the_end_prove_those_before() -> None:
    page = read(row(-2), row(0), row(1), row(2), row(3), end=T0 + 120)
    assert page.candles == [candle(0), candle(1)]
    assert page.newest == T0 + 180


def test_rows_are_put_in_order_and_of_two_of_one_time_the_last_counts() -> None:
    assert read(row(1), row(0, close=1.1), row(0), row(2), row(3)).candles == [candle(0), candle(1)]


def test_rows_in_the_future_are_an_error_of_the_exchange() -> None:
    ahead = at(0) + LONGEST_AHEAD_MS + 60_000
    with pytest.raises(UpstreamError, match="future"):
        read(row(0), (ahead, 1.0, 2.0, 0.5, 1.5, 10.0), known_ms=at(0))


# --- holes


def test_a_hole_between_two_rows_of_one_answer_is_empty_and_none_before_the_open_row() -> None:
    page = read(row(0), row(3), row(6), row(7))
    assert page.empty == [Span(T0 + 60, T0 + 180)]


def test_a_hole_before_the_first_row_is_not_shown_to_be_empty() -> None:
    assert read(row(3), row(4), row(5)).empty == []


@pytest.mark.parametrize(
    "spoilt",
    [
        row(1, volume=None),
        row(1, volume=-1.0),
        row(1, close=9.0),
        row(1, close=float("nan")),
        (at(1), 1.0, 2.0, 0.0, 1.5, 10.0),
    ],
)
def test_a_row_that_is_no_candle_is_left_out_and_its_time_is_not_empty(spoilt: Row) -> None:
    page = read(row(0), spoilt, row(2), row(3), row(4))
    assert page.candles == [candle(0), candle(2)]
    assert len(page.bad) == 1
    assert page.empty == []


@pytest.mark.parametrize("time_ms", [None, float("nan"), at(1) + 1])
def test_a_row_without_a_whole_open_time_is_left_out(time_ms: float | None) -> None:
    page = read(row(0), (time_ms, 1.0, 2.0, 0.5, 1.5, 10.0), row(2), row(3), row(4))
    assert page.candles == [candle(0), candle(2)]
    assert len(page.bad) == 1


# --- the start of the next page


def test_the_next_page_begins_with_the_last_row_of_this_one() -> None:
    page = read(row(0), row(1), final_ms=at(9))
    assert next_start(MINUTE, T0, page, None, 2, (T0 + 540)) == T0 + 60


@pytest.mark.parametrize(
    "page",
    [read(row(0), row(1)), read(row(0), final_ms=at(9))],
    ids=["the newest is open", "nothing newer"],
)
def test_reading_ends_where_the_exchange_has_no_more(page: Page) -> None:
    assert next_start(MINUTE, T0, page, None, 100, T0 + 120) is None


def test_reading_ends_with_the_last_one_that_was_asked_for() -> None:
    page = read(row(0), row(1), row(2), end=T0 + 120, final_ms=at(9))
    assert next_start(MINUTE, T0, page, T0 + 60, 3, T0 + 540) is None


def test_a_full_answer_whose_newest_row_is_not_proven_is_not_the_end() -> None:
    page = read(row(0), row(1), row(3), final_ms=at(4))
    assert next_start(MINUTE, T0, page, None, 3, T0 + 240) == T0 + 60, "with the row before it, so that a hole shows"
    assert next_start(MINUTE, T0, page, None, 4, T0 + 240) is None
    assert next_start(MINUTE, T0, read(row(0), row(3), final_ms=at(4)), None, 2, T0 + 240) is None, "none is skipped"


def test_an_answer_with_nothing_new_whose_window_ends_before_now_is_not_the_end() -> None:
    nothing_new = read(row(0), final_ms=at(1000))
    assert next_start(MINUTE, T0, nothing_new, None, 100, T0 + 60 * 1000) == T0 + 99 * 60
    assert next_start(MINUTE, T0, Page(), None, 100, T0 + 60 * 1000) == T0 + 99 * 60
    assert next_start(MINUTE, T0, Page(), None, None, T0 + 60 * 1000) == T0 + 99 * 60
    assert next_start(MINUTE, T0, Page(), T0 + 600, 100, T0 + 60 * 1000) is None


class Exchange:
    """The rows of an exchange that answers with the rows within `limit` candles after `since`, or with the next `limit`
    rows."""

    def __init__(self, minutes: set[int], now: int, limit: int, *, windowed: bool) -> None:
        self.minutes = sorted(minutes)
        self.now = now
        self.limit = limit
        self.windowed = windowed

    def rows(self, start: int) -> list[Row]:
        first = (start - T0) // 60
        found = [minute for minute in self.minutes if minute >= first]
        if self.windowed:
            found = [one for one in found if one < first + self.limit]
        return [row(one) for one in found[: self.limit]]

    def history(self, start: int, end: int | None) -> tuple[list[Candle], list[Span], int]:
        candles: dict[int, Candle] = {}
        empty: list[Span] = []
        pages, place = 0, start
        while True:
            page = read(*self.rows(place), start=place, end=end, final_ms=at(self.now))
            candles |= {one.time: one for one in page.candles}
            empty += page.empty
            pages += 1
            following = next_start(MINUTE, place, page, end, self.limit, at(self.now) // 1000)
            if following is None or (end is not None and following >= end):
                return [candles[time] for time in sorted(candles)], empty, pages
            assert following > place, "every page gets on"
            place = following


@given(
    minutes=st.sets(st.integers(0, 120)),
    now=st.integers(0, 121),
    limit=st.integers(4, 30),
    start=st.integers(0, 120),
    end=st.none() | st.integers(1, 121),
    windowed=st.booleans(),
)
@example(minutes={0, 1, 2, 3, 4}, now=4, limit=4, start=0, end=None, windowed=False)
def test_paging_brings_every_final_candle_and_proves_no_hole_that_there_is_not(
    minutes: set[int], now: int, limit: int, start: int, end: int | None, windowed: bool
) -> None:
    minutes = {minute for minute in minutes if minute <= now}
    exchange = Exchange(minutes, now, limit, windowed=windowed)
    candles, empty, _ = exchange.history(T0 + 60 * start, None if end is None else T0 + 60 * end)
    # At `now` the end and the margin of the minute before the last one have passed; or two later rows follow.
    wanted = [
        minute
        for number, minute in enumerate(sorted(minutes))
        if minute >= start and (end is None or minute < end) and (minute < now - 1 or number < len(minutes) - 2)
    ]
    assert [one.time for one in candles] == [T0 + 60 * one for one in wanted]
    lacking = {T0 + 60 * one for one in range(121) if one not in minutes}
    for hole in empty:
        assert {*range(hole.start, hole.end, 60)} <= lacking
    if not windowed:
        holes = {Span(a.time + 60, b.time) for a, b in pairwise(candles) if b.time > a.time + 60}
        assert set(empty) == holes


# --- live


def live() -> LiveCandles:
    return LiveCandles(MINUTE, VenueMargin(MARGIN_MS))


def test_a_page_is_told_as_final_candles_then_the_one_in_progress_and_once() -> None:
    live_rows = live()
    page = read(row(0), row(1), row(2), final_ms=at(2.5))
    assert live_rows.take(page) == [(candle(0), True), (candle(1), True), (candle(2), False)]
    assert live_rows.take(read(row(0), row(1), row(2), final_ms=at(2.6))) == []
    assert live_rows.take(read(row(0), row(1), row(2, close=1.6), final_ms=at(2.7))) == [(candle(2, close=1.6), False)]
    assert live_rows.newest_final == T0 + 60


def test_a_row_that_ended_a_moment_ago_is_not_told_as_final_though_a_later_one_exists() -> None:
    live_rows = live()
    live_rows.take(read(row(0), row(1), final_ms=at(1.5)))
    early, late = at(2) + MARGIN_MS - 1, at(2) + MARGIN_MS
    assert live_rows.take(read(row(0), row(1), row(2), final_ms=early)) == [(candle(2), False)]
    assert live_rows.take(read(row(0), row(1, close=1.7), row(2), final_ms=late)) == [(candle(1, close=1.7), True)]


def test_what_was_told_as_final_is_told_again_when_the_exchange_changes_it() -> None:
    live_rows = live()
    live_rows.take(read(row(0), row(1), row(2), final_ms=at(2.5)))
    assert live_rows.since(at(2.6)) == T0, "one row behind what was told"
    changed = read(row(0), row(1, close=1.9), row(2), final_ms=at(2.6))
    assert live_rows.take(changed) == [(candle(1, close=1.9), True)]
    assert live_rows.take(changed) == []
    live_rows.take(read(row(1, close=1.9), row(2), row(3), final_ms=at(3.5)))
    assert live_rows.take(read(row(1, close=1.8), row(2), row(3), final_ms=at(3.6))) == [(candle(1, close=1.8), True)]


def test_what_a_stream_pushes_is_shown_as_in_progress_and_never_as_final() -> None:
    live_rows = live()
    live_rows.take(read(row(0), row(1), final_ms=at(1.5)))
    assert live_rows.pushed([row(1, close=1.6), row(2)], at(2)) == [(candle(2), False)]
    assert live_rows.pushed([row(1)], at(2)) == [], "nothing of a candle before the one in progress is shown"
    assert live_rows.newest_final == T0


def test_an_empty_row_of_a_stream_is_no_candle() -> None:
    live_rows = live()
    with pytest.raises(BadCandle):
        live_rows.pushed([()], at(2))
    assert live_rows.pushed([(), row(2)], at(2)) == [(candle(2), False)]


def test_nothing_of_a_candle_that_was_told_as_final_is_shown() -> None:
    live_rows = live()
    assert live_rows.take(read(row(0), row(1), final_ms=at(2) + MARGIN_MS)) == [
        (candle(0), True),
        (candle(1), True),
    ]
    assert live_rows.pushed([row(1, close=1.6)], at(2.1)) == []


def test_a_candle_that_was_shown_is_due_until_it_is_told() -> None:
    live_rows = live()
    live_rows.take(read(row(0), row(1), final_ms=at(1.5)))
    assert live_rows.due_ms(at(1.5)) == at(2) + MARGIN_MS
    live_rows.pushed([row(2)], at(2))
    assert live_rows.due_ms(at(2.01)) == at(2) + MARGIN_MS, "it is the one before that is due"
    live_rows.take(read(row(0), row(1), row(2), final_ms=at(2.1)))
    assert live_rows.due_ms(at(2.1)) == at(3) + MARGIN_MS


def test_where_rest_has_nothing_behind_the_newest_told_candle_it_is_quiet_until_the_next_look() -> None:
    live_rows = live()
    assert live_rows.quiet(read(final_ms=at(1)), at(1)) is None
    page = read(row(0), row(1), final_ms=at(9))
    live_rows.take(page)
    assert live_rows.quiet(page, at(9)) == Span(T0 + 2 * 60, T0 + 10 * 60), "a look a minute is expected"
    traded = read(row(0), row(1), row(8), final_ms=at(8.5))
    assert live().quiet(traded, at(8.5)) is None, "nothing was told yet"
    assert live_rows.quiet(traded, at(8.5)) == Span(T0 + 2 * 60, T0 + 8 * 60)
    assert live_rows.quiet(read(row(0), row(1), row(2), final_ms=at(2.5)), at(2.5)) is None


def test_a_series_stays_quiet_for_hours_as_long_as_somebody_looks() -> None:
    live_rows = live()
    live_rows.since(at(2.5))
    live_rows.take(read(row(0), row(1), final_ms=at(2.5)))
    nothing = read(final_ms=at(2.5))
    for minute in range(3, 200):
        start = live_rows.since(at(minute))
        page = read(row(0), row(1), final_ms=at(minute)) if start <= T0 + 60 else nothing
        live_rows.take(page)
        quiet = live_rows.quiet(page, at(minute))
        assert quiet is not None, minute
        assert (quiet.start, quiet.end) == (T0 + 2 * 60, T0 + (minute + 1) * 60)
    live_rows.since(at(400))
    assert live_rows.quiet(nothing, at(400)) is None, "nobody looked for hours"
    live_rows.since(at(401))
    assert live_rows.quiet(nothing, at(401)) is None


def test_a_series_far_behind_begins_again_at_the_newest_candles() -> None:
    live_rows = live()
    assert live_rows.since(at(5.5)) == T0 + 3 * 60
    live_rows.take(read(row(3), row(4), row(5), final_ms=at(5.5)))
    assert live_rows.since(at(6.5)) == T0 + 3 * 60
    assert live_rows.since(at(400.5)) == T0 + 398 * 60
    assert live_rows.newest_final is None


# --- names and errors


@pytest.mark.parametrize(
    ("series_id", "symbol"),
    [
        ("okx:spot:BTC/USDT:1m", "BTC/USDT"),
        ("okx:futures:BTC/USDT:1m", "BTC/USDT:USDT"),
        ("okx:futures:BTC/USD:BTC:1m", "BTC/USD:BTC"),
    ],
)
def test_symbols_have_ccxts_names_and_back(series_id: str, symbol: str) -> None:
    series = SeriesId.parse(series_id)
    assert ccxt_symbol(series) == symbol
    pair, _, settle = symbol.partition(":")
    base, _, quote = pair.partition("/")
    assert own_symbol(base, quote, settle or None) == series.symbol


class BaseError(Exception):
    """Like ccxt's."""


class RateLimitExceeded(BaseError):
    """Like ccxt's."""


class BadSymbol(BaseError):
    """Like ccxt's."""


class BadRequest(BaseError):
    """Like ccxt's."""


class NoSuchSymbol(BadRequest):
    """Like an exchange's own error."""


def test_errors_are_known_by_the_names_of_their_classes() -> None:
    error = upstream_error("okx: fetchOHLCV", RateLimitExceeded("too  many\nrequests"), "7")
    assert (error.status, error.retry_after_s) == (429, 7.0)
    assert str(error) == "okx: fetchOHLCV: RateLimitExceeded too many requests"
    assert upstream_error("x", NoSuchSymbol("BTC")).status == 400
    assert upstream_error("x", BaseError("x"), "7").retry_after_s is None


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("okx GET https://www.okx.com/api/v5/market/candles?instId=BTC-USDT 429 Too Many Requests slow down", 429),
        ("kraken GET https://api.kraken.com/0/public/OHLC?pair=XBTUSD 418 I'm a teapot", 429),
        ('bybit GET https://api.bybit.com/v5/market/kline 403 Forbidden {"retMsg":"access too frequent"}', 429),
        ('okx {"code":"50011","msg":"Requests too fast"}', 429),
        ('bybit {"retCode":10006,"retMsg":"Too many visits!"}', 429),
        ("bybit GET https://api.bybit.com/v5/market/kline 403 Forbidden <html>barred</html>", 403),
        ("gate GET https://api.gateio.ws/rate-limit/429?x=too+many+requests 500 Internal Server Error", 500),
        ("coinbase GET https://api.coinbase.com/api/v3 451 Unavailable For Legal Reasons", 451),
        ("okx does not know that 429", 0),
    ],
)
def test_a_refusal_is_known_by_its_status_and_its_text_whatever_class_of_error_it_is(text: str, status: int) -> None:
    assert upstream_error("x", BaseError(text)).status == status


@pytest.mark.parametrize("retry_after", ["soon", "-1", "nan", None])
def test_a_retry_after_that_is_no_number_of_seconds_is_not_believed(retry_after: str | None) -> None:
    assert upstream_error("x", RateLimitExceeded("x"), retry_after).retry_after_s is None


def test_what_ccxt_stumbles_over_is_an_answer_that_cannot_be_understood() -> None:
    error = upstream_error("okx: fetchOHLCV", KeyError("data"))
    assert "cannot be understood (KeyError 'data')" in str(error)
    assert error.status == 0


def test_the_date_of_an_answer_is_a_stamp() -> None:
    assert header({"Date": "Sun, 22 Nov 2026 23:30:43 GMT"}, "date") == "Sun, 22 Nov 2026 23:30:43 GMT"
    assert date_ms("Sun, 22 Nov 2026 23:30:43 GMT") == 1_795_390_243_000
    assert date_ms("yesterday") is None
    assert date_ms("Fri, 31 Dec 99999 23:59:59 GMT") is None
    assert date_ms("0 Jan 0 0:0:0 -9999") is None
    assert date_ms(header(None, "date")) is None

"""Native candles of a timeframe that an exchange lacks: the fold of its shorter candles, for any paging."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.candle import Candle
from klinesync.core.derived import native_parts
from klinesync.core.errors import UpstreamError
from klinesync.core.series_id import SeriesId
from klinesync.core.spans import Span, narrowed, runs
from klinesync.core.timeframe import Timeframe
from klinesync.exchanges.exchange import HistoryPage
from klinesync.history.limits import USUAL_LIMITS
from klinesync.history.native_folds import PAGE_CANDLES, NativeFold, NativeSources, folded_pages
from klinesync.history.reading import Pages
from support.derived_candles import derive
from support.timeframes import DERIVED_OF_MINUTES

MINUTE = Timeframe.parse("1m")
SERIES = SeriesId.parse("binance:spot:BTC/USDT:45m")
TURN = int(datetime(2020, 6, 1, tzinfo=UTC).timestamp())


def frame(code: str) -> Timeframe:
    return Timeframe.parse(code)


def candle(time: int, value: int) -> Candle:
    """A candle made from a drawn number; volumes whose sums depend on the order."""
    volume = (0.1, 1 / 3, 2.0**53, 0.0)[value % 4]
    return Candle(time, 1.0 + value % 3, 4.0 + value % 2, 0.5, 1.0 + value % 5 / 2, volume)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Timeframe, Timeframe, Span, list[HistoryPage], dict[int, Candle], list[Span]]:
    """A target, a part, the requested span, pages that overlap by a row; the rows and proved gaps in these pages."""
    target = draw(DERIVED_OF_MINUTES.filter(lambda one: len(native_parts(one, MINUTE)) > 1))
    part = draw(st.sampled_from(native_parts(target, MINUTE)[1:]))
    start = target.floor(TURN)
    buckets = draw(st.integers(1, 4))
    span = Span(start, target.shift(start, buckets))
    opens = [part.shift(start, at) for at in range(part.count(*span))]
    missing = draw(st.sets(st.sampled_from(opens), max_size=draw(st.sampled_from((0, 2, 40)))))
    if draw(st.booleans()):  # nor is every bucket complete
        bucket = target.shift(start, draw(st.integers(0, buckets - 1)))
        missing |= {time for time in opens if bucket <= time < target.next(bucket)}
    if draw(st.booleans()):  # the first candles of the exchange, or its newest candles are not shown yet
        missing |= set(opens[: draw(st.integers(0, len(opens)))])
        missing |= set(opens[len(opens) - draw(st.integers(0, 3)) :])
    rows = [candle(time, draw(st.integers(0, 59))) for time in opens if time not in missing]
    inner = sorted(time for time in missing if rows and rows[0].time < time < rows[-1].time)
    proved = [gap for gap in runs(part, inner) if draw(st.sampled_from((True, True, False)))]
    size = draw(st.integers(2, 50))
    pages = []
    for at in range(0, max(1, len(rows) - 1), size - 1):
        shown = rows[at : at + size]
        inside = [gap for gap in proved if shown and shown[0].time < gap.start < shown[-1].time]
        pages.append(HistoryPage(shown, inside, "both neighbours"))
    return target, part, span, pages, {row.time: row for row in rows}, proved


@given(answers())
def test_folded_pages_are_the_closed_buckets_and_the_gaps_that_are_proved(
    drawn: tuple[Timeframe, Timeframe, Span, list[HistoryPage], dict[int, Candle], list[Span]],
) -> None:
    target, part, span, pages, rows, proved = drawn
    expected = []
    at = span.start
    while at < span.end:
        inside = [row for time, row in rows.items() if at <= time < target.next(at)]
        bucket = derive(target, part, at, inside, proved)
        expected += [] if bucket.candle is None else [bucket.candle]
        at = target.next(at)
    folded = folded_pages(target, part, span, pages)
    assert [one for page in folded for one in page.candles] == expected
    gaps = [gap for page in folded for gap in page.empty]
    assert gaps == (narrowed(target, proved) if expected else [])
    assert all(page.candles for page in folded)
    assert all(page.proof == f"of its {part} candles: both neighbours" for page in folded if page.empty)


def parts_of(part: Timeframe, span: Span) -> list[Candle]:
    return [candle(time, 1) for time in range(span.start, span.end, part.step_s)]


async def in_pages(candles: Sequence[Candle], size: int = 1000) -> Pages:
    for at in range(0, len(candles), size):
        yield HistoryPage(list(candles[at : at + size]), [])


async def read(fold: NativeFold, candles: Sequence[Candle]) -> list[HistoryPage]:
    return [page async for page in fold.pages(in_pages(candles))]


def test_long_folds_come_in_pages_of_a_thousand_without_a_seam() -> None:
    six, part = frame("6m"), frame("3m")
    span = Span(TURN, TURN + 2500 * 360)
    pages = folded_pages(six, part, span, [HistoryPage(parts_of(part, span), [])])
    assert [len(page.candles) for page in pages] == [PAGE_CANDLES, PAGE_CANDLES, 500]
    times = [one.time for page in pages for one in page.candles]
    assert times == list(range(span.start, span.end, 360))


@given(DERIVED_OF_MINUTES, st.integers(1, 100_000))
def test_one_reading_folds_a_bounded_number_of_parts_the_newest_ones(target: Timeframe, buckets: int) -> None:
    end = target.floor(4_000_000_000)
    for part in native_parts(target, MINUTE):
        wanted = Span(max(target.ceil(0), target.shift(end, -buckets)), end)
        span = NativeFold.newest(target, part, wanted, USUAL_LIMITS.fold_parts).span
        assert (span.end, target.is_open(span.start)) == (wanted.end, True)
        assert wanted.start <= span.start < span.end
        if part == target:
            assert span == wanted
        else:
            assert part.count(*span) <= USUAL_LIMITS.fold_parts * 31 / 30, "a month has 31 days at most"
            assert span == wanted or part.count(*span) > USUAL_LIMITS.fold_parts / 2


@pytest.mark.parametrize(
    ("first", "begins"),
    [
        (None, None),  # an empty answer
        (TURN, None),  # there may be older candles
        (TURN + 900, TURN + 2700),  # the first bucket lacks a part that is not proved empty
        (TURN + 2700, TURN + 2700),
        (TURN + 4500, TURN + 5400),
    ],
)
def test_where_an_exchange_begins_is_concluded_from_the_parts(first: int | None, begins: int | None) -> None:
    fold = NativeFold.newest(SERIES.timeframe, frame("15m"), Span(TURN, TURN + 10 * 2700), USUAL_LIMITS.fold_parts)
    rows = [] if first is None else parts_of(fold.part, Span(first, fold.span.end))
    pages = asyncio.run(read(fold, rows))
    candles = [one for page in pages for one in page.candles]
    brought = Span(candles[0].time, candles[-1].time + 2700) if candles else None
    assert fold.begins(brought) == begins
    assert brought is None or begins is None or brought.start == begins


def test_an_unproved_hole_in_the_first_bucket_does_not_show_where_the_exchange_begins() -> None:
    fold = NativeFold.newest(SERIES.timeframe, frame("15m"), Span(TURN, TURN + 2 * 2700), USUAL_LIMITS.fold_parts)
    rows = [row for row in parts_of(fold.part, fold.span) if row.time != TURN + 900]
    (page,) = asyncio.run(read(fold, rows))
    assert [one.time for one in page.candles] == [TURN + 2700]
    assert fold.begins(Span(TURN + 2700, TURN + 5400)) is None


@pytest.mark.parametrize(
    ("has", "source"),
    [
        ("1m 5m 15m 45m", "45m"),
        ("1m 5m 15m", "15m"),
        ("1m 5m 30m", "5m"),
        ("1m 30m", "1m"),
        ("30m 1h", None),
        ("", None),
    ],
)
async def test_the_longest_timeframe_that_the_exchange_has_is_read(has: str, source: str | None) -> None:
    async def knows(series: SeriesId) -> bool:
        return series.timeframe.code in has.split()

    found = await NativeSources(knows, MINUTE).source(SERIES)
    assert found == (None if source is None else SERIES.with_timeframe(frame(source)))


async def test_an_exchange_that_cannot_be_asked_has_no_source_yet() -> None:
    async def knows(series: SeriesId) -> bool:
        raise UpstreamError("it does not answer")

    with pytest.raises(UpstreamError):
        await NativeSources(knows, MINUTE).source(SERIES)


@pytest.mark.parametrize(("first", "begins"), [(2 * 2700, 2 * 2700), (2 * 2700 + 900, 2 * 2700), (3 * 2700, 3 * 2700)])
def test_a_first_bucket_behind_the_span_may_have_a_candle(first: int, begins: int) -> None:
    """The parts after the span that are requested beside it show where the exchange begins."""
    fold = NativeFold.newest(SERIES.timeframe, frame("15m"), Span(TURN, TURN + 2 * 2700), USUAL_LIMITS.fold_parts)
    assert asyncio.run(read(fold, parts_of(fold.part, Span(TURN + first, fold.asked.end)))) == []
    assert fold.begins(None) == TURN + begins
